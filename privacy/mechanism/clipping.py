"""Bounds on what one privacy unit can do to a sum of gradients.

Legend: `U` units, `R` rows, `T` tokens.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ...kernels.collect import Collector
from ...models.adapters import AdaptedModel
from ..errors import ClipperMisused, InvalidPrivacyParameter, UnitRepeated, UnprotectedGradient

# Keeps a scaled gradient below the bound, which costs nothing: a float64 norm of 2**20 equal numbers was 1.3e-12 too
# small, and this is nearly three times as much.
_MARGIN = 1 + 2.0**-38


@dataclass(frozen=True, slots=True)
class ClipReport:
    """Figures per unit. PRIVATE: they leave the site or steer training only under a privacy event of their own."""

    norms: Tensor = field(repr=False)  # [U] float64, before clipping, units in ascending order of id
    factors: Tensor = field(repr=False)  # [U] float64 in [0, 1], what each gradient was multiplied by


class PerUnitClipper:
    """Per-unit gradients of an adapted model, clipped and summed, from one forward and one backward pass.

    Guarantees, with g_u the gradient of unit u over all trained parameters together (flat clipping):
        the sum is that of g_u * min(1, clip_norm / |g_u|), and no term is longer than clip_norm;
        a unit whose gradient is not finite contributes exactly zero, and nothing of it reaches the others;
        a step in which something trainable could bypass the clipper is refused.

    What the caller must keep: the loss is a SUM over units of terms that depend on that unit's rows alone (dividing by
    the tokens of the batch ties units together), and the model mixes nothing across rows; `independence` refuses what
    it can find of either. A unit's gradient is computed in the model's precision, and which other rows share its batch
    can change how matrix products are rounded: by less than 5e-7 of its norm in float32 and 2e-15 in float64, in the
    trials of `benchmarks/privacy.py --invariance`. Each unit stays below the bound all the same.
    """

    def __init__(self, adapted: AdaptedModel, *, trained_rank: int | None = None) -> None:
        """Takes hold of what is trained.

        Args:
            trained_rank: of every B, only so many leading components are trained here: a unit's gradient is zero in the
                others, before its norm is taken. None trains all.

        Raises:
            UnprotectedGradient: naming it, if a trainable parameter belongs to no adapter or head.
            InvalidPrivacyParameter: `trained_rank` is not from 1 to the adapter's rank, or A is trained too: the
                components of a sum over sites would then not be products of one and the same A.
        """
        self.parameters = dict(adapted.trained)
        self._trained_rank = {} if trained_rank is None else _factors_cut_to(trained_rank, adapted)
        covered = set(self.parameters.values())
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad and parameter not in covered:
                raise UnprotectedGradient(f"{name} is trainable, but no adapter gives its gradient unit by unit")
        self._slot = adapted.slot
        self._collector: Collector | None = None
        self._seen: set[int] = set()

    @contextmanager
    def microbatch(self, unit_of_row: Sequence[int] | npt.NDArray[np.int64], tokens_per_row: int) -> Iterator[None]:
        """Forward and backward of whole units happen inside; call `clipped_sum` after it.

        Args:
            unit_of_row: [R], ids that are unique to a unit within the step.
            tokens_per_row: padded length T of every row.

        Raises:
            UnitRepeated: a unit was in an earlier microbatch of this step.
            ClipperMisused: another microbatch is open or was not clipped yet, or backward reached no adapter.
            UnprotectedGradient: a trained parameter holds a gradient that did not come through here.
        """
        if self._slot.collector is not None or self._collector is not None:
            raise ClipperMisused("the previous microbatch is still open or was not clipped")
        self._refuse_stray_gradients()
        ids, row_unit = np.unique(np.asarray(unit_of_row), return_inverse=True)
        if not self._seen.isdisjoint(ids.tolist()):
            raise UnitRepeated("a unit already contributed to this step; keep all its rows in one microbatch")
        device = next(iter(self.parameters.values())).device
        collector = Collector(
            torch.as_tensor(row_unit, device=device), len(ids), tokens_per_row, self._trained_rank
        )  # fmt: skip
        with self._slot.filled(collector):
            yield
        self._refuse_stray_gradients()
        if not collector.parameters:
            raise ClipperMisused("no adapter was reached by backward inside the microbatch")
        if not set(collector.parameters) <= set(self.parameters.values()):
            raise UnprotectedGradient("backward reached an adapter that this clipper does not own")
        self._seen.update(ids.tolist())
        self._collector = collector

    @torch.no_grad()
    def clipped_sum(self, clip_norm: float | None) -> tuple[dict[str, Tensor], ClipReport]:
        """The clipped sum of the last microbatch, float64 by parameter name, and its report; zeros if there was none.

        Args:
            clip_norm: the bound, in units of the loss's gradient; None sums without clipping, for use without privacy.

        Raises:
            ClipperMisused: the microbatch is still open.
        """
        if clip_norm is not None and not 0 < clip_norm < math.inf:
            raise InvalidPrivacyParameter(f"clip_norm must be positive and finite, got {clip_norm}")
        if self._slot.collector is not None:
            raise ClipperMisused("clip after leaving the microbatch")
        self._refuse_stray_gradients()
        collector, self._collector = self._collector, None
        if collector is None:
            nobody = torch.zeros(0, dtype=torch.float64)
            return {n: _zeros(p) for n, p in self.parameters.items()}, ClipReport(nobody, nobody)
        norms = collector.square_norms().sqrt_()
        is_finite = norms.isfinite()
        if not bool(is_finite.all()):
            collector.forget(~is_finite)
        factors = is_finite.to(torch.float64)
        if clip_norm is not None:
            factors = torch.where(is_finite, (clip_norm / (norms * _MARGIN)).clamp(max=1.0), factors)
        sums = collector.weighted_sum(factors)
        total = {n: sums[p] if p in sums else _zeros(p) for n, p in self.parameters.items()}
        return total, ClipReport(norms, factors)

    def start_step(self) -> None:
        """Forgets who contributed: the next microbatch belongs to a new logical batch."""
        self._collector = None
        self._seen.clear()

    def _refuse_stray_gradients(self) -> None:
        for name, parameter in self.parameters.items():
            if parameter.grad is not None and bool(parameter.grad.any()):
                raise UnprotectedGradient(f"{name} holds an unclipped gradient: backward ran outside a microbatch")


def _zeros(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter, dtype=torch.float64)


def _factors_cut_to(rank: int, adapted: AdaptedModel) -> dict[nn.Parameter, int]:
    if not 1 <= rank <= adapted.config.rank or not adapted.config.freeze_a:
        raise InvalidPrivacyParameter(
            f"trained_rank must be from 1 to {adapted.config.rank}, with A frozen; got {rank}"
            + ("" if adapted.config.freeze_a else " and A trained")
        )
    return {parameter: rank for name, parameter in adapted.trained.items() if name.endswith(".lora_B")}
