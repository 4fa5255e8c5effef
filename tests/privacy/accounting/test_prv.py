import re

import dp_accounting as dpa
import pytest

from confide.privacy.accounting import composition, renyi
from confide.privacy.accounting.prv import MAX_PAIRS, SLACK, compare, epsilon_prv
from confide.privacy.errors import NotCheckable

from ..ledgers import release

DELTA = 1e-5


@pytest.mark.parametrize(("multiplier", "count"), [(5.0, 16), (30.0, 40), (0.5, 2)])
def test_all_three_accountants_give_the_analytic_epsilon_of_composed_gaussians(multiplier, count):
    exact = dpa.get_epsilon_gaussian(multiplier / count**0.5, DELTA)  # Balle & Wang 2018, arXiv:1805.06530
    merged = ((multiplier, 1.0, count),)
    bracket = epsilon_prv(merged, DELTA)
    assert bracket.lower <= exact <= bracket.upper
    assert bracket.estimate == pytest.approx(exact, abs=1e-3)
    assert exact <= composition.pld_bound(merged, DELTA) <= exact + SLACK
    assert exact <= renyi.epsilon(merged, DELTA) <= exact * 1.15


@pytest.mark.parametrize(
    ("merged", "pld", "rdp", "prv"),
    [
        # 500 steps of a Gaussian with noise 1 on 2 % of the units, a textbook case
        (((1.0, 0.02, 500),), 2.774, 3.146, 2.773),
        # 40 steps of training and one histogram of everybody
        (((1.2, 0.2, 40), (4.0, 1.0, 1)), 6.780, 7.734, 6.780),
    ],
)
def test_known_answers_on_poisson_samples(merged, pld, rdp, prv):
    merged = tuple(sorted(merged))
    assert composition.pld_bound(merged, DELTA) == pytest.approx(pld, abs=1e-3)
    assert renyi.epsilon(merged, DELTA) == pytest.approx(rdp, abs=1e-3)
    assert epsilon_prv(merged, DELTA).estimate == pytest.approx(prv, abs=1e-3)


def spent(count=40):
    releases = [release()] * count
    return releases, composition.epsilon_pld(releases, DELTA, 1), composition.epsilon_rdp(releases, DELTA, 1)


def test_sound_bounds_meet_no_objection():
    releases, pld, rdp = spent()
    opinion = compare(releases, DELTA, 1, pld=pld, rdp=rdp)
    assert opinion.objections == ()
    assert opinion.bracket.upper - opinion.bracket.lower < 0.025


@pytest.mark.parametrize(
    ("pld", "rdp", "words"),
    [
        (0.98, 1.0, "PLD says .* at least"),  # 2 % too good
        (1.0, 0.8, "RDP says .* at least"),
    ],
)
def test_a_bound_that_is_off_is_objected_to(pld, rdp, words):
    releases, true_pld, true_rdp = spent()
    (objection,) = compare(releases, DELTA, 1, pld=pld * true_pld, rdp=rdp * true_rdp).objections
    assert re.search(words, objection)


def test_a_bound_larger_than_need_be_is_remarked_on_and_holds():
    releases, pld, rdp = spent()
    opinion = compare(releases, DELTA, 1, pld=1.02 * pld, rdp=rdp)
    assert opinion.objections == ()
    assert re.search("PLD says .* at most", opinion.remarks[0])


def test_very_many_cheap_releases_are_no_contradiction():
    releases = {release(mode="local", multiplier=2.0, sample_rate=0.001): 100_000}
    pld, rdp = composition.epsilon_pld(releases, DELTA, 1), composition.epsilon_rdp(releases, DELTA, 1)
    assert pld <= rdp
    assert compare(releases, DELTA, 1, pld=pld, rdp=rdp).objections == ()


def test_nothing_released_is_zero():
    assert epsilon_prv((), DELTA).upper == 0


@pytest.mark.parametrize(
    ("merged", "delta", "why"),
    [
        (((0.0, 0.2, 1),), DELTA, "without noise"),
        (((0.3, 1.0, 40),), DELTA, "above 64"),
        (tuple((1 + n / 100, 0.1, 1) for n in range(MAX_PAIRS + 1)), DELTA, "distinct pairs"),
        (((1.2, 0.2, 1),), 1e-12, "delta is not from 1e-11 to below 1"),
        (((1.2, 0.2, 1),), float("inf"), "delta is not from"),
        (((2000.0, 0.2, 10**8),), DELTA, "grid"),
    ],
)
def test_what_it_cannot_check_it_says(merged, delta, why):
    with pytest.raises(NotCheckable, match=why):
        epsilon_prv(merged, delta)
