import contextlib
import os
import resource
import shutil
import socket
import threading
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.client_node.data.named_files import MOST_BYTES, read_below
from confide.models.records.cells import file_names

SECRET = b"zq7secretzq7"


@pytest.fixture
def folder(tmp_path):
    """The allowed one; a secret lies beside it."""
    found = tmp_path / "pictures"
    (found / "a" / "b").mkdir(parents=True)
    (found / "one.png").write_bytes(b"one")
    (found / "a" / "two.png").write_bytes(b"two")
    (found / "a" / "b" / "three.png").write_bytes(b"three")
    (tmp_path / "secret.png").write_bytes(SECRET)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret.png").write_bytes(SECRET)
    return found


def is_name(text):
    return not file_names(pa.array([text], pa.string())).misfit[0]


def test_files_are_read_in_the_folder_and_below(folder):
    assert read_below(folder, "one.png") == b"one"
    assert read_below(folder, "a/two.png") == b"two"
    assert read_below(folder, "a/b/three.png") == b"three"


def test_an_empty_file_is_one(folder):
    (folder / "empty").touch()
    assert read_below(folder, "empty") == b""


@pytest.mark.parametrize("name", ["none.png", "a/none.png", "none/one.png", "one.png/two.png", "a", "a/b", "ONE.PNG"])
def test_what_is_no_file_is_none(folder, name):
    assert read_below(folder, name) is None


def test_a_folder_that_is_none_holds_none(folder):
    assert read_below(folder / "none", "one.png") is None
    assert read_below(folder / "one.png", "one.png") is None
    shutil.rmtree(folder)
    assert read_below(folder, "one.png") is None


@pytest.mark.parametrize("target", ["../secret.png", "one.png", "a/two.png", "/etc/passwd", "none"])
def test_a_link_is_no_file_wherever_it_leads(folder, target):
    (folder / "link.png").symlink_to(target)
    assert read_below(folder, "link.png") is None


@pytest.mark.parametrize("target", ["..", "../elsewhere", "a", "/", "."])
def test_a_way_through_a_link_leads_nowhere(folder, target):
    (folder / "link").symlink_to(target)
    (folder / "a" / "link").symlink_to(folder / target)
    for name in ("secret.png", "two.png", "one.png", "etc/passwd"):
        assert read_below(folder, f"link/{name}") is None
        assert read_below(folder, f"a/link/{name}") is None


def test_the_folder_itself_may_be_a_link_of_the_site(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    assert read_below(tmp_path / "link", "a/two.png") == b"two"


LEADING_AWAY = [
    "..", "../secret.png", "a/../one.png", "a/../../secret.png", "./one.png", "a/./two.png", "/etc/passwd", "//etc",
    "a//two.png", "a/", "/", ".hidden", "a/.hidden", "-rf", "a/-rf", "~", "~root", "a\\two.png", "..\\secret.png",
    "C:\\one.png", "C:one.png", "one.png\0", "one\0.png", "one.png\n", "\none.png", "a/two.png\n", "one .png", "ä.png",
    "one.png/..", "$HOME", "%2e%2e/secret.png", "one.png:stream", "*", "a" * 101, "/".join("a" * 9), "\u2024\u2024/a",
    "\uff0e\uff0e/secret.png", "a\u2215b", "",
]  # fmt: skip


@pytest.mark.parametrize("name", LEADING_AWAY)
def test_names_that_could_lead_away_are_none(name):
    assert not is_name(name)


@pytest.mark.parametrize(
    "name", ["one.png", "a/two.png", "A_1-b.c.png", "_", "0", "a..b", "a" * 100, "/".join("a" * 8), "a./b.", "CON"]
)
def test_plain_names_are_names(name):
    assert is_name(name)


@pytest.mark.parametrize("name", [*LEADING_AWAY, "\udcff"])
def test_names_that_could_lead_away_lead_to_no_file_even_unchecked(folder, name, monkeypatch):
    monkeypatch.chdir(folder)
    assert read_below(folder, name) is None


@given(st.text(st.sampled_from("ab./\\-_~ \n\0\t%:*"), max_size=12))
def test_every_name_stays_below_the_folder(name):
    if is_name(name):
        joined = os.path.normpath(os.path.join("/folder", name))
        assert joined.startswith("/folder/")
        assert joined == f"/folder/{name}"
        assert not any(part.startswith((".", "-", "~")) for part in name.split("/"))


def test_a_missing_name_is_missing_and_no_name():
    found = file_names(pa.array(["", "a.png", "none"], pa.string()))
    assert found.missing.tolist() == [True, False, False]
    assert found.misfit.tolist() == [True, False, False]
    assert found.values.tolist() == ["", "a.png", "none"]


def test_a_pipe_is_no_file_and_nobody_waits_for_it(folder):
    os.mkfifo(folder / "pipe.png")
    found = ["waiting"]
    reader = threading.Thread(target=lambda: found.append(read_below(folder, "pipe.png")), daemon=True)
    reader.start()
    reader.join(timeout=5)
    assert found == ["waiting", None]


def test_a_pipe_in_the_way_is_no_folder(folder):
    os.mkfifo(folder / "pipe")
    assert read_below(folder, "pipe/one.png") is None


def test_a_socket_is_no_file(folder, monkeypatch):
    monkeypatch.chdir(folder)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.png")
        assert read_below(folder, "socket.png") is None


def test_a_device_is_no_file():
    assert read_below(Path("/dev"), "zero") is None
    assert read_below(Path("/dev"), "null") is None


@pytest.mark.parametrize(("more", "is_read"), [(0, True), (1, False), (2**40, False)])
def test_a_file_has_a_most_of_bytes_and_no_more_are_read(folder, more, is_read):
    with (folder / "large.png").open("wb") as file:
        file.truncate(MOST_BYTES + more)  # of holes, which take no place
    found = read_below(folder, "large.png")
    assert (found is not None and len(found) == MOST_BYTES) if is_read else found is None


def test_nothing_is_left_open(folder):
    (folder / "link").symlink_to("..")
    os.mkfifo(folder / "pipe")
    with (folder / "large").open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    for name in ("one.png", "a/b/three.png", "a/none", "none/a", "link/secret.png", "pipe", "a", "large", "a/b"):
        read_below(folder, name)
    left = []
    for each in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            left.append(os.readlink(f"/proc/self/fd/{each}"))
    assert left
    assert [path for path in left if path.startswith(str(folder.resolve()))] == []


def test_a_process_that_may_open_no_more_files_reads_none(folder):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 2, hard))
    held = []
    try:
        try:
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
        assert read_below(folder, "a/b/three.png") is None
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert read_below(folder, "a/b/three.png") == b"three"
