"""Logistic regression in whole numbers: the trained model, and the same computation in the clear for comparison.

The sigmoid is s(z) = clamp(1/2 + z/4, 0, 1), whose loss is convex. A person with row x, norm at most 1, and label y in
{0, 1} adds x (s(x w) - y) to the gradient's sum: at most 1 in L2, exactly, because nothing is rounded after x. Only the
sum is opened, with noise. Everything after it (momentum, the step, rounding w) is public.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from columns import SCALE_BITS, Integers, Reals
from psi import MAX_IDS

from confide.mpc.errors import InvalidField
from confide.mpc.fields import whole

WEIGHT_BITS = 10
ONE_BITS = SCALE_BITS + WEIGHT_BITS + 2  # a probability of 1 in units of the clamp: z / 4 is z at a finer unit
GRADIENT_BITS = SCALE_BITS + ONE_BITS  # a person's gradient has a norm of at most 2**GRADIENT_BITS
MAX_WEIGHT = 2.0**16  # x w stays below 2**43; a sum over MAX_IDS people below 2**62

Gradient = Callable[[Integers], Integers]


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimizer:
    """Full-batch gradient descent with momentum."""

    steps: int  # opened gradients, in [1, 1000]
    learning_rate: float  # above 0
    momentum: float  # in [0, 1)
    expected_people: int  # public, in place of the number of people, which is not

    def __post_init__(self) -> None:
        whole("steps", self.steps, 1, 1000)
        whole("expected_people", self.expected_people, 1, MAX_IDS)
        if not (0 < self.learning_rate < np.inf and 0 <= self.momentum < 1):
            raise InvalidField(f"need learning_rate > 0 and momentum in [0, 1), got {self}")

    def train(self, gradient: Gradient, dim: int) -> Integers:
        """Weights in units of 2**-WEIGHT_BITS, [dim].

        Args:
            gradient: the noised sum over the people at given weights, in units of 2**-GRADIENT_BITS; called `steps`
                times, and nothing else of the data is used.

        Raises:
            ValueError: a weight leaves [-MAX_WEIGHT, MAX_WEIGHT]: the learning rate is too high.
        """
        weights, velocity = np.zeros(dim), np.zeros(dim)
        for _ in range(self.steps):
            velocity = self.momentum * velocity + gradient(rounded(weights)) * 2.0**-GRADIENT_BITS
            weights = weights - self.learning_rate / self.expected_people * velocity
        return rounded(weights)


def rounded(weights: Reals) -> Integers:
    """Weights in units of 2**-WEIGHT_BITS."""
    if not (np.abs(weights) <= MAX_WEIGHT).all():
        raise ValueError(f"a weight is above {MAX_WEIGHT:g}: lower the learning rate")
    units: Integers = np.rint(weights * 2**WEIGHT_BITS).astype(np.int64)
    return units


def gradient_in_the_clear(features: Integers, labels: Integers, weights: Integers) -> Integers:
    """The sum over the people of x (s(x w) - y), in units of 2**-GRADIENT_BITS.

    Args:
        features: [people, dim] in units of 2**-SCALE_BITS.
        labels: [people] 0 or 1.
        weights: [dim] in units of 2**-WEIGHT_BITS.
    """
    probabilities = np.clip(features @ weights + 2 ** (ONE_BITS - 1), 0, 2**ONE_BITS)
    return np.asarray(features.T @ (probabilities - labels * 2**ONE_BITS))
