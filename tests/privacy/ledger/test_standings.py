"""Standings are what the ledger and a report say, without their slower accountants."""

import math

import pytest

from confide.privacy.ledger.charges import Books
from confide.privacy.ledger.ledger import Ledger
from confide.privacy.ledger.standings import courses, standings
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


def test_a_course_is_what_the_standing_was_after_each_of_its_charges():
    entries = eventful_ledger().entries
    found = {each.dataset: each for each in courses(Books.replay(entries))}
    points = found["thyroid"].points
    ends = [each.releases for each in points]
    assert (ends[0], ends[-1]) == (1, 41)
    assert ends == sorted(set(ends))
    assert 15 < len(ends) <= 24
    for point in points:  # each charge on it is followed by its settlement
        before = Books.replay(entries[: 3 + 2 * point.releases])
        (standing,) = (each for each in standings(before) if each.dataset == "thyroid")
        assert point.guaranteed == standing.guaranteed
        assert point.time == entries[3 + 2 * (point.releases - 1)].time
    (run,) = found["follow-up"].runs
    assert (run.run, run.updates, run.unsettled) == ("run-2", 8, 1)
    assert (found["follow-up"].delta, found["follow-up"].collusion) == (1e-5, 2)


def test_a_course_ends_where_the_account_stands():
    books = Books.replay(eventful_ledger(rounds=100).entries)
    for course, standing in zip(courses(books, points=7), standings(books), strict=True):
        assert 5 < len(course.points) <= 7
        assert course.points[-1].guaranteed == standing.guaranteed


def test_an_account_without_a_cap_or_a_charge_has_no_course(tmp_path):
    with Ledger.open(tmp_path / "bare.db", signer(), "east") as bare:
        bare.set_budget(budget(8.0))
        (course,) = courses(Books.replay(bare.entries()))
        assert (course.points, course.runs, course.delta) == ([], [], 1e-5)
