"""Secret files of a home: readable with the passphrase and at their own place alone, and never lost half-way."""

import json
import os
import shutil
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from pydantic import TypeAdapter

from confide.client_node import passphrase as passphrases
from confide.client_node import secret_files
from confide.client_node.errors import FileDamaged, KeysSealed
from confide.client_node.secret_files import read_secret, read_secret_json, seal, standing, unseal, write_secret

PASSPHRASE = b"correct horse battery"
NODE = {
    "keys/transport.key": b"transport",
    "keys/identity.key": b"identity",
    "keys/units.key": bytes(range(32)),
    "party/party.key": b"party",
    "aggregator/run-keys/run-1.json": b'{"private": "00"}',
}
OPEN = {"keys/name.json": b"{}", "keys/ledger.head": b"head", "party/party.pem": b"certificate"}
COORDINATOR = {
    "pki/ca.key": b"authority",
    "pki/signing.key": b"signing",
    "pki/server.key": b"server",
    "runs/r/secret": b"s",
}


@pytest.fixture(autouse=True)
def _quick_scrypt(monkeypatch):
    monkeypatch.setattr(passphrases, "_SCRYPT_N", 2)
    monkeypatch.setattr(secret_files, "_keys", {})  # as in a process that has just started
    monkeypatch.delenv("CONFIDE_PASSPHRASE_FILE", raising=False)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)


def filled(home: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o600)
    return home


@pytest.fixture
def home(tmp_path):
    return filled(tmp_path / "node", NODE | OPEN)


@pytest.fixture
def give(monkeypatch, tmp_path):
    def given(passphrase: bytes = PASSPHRASE) -> None:
        path = tmp_path / "passphrase"
        path.write_bytes(passphrase + b"\n")
        path.chmod(0o600)
        monkeypatch.setenv("CONFIDE_PASSPHRASE_FILE", str(path))

    return given


def read(path: Path) -> bytes | None:
    return read_secret(path, remedy="Mend it")


def forms(home: Path) -> set[bool]:
    """Whether secret files are sealed: both answers where some are and some are not."""
    return {NODE[name] not in (home / name).read_bytes() for name in NODE}


def test_sealed_files_are_read_with_the_passphrase_and_hold_nothing_of_the_keys(home, give):
    done = seal(home, "node", PASSPHRASE)
    assert sorted(done.files) == sorted(done.changed) == sorted(NODE)
    assert forms(home) == {True}
    assert standing(home) == "sealed"
    give()
    for name, data in NODE.items():
        assert read(home / name) == data
        assert stat.S_IMODE((home / name).stat().st_mode) == 0o600
    for name, data in OPEN.items():
        assert (home / name).read_bytes() == data


def test_a_sealed_file_is_what_the_page_says(home):
    seal(home, "node", PASSPHRASE)
    first, rest = (home / "party/party.key").read_bytes().split(b"\n", 1)
    salt, nonce, body = rest[:16], rest[16:28], rest[28:]
    key = Scrypt(salt=salt, length=32, n=2, r=8, p=1).derive(PASSPHRASE)
    bound = b"confide-sealed-key-1\n" + salt + b"\nnode\nfile\nparty/party"
    assert first == b"confide-sealed-key-1"
    assert ChaCha20Poly1305(key).decrypt(nonce, body, bound) == b"party"
    assert json.loads((home / "sealing.json").read_text())["salt"] == salt.hex()


def test_unsealing_gives_back_what_was_there(home):
    seal(home, "node", PASSPHRASE)
    assert sorted(unseal(home, "node", PASSPHRASE).changed) == sorted(NODE)
    assert {name: (home / name).read_bytes() for name in NODE | OPEN} == NODE | OPEN
    assert not (home / "sealing.json").exists()
    assert standing(home) == "not encrypted"


def test_the_coordinators_keys_are_sealed_but_for_the_superlinks(tmp_path, give):
    home = filled(tmp_path / "c", COORDINATOR | {"pki/superlink.key": b"loopback", "pki/ca.crt": b"certificate"})
    seal(home, "coordinator", PASSPHRASE)
    give()
    assert {name: read(home / name) for name in COORDINATOR} == COORDINATOR
    assert not any(data in (home / name).read_bytes() for name, data in COORDINATOR.items() if len(data) > 1)
    assert (home / "pki/superlink.key").read_bytes() == b"loopback"
    assert read(home / "pki/superlink.key") == b"loopback"


def test_without_a_passphrase_one_sentence_says_what_is_sealed_and_what_to_give(home):
    seal(home, "node", PASSPHRASE)
    with pytest.raises(KeysSealed, match=f"{home} are sealed: set CONFIDE_PASSPHRASE_FILE .* confide-passphrase") as no:
        read(home / "keys/identity.key")
    assert "\n" not in str(no.value)


def test_a_wrong_passphrase_is_told_from_a_damaged_file_and_is_not_repeated(home, give):
    seal(home, "node", PASSPHRASE)
    give(b"another passphrase")
    with pytest.raises(KeysSealed, match="sealed with another passphrase than the one in") as no:
        read(home / "keys/identity.key")
    assert "another passphrase\n" not in str(no.value)
    give()
    assert read(home / "keys/identity.key") == b"identity"  # a wrong one was not kept


