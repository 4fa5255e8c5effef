"""A ledger that was put back from a copy, at the site: with everything but the head that lies beside the keys."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from confide.client_node import ledger_head as ledger_head_module
from confide.client_node.approval.charges import ledger_if_begun, open_ledger
from confide.client_node.approval.site_budget import accounts, cap_change, recover_ledger
from confide.client_node.backup import import_ledger
from confide.client_node.cli.tables import _account_row
from confide.client_node.enrolment.protocol import Enrolment
from confide.client_node.errors import ChargeRefused, DiskFull, RoundOver, SiteNotReady
from confide.client_node.ledger_head import LedgerHead, standing
from confide.mpc.sharing.sealing import position_in
from confide.privacy.errors import LedgerBroken, LedgerUnavailable
from confide.privacy.ledger import backup

from .conftest import Site
from .test_node import RUN, Desk, make_desk, new_node, prepare

HEAD = Path("keys") / "ledger.head"
BACKED_UP = ("ledger.db", "outbox", "replay", "leases.json", "holds.json")


@pytest.fixture
def desk(site: Site) -> Desk:
    desk = make_desk(site)
    prepare(desk)
    return desk


def reopened(desk: Desk) -> Desk:
    """The same site, whose daemon starts anew."""
    ledger = open_ledger(desk.site.home, desk.site.identity, Enrolment.load(desk.site.home))
    return replace(desk, ledger=ledger, node=new_node(desk.site, ledger))


def copied(desk: Desk, to: Path) -> Path:
    desk.ledger.close()
    shutil.copytree(desk.site.home, to)
    return to


def put_back(desk: Desk, copy: Path, *more: str) -> Desk:
    """The site after its files, but the head unless `more` names it, were put back from a copy."""
    home = desk.site.home
    desk.ledger.close()
    for name in (*BACKED_UP, "ledger.db-wal", "ledger.db-shm", *more):
        shutil.rmtree(home / name) if (home / name).is_dir() else (home / name).unlink(missing_ok=True)
        if (copy / name).is_dir():
            shutil.copytree(copy / name, home / name)
        elif (copy / name).exists():
            shutil.copy(copy / name, home / name)
    return reopened(desk)


def draws(desk: Desk) -> list[bytes]:
    return [desk.step(number).blobs["envelope-0"] for number in (1, 2, 3)]


def test_a_ledger_put_back_from_a_copy_answers_no_round_again(desk, tmp_path):
    """The coordinator asks from 0, as one does that was itself put back from a copy of that night."""
    copy = copied(desk, tmp_path / "copy")
    desk = reopened(desk)
    draws(desk)
    back = put_back(desk, copy)
    for ask in (prepare, back.step.__func__):
        with pytest.raises(SiteNotReady, match=r"does not hold its entry 4.*client-node budget import"):
            ask(back)
    assert back.charges() == []


def test_a_ledger_that_goes_on_otherwise_is_refused_too(desk, tmp_path):
    copy = copied(desk, tmp_path / "copy")
    desk = reopened(desk)
    draws(desk)
    back = put_back(desk, copy)
    for epsilon in range(11, 17):
        back.site.write(("epsilon = 10.0", f"epsilon = {epsilon}.0"))
        back.ledger.set_budget(replace(back.ledger.budget("patients", "patient"), epsilon=float(epsilon)))
    assert back.ledger.head.seq > 4
    with pytest.raises(SiteNotReady, match="does not hold its entry 4"):
        back.step()


def test_the_newest_copy_of_the_ledger_brings_the_site_back(desk, tmp_path):
    copy = copied(desk, tmp_path / "copy")
    desk = reopened(desk)
    draws(desk)
    backup.write(tmp_path / "newest.jsonl", desk.ledger.walk(), desk.ledger.public_key)
    back = put_back(desk, copy)
    back.ledger.close()
    assert import_ledger(back.site.home, tmp_path / "newest.jsonl") == (3, 5)
    again = reopened(back)
    for number in (1, 2, 3):  # the outbox was lost, and another draw would be another release
        with pytest.raises(RoundOver, match="what was sealed for it is not here"):
            again.step(number)
    assert again.charges() == ["reserve"] * 3


def test_the_head_is_on_disk_before_anything_is_computed(desk, monkeypatch):
    heads = []

    def load(*_: object, **__: object) -> None:
        heads.append(json.loads((desk.site.home / HEAD).read_text())["seq"])
        raise OSError("stop here")

    monkeypatch.setattr("confide.client_node.training.warm_model.read_records", load)
    with pytest.raises(Exception, match="after its charge"):
        desk.step()
    assert heads == [desk.ledger.head.seq] == [2]


def test_a_head_that_cannot_be_written_lets_nothing_leave(desk, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ledger_head_module, "write_private", full)
    with pytest.raises(DiskFull):
        desk.step()
    assert not (desk.site.home / "outbox").exists()


def test_a_home_of_an_earlier_version_gets_its_head_with_its_next_charge(desk):
    desk.step()
    (desk.site.home / HEAD).unlink()
    desk.restarted().step(2)
    assert json.loads((desk.site.home / HEAD).read_text())["seq"] == 3


def test_a_damaged_head_is_refused(desk, caplog):
    desk.step()
    (desk.site.home / HEAD).write_text("{}")
    with pytest.raises(SiteNotReady, match="its log says which"):
        desk.step(2)
    assert "ledger.head does not hold what belongs there" in caplog.text


def test_the_head_never_goes_back(desk, tmp_path):
    head = LedgerHead(desk.site.home, desk.ledger)
    desk.step()
    kept = (desk.site.home / HEAD).read_bytes()
    head.keep()
    assert (desk.site.home / HEAD).read_bytes() == kept


def test_what_is_sealed_states_the_place_of_its_charge(desk):
    """A position is a hash chain over the entries up to the charge, computed here from its definition alone."""
    import hashlib

    packet = desk.step()
    digest = bytes(32)
    entries = desk.ledger.entries()
    assert entries[-1].kind == "reserve"
    for entry in entries:
        framed = (b"confide/mpc/position/1", digest, bytes.fromhex(entry.hash))
        digest = hashlib.sha256(b"".join(len(part).to_bytes(4, "big") + part for part in framed)).digest()
    stated = position_in(packet.blobs["envelope-0"])
    assert (stated.generation, stated.count, stated.digest) == (0, len(entries), digest)


def test_a_site_that_owns_up_to_a_loss_is_charged_the_worst_and_goes_on(desk, tmp_path):
    copy = copied(desk, tmp_path / "copy")
    desk = reopened(desk)
    draws(desk)
    back = put_back(desk, copy)
    back.ledger.close()
    (account,) = recover_ledger(back.site.home)
    assert account.spent.pld == account.spent.rdp == account.budget.epsilon == 10.0
    again = reopened(back)
    LedgerHead(again.site.home, again.ledger).require()
    for ask in (prepare, again.step.__func__):
        with pytest.raises(ChargeRefused, match="lost for good"):
            ask(again)
    again.site.write(("epsilon = 10.0", "epsilon = 800.0"))  # a higher cap does not make the past known
    with pytest.raises(ChargeRefused, match="lost for good"):
        again.step()
    change = cap_change(again.site.home, epsilon=900.0, delta=1e-5, collusion=1)
    assert change.guaranteed == 10.0  # not what the charges that are left cost
    (account,) = accounts(again.site.home)
    assert (account.budget.epsilon, account.is_closed, _account_row(account)["left"]) == (800.0, True, 0.0)
    assert again.charges() == []
    assert RUN


def test_an_account_whose_budget_was_lost_as_well_is_closed_too(desk, tmp_path):
    """The copy is older than all entries on a second data set, whose people are known here."""
    copy = copied(desk, tmp_path / "copy")
    desk = reopened(desk)
    second = ('path = "patients.csv"', 'path = "others.csv"'), ('name = "patients"', 'name = "others"')
    table = (desk.site.home / "patients.csv").read_text().splitlines()
    lines = [table[0], *(f"o{i},{50 + i},2.5,F,no,1" for i in range(4))]
    (desk.site.home / "others.csv").write_text("\n".join(lines) + "\n")
    room = ("epsilon = 10.0", "epsilon = 80.0")  # for what the first run holds
    desk.site.write(*second, room)
    desk.step()
    assert desk.ledger.accounts() == [("others", "patient"), ("patients", "patient")]
    back = put_back(desk, copy, "keys/ledger.head")
    back.ledger.close()
    back.site.write()
    assert {account.dataset for account in recover_ledger(back.site.home)} == {"others", "patients"}
    again = reopened(back)
    again.site.write(*second, room)
    with pytest.raises(ChargeRefused, match="lost for good"):
        again.step()
    assert again.charges() == []


def lose_head(desk: Desk) -> str:
    """Closes the ledger and deletes its head; returns the site's key."""
    desk.ledger.close()
    (desk.site.home / HEAD).unlink(missing_ok=True)
    return desk.site.identity.identity_hex


