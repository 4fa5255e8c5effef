"""The file of a backup: whole or refused, under any damage, with and without a passphrase."""

import hashlib
import json
import os
from pathlib import Path

import hypothesis
import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from hypothesis import strategies as st

from confide.client_node import passphrase as passphrases
from confide.client_node.errors import BackupInvalid
from confide.client_node.home_archive import (
    hold,
    new_home,
    read_archive,
    read_passphrase,
    staging,
    write_archive,
)

PASSPHRASE = b"correct horse battery"
FILES = {"keys/identity.key": b"secret", "site.toml": b"", "outbox/a/1/x.bin": os.urandom(200_000)}


@pytest.fixture
def source(tmp_path):
    for name, data in FILES.items():
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "source"


@pytest.fixture(autouse=True)
def _quick_scrypt(monkeypatch):
    monkeypatch.setattr(passphrases, "_SCRYPT_N", 2)


def anything(name: str) -> bool:
    return True


def written(source: Path, path: Path, passphrase: bytes | None = None, kind: str = "node") -> Path:
    write_archive(path, kind, [(name, source / name) for name in FILES], passphrase)
    return path


def archive(*lines: bytes) -> bytes:
    """An archive of these lines, with a right sum at its end."""
    data = b"".join(lines)
    return data + json.dumps({"sha256": hashlib.sha256(data).hexdigest()}).encode() + b"\n"


def forged(path: str, data: bytes = b"x", *, size: int | None = None, manifest: list[object] | None = None) -> bytes:
    listed = {"path": path, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return archive(
        b"confide-backup-1\n",
        b'{"kind":"node","made":1.0,"version":"1"}\n',
        json.dumps({"path": path, "bytes": len(data) if size is None else size}).encode() + b"\n" + data,
        b'{"manifest":' + json.dumps([listed] if manifest is None else manifest).encode() + b"}\n",
    )


@pytest.mark.parametrize("passphrase", [None, PASSPHRASE], ids=["plain", "sealed"])
def test_what_is_written_comes_back(source, tmp_path, passphrase):
    path = written(source, tmp_path / "b", passphrase)
    assert path.stat().st_mode & 0o777 == 0o600
    into = tmp_path / "into"
    into.mkdir()
    contents = read_archive(path, "node", anything, into=into, passphrase=passphrase)
    found = {str(each.relative_to(into)): each.read_bytes() for each in into.rglob("*") if each.is_file()}
    assert found == FILES
    assert [each.path for each in contents.files] == list(FILES)
    assert {each.stat().st_mode & 0o077 for each in into.rglob("*")} == {0}
    assert (b"secret" in path.read_bytes()) is (passphrase is None)


def test_the_sealing_is_stream_with_chacha20_poly1305(source, tmp_path):
    """Opened by hand, from the format's description."""
    data = written(source, tmp_path / "b", PASSPHRASE).read_bytes()
    magic = b"confide-backup-1 sealed\n"
    salt, sealed = data[len(magic) :][:16], data[len(magic) + 16 :]
    key = ChaCha20Poly1305(Scrypt(salt=salt, length=32, n=2, r=8, p=1).derive(PASSPHRASE))
    parts = [sealed[at : at + 65536 + 16] for at in range(0, len(sealed), 65536 + 16)]
    opened = b"".join(
        key.decrypt(number.to_bytes(11, "big") + bytes([number == len(parts) - 1]), part, magic)
        for number, part in enumerate(parts)
    )
    assert data.startswith(magic)
    assert len(parts) == 4
    assert opened.startswith(b"confide-backup-1\n")
    assert FILES["outbox/a/1/x.bin"] in opened


@pytest.mark.parametrize("passphrase", [None, PASSPHRASE], ids=["plain", "sealed"])
def test_a_cut_at_any_place_is_one_sentence(source, tmp_path, passphrase):
    data = written(source, tmp_path / "b", passphrase).read_bytes()
    cut = tmp_path / "cut"
    for length in {*range(0, 400, 7), *range(len(data) - 300, len(data)), len(data) // 2, 24 + 16 + 3 * 65552}:
        cut.write_bytes(data[:length])
        with pytest.raises(BackupInvalid) as told:
            read_archive(cut, "node", anything, passphrase=passphrase)
        assert "\n" not in str(told.value)
    cut.write_bytes(data + b"\0")
    with pytest.raises(BackupInvalid):
        read_archive(cut, "node", anything, passphrase=passphrase)


@hypothesis.given(data=st.data())
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture], max_examples=150)
def test_any_changed_byte_is_refused(source, tmp_path, data):
    for passphrase in (None, PASSPHRASE):
        path = tmp_path / f"b-{passphrase is None}"
        whole = path.read_bytes() if path.exists() else written(source, path, passphrase).read_bytes()
        place = data.draw(st.integers(0, len(whole) - 1) | st.integers(0, 300))
        changed = bytearray(whole)
        changed[place] ^= 1 << data.draw(st.integers(0, 7))
        (tmp_path / "changed").write_bytes(changed)
        with pytest.raises(BackupInvalid):
            read_archive(tmp_path / "changed", "node", anything, passphrase=passphrase)


