"""The coordinator's signing key and its successors, cut off after every write."""

import json
import os
import shutil
import threading

import pytest

from confide.client_node import files, passphrase, secret_files
from confide.coordinator.errors import Conflict, StateDamaged
from confide.coordinator.federation import signing_keys
from confide.coordinator.federation.signing_keys import SigningKeys
from confide.privacy.ledger.succession import keys_of


def nobody(old, new):
    """Writes no audit log."""


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "home" / "pki"
    made.mkdir(parents=True)
    SigningKeys.create(made)
    return made


def test_each_key_follows_the_one_before_and_another_process_sees_it_at_once(folder):
    keys, other = SigningKeys(folder), SigningKeys(folder)
    first = keys.now.public
    assert (keys.now.all, keys.now.successions, keys.is_cut_off) == ((first,), (), False)
    noted = []
    stated = keys.rotate(lambda *told: noted.append(told))
    assert noted == [(first, stated.new)]
    assert (stated.old, stated.new, stated.problem()) == (first, keys.now.public, "")
    again = keys.rotate(nobody)
    assert other.now.all == keys.now.all == SigningKeys(folder).now.all == (first, stated.new, again.new)
    assert other.now.public == again.new
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == [
        "signing.key", "successions.json",
    ]  # fmt: skip
    assert (folder / "signing.key").stat().st_mode & 0o077 == 0


def test_a_second_create_changes_nothing(folder):
    before = SigningKeys(folder).now.public
    assert SigningKeys.create(folder).now.public == before


class Cut(Exception):
    pass


@pytest.mark.parametrize("after", range(6))
def test_a_rotation_that_was_cut_off_anywhere_is_completed_and_makes_one_key(folder, monkeypatch, after):
    """After each of its writes the process ends; whoever comes next finds the old key or the new one, whole."""
    first, done = SigningKeys(folder).now.public, []

    def counted(real):
        def write(*args, **kwargs):
            if len(done) == after:
                raise Cut
            real(*args, **kwargs)
            done.append(args)

        return write

    noted = []
    with monkeypatch.context() as patched:
        for name in ("write_secret", "write_private", "move_durably"):
            patched.setattr(signing_keys, name, counted(getattr(signing_keys, name)))
        if after < 5:
            with pytest.raises(Cut):
                SigningKeys(folder).rotate(counted(lambda *told: noted.append(told)))
        else:
            SigningKeys(folder).rotate(counted(lambda *told: noted.append(told)))
    now = SigningKeys(folder)
    if after < 4:
        assert now.now.all == (first,)
        assert now.is_cut_off == (after > 0)
        now.rotate(lambda *told: noted.append(told))
    else:
        assert not now.is_cut_off
    assert now.now.all == (first, now.now.public)
    assert {new for _, new in noted} == {now.now.public}  # one key, however often it was noted
    assert SigningKeys(folder).now.all == now.now.all


def test_a_rotation_that_is_under_way_is_not_taken_for_one_that_was_cut_off(folder):
    other, seen = SigningKeys(folder), []
    asking = threading.Thread(target=lambda: seen.append(other.is_cut_off))

    def meanwhile(old, new):
        asking.start()
        asking.join(0.5)
        assert asking.is_alive()

    SigningKeys(folder).rotate(meanwhile)
    asking.join()
    assert seen == [False]


def test_who_holds_the_key_finds_a_rotation_completed_that_was_killed_after_it_was_read(folder, monkeypatch):
    keys = SigningKeys(folder)

    def cut(*_):
        raise Cut

    with monkeypatch.context() as patched:
        patched.setattr(signing_keys, "move_durably", cut)
        with pytest.raises(Cut):
            SigningKeys(folder).rotate(nobody)
    with keys.held():
        assert len(keys.now.all) == 2  # and does not wait for the lock that it holds


def test_the_statement_of_a_rotation_that_was_cut_off_is_the_one_that_holds(folder, monkeypatch):
    times = iter(["2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z"])
    monkeypatch.setattr(signing_keys.chain, "now", lambda: next(times))

    def cut(old, new):
        raise Cut

    with pytest.raises(Cut):
        SigningKeys(folder).rotate(cut)
    assert SigningKeys(folder).rotate(nobody).time == "2026-01-01T00:00:00Z"


def test_a_key_that_is_damaged_while_a_server_runs_changes_nothing_and_is_told_once(folder, caplog):
    keys = SigningKeys(folder)
    before = keys.now.public
    shutil.copy(folder / "signing.key", folder / "kept")
    (folder / "signing.key").write_text("none")
    assert [keys.now.public for _ in range(3)] == [before] * 3
    assert caplog.text.count("signs with the key that it has read before") == 1
    with pytest.raises(StateDamaged, match=r"signing\.key is no key"):
        SigningKeys(folder)
    os.replace(folder / "kept", folder / "signing.key")
    assert keys.rotate(nobody).old == before


def test_a_file_that_could_not_be_read_for_a_moment_is_read_again(folder, monkeypatch, caplog):
    keys, real = SigningKeys(folder), signing_keys.pki_files.signing_key

    def failing(*_):
        raise StateDamaged("too many open files")

    new = SigningKeys(folder).rotate(nobody).new
    monkeypatch.setattr(signing_keys.pki_files, "signing_key", failing)
    assert keys.now.public != new
    monkeypatch.setattr(signing_keys.pki_files, "signing_key", real)
    assert keys.now.public != new  # not at every signature
    keys._retry = 0.0
    assert keys.now.public == new


def test_a_key_that_does_not_fit_the_successions_is_refused(folder, tmp_path):
    keys = SigningKeys(folder)
    shutil.copy(folder / "signing.key", tmp_path / "older")
    keys.rotate(nobody)
    shutil.copy(tmp_path / "older", folder / "signing.key")
    with pytest.raises(StateDamaged, match=r"successions.json does not lead to the key in signing.key.*one backup"):
        SigningKeys(folder)


@pytest.mark.parametrize("damage", ["half", "order", "extra"])
def test_damaged_successions_are_told(folder, damage):
    keys = SigningKeys(folder)
    keys.rotate(nobody)
    keys.rotate(nobody)
    path = folder / "successions.json"
    found = json.loads(path.read_text())
    if damage == "order":
        found["successions"].reverse()
    elif damage == "extra":
        found["more"] = 1
    path.write_text(json.dumps(found)[: None if damage != "half" else 100])
    with pytest.raises(StateDamaged, match=r"successions\.json"):
        SigningKeys(folder)


def test_there_is_an_end_of_keys(folder, monkeypatch):
    monkeypatch.setattr(signing_keys, "MOST_OF_COORDINATOR", 2)
    keys = SigningKeys(folder)
    keys.rotate(nobody)
    keys.rotate(nobody)
    with pytest.raises(Conflict, match="may have no more"):
        keys.rotate(nobody)
    assert len(keys_of(keys.now.successions)) == 3


def test_the_key_of_a_sealed_home_stays_sealed(folder, monkeypatch):
    monkeypatch.setenv(passphrase.PASSPHRASE.variable, str(folder / "passphrase"))
    files.write_private(folder / "passphrase", b"correct horse battery\n")
    secret_files.seal(folder.parent, "coordinator", b"correct horse battery")
    keys = SigningKeys(folder)
    first = keys.now.public
    keys.rotate(nobody)
    assert b"PRIVATE" not in (folder / "signing.key").read_bytes()
    assert SigningKeys(folder).now.all == (first, keys.now.public)
