"""Sums the gradient on shares, in CrypTen: exactly what `model.gradient_in_the_clear` computes, opened with noise.

Whole numbers modulo 2**64 and no truncation, so the result is the same to the last bit. Weights are public, so x w is
local. Messages are needed for two comparisons a person for the clamp, a product with their bits, and a product of
matrix and vector. All values that these open are masked uniformly; of the data only the noised sum is opened.

It is secure if the parties follow the protocol and no two of them collude (`triples.Replicated`).
"""

from typing import Any

import torch
from columns import Integers
from model import ONE_BITS

from confide.mpc.crypten import runtime
from confide.mpc.crypten.runtime import ArithmeticSharedTensor

ONE = 2**ONE_BITS


class SharedRows:
    """This party's shares of the common people's rows and labels. Use it where triples are provided."""

    def __init__(self, people: int, dims: tuple[int, int], features: Integers | None, labels: Integers | None) -> None:
        """Shares what this party owns and takes its shares of the rest, without messages.

        Args:
            people: rows, the same and in the same order at both owners.
            dims: how many features party 0 and party 1 own.
            features: [people, dims[party]] at the owners, None at party 2.
            labels: [people] at party 0, None at the others.
        """
        parts = [_shared(features, (people, dim), owner) for owner, dim in enumerate(dims)]
        self._features = ArithmeticSharedTensor.from_shares(torch.cat([part.share for part in parts], 1), precision=0)
        self._labels = _shared(labels, (people,), 0)

    def gradient(self, weights: Integers, noise: Integers) -> Integers:
        """The sum over the people of x (s(x w) - y), plus all three parties' noise; shown to all three.

        Args:
            weights: [dim], public.
            noise: [dim], this party's own.

        Raises:
            PartyLost: another party is gone, silent or out of step.
        """
        shifted = self._features.matmul(torch.from_numpy(weights)) + ONE // 2
        is_below, is_above = _are_negative(shifted, ONE - shifted)
        probabilities = shifted * (1 - is_below - is_above) + is_above * ONE
        total = self._features.t().matmul(probabilities - self._labels * ONE)
        total.share += torch.from_numpy(noise)
        total.share += ArithmeticSharedTensor.PRZS(total.size()).share  # so that single shares say nothing
        return total.reveal().numpy()  # type: ignore[no-any-return]


def _shared(values: Integers | None, size: tuple[int, ...], owner: int) -> Any:
    """A sharing of `owner`'s values: a fresh sharing of zero, and the owner adds."""
    shared = ArithmeticSharedTensor.from_shares(ArithmeticSharedTensor.PRZS(size).share, precision=0)
    if runtime.aggregator_id() == owner:
        if values is None or values.shape != size:
            raise ValueError(f"the owner of a part of size {size} must give it")
        shared.share += torch.from_numpy(values)
    return shared


def _are_negative(*values: Any) -> list[Any]:
    """Sharings of 1 where a shared value is below 0, else 0: the top bit, by CrypTen's conversions, all in one go."""
    convert, ptype = runtime.crypten.mpc.primitives.converters.convert, runtime.crypten.mpc.ptype
    words = convert(ArithmeticSharedTensor.stack(list(values)), ptype.binary)
    words.share >>= 63
    bits = convert(words, ptype.arithmetic, precision=0, bits=1)
    return [bits[row] for row in range(len(values))]
