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

MAX_UNITS = 2**21  # of a step: their clipped gradients add up exactly
# Keeps a scaled gradient below the bound by what float64 may lose on the way to the ring (docs/noise.md, section 2): in
# norms of gradients, and where the exact sum is weighed, projected and put into clip units.
_MARGIN = 1 + 2.0**-24


@dataclass(frozen=True, slots=True)
class ClipReport:
    """Figures per unit. PRIVATE: they leave the site or steer training only under a privacy event of their own."""

    norms: Tensor = field(repr=False)  # [U] float64, before clipping, units in ascending order of id
    factors: Tensor = field(repr=False)  # [U] float64 in [0, 1], what each gradient was multiplied by


class PerUnitClipper:
    """Per-unit gradients of an adapted model, clipped and summed, from one forward and one backward pass.

    Guarantees, with g_u the gradient of unit u over all trained parameters together (flat clipping):
        the sum is that of g_u * min(1, clip_norm / |g_u|), each number cut towards zero to a multiple of `grid_of`;
        no term is longer than clip_norm, and the sum of terms is exact, in whatever order they come;
        a unit whose gradient is not finite contributes exactly zero, and nothing of it reaches the others;
        a step in which something trainable could bypass the clipper is refused.

    What the caller must keep: the loss is a SUM over units of terms that depend on that unit's rows alone (dividing by
    the tokens of the batch ties units together), and the model mixes nothing across rows; `independence` refuses what
    it can find of either. A unit's gradient is computed in the model's precision; that who shares its batch does not
    change how it is rounded is a matter of the batches' shapes, for which `batches` cares.
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
        self._num_units = 0  # of the last microbatch
        self._seen: set[int] = set()

    @contextmanager
    def microbatch(
        self, unit_of_row: Sequence[int] | npt.NDArray[np.int64], tokens_per_row: int, *, num_rows: int | None = None
    ) -> Iterator[None]:
        """Forward and backward of whole units happen inside; call `clipped_sum` after it.

        Args:
            unit_of_row: [R], ids that are unique to a unit within the step.
            tokens_per_row: padded length T of every row.
            num_rows: blank rows, which belong to nobody, follow up to this number; None: there are none.

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
        rows = len(row_unit) if num_rows is None else num_rows
        # As many places for units as rows: how many units there are must not show in a shape. Blank rows have the last.
        place_of_row = np.append(row_unit, np.full(rows - len(row_unit), rows - 1, dtype=np.int64))
        collector = Collector(torch.as_tensor(place_of_row, device=device), rows, tokens_per_row, self._trained_rank)
        with self._slot.filled(collector):
            yield
        self._refuse_stray_gradients()
        if not collector.parameters:
            raise ClipperMisused("no adapter was reached by backward inside the microbatch")
        if not set(collector.parameters) <= set(self.parameters.values()):
            raise UnprotectedGradient("backward reached an adapter that this clipper does not own")
        self._seen.update(ids.tolist())
        self._collector, self._num_units = collector, len(ids)

    def clipped_sum(self, clip_norm: float | None) -> tuple[dict[str, Tensor], ClipReport]:
        """The clipped sum of the last microbatch, float64 by parameter name, and its report; zeros if there was none.

        Args:
            clip_norm: the bound, in units of the loss's gradient; None sums without clipping, for use without privacy.

        Raises:
            ClipperMisused: the microbatch is still open.
        """
        sums, report = self.clipped_sums(clip_norm, np.zeros(self._num_units, dtype=np.int64))
        return sums.get(0) or {n: _zeros(p) for n, p in self.parameters.items()}, report

    @torch.no_grad()
    def clipped_sums(
        self, clip_norm: float | None, group_of_unit: npt.NDArray[np.int64]
    ) -> tuple[dict[int, dict[str, Tensor]], ClipReport]:
        """The clipped sums of the last microbatch by group of units; see `clipped_sum`.

        With a `clip_norm` a sum is the same to the last bit, whatever other groups share the microbatch.

        Args:
            group_of_unit: [U], units in ascending order of id.

        Raises:
            ClipperMisused: the microbatch is still open, or groups are not of its units.
        """
        if clip_norm is not None and not 0 < clip_norm < math.inf:
            raise InvalidPrivacyParameter(f"clip_norm must be positive and finite, got {clip_norm}")
        if self._slot.collector is not None:
            raise ClipperMisused("clip after leaving the microbatch")
        self._refuse_stray_gradients()
        collector, self._collector = self._collector, None
        if collector is None:
            nobody = torch.zeros(0, dtype=torch.float64)
            return {}, ClipReport(nobody, nobody)
        norms = collector.square_norms().sqrt_()
        counts = norms.isfinite()
        counts[self._num_units :] = False  # places that no unit has
        if not bool(counts.all()):
            collector.forget(~counts)
        factors = counts.to(torch.float64)
        if clip_norm is not None:
            factors = torch.where(counts, (clip_norm / (norms * _MARGIN)).clamp(max=1.0), factors)
        if len(group_of_unit) != self._num_units:
            raise ClipperMisused("groups are not of the microbatch's units")  # no count: it depends on who was drawn
        groups, place_of_unit = np.unique(group_of_unit, return_inverse=True)
        place_U = torch.zeros_like(factors, dtype=torch.int64)  # places that no unit has add zeros to the first
        place_U[: self._num_units] = torch.as_tensor(place_of_unit, device=factors.device)
        grid = None if clip_norm is None else grid_of(clip_norm)
        sums = collector.weighted_sums(factors, place_U, max(1, len(groups)), grid=grid)
        totals = {
            group: {n: sums[p][place] if p in sums else _zeros(p) for n, p in self.parameters.items()}
            for place, group in enumerate(groups.tolist())
        }
        return totals, ClipReport(norms[: self._num_units], factors[: self._num_units])

    def start_step(self) -> None:
        """Forgets who contributed: the next microbatch belongs to a new logical batch."""
        self._collector = None
        self._seen.clear()

    def _refuse_stray_gradients(self) -> None:
        for name, parameter in self.parameters.items():
            if parameter.grad is not None and bool(parameter.grad.any()):
                raise UnprotectedGradient(f"{name} holds an unclipped gradient: backward ran outside a microbatch")


def grid_of(clip_norm: float) -> float:
    """The power of two of which clipped gradients are multiples: `MAX_UNITS` of them stay below 2**53 of it."""
    return math.ldexp(1.0, math.frexp(clip_norm)[1] - 32)


def _zeros(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter, dtype=torch.float64)


def _factors_cut_to(rank: int, adapted: AdaptedModel) -> dict[nn.Parameter, int]:
    if not 1 <= rank <= adapted.config.rank or not adapted.config.freeze_a:
        raise InvalidPrivacyParameter(
            f"trained_rank must be from 1 to {adapted.config.rank}, with A frozen; got {rank}"
            + ("" if adapted.config.freeze_a else " and A trained")
        )
    return {parameter: rank for name, parameter in adapted.trained.items() if name.endswith(".lora_B")}
