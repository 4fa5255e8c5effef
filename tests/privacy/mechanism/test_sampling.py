from collections import Counter

import numpy as np
import pytest

from confide.privacy.errors import InvalidPrivacyParameter
from confide.privacy.mechanism.sampling import SeededBytes, choose, poisson_sample


def words(*values):
    """A source that gives these 64-bit integers."""
    return lambda size: np.array(values, dtype="<u8").tobytes()[:size]


def test_coin_is_heads_below_rate_times_two_to_the_64_and_nowhere_else():
    edge = 2**62  # rate 1/4
    assert poisson_sample(4, 0.25, words(0, edge - 1, edge, 2**64 - 1)).tolist() == [0, 1]


def test_sizes_are_binomial():
    source = SeededBytes(b"sizes")
    sizes = np.array([len(poisson_sample(50, 0.04, source)) for _ in range(4000)])
    assert abs(sizes.mean() - 2) < 5 * (1.92 / 4000) ** 0.5
    assert abs(sizes.var() - 1.92) < 0.25
    assert (sizes == 0).any()


def test_rate_one_takes_everybody():
    assert poisson_sample(5, 1.0).tolist() == [0, 1, 2, 3, 4]


def test_tiny_rate_takes_nobody_rather_than_too_many():
    assert poisson_sample(2, 2.0**-70, words(0, 1)).tolist() == []


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.5, float("nan")])
def test_rate_out_of_range_is_refused(rate):
    with pytest.raises(InvalidPrivacyParameter):
        poisson_sample(5, rate)


def test_every_subset_is_equally_likely():
    source = SeededBytes(b"subsets")
    counts = Counter(tuple(choose(4, 2, source)) for _ in range(6000))
    assert len(counts) == 6
    assert all(abs(n - 1000) < 5 * 1000**0.5 for n in counts.values())


def test_more_than_there_are_cannot_be_chosen():
    with pytest.raises(InvalidPrivacyParameter):
        choose(2, 3)


def test_seeded_stream_repeats_and_goes_on():
    first, second = SeededBytes(b"seed"), SeededBytes(b"seed")
    assert first(3) + first(30) == second(33)
    assert SeededBytes(b"other")(33) != SeededBytes(b"seed")(33)


def test_seeded_stream_is_aes_256_in_counter_mode():
    import hashlib

    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    key = hashlib.sha256(b"confide seeded bytes 1\0seed").digest()
    block = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    want = block.update(bytes(16) + bytes(15) + b"\x01")
    assert SeededBytes(b"seed")(32) == want


def test_seed_is_not_shown():
    assert "secret" not in repr(SeededBytes(b"secret"))