@hypothesis.given(st.binary(max_size=2000))
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_other_bytes_are_no_backup(tmp_path, data):
    for head in (b"", b"confide-backup-1\n", b'confide-backup-1\n{"kind":"node","made":1.0,"version":"1"}\n'):
        (tmp_path / "other").write_bytes(head + data)
        with pytest.raises(BackupInvalid):
            read_archive(tmp_path / "other", "node", anything)


def test_parts_that_are_moved_left_out_or_said_to_be_last_are_refused(source, tmp_path):
    data = written(source, tmp_path / "b", PASSPHRASE).read_bytes()
    start, size = 24 + 16, 65536 + 16
    first, second, rest = data[start:][:size], data[start + size :][:size], data[start + 2 * size :]
    for changed in (second + first + rest, first + rest, first + second, first + second + rest + second):
        (tmp_path / "changed").write_bytes(data[:start] + changed)
        with pytest.raises(BackupInvalid, match=r"it was cut short, or changed|passphrase is another one"):
            read_archive(tmp_path / "changed", "node", anything, passphrase=PASSPHRASE)


def test_another_passphrase_or_none_is_refused_and_neither_is_told(source, tmp_path):
    path = written(source, tmp_path / "b", PASSPHRASE)
    with pytest.raises(BackupInvalid, match="the passphrase is another one, or the file was changed") as told:
        read_archive(path, "node", anything, passphrase=b"another passphrase")
    assert "horse" not in str(told.value)
    assert "another passphrase" not in str(told.value)
    with pytest.raises(BackupInvalid, match="name its file, --passphrase-file"):
        read_archive(path, "node", anything)


def test_a_file_without_a_seal_is_refused_where_a_passphrase_is_named(source, tmp_path):
    """Whoever swaps a sealed backup cannot seal another one, but could leave the seal away."""
    path, into = written(source, tmp_path / "b"), tmp_path / "into"
    into.mkdir()
    with pytest.raises(BackupInvalid, match="is not sealed, though a passphrase is named"):
        read_archive(path, "node", anything, into=into, passphrase=PASSPHRASE)
    assert list(into.iterdir()) == []


@pytest.mark.parametrize("has_links", [True, False])
def test_a_file_that_goes_while_it_is_held_is_left_out_and_any_other_is_held(tmp_path, monkeypatch, has_links):
    if not has_links:

        def refuse(*_: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "here").write_bytes(b"x")
    hold(tmp_path / "here", tmp_path / "held" / "a" / "here")
    hold(tmp_path / "gone", tmp_path / "held" / "a" / "gone")
    assert {each.name: each.read_bytes() for each in (tmp_path / "held" / "a").iterdir()} == {"here": b"x"}
    with pytest.raises(BackupInvalid, match="here cannot be held for the backup"):
        hold(tmp_path / "here", tmp_path / "here" / "below")


@pytest.mark.parametrize(
    "path",
    ["../up", "/etc/passwd", "a/../../b", "a//b", "./a", ".hidden", "a/.restoring", "", "a\\b", "a\0b", "a\nb", "é",
     "a/" * 6 + "b", "x" * 200],
)  # fmt: skip
def test_a_path_that_leaves_the_home_or_is_none_of_ours_is_refused(tmp_path, path):
    (tmp_path / "b").write_bytes(forged(path))
    into = tmp_path / "deep" / "into"
    into.mkdir(parents=True)
    with pytest.raises(BackupInvalid):
        read_archive(tmp_path / "b", "node", anything, into=into)
    assert list(into.parent.rglob("*")) == [into]


