import math
import random
from dataclasses import replace

import dp_accounting as dpa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import brentq

from confide.privacy.accounting import composition
from confide.privacy.accounting.composition import (
    Release,
    epsilon_pld,
    epsilon_rdp,
    merge,
    site_noise,
    solve_noise_multiplier,
    topup_noise,
)
from confide.privacy.errors import InvalidPrivacyParameter

from ..ledgers import release

DELTA = 1e-5


def gaussian(multiplier: float, sample_rate: float = 1.0) -> Release:
    """A release with that noise multiplier for everybody; scale so wide that rounding costs nothing that shows."""
    return Release(
        mode="local",
        site_noise_int=round(multiplier * 2**40),
        scale_bits=40,
        clip_norm=1.0,
        dim=1,
        sample_rate=sample_rate,
        sites=1,
    )


@pytest.mark.parametrize(("multiplier", "count"), [(4.0, 1), (4.0, 16), (1.0, 3), (20.0, 400)])
def test_full_batches_cost_what_composed_gaussians_cost(multiplier, count):
    exact = dpa.get_epsilon_gaussian(multiplier / math.sqrt(count), DELTA)  # Balle & Wang 2018, arXiv:1805.06530
    assert exact <= epsilon_pld([gaussian(multiplier)] * count, DELTA, 0) <= exact * 1.001  # never below the truth


@pytest.mark.parametrize(("multiplier", "rate"), [(0.8, 0.3), (1.0, 0.1), (2.0, 0.5)])
def test_one_sampled_release_costs_its_hockey_stick_divergence(multiplier, rate):
    def density(x, mean):
        return math.exp(-((x - mean) ** 2) / (2 * multiplier**2)) / (multiplier * math.sqrt(2 * math.pi))

    def delta(epsilon):
        def removed(x):
            return max(0.0, (1 - rate) * density(x, 0) + rate * density(x, 1) - math.exp(epsilon) * density(x, 0))

        def added(x):
            return max(0.0, density(x, 0) - math.exp(epsilon) * ((1 - rate) * density(x, 0) + rate * density(x, 1)))

        reach = 12 * multiplier + 1
        return max(quad(part, -reach, reach, limit=400, points=[0, 1, 3 * multiplier])[0] for part in (removed, added))

    exact = brentq(lambda epsilon: delta(epsilon) - DELTA, 1e-3, 20)
    assert exact - 1e-4 <= epsilon_pld([gaussian(multiplier, rate)], DELTA, 0) <= exact + 2e-3


@pytest.mark.parametrize("multiplier", [0.6, 1.2, 5.0])
@pytest.mark.parametrize("rate", [0.01, 0.2, 1.0])
@pytest.mark.parametrize("count", [1, 40])
def test_pld_is_never_above_rdp(multiplier, rate, count):
    releases = [gaussian(multiplier, rate)] * count
    assert 0 < epsilon_pld(releases, DELTA, 0) <= epsilon_rdp(releases, DELTA, 0)


def test_both_accountants_agree_with_dp_accountings_own():
    runs = [(1.1, 0.2, 20), (2.0, 0.05, 30), (4.0, 1.0, 2)]
    pld = dpa.pld.PLDAccountant(value_discretization_interval=1e-3)
    rdp = dpa.rdp.RdpAccountant(orders=range(2, 65))
    for multiplier, rate, count in runs:
        one = dpa.PoissonSampledDpEvent(rate, dpa.GaussianDpEvent(multiplier))
        for accountant in (pld, rdp):
            accountant.compose(one, count)
    releases = [gaussian(multiplier, rate) for multiplier, rate, count in runs for _ in range(count)]
    assert epsilon_pld(releases, DELTA, 0) == pytest.approx(pld.get_epsilon(DELTA), rel=2e-3)
    assert epsilon_rdp(releases, DELTA, 0) == pytest.approx(rdp.get_epsilon(DELTA), rel=2e-3)


def test_epsilon_depends_neither_on_order_nor_on_splitting():
    releases = [release(sites=2 + i % 3, sample_rate=0.1 * (1 + i % 2)) for i in range(24)]
    shuffled = random.Random(7).sample(releases, len(releases))
    for epsilon in (epsilon_pld, epsilon_rdp):
        assert epsilon(releases, DELTA, 1) == epsilon(shuffled, DELTA, 1) == epsilon(iter(shuffled), DELTA, 1)


def test_every_release_more_and_every_colluder_more_costs_more():
    for epsilon in (epsilon_pld, epsilon_rdp):
        by_count = [epsilon([release()] * count, DELTA, 0) for count in (0, 1, 2, 10, 40)]
        by_colluders = [epsilon([release()] * 10, DELTA, colluding) for colluding in range(5)]
        assert by_count == sorted(set(by_count))
        assert by_count[0] == 0
        assert by_colluders == sorted(set(by_colluders))
        assert by_colluders[-1] == math.inf


