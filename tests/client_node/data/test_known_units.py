"""A budget belongs to people: the same ones under another name, another word or other ids have no second one."""

import errno
import hashlib
import hmac
import os
import re
import shutil
import sqlite3
import stat
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from confide.client_node.approval.assessment import assess
from confide.client_node.approval.table_check import check_table
from confide.client_node.data import known_units as known_units_module
from confide.client_node.data.known_units import KnownUnits
from confide.client_node.errors import ChargeRefused, DiskFull, FileDamaged, SiteNotReady, UnitsKnown
from confide.client_node.policy.site_policy import load_policy
from confide.client_node.training.public_time import PublicTimes
from confide.client_node.wire.messages import Prepare
from confide.privacy.errors import LedgerUnavailable

from ..conftest import PATIENTS_CSV, Site
from ..test_node import Desk, make_desk, new_node, prepare

CONSTANT = "the site cannot charge its table as it stands; its log says why"
RENAMED = ('name = "patients"', 'name = "patients-2"')
HEADER, *ROWS = PATIENTS_CSV.splitlines()


@pytest.fixture
def desk(site: Site) -> Desk:
    """A site whose table has been charged for one round."""
    desk = make_desk(site)
    prepare(desk)
    desk.step()
    return desk


def again(desk: Desk) -> Desk:
    return replace(desk, node=new_node(desk.site, desk.ledger))


def prepare_run(desk: Desk, run: str = "another-run") -> None:
    desk.ask("prepare", Prepare(to="svi", study=desk.study.study_hash, run=run, lease=1, ledger_from=0))


def write_table(desk: Desk, *lines: str) -> None:
    (desk.site.home / "patients.csv").write_text("\n".join(lines) + "\n")


def with_ids(*ids: str) -> list[str]:
    return [f"{unit},{row.partition(',')[2]}" for unit, row in zip(ids, ROWS, strict=True)]


def marks(home: Path) -> dict[int, set[bytes]]:
    engine = sa.create_engine(f"sqlite:///{home / 'units.db'}")
    with engine.connect() as connection:
        rows = list(connection.execute(sa.text("SELECT kind, mark FROM marks")))
    engine.dispose()
    return {kind: {bytes(mark) for found, mark in rows if found == kind} for kind in (1, 2, 3)}


def test_another_name_over_the_same_people_opens_no_budget(desk, caplog):
    desk.site.write(RENAMED)
    before = desk.ledger.entries()
    for ask in (prepare_run, lambda at: at.step(2)):
        with pytest.raises(ChargeRefused) as refused:
            ask(again(desk))
        assert str(refused.value) == CONSTANT
    assert desk.ledger.entries() == before
    assert "3 of 3 units and 4 of 4 rows are known under patients/patient, where epsilon" in caplog.text
    guaranteed, cap = re.search(r"epsilon ([\d.]+) is guaranteed, under a cap of (\d+)", caplog.text).groups()
    account = desk.ledger.budget("patients", "patient")
    spent = desk.ledger.spent("patients", "patient", account.collusion, account.delta)
    assert spent.guaranteed <= float(guaranteed) < spent.guaranteed + 0.011  # never less than it is
    assert float(cap) == account.epsilon
    assert "data.continues = 'patients'" in caplog.text


def test_nor_does_another_word_for_them(site, caplog):
    desk = make_desk(site)
    prepare(desk)
    shutil.rmtree(site.home / "backbone")
    other = make_desk(site, ('unit = "patient"', 'unit = "person"'))
    site.write(('unit = "patient"', 'unit = "person"'))
    with pytest.raises(ChargeRefused, match=CONSTANT):
        prepare_run(other)
    assert "known under patients/patient" in caplog.text
    assert [entry.body["unit"] for entry in other.ledger.entries() if entry.kind == "budget"] == ["patient"]


def test_a_table_that_continues_an_account_is_charged_there(desk):
    desk.site.write(RENAMED, ('unit = "patient"', 'unit = "patient"\ncontinues = "patients"'))
    again(desk).step(2)
    assert desk.charges() == ["reserve", "reserve"]
    assert desk.ledger.accounts() == [("patients", "patient")]


