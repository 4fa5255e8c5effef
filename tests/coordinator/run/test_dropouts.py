"""Sites, aggregators and the coordinator go missing at every step: what is opened always has the noise it must have.

Updates are zero, so each total is its noise, which is measured and held against the study and the ledgers.
"""

import hashlib
import math
import time

import pytest

from confide.client_node.wire.messages import AggregateOrder, SetIncomplete, SetTaken, SignedTotal, sign, verify
from confide.coordinator.errors import RunRefused, SitesMissing
from confide.coordinator.federation.pki import Pki
from confide.coordinator.fleet.nodes import NodeFailure
from confide.coordinator.run import questions
from confide.coordinator.run.relay import Load
from confide.coordinator.store.run_folder import RunFolder
from confide.mpc.errors import PartyLost
from confide.mpc.sharing.shares import set_name

from ..quiet_fleet import AWAY, DIM, PARTIES, RUN, SITES, Federation, TableParty, found, std_bounds

pytestmark = pytest.mark.slow

SIGMA, COLLUSION = 1.5, 1
MODES = ["top-up", "over-provision"]


class PowerCut(BaseException):
    pass


@pytest.fixture
def make(tmp_path, empty_store, monkeypatch):
    def federation(dropouts="top-up", *, max_dropouts=2, rounds=1):
        return found(tmp_path, empty_store, monkeypatch, dropouts=dropouts, max_dropouts=max_dropouts, rounds=rounds)

    return federation


def site_std(dropouts: str, summed: int) -> float:
    """Std of one site's noise in an opened sum, by the definition: the honest ones of it make up the multiplier."""
    honest = summed - COLLUSION if dropouts == "top-up" else len(SITES) - 2 - COLLUSION
    return SIGMA / math.sqrt(honest)


def assert_opened(federation: Federation, dropouts: str, *sets: tuple[str, ...]) -> None:
    """Each round was opened over its set, for good, with the noise that this set needs; and paid so by each of it."""
    assert [row.summed for row in federation.store.rounds(RUN)] == list(sets)
    for number, summed in enumerate(sets, start=1):
        std = site_std(dropouts, len(summed))
        totals = [total for _, total in federation.opened[number - 1 :: len(sets)]]
        low, high = std_bounds(std * math.sqrt(len(summed)), DIM)
        assert all(low < total.std() < high for total in totals)
        for site in summed:
            release = federation.charged(site, number)
            assert release.sites == len(summed)
            assert release.site_noise_int * 2.0**-federation.study.scale_bits == pytest.approx(std, rel=1e-5)


def gone(*, site: str, since: str):
    """The site answers nothing from its first question of that kind on."""
    is_gone = []

    def before(kind, name):
        if name == site and kind == since:
            is_gone.append(site)
        return AWAY if name == site and is_gone else None

    return before


def both(*failures):
    return lambda kind, name: next((found for one in failures if (found := one(kind, name)) is not None), None)


def gone_after(kind: str, site: str):
    """(before, after) of a site whose answer to that kind is its last word."""
    is_gone = []

    def after(asked, name):
        if (asked, name) == (kind, site):
            is_gone.append(site)

    return (lambda asked, name: AWAY if name == site and is_gone else None), after


def without(*sites):
    return tuple(site for site in SITES if site not in sites)


def fail_after_charge(federation, monkeypatch, site):
    def broken(study, policy, planned):
        def fail(state):
            raise OSError("the disk is full")

        return fail

    monkeypatch.setattr(federation.fleet.nodes[site].model, "contribution", broken)


@pytest.mark.parametrize("dropouts", MODES)
def test_who_all_stay_are_summed_as_they_are_and_nobody_is_asked_for_more(make, dropouts):
    federation = make(dropouts)
    federation.drive()
    assert_opened(federation, dropouts, SITES)
    assert not any(kind == "topup" for kind, _ in federation.fleet.asked)


def test_top_up_spares_those_who_all_stay_the_noise_for_missing_ones():
    assert site_std("over-provision", 4) / site_std("top-up", 4) == pytest.approx(math.sqrt(3))