@pytest.mark.parametrize(
    "bad",
    [release(mode="none"), replace(release(), site_noise_int=0), replace(release(), site_noise_int=9)],
    ids=["mode none", "no noise", "noise too small to pass for a Gaussian"],
)
def test_one_release_without_noise_makes_epsilon_infinite(bad):
    assert bad.noise_multiplier(0) == 0
    assert epsilon_pld([release(), bad], DELTA, 0) == epsilon_rdp([release(), bad], DELTA, 0) == math.inf


def test_noise_multiplier_counts_the_unknown_noise_over_the_rounded_sensitivity():
    opened = Release(
        mode="distributed", site_noise_int=3000, scale_bits=10, clip_norm=2.0, dim=10_000, sample_rate=1.0, sites=5
    )
    sensitivity = 1024 * 2.0 + 100
    assert opened.noise_multiplier(0) == pytest.approx((5 * 3000**2 - 16) ** 0.5 / sensitivity, rel=1e-12)
    assert opened.noise_multiplier(1) == pytest.approx((4 * 3000**2 - 16) ** 0.5 / sensitivity, rel=1e-12)
    assert opened.noise_multiplier(5) == opened.noise_multiplier(9) == 0
    local = replace(opened, mode="local")
    one = pytest.approx((3000**2 - 16) ** 0.5 / sensitivity, rel=1e-12)
    assert local.noise_multiplier(0) == local.noise_multiplier(7) == one


@given(st.integers(2**20, 2**43), st.floats(1e-6, 1), st.integers(1, 2**20))
def test_merging_rounds_to_the_safe_side_by_little(noise, rate, dim):
    one = Release(mode="local", site_noise_int=noise, scale_bits=24, clip_norm=1.0, dim=dim, sample_rate=rate, sites=1)
    ((multiplier, merged_rate, count),) = composition.merge([one], 0)
    assert count == 1
    assert multiplier <= one.noise_multiplier(0) <= multiplier * 1.0001
    assert merged_rate * 0.9999 <= rate <= merged_rate


def test_short_numbers_are_merged_as_they_are():
    assert composition.merge([gaussian(1.25, 0.2)], 0)[0][1] == 0.2


@pytest.mark.parametrize(("dropouts", "collusion"), [(0, 0), (0, 1), (2, 1)])
def test_site_noise_keeps_the_multiplier_after_dropouts_and_collusion(dropouts, collusion):
    noise = site_noise(1.2, 0.5, 6, dropouts, collusion, 24, "distributed")
    opened = replace(release(), site_noise_int=noise, clip_norm=0.5, dim=1, sites=6 - dropouts)
    assert opened.noise_multiplier(collusion) == pytest.approx(1.2, rel=1e-6)
    assert noise / (0.5 * 2**24) * math.sqrt(6 - dropouts - collusion) >= 1.2 * (1 - 1e-12)


def topped(*, planned=6, fewest=4, collusion=1, multiplier=1.2) -> Release:
    """What a study with top-up is charged: noise for all planned sites, of which some may be missing."""
    noise = site_noise(multiplier, 1.0, planned, 0, collusion, 24, "distributed")
    return replace(
        release(), site_noise_int=noise, dim=1, sites=fewest, planned_sites=planned, noise_collusion=collusion
    )


@pytest.mark.parametrize("sites", [6, 5, 4])
@pytest.mark.parametrize("collusion", [1, 2, 3])
def test_top_up_brings_the_noise_of_the_honest_remaining_sites_back_to_the_multiplier(sites, collusion):
    charged = topped(collusion=collusion)
    added = topup_noise(charged.site_noise_int, planned=6, sites=sites, collusion=collusion)
    by_definition = (1.2 * 2**24) ** 2 * (1 / (sites - collusion) - 1 / (6 - collusion))
    assert added == pytest.approx(math.sqrt(by_definition), rel=1e-6)
    honest = (sites - collusion) * (charged.site_noise_int**2 + added**2)
    assert (1.2 * 2**24) ** 2 <= honest <= (1.2 * 2**24) ** 2 * (1 + 1e-5)
    assert charged.over(sites).noise_multiplier(collusion) == pytest.approx(1.2, rel=1e-6)


def test_who_all_stay_pay_for_no_dropouts():
    everybody = topped().over(6)
    assert everybody == replace(topped(), sites=6, planned_sites=0, noise_collusion=0)
    spare = site_noise(1.2, 1.0, 6, 2, 1, 24, "distributed")
    assert spare / everybody.site_noise_int == pytest.approx(math.sqrt(5 / 3))


