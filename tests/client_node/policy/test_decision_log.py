import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from confide.client_node.errors import PolicyInvalid
from confide.client_node.login import login_name
from confide.client_node.policy import decision_log, decisions

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
