"""A daemon's connection follows the coordinator's CA, against the real gate."""

import shutil
import ssl

import httpx
import pytest

from confide.client_node import authority
from confide.client_node.authority_keeper import AuthorityKeeper
from confide.client_node.enrolment import Enrolment, NodeIdentity, enrol, outbound
from confide.client_node.enrolment.sessions import Hello
from confide.client_node.errors import CoordinatorUnreachable
from confide.client_node.flower import Connection
from confide.coordinator import ca_rotation, key_rotation

from ..coordinator.rotating_gate import RotatingGate, rotating_gate

pytestmark = pytest.mark.slow


@pytest.fixture
def gate(tmp_path):
    with rotating_gate(tmp_path / "coordinator") as opened:
        yield opened


class Daemon:
    """A node's connection and what looks after it, as `WarmNode` has them."""

    def __init__(self, gate: RotatingGate, home) -> None:
        self.home = home
        self.connection = Connection(gate.join(home), Enrolment.load(home), Hello.of(home))
        self.keeper = AuthorityKeeper(home)

    def poll(self, *, is_later: bool = False) -> None:
        """Asks once; there is no SuperLink behind this gate, which says so and tells of its CAs all the same.

        Args:
            is_later: True if it is time to ask again for what was asked for before.
        """
        if is_later:
            self.keeper._due = 0.0
        self.keeper.look(self.connection)
        with pytest.raises(httpx.HTTPStatusError):
            self.connection.post("/v1/fleet/send-node-heartbeat", b"")
        self.keeper.look(self.connection)
        if self.keeper._thread is not None:
            self.keeper._thread.join()
        self.keeper.look(self.connection)


@pytest.fixture
def daemon(gate, tmp_path):
    made = Daemon(gate, tmp_path / "north")
    yield made
    made.connection.close()


def test_a_connected_daemon_follows_both_steps_by_itself(gate, daemon):
    daemon.poll()
    assert {each.trusts for each in ca_rotation.standing(gate.store, gate.home).nodes} == {"all"}
    first = daemon.keeper._thread
    daemon.poll(is_later=True)
    assert daemon.keeper._thread is first  # nothing more to fetch
    ca_rotation.begin(gate.store, gate.home)
    gate.tick()
    daemon.poll()
    assert len(authority.trusted(daemon.home).digests) == 2
    following = ca_rotation.finish(gate.store, gate.home).present.sha256
    gate.tick()
    daemon.poll()
    assert authority.trusted(daemon.home).digests == (following,)
    daemon.poll()
    assert daemon.connection._ca.encode() == gate.pki.ca_path.read_bytes()


def test_a_daemon_that_cannot_connect_any_more_takes_up_what_a_person_brings(gate, daemon, tmp_path):
    ca_rotation.begin(gate.store, gate.home)
    ca_rotation.finish(gate.store, gate.home, without=["north"])
    gate.tick()
    daemon.keeper.look(daemon.connection)
    with pytest.raises(httpx.ConnectError) as caught:
        daemon.connection.post("/v1/fleet/send-node-heartbeat", b"")
    assert "client-node ca accept FILE" in (outbound.certificate_trouble(caught.value) or "")
    ca_rotation.write_statement(gate.pki, tmp_path / "authority.json")
    authority.accept(daemon.home, authority.read_file(daemon.home, tmp_path / "authority.json"))
    daemon.poll()


def test_a_ca_file_that_is_damaged_while_a_daemon_runs_is_told_once_and_changes_nothing(gate, daemon, caplog):
    daemon.poll()
    shutil.copy(daemon.home / "ca.crt", daemon.home / "kept")
    (daemon.home / "ca.crt").write_text("none")
    for _ in range(3):
        daemon.poll()
    assert caplog.text.count("is trusted as before") == 1
    shutil.copy(daemon.home / "kept", daemon.home / "ca.crt")
    daemon.poll()


def test_what_the_gate_tells_is_no_reason_to_trust_it(gate, daemon, caplog):
    """A digest that fits no list makes the daemon ask, and nothing more."""
    before = (daemon.home / "ca.crt").read_bytes()
    gate.announcer.mark = "ab" * 32
    daemon.poll()
    assert daemon.keeper._thread is not None
    assert (daemon.home / "ca.crt").read_bytes() == before


