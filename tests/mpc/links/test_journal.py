import contextlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.mpc.errors import ChecksExhausted, CommitmentBroken, JournalBroken, SetConflict, TotalConflict
from confide.mpc.links import line_file as journal_module
from confide.mpc.links.journal import MAX_TRIES, Binding, Journal, RoundId

ROUND = RoundId("study", "run", 3)
VECTOR = b"\5" * 32
SET, OTHER = Binding(b"\1" * 32, ("a", "b")), Binding(b"\2" * 32, ("a", "b", "ç"))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal"


@pytest.fixture
def reopen(path):
    opened = []

    def again():
        if opened:
            opened.pop().close()
        opened.append(Journal(path))
        return opened[-1]

    yield again
    if opened:
        opened.pop().close()


@pytest.mark.parametrize("reopened", [False, True])
def test_the_same_set_may_be_bound_again(reopen, reopened):
    journal = reopen()
    journal.bind(ROUND, SET)
    journal = reopen() if reopened else journal
    journal.bind(ROUND, SET)
    assert journal.bound(ROUND) == SET


@pytest.mark.parametrize("reopened", [False, True])
def test_another_set_is_refused_and_the_bound_one_named(reopen, reopened):
    journal = reopen()
    journal.bind(ROUND, OTHER)
    journal = reopen() if reopened else journal
    with pytest.raises(SetConflict) as caught:
        journal.bind(ROUND, SET)
    assert caught.value.bound == ("a", "b", "ç")


@pytest.mark.parametrize("reopened", [False, True])
def test_a_round_has_one_total(reopen, reopened):
    journal = reopen()
    journal.bind(ROUND, SET)
    journal.bind_total(ROUND, b"\3" * 32)
    journal = reopen() if reopened else journal
    journal.bind_total(ROUND, b"\3" * 32)
    with pytest.raises(TotalConflict):
        journal.bind_total(ROUND, b"\4" * 32)
    journal.bind_total(ROUND._replace(run="q"), b"\4" * 32)
    assert journal.bound(ROUND) == SET


@pytest.mark.parametrize("other", [ROUND._replace(study="t"), ROUND._replace(run="q"), ROUND._replace(round=4)])
def test_other_rounds_are_free(reopen, other):
    journal = reopen()
    journal.bind(ROUND, SET)
    assert journal.bound(other) is None
    journal.bind(other, OTHER)


def test_line_that_was_never_finished_is_dropped(reopen, path):
    reopen().bind(ROUND, SET)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:20])
    journal = reopen()
    assert path.read_bytes() == whole
    journal.bind(ROUND._replace(round=4), OTHER)
    assert reopen().bound(ROUND._replace(round=4)) == OTHER


@pytest.mark.parametrize("damage", [b"{}\n", b"\xff\n", b"[1]\n", b"\n"])
def test_damage_elsewhere_is_refused(reopen, path, damage):
    reopen().bind(ROUND, SET)
    path.write_bytes(damage + path.read_bytes())
    with pytest.raises(JournalBroken, match="line 1"):
        reopen()


WRITES = {
    "bindings": lambda journal, value: journal.bind(ROUND, SET if value else OTHER),
    "totals": lambda journal, value: journal.bind_total(ROUND, bytes([value]) * 32),
    "seeds": lambda journal, value: journal.tie_to_seeds({VECTOR: bytes([value]) * 32}),
    "sketches": lambda journal, value: journal.begin_checks({VECTOR: bytes([value]) * 32}),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_two_lines_that_contradict_are_refused(reopen, path, tmp_path, write):
    write(reopen(), 0)
    other = Journal(tmp_path / "other")
    write(other, 1)
    other.close()
    path.write_bytes(path.read_bytes() + (tmp_path / "other").read_bytes())
    with pytest.raises(JournalBroken, match=r"line 2 .* contradicts"):
        reopen()


@given(st.binary(max_size=200) | st.sampled_from([b'{"seeds":{"ab":"cd"}}', b'{"sketches":[]}', b'["seeds"]', b"7"]))
def test_any_line_is_taken_or_refused_with_words(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("journal") / "journal"
    path.write_bytes(data.replace(b"\n", b"") + b"\n")
    with contextlib.suppress(JournalBroken):
        Journal(path).close()


@pytest.mark.parametrize("reopened", [False, True])
def test_a_vector_is_tied_to_its_first_seed(reopen, reopened):
    journal = reopen()
    journal.tie_to_seeds({VECTOR: b"\1" * 32, bytes(32): b"\2" * 32})
    journal = reopen() if reopened else journal
    journal.tie_to_seeds({VECTOR: b"\1" * 32})
    with pytest.raises(CommitmentBroken):
        journal.tie_to_seeds({b"\7" * 32: b"\3" * 32, VECTOR: b"\3" * 32})
    journal.tie_to_seeds({b"\7" * 32: b"\4" * 32})  # nothing of the refused call was kept


def test_a_vector_is_tied_to_its_first_sketch_and_checked_eight_times_at_most(reopen):
    for tries in range(1, MAX_TRIES + 1):
        assert reopen().begin_checks({VECTOR: b"\1" * 32, bytes([100 + tries]) * 32: bytes(32)}) == tries
    with pytest.raises(CommitmentBroken):
        reopen().begin_checks({VECTOR: b"\2" * 32})
    with pytest.raises(ChecksExhausted):
        reopen().begin_checks({VECTOR: b"\1" * 32})
    assert reopen().begin_checks({b"\7" * 32: b"\1" * 32}) == 1


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_what_is_written_is_on_disk_before_the_call_returns(reopen, path, monkeypatch, write):
    journal, synced = reopen(), []
    monkeypatch.setattr(journal_module.os, "fsync", lambda fd: synced.append(os.fstat(fd).st_size))
    write(journal, 1)
    assert synced[-1] == path.stat().st_size > 0


def test_failed_write_binds_nothing_and_spoils_the_journal(reopen, monkeypatch):
    journal = reopen()
    with monkeypatch.context() as patch:
        patch.setattr(journal_module.os, "write", lambda fd, data: len(data) - 1)
        with pytest.raises(JournalBroken):
            journal.bind(ROUND, SET)
    with pytest.raises(JournalBroken):
        journal.bind(ROUND, SET)
    assert reopen().bound(ROUND) is None


def test_second_process_cannot_open_it(reopen, path, monkeypatch):
    reopen()
    monkeypatch.setattr(journal_module, "_LOCK_WAIT_S", 0.1)
    with pytest.raises(JournalBroken, match="another process"):
        Journal(path)


def test_missing_folder_is_an_error_of_ours(tmp_path):
    with pytest.raises(JournalBroken):
        Journal(tmp_path / "none" / "journal")


def test_a_line_nested_too_deeply_is_damage(path):
    path.write_bytes(b"[" * 100_000 + b"\n")
    with pytest.raises(JournalBroken, match=r"line 1 of the journal .* is damaged"):
        Journal(path)
