"""A node's new transport key, against the real gate and the real register."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from confide.client_node.enrolment import protocol
from confide.client_node.enrolment.identity import NodeIdentity, next_path
from confide.client_node.enrolment.protocol import (
    ROTATE_PATH,
    Enrolment,
    RotateRequest,
    complete_rotation,
    enrol,
    rotate,
    send_signed,
)
from confide.client_node.errors import CoordinatorRefused, CoordinatorUnreachable, IdentityMissing
from confide.coordinator.federation.pki import Pki
from confide.coordinator.federation.register import MOST_ROTATIONS, Register
from confide.coordinator.gateway.gate import FleetGate, serve_gate
from confide.coordinator.store.store import Store

from ...coordinator.conftest import logged

pytestmark = pytest.mark.slow


@dataclass
class Federation:
    register: Register
    store: Store
    port: int

    def join(self, home: Path, name: str = "north") -> NodeIdentity:
        enrol(self.register.invite(name, ("train",), f"127.0.0.1:{self.port}"), home)
        return NodeIdentity.load(home)

    def name_of(self, keys: NodeIdentity) -> str | None:
        return self.register.site_of(keys.transport_fingerprint)


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    pki, store = Pki.create(tmp_path / "coordinator", []), Store.create(tmp_path / "coordinator")
    register = Register(store, pki)
    app = FleetGate(
        register,
        enrol=register.enrol,
        rotate=register.rotate,
        studies=lambda _: {"studies": []},
        ca_path=pki.ca_path,
        superlink=1,
    )
    server = serve_gate(app, "127.0.0.1", 0, pki.certificate_path, pki.key_path)
    yield Federation(register, store, server.port)
    server.stop()
    store.close()


def asked(
    who: NodeIdentity, key: ec.EllipticCurvePrivateKey, *, identity: str = "", proof: bool = True
) -> RotateRequest:
    """A request of `who` for `key`, perhaps in another's name."""
    from dataclasses import replace

    request = RotateRequest(
        identity=identity or who.identity_hex, timestamp=time.time(), nonce="ab" * 16,
        transport_public=replace(who, transport_key=key).transport_public.decode(), transport_proof="00",
    )  # fmt: skip
    signature = key.sign(request.proven() if proof else b"else", ec.ECDSA(hashes.SHA256())).hex()
    return request.model_copy(update={"transport_proof": signature})


def test_a_new_key_takes_the_place_of_the_old_one_and_the_identity_stays(federation, tmp_path):
    before = federation.join(tmp_path / "north")
    after = rotate(tmp_path / "north")
    assert after.identity_hex == before.identity_hex
    assert (federation.name_of(before), federation.name_of(after)) == (None, "north")
    assert federation.register.revoked_site(before.transport_fingerprint) is None  # so its daemon looks for a new key
    assert NodeIdentity.load(tmp_path / "north").transport_fingerprint == after.transport_fingerprint
    assert not next_path(tmp_path / "north").exists()
    assert ("site.rotate", {"site": "north", "key": after.transport_fingerprint}) in logged(federation.store)
    assert rotate(tmp_path / "north").transport_fingerprint != after.transport_fingerprint  # and once more


def test_a_rotation_whose_answer_was_lost_is_completed_with_the_same_key(federation, tmp_path, monkeypatch):
    home = tmp_path / "north"
    before = federation.join(home)

    def lost(*_: object) -> bytes:
        send_signed(*_)
        raise CoordinatorUnreachable("the answer is lost")

    monkeypatch.setattr(protocol, "send_signed", lost)
    with pytest.raises(CoordinatorUnreachable):
        rotate(home)
    assert federation.name_of(before) is None
    assert NodeIdentity.load(home).transport_fingerprint == before.transport_fingerprint
    monkeypatch.undo()
    after = complete_rotation(home)
    assert federation.name_of(after) == "north"
    assert complete_rotation(home).transport_fingerprint == after.transport_fingerprint  # nothing is left to complete
    assert not next_path(home).exists()


