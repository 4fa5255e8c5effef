"""Keys in a PKCS#11 token (SoftHSM): they sign as keys in memory do, and never leave it.

A module keeps its state in its process, and is told its folder by the environment: one token for all tests here.
"""

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from confide.client_node.enrolment import identity as identities
from confide.client_node.enrolment import token_keys
from confide.client_node.enrolment.identity import NodeIdentity
from confide.client_node.enrolment.token_uri import TokenUri
from confide.client_node.errors import AlreadyEnrolled, TokenUnusable

from .token import LABEL, PIN, made

pytestmark = [pytest.mark.process, pytest.mark.slow]
SHA256 = ec.ECDSA(hashes.SHA256())


@pytest.fixture(scope="module")
def token(tmp_path_factory):
    return made(tmp_path_factory.mktemp("token"))


@pytest.fixture(autouse=True)
def _in_its_environment(token, monkeypatch):
    for name, value in token.environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def home(token, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in token.environment.items():
            patch.setenv(name, value)
        NodeIdentity.create_in_token(home, token.uri)
    return home


def test_both_keys_sign_as_keys_in_memory_do(home):
    keys = NodeIdentity.load(home)
    assert isinstance(keys.signer, Ed25519PrivateKey)
    assert isinstance(keys.transport_key, ec.EllipticCurvePrivateKey)
    keys.signer.public_key().verify(keys.signer.sign(b"said"), b"said")
    with pytest.raises(InvalidSignature):
        keys.signer.public_key().verify(keys.signer.sign(b"said"), b"other")
    keys.transport_key.public_key().verify(keys.transport_key.sign(b"said", SHA256), b"said", SHA256)
    for algorithm in (hashes.SHA384(), hashes.SHA512()):  # as long as the curve, and longer
        wanted = ec.ECDSA(algorithm)
        keys.transport_key.public_key().verify(keys.transport_key.sign(b"said", wanted), b"said", wanted)
    digest = hashes.Hash(hashes.SHA256())
    digest.update(b"said")
    signature = keys.transport_key.sign(digest.finalize(), ec.ECDSA(Prehashed(hashes.SHA256())))
    keys.transport_key.public_key().verify(signature, b"said", SHA256)
    assert keys.signer.sign(b"said") == keys.signer.sign(b"said")  # RFC 8032 is deterministic
    assert keys.transport_public.startswith(b"ecdsa-sha2-nistp384 ")


def test_the_keys_are_the_same_at_the_next_start_and_no_file_holds_them(home):
    first = NodeIdentity.load(home)
    script = (
        "import sys, pathlib; from confide.client_node.enrolment import NodeIdentity\n"
        "keys = NodeIdentity.load(pathlib.Path(sys.argv[1])); print(keys.identity_hex, keys.transport_fingerprint)"
    )
    said = subprocess.run([sys.executable, "-c", script, str(home)], check=True, capture_output=True, text=True).stdout
    assert said.split() == [first.identity_hex, first.transport_fingerprint]
    for name in ("identity.key", "transport.key"):
        text = (home / "keys" / name).read_text()
        assert text.startswith("pkcs11:token=confide%20test")
        assert PIN not in text


def test_a_private_key_never_leaves_the_token(home):
    keys = NodeIdentity.load(home)
    for key in (keys.signer, keys.transport_key):
        with pytest.raises(TokenUnusable, match="does not leave it"):
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        assert copy.copy(key) is copy.deepcopy(key) is key
    with pytest.raises(TokenUnusable, match="does not leave it"):
        keys.signer.private_bytes_raw()
    with pytest.raises(TokenUnusable, match="does not leave it"):
        keys.transport_key.private_numbers()
    with pytest.raises(UnsupportedAlgorithm):
        keys.transport_key.exchange(ec.ECDH(), keys.transport_key.public_key())
    assert (keys.transport_key.key_size, keys.transport_key.curve.name) == (384, "secp384r1")
    import pkcs11

    private, _ = token_keys._find(TokenUri.parse((home / "keys/identity.key").read_text()), "ed25519")
    with pytest.raises(pkcs11.exceptions.AttributeSensitive):
        private[pkcs11.Attribute.VALUE]


def test_the_next_transport_key_is_made_in_the_token_too(token, tmp_path):
    keys = NodeIdentity.create_in_token(tmp_path, token.uri)
    fresh = identities.next_key(tmp_path)
    assert (tmp_path / "keys/transport.next").read_text().startswith("pkcs11:")
    assert fresh.public_key() != keys.transport_key.public_key()
    assert identities.next_key(tmp_path).public_key() == fresh.public_key()
    identities.take_next_key(tmp_path)
    assert NodeIdentity.load(tmp_path).transport_key.public_key() == fresh.public_key()


def test_a_home_that_has_keys_keeps_them(token, home, tmp_path):
    NodeIdentity.create(tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "keys").iterdir()}
    for each in (tmp_path, home):
        with pytest.raises(AlreadyEnrolled, match="has keys already"):
            NodeIdentity.create_in_token(each, token.uri)
    assert {path: path.read_bytes() for path in (tmp_path / "keys").iterdir()} == before


