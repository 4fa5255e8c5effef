import errno
import json
import logging
import re
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest

from confide.client_node.replay.checkpoint import Checkpoint
from confide.client_node.replay.following import follow, start_digest
from confide.client_node.replay.server_optimizer import ServerOptimizer, server_step
from confide.client_node.study.study import AggregatorParty, Participant, Study
from confide.client_node.study.terms import StudyDraft, load_draft
from confide.client_node.wire.messages import ENTRIES_A_MESSAGE
from confide.coordinator.errors import (
    AggregationFailed,
    LeaseForgotten,
    LeaseLost,
    RunRefused,
    RunStopped,
    SitesMissing,
    StoreUnavailable,
    SuperLinkFailed,
    TotalRefused,
    TransitionRefused,
)
from confide.coordinator.federation.pki import Pki
from confide.coordinator.fleet.nodes import NodeFailure
from confide.coordinator.run import aggregation, context, laps, questions, rounds
from confide.coordinator.run.context import RunContext
from confide.coordinator.run.driver import drive
from confide.coordinator.run.rounds import drive_run
from confide.coordinator.store.ledger_replica import LedgerReplica
from confide.coordinator.store.run_folder import RunFolder
from confide.coordinator.store.states import ABANDON, RESUME, STOP
from confide.coordinator.store.store import Store
from confide.coordinator.store.tables import NodeRow, Run, StudyRow
from confide.coordinator.studies.catalogue import start_file

from ...client_node.conftest import certificate_of
from ..conftest import put_in_state
from ..fake_fleet import PARTIES, SITES, FakeFleet, identity_of, site_vector

ROUNDS, DIM, BINS = 2, 12, 4
EVALUATION = f"[evaluation]\nbins = {BINS}\nnoise_multiplier = 2.0\n"
STUDY_TOML = """
name = "s"
[model]
backbone = "backbone"
[adapter]
rank = 1
alpha = 1.0
targets = ["experts"]
seed = "s"
[data]
label = "sick"
unit = "patient"
max_tokens = 8
numeric = {{ age = [50.0] }}
[privacy]
mode = "local"
noise_multiplier = 1.0
delta = 1e-5
clip_norm = 1.0
sample_rate = 0.5
max_dropouts = {max_dropouts}
collusion = 0
[rounds]
rounds = {rounds}
min_sites = {min_sites}
deadline_s = 5
batch_units = 10
[optimizer]
lr = 0.5
head_lr = 2.0
[participants]
sites = ["north", "south", "west"]
aggregators = ["agg-a", "agg-b", "agg-c"]
"""


@dataclass
class Desk:
    """A coordinator with one pending run."""

    home: Path
    store: Store
    study: Study

    def drive(self, fleet: FakeFleet) -> None:
        drive_run(self.context(fleet))

    def context(self, fleet: FakeFleet) -> RunContext:
        lease = self.store.acquire_lease("run-1")
        self.store.begin_driving("run-1", lease)
        return RunContext(
            fleet=fleet,
            store=self.store,
            folder=RunFolder(self.home, "run-1"),
            replica=LedgerReplica(self.store),
            study=self.study,
            id="run-1",
            lease=lease,
            pki=Pki.load(self.home),
            start=Checkpoint.beginning(np.zeros(DIM, np.float32)),
        )

    def counts(self) -> list[float]:
        evaluation = self.store.evaluation("run-1")
        assert evaluation is not None
        found: list[float] = json.loads(evaluation.counts)
        return found

    def checkpoint(self) -> Checkpoint:
        last = self.store.last_round("run-1")
        return RunFolder(self.home, "run-1").load(last.number, last.state_hash or "")

    def state(self) -> np.ndarray:
        return self.checkpoint().state


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr(questions, "RETRY_S", 0.0)
    return new_desk(tmp_path)