def test_to_look_at_the_ledger_writes_nothing(desk, tmp_path):
    key = lose_head(desk)
    before = (desk.site.home / "ledger.db").read_bytes()
    assert standing(desk.site.home, key) == "whole"
    assert (desk.site.home / "ledger.db").read_bytes() == before
    (tmp_path / "ledger.db").write_bytes(b"")
    assert standing(tmp_path, key) == "none yet"
    assert (tmp_path / "ledger.db").read_bytes() == b""
    assert sorted(path.name for path in tmp_path.glob("ledger*")) == ["ledger.db"]


@pytest.mark.parametrize("is_deleted", [True, False])
def test_a_ledger_without_entries_is_no_new_one_where_people_are_known(desk, is_deleted):
    """Also where the head was lost with it."""
    key, path = lose_head(desk), desk.site.home / "ledger.db"
    path.unlink() if is_deleted else path.write_bytes(b"")
    assert re.search(r"ledger\.db (is gone|has no entries), and units\.db knows people", standing(desk.site.home, key))
    for _ in range(2):  # the first look makes none
        with pytest.raises((LedgerUnavailable, LedgerBroken), match=r"ledger\.db.*client-node budget import"):
            reopened(desk)
        with pytest.raises((LedgerUnavailable, LedgerBroken), match=r"ledger\.db.*client-node budget import"):
            ledger_if_begun(desk.site.home)
    (account,) = recover_ledger(desk.site.home)
    assert account.is_closed