@given(st.integers(2, 40), st.data())
def test_charge_with_top_up_is_the_dearest_of_all_sums_that_it_allows(planned, data):
    collusion = data.draw(st.integers(0, planned - 1))
    fewest = data.draw(st.integers(collusion + 1, planned))
    observers = data.draw(st.integers(0, planned + 1))
    charged = topped(planned=planned, fewest=fewest, collusion=collusion)
    each = [charged.over(sites).noise_multiplier(observers) for sites in range(fewest, planned + 1)]
    assert charged.noise_multiplier(observers) <= min(each) * (1 + 1e-12)
    assert charged.noise_multiplier(observers) in each


def test_a_top_up_is_never_too_small_to_pass_for_a_gaussian():
    assert topup_noise(20, planned=1000, sites=999, collusion=1) == composition.MIN_SITE_NOISE
    assert topup_noise(20, planned=1000, sites=1000, collusion=1) == 0


@pytest.mark.parametrize(("sites", "collusion"), [(7, 1), (1, 1), (0, 0), (4, -1)])
def test_no_top_up_for_more_than_planned_or_for_nobody(sites, collusion):
    with pytest.raises(InvalidPrivacyParameter):
        topup_noise(1000, planned=6, sites=sites, collusion=collusion)


def test_site_noise_is_whole_in_local_mode_and_absent_in_mode_none():
    assert site_noise(1.5, 2.0, 3, 2, 1, 10, "local") == 1.5 * 2.0 * 1024
    assert site_noise(1.5, 2.0, 3, 2, 1, 10, "none") == 0


def test_site_noise_refuses_when_nobody_is_left():
    with pytest.raises(InvalidPrivacyParameter, match="leaves no site"):
        site_noise(1.0, 1.0, 4, 2, 2, 24, "distributed")


def study_of(multiplier, rate, rounds):
    """The releases of a study of four sites whose noise is sized for one colluder, at that noise multiplier."""
    noise = site_noise(multiplier, 1.0, 4, 0, 1, 20, "distributed")
    one = Release(
        mode="distributed", site_noise_int=noise, scale_bits=20, clip_norm=1.0, dim=50_000, sample_rate=rate, sites=4
    )
    return {one: rounds}


@pytest.mark.slow
@pytest.mark.parametrize(("target", "rate", "rounds"), [(3.0, 0.2, 40), (0.5, 0.01, 100), (8.0, 1.0, 5)])
def test_solved_multiplier_meets_the_target_and_hardly_less_would(target, rate, rounds):
    multiplier = solve_noise_multiplier(lambda noise: study_of(noise, rate, rounds), target, DELTA, 1)
    assert epsilon_pld(study_of(multiplier, rate, rounds), DELTA, 1) <= target
    assert epsilon_pld(study_of(multiplier * 0.999, rate, rounds), DELTA, 1) > target


@pytest.mark.slow
def test_solved_multiplier_pays_for_what_is_released_beside():
    target = 3.0
    other = gaussian(6.0)
    multiplier = solve_noise_multiplier(lambda noise: {**study_of(noise, 0.2, 40), other: 1}, target, DELTA, 1)
    total = epsilon_pld([*[*study_of(multiplier, 0.2, 40)] * 40, other], DELTA, 1)
    assert 0.99 * target <= total <= target
    assert multiplier > solve_noise_multiplier(lambda noise: study_of(noise, 0.2, 40), target, DELTA, 1)


@pytest.mark.parametrize(("target", "why"), [(1e-9, "no noise multiplier up to"), (0.0, "target_epsilon")])
def test_a_target_that_no_noise_reaches_is_refused(target, why):
    with pytest.raises(InvalidPrivacyParameter, match=why):
        solve_noise_multiplier(lambda noise: [gaussian(noise)], target, DELTA, 0)


def test_counted_releases_cost_what_they_cost_one_by_one():
    counts = {release(sites=4): 3, release(sites=3): 2, release(mode="none"): 0}
    listed = [release(sites=4)] * 3 + [release(sites=3)] * 2
    for epsilon in (epsilon_pld, epsilon_rdp):
        assert epsilon(counts, DELTA, 1) == epsilon(listed, DELTA, 1) < math.inf


def test_many_distinct_pairs_cost_what_dp_accounting_composes_in_a_row():
    pairs = [(6 + number / 4, 0.02 * (1 + number % 3), 1 + number % 4) for number in range(12)]
    accountant = dpa.pld.PLDAccountant(value_discretization_interval=1e-3)
    for multiplier, rate, count in pairs:
        accountant.compose(dpa.PoissonSampledDpEvent(rate, dpa.GaussianDpEvent(multiplier)), count)
    counts = {gaussian(multiplier, rate): count for multiplier, rate, count in pairs}
    assert epsilon_pld(counts, DELTA, 0) == pytest.approx(accountant.get_epsilon(DELTA), rel=2e-3)