def test_a_call_that_was_cut_short_is_completed(token, tmp_path):
    (tmp_path / "keys").mkdir()
    identities._make_in_token(tmp_path / "keys/transport.key", TokenUri.parse(token.uri), "p384", "confide-transport")
    first = (tmp_path / "keys/transport.key").read_bytes()
    NodeIdentity.create_in_token(tmp_path, token.uri)
    assert (tmp_path / "keys/transport.key").read_bytes() == first


def test_a_key_is_found_again_when_its_session_has_ended(home):
    keys = NodeIdentity.load(home)
    for session in token_keys._sessions.values():
        session.close()
    keys.signer.public_key().verify(keys.signer.sign(b"said"), b"said")


def test_two_uris_of_one_token_are_used_side_by_side(token, home):
    keys = NodeIdentity.load(home)
    uri = TokenUri.parse((home / "keys/identity.key").read_text())
    other = token_keys.TokenEd25519Key(replace(uri, token=(*uri.token, ("manufacturer", "SoftHSM project"))))
    assert other.sign(b"said") == keys.signer.sign(b"said")


def refused(token, pin: str | None, home: Path) -> str:
    """What a process says that starts with another PIN, or without one."""
    script = "import sys; from confide.client_node.cli.main import app; app()"
    environment = {**os.environ, **token.environment}
    if pin is None:
        del environment["CONFIDE_PIN_FILE"]
    else:
        Path(environment["CONFIDE_PIN_FILE"]).with_name("other").write_text(pin)
        environment["CONFIDE_PIN_FILE"] = str(Path(environment["CONFIDE_PIN_FILE"]).with_name("other"))
        Path(environment["CONFIDE_PIN_FILE"]).chmod(0o600)
    words = [sys.executable, "-c", script, "backup", "--home", str(home), str(home / "out")]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return " ".join(done.stderr.split())


def test_a_missing_or_wrong_pin_is_one_sentence_without_it(token, home):
    assert "needs its PIN: set CONFIDE_PIN_FILE" in refused(token, None, home)
    said = refused(token, "wrong-pin-0", home)
    assert "does not take the PIN that is given" in said
    assert "wrong-pin-0" not in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"token": (("token", "another"),)}, "names 0 tokens"),
        ({"key_id": b"\x01\x02"}, "names 0 private keys"),
        ({"label": None, "key_id": None}, "where it must name one"),
        ({"module": Path("/nowhere/module.so")}, "cannot be read"),
    ],
)
def test_a_uri_that_names_no_key_or_several_is_refused(token, home, change, said):
    token_keys.make(TokenUri.parse(token.uri), "ed25519", "another")
    uri = replace(TokenUri.parse((home / "keys/identity.key").read_text()), **change)
    with pytest.raises(TokenUnusable, match=said):
        token_keys.TokenEd25519Key(uri)


def test_a_key_of_the_other_kind_is_refused(home):
    with pytest.raises(TokenUnusable, match="names 0 private keys of kind ed25519"):
        token_keys.TokenEd25519Key(TokenUri.parse((home / "keys/transport.key").read_text()))


def test_a_key_that_can_be_read_from_its_token_is_refused(token):
    import pkcs11

    session = token_keys._session(TokenUri.parse(token.uri), may_write=True)
    curve = {pkcs11.Attribute.EC_PARAMS: token_keys._P384}
    session.create_domain_parameters(pkcs11.KeyType.EC, curve, local=True).generate_keypair(
        id=b"open", label="open", store=True, private_template={pkcs11.Attribute.EXTRACTABLE: True}
    )
    with pytest.raises(TokenUnusable, match="can be read from its token"):
        token_keys.TokenP384Key(TokenUri.parse(token.uri).of("open", b"open"))


def test_a_public_key_that_is_not_the_private_ones_is_refused(token):
    import pkcs11

    uri = token_keys.make(TokenUri.parse(token.uri), "ed25519", "pair")
    session = token_keys._session(uri, may_write=True)
    named = {pkcs11.Attribute.CLASS: pkcs11.ObjectClass.PUBLIC_KEY, pkcs11.Attribute.ID: uri.key_id}
    (public,) = list(session.get_objects(named))
    public.destroy()
    other = Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    session.create_object(
        named
        | {
            pkcs11.Attribute.KEY_TYPE: pkcs11.KeyType.EC_EDWARDS,
            pkcs11.Attribute.EC_PARAMS: token_keys._ED25519,
            pkcs11.Attribute.EC_POINT: b"\x04\x20" + other,
            pkcs11.Attribute.TOKEN: True,
        }
    )
    with pytest.raises(TokenUnusable, match="signs with another key than the public key beside it"):
        token_keys.TokenEd25519Key(uri)


def test_the_command_makes_both_keys_and_shows_no_secret(token, tmp_path):
    script = "import sys; from confide.client_node.cli.main import app; app()"
    words = [sys.executable, "-c", script, "keys", "token", token.uri, "--home", str(tmp_path / "new"), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["identity"] == NodeIdentity.load(tmp_path / "new").identity_hex
    assert PIN not in done.stdout + done.stderr


def test_without_the_package_one_sentence_says_what_to_install(home, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "pkcs11"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pkcs11", None)
    with pytest.raises(TokenUnusable, match=r"install confide\[pkcs11\]"):
        NodeIdentity.load(home)


def test_the_label_of_the_tests_token_needs_escapes():
    assert " " in LABEL  # so that all of this went through percent signs
