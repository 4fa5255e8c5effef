"""Sites, aggregators and a coordinator that do not keep to the protocol: the right total, or none."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from confide.client_node.wire.evidence import signed_total
from confide.client_node.wire.messages import AggregateOrder, Outcome, SetTaken, SignedTotal, sign, verify
from confide.coordinator.errors import AggregationFailed
from confide.coordinator.federation.pki import Pki
from confide.coordinator.fleet.nodes import NodeFailure
from confide.coordinator.run import collection, questions
from confide.coordinator.run.relay import Load
from confide.coordinator.store.run_folder import RunFolder
from confide.mpc.errors import SetConflict
from confide.mpc.sharing import tags as tags_module
from confide.mpc.sharing.shares import set_name

from ..quiet_fleet import PARTIES, RUN, SITES, Federation, TableParty, found
from .test_dropouts import PowerCut, assert_opened, cut_at, gone, without

pytestmark = pytest.mark.slow


@pytest.fixture
def make(tmp_path, empty_store, monkeypatch):
    def federation(dropouts="top-up", *, max_dropouts=2, rounds=1, verify_total=False):
        return found(
            tmp_path, empty_store, monkeypatch,
            dropouts=dropouts, max_dropouts=max_dropouts, rounds=rounds, verify_total=verify_total,
        )  # fmt: skip

    return federation


def stretch(federation: Federation, site: str, monkeypatch, *, times: float) -> None:
    """Has the site share a vector of `times` the length that the study allows, without charging otherwise."""
    bound = federation.study.planned_round(1).bound_units

    def contribution(study, policy, planned):
        def draw(state):
            vector = np.zeros(planned.dim, np.int64)
            vector[: planned.dim // 2] = round(times * bound / np.sqrt(planned.dim // 2))
            return vector

        return draw

    monkeypatch.setattr(federation.fleet.nodes[site].model, "contribution", contribution)


@pytest.mark.parametrize("dropouts", ["top-up", "over-provision"])
def test_a_site_whose_vector_is_too_long_is_left_out_and_named(make, monkeypatch, dropouts):
    federation = make(dropouts)
    stretch(federation, "west", monkeypatch, times=100)
    federation.drive()
    assert_opened(federation, dropouts, without("west"))
    assert federation.store.left_out(RUN) == {1: {"west": "long"}}


def test_a_site_just_inside_the_bound_is_summed(make, monkeypatch):
    federation = make("over-provision")
    stretch(federation, "west", monkeypatch, times=0.99)
    federation.drive()
    assert [row.summed for row in federation.store.rounds(RUN)] == [SITES]
    assert federation.store.left_out(RUN) == {}


def test_a_run_that_cannot_do_without_a_site_fails_and_names_it(make, monkeypatch):
    federation = make("over-provision", max_dropouts=0)
    stretch(federation, "west", monkeypatch, times=100)
    with pytest.raises(AggregationFailed, match="the vectors of west are longer than the study allows"):
        federation.drive()
    assert federation.opened == []
    assert federation.store.left_out(RUN) == {1: {"west": "long"}}


def test_one_aggregator_alone_accuses_nobody(make, monkeypatch):
    federation = make("over-provision")
    real = TableParty.aggregate

    def aggregate(party, order, envelopes, topups):
        release = real(party, order, envelopes, topups)
        return replace(release, rejected=("west",)) if party._id == 1 else release

    monkeypatch.setattr(TableParty, "aggregate", aggregate)
    federation.drive()
    assert [row.summed for row in federation.store.rounds(RUN)] == [SITES]
    assert federation.store.left_out(RUN) == {}


def spoil_share(monkeypatch, aggregator: int, listeners: Sequence[int] = range(3)) -> None:
    """Has one aggregator give `listeners`, of whom it is one itself, another share of the total than it has."""

    def lie(speaker, listener, step, data):
        is_false = (speaker, step) == (aggregator, "TOTL") and listener in listeners
        return bytes([data[0] ^ 1]) + data[1:] if is_false else data

    monkeypatch.setattr(TableParty, "lie", staticmethod(lie))


@pytest.mark.parametrize("dropouts", ["top-up", "over-provision"])
def test_an_honest_total_passes_with_tags_and_without_a_site(make, dropouts):
    federation = make(dropouts, verify_total=True)
    federation.fleet.before = gone(site="west", since="step")
    federation.drive()
    assert_opened(federation, dropouts, without("west"))


@pytest.mark.parametrize("aggregator", range(3))
def test_a_total_that_an_aggregator_has_changed_is_noticed_and_nothing_of_it_is_kept(make, monkeypatch, aggregator):
    federation = make(verify_total=True)
    with monkeypatch.context() as patch:
        spoil_share(patch, aggregator)
        with pytest.raises(AggregationFailed, match="An aggregator has changed its share"):
            federation.drive()
    assert federation.store.rounds(RUN) == []
    with pytest.raises(AggregationFailed, match="bound to the first total"):  # honest again, but too late
        federation.drive()
    assert federation.store.rounds(RUN) == []


def test_without_tags_such_a_total_passes(make, monkeypatch):
    federation = make(verify_total=False)
    spoil_share(monkeypatch, 1)
    federation.drive()
    assert [row.summed for row in federation.store.rounds(RUN)] == [SITES]


@pytest.mark.parametrize("told", [(0,), (1,), (2,), (0, 2)], ids=str)
def test_a_party_that_opens_different_totals_to_the_others_is_noticed_without_tags(make, monkeypatch, told):
    federation = make(verify_total=False)
    with monkeypatch.context() as patch:
        spoil_share(patch, 1, told)
        with pytest.raises(AggregationFailed, match="have different totals of one set"):
            federation.drive()
    assert federation.store.rounds(RUN) == []
    assert federation.opened == []
    steps = [question for question in federation.fleet.asked if question[0] == "step"]
    federation.drive()
    assert [question for question in federation.fleet.asked if question[0] == "step"] == steps  # what they had sealed
    assert_opened(federation, "top-up", SITES)


def test_all_three_sign_the_total_that_the_coordinator_takes(make):
    federation = make()
    federation.drive()
    (row,), (words, _) = federation.store.rounds(RUN), federation.opened[0]
    outcome = Outcome(round=1, sites=row.summed, evidence=row.signed)
    assert signed_total(federation.study, RUN, outcome).total_digest == hashlib.sha256(words).hexdigest()


@pytest.mark.parametrize("liars", [PARTIES[:1], PARTIES[:2]], ids=str)
def test_a_sender_whose_bytes_are_not_what_it_signed_is_passed_over(make, liars):
    federation = make()
    for name in liars:
        node = federation.fleet.nodes[name]
        real = node._signed

        def signed(study, answer, blobs=None, real=real):
            return real(study, answer, blobs and {blob: data[:-1] + b"?" for blob, data in blobs.items()})

        node._signed = signed
    federation.drive()
    assert [kind for kind, _ in federation.fleet.asked].count("aggregate") == 3 * (len(liars) + 1)
    assert_opened(federation, "top-up", SITES)


def test_a_site_whose_tags_are_not_its_vectors_fails_the_round_and_changes_nothing(make, monkeypatch):
    federation = make(verify_total=True)
    real = tags_module.tags
    drawn = []

    def false(units, *args, **kwargs):
        made = real(units, *args, **kwargs)
        drawn.append(made)
        return made + 1 if len(drawn) == 1 else made

    monkeypatch.setattr("confide.client_node.shares.seal.tags", false)
    with pytest.raises(AggregationFailed, match="sent tags that are not"):
        federation.drive()
    assert federation.store.rounds(RUN) == []


def test_a_coordinator_that_gives_one_site_another_key_of_tags_gets_no_sum_with_it(make, monkeypatch):
    """The sum of tags would else show values of this one site's vector: <r - r', x>."""
    federation = make("over-provision", verify_total=True)
    real_plan = collection.plan

    def plan(round_, site, inline):
        told = replace(round_)
        if site == "west":
            vars(told)["tag_key"] = "ab" * 32
        return real_plan(told, site, inline)

    monkeypatch.setattr(collection, "plan", plan)
    federation.drive()
    assert_opened(federation, "over-provision", without("west"))


@pytest.mark.parametrize("bound", [("east",), (), (*SITES, "nobody")])
def test_an_aggregator_that_lies_about_a_bound_set_leaves_nothing_behind(make, monkeypatch, bound):
    federation = make()
    real = TableParty.aggregate

    def aggregate(party, order, envelopes, topups):
        release = real(party, order, envelopes, topups)
        if party._id == 1:
            raise SetConflict("round 1 is bound to another set of sites", bound)
        return release

    with monkeypatch.context() as patch:
        patch.setattr(TableParty, "aggregate", aggregate)
        with pytest.raises(AggregationFailed, match="no set that the study allows"):
            federation.drive()
    federation.drive()
    assert_opened(federation, "top-up", SITES)
    assert not any(kind == "topup" for kind, _ in federation.fleet.asked)


def orders(federation: Federation, cohort: tuple[str, ...], *, round_number: int = 1, attempt: int = 1):
    """What the aggregators answer a coordinator that orders a sum of its own over what it holds of round 1."""
    envelopes, run = RunFolder(federation.home, RUN).envelopes(1).read(), federation.context()
    state = hashlib.sha256(run.start.state.tobytes()).hexdigest()
    terms = {"round": round_number, "state": state, "cohort": cohort, "attempt": attempt, "with_total": True}
    packets = {
        name: sign(
            AggregateOrder(**run.addressed(name), **terms),
            Pki.load(federation.home).signer,
            Load.of(cohort, i, envelopes, {}, set_name(cohort)).blobs(),
        )
        for i, name in enumerate(PARTIES)
    }
    identities = {party.name: party.identity for party in federation.study.aggregators}
    return [
        answer if isinstance(answer, NodeFailure) else verify(answer, identities[name], SignedTotal, SetTaken)
        for name, answer in federation.fleet.ask("aggregate", packets, 5)
    ]


@pytest.fixture
def bad_coordinator(make):
    """A federation whose coordinator holds all updates of the first of two rounds when it turns bad."""
    federation = make("over-provision", rounds=2)
    cut_at(federation, "aggregate", "agg-a")
    with pytest.raises(PowerCut):
        federation.drive()
    federation.fleet.before = lambda kind, name: None
    return federation


def test_two_totals_that_differ_by_one_site_are_not_both_released(bad_coordinator):
    assert {type(answer) for answer in orders(bad_coordinator, SITES)} == {SignedTotal}
    answers = orders(bad_coordinator, without("west"), attempt=2)
    assert {(type(answer), answer.bound) for answer in answers} == {(SetTaken, SITES)}


@pytest.mark.parametrize("false_first", [True, False])
def test_two_totals_of_one_set_are_not_both_signed(bad_coordinator, monkeypatch, false_first):
    """With three signatures on each of two totals, a coordinator could lead two sites to different states."""
    answers = []
    for attempt in (1, 2):
        with monkeypatch.context() as patch:
            if false_first is (attempt == 1):
                spoil_share(patch, 1)
            answers.append(orders(bad_coordinator, SITES, attempt=attempt))
    assert {type(answer) for answer in answers[0]} == {SignedTotal}
    assert [answer.error for answer in answers[1]] == ["TotalConflict"] * 3


def test_nor_in_the_other_order(bad_coordinator):
    assert {type(answer) for answer in orders(bad_coordinator, without("west"))} == {SignedTotal}
    answers = orders(bad_coordinator, SITES, attempt=2)
    assert {(type(answer), answer.bound) for answer in answers} == {(SetTaken, without("west"))}


def test_updates_of_one_round_are_not_added_in_another(bad_coordinator):
    answers = orders(bad_coordinator, SITES, round_number=2)
    assert {answer.error for answer in answers} == {"CohortTooSmall"}


def test_patience_is_not_spent_on_what_asking_again_cannot_change(make, monkeypatch):
    federation = make("over-provision", max_dropouts=0)
    stretch(federation, "west", monkeypatch, times=100)
    monkeypatch.setattr(questions, "PATIENCE_S", 3600.0)
    with pytest.raises(AggregationFailed):
        federation.drive()
    assert federation.fleet.asked.count(("aggregate", "agg-a")) == 1
