"""What a warm node tells of a refusal, to the coordinator and in its log."""

import logging
import threading
import time
from types import SimpleNamespace

import pytest

from confide.client_node import decision_teller
from confide.client_node.enrolment import Enrolment, protocol
from confide.client_node.errors import CoordinatorRefused, CoordinatorUnreachable, SiteAway
from confide.client_node.flower import pack
from confide.client_node.traffic import Passed, Traffic
from confide.client_node.usage import FOR_REFUSALS, Usage
from confide.client_node.warm_node import WarmNode
from confide.client_node.wire.messages import Packet

MOST = 2**20


class PlayedSession:
    """Stands where the connection would be; notes what is sent on it."""

    def __init__(self) -> None:
        self.failures: list[str] = []

    def receive(self, question):
        return SimpleNamespace(content=pack(Packet(b"{}")))

    def fail(self, message, told, *, until):
        self.failures.append(told)

    def answer(self, message, records, *, until):
        pass


@pytest.fixture
def asked(site):
    """Asks the node `count` questions, each of which its handler refuses; returns what it told."""

    def ask(count: int, refusal: Exception) -> list[str]:
        def refuse(kind: str, packet: Packet) -> Packet:
            raise refusal

        node = WarmNode(site.identity, Enrolment.load(site.home), refuse, may_refuse=Usage(site.home).may_refuse)
        session = PlayedSession()
        for _ in range(count):
            node._answer(session, SimpleNamespace(kind="step", until=0.0))
        return session.failures

    return ask


def test_an_absence_is_told_each_time_and_logged_once_and_not_as_a_failure(asked, caplog):
    caplog.set_level(logging.INFO)
    told = asked(50, SiteAway("away: it goes on at 22:00"))
    assert told == ['{"error": "SiteAway", "message": "away: it goes on at 22:00"}'] * 50
    assert [record.getMessage() for record in caplog.records] == ["away: it goes on at 22:00"]
    assert caplog.records[0].levelno == logging.INFO


def test_after_the_last_byte_for_refusals_of_a_day_not_even_a_refusal_leaves(site, asked, caplog):
    caplog.set_level(logging.INFO)
    site.write(("[limits]", f"[schedule]\nbytes_a_day = {MOST}\n[limits]"))
    room = 100
    assert Usage(site.home).may_refuse(FOR_REFUSALS - room)
    told = asked(10, SiteAway("away"))
    assert len(told) == room // len(told[0])
    assert sum(map(len, told)) <= room
    assert caplog.text.count("questions stay without an answer") == 1
    assert not Usage(site.home).may_refuse(room)


def test_where_the_policy_cannot_be_read_the_coordinator_is_told_all_the_same(site, asked):
    site.write(("threads = 1", "threads = 0"))
    assert len(asked(2, SiteAway("away"))) == 2


def test_what_comes_and_what_leaves_is_counted_by_kind(site):
    answers = [Packet(b'{"a": 1}', {"blob": b"x" * 500}), SiteAway("away"), ValueError("p1,34")]
    told = ['{"error": "SiteAway", "message": "away"}', '{"error": "ValueError", "message": ""}']

    def handle(kind: str, packet: Packet) -> Packet:
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    session, counts = PlayedSession(), Traffic(site.home)
    node = WarmNode(site.identity, Enrolment.load(site.home), handle, traffic=counts)
    for kind in ("step", "step", "replay"):
        node._answer(session, SimpleNamespace(kind=kind, until=0.0))
    ((kinds,),) = [counts.days().values()]
    assert session.failures == told
    assert kinds == {
        "step": Passed(came=2, came_bytes=4, answered=1, failed=1, left_bytes=508 + len(told[0])),
        "replay": Passed(came=1, came_bytes=2, failed=1, left_bytes=len(told[1])),
    }


def test_a_word_on_decisions_has_left_before_a_message_is_handled(site, monkeypatch):
    order, is_begun = [], threading.Event()

    def tell_slowly(home, on_leaving):
        is_begun.set()
        time.sleep(0.2)
        order.append("told")

    def handle(kind, packet):
        order.append("handled")
        return Packet(b"")

    monkeypatch.setattr(decision_teller, "tell", tell_slowly)
    node = WarmNode(site.identity, Enrolment.load(site.home), handle)
    node._decisions.look()
    assert is_begun.wait(60)
    node._answer(PlayedSession(), SimpleNamespace(kind="step", until=0.0))
    assert order == ["told", "handled"]


@pytest.mark.parametrize(("error", "tries_again"), [(CoordinatorUnreachable, True), (CoordinatorRefused, False)])
def test_a_rotation_that_cannot_be_completed_just_now_is_tried_again(site, monkeypatch, error, tries_again):
    def complete(home):
        raise error("503")

    monkeypatch.setattr(protocol, "complete_rotation", complete)
    found, trouble = WarmNode(site.identity, Enrolment.load(site.home), lambda *_: Packet(b""))._renewed()
    assert found is None
    assert bool(trouble) == tries_again