def test_a_key_is_derived_once_in_a_process(home, give, monkeypatch):
    seal(home, "node", PASSPHRASE)
    give()
    asked = []
    monkeypatch.setattr(passphrases, "derive", lambda *args, d=passphrases.derive: asked.append(1) or d(*args))
    for name in NODE:
        read(home / name)
    write_secret(home / "keys/more.key", b"more")
    assert asked == [1]


def test_a_key_that_is_made_later_is_sealed_from_the_start(home, give):
    seal(home, "node", PASSPHRASE)
    give()
    write_secret(home / "aggregator/run-keys/run-2.json", b'{"later": 1}')
    assert b"later" not in (home / "aggregator/run-keys/run-2.json").read_bytes()
    assert read_secret_json(home / "aggregator/run-keys/run-2.json", TypeAdapter(dict[str, int]), remedy="") == {
        "later": 1
    }


def test_a_key_is_not_written_while_its_passphrase_is_missing(home):
    seal(home, "node", PASSPHRASE)
    before = (home / "keys/units.key").read_bytes()
    with pytest.raises(KeysSealed):
        write_secret(home / "keys/units.key", b"new")
    assert (home / "keys/units.key").read_bytes() == before


def test_in_a_home_that_is_not_sealed_keys_are_written_as_they_are(home, give):
    give()
    write_secret(home / "keys/units.key", b"plain")
    assert (home / "keys/units.key").read_bytes() == b"plain"


def test_the_next_transport_key_takes_its_place_by_a_rename(home, give):
    seal(home, "node", PASSPHRASE)
    give()
    write_secret(home / "keys/transport.next", b"fresh")
    (home / "keys/transport.next").replace(home / "keys/transport.key")
    assert read(home / "keys/transport.key") == b"fresh"


@pytest.mark.parametrize(
    "change",
    [
        lambda home: (home / "keys/units.key").replace(home / "keys/identity.key"),
        lambda home: (home / "party/party.key").replace(home / "keys/identity.key"),
    ],
    ids=["of the same folder", "of another folder"],
)
def test_files_cannot_be_put_in_each_others_place(home, give, change):
    seal(home, "node", PASSPHRASE)
    give()
    change(home)
    with pytest.raises(FileDamaged, match=r"identity\.key is sealed and .* is another file of this home"):
        read(home / "keys/identity.key")


def test_a_file_of_another_home_with_the_same_passphrase_is_refused(home, give, tmp_path):
    other = filled(tmp_path / "other", NODE)
    for each in (home, other):
        seal(each, "node", PASSPHRASE)
    give()
    shutil.copy(other / "keys/identity.key", home / "keys/identity.key")
    with pytest.raises(FileDamaged, match="was sealed in another home"):
        read(home / "keys/identity.key")


def test_a_file_of_another_kind_of_home_is_refused(home, give):
    """Even if both homes had one salt, which no command makes."""
    seal(home, "node", PASSPHRASE)
    give()
    mark = json.loads((home / "sealing.json").read_text())
    key = Scrypt(salt=bytes.fromhex(mark["salt"]), length=32, n=2, r=8, p=1).derive(PASSPHRASE)
    swapped = secret_files._marked("coordinator", "sealed", bytes.fromhex(mark["salt"]), key)
    secret_files._write_mark(home, swapped)
    (home / "pki").mkdir()
    shutil.copy(home / "keys/identity.key", home / "pki/signing.key")
    with pytest.raises(FileDamaged, match="another file of this home"):
        read(home / "pki/signing.key")


@pytest.mark.parametrize("keep", [0, 10, 21, 40, 60, -1])
def test_a_file_that_was_cut_is_refused_by_name(home, give, keep):
    seal(home, "node", PASSPHRASE)
    give()
    path = home / "keys/identity.key"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FileDamaged, match=r"identity\.key"):
        read(path)


def test_no_flipped_bit_is_read(home, give):
    seal(home, "node", PASSPHRASE)
    give()
    path = home / "keys/identity.key"
    whole = path.read_bytes()
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1
        path.write_bytes(bytes(changed))
        with pytest.raises(FileDamaged, match=r"identity\.key"):
            read(path)


def test_a_plain_file_in_a_sealed_home_is_refused_until_a_person_seals_it(home, give):
    seal(home, "node", PASSPHRASE)
    give()
    (home / "keys/identity.key").write_bytes(b"planted")
    with pytest.raises(FileDamaged, match=r"is not sealed, in a home whose keys are\. Find out who put it there"):
        read(home / "keys/identity.key")
    assert seal(home, "node", PASSPHRASE).changed == ("keys/identity.key",)
    assert read(home / "keys/identity.key") == b"planted"


def test_a_sealed_file_without_what_says_how_is_refused(home, give):
    seal(home, "node", PASSPHRASE)
    give()
    (home / "sealing.json").unlink()
    with pytest.raises(FileDamaged, match=r"is sealed, and there is no sealing\.json"):
        read(home / "keys/identity.key")


