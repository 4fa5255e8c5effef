"""States on a site's disk: found again, never read when damaged, and gone when they should be."""

import stat
from pathlib import Path

import pytest

from confide.client_node.data import kept_files
from confide.client_node.data.kept_files import FOLDER, KEY_FILE, StatesOnDisk
from confide.client_node.errors import FileDamaged

STATES = {b"a" * 16: b"x" * 100, b"b" * 16: b"y" * 50, b"c" * 16: b""}


def files_of(home: Path) -> list[Path]:
    return sorted(file for file in (home / FOLDER).rglob("*") if file.is_file())


@pytest.fixture
def store(tmp_path: Path) -> StatesOnDisk:
    return filled(tmp_path, "study")


def filled(home: Path, study: str) -> StatesOnDisk:
    found = StatesOnDisk(home, study)
    found.begin()
    assert found.add(STATES)
    return found


def test_states_are_found_again_by_another_process(store, tmp_path):
    again = StatesOnDisk(tmp_path, "study")
    assert {*again.marks()} == {*STATES}
    assert {mark: again.read(mark) for mark in STATES} == STATES
    assert again.read(b"d" * 16) is None


def test_files_and_key_are_their_owner_s_alone_and_names_tell_nothing(store, tmp_path):
    (file,) = files_of(tmp_path)
    for path in (file, tmp_path / KEY_FILE):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / FOLDER).stat().st_mode) == 0o700
    assert "study" not in str(file.relative_to(tmp_path))
    assert {folder.name for folder in (tmp_path / FOLDER).iterdir()} != {
        folder.name for folder in _other_home(tmp_path / "other").iterdir()
    }  # the same study elsewhere


def _other_home(home: Path) -> Path:
    filled(home, "study")
    return home / FOLDER


@pytest.mark.parametrize("place", [0, 25, 60, 200, -1], ids=["format", "count", "mark", "states", "last checksum"])
def test_a_file_with_one_bit_changed_is_given_up(store, tmp_path, place):
    (file,) = files_of(tmp_path)
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)
    assert not StatesOnDisk(tmp_path, "study").marks()
    assert not files_of(tmp_path)


@pytest.mark.parametrize("size", [0, 1, 30, 100, 350])
def test_a_file_that_was_cut_short_is_given_up(store, tmp_path, size):
    (file,) = files_of(tmp_path)
    file.write_bytes(file.read_bytes()[:size])
    assert not StatesOnDisk(tmp_path, "study").marks()


def test_bytes_behind_the_last_states_are_no_part_of_the_format(store, tmp_path):
    (file,) = files_of(tmp_path)
    file.write_bytes(file.read_bytes() + b"\0")
    assert not StatesOnDisk(tmp_path, "study").marks()


def test_states_under_another_s_mark_are_not_read(store, tmp_path):
    places, store._places[b"b" * 16] = store._places, store._places[b"a" * 16]
    assert store.read(b"b" * 16) is None
    assert places is store._places


def test_states_that_are_damaged_later_are_not_read(store, tmp_path):
    (file,) = files_of(tmp_path)
    data = bytearray(file.read_bytes())
    data[data.index(b"y" * 50) + 25] ^= 1  # not the first: a checksum before it may end in such a byte
    file.write_bytes(data)
    assert store.read(b"b" * 16) is None
    assert store.read(b"a" * 16) == b"x" * 100
    file.unlink()
    assert store.read(b"a" * 16) is None
    assert not store.marks()


def test_a_file_with_a_record_that_left_the_table_is_deleted(store, tmp_path):
    store.add({b"e" * 16: b"12"})
    store.retain({*STATES, b"e" * 16})
    assert len(files_of(tmp_path)) == 2
    store.retain({b"a" * 16, b"b" * 16, b"e" * 16})
    assert {*store.marks()} == {b"e" * 16}
    assert len(files_of(tmp_path)) == 1


def test_a_study_is_forgotten_without_the_others(store, tmp_path):
    filled(tmp_path, "other")
    assert kept_files.forget(tmp_path, "study") > 150
    assert kept_files.forget(tmp_path, "study") == 0
    assert not StatesOnDisk(tmp_path, "study").marks()
    assert StatesOnDisk(tmp_path, "other").marks()
    kept_files.keep_only(tmp_path, {"third"})
    assert not files_of(tmp_path)


@pytest.mark.parametrize("damage", [
    lambda path: path.unlink(), lambda path: path.write_bytes(b"short"), lambda path: path.write_bytes(bytes(33)),
    lambda path: path.write_bytes(b""), lambda path: path.chmod(0o644),
])  # fmt: skip
def test_without_a_key_of_its_own_what_was_kept_is_deleted_and_begins_anew(store, tmp_path, damage):
    before = (tmp_path / KEY_FILE).read_bytes()
    damage(tmp_path / KEY_FILE)
    assert not StatesOnDisk(tmp_path, "study").marks()
    assert not files_of(tmp_path)
    after = (tmp_path / KEY_FILE).read_bytes()
    assert len(after) == 32
    assert after != before
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600


def test_nothing_is_added_to_what_another_process_has_deleted(store, tmp_path):
    assert kept_files.forget(tmp_path, "study") > 150
    assert not store.add({b"e" * 16: b"12"})
    assert not files_of(tmp_path)
    store.begin()
    assert store.add({b"e" * 16: b"12"})
    assert {*store.marks()} == {b"e" * 16}


def test_a_deletion_that_fails_is_told_and_not_counted(store, tmp_path, caplog, monkeypatch):
    def refused(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(1, "Operation not permitted", str(path))

    monkeypatch.setattr(Path, "unlink", refused)
    (file,) = files_of(tmp_path)
    with pytest.raises(FileDamaged, match="could not be deleted whole"):
        kept_files.forget(tmp_path, "study")
    assert str(file) in caplog.text
    caplog.clear()
    kept_files.keep_only(tmp_path, {"third"})
    assert str(file) in caplog.text


def test_links_are_deleted_and_not_what_they_lead_to(store, tmp_path):
    other = tmp_path / "other-disk"
    (tmp_path / FOLDER).rename(other)
    (tmp_path / FOLDER).symlink_to(other)
    (folder,) = other.iterdir()
    (other / "photographs").mkdir()
    (tmp_path / "mine").write_bytes(b"1")
    (folder / "link").symlink_to(tmp_path / "mine")
    (tmp_path / KEY_FILE).unlink()
    assert not StatesOnDisk(tmp_path, "study").marks()
    assert [place.name for place in other.iterdir()] == ["photographs"]
    assert (tmp_path / "mine").exists()
