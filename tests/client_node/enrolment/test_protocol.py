"""Joining a federation, against the real gate; the test plays the register behind it."""

import json
import logging
import socket
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from confide.client_node.enrolment import outbound, protocol
from confide.client_node.enrolment.identity import NodeIdentity
from confide.client_node.enrolment.protocol import EnrolAnswer, Enrolment, EnrolRequest, enrol, fetch_studies
from confide.client_node.errors import (
    AlreadyEnrolled,
    CodeExpired,
    CodeInvalid,
    CodeUsed,
    CoordinatorRefused,
    CoordinatorUnreachable,
    EnrolmentFailed,
    NotEnrolled,
    WrongCoordinator,
)
from confide.coordinator.errors import EnrolmentInvalid, InviteExpired, InviteRefused, InviteUnknown, InviteUsed
from confide.coordinator.federation.invites import code_text, new_invite
from confide.coordinator.federation.pki import Pki
from confide.coordinator.gateway.gate import FleetGate, serve_gate

STUDY = {"canonical": "e30=", "hash": "ab" * 32, "signature": "cd" * 64}


@dataclass
class Register:
    """One invitation for "north"; notes who enrolled."""

    secret: bytes
    coordinator: str
    refusal: Exception | None = None
    enrolled: list[EnrolRequest] = field(default_factory=list)

    def site_of(self, fingerprint: str) -> str | None:
        return None

    def revoked_site(self, fingerprint: str) -> str | None:
        return None

    def left_site(self, fingerprint: str) -> str | None:
        return None

    def site_with_identity(self, identity: str) -> str | None:
        return "north" if identity in [request.identity for request in self.enrolled] else None

    def enrol(self, request: EnrolRequest) -> EnrolAnswer:
        if self.refusal is not None:
            raise self.refusal
        if bytes.fromhex(request.secret) != self.secret:
            raise InviteUnknown("unknown")
        self.enrolled.append(request)
        return EnrolAnswer(name="north", roles=("train",), coordinator=self.coordinator)


@dataclass
class Federation:
    register: Register
    pki: Pki
    port: int

    @property
    def code(self) -> str:
        return code_text(f"127.0.0.1:{self.port}", self.register.secret, self.pki.ca_digest)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki.create(tmp_path_factory.mktemp("coordinator"), [])


@pytest.fixture
def federation(pki: Pki, caplog: pytest.LogCaptureFixture) -> Iterator[Federation]:
    caplog.set_level(logging.INFO, logger="confide.gate")
    register = Register(new_invite()[0], pki.identity_hex)
    app = FleetGate(
        register,
        enrol=register.enrol,
        rotate=lambda _: "",
        studies=lambda _: {"studies": [STUDY]},
        ca_path=pki.ca_path,
        superlink=1,
    )
    server = serve_gate(app, "127.0.0.1", 0, pki.certificate_path, pki.key_path)
    yield Federation(register, pki, server.port)
    server.stop()


def test_a_code_enrols_and_a_restarted_node_knows_its_place(federation: Federation, tmp_path: Path) -> None:
    enrol(federation.code, tmp_path)
    kept = Enrolment.load(tmp_path)
    assert (kept.name, kept.roles, kept.coordinator) == ("north", ("train",), federation.pki.identity_hex)
    assert kept.address == f"127.0.0.1:{federation.port}"
    assert kept.ca_path.read_bytes() == federation.pki.ca_path.read_bytes()
    assert NodeIdentity.load(tmp_path).name == "north"


def test_the_coordinator_learns_public_keys_only(federation: Federation, tmp_path: Path) -> None:
    enrol(federation.code, tmp_path)
    (request,) = federation.register.enrolled
    identity = NodeIdentity.load(tmp_path)
    assert request.identity == identity.identity_hex
    assert request.transport_public.encode() == identity.transport_public
    assert "PRIVATE" not in request.model_dump_json()


def test_the_secret_is_kept_nowhere(federation: Federation, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    enrol(federation.code, tmp_path)
    secret, letters = federation.register.secret.hex(), federation.code.split("/")[1]
    kept = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file()) + caplog.text
    assert secret not in kept
    assert letters[:20] not in kept
    assert stat.S_IMODE((tmp_path / "enrolment.json").stat().st_mode) == 0o600


