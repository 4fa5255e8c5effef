import errno
import os
import stat
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from confide.client_node.errors import FileDamaged, NotEnrolled
from confide.client_node.files import is_full, read_json, read_own, read_private, write_private

NUMBERS = TypeAdapter(dict[str, int])


class PowerCut(BaseException):
    pass


@pytest.fixture
def open_umask():
    """The most generous umask: whatever is private then is private by our own doing."""
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def cut(*_: object) -> None:
    raise PowerCut


@pytest.mark.parametrize("data", [b"", b"key", bytes(range(256)) * 5000], ids=["empty", "short", "over a page"])
def test_what_was_written_is_read(tmp_path, data):
    write_private(tmp_path / "file", data)
    assert read_private(tmp_path / "file") == data


@pytest.mark.usefixtures("open_umask")
def test_a_file_and_its_new_folder_are_their_owners_alone(tmp_path):
    write_private(tmp_path / "folder" / "file", b"key")
    assert mode(tmp_path / "folder" / "file") == 0o600
    assert mode(tmp_path / "folder") == 0o700


def test_a_file_that_others_could_read_is_private_once_written_anew(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "file").chmod(0o644)
    write_private(tmp_path / "file", b"new")
    assert mode(tmp_path / "file") == 0o600


@pytest.mark.parametrize("step", ["fsync", "open"])
@pytest.mark.parametrize("before", [b"old", None], ids=["an old file", "no file"])
def test_a_file_cut_off_while_it_is_written_is_as_before(tmp_path, monkeypatch, step, before):
    if before is not None:
        write_private(tmp_path / "file", before)
    with monkeypatch.context() as patched:
        patched.setattr(os, step, cut)
        with pytest.raises(PowerCut):
            write_private(tmp_path / "file", b"new")
    assert (read_private(tmp_path / "file") if (tmp_path / "file").exists() else None) == before


def test_a_file_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    seen = []
    real = os.fsync

    def note(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        seen.append(("folder" if is_folder else "file", (tmp_path / "file").exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    write_private(tmp_path / "file", b"key")
    assert seen == [("file", False), ("folder", True)]


def test_what_a_crash_left_behind_does_not_stop_the_next_write(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", cut)
        with pytest.raises(PowerCut):
            write_private(tmp_path / "file", b"half")
    write_private(tmp_path / "file", b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert read_private(tmp_path / "file") == b"whole"


def test_a_link_in_the_way_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "elsewhere").write_bytes(b"untouched")
    (tmp_path / "file").symlink_to(tmp_path / "elsewhere")
    write_private(tmp_path / "file", b"key")
    assert (tmp_path / "elsewhere").read_bytes() == b"untouched"
    assert not (tmp_path / "file").is_symlink()


def test_at_most_max_bytes_are_read(tmp_path):
    write_private(tmp_path / "file", b"0123456789")
    assert read_private(tmp_path / "file", max_bytes=4) == b"0123"


def test_a_state_file_is_read_and_a_missing_one_is_none(tmp_path):
    write_private(tmp_path / "file", b'{"a": 1}')
    assert read_json(tmp_path / "file", NUMBERS, remedy="Delete it") == {"a": 1}
    assert read_json(tmp_path / "none", NUMBERS, remedy="Delete it") is None


DAMAGED = {
    "empty": (b"", "is empty"),
    "cut": (b'{"a": ', "is not JSON: it was cut short or changed"),
    "no text": (b'{"\xff": 1}', "is not JSON"),
    "another type": (b"[1]", "does not hold what belongs there: Input should be an object"),
    "a wrong value": (
        b'{"secret": "hunter2"}',
        r"does not hold what belongs there \(secret\): Input should be a valid int",
    ),
    "too long": (b'{"a": 1}' + b" " * 100, "has more than 64 bytes"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_state_file_is_named_with_what_to_do_and_nothing_of_it_is_shown(tmp_path, case):
    data, problem = DAMAGED[case]
    write_private(tmp_path / "file", data)
    with pytest.raises(NotEnrolled, match=problem) as caught:
        read_json(tmp_path / "file", NUMBERS, remedy="Enrol anew", error=NotEnrolled, max_bytes=64)
    assert str(caught.value).startswith(f"{tmp_path / 'file'} ")
    assert str(caught.value).endswith(". Enrol anew")
    assert "hunter2" not in str(caught.value)


def test_a_folder_in_the_place_of_a_state_file_is_named(tmp_path):
    with pytest.raises(FileDamaged, match=f"{tmp_path} is a folder, where a file belongs. Move it"):
        read_own(tmp_path, remedy="Move it")


def test_a_secret_that_others_can_read_is_refused(tmp_path):
    write_private(tmp_path / "key", b"key")
    assert read_own(tmp_path / "key", remedy="", is_secret=True) == b"key"
    (tmp_path / "key").chmod(0o604)
    with pytest.raises(FileDamaged, match=f"chmod 600 {tmp_path / 'key'}"):
        read_own(tmp_path / "key", remedy="", is_secret=True)


def test_a_full_disk_names_the_file_keeps_the_old_one_and_leaves_nothing_beside_it(tmp_path, monkeypatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_private(tmp_path / "file", b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path / 'file'}'") as caught:
        write_private(tmp_path / "file", b"new")
    assert is_full(caught.value)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]
