"""The rotation of the federation's CA: every step of it over real TLS, cut off anywhere, and against forgers."""

import datetime as dt
import json
import secrets
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

import pytest
from cryptography import x509

from confide.client_node import authority
from confide.client_node.authority import Statement
from confide.client_node.enrolment import Enrolment, enrol
from confide.client_node.enrolment.protocol import AuthorityQuery, fetch_studies
from confide.client_node.errors import CoordinatorUnreachable, StatementRefused, WrongCoordinator
from confide.coordinator import ca_rotation
from confide.coordinator.errors import Conflict, EnrolmentInvalid, StateDamaged
from confide.coordinator.federation import Pki, Register
from confide.coordinator.federation import pki as pki_module
from confide.coordinator.federation.register import MOST_WORDS
from confide.coordinator.run.glance import look

from .conftest import logged
from .rotating_gate import RotatingGate, rotating_gate

pytestmark = pytest.mark.slow


@pytest.fixture
def gate(tmp_path):
    with rotating_gate(tmp_path / "coordinator") as opened:
        yield opened


def shown(gate: RotatingGate, trusted: Path) -> str:
    """The issuer's key identifier of the certificate at the gate, as somebody sees it who trusts `trusted` alone."""
    context = ssl.create_default_context(cafile=str(trusted))
    raw = socket.create_connection(("127.0.0.1", gate.server.port))
    with raw, context.wrap_socket(raw, server_hostname="127.0.0.1") as tls:
        certificate = x509.load_der_x509_certificate(tls.getpeercert(True))
    found = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    return found.hex()


def trusts(gate: RotatingGate) -> dict[str, str]:
    return {each.name: each.trusts for each in ca_rotation.standing(gate.store, gate.home).nodes}


def test_a_rotation_ends_with_nodes_that_trust_the_new_ca_alone_and_never_loses_one(gate, tmp_path):
    north = tmp_path / "north"
    gate.join(north)
    old = tmp_path / "old.crt"
    shutil.copy(gate.pki.ca_path, old)
    assert trusts(gate) == {"north": "unknown"}
    first = authority.trusted(north).digests

    ca_rotation.begin(gate.store, gate.home)
    gate.tick()
    both = authority.fetch(north)
    assert both.has_changed
    assert both.digests[0] == first[0]
    assert len(both.digests) == 2
    assert shown(gate, old)  # it still shows a certificate of the CA that everybody trusts
    assert trusts(gate) == {"north": "all"}
    assert not authority.fetch(north).has_changed

    done = ca_rotation.finish(gate.store, gate.home)
    assert done.next is None
    assert done.present.sha256 == both.digests[1]
    gate.tick()
    assert fetch_studies(north) == []  # before it has dropped the old one
    assert authority.fetch(north).digests == both.digests[1:]
    assert fetch_studies(north) == []
    assert trusts(gate) == {"north": "all"}
    with pytest.raises(ssl.SSLCertVerificationError):
        shown(gate, old)
    assert sorted(path.name for path in gate.pki.folder.glob("[!.]*")) == [
        "ca.crt", "ca.key", "server.crt", "server.key", "signing.key",
    ]  # fmt: skip
    told = [action for action, _ in logged(gate.store)]
    assert [each for each in told if each.startswith(("ca.", "site.trust"))] == [
        "ca.rotate", "site.trust", "ca.finish", "site.trust",
    ]  # fmt: skip


def test_the_first_confirmation_may_be_the_nodes_first_word(gate, tmp_path):
    """A node that is told `holds the list` without having changed says so, too."""
    gate.join(tmp_path / "north")
    authority.fetch(tmp_path / "north")
    assert trusts(gate) == {"north": "all"}


def test_finishing_names_who_would_be_shut_out_and_goes_on_without_them_only_if_all_are_named(gate, tmp_path):
    for name in ("north", "south", "west"):
        gate.join(tmp_path / name)
    gate.register.revoke("west")
    ca_rotation.begin(gate.store, gate.home)
    gate.tick()
    authority.fetch(tmp_path / "north")
    with pytest.raises(Conflict, match=r"^south would be shut out"):
        ca_rotation.finish(gate.store, gate.home)
    with pytest.raises(Conflict, match=r"^north: no enrolled node of that name lacks"):
        ca_rotation.finish(gate.store, gate.home, without=["south", "north"])
    assert any("not known to trust the next one yet: south" in line for line in look(gate.store, gate.home).worries)
    assert gate.pki.has_next
    ca_rotation.finish(gate.store, gate.home, without=["south"])
    gate.tick()
    with pytest.raises(WrongCoordinator, match="client-node ca accept"):
        authority.fetch(tmp_path / "south")


