"""Opacus' optimizer, fed by per-unit clipping and noised in the ring.

Opacus keeps the books: skipped steps for microbatches, the hook by which its accountants count a step. Gradient
capture, clipping and noise are ours.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from opacus.optimizers import DPOptimizer

from ..accounting.composition import SMOOTHING
from ..errors import ClipperMisused, InvalidPrivacyParameter, UnprotectedGradient
from .clipping import ClipReport, PerUnitClipper
from .noise import discrete_gaussian
from .projection import onto_ball
from .sampling import Integers, RandomBytes

_CHUNK = 2**17  # entries noised at a time: a sampler needs many times the memory of what it returns
_RING_LIMIT = 2.0**61  # of a rounded sum: a quarter of what an int64 holds, the rest is room for the noise


@dataclass(frozen=True, kw_only=True, slots=True)
class RingNoise:
    """Rounding of a sum to fixed point, then integer Gaussian noise.

    Rounding comes first, so two sums that differ by clip_norm in l2 differ in the ring by at most
    2**scale_bits * clip_norm + sqrt(dim), and the noise itself is exact.
    """

    sigma: int  # std of the noise in ring units; 0 adds none and protects nothing
    scale_bits: int  # a ring unit is 2**-scale_bits
    source: RandomBytes = field(default=os.urandom, repr=False)

    def __post_init__(self) -> None:
        if self.sigma < 0 or not 0 <= self.scale_bits <= 48:
            raise InvalidPrivacyParameter(f"need sigma >= 0 and scale_bits in [0, 48], got {self}")

    def noise_multiplier(self, clip_norm: float, dim: int) -> float:
        """Noise that counts over the sensitivity of a rounded sum of `dim` entries; as `accounting.Release` has it."""
        counts = math.sqrt(max(0.0, self.sigma**2 - SMOOTHING**2))
        return counts / (2.0**self.scale_bits * clip_norm + math.sqrt(dim))

    def add_to(self, total: npt.NDArray[np.float64]) -> Integers:
        """The noised sum in ring units, int64.

        An entry is cut to the ring rather than refused: cutting moves no two sums further apart, while a refusal would
        be an answer about records without noise. A clipped sum is finite; NaN would count as 0.
        """
        released = np.empty(total.size, dtype=np.int64)
        for start in range(0, total.size, _CHUNK):
            part = slice(start, start + _CHUNK)
            released[part] = self._noised(total[part])
        return released

    def _noised(self, total: npt.NDArray[np.float64]) -> Integers:
        scaled = np.rint(total * 2.0**self.scale_bits)
        np.nan_to_num(scaled, copy=False, posinf=_RING_LIMIT, neginf=-_RING_LIMIT)
        np.clip(scaled, -_RING_LIMIT, _RING_LIMIT, out=scaled)
        rounded: Integers = scaled.astype(np.int64)
        if self.sigma:
            rounded += discrete_gaussian(self.sigma, rounded.size, self.source)
        return rounded


class LoRADPOptimizer(DPOptimizer):  # type: ignore[misc]  # opacus has no types
    """Private steps on the trained parameters of one clipper.

    For every microbatch: forward and backward inside `clipper.microbatch`, then `accumulate()`. Then once, also if
    there was no microbatch at all: `release()`, which adds noise and runs the step hook exactly once, so that an
    accountant attached by `attach_step_hook(accountant.get_optimizer_hook_fn(sample_rate))` counts logical batches. It
    sees the noise multiplier of this optimizer's own noise. A bare `step()` in place of `release()` also moves the
    parameters, by the decoded release over expected_batch_size.

    Args:
        optimizer: holds exactly the clipper's parameters.
        clip_norm: None only without noise.
        count_weight: if positive, gradients are summed in clip units, g / max(|g|, clip_norm), and one more entry at
            the end counts count_weight / 2 for each unit at or below clip_norm and minus that for each one above
            (`adaptive_clipping`).
        max_norm: radius of the ball onto which the whole sum, the count included, is projected before it is rounded
            and noised (`projection.onto_ball`): sensitivity stays what it is without. None for no projection.
        weight: in (0, 1], what the sum is multiplied by before all that: sensitivity is at most what it is without.
        expected_batch_size: expected UNITS in a logical batch, sample_rate * units; never the number drawn.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        clipper: PerUnitClipper,
        *,
        clip_norm: float | None,
        noise: RingNoise,
        count_weight: float = 0.0,
        max_norm: float | None = None,
        weight: float = 1.0,
        expected_batch_size: float = 1.0,
    ) -> None:
        if clip_norm is None and noise.sigma:
            raise InvalidPrivacyParameter("noise without clip_norm protects nothing")
        if count_weight and clip_norm is None:
            raise InvalidPrivacyParameter("without clip_norm no unit is at or below it")
        dim = sum(parameter.numel() for parameter in clipper.parameters.values())
        sensitivity = clip_norm
        if count_weight:
            sensitivity, dim = math.hypot(1.0, count_weight / 2), dim + 1
        super().__init__(
            optimizer,
            noise_multiplier=0.0 if sensitivity is None else noise.noise_multiplier(sensitivity, dim),
            max_grad_norm=math.inf if clip_norm is None else clip_norm,
            expected_batch_size=expected_batch_size,
        )
        if set(self.params) != set(clipper.parameters.values()):
            raise UnprotectedGradient("optimizer and clipper must hold exactly the same parameters")
        self.clipper, self.noise, self.clip_norm = clipper, noise, clip_norm
        self.count_weight, self._count = count_weight, 0
        self.max_norm, self.weight = max_norm, weight
        self.last_report: ClipReport | None = None
        self._released: Integers | None = None

    @property
    def accumulated_iterations(self) -> int:
        """Always 1: the microbatches of a Poisson batch are one step."""
        return 1

    @property
    def grad_samples(self) -> list[torch.Tensor]:
        """Stands in for Opacus' list, which only has to have a length: it skips clipping and noise if that is 0."""
        return list(self.clipper.parameters.values())

    def clip_and_accumulate(self) -> None:
        """Adds the clipped sum of the last microbatch; nothing after an empty batch."""
        total, self.last_report = self.clipper.clipped_sum(self.clip_norm)
        if self.count_weight:
            assert self.clip_norm is not None
            is_below = self.last_report.norms <= self.clip_norm  # NaN is above: every unit counts for one or the other
            self._count += 2 * int(is_below.sum()) - len(is_below)
        for name, parameter in self.clipper.parameters.items():
            so_far: torch.Tensor | None = parameter.summed_grad  # type: ignore[attr-defined]  # set by opacus
            total_so_far = total[name] if so_far is None else so_far.add_(total[name])
            parameter.summed_grad = total_so_far  # type: ignore[attr-defined]

    def take_sum(self) -> npt.NDArray[np.float64]:
        """The clipped sum so far, [dim], and units below the clip less those above if they are counted; as it adds up.

        Exact, so that sums of several processes add up exactly too. Neither weighed nor noised, and no longer kept.

        UNPROTECTED: for `include` in a process of the same site that adds the noise, and for nothing else.
        """
        parameters = list(self.clipper.parameters.values())
        sums = [parameter.summed_grad for parameter in parameters]  # type: ignore[attr-defined]  # set by opacus
        parts = [_zeros(p) if part is None else part.flatten() for p, part in zip(parameters, sums, strict=True)]
        total: npt.NDArray[np.float64] = torch.cat(parts).cpu().numpy()
        for parameter in parameters:
            parameter.summed_grad = None  # type: ignore[attr-defined]  # its memory is wanted for what follows
        if self.count_weight:
            total = np.append(total, self._count)
        self._count = 0
        return total

    def include(self, total: npt.NDArray[np.float64]) -> None:
        """Adds what another process of this site has clipped and summed for the same logical batch (`take_sum`).

        Raises:
            ClipperMisused: it is no such sum of this optimizer's parameters.
        """
        parameters = list(self.clipper.parameters.values())
        dim = sum(parameter.numel() for parameter in parameters)
        if total.shape != (dim + bool(self.count_weight),):
            raise ClipperMisused(f"a sum of shape {total.shape} from another process, for {dim} parameters")
        end = 0
        for parameter in parameters:
            start, end = end, end + parameter.numel()
            part = torch.tensor(total[start:end], device=parameter.device).view_as(parameter)
            so_far: torch.Tensor | None = parameter.summed_grad  # type: ignore[attr-defined]
            parameter.summed_grad = part if so_far is None else so_far.add_(part)  # type: ignore[attr-defined]
        if self.count_weight:
            self._count += int(total[-1])

    def add_noise(self) -> None:
        """Weighs, projects and rounds the sum, adds noise in the ring and leaves the decoded result in `.grad`."""
        parameters = list(self.clipper.parameters.values())
        sums = self.take_sum()
        if self.count_weight:
            assert self.clip_norm is not None
            sums[:-1] /= self.clip_norm
            sums[-1] *= self.count_weight / 2
        sums *= self.weight
        if self.max_norm is not None:
            sums = onto_ball(sums, self.max_norm)
        self._released = self.noise.add_to(sums)
        end = 0
        for parameter in parameters:
            start, end = end, end + parameter.numel()
            decoded = torch.from_numpy(self._released[start:end] * 2.0**-self.noise.scale_bits)
            parameter.grad = decoded.view_as(parameter).to(parameter)
        self.clipper.start_step()

    def accumulate(self) -> None:
        """Ends a microbatch of a logical batch that goes on."""
        self.signal_skip_step(True)
        self.pre_step()

    def release(self) -> Integers:
        """Ends the logical batch: the noised sum in ring units, int64 [dim] in the clipper's order.

        The parameters stay as they are and hold no gradient: a release whose noise suffices only in a sum over sites
        must not move a local copy. One call is one step for the accountant.
        """
        if not self.pre_step() or self._released is None:
            raise ClipperMisused("a skipped step was signalled: there is nothing to release")
        released, self._released = self._released, None
        self.discard()
        return released

    def discard(self) -> None:
        """Drops sums and gradients of the logical batch, as after an error."""
        self._is_last_step_skipped, self._count = False, 0
        self.zero_grad(set_to_none=True)
        self.clipper.start_step()


def _zeros(parameter: torch.Tensor) -> torch.Tensor:
    return torch.zeros(parameter.numel(), dtype=torch.float64, device=parameter.device)


StepHook = Callable[[LoRADPOptimizer], None]
