import numpy as np
import pytest
import torch

from confide.mpc.crypten import runtime
from confide.mpc.crypten.triples import Replicated

DIMS = (2, 3)


def share(fraud, party, features, labels):
    own = (features[:, : DIMS[0]], features[:, DIMS[0] :], None)[party]
    return fraud.secure_gradient.SharedRows(len(features), DIMS, own, labels if party == 0 else None)


def opened(fraud, parties, features, labels, weights, noise):
    """The gradient as each of three parties gets it; party p adds noise[p]."""

    def run(links):
        runtime.start(links)
        with runtime.using(Replicated()):
            shared = share(fraud, links.aggregator_id, features, labels)
            return shared.gradient(weights, noise[links.aggregator_id])

    return parties(run)


def at_the_edges(fraud):
    """Rows whose probability is at, one unit inside and one unit outside each end of the clamp."""
    half = 2 ** (fraud.model.ONE_BITS - 1)
    logits = [sign * (half + step) for sign in (1, -1) for step in (-1, 0, 1)] + [0, 2**42, -(2**42)]
    return (
        np.array([[logit, 0, 0, 0, 1] for logit in logits]),
        np.array([0, 1, 0, 1, 0, 1, 0, 0, 1]),
        np.array([1, 0, 0, 0, 0]),
    )


def at_random(fraud):
    rng = np.random.default_rng(4)
    return rng.integers(-9_000, 9_000, (64, 5)), rng.integers(0, 2, 64), rng.integers(-9_000, 9_000, 5)


@pytest.mark.parametrize("case", [at_the_edges, at_random])
def test_all_parties_get_the_gradient_in_the_clear_plus_all_noise(fraud, parties, case):
    features, labels, weights = case(fraud)
    noise = np.array([[1, 2, 3, 4, 5], [10, 0, 0, 0, -7], [100, -100, 0, 2**44, -(2**44)]])
    expected = fraud.model.gradient_in_the_clear(features, labels, weights) + noise.sum(axis=0)
    for found in opened(fraud, parties, features, labels, weights, noise):
        assert found.tolist() == expected.tolist()


def test_what_is_opened_on_the_way_is_random_whatever_the_data(fraud, parties, monkeypatch):
    """All data is zero here: anything that was opened unmasked would be a constant."""
    seen = []
    reduce = runtime.PartyCommunicator.all_reduce

    def recorded(self, *args, **kwargs):
        result = reduce(self, *args, **kwargs)
        if self.get_rank() == 2:
            seen.append(result if isinstance(result, list) else [result])
        return result

    monkeypatch.setattr(runtime.PartyCommunicator, "all_reduce", recorded)
    zeros = np.zeros((200, 5), np.int64)
    total = opened(fraud, parties, zeros, zeros[:, 0], zeros[0], np.zeros((3, 5), np.int64))[0]
    *masked, last = [torch.cat([one.reshape(-1) for one in each]).numpy() for each in seen]
    assert last.tolist() == total.tolist() == [0] * 5  # x is zero; the one opening that the noise is for
    for values in masked:
        bits = 1 if set(values.tolist()) <= {0, 1} else 64  # the clamp's bits, or whole words
        ones = sum(int(word).bit_count() for word in values.view(np.uint64))
        count = bits * values.size
        assert abs(ones - count / 2) < 7 * (count / 4) ** 0.5  # seven sigma


def test_shares_of_the_opened_sum_say_no_more_than_the_sum(fraud, parties, monkeypatch):
    """Each party's message at the last step is masked afresh: two runs on the same data have nothing in common."""
    sent = []
    reduce = runtime.PartyCommunicator.all_reduce

    def recorded(self, input, *args, **kwargs):
        if self.get_rank() == 0 and not isinstance(input, list) and input.shape == (5,):
            sent.append(input.tolist())
        return reduce(self, input, *args, **kwargs)

    monkeypatch.setattr(runtime.PartyCommunicator, "all_reduce", recorded)
    features, labels, weights = at_random(fraud)
    for _ in range(2):
        opened(fraud, parties, features, labels, weights, np.zeros((3, 5), np.int64))
    assert len(sent) == 2
    assert not set(sent[0]) & set(sent[1])


def test_an_owner_without_its_part_is_refused(fraud, parties):
    def run(links):
        runtime.start(links)
        with runtime.using(Replicated()):
            fraud.secure_gradient.SharedRows(4, DIMS, None, None)

    with pytest.raises(ValueError, match="must give it"):
        parties(run)
