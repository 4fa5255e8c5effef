"""Sealed shares in parts: the driver cut off at every question, nodes restarted at every part, sites that lie."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from confide.client_node.shares import aggregator as aggregator_module
from confide.client_node.wire import chunks
from confide.client_node.wire.messages import MAX_INLINE, Fetched, sign
from confide.coordinator.errors import AggregationFailed, SitesMissing
from confide.coordinator.fleet.nodes import NodeFailure
from confide.coordinator.run import questions, relay
from confide.coordinator.run.relay import inline_room
from confide.coordinator.store.store import Store

from ..fake_fleet import PARTIES, SITES, FakeFleet, key_of
from ..quiet_fleet import RUN, Federation, found
from ..quiet_fleet import SITES as FOUR
from .test_dropouts import assert_opened, both, gone, without
from .test_rounds import Desk, new_desk

ONE_ROUND = ("rounds = 2", "rounds = 1")
# Masks would outweigh vectors this short.
UNCHECKED = ("[participants]", "[aggregation]\nnorm_check = false\n[participants]")
PART, ORDER, AT_ONCE = 200, 600, 2  # bytes of a part and in an order, parts from sites at once; a share has 291 or 387


class PowerCut(BaseException):
    pass


@dataclass
class NotingFleet(FakeFleet):
    """Notes the largest message of each kind, and how many of a kind went out at once."""

    largest: dict[str, int] = field(default_factory=dict)
    at_once: dict[str, int] = field(default_factory=dict)

    def ask(self, kind, requests, timeout, *, together=False):
        self.at_once[kind] = max(self.at_once.get(kind, 0), len(requests))
        for name, packet in super().ask(kind, requests, timeout, together=together):
            sizes = [
                sum(len(blob) for blob_name, blob in each.blobs.items() if not blob_name.startswith("history-"))
                for each in (packet, requests[name])
                if hasattr(each, "blobs")
            ]
            self.largest[kind] = max(self.largest.get(kind, 0), *sizes)
            yield name, packet


def shrink(monkeypatch: pytest.MonkeyPatch, part: int = PART, order: int = ORDER) -> None:
    """Makes shares of a few hundred bytes large."""
    monkeypatch.setattr(questions, "RETRY_S", 0.0)
    for module in (chunks, relay, aggregator_module):
        monkeypatch.setattr(module, "PART_BYTES", part)
    monkeypatch.setattr(relay, "MAX_INLINE", order)
    monkeypatch.setattr(relay, "IN_FLIGHT", AT_ONCE)


@pytest.fixture
def large(tmp_path, empty_store, monkeypatch) -> Desk:
    shrink(monkeypatch)
    monkeypatch.setattr(Store, "create", lambda home: empty_store)  # one migration serves all tests
    return new_desk(tmp_path, ONE_ROUND, UNCHECKED)


@pytest.fixture(scope="module")
def small_state(tmp_path_factory) -> np.ndarray:
    """What the round comes to where everything travels inside the messages."""
    desk = new_desk(tmp_path_factory.mktemp("small"), ONE_ROUND, UNCHECKED)
    desk.drive(FakeFleet(desk.study))
    return desk.state()


def test_small_shares_need_no_question_of_their_own(tmp_path):
    desk = new_desk(tmp_path, ONE_ROUND, UNCHECKED)
    fleet = FakeFleet(desk.study)
    desk.drive(fleet)
    asked = [kind for kind, _ in fleet.asked]
    assert asked == ["prepare"] * 6 + ["step"] * 3 + ["aggregate"] * 3 + ["settle"] * 6


def test_large_shares_come_to_the_same_total_a_few_parts_at_a_time(large, small_state):
    fleet = NotingFleet(large.study)
    large.drive(fleet)
    np.testing.assert_array_equal(large.state(), small_state)
    assert (fleet.at_once["fetch"], fleet.at_once["deposit"]) == (AT_ONCE, len(PARTIES))
    assert (fleet.largest["fetch"], fleet.largest["deposit"]) == (PART, PART)
    assert fleet.largest["aggregate"] <= ORDER
    assert fleet.largest["step"] <= max(inline_room(len(SITES)), 4 * large.study.dim)


@pytest.mark.parametrize("sites", [1, 4, 7, 50, 4096])
def test_answers_to_one_question_carry_no_more_than_the_parts_in_flight(sites):
    assert 0 < inline_room(sites) <= MAX_INLINE
    assert sites * inline_room(sites) <= relay.IN_FLIGHT * chunks.PART_BYTES
    assert inline_room(4) == MAX_INLINE  # what a few sites send in a common round is not slowed down


LARGE = range(6, 38)  # questions from the first `step` to the last `aggregate`


@pytest.mark.slow
@pytest.mark.parametrize(
    ("question", "moment"), [*((one, "after") for one in LARGE), *((one, "before") for one in LARGE[::4])]
)
def test_a_driver_cut_off_at_any_part_goes_on_to_the_same_state(large, small_state, question, moment):
    def cut(kind: str, name: str) -> None:
        if len(fleet.asked) == question + 1:
            raise PowerCut

    fleet = FakeFleet(large.study, **{moment: cut})
    with pytest.raises(PowerCut):
        large.drive(fleet)
    large.drive(fleet)
    np.testing.assert_array_equal(large.state(), small_state)
    assert sorted(fleet.computed) == [(site, 1) for site in SITES]


def test_those_questions_are_all_of_them(large):
    fleet = FakeFleet(large.study)
    large.drive(fleet)
    kinds = [kind for kind, _ in fleet.asked]
    assert (kinds.index("step"), kinds.index("settle")) == (LARGE.start, LARGE.stop)
    assert {kind: kinds.count(kind) for kind in ("fetch", "deposit")} == {"fetch": 18, "deposit": 8}


def test_what_was_fetched_before_a_cut_is_not_fetched_again(large):
    def cut(kind: str, name: str) -> None:
        if [each for each, _ in fleet.asked].count("fetch") == 12:
            raise PowerCut

    fleet = FakeFleet(large.study, before=cut)
    with pytest.raises(PowerCut):
        large.drive(fleet)
    fleet.before = lambda kind, name: None
    fleet.asked.clear()
    large.drive(fleet)
    # 18 parts in all; of the 12th nothing came, and of its neighbour's in the same question nothing was kept
    assert 18 - 11 <= [kind for kind, _ in fleet.asked].count("fetch") <= 18 - 10


def lie(fleet: FakeFleet, site: str, part) -> None:
    """Has the site answer `part(true part)` for its parts."""
    real = fleet._fetch

    def fetch(name, packet):
        answer = real(name, packet)
        if name != site:
            return answer
        reply = Fetched(request=packet.digest(), run="run-1", round=1)
        return sign(reply, key_of(name), {"part": part(answer.blobs["part"])})

    fleet._fetch = fetch  # type: ignore[method-assign]


@pytest.mark.parametrize(
    "part",
    [lambda part: part[:-1] + b"?", lambda part: part[:-1], lambda part: b"", lambda part: part + b"?"],
    ids=["other bytes", "too few", "none", "too many"],
)
@pytest.mark.slow
def test_a_site_that_sends_other_parts_than_it_announced_is_left_out(tmp_path, monkeypatch, part):
    shrink(monkeypatch)
    desk = new_desk(tmp_path, ONE_ROUND, max_dropouts=1)
    fleet = FakeFleet(desk.study)
    lie(fleet, "west", part)
    desk.drive(fleet)
    assert [row.summed for row in desk.store.rounds("run-1")] == [("north", "south")]


def test_a_site_that_is_honest_again_takes_part(large, small_state):
    lies = iter([True] * 3)
    fleet = FakeFleet(large.study)
    lie(fleet, "west", lambda part: part[:-1] + b"?" if next(lies, False) else part)
    large.drive(fleet)
    np.testing.assert_array_equal(large.state(), small_state)


def test_whole_parts_that_are_no_envelopes_of_the_site_are_left_out(tmp_path, monkeypatch):
    shrink(monkeypatch)
    desk = new_desk(tmp_path, ONE_ROUND, max_dropouts=1)
    fleet = FakeFleet(desk.study)
    real = fleet._step

    def step(name, packet):
        answer = real(name, packet)
        if name == "west":
            fleet.stored["west", 1] = fleet.stored["north", 1]
            return real(name, packet)
        return answer

    fleet._step = step  # type: ignore[method-assign]
    desk.drive(fleet)
    assert [row.summed for row in desk.store.rounds("run-1")] == [("north", "south")]


def test_shares_longer_than_the_round_has_are_not_fetched(large, monkeypatch):
    monkeypatch.setattr(questions, "PATIENCE_S", 0.0)
    monkeypatch.setattr(relay, "max_envelope_bytes", lambda *_: 338)
    fleet = FakeFleet(large.study)
    with pytest.raises(SitesMissing):
        large.drive(fleet)
    assert not any(kind == "fetch" for kind, _ in fleet.asked)


def test_a_site_that_goes_away_half_way_is_fetched_from_there_when_it_is_back(large, small_state):
    def away(kind: str, name: str) -> NodeFailure | None:
        questions = [one for one in fleet.asked if one == ("fetch", "west")]
        is_away = kind == "fetch" and name == "west" and 3 <= len(questions) <= 4
        return NodeFailure(reason="timeout") if is_away else None

    fleet = FakeFleet(large.study, before=away)
    large.drive(fleet)
    np.testing.assert_array_equal(large.state(), small_state)
    assert fleet.asked.count(("fetch", "west")) == 6 + 2
    assert fleet.computed.count(("west", 1)) == 1


def test_an_aggregator_that_lost_what_it_was_brought_is_brought_it_again(large, small_state):
    def lose(kind: str, name: str) -> NodeFailure | None:
        if (kind, name) == ("aggregate", "agg-b") and fleet.asked.count((kind, name)) == 1:
            fleet.spool = {place: data for place, data in fleet.spool.items() if place[0] != "agg-b"}
            return NodeFailure(reason="failed", error="ShareMissing", message="is not here")
        return None

    fleet = FakeFleet(large.study, before=lose)
    large.drive(fleet)
    np.testing.assert_array_equal(large.state(), small_state)
    deposits = [fleet.asked.count(("deposit", party)) for party in PARTIES]
    assert deposits == [4, 2 + 2, 2]


def test_an_aggregator_that_takes_no_parts_fails_the_run_with_its_words_and_nobody_is_ordered(large, monkeypatch):
    monkeypatch.setattr(questions, "PATIENCE_S", 0.0)
    full = NodeFailure(reason="failed", error="DiskFull", message="no room for the 339 bytes of west")
    fleet = FakeFleet(large.study, before=lambda kind, name: full if (kind, name) == ("deposit", "agg-c") else None)
    with pytest.raises(AggregationFailed, match="no room for the 339 bytes of west"):
        large.drive(fleet)
    assert not any(kind == "aggregate" for kind, _ in fleet.asked)


def test_an_aggregator_that_never_gives_a_total_fails_the_run_when_its_patience_is_over(large, monkeypatch):
    """Also if each of its orders fails at once: they have their turn, and wait for nobody."""
    monkeypatch.setattr(questions, "PATIENCE_S", 0.3)
    lost = NodeFailure(reason="failed", error="PartyLost", message="aggregator 2 cannot be reached")
    fleet = FakeFleet(large.study, before=lambda kind, name: lost if (kind, name) == ("aggregate", "agg-c") else None)
    with pytest.raises(AggregationFailed, match=r"was not aggregated in 0 s: .*aggregator 2 cannot be reached"):
        large.drive(fleet)
    assert fleet.asked.count(("aggregate", "agg-c")) > 1


@pytest.mark.parametrize("held", [lambda real: 0, lambda real: 10**6], ids=["nothing", "more than there is"])
def test_an_aggregator_that_counts_wrongly_does_not_hold_the_driver_up(large, monkeypatch, held):
    monkeypatch.setattr(questions, "PATIENCE_S", 0.0)
    fleet = FakeFleet(large.study)
    real = relay.Deposited

    def count(**fields):
        return real(**fields | {"held": held(fields["held"])})

    monkeypatch.setitem(FakeFleet._deposit.__globals__, "Deposited", count)
    with pytest.raises(AggregationFailed, match="does not keep what it was brought"):
        large.drive(fleet)


@pytest.fixture
def federation(tmp_path, empty_store, monkeypatch) -> Federation:
    """Real nodes, whose shares of 24 kB and 48 kB come in parts of 16 kB."""
    made = found(tmp_path, empty_store, monkeypatch, dropouts="top-up", max_dropouts=2, rounds=1)
    shrink(monkeypatch, 16_000, 2_000)
    return made


@pytest.mark.slow
def test_nodes_restarted_before_every_part_open_the_round_all_the_same(federation):
    def before(kind: str, name: str) -> None:
        if kind in ("fetch", "deposit", "aggregate"):
            federation.restart(name)

    federation.fleet.before = before
    federation.drive()
    assert_opened(federation, "top-up", FOUR)
    assert {kind for kind, _ in federation.fleet.asked} >= {"fetch", "deposit"}
    assert not [path for party in PARTIES for path in (federation.home / party / "spool").rglob("*") if path.is_file()]


@pytest.mark.slow
def test_large_top_ups_come_in_parts_too_for_a_set_that_shrinks_meanwhile(federation):
    def restarted(kind: str, name: str) -> None:
        if kind in ("fetch", "deposit"):
            federation.restart(name)

    late = gone(site="south", since="topup")
    federation.fleet.before = both(gone(site="west", since="step"), late, restarted)
    federation.drive()
    assert_opened(federation, "top-up", without("south", "west"))


@pytest.mark.slow
def test_an_aggregator_whose_spool_is_wiped_before_the_order_asks_for_it_again(federation):
    wiped = []

    def before(kind: str, name: str) -> None:
        if (kind, name) == ("aggregate", "agg-a") and not wiped:
            wiped.append(name)
            federation.fleet.nodes[name]._aggregator._spool.clear(RUN)

    federation.fleet.before = before
    federation.drive()
    assert_opened(federation, "top-up", FOUR)
    assert federation.fleet.asked.count(("aggregate", "agg-a")) > 1
