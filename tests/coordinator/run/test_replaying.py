"""Whatever the coordinator does, a site trains from nothing but what follows from the study and its signed totals.

The nodes are real ones without a model (`QuietFleet`).
"""

import numpy as np
import pytest

from confide.client_node.errors import MessageInvalid
from confide.client_node.replay import FollowedRuns
from confide.client_node.wire import chunks
from confide.client_node.wire.messages import Replay, Replayed, RoundPlan, sign, verify
from confide.coordinator.errors import RunRefused, SitesMissing, StateDamaged
from confide.coordinator.federation.pki import Pki
from confide.coordinator.run import collection, questions
from confide.coordinator.store.run_folder import RunFolder

from ..fake_fleet import SITES as FAKE_SITES
from ..fake_fleet import FakeFleet, key_of
from ..quiet_fleet import AWAY, DIM, RUN, SITES, found
from .test_rounds import new_desk

pytestmark = pytest.mark.slow
MADE_UP = "ab" * 32  # of any vector but the one that follows


@pytest.fixture
def make(tmp_path, empty_store, monkeypatch):
    def federation(*, rounds=1, max_dropouts=0, **options):
        options = {"dropouts": "over-provision", "max_dropouts": max_dropouts, "rounds": rounds} | options
        return found(tmp_path, empty_store, monkeypatch, **options)

    return federation


def stands(federation, site):
    start = np.zeros(DIM, np.float32)
    return FollowedRuns(federation.home / site).checkpoint(federation.study, RUN, lambda: start)


def seen_at_the_end(federation):
    """Each site's checkpoint when the last `settle` comes, after which it is deleted."""
    seen = {}

    def before(kind, name):
        if kind == "settle" and name in SITES:
            seen[name] = stands(federation, name)

    return seen, before


@pytest.mark.parametrize("lied_to", [("west",), SITES], ids=["one site", "all sites"])
@pytest.mark.parametrize("number", [1, 2])
def test_a_made_up_state_is_refused_before_anything_is_charged(make, monkeypatch, lied_to, number):
    federation, real = make(rounds=2), collection.plan

    def lie(round_, site, inline):
        packet = real(round_, site, inline)
        if site not in lied_to or round_.number != number:
            return packet
        plan = verify(packet, federation.study.coordinator, RoundPlan)
        return sign(plan.model_copy(update={"start": MADE_UP}), Pki.load(federation.home).signer)

    monkeypatch.setattr(collection, "plan", lie)
    with pytest.raises(RunRefused, match=r"west refuses \(StateRefused\): the round would start from another state"):
        federation.drive()
    for site in SITES:
        charged = [entry for entry in federation.ledgers[site].entries() if entry.kind == "reserve"]
        assert len(charged) == number - (site in lied_to)


def test_a_state_that_travels_is_not_even_looked_at(make, monkeypatch):
    federation, real = make(rounds=1), collection.plan
    vector = np.full(DIM, 1e6, "<f4").tobytes()

    def send(round_, site, inline):
        plan = verify(real(round_, site, inline), federation.study.coordinator, RoundPlan)
        return sign(plan, Pki.load(federation.home).signer, {"state": vector})

    seen = []
    monkeypatch.setattr(collection, "plan", send)
    monkeypatch.setattr(
        federation.fleet.nodes["west"].model,
        "contribution",
        lambda *_: lambda state: seen.append(state.copy()) or 1 / 0,
    )
    monkeypatch.setattr(questions, "PATIENCE_S", 0.0)
    with pytest.raises(SitesMissing):
        federation.drive()
    assert not np.any(seen)


def test_every_site_has_every_bit_of_the_coordinator_and_nothing_when_the_run_is_over(make):
    federation = make(rounds=3)
    seen, federation.fleet.before = seen_at_the_end(federation)
    federation.drive()
    row = federation.store.rounds(RUN)[1]  # nothing starts from the last round's total, so nobody is sent it
    folder = RunFolder(federation.home, RUN)
    committed = folder.load(row.number, row.state_hash)
    assert committed.round == 2
    assert committed.state.any()
    assert [checkpoint.to_bytes() for checkpoint in seen.values()] == [committed.to_bytes()] * len(SITES)
    assert not list(folder.path.glob("total-*"))
    assert not any(any((federation.home / site / "replay").iterdir()) for site in SITES)


@pytest.mark.parametrize("verify_total", [False, True], ids=["no tags", "tags"])
def test_a_site_that_was_away_for_three_rounds_and_started_anew_gets_what_it_missed(make, monkeypatch, verify_total):
    monkeypatch.setattr(chunks, "PART_BYTES", 20_000)  # a total has 48,000 bytes
    federation = make(rounds=5, max_dropouts=1, verify_total=verify_total)
    seen, at_the_end = seen_at_the_end(federation)

    def before(kind, name):
        committed = len(federation.store.rounds(RUN))
        if name == "west" and kind in ("step", "replay"):
            federation.restart("west")
            return AWAY if committed < 3 else None
        return at_the_end(kind, name)

    federation.fleet.before = before
    federation.drive()
    assert [row.summed for row in federation.store.rounds(RUN)] == [("east", "north", "south")] * 3 + [SITES] * 2
    assert len({checkpoint.to_bytes() for checkpoint in seen.values()}) == 1
    assert federation.fleet.asked.count(("replay", "east")) == 3 * 4  # three parts of each of four totals