@pytest.mark.parametrize("state", ["sealing", "unsealing"])
def test_a_state_that_no_passphrase_vouches_for_is_refused(home, give, state):
    """Else whoever can write to the home could have plain files taken."""
    seal(home, "node", PASSPHRASE)
    give()
    mark = json.loads((home / "sealing.json").read_text()) | {"state": state}
    (home / "sealing.json").write_text(json.dumps(mark))
    (home / "keys/identity.key").write_bytes(b"planted")
    with pytest.raises(KeysSealed, match=r"or sealing\.json was changed"):
        read(home / "keys/identity.key")


@pytest.mark.parametrize(
    "data", [b"", b"[1]\n", b'{"kind": "node"}', b"\xff" * 90], ids=["empty", "list", "cut", "no text"]
)
def test_a_damaged_mark_is_named_and_raised_as_the_caller_wants(home, give, data):
    class Ours(Exception):
        pass

    seal(home, "node", PASSPHRASE)
    give()
    (home / "sealing.json").write_bytes(data)
    with pytest.raises(Ours, match=r"sealing\.json"):
        read_secret(home / "keys/identity.key", remedy="", error=Ours)


class PowerCut(Exception):
    pass


@pytest.mark.parametrize("writes", range(len(NODE) + 2))
def test_a_crash_between_two_files_loses_none_and_a_second_call_completes_either_way(home, give, monkeypatch, writes):
    give()

    def cut_after(number: int, work) -> None:
        left, write = [number], secret_files.write_private

        def fail(path, data):
            if not left[0]:
                raise PowerCut
            left[0] -= 1
            write(path, data)

        with monkeypatch.context() as patch:
            patch.setattr(secret_files, "write_private", fail)
            with pytest.raises(PowerCut):
                work()

    cut_after(writes, lambda: seal(home, "node", PASSPHRASE))
    assert {name: read(home / name) for name in NODE} == NODE
    assert standing(home) in ("not encrypted", "sealed in part")
    seal(home, "node", PASSPHRASE)
    assert forms(home) == {True}
    assert standing(home) == "sealed"
    if writes <= len(NODE):
        cut_after(writes, lambda: unseal(home, "node", PASSPHRASE))
        assert {name: read(home / name) for name in NODE} == NODE
        assert standing(home) in ("sealed", "unsealed in part")
        seal(home, "node", PASSPHRASE)  # the other way from the middle
        assert forms(home) == {True}
    unseal(home, "node", PASSPHRASE)
    assert {name: (home / name).read_bytes() for name in NODE} == NODE


def test_sealing_does_not_go_on_with_another_passphrase(home):
    seal(home, "node", PASSPHRASE)
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    for change in (seal, unseal):
        with pytest.raises(KeysSealed, match="another passphrase"):
            change(home, "node", b"another passphrase")
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before


def test_a_damaged_file_stops_sealing_and_unsealing_before_any_file_is_changed(home):
    (home / "party/party.key").chmod(0o644)
    with pytest.raises(FileDamaged, match=r"party\.key can be read by others"):
        seal(home, "node", PASSPHRASE)
    assert forms(home) == {False}
    (home / "party/party.key").chmod(0o600)
    seal(home, "node", PASSPHRASE)
    (home / "party/party.key").write_bytes((home / "keys/identity.key").read_bytes())
    with pytest.raises(FileDamaged, match=r"party\.key"):
        unseal(home, "node", PASSPHRASE)
    assert forms(home) == {True}


def test_unsealing_what_is_not_sealed_says_so(home):
    with pytest.raises(KeysSealed, match="are not sealed; nothing was changed"):
        unseal(home, "node", PASSPHRASE)


def test_a_home_inside_a_sealed_homes_folder_is_a_home_of_its_own(home, give):
    seal(home, "node", PASSPHRASE)
    inner = filled(home / "inner", {"keys/identity.key": b"plain"})
    assert read(inner / "keys/identity.key") == b"plain"


def test_equal_keys_are_sealed_to_different_bytes(home):
    filled(home, {"keys/one.key": b"equal", "keys/two.key": b"equal"})
    seal(home, "node", PASSPHRASE)
    assert (home / "keys/one.key").read_bytes()[-21:] != (home / "keys/two.key").read_bytes()[-21:]


def test_a_longer_secret_than_its_reader_takes_is_refused_sealed_or_not(home, give):
    seal(home, "node", PASSPHRASE)
    give()
    with pytest.raises(FileDamaged, match="has more than"):
        read_secret(home / "keys/transport.key", remedy="", max_bytes=7)
    assert read_secret(home / "keys/transport.key", remedy="", max_bytes=9) == b"transport"


def test_nothing_is_left_beside_the_files(home):
    seal(home, "node", PASSPHRASE)
    names = {str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()}
    assert names == {*NODE, *OPEN, "sealing.json"}
    assert os.listdir(home / "keys") == [path.name for path in (home / "keys").iterdir()]