@pytest.mark.parametrize("dropouts", MODES)
def test_a_site_gone_before_the_plan_is_left_out(make, dropouts):
    federation = make(dropouts)
    federation.fleet.before = gone(site="west", since="step")
    federation.drive()
    assert_opened(federation, dropouts, without("west"))
    assert not federation.reserved("west")


@pytest.mark.parametrize("dropouts", MODES)
def test_a_site_gone_after_its_charge_is_left_out_and_pays_at_its_worst(make, dropouts, monkeypatch):
    federation = make(dropouts)
    fail_after_charge(federation, monkeypatch, "west")
    federation.drive()
    assert_opened(federation, dropouts, without("west"))
    assert federation.charged("west").sites == federation.study.quorum == 2
    assert federation.charged("west").noise_multiplier(COLLUSION) == pytest.approx(SIGMA, rel=1e-4)


@pytest.mark.parametrize("dropouts", MODES)
def test_a_site_gone_after_sending_is_summed_if_nobody_else_is_missing(make, dropouts):
    federation = make(dropouts)
    federation.fleet.before, federation.fleet.after = gone_after("step", "west")
    federation.drive()
    assert [row.summed for row in federation.store.rounds(RUN)] == [SITES]
    low, high = std_bounds(2 * site_std(dropouts, 4), DIM)
    assert low < federation.opened[0][1].std() < high


@pytest.mark.parametrize("dropouts", MODES)
def test_a_site_gone_after_sending_while_another_never_sent(make, dropouts):
    federation = make(dropouts)
    west_is_gone, federation.fleet.after = gone_after("step", "west")
    federation.fleet.before = both(gone(site="north", since="step"), west_is_gone)
    federation.drive()
    summed = without("north", "west") if dropouts == "top-up" else without("north")  # its noise is in its update
    assert [row.summed for row in federation.store.rounds(RUN)] == [summed]
    low, high = std_bounds(site_std(dropouts, len(summed)) * math.sqrt(len(summed)), DIM)
    assert low < federation.opened[0][1].std() < high


def test_a_site_gone_after_the_fix_leaves_a_smaller_set_that_is_topped_up_anew(make):
    federation = make()
    federation.fleet.before = both(gone(site="north", since="step"), gone(site="west", since="topup"))
    federation.drive()
    assert_opened(federation, "top-up", ("east", "south"))
    assert federation.charged("west").planned_sites == len(SITES)  # unsettled: at its worst


def test_a_site_gone_after_its_top_up_is_summed_with_it(make):
    federation = make()
    west_is_gone, federation.fleet.after = gone_after("topup", "west")
    federation.fleet.before = both(gone(site="north", since="step"), west_is_gone)
    federation.drive()
    assert [row.summed for row in federation.store.rounds(RUN)] == [without("north")]
    low, high = std_bounds(site_std("top-up", 3) * math.sqrt(3), DIM)
    assert low < federation.opened[0][1].std() < high


def test_a_site_that_comes_back_after_the_fix_is_not_let_in_again(make):
    federation = make()
    federation.fleet.before = gone(site="west", since="step")
    cut_at(federation, "topup", "south")
    with pytest.raises(PowerCut):
        federation.drive()
    federation.fleet.before = lambda kind, name: None
    federation.fleet.after = lambda kind, name: None
    federation.drive()
    assert_opened(federation, "top-up", without("west"))
    assert not federation.reserved("west")


@pytest.mark.parametrize("dropouts", MODES)
def test_more_missing_sites_than_allowed_open_nothing(make, dropouts, monkeypatch):
    federation = make(dropouts, max_dropouts=1 if dropouts == "top-up" else 2)
    monkeypatch.setattr(questions, "PATIENCE_S", 0.0)
    late = gone(site="west", since="topup" if dropouts == "top-up" else "step")
    federation.fleet.before = both(gone(site="north", since="step"), gone(site="east", since="none"), late)
    if dropouts == "over-provision":
        federation.fleet.before = both(federation.fleet.before, gone(site="east", since="step"))
    with pytest.raises((SitesMissing, RunRefused)):
        federation.drive()
    assert federation.opened == []
    assert federation.store.rounds(RUN) == []
    assert federation.charged("south").noise_multiplier(COLLUSION) == pytest.approx(SIGMA, rel=1e-4)