@pytest.fixture
def evaluating(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr(questions, "RETRY_S", 0.0)
    return new_desk(tmp_path, evaluation=EVALUATION)


def new_desk(home: Path, *changes: tuple[str, str], max_dropouts: int = 0, evaluation: str = "") -> Desk:
    store = Store.create(home)
    text = STUDY_TOML.format(rounds=ROUNDS, max_dropouts=max_dropouts, min_sites=3 - max_dropouts) + evaluation
    for old, new in changes:
        text = text.replace(old, new)
    (home / "study.toml").write_text(text)
    study = Study.from_draft(
        load_draft(home / "study.toml"),
        backbone_hash="ab" * 32,
        sites=[Participant(name=name, identity=identity_of(name)) for name in SITES],
        aggregators=[
            AggregatorParty(
                name=name, identity=identity_of(name), address=f"{name}.example:7001", certificate=certificate_of(name)
            )
            for name in PARTIES
        ],
        coordinator=Pki.create(home, ["127.0.0.1"]).identity_hex,
        created=date(2026, 1, 31),
        dim=DIM,
        start=start_digest(np.zeros(DIM, np.float32)),
        head_size=5,
        scale_bits=16,
    )
    with store.session() as session:
        session.add(
            StudyRow(hash=study.study_hash, name="s", canonical=study.canonical(), signature="", created_at=0.0)
        )
    start_file(home, study.study_hash).parent.mkdir()
    start_file(home, study.study_hash).write_text(json.dumps({"state": [0.0] * DIM, "backbone": "backbone"}))
    with store.session() as session:
        session.add(Run(id="run-1", study=study.study_hash, state="pending", created_at=0.0))
    return Desk(home, store, study)


def by_hand(study: Study, sites: tuple[str, ...] = SITES) -> np.ndarray:
    """The definition: sum, divide, step, in plain numpy."""
    terms: StudyDraft = study.draft
    lr, head_lr = terms.optimizer.rates
    optimizer = ServerOptimizer(lr=lr, head_lr=head_lr, momentum=0.9)
    checkpoint = Checkpoint.beginning(np.zeros(DIM, np.float32))
    for number in range(1, ROUNDS + 1):
        total = sum(site_vector(site, number, checkpoint.state) for site in sites) * 2.0**-study.scale_bits
        mean = total / (terms.rounds.batch_units * terms.privacy.clip_norm)
        checkpoint = optimizer.step(checkpoint, mean, slice(0, 5))
    return checkpoint.state


def test_a_run_computes_the_sum_of_all_sites_in_every_round(desk):
    fleet = FakeFleet(desk.study)
    desk.drive(fleet)
    np.testing.assert_array_equal(desk.state(), by_hand(desk.study))
    assert desk.store.run("run-1").state == "done"
    assert [row.summed for row in desk.store.rounds("run-1")] == [SITES] * ROUNDS


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("question", range(6 + 6 * ROUNDS + 3 * ROUNDS + 6 + 6))
def test_a_run_cut_off_at_any_question_goes_on_to_the_same_adapter_and_measures_it_once(evaluating, question, moment):
    desk = evaluating

    class PowerCut(BaseException):
        pass

    def cut(kind: str, name: str) -> None:
        if len(fleet.asked) == question + 1:
            raise PowerCut

    fleet = FakeFleet(desk.study, **{moment: cut})
    with pytest.raises(PowerCut):
        desk.drive(fleet)
    desk.drive(fleet)
    np.testing.assert_array_equal(desk.state(), by_hand(desk.study))
    assert desk.counts() == COUNTS
    assert sorted(fleet.computed) == sorted({(site, n) for site in SITES for n in range(1, ROUNDS + 2)})


COUNTS = [sum(len(site) for site in SITES) + 3.0 * cell for cell in range(2 * BINS)]  # of `site_histogram`s


def test_an_evaluation_adds_histograms_of_the_final_state_and_moves_nothing(evaluating):
    fleet = FakeFleet(evaluating.study)
    evaluating.drive(fleet)
    assert evaluating.counts() == COUNTS
    np.testing.assert_array_equal(fleet.states[ROUNDS + 1], evaluating.state())
    np.testing.assert_array_equal(evaluating.state(), by_hand(evaluating.study))
    assert evaluating.store.last_round("run-1").number == ROUNDS
    assert evaluating.store.run("run-1").error is None


def test_what_an_evaluation_summed_is_signed_by_every_site(evaluating):
    fleet = FakeFleet(evaluating.study)
    evaluating.drive(fleet)
    assert all(fleet.ledgers[site].has("settle", ROUNDS + 1) for site in SITES)


def test_where_too_few_sites_hold_records_out_nobody_pays_and_the_run_is_done(evaluating):
    fleet = FakeFleet(evaluating.study, abstaining=("west",))
    evaluating.drive(fleet)
    assert not any(fleet.ledgers[site].has("reserve", ROUNDS + 1) for site in SITES)
    run = evaluating.store.run("run-1")
    assert (run.state, run.error) == ("done", "not evaluated: 3 sites are needed, only north, south hold records out")
    np.testing.assert_array_equal(evaluating.state(), by_hand(evaluating.study))


def test_a_site_that_refuses_its_evaluation_does_not_spoil_the_run(evaluating):
    def refuse(kind: str, name: str) -> NodeFailure | None:
        is_evaluation = kind == "step" and len(evaluating.store.rounds("run-1")) == ROUNDS
        no = NodeFailure(reason="failed", error="NothingHeldOut", message="not evaluated here")
        return no if is_evaluation and name == "west" else None

    evaluating.drive(FakeFleet(evaluating.study, before=refuse))
    run = evaluating.store.run("run-1")
    assert run.state == "done"
    assert run.error == "not evaluated: west refuses (NothingHeldOut): not evaluated here"
    late = FakeFleet(evaluating.study, ended=set(PARTIES))
    put_in_state(evaluating.store, "run-1", "running")
    evaluating.drive(late)  # what was written down is not tried again, without the run's keys
    assert late.computed == []


@pytest.mark.slow
def test_an_evaluation_whose_total_has_not_its_tags_does_not_spoil_the_run(evaluating, monkeypatch):
    real = rounds.opened_total

    def opened_total(round_, agreed):
        if round_.planned.purpose == "evaluation":
            raise TotalRefused("evaluation: not the sum that the tags say")
        return real(round_, agreed)

    monkeypatch.setattr(rounds, "opened_total", opened_total)
    evaluating.drive(FakeFleet(evaluating.study))
    assert evaluating.store.run("run-1").state == "done"
    assert "not the sum that the tags say" in evaluating.store.evaluation("run-1").problem


def test_within_max_dropouts_an_evaluation_does_without_a_site_that_abstains(tmp_path, monkeypatch):
    monkeypatch.setattr(questions, "RETRY_S", 0.0)
    desk = new_desk(tmp_path, max_dropouts=1, evaluation=EVALUATION)
    desk.drive(FakeFleet(desk.study, abstaining=("north",)))
    evaluation = desk.store.evaluation("run-1")
    assert evaluation is not None
    assert evaluation.summed == ("south", "west")


@pytest.mark.slow
@pytest.mark.parametrize("question", [11, 13, 17])  # in the first round, between two, in the second
def test_a_run_cut_off_keeps_what_adam_the_average_and_the_clip_had_reached(tmp_path, monkeypatch, question):
    class PowerCut(BaseException):
        pass

    def cut(kind: str, name: str) -> None:
        if len(fleet.asked) == question:
            raise PowerCut

    monkeypatch.setattr(questions, "RETRY_S", 0.0)
    options = (
        ("[optimizer]", '[optimizer]\nkind = "adam"\naveraging = "ema"'),
        ("clip_norm = 1.0", 'clip_norm = 1.0\nclipping = "adaptive"'),
    )
    desk = new_desk(tmp_path, *options)
    fleet = FakeFleet(desk.study, after=cut)
    with pytest.raises(PowerCut):
        desk.drive(fleet)
    desk.drive(fleet)
    checkpoint = Checkpoint.beginning(np.zeros(DIM, np.float32))
    for number in range(1, ROUNDS + 1):
        total = sum(site_vector(site, number, checkpoint.state) for site in SITES) * 2.0**-desk.study.scale_bits
        checkpoint = server_step(desk.study.draft, checkpoint, total, slice(0, 5))
    found = desk.checkpoint()
    for name in ("state", "velocity", "second_moment", "average"):
        np.testing.assert_array_equal(getattr(found, name), getattr(checkpoint, name))
    assert not np.array_equal(found.exported, found.state)


def test_a_failing_aggregator_is_asked_again_with_the_same_set(desk):
    failures = iter([NodeFailure(reason="failed", error="PartyLost")] * 2)
    fleet = FakeFleet(desk.study, before=lambda kind, name: next(failures, None) if kind == "aggregate" else None)
    desk.drive(fleet)
    np.testing.assert_array_equal(desk.state(), by_hand(desk.study))


def test_a_round_bound_to_another_set_is_repeated_with_that_set(tmp_path, monkeypatch):
    monkeypatch.setattr(questions, "RETRY_S", 0.0)
    desk = new_desk(tmp_path, max_dropouts=1)
    fleet = FakeFleet(desk.study)
    fleet.bound = {1: ("north", "south")}
    desk.drive(fleet)
    assert desk.store.rounds("run-1")[0].summed == ("north", "south")


def test_a_missing_site_within_max_dropouts_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(questions, "RETRY_S", 0.0)
    desk = new_desk(tmp_path, max_dropouts=1)
    away = NodeFailure(reason="timeout")
    fleet = FakeFleet(desk.study, before=lambda kind, name: away if (kind, name) == ("step", "west") else None)
    desk.drive(fleet)
    np.testing.assert_array_equal(desk.state(), by_hand(desk.study, ("north", "south")))


@pytest.mark.parametrize(
    ("failure", "why"),
    [
        (NodeFailure(reason="offline"), "offline"),
        (NodeFailure(reason="unknown"), "offline"),
        (NodeFailure(reason="timeout"), "late"),
        (NodeFailure(reason="restarted"), "late"),
        (NodeFailure(reason="invalid"), "invalid"),
        (NodeFailure(reason="failed", error="StepFailed", message="a text of the node"), "failed"),
        (NodeFailure(reason="failed", error="ChargeRefused", message="a text of the node"), "refused"),
        (NodeFailure(reason="failed", error="SiteAway", message="a text of the node"), "away"),
        (NodeFailure(reason="failed", error="SiteBehind", message="a text of the node"), "behind"),
    ],
)
def test_a_missing_site_is_stored_with_the_reason_in_the_coordinators_words(tmp_path, monkeypatch, failure, why):
    monkeypatch.setattr(questions, "RETRY_S", 0.0)
    desk = new_desk(tmp_path, max_dropouts=1)
    fleet = FakeFleet(desk.study, before=lambda kind, name: failure if (kind, name) == ("step", "west") else None)
    desk.drive(fleet)
    assert desk.store.left_out("run-1") == {key: {"west": why} for key in range(1, ROUNDS + 1)}


def test_a_site_is_missing_for_the_last_reason_and_not_once_it_is_summed(tmp_path, monkeypatch):
    monkeypatch.setattr(questions, "RETRY_S", 0.0)
    desk = new_desk(tmp_path, max_dropouts=1)
    late, failed = NodeFailure(reason="timeout"), NodeFailure(reason="failed", error="StepFailed")
    # Two of three are needed. Of round 1 nobody answers at first, then all but west; of round 2 all do, some late.
    answers = {
        "north": iter([late, None, late, None]),
        "south": iter([late, None, late, None]),
        "west": iter([late, failed, late, None]),
    }
    fleet = FakeFleet(desk.study, before=lambda kind, name: next(answers[name], None) if kind == "step" else None)
    desk.drive(fleet)
    assert [row.summed for row in desk.store.rounds("run-1")][:2] == [("north", "south"), SITES]
    assert desk.store.left_out("run-1") == {1: {"west": "failed"}}


def test_a_site_that_is_not_connected_is_missing_for_that(tmp_path, monkeypatch):
    monkeypatch.setattr(questions, "RETRY_S", 0.0)
    monkeypatch.setattr(rounds, "FAREWELL_S", 0.0)  # the run's end waits for west, which never comes
    monkeypatch.setattr(FakeFleet, "online", lambda fleet: {"north", "south", *PARTIES})
    desk = new_desk(tmp_path, max_dropouts=1)
    desk.drive(FakeFleet(desk.study))
    assert desk.store.left_out("run-1")[1] == {"west": "offline"}


def test_a_site_that_was_shut_out_is_missing_for_that(tmp_path, monkeypatch):
    monkeypatch.setattr(questions, "RETRY_S", 0.0)
    desk = new_desk(tmp_path, max_dropouts=1)
    with desk.store.session() as session:
        session.add(NodeRow(name="south", roles="train", revoked_at=1.0))
    desk.drive(FakeFleet(desk.study))
    assert desk.store.left_out("run-1") == {key: {"south": "revoked"} for key in range(1, ROUNDS + 1)}


def test_a_site_without_held_out_records_is_missing_in_the_evaluation_for_that(tmp_path, monkeypatch):
    monkeypatch.setattr(questions, "RETRY_S", 0.0)
    desk = new_desk(tmp_path, max_dropouts=1, evaluation=EVALUATION)
    desk.drive(FakeFleet(desk.study, abstaining=("west",)))
    assert desk.store.left_out("run-1") == {ROUNDS + 1: {"west": "abstains"}}


def test_the_seconds_of_each_step_are_those_that_pass_in_it(tmp_path, monkeypatch):
    monkeypatch.setattr(questions, "RETRY_S", 0.0)
    desk = new_desk(tmp_path)
    now, tried = [0.0], []

    def pass_time(kind, name):
        now[0] += {"step": 100.0, "aggregate": 10.0}.get(kind, 0.0)
        if kind == "aggregate" and not tried:
            tried.append(name)
            return NodeFailure(reason="failed", error="PartyLost")  # so that all three are asked twice in round 1
        return None

    def follow_slowly(*given, **named):
        now[0] += 5.0
        return follow(*given, **named)

    @contextmanager
    def take_turn(run):
        now[0] += 0.25
        yield

    def rest(round_, seconds):
        now[0] += 0.5

    monkeypatch.setattr(laps, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(rounds, "follow", follow_slowly)
    monkeypatch.setattr(aggregation, "at_aggregators", take_turn)
    monkeypatch.setattr(aggregation, "_rest", rest)
    desk.drive(FakeFleet(desk.study, before=pass_time))
    first, second, *_ = desk.store.rounds("run-1")
    assert (first.collect_s, first.wait_s, first.sum_s, first.apply_s) == (300.0, 0.25 + 0.5 + 0.25, 60.0, 5.0)
    assert (second.collect_s, second.wait_s, second.sum_s, second.apply_s) == (300.0, 0.25, 30.0, 5.0)
    for row in (first, second):
        assert (row.topup_s, row.deliver_s, row.open_s) == (0.0, 0.0, 0.0)
        assert row.seconds == row.collect_s + row.wait_s + row.sum_s


def test_an_evaluation_has_steps_and_no_server_step(evaluating):
    evaluating.drive(FakeFleet(evaluating.study))
    row = evaluating.store.evaluation("run-1")
    parts = (row.collect_s, row.topup_s, row.deliver_s, row.wait_s, row.sum_s, row.open_s)
    assert sum(parts) == pytest.approx(row.seconds)
    assert row.apply_s is None


def test_a_final_refusal_that_leaves_too_few_sites_ends_the_run_with_the_sites_words(desk):
    no = NodeFailure(reason="failed", error="ChargeRefused", message="over the budget")
    fleet = FakeFleet(desk.study, before=lambda kind, name: no if (kind, name) == ("step", "west") else None)
    with pytest.raises(RunRefused, match=r"west refuses \(ChargeRefused\): over the budget"):
        desk.drive(fleet)
    assert desk.store.rounds("run-1") == []


class PlayedTime:
    """A clock that only sleep moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_run_waits_through_the_night_for_a_site_that_is_away_by_its_own_hours(desk, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    clock, night, asked = PlayedTime(), 3600, []
    monkeypatch.setattr(questions, "time", clock)
    monkeypatch.setattr(questions, "RETRY_S", 9.0)
    away = NodeFailure(reason="failed", error="SiteAway", message="it goes on at 2026-12-01T22:00+01:00")

    def before(kind: str, name: str) -> NodeFailure | None:
        if (kind, name) != ("step", "west") or clock.now > night:
            return None
        asked.append(clock.now)
        return away

    desk.drive(FakeFleet(desk.study, before=before))
    np.testing.assert_array_equal(desk.state(), by_hand(desk.study))
    assert night > 5 * questions.PATIENCE_S
    assert len(asked) <= night / questions.AWAY_RETRY_S + 1
    assert caplog.text.count("west, asked to step, is away: it goes on at 2026-12-01T22:00+01:00") == 1


def test_a_site_that_is_away_within_max_dropouts_holds_nobody_up(tmp_path, monkeypatch):
    monkeypatch.setattr(questions, "RETRY_S", 0.0)
    desk = new_desk(tmp_path, max_dropouts=1)
    away = NodeFailure(reason="failed", error="SiteAway", message="outside its hours")
    desk.drive(FakeFleet(desk.study, before=lambda kind, name: away if (kind, name) == ("step", "west") else None))
    np.testing.assert_array_equal(desk.state(), by_hand(desk.study, ("north", "south")))


def test_an_overtaken_driver_cannot_commit(desk):
    orphan = desk.context(FakeFleet(desk.study))
    desk.store.acquire_lease("run-1")
    with pytest.raises(LeaseLost):
        drive_run(orphan)
    assert desk.store.rounds("run-1") == []


def test_a_stopped_run_ends_between_questions_and_goes_on_later(desk):
    def stop(kind: str, name: str) -> None:
        if (kind, name) == ("aggregate", "agg-c") and not desk.store.rounds("run-1"):
            desk.store.move_run("run-1", STOP)

    fleet = FakeFleet(desk.study, after=stop)
    with pytest.raises(RunStopped):
        desk.drive(fleet)
    put_in_state(desk.store, "run-1", "running")
    desk.drive(fleet)
    np.testing.assert_array_equal(desk.state(), by_hand(desk.study))


def test_a_check_that_breaks_is_tried_after_longer_and_longer_waits(desk, monkeypatch):
    clock, asked = PlayedTime(), []
    monkeypatch.setattr(aggregation, "time", clock)
    monkeypatch.setattr(questions, "RETRY_S", 1.0)
    kinds = ["CheckBroken", "CheckBroken", "PartyLost", "CheckBroken", "PartyLost"]

    def lose(kind: str, name: str) -> NodeFailure | None:
        if (kind, name) != ("aggregate", "agg-b") or len(asked) == len(kinds) + 1:
            return None
        asked.append(clock.now)
        return None if len(asked) > len(kinds) else NodeFailure(reason="failed", error=kinds[len(asked) - 1])

    desk.drive(FakeFleet(desk.study, before=lose))
    assert np.diff(asked).tolist() == [2.0, 4.0, 1.0, 8.0, 1.0]
    np.testing.assert_array_equal(desk.state(), by_hand(desk.study))


def test_a_check_that_is_not_tried_again_ends_the_run_with_what_to_do(desk):
    exhausted = NodeFailure(reason="failed", error="ChecksExhausted")
    fleet = FakeFleet(
        desk.study, before=lambda kind, name: exhausted if (kind, name) == ("aggregate", "agg-b") else None
    )
    with pytest.raises(AggregationFailed, match=r"broken off eight times.*start a new run"):
        desk.drive(fleet)


def test_a_reply_signed_by_another_site_counts_as_none(desk, monkeypatch):
    monkeypatch.setattr(questions, "PATIENCE_S", 0.0)
    fleet = FakeFleet(desk.study)
    real = fleet._step
    fleet._step = lambda name, packet: real("south" if name == "west" else name, packet)  # type: ignore[method-assign]
    with pytest.raises(SitesMissing, match="no good answer from west"):
        desk.drive(fleet)


def test_shares_without_a_charge_are_not_taken(desk, monkeypatch):
    monkeypatch.setattr(questions, "PATIENCE_S", 0.0)
    fleet = FakeFleet(desk.study)
    fleet.ledgers["west"].reserve = lambda *_: None  # type: ignore[method-assign]
    with pytest.raises(SitesMissing, match="no good answer from west"):
        desk.drive(fleet)


def test_a_site_that_missed_a_round_takes_part_again(tmp_path, monkeypatch):
    monkeypatch.setattr(questions, "RETRY_S", 0.0)
    desk = new_desk(tmp_path, max_dropouts=1)
    away = NodeFailure(reason="timeout")
    fleet = FakeFleet(
        desk.study,
        before=lambda kind, name: away if (kind, name, bool(fleet.bound)) == ("step", "west", False) else None,
    )
    desk.drive(fleet)
    assert [row.summed for row in desk.store.rounds("run-1")] == [("north", "south"), SITES]
    assert not fleet.ledgers["west"].has("settle", 1)
    assert fleet.ledgers["west"].has("settle", 2)


def test_every_site_signs_what_the_aggregators_say_was_summed(desk):
    fleet = FakeFleet(desk.study)
    desk.drive(fleet)
    assert all(fleet.ledgers[site].has("settle", number) for site in SITES for number in range(1, ROUNDS + 1))


@pytest.mark.parametrize(("room", "expected"), [(2**18, [1, 1, 2]), (1, [1, 1])])
def test_a_message_tells_no_more_outcomes_than_fit(desk, monkeypatch, room, expected):
    monkeypatch.setattr(context, "OUTCOME_BYTES", room)
    told: list[int] = []
    fleet = FakeFleet(desk.study)
    fleet.ledgers["west"].settle = lambda _, outcome: told.append(outcome.round)  # type: ignore[method-assign]
    desk.drive(fleet)
    assert told == expected  # it signs nothing, so the first is told again at the run's end


def test_the_state_that_sites_are_sent_is_the_last_committed_one(desk):
    fleet = FakeFleet(desk.study)
    desk.drive(fleet)
    assert not fleet.states[1].any()
    assert fleet.states[2].any()


def test_a_driver_that_is_asked_to_stop_leaves_the_run_stopped_with_its_outcomes_signed(desk):
    def stop(kind: str, name: str) -> None:
        if (kind, name) == ("aggregate", "agg-c") and not desk.store.rounds("run-1"):
            desk.store.move_run("run-1", STOP)

    fleet = FakeFleet(desk.study, after=stop)
    drive(fleet, desk.home, "run-1")
    assert (desk.store.run("run-1").state, len(desk.store.rounds("run-1"))) == ("stopped", 1)
    assert fleet.ledgers["west"].has("settle", 1)
    desk.store.move_run("run-1", RESUME)
    drive(fleet, desk.home, "run-1")
    assert desk.store.run("run-1").state == "done"
    np.testing.assert_array_equal(desk.state(), by_hand(desk.study))


def test_a_run_stopped_before_it_began_is_never_driven(desk):
    desk.store.move_run("run-1", STOP)
    fleet = FakeFleet(desk.study)
    drive(fleet, desk.home, "run-1")
    assert desk.store.run("run-1").state == "stopped"
    assert fleet.computed == []


def test_an_abandoned_run_is_taken_leave_of_and_never_driven_again(desk):
    def halt(kind: str, name: str) -> None:
        if (kind, name) == ("aggregate", "agg-c") and not desk.store.rounds("run-1"):
            desk.store.move_run("run-1", ABANDON)

    fleet = FakeFleet(desk.study, after=halt)
    drive(fleet, desk.home, "run-1")
    assert desk.store.run("run-1").state == "abandoning"  # the driver was shut out before it could commit
    assert desk.store.rounds("run-1") == []
    farewell = FakeFleet(desk.study)
    farewell.ledgers = fleet.ledgers
    drive(farewell, desk.home, "run-1")
    assert desk.store.run("run-1").state == "abandoned"
    assert {kind for kind, _ in farewell.asked} == {"settle"}
    assert {name for _, name in farewell.asked} == {"north", "south", "west", "agg-a", "agg-b", "agg-c"}


def test_a_driver_whose_database_forgot_a_lease_skips_some_and_the_next_one_goes_on(desk):
    known = 7  # lease that the nodes have seen

    def refuse(kind: str, name: str) -> NodeFailure | None:
        is_stale = desk.store.run("run-1").lease < known
        return (
            NodeFailure(reason="failed", error="StaleLease")
            if (kind, name) == ("prepare", "agg-a") and is_stale
            else None
        )

    fleet = FakeFleet(desk.study, before=refuse)
    with pytest.raises(LeaseForgotten, match="older copy of the database was put back, or it has lost"):
        drive(fleet, desk.home, "run-1")
    row = desk.store.run("run-1")
    assert (row.state, row.error.startswith("nodes know a newer lease"), row.lease > known) == ("running", True, True)
    drive(fleet, desk.home, "run-1")
    assert desk.store.run("run-1").state == "done"
    np.testing.assert_array_equal(desk.state(), by_hand(desk.study))


def test_a_node_that_always_knows_a_newer_lease_is_believed_once(desk, monkeypatch):
    monkeypatch.setattr(questions, "PATIENCE_S", 0.0)
    stale = NodeFailure(reason="failed", error="StaleLease")
    fleet = FakeFleet(desk.study, before=lambda kind, name: stale if (kind, name) == ("step", "west") else None)
    with pytest.raises(LeaseForgotten):
        drive(fleet, desk.home, "run-1")
    before = desk.store.run("run-1").lease
    drive(fleet, desk.home, "run-1")
    row = desk.store.run("run-1")
    assert (row.state, row.lease) == ("failed", before + 1)
    assert "west" in row.error


def test_a_driver_that_was_replaced_skips_no_lease(desk):
    def take_over(kind: str, name: str) -> NodeFailure:
        desk.store.acquire_lease("run-1")
        return NodeFailure(reason="failed", error="StaleLease")

    drive(FakeFleet(desk.study, before=take_over), desk.home, "run-1")
    assert desk.store.run("run-1").lease == 2


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (httpx.ConnectError("gone"), "the SuperLink does not answer as it should (ConnectError); trying again"),
        (SuperLinkFailed("it took 2 of 3 messages"), "the SuperLink does not answer as it should"),
        (OSError(errno.ENOSPC, "No space left on device", "envelope-0"), "No space left on device: envelope-0"),
        (
            StoreUnavailable("coordinator.db cannot be used just now"),
            "coordinator.db cannot be used just now; trying again",
        ),
    ],
    ids=["link", "superlink", "disk", "database"],
)
def test_a_passing_trouble_ends_the_driver_and_never_the_run(desk, trouble, words):
    def fail(kind: str, name: str) -> None:
        raise trouble

    for _ in range(3):
        with pytest.raises(Exception, match=re.escape(words)):
            drive(FakeFleet(desk.study, before=fail), desk.home, "run-1")
        run = desk.store.run("run-1")
        assert run.state == "running"
        assert words in run.step
    drive(FakeFleet(desk.study), desk.home, "run-1")
    assert desk.store.run("run-1").state == "done"


def test_an_error_that_nobody_thought_of_fails_the_run_when_it_comes_again_at_the_same_place(desk):
    def fail(kind: str, name: str) -> None:
        raise KeyError("MARK" + "ER")  # not as a whole in a line of the source, which a traceback quotes

    with pytest.raises(KeyError):
        drive(FakeFleet(desk.study, before=fail), desk.home, "run-1")
    first = desk.store.run("run-1")
    assert (first.state, first.step.startswith("KeyError in test_rounds.py:")) == ("running", True)
    drive(FakeFleet(desk.study, before=fail), desk.home, "run-1")
    second = desk.store.run("run-1")
    assert second.state == "failed"
    assert (second.error or "").startswith(f"{first.step}, twice: what is committed is kept; ")
    assert "MARKER" not in (second.error or "")
    log = (desk.home / "runs" / "run-1" / "driver.log").read_text()
    assert "TextLeftOut: KeyError in" in log
    assert "MARKER" not in log
    desk.store.move_run("run-1", RESUME)
    drive(FakeFleet(desk.study), desk.home, "run-1")
    assert desk.store.run("run-1").state == "done"


def test_errors_at_two_places_do_not_fail_a_run_that_makes_progress(desk):
    def fail_at(count: int) -> Callable[[str, str], None]:
        def fail(kind: str, name: str) -> None:
            if len(desk.store.rounds("run-1")) == count:
                raise KeyError("what")

        return fail

    fleet = FakeFleet(desk.study)
    for count in range(2):
        fleet.before = fail_at(count)
        with pytest.raises(KeyError):
            drive(fleet, desk.home, "run-1")
    fleet.before = lambda kind, name: None
    drive(fleet, desk.home, "run-1")
    assert desk.store.run("run-1").state == "done"


def test_a_late_driver_does_not_bring_an_ended_run_back(desk):
    drive(FakeFleet(desk.study), desk.home, "run-1")
    late = FakeFleet(desk.study)
    drive(late, desk.home, "run-1")
    assert (desk.store.run("run-1").state, late.asked) == ("done", [])


def test_an_order_to_stop_that_comes_with_the_last_answer_finds_the_run_done_and_nobody_drives_it_again(desk):
    def stop(kind: str, name: str) -> None:
        if (kind, name) == ("settle", "agg-c"):
            desk.store.move_run("run-1", STOP)

    drive(FakeFleet(desk.study, after=stop), desk.home, "run-1")
    with pytest.raises(TransitionRefused, match="run run-1 is done, there is nothing to stop"):
        desk.store.move_run("run-1", STOP)
    late = FakeFleet(desk.study)
    drive(late, desk.home, "run-1")
    assert (desk.store.run("run-1").state, late.asked) == ("done", [])


def test_a_run_has_a_log_of_its_own_that_tells_of_every_round_and_why_it_failed(desk):
    def stop(kind, name):
        if (kind, name) == ("settle", "agg-c"):
            raise LeaseLost("another driver has taken over")

    drive(FakeFleet(desk.study, before=stop), desk.home, "run-1")
    drive(FakeFleet(desk.study), desk.home, "run-1")
    log = desk.home / "runs" / "run-1" / "driver.log"
    text = log.read_text()
    assert all(f"round {number} committed with north, south, west" in text for number in range(1, ROUNDS + 1))
    assert "another driver has taken over" in text
    assert len(logging.getLogger("confide").handlers) == 0


def test_a_run_whose_beginning_is_lost_fails_with_words_and_is_not_tried_for_ever(desk):
    start_file(desk.home, desk.study.study_hash).unlink()
    drive(FakeFleet(desk.study), desk.home, "run-1")
    run = desk.store.run("run-1")
    assert run.state == "failed"
    assert "create the study again from the same study.toml" in (run.error or "")


@pytest.mark.parametrize("moment", ["before the run", "during a round"])
def test_a_ledger_longer_than_a_message_holds_does_not_keep_its_site_from_a_round(desk, moment):
    grown = 2 * ENTRIES_A_MESSAGE + 10

    def another_run_charges(kind, name):
        if moment == "during a round" and (kind, name) == ("step", "west") and (kind, name) not in fleet.asked[:-1]:
            fleet.ledgers["west"].grow(grown)

    fleet = FakeFleet(desk.study, before=another_run_charges)
    if moment == "before the run":
        fleet.ledgers["west"].grow(grown)
    desk.drive(fleet)
    assert [row.summed for row in desk.store.rounds("run-1")] == [SITES] * ROUNDS
    assert fleet.computed.count(("west", 1)) == 1
    assert LedgerReplica(desk.store).entries("west") == fleet.ledgers["west"].entries


def test_a_site_with_a_long_ledger_is_in_time_for_the_first_round(tmp_path, monkeypatch):
    monkeypatch.setattr(questions, "RETRY_S", 0.0)
    desk = new_desk(tmp_path, max_dropouts=1)  # nobody waits for one site
    fleet = FakeFleet(desk.study)
    fleet.ledgers["west"].grow(2 * ENTRIES_A_MESSAGE + 10)
    desk.drive(fleet)
    assert [row.summed for row in desk.store.rounds("run-1")] == [SITES] * ROUNDS


def test_a_ledger_without_end_does_not_hold_up_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(questions, "RETRY_S", 0.0)
    monkeypatch.setattr(questions, "PATIENCE_S", 0.0)
    desk = new_desk(tmp_path, max_dropouts=1)
    fleet = FakeFleet(desk.study, before=lambda kind, name: fleet.ledgers["west"].grow(300) if name == "west" else None)
    desk.drive(fleet)
    assert [row.summed for row in desk.store.rounds("run-1")] == [("north", "south")] * ROUNDS


PROTOTYPE = "[prototype]\nlength = 8\nnoise_multiplier = 40.0\n"


@pytest.fixture
def prototyping(tmp_path, monkeypatch):
    monkeypatch.setattr(questions, "RETRY_S", 0.0)
    return new_desk(tmp_path, evaluation=PROTOTYPE + EVALUATION)


def test_a_prototype_is_opened_before_the_evaluation_and_moves_nothing(prototyping):
    fleet = FakeFleet(prototyping.study)
    prototyping.drive(fleet)
    prototype = prototyping.store.prototype("run-1")
    assert (prototype.number, prototype.problem) == (ROUNDS + 1, None)
    assert list(prototype.vector) == [sum(map(len, SITES)) + 3.0 * cell for cell in range(8)]
    assert prototyping.counts() == COUNTS
    assert prototyping.store.evaluation("run-1").number == ROUNDS + 2
    np.testing.assert_array_equal(prototyping.state(), by_hand(prototyping.study))
    for number in (ROUNDS + 1, ROUNDS + 2):
        np.testing.assert_array_equal(fleet.states[number], prototyping.state())
        assert all(fleet.ledgers[site].has("settle", number) for site in SITES)
    assert [row.number for row in prototyping.store.opened("run-1")] == list(range(1, ROUNDS + 3))


def test_a_prototype_that_fails_spoils_neither_the_run_nor_its_evaluation(prototyping, monkeypatch):
    real = rounds.opened_total

    def opened_total(round_, agreed):
        if round_.planned.purpose == "prototype":
            raise TotalRefused("prototype: not the sum that the tags say")
        return real(round_, agreed)

    monkeypatch.setattr(rounds, "opened_total", opened_total)
    prototyping.drive(FakeFleet(prototyping.study))
    run = prototyping.store.run("run-1")
    assert (run.state, run.error) == ("done", "not a prototype: prototype: not the sum that the tags say")
    assert prototyping.counts() == COUNTS
    assert [row.number for row in prototyping.store.opened("run-1")] == [*range(1, ROUNDS + 1), ROUNDS + 2]


@pytest.mark.slow
def test_a_run_cut_off_between_prototype_and_evaluation_goes_on_with_the_evaluation(prototyping):
    class PowerCut(BaseException):
        pass

    def cut(kind: str, name: str) -> None:
        if kind == "step" and prototyping.store.prototype("run-1") is not None:
            raise PowerCut

    fleet = FakeFleet(prototyping.study, before=cut)
    with pytest.raises(PowerCut):
        prototyping.drive(fleet)
    first = prototyping.store.prototype("run-1").entries
    fleet.before = lambda kind, name: None
    prototyping.drive(fleet)
    assert prototyping.store.prototype("run-1").entries == first
    assert prototyping.counts() == COUNTS
    assert sorted(fleet.computed) == sorted({(site, n) for site in SITES for n in range(1, ROUNDS + 3)})
