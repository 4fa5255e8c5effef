"""A ledger that lost entries for good: what is counted then, and what is refused."""

import math
from dataclasses import replace

import pytest

from confide.privacy.errors import BudgetExceeded, ChargeConflict, LedgerBroken
from confide.privacy.ledger import canonical
from confide.privacy.ledger.chain import Head, extend, now
from confide.privacy.ledger.charges import Books, Recovery
from confide.privacy.ledger.ledger import Ledger

from ..ledgers import budget, charge, ledger_with, signer


@pytest.fixture
def ledger(tmp_path):
    found = ledger_with(tmp_path / "ledger.db", rounds=1)
    yield found
    found.close()


def test_an_account_that_lost_entries_counts_as_spent_up_to_its_cap_and_is_closed(ledger):
    before = ledger.spent("thyroid", "patient", 1, 1e-5)
    assert 0 < before.pld < 8
    assert [each.epsilon for each in ledger.recover(100)] == [8.0]
    after = ledger.spent("thyroid", "patient", 1, 1e-5)
    assert (after.pld, after.rdp, after.releases) == (8.0, 8.0, 1)
    for price in (lambda: ledger.affordable([(charge(5), 1)]), lambda: ledger.reserve(charge(5))):
        with pytest.raises(BudgetExceeded, match="lost for good"):
            price()
    ledger.set_budget(budget(800.0))
    with pytest.raises(BudgetExceeded, match="lost for good"):
        ledger.reserve(charge(5))


def test_an_account_counts_the_weakest_of_all_its_caps(ledger):
    for epsilon, delta, collusion in ((9.0, 1e-6, 2), (3.0, 1e-5, 1)):
        ledger.set_budget(budget(epsilon, delta=delta, collusion=collusion))
    (lost,) = ledger.recover(100)
    assert (lost.epsilon, lost.delta, lost.collusion) == (9.0, 1e-5, 1)


def test_what_no_cap_covered_is_unbounded(ledger):
    ledger.recover(100)
    assert ledger.spent("thyroid", "patient", 0, 1e-5).pld == 8.0
    assert ledger.spent("thyroid", "patient", 2, 1e-5).pld == math.inf
    assert ledger.spent("thyroid", "patient", 1, 1e-6).rdp == math.inf


def test_every_account_is_closed_and_another_data_set_opens_one(ledger):
    ledger.set_budget(budget(2.0, dataset="follow-up"))
    assert {each.dataset for each in ledger.recover(100)} == {"thyroid", "follow-up"}
    ledger.set_budget(budget(2.0, dataset="other people"))
    ledger.reserve(charge(5, dataset="other people", multiplier=5.0))


def test_a_round_charged_before_is_answered_under_its_charge(ledger):
    """Its charge is in the ledger that is left: a repeated question costs nothing new."""
    before = ledger.reserve(charge(0))
    ledger.recover(100)
    assert ledger.reserve(charge(0)) == before


def test_a_release_without_noise_still_needs_consent_alone(ledger):
    ledger.recover(100)
    ledger.reserve(charge(5, mode="none"), unprotected_allowed=True)
    assert ledger.spent("thyroid", "patient", 1, 1e-5).pld == math.inf


def test_a_later_loss_has_a_later_generation(ledger):
    ledger.recover(100)
    with pytest.raises(ChargeConflict, match="does not follow 100"):
        ledger.recover(100)
    ledger.recover(101)
    assert ledger.generation == 101


def test_a_recovered_ledger_is_read_again(ledger, tmp_path):
    ledger.recover(100)
    with Ledger.open(tmp_path / "ledger.db", signer(), "east") as again:
        assert again.recovery("thyroid", "patient") == ledger.recovery("thyroid", "patient")
        assert again.generation == 100


LOST = Recovery(dataset="thyroid", unit="patient", epsilon=8.0, delta=1e-5, collusion=1, generation=100)


@pytest.mark.parametrize(
    ("kind", "body", "says"),
    [
        ("recover", replace(LOST, epsilon=7.9), "weakest of its caps"),
        ("recover", replace(LOST, delta=1e-6), "weakest of its caps"),
        ("recover", replace(LOST, collusion=2), "weakest of its caps"),
        ("recover", replace(LOST, dataset="unknown"), "weakest of its caps"),
        ("reserve", charge(5), "closed"),
    ],
    ids=["epsilon", "delta", "collusion", "account", "charge"],
)
def test_an_entry_that_counts_less_than_the_worst_has_no_meaning(ledger, kind, body, says):
    """A site could else sign that less was lost than its caps had allowed, or go on charging."""
    if kind == "reserve":
        ledger.recover(100)
    entries = ledger.entries()
    last = Head(entries[-1].seq, entries[-1].hash)
    forged = extend(last, signer(), now(), kind, canonical.to_record(body))
    with pytest.raises(LedgerBroken, match=says):
        Books.replay([*entries, forged])
