"""A site that leaves and comes back under its name, against the real gate and the real register."""

import threading
from pathlib import Path

import pytest

from confide.client_node.enrolment import protocol
from confide.client_node.enrolment.identity import NodeIdentity, next_path
from confide.client_node.enrolment.protocol import Enrolment, enrol, fetch_studies
from confide.client_node.errors import AlreadyEnrolled, CodeUsed, CoordinatorRefused, EnrolmentFailed, NotEnrolled
from confide.client_node.warm_node import REFUSED, WarmNode
from confide.client_node.wire.messages import Packet
from confide.coordinator.errors import Conflict

from ...coordinator.conftest import logged
from .test_rotation import Federation, federation

__all__ = ["federation"]  # a fixture

pytestmark = pytest.mark.slow


def code(federation: Federation, name: str = "north") -> str:
    return federation.register.invite(name, ("train",), f"127.0.0.1:{federation.port}")


@pytest.fixture
def left(federation: Federation, tmp_path: Path) -> NodeIdentity:
    """The keys of a site that has left."""
    keys = federation.join(tmp_path / "north")
    federation.register.leave("north")
    return keys


def test_a_site_that_left_comes_back_with_its_identity_and_another_transport_key(federation, left):
    (left.home / "ledger.db").write_bytes(b"as it was")
    with pytest.raises(CoordinatorRefused):
        fetch_studies(left.home)
    assert federation.name_of(left) is None
    enrol(code(federation), left.home, again=True)
    now = NodeIdentity.load(left.home)
    assert (now.identity_hex, now.name) == (left.identity_hex, "north")
    assert now.transport_fingerprint != left.transport_fingerprint
    assert (federation.name_of(left), federation.name_of(now)) == (None, "north")
    assert federation.register.site_with_identity(left.identity_hex) == "north"
    assert fetch_studies(left.home) == []
    assert not next_path(left.home).exists()
    assert (left.home / "ledger.db").read_bytes() == b"as it was"
    assert logged(federation.store)[-3:] == [
        ("site.leave", {"site": "north"}),
        ("site.invite", {"site": "north", "roles": "train"}),
        ("site.return", {"site": "north", "identity": now.identity_hex, "key": now.transport_fingerprint}),
    ]


def test_its_daemon_ends_and_says_how_to_come_back(federation, left, caplog):
    daemon = WarmNode(left, Enrolment.load(left.home), lambda *_: Packet(b""))
    assert daemon.run(threading.Event()) == REFUSED
    assert "client-node enroll CODE --again" in caplog.text


def test_the_code_of_a_site_that_left_admits_no_other_keys(federation, left, tmp_path):
    given = code(federation)
    with pytest.raises(EnrolmentFailed, match="the identity key that it had, and no other"):
        enrol(given, tmp_path / "thief")
    assert federation.register.left_site(left.transport_fingerprint) == "north"
    enrol(given, left.home, again=True)  # the code still holds for whom it is
    with pytest.raises(CodeUsed):
        enrol(given, tmp_path / "thief")


def test_without_a_code_nobody_comes_back_and_before_leaving_none_is_made(federation, tmp_path):
    given = code(federation)
    enrol(given, tmp_path / "north")
    with pytest.raises(Conflict, match="is enrolled already"):
        code(federation)
    federation.register.leave("north")
    with pytest.raises(EnrolmentFailed):
        enrol(given, tmp_path / "north", again=True)  # the code of the first enrolment


def test_a_revoked_site_never_comes_back_also_not_after_it_had_left(federation, left):
    given = code(federation)
    federation.register.revoke("north")
    assert federation.register.left_site(left.transport_fingerprint) is None
    assert federation.register.revoked_site(left.transport_fingerprint) == "north"
    with pytest.raises(EnrolmentFailed):
        enrol(given, left.home, again=True)
    with pytest.raises(Conflict, match="neither its keys nor its name come back"):
        code(federation)
    with pytest.raises(Conflict, match="was revoked"):
        federation.register.leave("north")
    with pytest.raises(EnrolmentFailed, match="registered under another name"):
        enrol(code(federation, "south"), left.home, again=True)


def test_an_answer_that_was_lost_is_given_again_to_the_same_keys(federation, left, monkeypatch):
    given = code(federation)
    with monkeypatch.context() as cut:
        cut.setattr(protocol, "take_next_key", lambda home: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            enrol(given, left.home, again=True)
    assert NodeIdentity.load(left.home).transport_fingerprint == left.transport_fingerprint
    enrol(given, left.home, again=True)
    assert federation.name_of(NodeIdentity.load(left.home)) == "north"
    assert [name for name, _ in logged(federation.store)].count("site.return") == 1


def test_a_daemon_completes_a_return_that_was_cut_short(federation, left, monkeypatch):
    with monkeypatch.context() as cut:
        cut.setattr(protocol, "take_next_key", lambda home: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            enrol(code(federation), left.home, again=True)
    now = protocol.complete_rotation(left.home)
    assert federation.name_of(now) == "north"


def test_another_name_or_another_federation_is_no_way_back(federation, left, tmp_path):
    code(federation, "south")
    with pytest.raises(EnrolmentFailed, match="registered under another name"):
        enrol(code(federation, "south"), left.home, again=True)
    kept = (left.home / "enrolment.json").read_text()
    (left.home / "enrolment.json").write_text(kept.replace(Enrolment.load(left.home).coordinator, "ab" * 32))
    with pytest.raises(EnrolmentFailed, match="this home is north of abababababababab"):
        enrol(code(federation), left.home, again=True)
    assert Enrolment.load(left.home).coordinator == "ab" * 32


def test_coming_back_needs_a_home_that_was_enrolled_and_a_word(federation, left, tmp_path):
    with pytest.raises(AlreadyEnrolled, match="--again"):
        enrol(code(federation), left.home)
    with pytest.raises(NotEnrolled):
        enrol(code(federation), tmp_path / "empty", again=True)
    assert not (tmp_path / "empty").exists()


def test_leaving_twice_withdraws_the_code_and_then_is_refused(federation, left):
    given = code(federation)
    federation.register.leave("north")
    with pytest.raises(EnrolmentFailed):
        enrol(given, left.home, again=True)
    with pytest.raises(Conflict, match="has left already"):
        federation.register.leave("north")
    enrol(code(federation), left.home, again=True)
    assert federation.name_of(NodeIdentity.load(left.home)) == "north"


def test_who_has_not_enrolled_cannot_leave(federation):
    code(federation, "south")
    with pytest.raises(Conflict, match="has not enrolled"):
        federation.register.leave("south")