def test_a_round_that_was_left_open_goes_on_with_its_set_when_the_site_is_back(make, monkeypatch):
    federation = make(max_dropouts=1)
    monkeypatch.setattr(questions, "PATIENCE_S", 0.0)
    federation.fleet.before = both(gone(site="north", since="step"), gone(site="west", since="topup"))
    with pytest.raises(SitesMissing, match="topup: no good answer from west"):
        federation.drive()
    federation.fleet.before = lambda kind, name: None
    federation.drive()
    assert_opened(federation, "top-up", without("north"))


def test_waiting_for_top_ups_uses_up_none_of_the_aggregators_patience(make, monkeypatch):
    federation, lost = make(max_dropouts=1), list[str]()
    monkeypatch.setattr(questions, "PATIENCE_S", 3.0)

    def before(kind: str, name: str) -> NodeFailure | None:
        if (kind, name) == ("topup", "south"):
            time.sleep(3.5)
        if (kind, name) == ("aggregate", "agg-a") and not lost:
            lost.append(name)
            return NodeFailure(reason="failed", error="PartyLost", message="aggregator 2 is lost")
        return None

    federation.fleet.before = both(gone(site="west", since="step"), before)
    federation.drive()
    assert lost
    assert_opened(federation, "top-up", without("west"))


@pytest.mark.parametrize("step", ["MASK", "TMSK", "BIND", "DONE"])
@pytest.mark.parametrize("dropouts", MODES)
def test_an_aggregator_killed_between_fix_and_opening_changes_nothing(make, dropouts, step):
    federation = make(dropouts)
    federation.fleet.before = gone(site="west", since="step")
    TableParty.dies = 1, step
    federation.drive()
    assert_opened(federation, dropouts, without("west"))
    tries = federation.fleet.asked.count(("aggregate", "agg-a"))
    assert tries == (1 if (dropouts, step) == ("over-provision", "TMSK") else 2)  # nothing to top up, no such step
    TableParty.dies = None


@pytest.mark.parametrize("dropouts", MODES)
def test_an_aggregator_killed_after_it_released_releases_the_same_again(make, dropouts, monkeypatch):
    federation, released = make(dropouts), []
    federation.fleet.before = gone(site="west", since="step")
    real = TableParty.aggregate

    def aggregate(party, order, envelopes, topups):
        release = real(party, order, envelopes, topups)
        released.append((party._id, release))
        if len([one for one, _ in released if one == 1]) == 1 and party._id == 1:
            raise PartyLost("killed before its answer left")
        return release

    monkeypatch.setattr(TableParty, "aggregate", aggregate)
    federation.drive()
    assert_opened(federation, dropouts, without("west"))
    assert len(released) == 2 * len(PARTIES)
    assert all(len({release for one, release in released if one == party}) == 1 for party in range(3))


QUESTIONS = {
    "top-up": [("topup", "east"), ("topup", "south"), ("aggregate", "agg-a"), ("aggregate", "agg-c")],
    "over-provision": [("step", "south"), ("aggregate", "agg-c")],
}


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize(("dropouts", "question"), [(mode, q) for mode, asked in QUESTIONS.items() for q in asked])
def test_the_coordinator_killed_anywhere_opens_the_same_total_with_the_same_noise(make, dropouts, question, moment):
    federation = make(dropouts)
    west = gone(site="west", since="step")
    federation.fleet.before = west
    cut_at(federation, *question, moment=moment)
    with pytest.raises(PowerCut):
        federation.drive()
    federation.fleet.before, federation.fleet.after = west, lambda kind, name: None
    drawn = sealed_bytes(federation)
    federation.drive()
    assert_opened(federation, dropouts, without("west"))
    assert len(federation.opened) == 1
    assert all(drawn[path] == data for path, data in sealed_bytes(federation).items() if path in drawn)


def test_a_total_that_was_released_but_not_committed_is_released_again_bit_for_bit(make, monkeypatch):
    federation = make()
    federation.fleet.before = gone(site="west", since="step")

    def cut(*_, **__):
        raise PowerCut

    with monkeypatch.context() as patch:
        patch.setattr(federation.store, "commit_round", cut)
        with pytest.raises(PowerCut):
            federation.drive()
    federation.drive()
    (first, _), (again, _) = federation.opened
    assert first == again
    assert_opened(federation, "top-up", without("west"))