def test_a_well_made_one_is_taken_and_only_what_its_kind_holds(tmp_path):
    (tmp_path / "b").write_bytes(forged("site.toml"))
    assert read_archive(tmp_path / "b", "node", anything).bytes == 1
    with pytest.raises(BackupInvalid, match="holds a file that no backup of a node holds"):
        read_archive(tmp_path / "b", "node", lambda name: name == "ca.crt")
    with pytest.raises(BackupInvalid, match="is the backup of a node, not of a coordinator"):
        read_archive(tmp_path / "b", "coordinator", anything)


def test_what_is_larger_than_its_manifest_says_or_not_in_it_is_refused(tmp_path):
    other = {"path": "site.toml", "bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    for data in (
        forged("site.toml", b"xx", manifest=[other]),
        forged("site.toml", size=10**12),
        forged("site.toml", size=-1),
        forged("site.toml", manifest=[]),
        forged("site.toml", manifest=[other, other]),
        forged("site.toml", b"y", manifest=[other]),
    ):
        (tmp_path / "b").write_bytes(data)
        with pytest.raises(BackupInvalid):
            read_archive(tmp_path / "b", "node", anything)


def test_no_file_twice_and_none_where_a_folder_is(tmp_path):
    one = b'{"path":"a","bytes":1}\nx'
    for second in (b'{"path":"a","bytes":1}\nx', b'{"path":"a/b","bytes":1}\nx'):
        (tmp_path / "b").write_bytes(
            archive(
                b"confide-backup-1\n", b'{"kind":"node","made":1.0,"version":"1"}\n', one, second, b'{"manifest":[]}\n'
            )
        )
        into = tmp_path / f"into-{len(second)}"
        into.mkdir()
        with pytest.raises(BackupInvalid):
            read_archive(tmp_path / "b", "node", anything, into=into)


def test_nothing_is_written_over_and_a_failure_leaves_nothing(source, tmp_path):
    path = written(source, tmp_path / "b")
    before = path.read_bytes()
    with pytest.raises(BackupInvalid, match="exists already"):
        written(source, path)
    with pytest.raises(BackupInvalid, match="cannot be used for the backup"):
        write_archive(tmp_path / "c", "node", [("gone", source / "gone")])
    with pytest.raises(BackupInvalid, match="No such file"):
        written(source, tmp_path / "nowhere" / "b")
    assert path.read_bytes() == before
    assert {each.name for each in tmp_path.iterdir()} == {"source", "b"}


@pytest.mark.parametrize("was_there", [True, False])
def test_a_new_home_that_fails_is_not_there(tmp_path, was_there):
    home = tmp_path / "home"
    if was_there:
        home.mkdir()
        (home / "lost+found").mkdir()

    def fail() -> None:
        with new_home(home) as making:
            (making / "keys").mkdir()
            (making / "keys" / "identity.key").write_bytes(b"k")
            (home / "moved").write_bytes(b"x")
            raise BackupInvalid("no")

    with pytest.raises(BackupInvalid, match="no"):
        fail()
    assert home.exists() is was_there
    assert not was_there or [each.name for each in home.iterdir()] == ["lost+found"]


def test_a_home_with_files_or_a_link_in_it_is_refused_and_left_as_it_is(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    for make in (lambda: (home / "x").write_bytes(b"1"), lambda: (home / ".restoring").symlink_to(tmp_path)):
        make()
        with pytest.raises(BackupInvalid), new_home(home):
            pass
        assert len(list(home.iterdir())) == 1
        next(home.iterdir()).unlink()


def test_copies_that_a_killed_backup_left_are_deleted_by_the_next(tmp_path):
    (tmp_path / ".backing-up-4194999").mkdir()
    with staging(tmp_path) as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        assert list(tmp_path.iterdir()) == [folder]
    assert list(tmp_path.iterdir()) == []


def test_a_passphrase_is_read_from_a_file_of_the_owner_alone(tmp_path):
    path = tmp_path / "p"
    with pytest.raises(BackupInvalid, match="is not there"):
        read_passphrase(path)
    path.write_bytes(PASSPHRASE + b"\n")
    path.chmod(0o644)
    with pytest.raises(BackupInvalid, match="can be read by others"):
        read_passphrase(path)
    path.chmod(0o600)
    assert read_passphrase(path) == PASSPHRASE
    path.write_bytes(b"short\n")
    with pytest.raises(BackupInvalid, match="holds 5 bytes") as told:
        read_passphrase(path)
    assert "short" not in str(told.value)
