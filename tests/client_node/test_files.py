import os
import stat
from pathlib import Path

import pytest

from confide.client_node.files import read_private, write_private


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