def test_a_site_whose_shares_do_not_open_is_left_out_and_the_others_top_up(make, monkeypatch):
    federation = make()
    real = Load.blobs

    def spoilt(load):
        places = {site: name for name, (site, _, _) in load.names.items() if name.startswith("update")}
        return real(load) | ({places["west"]: b"\1" * 300} if "west" in places else {})

    monkeypatch.setattr(Load, "blobs", spoilt)
    federation.drive()
    assert_opened(federation, "top-up", without("west"))


def test_the_next_round_has_everybody_again(make):
    federation = make(rounds=2)
    federation.fleet.before = lambda kind, name: (
        AWAY if (kind, name) == ("step", "west") and not federation.opened else None
    )
    federation.drive()
    assert_opened(federation, "top-up", without("west"), SITES)


def orders(federation: Federation, cohort, topups=None, *, attempt=1):
    """What the aggregators answer a coordinator that makes up its own order from what it holds of round 1."""
    folder, run = RunFolder(federation.home, RUN), federation.context()
    envelopes, added = folder.envelopes(1).read(), topups or {}
    state = hashlib.sha256(run.start.state.tobytes()).hexdigest()
    terms = {"round": 1, "state": state, "cohort": cohort, "attempt": attempt, "with_total": True}
    packets = {
        name: sign(
            AggregateOrder(**run.addressed(name), **terms),
            Pki.load(federation.home).signer,
            Load.of(cohort, i, envelopes, added, set_name(cohort)).blobs(),
        )
        for i, name in enumerate(PARTIES)
    }
    identities = {party.name: party.identity for party in federation.study.aggregators}
    return {
        name: verify(answer, identities[name], SignedTotal, SetTaken, SetIncomplete)
        for name, answer in federation.fleet.ask("aggregate", packets, 5)
    }


@pytest.fixture
def cut_before_opening(make):
    """A federation whose coordinator holds updates of all but north, and top-ups of these, when it turns bad."""
    federation = make()
    federation.fleet.before = gone(site="north", since="step")
    cut_at(federation, "aggregate", "agg-a")
    with pytest.raises(PowerCut):
        federation.drive()
    federation.fleet.before = lambda kind, name: None
    return federation


def test_a_coordinator_that_leaves_the_top_ups_out_gets_nothing(cut_before_opening):
    answers = orders(cut_before_opening, without("north"))
    assert {(type(answer), answer.complete) for answer in answers.values()} == {(SetIncomplete, ())}


def test_a_coordinator_that_mixes_sets_gets_nothing(cut_before_opening):
    topups = RunFolder(cut_before_opening.home, RUN).topups(1, without("north")).read()
    answers = orders(cut_before_opening, ("east", "south"), topups)
    assert {type(answer) for answer in answers.values()} == {SetIncomplete}


def test_a_coordinator_gets_the_total_with_top_ups_once_and_none_without(cut_before_opening):
    federation, cohort = cut_before_opening, without("north")
    topups = RunFolder(federation.home, RUN).topups(1, cohort).read()
    assert {type(answer) for answer in orders(federation, cohort, topups).values()} == {SignedTotal}
    for attempt, smaller in enumerate([("east", "south"), cohort], start=2):
        assert {type(a) for a in orders(federation, smaller, attempt=attempt).values()} == {SetIncomplete}


def cut_at(federation: Federation, kind: str, name: str, *, moment: str = "before") -> None:
    """Kills the coordinator at its question of that kind to that node."""
    real = getattr(federation.fleet, moment)

    def cut(asked, node):
        if (asked, node) == (kind, name):
            raise PowerCut
        return real(asked, node)

    setattr(federation.fleet, moment, cut)


def sealed_bytes(federation: Federation) -> dict[str, bytes]:
    """All that sites have sealed so far, by file."""
    outboxes = [federation.home / site / "outbox" for site in SITES]
    files = [path for outbox in outboxes for path in outbox.rglob("envelope-*") if path.is_file()]
    return {str(path): path.read_bytes() for path in files}