def test_very_many_equal_releases_cost_what_one_composition_of_all_costs():
    many = 64 * composition.BLOCK + 7
    accountant = dpa.pld.PLDAccountant(value_discretization_interval=1e-3)
    accountant.compose(dpa.PoissonSampledDpEvent(0.01, dpa.GaussianDpEvent(40.0)), many)
    [merged] = composition.merge({gaussian(40.0, 0.01): many}, 0)
    found = composition._composed(*merged).get_epsilon_for_delta(DELTA)  # RDP's bound is smaller here
    assert found == pytest.approx(accountant.get_epsilon(DELTA), rel=1e-4)  # five digits of the multiplier


def test_one_more_release_after_many_distinct_ones_composes_only_a_path_anew(monkeypatch):
    counts = {gaussian(9 + number / 8, 0.05): 9 for number in range(32)}
    epsilon_pld(counts, DELTA, 0)
    composed = []
    join = composition._join
    monkeypatch.setattr(composition, "_join", lambda *part: composed.append(part) or join(*part))
    counts[gaussian(9.0, 0.05)] += 1
    epsilon_pld(counts, DELTA, 0)
    assert 0 < len(composed) <= 16  # of 63 partial results; a path is about 5 to 10 long


@pytest.mark.parametrize(
    "change",
    [
        {"mode": "off"},
        {"site_noise_int": -1},
        {"scale_bits": 63},
        {"steps": 0},
        {"steps": 2},  # of noise that only the whole sum has
        {"clip_norm": 0.0},
        {"clip_norm": math.nan},
        {"clip_norm": math.inf},
        {"dim": 0},
        {"sample_rate": 0.0},
        {"sample_rate": 1.2},
        {"sample_rate": math.nan},
        {"sites": 0},
        {"planned_sites": 3},
        {"planned_sites": -1},
        {"planned_sites": 5, "mode": "local"},
        {"planned_sites": 5, "noise_collusion": 4},
        {"planned_sites": 5, "noise_collusion": -1},
        {"planned_sites": 5, "site_noise_int": 2**50 + 1},
        {"noise_collusion": 1},
    ],
)
def test_a_release_with_a_number_out_of_range_is_refused_by_name(change):
    with pytest.raises(InvalidPrivacyParameter, match=next(iter(change))):
        replace(release(), **change)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_delta_out_of_range_is_refused(delta):
    with pytest.raises(InvalidPrivacyParameter, match="delta"):
        epsilon_pld([release()], delta, 0)
    with pytest.raises(InvalidPrivacyParameter, match="colluding"):
        epsilon_rdp([release()], DELTA, -1)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**62) | st.integers(2**18, 2**30),
    st.just(24) | st.integers(0, 62),
    st.floats(1e-300, 1e300) | st.floats(1e-3, 1e3),
    st.integers(1, 2**48),
    st.floats(1e-300, 1) | st.floats(0.01, 1),
    st.integers(1, 10**6),
)
def test_no_release_from_outside_makes_an_accountant_fail(noise, bits, clip, dim, rate, sites):
    strange = Release(
        mode="distributed",
        site_noise_int=noise,
        scale_bits=bits,
        clip_norm=clip,
        dim=dim,
        sample_rate=rate,
        sites=sites,
    )
    topped_up = replace(strange, planned_sites=10**6, noise_collusion=sites - 1) if noise <= 2**50 else strange
    for one in (strange, topped_up):
        pld, rdp = epsilon_pld([one] * 3, DELTA, 1), epsilon_rdp([one] * 3, DELTA, 1)
        assert 0 <= pld <= rdp + 2e-3  # the grid's pessimism shows where both are almost 0


def test_a_release_of_several_steps_costs_what_as_many_releases_do():
    one = gaussian(2.0, 0.2)
    for count in (epsilon_pld, epsilon_rdp):
        assert count([replace(one, steps=8)] * 5, DELTA, 0) == count([one] * 40, DELTA, 0)
    assert merge([replace(one, steps=8), one], 0) == merge([one] * 9, 0)


@pytest.mark.parametrize("delta", [1e-9, 1e-10, 1e-12, 1e-14, 1e-20])
@pytest.mark.parametrize(("multiplier", "count"), [(200.0, 10_000), (30.0, 22_500), (14.0, 196)])
def test_pld_stays_above_exact_epsilon_at_deltas_where_rounding_would_decide(multiplier, count, delta):
    exact = dpa.get_epsilon_gaussian(multiplier / math.sqrt(count), delta)
    assert composition.pld_bound(((multiplier, 1.0, count),), delta) >= exact


def test_the_smaller_of_both_bounds_is_charged():
    cheap = {gaussian(2.0, 0.001): 100_000}
    assert epsilon_pld(cheap, DELTA, 0) == epsilon_rdp(cheap, DELTA, 0)
