import errno
import hashlib
import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from confide.client_node.errors import FileDamaged, PolicyInvalid
from confide.client_node.login import login_name
from confide.client_node.policy import decision_log, decisions
from confide.privacy.ledger import chain

from ..conftest import key_of

HASH = "ab" * 32


def test_a_fresh_home_has_decided_nothing(tmp_path):
    assert decision_log.read(tmp_path) == ([], [])


def test_the_account_is_the_operating_system_s_whatever_the_environment_says(tmp_path, monkeypatch):
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "somebody-else")
    decisions.approve(tmp_path, HASH)
    ((entry,), _) = decision_log.read(tmp_path)
    assert entry.by == entry.login == login_name() != "somebody-else"


def test_the_decision_log_is_for_its_owner_alone_and_only_grows(tmp_path):
    decisions.approve(tmp_path, HASH)
    before = (tmp_path / decision_log.FILE).read_bytes()
    decisions.revoke(tmp_path, HASH)
    assert (tmp_path / decision_log.FILE).read_bytes().startswith(before)
    assert stat.S_IMODE((tmp_path / decision_log.FILE).stat().st_mode) == 0o600


def test_a_line_cut_by_a_crash_is_told_and_hides_no_other(tmp_path):
    decisions.approve(tmp_path, HASH)
    path = tmp_path / decision_log.FILE
    path.write_bytes(path.read_bytes() + b'{"at": "2026-')
    decisions.revoke(tmp_path, HASH)
    entries, unread = decision_log.read(tmp_path)
    assert ([entry.decision for entry in entries], unread) == (["approve", "revoke"], [2])


def test_what_cannot_be_written_down_is_not_decided(tmp_path):
    (tmp_path / decision_log.FILE).mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        decisions.approve(tmp_path, HASH)
    assert decisions.load_decisions(tmp_path).verdict(HASH) is None


def test_decisions_taken_at_once_are_all_written_down(tmp_path):
    hashes = [f"{i:064x}" for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda each: decisions.approve(tmp_path, each), hashes))
    entries, unread = decision_log.read(tmp_path)
    assert (sorted(entry.about for entry in entries), unread) == (hashes, [])


@pytest.mark.parametrize("name", ["", " ", "a\nb", "x" * 201])
def test_nobody_is_a_name_that_could_forge_a_line(tmp_path, name):
    with pytest.raises(PolicyInvalid, match="--by"):
        decisions.approve(tmp_path, HASH, by=name)
    assert decisions.load_decisions(tmp_path).verdict(HASH) is None


def decided(site, *kinds):
    """A site whose people have decided so, one after the other."""
    for kind in kinds:
        getattr(decisions, kind)(site.home, HASH)
    return site.home / decision_log.FILE


def test_the_decisions_of_a_node_with_keys_are_a_chain_that_it_signs(site):
    path = decided(site, "approve", "revoke", "approve")
    links = [chain.Entry.parse(json.loads(line)) for line in path.read_text().splitlines()]
    begin = chain.Head(-1, hashlib.sha256(b"confide decisions 1\n").hexdigest())
    head = chain.check_extension(begin, links, site.identity.identity_hex)
    assert decision_log.head(site.home) == head
    found = decision_log.verify(site.home)
    assert (found.entries, found.plain, found.head, found.problems, found.unread) == (3, 0, head, (), ())
    entries, _ = decision_log.read(site.home)
    assert [entry.decision for entry in entries] == ["approve", "revoke", "approve"]
    assert all(entry.at == link.time for entry, link in zip(entries, links, strict=True))