def test_who_completes_a_rotation_waits_for_who_is_about_to(federation, tmp_path, monkeypatch):
    home = tmp_path / "north"
    federation.join(home)
    completing: list[threading.Thread] = []
    found: list[NodeIdentity] = []

    def answered(*request: object) -> bytes:
        answer = send_signed(*request)  # from here on the gate refuses the old key, and the daemon looks for a new one
        completing.append(threading.Thread(target=lambda: found.append(complete_rotation(home))))
        completing[0].start()
        time.sleep(0.3)
        return answer

    monkeypatch.setattr(protocol, "send_signed", answered)
    after = rotate(home)
    completing[0].join()
    assert [keys.transport_fingerprint for keys in found] == [after.transport_fingerprint]


def test_who_lacks_the_identity_key_gets_no_key_in(federation, tmp_path):
    north, south = federation.join(tmp_path / "north"), federation.join(tmp_path / "south", "south")
    enrolment, fresh = Enrolment.load(tmp_path / "south"), ec.generate_private_key(ec.SECP384R1())
    for request in (
        asked(south, fresh, identity=north.identity_hex),  # signed by another
        asked(south, fresh, proof=False),  # whose key it is was not shown
        asked(south, fresh).model_copy(update={"timestamp": time.time() - 400}),
        asked(south, fresh).model_copy(update={"transport_public": "ssh-ed25519 AAAA"}),
        asked(south, north.transport_key),  # another's present key
    ):
        with pytest.raises(CoordinatorRefused):
            send_signed(request, ROTATE_PATH, south, enrolment)
    assert federation.name_of(north) == "north"
    assert federation.name_of(south) == "south"


def test_a_request_is_taken_once(federation, tmp_path):
    north = federation.join(tmp_path / "north")
    enrolment = Enrolment.load(tmp_path / "north")
    request = asked(north, ec.generate_private_key(ec.SECP384R1()))
    send_signed(request, ROTATE_PATH, north, enrolment)
    rotate(tmp_path / "north")
    with pytest.raises(CoordinatorRefused, match="repeat"):
        send_signed(request, ROTATE_PATH, north, enrolment)


def test_a_signature_for_another_kind_of_request_is_none(federation, tmp_path):
    north = federation.join(tmp_path / "north")
    request = asked(north, ec.generate_private_key(ec.SECP384R1()))
    signed_otherwise = type("_Other", (RotateRequest,), {"domain": b"confide studies 1\n", "__module__": __name__})
    with pytest.raises(CoordinatorRefused):
        send_signed(
            signed_otherwise(**json.loads(request.model_dump_json())),
            ROTATE_PATH,
            north,
            Enrolment.load(tmp_path / "north"),
        )


def test_a_revoked_node_gets_no_new_key(federation, tmp_path):
    before = federation.join(tmp_path / "north")
    federation.register.revoke("north")
    with pytest.raises(CoordinatorRefused):
        rotate(tmp_path / "north")
    assert federation.register.revoked_site(before.transport_fingerprint) == "north"


def test_a_node_has_five_new_keys_an_hour_and_its_last_one_stays(federation, tmp_path):
    federation.join(tmp_path / "north")
    keys = [rotate(tmp_path / "north") for _ in range(MOST_ROTATIONS)]
    with pytest.raises(CoordinatorRefused, match="within the hour"):
        rotate(tmp_path / "north")
    assert federation.name_of(keys[-1]) == "north"
    assert NodeIdentity.load(tmp_path / "north").transport_fingerprint == keys[-1].transport_fingerprint


def test_a_damaged_next_key_is_told(federation, tmp_path):
    federation.join(tmp_path / "north")
    next_path(tmp_path / "north").write_bytes(b"half a key")
    next_path(tmp_path / "north").chmod(0o600)
    with pytest.raises(IdentityMissing, match=r"transport\.next"):
        rotate(tmp_path / "north")