@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_confirmation_that_was_lost_is_sent_again(gate, daemon, monkeypatch, is_restarted):
    daemon.poll()
    ca_rotation.begin(gate.store, gate.home)
    gate.tick()
    asked: list[object] = []

    def lossy(*args, real=authority._asked):
        asked.append(args)
        if len(asked) == 2:
            raise CoordinatorUnreachable("the gate restarts just now")
        return real(*args)

    with monkeypatch.context() as patched:
        patched.setattr(authority, "_asked", lossy)
        daemon.poll()
        daemon.poll()
    assert len(asked) == 2  # and no third within the minute
    assert len(authority.trusted(daemon.home).digests) == 2
    assert ca_rotation.standing(gate.store, gate.home).lacking == ("north",)
    if is_restarted:
        daemon.keeper = AuthorityKeeper(daemon.home)
    daemon.poll(is_later=not is_restarted)
    assert ca_rotation.standing(gate.store, gate.home).lacking == ()
    ca_rotation.finish(gate.store, gate.home)


def knows(gate):
    (north,) = key_rotation.standing(gate.store, gate.home).nodes
    return north.knows


@pytest.fixture
def asked(monkeypatch):
    """The questions about the CA so far, and the numbers of those that are lost, from 1 on."""
    queries: list[object] = []
    lost: set[int] = set()

    def counted(*args, real=authority._asked):
        queries.append(args)
        if len(queries) in lost:
            raise CoordinatorUnreachable("the gate restarts just now")
        return real(*args)

    monkeypatch.setattr(authority, "_asked", counted)
    return queries, lost


def test_a_connected_daemon_that_follows_a_new_key_confirms_it_once_by_itself(gate, daemon, asked):
    queries, _ = asked
    daemon.poll()
    for count in (3, 5):
        key_rotation.rotate(gate.store, gate.home)
        gate.tick()
        daemon.poll()
        assert knows(gate) == "present"
        assert len(queries) == count
    for _ in range(3):
        daemon.poll(is_later=True)
    assert len(queries) == 5
    daemon.keeper = AuthorityKeeper(daemon.home)
    daemon.poll()
    assert len(queries) == 6  # a daemon that starts says once what it knows
    assert knows(gate) == "present"


@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_confirmation_of_a_key_that_was_lost_is_sent_again(gate, daemon, asked, is_restarted):
    queries, lost = asked
    daemon.poll()
    key_rotation.rotate(gate.store, gate.home)
    gate.tick()
    lost.add(3)
    daemon.poll()
    daemon.poll()
    assert len(queries) == 3  # and no further one within the minute
    assert Enrolment.load(daemon.home).coordinator == gate.pki.identity_hex
    assert knows(gate) == "unknown"
    if is_restarted:
        daemon.keeper = AuthorityKeeper(daemon.home)
    daemon.poll(is_later=not is_restarted)
    assert knows(gate) == "present"
    daemon.poll(is_later=True)
    assert len(queries) == 4


def test_a_note_of_the_last_list_that_was_lost_is_written_again_at_the_next_start(gate, daemon):
    daemon.poll()
    (daemon.home / authority.FILE).unlink()
    daemon.keeper = AuthorityKeeper(daemon.home)
    daemon.poll()
    assert (daemon.home / authority.FILE).exists()


def test_another_connection_confirms_anew(gate, daemon):
    """A node that comes back has another transport key; the coordinator then knows nothing of what it trusts."""
    daemon.poll()
    gate.register.leave("north")
    keys = enrol(gate.code("north"), daemon.home, again=True)
    daemon.connection.close()
    daemon.connection = Connection(NodeIdentity.load(daemon.home), keys, Hello.of(daemon.home))
    assert {each.trusts for each in ca_rotation.standing(gate.store, gate.home).nodes} == {"unknown"}
    daemon.poll(is_later=True)
    assert {each.trusts for each in ca_rotation.standing(gate.store, gate.home).nodes} == {"all"}


def test_a_file_that_openssl_does_not_take_leaves_the_connection_as_it_was(gate, daemon, monkeypatch):
    def refused(_: str) -> ssl.SSLContext:
        raise ssl.SSLError("no certificate for OpenSSL")

    before = daemon.connection._ca
    (daemon.home / "ca.crt").write_bytes((daemon.home / "ca.crt").read_bytes() * 2)
    with monkeypatch.context() as patched:
        patched.setattr(outbound, "trusting", refused)
        with pytest.raises(ssl.SSLError):
            daemon.connection.trust_anew()
    assert daemon.connection._ca == before
    assert daemon.connection.trust_anew()  # the next time, and not forgotten
