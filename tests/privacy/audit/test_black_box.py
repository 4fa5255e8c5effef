"""Releases whose law is known, held against a charge: what is true passes, every single mistake is named."""

from dataclasses import replace

import numpy as np
import pytest

from confide.privacy.accounting import Release
from confide.privacy.audit.black_box import check_releases, most_units
from confide.privacy.errors import InvalidPrivacyParameter

CHARGED = Release(
    mode="distributed", site_noise_int=5_000, scale_bits=12, clip_norm=1.0, dim=3_000, sample_rate=0.2, sites=4
)  # fmt: skip
UNITS, CLIP = 320, 2.0**12


def releases(rng, *, noise=5_000, clip=CLIP, rate=0.2, drawn=None, rounds=16, steps=1):
    gradient = rng.normal(size=CHARGED.dim)
    direction = gradient / np.linalg.norm(gradient)
    found = []
    for _ in range(rounds):
        count = rng.binomial(UNITS, rate) if drawn is None else drawn(rng)
        added = rng.normal(0, noise * steps**0.5, CHARGED.dim)
        found.append(np.rint(count * clip * direction + added).astype(np.int64))
    return found, gradient


@pytest.mark.parametrize("seed", range(20))
def test_what_was_charged_passes(seed):
    found, gradient = releases(np.random.default_rng(seed))
    check = check_releases(CHARGED, found, UNITS, gradient)
    assert check.findings == ()
    assert check.noise == pytest.approx(1, abs=5 * check.noise_error)
    assert check.length == pytest.approx(1, abs=5 * check.length_error)


@pytest.mark.parametrize(
    ("mistake", "named"),
    [
        ({"noise": 4_850}, "noise"),
        ({"clip": 1.3 * CLIP}, "length"),
        ({"rate": 0.26}, "length"),
        ({"drawn": lambda rng: 64}, "draws"),
        ({"drawn": lambda rng: UNITS * (rng.random() < 0.2)}, "draws"),
        ({"clip": 0.0}, "length"),
    ],
    ids=["3 % of the noise is missing", "long", "drawn too often", "as many each time", "all or nobody", "not seen"],
)
def test_each_mistake_is_named(mistake, named):
    found, gradient = releases(np.random.default_rng(5), **mistake)
    assert named in {finding.check for finding in check_releases(CHARGED, found, UNITS, gradient).findings}


def test_more_noise_and_shorter_units_than_charged_harm_nobody():
    found, gradient = releases(np.random.default_rng(6), noise=6_000, clip=0.7 * CLIP)
    assert check_releases(CHARGED, found, UNITS, gradient).findings == ()


def test_of_local_steps_only_the_noise_is_read():
    local = Release(
        mode="local", site_noise_int=5_000, scale_bits=12, clip_norm=1.0, dim=3_000, sample_rate=0.2, sites=1, steps=4
    )  # fmt: skip
    assert most_units(local, None) == 1
    found, gradient = releases(np.random.default_rng(7), drawn=lambda rng: 0, steps=4)
    check = check_releases(local, found, 1, gradient)
    assert (check.findings, check.length, check.spread) == ((), None, None)
    found, gradient = releases(np.random.default_rng(7), drawn=lambda rng: 0, steps=3)
    assert [finding.check for finding in check_releases(local, found, 1, gradient).findings] == ["noise"]


@pytest.mark.parametrize(("weight", "max_norm"), [(0.1, None), (1.0, 64.0), (0.05, 200.0)])
def test_noise_that_hides_the_units_accuses_nobody(weight, max_norm):
    """A site that counts little, or a ball not much longer than the noise: true releases, 200 times."""
    charged, rng = replace(CHARGED, site_noise_int=100 * int(CLIP), dim=300), np.random.default_rng(8)
    units = most_units(charged, max_norm, weight=weight)
    for _ in range(200):
        gradient = rng.normal(size=300)
        sums = np.minimum(rng.binomial(units, 0.2, 16) * weight, max_norm or np.inf) * CLIP
        along = sums[:, None] * gradient / np.linalg.norm(gradient)
        found = np.rint(along + rng.normal(0, charged.site_noise_int, along.shape)).astype(np.int64)
        assert check_releases(charged, list(found), units, gradient, weight=weight).findings == ()


def test_a_table_is_large_enough_to_be_seen_and_small_enough_not_to_be_projected():
    assert most_units(CHARGED, None) == UNITS
    assert most_units(CHARGED, 20.0) * 0.2 <= 10
    with pytest.raises(InvalidPrivacyParameter):
        check_releases(CHARGED, [np.zeros(3_000, np.int64)], UNITS, np.ones(3_000))
