"""Standings are what the ledger and a report say, without their slower accountants."""

import math

import pytest

from confide.privacy.ledger.charges import Books
from confide.privacy.ledger.ledger import Ledger
from confide.privacy.ledger.standings import standings
from confide.privacy.report import standing as of_report
from confide.privacy.report import statement

from ..ledgers import budget, charge, eventful_ledger, ledger_with, signer


def test_guaranteed_is_what_the_ledger_charges_by(tmp_path):
    with ledger_with(tmp_path / "ledger.db") as ledger:
        (found,) = ledger.standings()
        assert (found.dataset, found.unit, found.cap) == ("thyroid", "patient", 8.0)
        assert found.guaranteed == ledger.spent("thyroid", "patient", 1, 1e-5).guaranteed
        assert 0 < found.filled < 1


def test_the_filled_part_is_that_of_a_report():
    books = Books.replay(eventful_ledger().entries)
    found = {each.dataset: each for each in standings(books)}
    assert len(found) == 2
    for account in statement.accounts(books):
        assert found[account.dataset].guaranteed == of_report.agreed(account).guaranteed
        assert found[account.dataset].filled == pytest.approx(of_report.share(account, books) / 100, rel=1e-12)


def test_an_account_that_may_not_be_charged_any_more_is_full(tmp_path):
    with ledger_with(tmp_path / "lost.db") as lost:
        lost.recover(100)
        (found,) = lost.standings()
        assert (found.guaranteed, found.filled) == (8.0, 1.0)
    with Ledger.open(tmp_path / "bare.db", signer(), "east") as bare:
        assert bare.standings() == []
        bare.set_budget(budget(8.0))
        (found,) = bare.standings()
        assert (found.guaranteed, found.filled) == (0.0, 0.0)
        bare.reserve(charge(1, mode="none", multiplier=0.0), unprotected_allowed=True)
        (found,) = bare.standings()
        assert (found.guaranteed, found.filled) == (math.inf, 1.0)
