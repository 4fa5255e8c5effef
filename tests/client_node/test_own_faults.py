"""A full disk and unreadable files at a node: what its log says, and what the coordinator is told."""

import errno
import os
from dataclasses import replace

import pytest

from confide.client_node.errors import DiskFull, MessageInvalid, NotEnrolled, SiteNotReady
from confide.client_node.own_faults import told_as_refusals
from confide.mpc.errors import JournalBroken, PartyLost
from confide.privacy.errors import LedgerBroken, LedgerUnavailable

from .test_node import make_desk, prepare


def test_a_ledger_on_a_full_disk_is_said_in_the_log_and_the_run_can_wait(site, caplog):
    desk = make_desk(site)
    prepare(desk)
    with desk.ledger._store.read() as connection:  # SQLite takes no further page: the error is its own, as on a disk
        connection.exec_driver_sql("PRAGMA max_page_count = 1")
    budget = desk.ledger.budget("patients", "patient")

    def fill() -> None:
        for epsilon in range(11, 99):
            desk.ledger.set_budget(replace(budget, epsilon=float(epsilon)))

    with pytest.raises(LedgerUnavailable, match=r"ledger.db cannot be used: database or disk is full"):
        fill()
    with pytest.raises(DiskFull, match="no room on this node's disk"):
        desk.step()
    assert f"the disk of {site.home} is full; make room" in caplog.text
    assert "database or disk is full" in caplog.text
    assert not (site.home / "outbox").exists()


def test_a_full_disk_anywhere_else_can_wait_too(tmp_path, caplog):
    with pytest.raises(DiskFull), told_as_refusals(tmp_path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "holds.json"))
    assert "holds.json" in caplog.text


@pytest.mark.parametrize("err", [LedgerBroken("entry 3: changed"), NotEnrolled("enrolment.json is empty")])
def test_damage_is_logged_whole_and_told_by_one_name(tmp_path, caplog, err):
    with pytest.raises(SiteNotReady, match="its log says which") as caught, told_as_refusals(tmp_path):
        raise err
    assert caught.value.public
    assert str(err) in caplog.text
    assert str(err) not in str(caught.value)


def test_a_file_of_this_home_that_cannot_be_read_is_named_in_the_log_alone(tmp_path, caplog):
    with pytest.raises(SiteNotReady) as caught, told_as_refusals(tmp_path):
        (tmp_path / "outbox").read_bytes()
    assert "outbox cannot be used: No such file or directory" in caplog.text
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    "err",
    [PartyLost("silent"), MessageInvalid("no"), OSError(errno.EACCES, "no", "/elsewhere"), ConnectionError("reset")],
)
def test_other_errors_pass_as_they_are(tmp_path, caplog, err):
    with pytest.raises(type(err)) as caught, told_as_refusals(tmp_path):
        raise err
    assert caught.value is err
    assert caplog.text == ""


@pytest.mark.parametrize("err", [JournalBroken("another process uses the journal"), LedgerUnavailable("locked")])
def test_what_may_be_over_soon_keeps_its_name_and_is_logged(tmp_path, caplog, err):
    with pytest.raises(type(err)), told_as_refusals(tmp_path):
        raise err
    assert str(err) in caplog.text
