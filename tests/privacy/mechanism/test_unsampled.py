from collections import Counter

import numpy as np
import pytest
from scipy.stats import chi2

from confide.privacy.errors import BatchMalformed, InvalidPrivacyParameter, SourceRefused
from confide.privacy.mechanism.sampling import SeededBytes
from confide.privacy.mechanism.unsampled import UnsampledTerms, private_histogram, private_prototype

SCALE = 2**20
CELLS = [0, 3, 3, 1, 2, 2, 0]
UNITS = [7, 7, 8, 9, 9, 9, 4]


def terms(*, mode="none", noise=0, cells=5):
    return UnsampledTerms(mode=mode, dim=cells, site_noise_int=noise, scale_bits=20)


def counted(cells, units, seed=b"a", **changes):
    return private_histogram(cells, units, terms=terms(**changes), source=SeededBytes(seed)) / SCALE


def test_records_of_a_unit_each_are_counted_where_they_fall():
    cells = np.random.default_rng(1).integers(0, 5, 200)
    loop = [sum(cell == wanted for cell in cells) for wanted in range(5)]
    assert counted(cells, np.arange(200)).tolist() == loop


def test_a_unit_is_counted_once_however_many_records_it_has():
    found = counted(CELLS, UNITS)
    assert found.sum() == len(set(UNITS))
    assert found[4] == 0
    assert found.tolist() == found.astype(int).tolist()


@pytest.mark.parametrize("unit", sorted(set(UNITS)))
def test_adding_a_unit_with_all_its_records_adds_one_to_one_cell(unit):
    cells, units = np.array(CELLS), np.array(UNITS)
    rest = units != unit
    seen = set()
    for seed in range(20):  # whichever of its records is drawn
        alone = counted(cells[~rest], units[~rest], seed=bytes([seed]))
        assert np.linalg.norm(alone) == 1
        seen.add(int(alone.argmax()))
    assert seen == set(cells[~rest].tolist())
    assert counted(cells[rest], units[rest]).sum() + 1 == counted(cells, units).sum()


def test_every_record_of_a_unit_is_counted_equally_often():
    draws = Counter(int(counted([0, 1, 1, 2], [5, 5, 5, 5], seed=str(n).encode()).argmax()) for n in range(2000))
    statistic = sum((draws[cell] - share) ** 2 / share for cell, share in ((0, 500), (1, 1000), (2, 500)))
    assert statistic < chi2.ppf(1 - 1e-6, df=2)


def test_no_record_at_all_is_a_histogram_of_noise():
    assert not counted([], []).any()
    noise = private_histogram([], [], terms=terms(mode="distributed", noise=10**6, cells=4000))
    assert abs(noise.std() / 10**6 - 1) < 0.08  # seven standard errors of 4,000 draws


def test_noise_is_added_to_the_counts_and_has_the_agreed_std():
    terms_ = terms(mode="local", noise=10**6, cells=4000)
    found = private_histogram(np.zeros(50, int), np.arange(50), terms=terms_)
    assert found.dtype == np.int64
    assert abs(found[0] - 50 * SCALE) < 10 * 10**6
    assert abs(found[1:].std() / 10**6 - 1) < 0.08


def test_protection_takes_no_source_but_the_operating_system():
    with pytest.raises(SourceRefused):
        private_histogram(CELLS, UNITS, terms=terms(mode="distributed", noise=100), source=SeededBytes(b"a"))


@pytest.mark.parametrize(("cells", "units"), [([0, 1], [1]), ([[0], [1]], [1, 2]), ([5], [1]), ([-1], [1])], ids=str)
def test_what_does_not_fit_together_is_refused(cells, units):
    with pytest.raises(BatchMalformed):
        counted(cells, units)


@pytest.mark.parametrize(
    "changes", [{"mode": "distributed"}, {"mode": "none", "noise": 5}, {"mode": "local", "noise": -1}, {"cells": 0}]
)
def test_terms_that_protect_nothing_or_make_no_sense_are_refused(changes):
    with pytest.raises(InvalidPrivacyParameter):
        terms(**changes)


def summed(vectors, units, seed=b"a", **changes):
    return private_prototype(vectors, units, terms=terms(**changes), source=SeededBytes(seed))


def test_a_prototype_adds_the_mean_of_each_units_vectors():
    vectors = [[1.0, 0, 0, 0, 0], [0, 1.0, 0, 0, 0], [0, 0, 0.6, 0.8, 0], [0, 0, 0, 0, -0.5]]
    found = summed(vectors, [7, 7, 3, 9]) / SCALE
    np.testing.assert_allclose(found, [0.5, 0.5, 0.6, 0.8, -0.5], atol=2e-6)


def test_a_unit_moves_a_prototype_by_no_more_than_a_vector_of_length_one():
    rng = np.random.default_rng(0)
    vectors, units = 100 * rng.normal(size=(60, 64)), np.sort(rng.integers(0, 9, 60))
    whole = summed(vectors, units, cells=64)
    for unit in range(9):
        others = units != unit
        moved = (whole - summed(vectors[others], units[others], cells=64)).astype(np.float64)
        assert 0 < np.linalg.norm(moved) <= SCALE
    alone = summed(1e6 * rng.normal(size=(1, 64)), [0], cells=64).astype(object)
    assert sum(number**2 for number in alone) <= SCALE**2  # exactly, in whole numbers


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_finite_counts_as_nothing_and_spoils_nobody_else(number):
    vectors = [[0.6, 0.8, 0, 0, 0], [0, number, 0, 0, 0]]
    np.testing.assert_array_equal(summed(vectors, [1, 2]), summed(vectors[:1], [1]))


def test_the_order_of_units_says_nothing_in_a_prototype():
    rng = np.random.default_rng(1)
    vectors, units = rng.normal(size=(500, 5)), np.repeat(rng.permutation(250), 2)
    order = np.argsort(units, kind="stable")
    np.testing.assert_array_equal(summed(vectors, units), summed(vectors[order], units[order]))


def test_nobody_has_a_prototype_of_zeros_and_noise_is_added():
    assert summed(np.zeros((0, 5)), []).tolist() == [0] * 5
    terms_ = terms(mode="local", noise=10**6, cells=4000)
    found = private_prototype(np.zeros((0, 4000)), [], terms=terms_)
    assert found.dtype == np.int64
    assert abs(found.std() / 10**6 - 1) < 0.08


def test_a_protected_prototype_takes_no_source_but_the_operating_system():
    with pytest.raises(SourceRefused):
        summed(np.zeros((1, 5)), [1], mode="distributed", noise=100)


@pytest.mark.parametrize(
    ("vectors", "units"),
    [([[0.0] * 4], [1]), ([[0.0] * 5], [1, 2]), ([0.0] * 5, [1])],
    ids=str,
)
def test_vectors_that_do_not_fit_are_refused(vectors, units):
    with pytest.raises(BatchMalformed):
        summed(vectors, units)
