import json

import pytest

from confide.coordinator.errors import NotFound, StateDamaged
from confide.coordinator.run.overview import consents, opened_rounds, run_standings, waiting_for
from confide.coordinator.store.tables import Evaluation, LeftOut, Run
from confide.coordinator.studies.catalogue import load_study

from ...client_node.conftest import EVALUATION
from ..conftest import SITES, committed_round, put_in_state


@pytest.fixture
def store(federation):
    """A store with a pending run, run-1, of a study that evaluates."""
    study = federation.create(EVALUATION)
    with federation.store.session() as session:
        session.add(Run(id="run-1", study=study.study_hash, state="pending", created_at=7.0, step="asks sites"))
    return federation.store


def test_a_run_shows_its_step_until_it_is_over_and_its_error_when_it_failed(store):
    found = []
    for state, error in (("pending", None), ("running", None), ("failed", "sites are missing")):
        put_in_state(store, "run-1", state, error=error)
        (standing,) = run_standings(store)
        found.append((standing.state, standing.step))
    assert found == [("pending", "asks sites"), ("running", "asks sites"), ("failed", "sites are missing")]


def test_a_run_counts_its_committed_rounds(store):
    lease = store.acquire_lease("run-1")
    for number in (1, 2):
        store.commit_round(committed_round(number, lease=lease))
    (standing,) = run_standings(store)
    assert (standing.run, standing.rounds, standing.started) == ("run-1", 2, 7.0)


def test_every_site_of_a_round_is_summed_too_long_or_missing(store):
    first, second, *others = SITES
    lease = store.acquire_lease("run-1")
    store.leave_out("run-1", lease, 1, [first])
    row = committed_round(1, lease=lease, sent=1000)
    row.sites = json.dumps(others)
    store.commit_round(row)
    store.leave_out("run-1", lease, 3, [second])
    found = opened_rounds(store, "run-1")
    (opened,) = found.rounds
    assert (opened.summed, opened.too_long, opened.missing) == (tuple(others), (first,), (second,))
    assert (opened.purpose, opened.bytes_per_site) == ("update", 1000)
    assert found.too_long == {1: (first,), 3: (second,)}
    assert found.unopened == [3]


def test_a_missing_site_has_its_reason_and_a_round_its_steps_where_they_are_known(store):
    first, second, third, *others = SITES
    lease = store.acquire_lease("run-1")
    store.leave_out("run-1", lease, 2, [third])
    for number, why in ((1, {}), (2, {first: "late", third: "offline"})):
        row = committed_round(number, lease=lease)
        row.sites = json.dumps(others)
        if number == 2:
            row.collect_s, row.topup_s, row.apply_s = 3.0, 0.0, 0.5
        store.commit_round(row, why)
    before, opened = opened_rounds(store, "run-1").rounds
    assert (before.missing, before.why, before.steps) == ((first, second, third), {}, {})
    assert (opened.missing, opened.too_long) == ((first, second), (third,))  # which was noted before, and stays
    assert opened.why == {first: "late"}
    assert list(opened.steps.items()) == [("collect", 3.0), ("topup", 0.0), ("apply", 0.5)]


def test_a_reason_that_is_none_is_damage(store):
    with store.session() as session:
        session.add(LeftOut(run="run-1", round=1, site=SITES[0], why="x"))
    with pytest.raises(StateDamaged, match=f"why {SITES[0]} was left out"):
        opened_rounds(store, "run-1")


def test_an_evaluation_is_the_last_round_that_is_opened(store):
    lease = store.acquire_lease("run-1")
    facts = {"sites": "[]", "evidence": "[]", "counts": "[]", "seconds": 1.0, "bytes_per_site": 1, "committed_at": 0.0}
    store.commit_round(committed_round(1, lease=lease))
    store.commit_round(Evaluation(run="run-1", number=41, lease=lease, **facts))
    assert [(each.round, each.purpose) for each in opened_rounds(store, "run-1").rounds] == [
        (1, "update"),
        (41, "evaluation"),
    ]


def test_a_run_that_is_not_there_has_opened_nothing(store):
    with pytest.raises(NotFound):
        opened_rounds(store, "nothing")


def standings(store):
    """What is known of each party of the study, by its name."""
    (row,) = store.studies()
    return {each.name: (each.standing, each.run, each.rounds) for each in consents(store, load_study(row))}


def test_before_a_run_has_asked_nothing_is_known_of_anybodys_consent(store):
    assert set(standings(store).values()) == {("not known", None, 0)}


def test_a_site_in_a_sum_took_part_and_so_did_the_aggregators(store):
    lease = store.acquire_lease("run-1")
    for number, sites in enumerate((SITES, SITES[:3]), start=1):
        row = committed_round(number, lease=lease)
        row.sites = json.dumps(sites)
        store.commit_round(row)
    found = standings(store)
    assert [found[name] for name in SITES] == [("took part", "run-1", 2)] * 3 + [("took part", "run-1", 1)]
    assert found["agg-b"] == ("took part", "run-1", 2)


def test_whom_a_run_waits_for_is_awaited_until_it_is_over(store):
    lease = store.acquire_lease("run-1")
    store.begin_driving("run-1", lease)
    store.beat("run-1", lease, waiting_for("prepare", ["svi", "agg-c"]))
    found = standings(store)
    assert {name for name, (standing, _, _) in found.items() if standing == "awaited"} == {"svi", "agg-c"}
    put_in_state(store, "run-1", "stopped")
    assert {standing for standing, _, _ in standings(store).values()} == {"not known"}


@pytest.mark.parametrize(
    ("error", "refusing"),
    [
        ("RunRefused: svi refuses (StudyNotApproved): no", {"svi"}),
        ("RunRefused: rest refuses (X): svi refuses (StudyNotApproved): no", {"rest"}),  # which rest alone has written
        ("not evaluated: svi refuses (NothingHeldOut): no", set()),
        ("SitesMissing: prepare: no good answer from svi in time", set()),
    ],
)
def test_only_the_node_that_ended_a_run_refuses(store, error, refusing):
    put_in_state(store, "run-1", "failed", error)
    assert {name for name, (standing, _, _) in standings(store).items() if standing == "refuses"} == refusing