@pytest.mark.parametrize(
    "lines",
    [
        [HEADER, *with_ids("q1", "q2", "q1", "q3")],
        [HEADER.replace("patient_id", "no"), *with_ids("7", "8", "7", "9")],
        ["sick,tsh_miu_l,patient_id,sex,diagnosis,years"]
        + [",".join((r[4], r[2], f"q{i}", r[3], r[5], r[1])) for i, r in enumerate(row.split(",") for row in ROWS)],
    ],
    ids=["new ids", "ids in another column", "columns renamed and in another order"],
)
def test_people_with_new_ids_are_known_by_their_rows(desk, lines, caplog):
    write_table(desk, *lines)
    column = "no" if lines[0].startswith("no,") else "patient_id"
    desk.site.write(RENAMED, ('unit_column = "patient_id"', f'unit_column = "{column}"'))
    with pytest.raises(ChargeRefused, match=CONSTANT):
        prepare_run(again(desk))
    assert "0 of" in caplog.text
    assert "4 of 4 rows are known under patients/patient" in caplog.text


def test_another_column_named_as_the_units_opens_no_budget(desk, caplog):
    """The very same table: ids and rows without the id are all others then."""
    room = ("epsilon = 10.0", "epsilon = 80.0")  # for what the first run holds
    desk.site.write(RENAMED, room, ('unit_column = "patient_id"', 'unit_column = "age"'))
    with pytest.raises(ChargeRefused, match=CONSTANT):
        prepare_run(again(desk))
    assert "0 of" in caplog.text
    assert "4 of 4 rows are known under patients/patient" in caplog.text


def test_a_few_known_people_among_many_are_enough(desk, caplog):
    write_table(desk, HEADER, "p3,41,0.7,F,no,1", *(f"n{i},{20 + i},1.25,M,no,0" for i in range(50)))
    desk.site.write(RENAMED)
    with pytest.raises(ChargeRefused, match=CONSTANT):
        prepare_run(again(desk))
    assert "1 of 51 units and 0 of 51 rows are known under patients/patient" in caplog.text


def test_people_who_join_a_table_are_noted_before_the_round_that_reads_them(desk):
    write_table(desk, HEADER, *ROWS, "p4,55,1.1,F,no,0")
    again(desk).step(2)
    assert {kind: len(found) for kind, found in marks(desk.site.home).items()} == {1: 4, 2: 5, 3: 5}


def test_other_people_with_the_same_ids_need_a_persons_word(desk, caplog):
    lines = [HEADER, "p1,22,3.5,F,f,0", "p2,23,3.5,F,f,0"]
    write_table(desk, *lines)
    desk.site.write(RENAMED)
    with pytest.raises(ChargeRefused, match=CONSTANT):
        prepare_run(again(desk))
    assert "data.distinct_from = ['patients/patient']" in caplog.text
    others = ('unit = "patient"', 'unit = "patient"\ndistinct_from = ["patients/patient"]')
    desk.site.write(RENAMED, others, ("epsilon = 10.0", "epsilon = 80.0"))  # beside what the first run holds
    prepare_run(again(desk))
    assert desk.ledger.accounts() == [("patients", "patient"), ("patients-2", "patient")]


def test_held_out_people_have_no_second_budget_either(desk, caplog):
    (desk.site.home / "patients.csv").rename(desk.site.home / "held-out.csv")
    write_table(desk, HEADER, "n1,22,3.5,F,f,0")
    desk.site.write(RENAMED, ('path = "patients.csv"', 'path = "patients.csv"\nheldout_path = "held-out.csv"'))
    with pytest.raises(ChargeRefused, match=CONSTANT):
        prepare_run(again(desk))
    assert "held-out.csv: 3 of 3 units" in caplog.text