def test_a_node_that_was_away_comes_back_by_a_file_that_the_coordinator_signed(gate, tmp_path):
    south, file = tmp_path / "south", tmp_path / "authority.json"
    gate.join(south)
    ca_rotation.begin(gate.store, gate.home)
    ca_rotation.finish(gate.store, gate.home, without=["south"])
    gate.tick()
    with pytest.raises(WrongCoordinator):
        fetch_studies(south)
    digests = ca_rotation.write_statement(gate.pki, file)
    accepted = authority.accept(south, authority.read_file(south, file))
    assert accepted.has_changed
    assert accepted.digests == digests == authority.trusted(south).digests
    assert fetch_studies(south) == []
    assert not authority.accept(south, authority.read_file(south, file)).has_changed  # and once more


def test_two_rotations_after_each_other(gate, tmp_path):
    north = tmp_path / "north"
    gate.join(north)
    for _ in range(2):
        for step in (ca_rotation.begin, ca_rotation.finish):
            step(gate.store, gate.home)
            gate.tick()
            authority.fetch(north)
    assert fetch_studies(north) == []
    assert len(authority.trusted(north).digests) == 1


def test_a_cancelled_rotation_is_forgotten_by_nodes(gate, tmp_path):
    north = tmp_path / "north"
    gate.join(north)
    before = authority.trusted(north).digests
    ca_rotation.begin(gate.store, gate.home)
    with pytest.raises(Conflict, match="under way already"):
        ca_rotation.begin(gate.store, gate.home)
    gate.tick()
    authority.fetch(north)
    ca_rotation.cancel(gate.store, gate.home)
    gate.tick()
    assert trusts(gate) == {"north": "others too"}
    assert authority.fetch(north).digests == before
    assert trusts(gate) == {"north": "all"}
    for step in (ca_rotation.cancel, ca_rotation.finish):
        with pytest.raises(Conflict, match="no rotation of the CA is under way"):
            step(gate.store, gate.home)


def test_codes_of_before_are_void_and_nothing_is_sent_by_them(gate, tmp_path):
    code = gate.code("east")
    ca_rotation.begin(gate.store, gate.home)
    assert ca_rotation.standing(gate.store, gate.home).invited == ("east",)
    enrol(gate.code("west"), tmp_path / "west")  # while it is under way
    gate.tick()
    authority.fetch(tmp_path / "west")
    ca_rotation.finish(gate.store, gate.home)
    gate.tick()
    with pytest.raises(WrongCoordinator, match="for a new code"):
        enrol(code, tmp_path / "east")
    assert ca_rotation.standing(gate.store, gate.home).invited == ()
    enrol(gate.code("east"), tmp_path / "east")
    assert fetch_studies(tmp_path / "east") == []