def test_a_new_driver_goes_on_with_sites_that_stand_at_different_rounds(make):
    class PowerCut(BaseException):
        pass

    federation = make(rounds=4)
    seen, at_the_end = seen_at_the_end(federation)

    def cut(kind, name):
        if federation.fleet.asked.count(("replay", "north")) == 2 and (kind, name) == ("replay", "north"):
            raise PowerCut  # in the middle of passing on round 2: others may have it

    federation.fleet.after = cut
    with pytest.raises(PowerCut):
        federation.drive()
    FollowedRuns(federation.home / "south").end(RUN)  # a disk is lost, and the site begins anew
    for site in SITES:
        federation.restart(site)
    federation.fleet.after, federation.fleet.before = lambda kind, name: None, at_the_end
    federation.drive()
    assert [row.summed for row in federation.store.rounds(RUN)] == [SITES] * 4
    assert len({checkpoint.to_bytes() for checkpoint in seen.values()}) == 1


def test_a_site_that_loses_what_it_had_in_the_middle_of_a_run_gets_all_of_it_again(make):
    federation = make(rounds=3)
    seen, at_the_end = seen_at_the_end(federation)

    def lose(kind, name):
        if (kind, name) == ("step", "west") and federation.fleet.asked.count(("step", "west")) == 3:
            FollowedRuns(federation.home / "west").end(RUN)
        return at_the_end(kind, name)

    federation.fleet.before = lose
    federation.drive()
    assert [row.summed for row in federation.store.rounds(RUN)] == [SITES] * 3
    assert federation.fleet.asked.count(("step", "west")) == 4
    assert len({checkpoint.to_bytes() for checkpoint in seen.values()}) == 1


def test_a_total_that_the_coordinator_makes_up_is_refused(make, monkeypatch):
    federation = make(rounds=2)
    monkeypatch.setattr(questions, "PATIENCE_S", 0.0)
    monkeypatch.setattr(RunFolder, "total_part", lambda self, *place: bytes(8 * DIM))
    with pytest.raises(SitesMissing):
        federation.drive()
    assert len(federation.store.rounds(RUN)) == 1
    assert all(stands(federation, site).round == 0 for site in SITES)


def test_a_total_that_the_coordinator_has_lost_is_named(make, monkeypatch):
    federation = make(rounds=2)
    monkeypatch.setattr(RunFolder, "save_total", lambda self, number, total: None)
    with pytest.raises(StateDamaged, match=r"total-1 is missing\. .*restore it from a backup, or start a new run"):
        federation.drive()


def test_a_site_that_never_keeps_what_it_is_sent_does_not_hold_up_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(questions, "RETRY_S", 0.0)
    desk = new_desk(tmp_path, max_dropouts=1)
    fleet = FakeFleet(desk.study)
    real = fleet._replay

    def forgetful(name, packet):
        if name != "west":
            return real(name, packet)
        message = verify(packet, desk.study.coordinator, Replay)
        return sign(Replayed(request=packet.digest(), run=message.run, round=0, held=0), key_of(name))

    fleet._replay = forgetful
    desk.drive(fleet)
    assert [row.summed for row in desk.store.rounds("run-1")] == [FAKE_SITES, ("north", "south")]
    assert fleet.asked.count(("replay", "west")) == 2


def test_the_coordinator_holds_the_same_bytes_for_all_sites_however_many(tmp_path, monkeypatch):
    monkeypatch.setattr(questions, "RETRY_S", 0.0)
    desk, reads = new_desk(tmp_path), []
    real = RunFolder.total_part
    monkeypatch.setattr(RunFolder, "total_part", lambda self, *place: reads.append(place) or real(self, *place))
    fleet = FakeFleet(desk.study)
    desk.drive(fleet)
    assert [read[:2] for read in reads] == [(1, 0)]
    assert sum(kind == "replay" for kind, _ in fleet.asked) == len(FAKE_SITES)


def test_a_step_of_a_round_that_the_site_has_not_come_to_is_refused(make, monkeypatch):
    federation = make(rounds=2)
    monkeypatch.setattr(collection, "bring_up", lambda *_: {})
    monkeypatch.setattr(questions, "PATIENCE_S", 0.0)
    with pytest.raises(SitesMissing):
        federation.drive()
    assert len(federation.store.rounds(RUN)) == 1
    for site in SITES:
        assert sum(entry.kind == "reserve" for entry in federation.ledgers[site].entries()) == 1


def test_no_message_is_taken_from_another_coordinator(make):
    federation = make(rounds=2)
    seen = []
    federation.fleet.before = lambda kind, name: seen.append(kind)
    federation.drive()
    node, outcome = federation.fleet.nodes["west"], federation.store.rounds(RUN)[0]
    message = Replay(
        to="west", study=federation.study.study_hash, run=RUN, lease=9, offset=0,
        outcome={"round": 1, "sites": outcome.summed, "evidence": outcome.signed},
    )  # fmt: skip
    with pytest.raises(MessageInvalid, match="not signed by the expected identity"):
        node.handle("replay", sign(message, key_of("somebody"), {"part": b""}))