def test_what_is_kept_is_keyed_and_closed_to_others(desk):
    """A mark from its definition, and nothing of a table in the file."""
    key = (desk.site.home / "keys" / "units.key").read_bytes()
    found = marks(desk.site.home)

    def mark(*parts: str) -> bytes:
        framed = b"".join(len(part.encode()).to_bytes(4, "big") + part.encode() for part in parts)
        return hmac.new(key, framed, hashlib.sha256).digest()[:16]

    assert found[1] == {mark("unit", unit) for unit in ("p1", "p2", "p3")}
    assert found[2] == {mark("row", *sorted(row.split(",")[1:])) for row in ROWS}
    assert found[3] == {mark("whole row", *sorted(row.split(","))) for row in ROWS}
    assert len(key) == 32
    for path in (desk.site.home / "units.db", desk.site.home / "keys" / "units.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_mark_that_cannot_be_written_means_no_charge(site, caplog):
    desk = make_desk(site)
    (site.home / "keys" / "units.key").write_bytes(bytes(32))
    (site.home / "keys" / "units.key").chmod(0o600)
    (site.home / "units.db").mkdir()
    for ask in (prepare, lambda at: at.step()):
        with pytest.raises(SiteNotReady, match="its log says which"):
            ask(desk)
    assert "units.db cannot be used: Is a directory" in caplog.text
    assert desk.charges() == []


def test_marks_whose_key_is_gone_stop_the_site(desk, caplog):
    (desk.site.home / "keys" / "units.key").unlink()
    with pytest.raises(SiteNotReady, match="its log says which"):
        again(desk).step(2)
    assert "units.key is missing, and units.db is there" in caplog.text


def test_marks_of_another_key_stop_the_site(desk, caplog):
    (desk.site.home / "keys" / "units.key").write_bytes(bytes(32))
    with pytest.raises(SiteNotReady, match="its log says which"):
        again(desk).step(2)
    assert "units.db was made with another key" in caplog.text


def test_a_table_that_has_not_changed_is_not_read_again(desk, monkeypatch):
    monkeypatch.setattr(known_units_module, "open_table", lambda *_, **__: pytest.fail("the table was read"))
    again(desk).step(2)


@pytest.mark.parametrize("is_refused", [False, True])
def test_how_long_a_table_was_read_does_not_show(desk, monkeypatch, is_refused):
    """Before a charge the coordinator waits for it: 25 s for a million records, so the answer would count them."""
    if is_refused:
        desk.site.write(RENAMED)
    else:
        write_table(desk, HEADER, *ROWS, "p4,55,1.1,F,no,0")
    now, takes, answered = [0.0], [0.34, 0.3], []
    read = known_units_module.open_table

    def slowly(*args, **named):
        now[0] += takes.pop()
        return read(*args, **named)

    monkeypatch.setattr(known_units_module, "open_table", slowly)
    for _ in range(2):
        node = again(desk).node
        node._site._times = PublicTimes(desk.site.home, lambda: now[0], lambda s: now.__setitem__(0, now[0] + s))
        began = now[0]
        try:
            node._site._note_units(desk.study, load_policy(desk.site.home))
        except ChargeRefused:
            assert is_refused
        answered.append(now[0] - began)
        (desk.site.home / "patients.csv").touch()
    assert answered == pytest.approx([2**-1.5, 2**-1.5])


def test_an_approval_and_a_check_tell_the_figures(desk):
    desk.site.write(RENAMED)
    (objection,) = check_table(desk.site.home, desk.site.home / "patients.csv").objections
    assert "3 of 3 units and 4 of 4 rows are known under patients/patient, where epsilon" in objection
    reasons = assess(desk.site.home, desk.study).reasons
    assert [reason for reason in reasons if "known under patients/patient" in reason]
    assert check_table(desk.site.home, desk.site.home / "patients.csv").is_fit is False
    desk.site.write()
    assert check_table(desk.site.home, desk.site.home / "patients.csv").is_fit


def test_of_two_processes_that_claim_the_same_people_one_gets_them(site):
    site.write()
    policy = load_policy(site.home)
    names = ("patients", "patients-2", "patients-3")
    policies = [policy.model_copy(update={"data": policy.data.model_copy(update={"name": name})}) for name in names]
    outcomes: list[str] = []
    barrier = threading.Barrier(len(policies))

    def claim(one) -> None:
        barrier.wait()
        try:
            KnownUnits(site.home).cover(one)
            outcomes.append("noted")
        except UnitsKnown:
            outcomes.append("refused")

    threads = [threading.Thread(target=claim, args=(one,)) for one in policies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["noted", "refused", "refused"]


class PowerCut(BaseException):
    pass


@pytest.mark.parametrize("at", range(4))
def test_a_first_use_that_was_cut_off_is_completed_by_the_next(site, monkeypatch, at):
    """The power fails before each step of beginning the file and its key."""
    site.write()
    policy, left = load_policy(site.home), iter(range(at))

    def cut(real):
        def step(*args):
            if next(left, None) is None:
                raise PowerCut
            return real(*args)

        return step

    with monkeypatch.context() as patch:
        for name in ("write_private", "write_secret", "_engine", "move_durably"):
            patch.setattr(known_units_module, name, cut(getattr(known_units_module, name)))
        with pytest.raises(PowerCut):
            KnownUnits(site.home).cover(policy)
        assert not KnownUnits(site.home).is_covered(policy)
    assert KnownUnits(site.home).accounts() == []
    KnownUnits(site.home).cover(policy)
    assert KnownUnits(site.home).accounts() == [policy.account]


@pytest.mark.parametrize("name", ["write_private", "write_secret", "move_durably"])
def test_a_disk_that_is_full_at_the_first_use_stops_nothing_for_good(site, monkeypatch, name):
    site.write()
    policy = load_policy(site.home)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(known_units_module, name, full)
        with pytest.raises(DiskFull, match=r"no room for units\.db"):
            KnownUnits(site.home).cover(policy)
    KnownUnits(site.home).cover(policy)


def test_what_sqlite_says_of_a_full_disk_is_no_damage(desk, monkeypatch):
    """It cannot make the files beside the database then, and names no reason."""
    policy = load_policy(desk.site.home)
    (desk.site.home / "units.db-wal").mkdir()
    with pytest.raises(FileDamaged, match=r"units\.db cannot be used: unable to open"):
        KnownUnits(desk.site.home).cover(policy)
    monkeypatch.setattr(known_units_module, "has_room", lambda _: False)
    with pytest.raises(DiskFull, match=r"no room for units\.db"):
        KnownUnits(desk.site.home).cover(policy)


def test_a_file_that_another_process_holds_is_not_damaged(desk, monkeypatch):
    monkeypatch.setattr(known_units_module, "WAIT_S", 0.1)
    held = sqlite3.connect(desk.site.home / "units.db", isolation_level=None)
    held.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerUnavailable, match=r"units\.db cannot be used just now"):
        KnownUnits(desk.site.home).cover(load_policy(desk.site.home))
    held.close()
    KnownUnits(desk.site.home).cover(load_policy(desk.site.home))


def _delete(path: Path) -> None:
    for each in path.parent.glob("units.db*"):
        each.unlink()


def _empty_of_tables(path: Path) -> None:
    _delete(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 1")


def _empty_of_marks(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DELETE FROM marks")
        connection.commit()


@pytest.mark.parametrize("damage", [_delete, _empty_of_tables, _empty_of_marks])
def test_a_lost_or_emptied_file_opens_no_second_budget(desk, caplog, damage):
    damage(desk.site.home / "units.db")
    before = desk.ledger.entries()
    for _ in range(2):  # not mended by the first look either
        with pytest.raises(SiteNotReady, match="its log says which"):
            prepare_run(again(desk))
    desk.site.write(RENAMED)
    with pytest.raises(SiteNotReady, match="its log says which"):
        prepare_run(again(desk))
    assert desk.ledger.entries() == before
    assert re.search(r"units\.db (is gone|was emptied).*restore both from one backup", caplog.text)
    policy = load_policy(desk.site.home)
    for look in (KnownUnits(desk.site.home).accounts, lambda: KnownUnits(desk.site.home).objections(policy)):
        with pytest.raises(FileDamaged, match=r"units\.db"):
            look()


def test_a_home_of_a_version_without_marks_begins_them(desk):
    """Its ledger has charges, and neither the file nor its key was ever there."""
    _delete(desk.site.home / "units.db")
    (desk.site.home / "keys" / "units.key").unlink()
    again(desk).step(2)
    assert KnownUnits(desk.site.home).accounts() == [load_policy(desk.site.home).account]


def test_a_table_of_earlier_marks_is_read_once_more(site, monkeypatch):
    """Ids may be written otherwise since: a person under `1.00` is now one under `1`."""
    policy, units = load_policy(site.home), KnownUnits(site.home)
    with monkeypatch.context() as patch:
        patch.setattr(known_units_module, "SCHEME", known_units_module.SCHEME - 1)
        units.cover(policy)
        assert units.is_covered(policy)
    before = marks(site.home)
    assert not units.is_covered(policy)
    units.cover(policy)
    assert units.is_covered(policy)
    assert marks(site.home) == before