def test_the_gate_notes_who_enrolled(federation: Federation, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    enrol(federation.code, tmp_path)
    key = NodeIdentity.load(tmp_path).transport_fingerprint
    assert caplog.messages == [f"enrolled 'north' (key {key[:16]}), from 127.0.0.1"]


@pytest.mark.parametrize(
    ("refusal", "error", "logged"),
    [
        (InviteUsed("x"), CodeUsed, "used invitation code"),
        (InviteExpired("x"), CodeExpired, "expired invitation code"),
        (InviteUnknown("x"), CodeInvalid, "unknown invitation code"),
        (EnrolmentInvalid("these keys are registered already"), EnrolmentFailed, "these keys are registered already"),
    ],
)
@pytest.mark.slow
def test_each_refusal_is_told_and_noted(
    federation: Federation, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    refusal: InviteRefused | EnrolmentInvalid, error: type[EnrolmentFailed], logged: str,
) -> None:  # fmt: skip
    federation.register.refusal = refusal
    with pytest.raises(error):
        enrol(federation.code, tmp_path)
    assert logged in caplog.text
    assert federation.register.secret.hex() not in caplog.text
    with pytest.raises(NotEnrolled):
        Enrolment.load(tmp_path)


def test_a_second_try_after_a_refusal_uses_the_same_keys(federation: Federation, tmp_path: Path) -> None:
    federation.register.refusal = InviteExpired("x")
    with pytest.raises(CodeExpired):
        enrol(federation.code, tmp_path)
    before = NodeIdentity.load(tmp_path).identity_hex
    federation.register.refusal = None
    enrol(federation.code, tmp_path)
    assert federation.register.enrolled[0].identity == before


def test_the_secret_is_not_sent_to_a_coordinator_of_another_ca(federation: Federation, tmp_path: Path) -> None:
    address = federation.code.split("/")[0]
    with pytest.raises(WrongCoordinator, match="The code was not sent"):
        enrol(code_text(address, federation.register.secret, bytes(32)), tmp_path)
    assert federation.register.enrolled == []


def test_a_gate_that_shows_the_right_ca_without_holding_it_gets_nothing(federation: Federation, tmp_path: Path) -> None:
    """A man in the middle can copy the CA certificate, but has no server certificate from it."""
    impostor = Pki.create(tmp_path / "impostor", [])
    app = FleetGate(
        federation.register, enrol=federation.register.enrol, rotate=lambda _: "",
        studies=lambda _: {"studies": []}, ca_path=federation.pki.ca_path,
        superlink=1,
    )  # fmt: skip
    server = serve_gate(app, "127.0.0.1", 0, impostor.certificate_path, impostor.key_path)
    try:
        code = code_text(f"127.0.0.1:{server.port}", federation.register.secret, federation.pki.ca_digest)
        with pytest.raises(WrongCoordinator, match="not from this federation's CA"):
            enrol(code, tmp_path / "node")
    finally:
        server.stop()
    assert federation.register.enrolled == []


def test_nobody_at_the_address_is_told_as_such(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        code = code_text(f"127.0.0.1:{unused.getsockname()[1]}", bytes(16), bytes(32))
        with pytest.raises(CoordinatorUnreachable, match="it does not answer"):
            enrol(code, tmp_path)


def test_a_home_joins_one_federation_only(federation: Federation, tmp_path: Path) -> None:
    enrol(federation.code, tmp_path)
    with pytest.raises(AlreadyEnrolled, match="north"):
        enrol(federation.code, tmp_path)


def test_an_aggregator_sends_its_address_and_certificate(federation: Federation, tmp_path: Path) -> None:
    wanted = {"party_address": "10.0.0.5:9500", "party_certificate": "PEM"}
    enrol(federation.code, tmp_path, roles_wanted=("aggregate",), **wanted)
    (request,) = federation.register.enrolled
    assert (request.party_address, request.party_certificate) == ("10.0.0.5:9500", "PEM")
    assert request.roles_wanted == ("aggregate",)


def test_an_aggregators_certificate_is_made_on_its_own_machine(federation: Federation, tmp_path: Path) -> None:
    enrol(federation.code, tmp_path, party_address="10.0.0.5:9500")
    (request,) = federation.register.enrolled
    assert request.party_certificate == (tmp_path / "party" / "party.pem").read_text()
    assert stat.S_IMODE((tmp_path / "party" / "party.key").stat().st_mode) == 0o600


def test_an_address_without_a_port_is_refused_before_anything_is_sent(federation: Federation, tmp_path: Path) -> None:
    with pytest.raises(EnrolmentFailed, match="party_address"):
        enrol(federation.code, tmp_path, party_address="10.0.0.5", party_certificate="PEM")
    assert federation.register.enrolled == []


def break_identity(request: dict[str, str]) -> None:
    request["identity_proof"] = "00" * 64


def break_transport(request: dict[str, str]) -> None:
    request["transport_proof"] = "3006020101020101"  # well formed, of nobody


def claim_another_address(request: dict[str, str]) -> None:
    request["party_address"] = "10.9.9.9:1"


@pytest.mark.parametrize("change", [break_identity, break_transport, claim_another_address])
def test_keys_that_are_not_proven_are_not_enrolled(
    federation: Federation, tmp_path: Path, change: Callable[[dict[str, str]], None]
) -> None:
    identity = NodeIdentity.create(tmp_path)
    request = protocol._signed_request(identity, federation.register.secret, None, None, None)
    body = json.loads(request.model_dump_json())
    change(body)
    trusted = outbound.trusting(federation.pki.ca_path.read_text())
    way = protocol._Way(f"127.0.0.1:{federation.port}", trusted, None)
    with pytest.raises(EnrolmentFailed):
        way.exchange("POST", protocol.ENROLL_PATH, json.dumps(body).encode())
    assert federation.register.enrolled == []


def test_an_enrolled_node_gets_the_studies(federation: Federation, tmp_path: Path) -> None:
    enrol(federation.code, tmp_path)
    assert fetch_studies(tmp_path) == [STUDY]


def test_a_node_that_was_removed_gets_no_studies(federation: Federation, tmp_path: Path) -> None:
    enrol(federation.code, tmp_path)
    federation.register.enrolled.clear()
    with pytest.raises(CoordinatorRefused, match="revoked"):
        fetch_studies(tmp_path)