def test_a_chain_begins_after_plain_lines_and_covers_them(site, tmp_path):
    (tmp_path / "bare").mkdir()
    decisions.approve(tmp_path / "bare", HASH)  # there are no keys
    plain = (tmp_path / "bare" / decision_log.FILE).read_bytes()
    path = site.home / decision_log.FILE
    path.write_bytes(plain)
    decided(site, "revoke")
    found = decision_log.verify(site.home)
    assert (found.entries, found.plain, found.problems) == (1, 1, ())
    assert [entry.decision for entry in decision_log.read(site.home)[0]] == ["approve", "revoke"]
    path.write_bytes(path.read_bytes().replace(b'"approve"', b'"revoke"', 1))
    assert "does not follow entry -1" in decision_log.verify(site.home).problems[0]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda lines: [lines[0].replace(b'"approve"', b'"revoke"'), *lines[1:]], "entry 0 was changed"),
        (lambda lines: [lines[0], *lines[2:]], "entry 1 is missing"),
        (lambda lines: [lines[0], lines[2], lines[1]], "entry 1 is missing or out of order"),
        (lambda lines: lines[:-1], "lines are missing at the end"),
        (lambda lines: [*lines[:2], lines[2].replace(b'"hash": "', b'"hash": "f')], "lines are missing at the end"),
    ],
)
def test_a_line_that_was_changed_left_out_or_moved_is_found(site, change, problem):
    path = decided(site, "approve", "revoke", "approve")
    path.write_bytes(b"\n".join(change(path.read_bytes().splitlines())) + b"\n")
    assert any(problem in each for each in decision_log.verify(site.home).problems)


def test_a_log_that_was_cut_stays_so_whatever_is_decided_afterwards(site):
    path = decided(site, "approve", "revoke")
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    decided(site, "approve", "revoke")
    assert any("lines are missing at the end" in each for each in decision_log.verify(site.home).problems)
    (site.home / decision_log.HEAD_FILE).write_bytes(b"{")
    decided(site, "revoke")
    with pytest.raises(FileDamaged, match="newest decision of this node's people"):
        decision_log.verify(site.home)


def test_a_plain_line_within_the_chain_is_a_decision_that_nobody_signed(site, tmp_path):
    path = decided(site, "approve")
    (tmp_path / "bare").mkdir()
    decisions.approve(tmp_path / "bare", "cd" * 32)
    path.write_bytes(path.read_bytes() + (tmp_path / "bare" / decision_log.FILE).read_bytes())
    assert decision_log.verify(site.home).problems == ("line 2 is a decision outside the chain",)


def test_a_chain_signed_by_another_key_is_not_the_node_s(site, tmp_path):
    decided(site, "approve")
    link = chain.extend(decision_log.head(site.home), key_of("other"), chain.now(), "decision", {})
    with (site.home / decision_log.FILE).open("a") as out:
        out.write(json.dumps(link.model_dump(mode="json")) + "\n")
    assert "entry 1 is not signed by the ledger's key" in decision_log.verify(site.home).problems[0]


def test_a_crash_between_line_and_head_or_within_a_line_breaks_no_chain(site):
    path = decided(site, "approve")
    kept = (site.home / decision_log.HEAD_FILE).read_bytes()
    decided(site, "revoke")
    (site.home / decision_log.HEAD_FILE).write_bytes(kept)
    assert decision_log.verify(site.home).problems == ()
    path.write_bytes(path.read_bytes() + b'{"seq": 2, "ti')
    decided(site, "approve")
    found = decision_log.verify(site.home)
    assert (found.entries, found.problems, found.unread) == (3, (), (3,))


def test_a_study_is_revoked_though_the_keys_are_damaged(site):
    decided(site, "approve")
    (site.home / "keys" / "identity.key").write_bytes(b"no key")
    decided(site, "revoke")
    assert decisions.load_decisions(site.home).verdict(HASH) == "revoked"


def test_on_a_disk_that_becomes_full_no_half_line_counts_and_the_chain_stays_whole(site, monkeypatch):
    decided(site, "approve")
    before = (site.home / decision_log.FILE).read_bytes()
    write = os.write

    def room_for_a_part(descriptor, data):
        if len(data) <= 100:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[:100])

    monkeypatch.setattr(os, "write", room_for_a_part)
    with pytest.raises(OSError, match=r"No space left on device.*decisions\.jsonl"):
        decided(site, "revoke")
    monkeypatch.undo()
    assert (site.home / decision_log.FILE).read_bytes() == before
    decided(site, "revoke")
    assert decision_log.verify(site.home).problems == ()
