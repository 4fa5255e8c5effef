"""A node's keys."""

import hashlib
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from confide.client_node.enrolment.identity import NodeIdentity, fingerprint, load_transport_public
from confide.client_node.errors import IdentityMissing


@pytest.fixture
def home(tmp_path: Path) -> Path:
    NodeIdentity.create(tmp_path / "node", "north")
    return tmp_path / "node"


def test_keys_survive_a_restart(home: Path) -> None:
    first, again = NodeIdentity.load(home), NodeIdentity.create(home)
    assert (first.name, first.identity_hex, first.transport_public) == (
        "north", again.identity_hex, again.transport_public,
    )  # fmt: skip


def test_two_nodes_have_different_keys(tmp_path: Path) -> None:
    one, two = NodeIdentity.create(tmp_path / "1"), NodeIdentity.create(tmp_path / "2")
    assert one.identity_hex != two.identity_hex
    assert one.transport_public != two.transport_public


def test_only_the_owner_can_read_the_keys(home: Path) -> None:
    assert stat.S_IMODE((home / "keys").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (home / "keys").iterdir()} == {0o600}


@pytest.mark.parametrize("name", ["transport.key", "identity.key"])
def test_a_key_that_others_can_read_is_not_used(home: Path, name: str) -> None:
    (home / "keys" / name).chmod(0o640)
    with pytest.raises(IdentityMissing, match="chmod 600"):
        NodeIdentity.load(home)


@pytest.mark.parametrize("name", ["transport.key", "identity.key"])
def test_a_lost_key_is_never_made_anew_in_silence(home: Path, name: str) -> None:
    (home / "keys" / name).unlink()
    with pytest.raises(IdentityMissing, match=name):
        NodeIdentity.create(home)


def test_a_damaged_key_is_reported(home: Path) -> None:
    (home / "keys" / "identity.key").write_bytes(b"-----BEGIN PRIVATE KEY-----\n")
    with pytest.raises(IdentityMissing, match=r"identity.key is no key: it was cut short or changed. .*enrol anew"):
        NodeIdentity.load(home)


def test_the_fingerprint_is_of_the_bytes_that_flower_sends(home: Path) -> None:
    identity = NodeIdentity.load(home)
    sent = public_key_to_bytes(identity.transport_key.public_key())
    assert identity.transport_fingerprint == fingerprint(sent) == hashlib.sha256(sent).hexdigest()


@pytest.mark.parametrize("key", [ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 2048)])
def test_other_kinds_of_keys_are_refused(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
    with pytest.raises(ValueError, match="P-384"):
        load_transport_public(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))


def test_no_private_key_is_in_the_repr(home: Path) -> None:
    assert "signer" not in repr(NodeIdentity.load(home))
    assert "transport_key" not in repr(NodeIdentity.load(home))