class Cut(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("step", range(1, 7))
def test_a_finish_that_is_cut_off_anywhere_is_completed_by_whoever_loads_the_files(gate, tmp_path, monkeypatch, step):
    north = tmp_path / "north"
    gate.join(north)
    ca_rotation.begin(gate.store, gate.home)
    gate.tick()
    following = authority.fetch(north).digests[1]
    done: list[str] = []

    def counted(real):
        def run(*args):
            if len(done) == step - 1:
                raise Cut
            done.append(str(args[0]))
            return real(*args)

        return run

    for name in ("write_private", "write_secret", "move_durably"):
        monkeypatch.setattr(pki_module, name, counted(getattr(pki_module, name)))
    if step < 6:  # marker, key and certificate of the CA, key and certificate of the gate
        with pytest.raises(Cut):
            ca_rotation.finish(gate.store, gate.home)
    else:
        ca_rotation.finish(gate.store, gate.home)
    monkeypatch.undo()
    gate.tick()  # the running server, whichever comes first
    pki = Pki.load(gate.home)
    is_finished = step > 1
    assert pki.ca_digest.hex() == (following if is_finished else authority.trusted(north).digests[0])
    assert pki.has_next is not is_finished
    gate.tick()
    assert fetch_studies(north) == []
    authority.fetch(north)
    assert fetch_studies(north) == []
    assert len(authority.trusted(north).digests) == (1 if is_finished else 2)


@pytest.mark.parametrize("step", [1, 2])
def test_a_beginning_that_is_cut_off_has_not_begun(gate, monkeypatch, step):
    done: list[object] = []

    def counted(real):
        def run(path, data):
            done.append(path)
            if len(done) == step:
                raise Cut
            real(path, data)

        return run

    for name in ("write_private", "write_secret"):
        monkeypatch.setattr(pki_module, name, counted(getattr(pki_module, name)))
    with pytest.raises(Cut):
        ca_rotation.begin(gate.store, gate.home)
    monkeypatch.undo()
    assert not Pki.load(gate.home).has_next
    gate.tick()
    assert ca_rotation.begin(gate.store, gate.home).next is not None


def test_a_damaged_next_ca_is_told_and_announces_nothing(gate, tmp_path, caplog):
    gate.join(tmp_path / "north")
    ca_rotation.begin(gate.store, gate.home)
    gate.pki.next_ca_path.write_bytes(gate.pki.ca_path.read_bytes())
    gate.tick()
    assert "nodes are told of the CA as before" in caplog.text
    assert not authority.fetch(tmp_path / "north").has_changed
    with pytest.raises(StateDamaged, match="coordinator ca cancel"):
        ca_rotation.finish(gate.store, gate.home, without=["north"])
    ca_rotation.cancel(gate.store, gate.home)
    gate.tick()
    assert not authority.fetch(tmp_path / "north").has_changed


def test_a_node_drops_no_ca_before_it_has_seen_the_other_at_work(gate, tmp_path):
    """A coordinator that says so, but still shows a certificate of the old CA, is not believed."""
    north = tmp_path / "north"
    gate.join(north)
    ca_rotation.begin(gate.store, gate.home)
    gate.tick()
    both = authority.fetch(north).digests
    ca_rotation.finish(gate.store, gate.home)
    gate.announcer.look()  # and not what shows the new certificate
    with pytest.raises(WrongCoordinator):
        authority.fetch(north)
    assert authority.trusted(north).digests == both
    gate.tick()
    assert authority.fetch(north).digests == both[1:]


def test_a_ca_that_is_new_does_not_vouch_for_dropping_another(gate, tmp_path):
    """One is dropped by a list that brings another: the connection is of the latter, not of the one that stays."""
    north = tmp_path / "north"
    gate.join(north)
    ca_rotation.begin(gate.store, gate.home)
    gate.tick()
    both = authority.fetch(north).digests
    new = Pki.create(tmp_path / "new", ["127.0.0.1"])
    gate.announcer._certificates = (gate.pki.next_ca_path.read_bytes(), new.ca_path.read_bytes())
    answer = gate.announcer.answer

    def answer_then_show_the_new(query):
        gate.server.show(new.certificate_path, new.key_path)
        return answer(query)

    gate.announcer.answer = answer_then_show_the_new
    with pytest.raises(WrongCoordinator):
        authority.fetch(north)
    assert authority.trusted(north).digests == both


def test_whoever_has_the_key_of_the_ca_alone_changes_nothing(gate, tmp_path):
    """An impostor with a certificate of the right CA, who signs his statement with a key of his own."""
    north = tmp_path / "north"
    gate.join(north)
    before = authority.trusted(north).digests
    with rotating_gate(tmp_path / "impostor") as impostor:
        for name in ("server.crt", "server.key"):
            shutil.copy(gate.pki.folder / name, impostor.pki.folder / name)
        gate.server.stop()
        impostor.server.show(impostor.pki.certificate_path, impostor.pki.key_path)
        port, kept = impostor.server.port, json.loads((north / "enrolment.json").read_text())
        (north / "enrolment.json").write_text(json.dumps(kept | {"address": f"127.0.0.1:{port}"}))
        impostor.register._store = gate.store  # he knows the node
        with pytest.raises(StatementRefused, match="not signed by this node's coordinator"):
            authority.fetch(north)
    assert authority.trusted(north).digests == before


def test_a_statement_without_a_ca_that_is_trusted_is_refused_from_the_network(gate, tmp_path):
    """The signing key alone is not enough either: here it signs a list that is all new."""
    north = tmp_path / "north"
    gate.join(north)
    other = Pki.create(tmp_path / "other", [])
    gate.announcer._certificates = (other.ca_path.read_bytes(),)
    with pytest.raises(StatementRefused, match="lists no CA that this node trusts"):
        authority.fetch(north)
    assert (north / "ca.crt").read_bytes() == gate.pki.ca_path.read_bytes()


def test_an_older_statement_brings_back_no_ca(gate, tmp_path):
    north, file = tmp_path / "north", tmp_path / "old.json"
    gate.join(north)
    ca_rotation.begin(gate.store, gate.home)
    gate.tick()
    authority.fetch(north)
    old = Statement.issue(gate.pki.authorities(), gate.pki.signer, made=int(1000 * time.time()) - 5)
    file.write_text(old.model_dump_json())
    ca_rotation.finish(gate.store, gate.home)
    gate.tick()
    after = authority.fetch(north).digests
    with pytest.raises(StatementRefused, match="has taken one of"):
        authority.read_file(north, file)
    with pytest.raises(StatementRefused, match="has taken one of"):
        authority.accept(north, old)
    assert authority.trusted(north).digests == after


def test_a_statement_from_the_future_is_refused(gate, tmp_path):
    north, file = tmp_path / "north", tmp_path / "future.json"
    gate.join(north)
    ca_rotation.begin(gate.store, gate.home)
    made = int(1000 * time.time()) + 10 * 86_400_000
    file.write_text(Statement.issue(gate.pki.authorities(), gate.pki.signer, made=made).model_dump_json())
    with pytest.raises(StatementRefused, match="Set the clock that is wrong"):
        authority.read_file(north, file)


def odd(pki: Pki, tmp_path: Path) -> dict[str, bytes]:
    """Statements, signed by the coordinator itself, that nobody may take; and some that it did not sign."""
    ca, leaf = pki.ca_path.read_bytes(), pki.certificate_path.read_bytes()
    good = json.loads(Statement.issue((ca,), pki.signer).model_dump_json())
    stranger = Pki.create(tmp_path / "stranger", [])
    signed = {
        "a server's certificate": (leaf,), "twice": (ca, ca), "no certificate": (b"-----BEGIN CERTIFICATE-----\n",),
        "more around it": (b"# " + ca,), "two in one": (ca + stranger.ca_path.read_bytes(),), "empty": (b"",),
    }  # fmt: skip
    found = {name: Statement.issue(listed, pki.signer).model_dump_json().encode() for name, listed in signed.items()}
    found["another coordinator's"] = Statement.issue((ca,), stranger.signer).model_dump_json().encode()
    changes = {
        "a later time": {"made": good["made"] + 1}, "another list": {"certificates": [stranger.ca_path.read_text()]},
        "in another's name": {"coordinator": stranger.identity_hex}, "unsigned": {"signature": "00" * 64},
        "a key too many": {"more": 1}, "another form": {"format": "confide-authority-2"}, "none": {"certificates": []},
        "three": {"certificates": [ca.decode()] * 3}, "a long one": {"certificates": ["A" * 20_000]},
    }  # fmt: skip
    found |= {name: json.dumps(good | change).encode() for name, change in changes.items()}
    return found | {"nothing": b"", "no JSON": b"\xff{", "cut": json.dumps(good).encode()[:-9], "a list": b"[1]"}


def test_odd_and_forged_statements_are_refused_in_one_sentence(gate, tmp_path):
    north, file = tmp_path / "north", tmp_path / "statement.json"
    gate.join(north)
    before = (north / "ca.crt").read_bytes()
    for name, data in odd(gate.pki, tmp_path).items():
        file.write_bytes(data)
        with pytest.raises(StatementRefused) as caught:
            authority.read_file(north, file)
        assert "Traceback" not in str(caught.value), name
        assert len(str(caught.value)) < 300, name
    with pytest.raises(StatementRefused, match="cannot be read"):
        authority.read_file(north, tmp_path / "nowhere.json")
    assert (north / "ca.crt").read_bytes() == before


@pytest.mark.parametrize("damage", [b"", b"x", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_a_damaged_ca_file_of_a_node_is_told_as_such(gate, tmp_path, damage):
    from confide.client_node.errors import NotEnrolled

    north = tmp_path / "north"
    gate.join(north)
    (north / "ca.crt").write_bytes((north / "ca.crt").read_bytes() + damage if damage else b"")
    if damage != b"x":  # text around a certificate is no damage: OpenSSL writes some
        with pytest.raises(NotEnrolled, match=r"ca\.crt"):
            authority.trusted(north)
    else:
        assert authority.trusted(north).digests


def test_a_node_cut_off_between_its_two_files_takes_the_list_again(gate, tmp_path, monkeypatch):
    north = tmp_path / "north"
    gate.join(north)
    ca_rotation.begin(gate.store, gate.home)
    gate.tick()

    def cut(*_: object) -> None:
        raise Cut

    monkeypatch.setattr(authority, "_note", cut)
    with pytest.raises(Cut):
        authority.fetch(north)
    monkeypatch.undo()
    assert len(authority.trusted(north).digests) == 2
    assert not (north / authority.FILE).exists()
    authority.fetch(north)
    assert (north / authority.FILE).exists()
    assert trusts(gate) == {"north": "all"}


def test_a_node_confirms_twenty_times_an_hour_and_is_then_told_to_wait(gate, tmp_path):
    from confide.client_node.errors import CoordinatorRefused
    from confide.coordinator.federation.register import MOST_CONFIRMATIONS

    north = tmp_path / "north"
    keys, enrolment = gate.join(north), Enrolment.load(north)
    wanted = authority.trusted(north).digests
    for _ in range(MOST_CONFIRMATIONS):
        authority._asked(keys, enrolment, ("00" * 32,), enrolment.ca_pem())
        authority._asked(keys, enrolment, wanted, enrolment.ca_pem())
    authority._asked(keys, enrolment, ("00" * 32,), enrolment.ca_pem())
    with pytest.raises(CoordinatorRefused, match="within the hour"):
        authority._asked(keys, enrolment, wanted, enrolment.ca_pem())
    assert sum(action == "site.trust" for action, _ in logged(gate.store)) == MOST_CONFIRMATIONS


def test_a_revoked_node_is_told_nothing(gate, tmp_path):
    from confide.client_node.errors import CoordinatorRefused

    gate.join(tmp_path / "north")
    gate.register.revoke("north")
    with pytest.raises(CoordinatorRefused, match="has revoked it"):
        authority.fetch(tmp_path / "north")


@contextmanager
def clock_ahead(monkeypatch, days: float) -> Iterator[None]:
    """Certificates are made, in this block, under a clock that is some days ahead."""

    class Ahead(dt.datetime):
        @classmethod
        def now(cls, tz=None):
            return dt.datetime.now(tz) + dt.timedelta(days=days)

    ahead = ModuleType("datetime")
    ahead.__dict__.update(dt.__dict__, datetime=Ahead)
    with monkeypatch.context() as patched:
        patched.setattr(pki_module, "dt", ahead)
        yield


def test_a_next_ca_of_a_clock_that_was_ahead_does_not_take_over(gate, tmp_path, monkeypatch):
    north = tmp_path / "north"
    gate.join(north)
    with clock_ahead(monkeypatch, 3):
        begun = ca_rotation.begin(gate.store, gate.home)
    gate.tick()
    authority.fetch(north)
    assert begun.is_early
    with pytest.raises(Conflict, match="is not valid before"):
        ca_rotation.finish(gate.store, gate.home)
    assert any("the next CA is not valid before" in line for line in look(gate.store, gate.home).worries)
    assert gate.pki.has_next
    ca_rotation.cancel(gate.store, gate.home)
    ca_rotation.begin(gate.store, gate.home)
    gate.tick()
    authority.fetch(north)
    ca_rotation.finish(gate.store, gate.home)
    gate.tick()
    assert fetch_studies(north) == []


def test_a_node_that_comes_back_has_to_confirm_the_next_ca_anew(gate, tmp_path):
    north = tmp_path / "north"
    gate.join(north)
    ca_rotation.begin(gate.store, gate.home)
    gate.tick()
    authority.fetch(north)
    gate.register.leave("north")
    enrol(gate.code("north"), north, again=True)  # it trusts the CA of its code alone now
    assert trusts(gate) == {"north": "unknown"}
    with pytest.raises(Conflict, match=r"^north would be shut out"):
        ca_rotation.finish(gate.store, gate.home)


def test_the_code_of_a_node_that_is_to_come_back_is_void_too(gate, tmp_path):
    south = tmp_path / "south"
    gate.join(south)
    gate.register.leave("south")
    code = gate.code("south")
    ca_rotation.begin(gate.store, gate.home)
    assert ca_rotation.standing(gate.store, gate.home).invited == ("south",)
    ca_rotation.finish(gate.store, gate.home)
    assert ("ca.finish", ["south"]) in [(action, fields.get("void")) for action, fields in logged(gate.store)]
    assert gate.store.node("south").invite_digest is None
    gate.tick()
    with pytest.raises(WrongCoordinator, match="for a new code"):
        enrol(code, south, again=True)


@pytest.mark.parametrize("damage", [b"x", b""])
def test_a_server_starts_with_a_damaged_next_ca_and_says_how_to_be_rid_of_it(gate, tmp_path, caplog, damage):
    north = tmp_path / "north"
    gate.join(north)
    ca_rotation.begin(gate.store, gate.home)
    gate.pki.next_ca_path.write_bytes(damage)
    with rotating_gate(gate.home) as restarted:
        assert "nodes are told of the present CA alone" in caplog.text
        assert restarted.announcer.mark == authority.mark(authority.trusted(north).digests)
        for command in (ca_rotation.standing, ca_rotation.finish):
            with pytest.raises(StateDamaged, match="coordinator ca cancel"):
                command(restarted.store, restarted.home)
        told = [line for line in look(restarted.store, restarted.home).worries if "ca.next.crt" in line]
        assert len(told) == 1
        assert "coordinator ca cancel" in told[0]
        ca_rotation.cancel(restarted.store, restarted.home)
        assert ca_rotation.begin(restarted.store, restarted.home).next is not None
        restarted.tick()
        assert len(authority.Statement.issue(restarted.pki.authorities(), restarted.pki.signer).certificates) == 2
        assert restarted.announcer.mark != authority.mark(authority.trusted(north).digests)


def test_a_node_that_enrols_while_the_next_ca_takes_over_is_counted_or_kept_out(gate, tmp_path, monkeypatch):
    """Everything that `finish` decides on is read where nobody can enrol any more."""
    code, real = gate.code("east"), Register.void_codes

    def late(self, *args):
        enrol(code, tmp_path / "east")  # the last moment at which it can
        return real(self, *args)

    ca_rotation.begin(gate.store, gate.home)
    monkeypatch.setattr(Register, "void_codes", late)
    with pytest.raises(Conflict, match=r"^east would be shut out"):
        ca_rotation.finish(gate.store, gate.home)
    assert gate.pki.has_next


def test_the_audit_log_names_a_next_ca_before_nodes_hear_of_it(gate, monkeypatch):
    def cut(*_: object) -> None:
        assert not gate.pki.has_next
        raise Cut

    real = gate.store.log_action
    monkeypatch.setattr(gate.store, "log_action", lambda *args, **fields: (real(*args, **fields), cut()))
    with pytest.raises(Cut):
        ca_rotation.begin(gate.store, gate.home)
    assert not gate.pki.has_next


def test_a_takeover_that_the_log_could_not_take_has_not_begun(gate, monkeypatch):
    ca_rotation.begin(gate.store, gate.home)

    def full(*_: object, **__: object) -> None:
        raise Cut

    with monkeypatch.context() as patched:
        patched.setattr(gate.store, "log_action", full)
        with pytest.raises(Cut):
            ca_rotation.finish(gate.store, gate.home)
    assert Pki.load(gate.home).has_next
    assert "ca.finish" not in [action for action, _ in logged(gate.store)]


def test_the_log_has_no_takeover_that_can_be_cancelled(gate, monkeypatch):
    """The process ends right after the log's entry: the files say so already, and the takeover is completed."""
    ca_rotation.begin(gate.store, gate.home)

    def cut(self: Pki) -> None:
        raise Cut

    with monkeypatch.context() as patched:
        patched.setattr(Pki, "take_next", cut)
        with pytest.raises(Cut):
            ca_rotation.finish(gate.store, gate.home)
    assert "ca.finish" in [action for action, _ in logged(gate.store)]
    with pytest.raises(Conflict, match="no rotation of the CA is under way"):
        ca_rotation.cancel(gate.store, gate.home)


@pytest.mark.parametrize("command", ["begin", "finish", "cancel"])
def test_a_takeover_that_the_log_lacks_is_noted_and_voids_codes(gate, monkeypatch, command):
    """The process is killed after the files say that the next CA takes over, and before the log does."""
    ca_rotation.begin(gate.store, gate.home)
    gate.code("east")
    before = gate.pki.ca_digest.hex()

    def killed(*_: object, **__: object) -> None:
        raise Cut

    with monkeypatch.context() as patched:
        patched.setattr(gate.store, "log_action", killed)
        patched.setattr(Pki, "stop_taking", lambda _: None)  # a dead process takes nothing back
        with pytest.raises(Cut):
            ca_rotation.finish(gate.store, gate.home)
    assert "ca.finish" not in [action for action, _ in logged(gate.store)]
    for _ in range(2):
        if command == "begin":
            ca_rotation.begin(gate.store, gate.home)
            ca_rotation.cancel(gate.store, gate.home)
        else:
            with pytest.raises(Conflict, match="no rotation of the CA is under way"):
                getattr(ca_rotation, command)(gate.store, gate.home)
    (noted,) = [fields for action, fields in logged(gate.store) if action == "ca.finish"]
    assert noted == {"ca": Pki.load(gate.home).ca_digest.hex(), "before": before, "without": [], "void": ["east"]}


def test_a_node_changes_what_it_says_that_it_trusts_sixty_times_an_hour(gate, tmp_path):
    keys = gate.join(tmp_path / "north")

    def say(trusts: str) -> None:
        query = AuthorityQuery(
            identity=keys.identity_hex, timestamp=time.time(), nonce=secrets.token_hex(16), trusts=(trusts * 64,)
        )
        gate.register.note_trust(query, ("f" * 64,))

    for turn in range(MOST_WORDS):
        say("ab"[turn % 2])
    say("b")  # the same again is no change
    with pytest.raises(EnrolmentInvalid, match="within the hour"):
        say("a")


def test_a_list_of_two_clocks_that_were_ahead_keeps_no_later_one_out(gate, tmp_path, monkeypatch):
    north = tmp_path / "north"
    gate.join(north)
    with monkeypatch.context() as patched:
        patched.setattr(authority, "_now", lambda: int(1000 * time.time()) + 30 * 86_400_000)
        authority.fetch(north)  # the gate's clock and the node's: both ask here
    assert json.loads((north / authority.FILE).read_text())["made"] > 1000 * time.time() + 86_400_000
    ca_rotation.begin(gate.store, gate.home)
    gate.tick()
    assert len(authority.fetch(north).digests) == 2
    assert json.loads((north / authority.FILE).read_text())["made"] < 1000 * time.time() + 86_400_000


def test_a_person_waits_for_no_request_and_what_she_brought_stays(gate, tmp_path, monkeypatch):
    north, file = tmp_path / "north", tmp_path / "authority.json"
    gate.join(north)
    ca_rotation.begin(gate.store, gate.home)
    gate.tick()
    ca_rotation.write_statement(gate.pki, file)

    def meanwhile(*args, real=authority._asked):
        answer = real(*args)
        authority.accept(north, authority.read_file(north, file))  # a lock that `fetch` held would never be free here
        return answer

    with monkeypatch.context() as patched:
        patched.setattr(authority, "_asked", meanwhile)
        with pytest.raises(StatementRefused, match="was changed meanwhile"):
            authority.fetch(north)
    assert len(authority.trusted(north).digests) == 2
    assert not authority.fetch(north).has_changed
    assert trusts(gate) == {"north": "all"}


@pytest.mark.parametrize("is_large", [True, False], ids=["too large", "in drops"])
def test_an_answer_that_does_not_end_is_given_up(gate, tmp_path, monkeypatch, is_large):
    """An impostor with a certificate of the right CA."""
    north, over = tmp_path / "north", threading.Event()
    gate.join(north)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(gate.pki.certificate_path, gate.pki.key_path)

    def serve(listener: socket.socket) -> None:
        raw, _ = listener.accept()
        with suppress(OSError), context.wrap_socket(raw, server_side=True) as tls:
            tls.recv(1 << 16)
            tls.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 30000000\r\n\r\n")
            while not over.wait(0.0 if is_large else 0.1):
                tls.sendall(b" " * (1 << 14 if is_large else 1))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        kept = json.loads((north / "enrolment.json").read_text())
        here = f"127.0.0.1:{listener.getsockname()[1]}"
        (north / "enrolment.json").write_text(json.dumps(kept | {"address": here}))
        monkeypatch.setattr(authority, "_ANSWER_S", 60.0 if is_large else 1.0)
        error, words = (
            (WrongCoordinator, "more than 65536 bytes") if is_large else (CoordinatorUnreachable, "answered whole")
        )
        with pytest.raises(error, match=words):
            authority.fetch(north)
        over.set()
        thread.join()
