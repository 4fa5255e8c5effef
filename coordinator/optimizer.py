"""The server's half of a training step: momentum on the mean noisy update. Works on released numbers only."""

import math
from dataclasses import dataclass

import numpy as np

from .errors import InvalidOptimizer


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerOptimizer:
    """Heavy-ball SGD with one learning rate for the adapters and one for the head.

    Post-processing of a differentially private sum: costs no budget. Arithmetic is element by element in float64 and so
    the same on every machine; what is kept between rounds is float32, so a run resumed from disk goes on bit for bit.
    """

    lr: float  # of the adapters
    head_lr: float  # of the head, which sees inputs of unit length
    momentum: float  # in [0, 1)

    def __post_init__(self) -> None:
        if not (0 < self.lr < math.inf and 0 < self.head_lr < math.inf and 0 <= self.momentum < 1):  # NaN fails too
            raise InvalidOptimizer(f"need finite lr > 0, finite head_lr > 0 and momentum in [0, 1), got {self}")

    def step(
        self, state: np.ndarray, velocity: np.ndarray, mean_update: np.ndarray, head_slice: slice
    ) -> tuple[np.ndarray, np.ndarray]:
        """velocity' = momentum * velocity + mean_update; state' = state - rate * velocity'.

        Args:
            state: float32 [dim], the trained parameters.
            velocity: float32 [dim], zeros before the first round.
            mean_update: [dim], the opened sum of gradients / (batch_units * clip_norm).
            head_slice: where the head stands in the vectors; an empty slice if there is none.

        Returns:
            New (state, velocity), float32; the arguments are left alone.

        Raises:
            InvalidOptimizer: shapes differ, or a number is or becomes infinite or NaN.
        """
        if not (state.ndim == 1 and state.shape == velocity.shape == mean_update.shape):
            raise InvalidOptimizer(f"shapes differ: {state.shape}, {velocity.shape}, {mean_update.shape}")
        rates = np.full(state.shape, self.lr, dtype=np.float64)
        rates[head_slice] = self.head_lr
        with np.errstate(over="ignore", invalid="ignore"):  # caught below
            # The step uses the velocity as it is kept: a resumed run must not see more digits than a running one.
            new_velocity = (self.momentum * velocity.astype(np.float64) + mean_update).astype(np.float32)
            new_state = (state.astype(np.float64) - rates * new_velocity.astype(np.float64)).astype(np.float32)
        if not (np.isfinite(new_state).all() and np.isfinite(new_velocity).all()):
            raise InvalidOptimizer("the step is not finite; state and velocity were kept as they were")
        return new_state, new_velocity
