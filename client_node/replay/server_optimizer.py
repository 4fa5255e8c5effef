"""The server optimizer: it computes the next state from a round's opened sum, from released numbers only.

This is post-processing of a differentially private sum and costs no budget. The coordinator and every site compute it,
each for itself, and must get the same bits. So it is made of sums, differences, products, quotients, square roots and
comparisons in float64, element by element: IEEE 754 gives each of them one result. Powers, exponentials and logarithms,
which differ by a last bit between libraries, are not used. State between rounds is float32, so a run resumed from disk
goes on bit for bit.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ...privacy.mechanism.adaptive_clipping import next_log_clip
from ..errors import InvalidOptimizer
from ..study import StudyDraft
from .checkpoint import Checkpoint


def server_step(draft: StudyDraft, before: Checkpoint, total: np.ndarray, head_slice: slice) -> Checkpoint:
    """Computes the checkpoint after one more round.

    Args:
        total: [dim], the opened sum over all sites in real units.
        head_slice: the head's place in the state; an empty slice if there is none.

    Raises:
        InvalidOptimizer: shapes differ, or a number is or becomes infinite or NaN.
    """
    mean_update = total / draft.update_divisor
    privacy = draft.privacy
    if privacy.clipping == "adaptive":  # the last entry is no parameter: the count behind the clip's next logarithm
        state = before.state.copy()
        state[-1] = next_log_clip(
            float(state[-1]),
            float(total[-1]) / privacy.local_steps,
            batch_units=draft.rounds.batch_units,
            target_quantile=privacy.target_quantile,
            learning_rate=privacy.clip_learning_rate,
        )
        before, mean_update[-1] = replace(before, state=state), 0.0
    return ServerOptimizer.of(draft).step(before, mean_update, head_slice)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerOptimizer:
    """Heavy-ball SGD or Adam on the mean noisy update, with one rate for the adapters and one for the head.

    Adam is FedAdam (Reddi et al. 2021, arXiv:2003.00295) with the bias corrections of Kingma & Ba. What it learns of
    the second moment is mostly noise, of known variance; with `noise_std` that is taken off (Tang et al. 2024,
    arXiv:2312.14334, DP-AdamBC), and a coordinate without signal then steps by lr * velocity / eps.
    """

    kind: Literal["momentum", "adam"] = "momentum"
    lr: float  # of the adapters
    head_lr: float  # of the head, which sees inputs of unit length
    momentum: float  # in [0, 1); Adam's beta1
    beta2: float = 0.99  # in [0, 1)
    eps: float = 1e-3  # in units of the mean update
    noise_std: float = 0.0  # in an entry of the mean update, taken off Adam's second moment
    ema_decay: float | None = None  # in (0, 1); None keeps no average

    def __post_init__(self) -> None:
        rates_hold = all(0 < rate < math.inf for rate in (self.lr, self.head_lr))  # NaN fails too
        if not (rates_hold and 0 <= self.momentum < 1):
            raise InvalidOptimizer(f"need finite lr > 0, finite head_lr > 0 and momentum in [0, 1), got {self}")
        if not (0 <= self.beta2 < 1 and 0 < self.eps < math.inf and 0 <= self.noise_std < math.inf):
            raise InvalidOptimizer(f"need beta2 in [0, 1), finite eps > 0 and noise_std >= 0, got {self}")
        if self.kind not in ("momentum", "adam") or not (self.ema_decay is None or 0 < self.ema_decay < 1):
            raise InvalidOptimizer(f"need kind momentum or adam and ema_decay in (0, 1), got {self}")

    @classmethod
    def of(cls, draft: StudyDraft) -> "ServerOptimizer":
        """Makes the optimizer of a study's rounds."""
        terms = draft.optimizer
        lr, head_lr = terms.rates
        return cls(
            kind=terms.kind,
            lr=lr,
            head_lr=head_lr,
            momentum=terms.momentum,
            beta2=terms.beta2,
            eps=terms.eps,
            noise_std=draft.noise_std / draft.update_divisor if terms.noise_correction else 0.0,
            ema_decay=terms.ema_decay if terms.averaging == "ema" else None,
        )

    def step(self, before: Checkpoint, mean_update: np.ndarray, head_slice: slice) -> Checkpoint:
        """Takes the step of one round: state' = state - rate * direction.

        momentum: velocity' = momentum * velocity + mean_update is the direction.
        adam: velocity' and second_moment' are running means of the update and its square, and the direction is
            corrected velocity' / (sqrt(max(corrected second_moment' - noise_std^2, 0)) + eps).
        The average, if kept, weights the state after round s by ema_decay^(rounds - s): it forgets its own start.

        Args:
            before: after the last round; its round is the number of steps that Adam and the average have taken.
            mean_update: [dim], the opened sum of gradients per expected unit, in clip units.
            head_slice: the head's place in the vectors; an empty slice if there is none.

        Raises:
            InvalidOptimizer: shapes differ, or a number is or becomes infinite or NaN; `before` is left as it was.
        """
        state = before.state
        if not (state.ndim == 1 and state.shape == before.velocity.shape == mean_update.shape):
            raise InvalidOptimizer(f"shapes differ: {state.shape}, {before.velocity.shape}, {mean_update.shape}")
        number, mean_update = before.round + 1, _wide(mean_update)
        rates = np.full(state.shape, self.lr, dtype=np.float64)
        rates[head_slice] = self.head_lr
        # A step uses what is kept as it is kept, in float32: a resumed run must not see more digits than a running one.
        with np.errstate(over="ignore", invalid="ignore"):  # caught below
            if self.kind == "momentum":
                second_moment = None
                velocity = _kept(self.momentum * _wide(before.velocity) + mean_update)
                direction = _wide(velocity)
            else:
                velocity = _kept(self.momentum * _wide(before.velocity) + (1 - self.momentum) * mean_update)
                so_far = 0.0 if before.second_moment is None else _wide(before.second_moment)
                second_moment = _kept(self.beta2 * so_far + (1 - self.beta2) * np.square(mean_update))
                signal = _wide(second_moment) / (1 - _power(self.beta2, number)) - self.noise_std * self.noise_std
                root = np.sqrt(np.maximum(signal, 0.0)) + self.eps
                direction = _wide(velocity) / (1 - _power(self.momentum, number)) / root
            new_state = _kept(_wide(state) - rates * direction)
            average = None
            if self.ema_decay is not None:
                share = (1 - self.ema_decay) / (1 - _power(self.ema_decay, number))
                last = _wide(new_state if before.average is None else before.average)
                average = _kept(last + share * (_wide(new_state) - last))
        kept = [array for array in (new_state, velocity, second_moment, average) if array is not None]
        if not all(np.isfinite(array).all() for array in kept):
            raise InvalidOptimizer("the step is not finite; state and velocity were kept as they were")
        return Checkpoint(
            round=number, state=new_state, velocity=velocity, second_moment=second_moment, average=average
        )


def _power(base: float, exponent: int) -> float:
    """Multiplies `base` with itself: the C library's pow may differ by a last bit from one machine to the next."""
    product = 1.0
    for _ in range(exponent):
        product *= base
    return product


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64)


def _kept(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32)
