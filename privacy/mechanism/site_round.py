"""The private training of one site in a round: sample, clip, sum, round, add noise; once, or in several local steps.

Privacy unit: all records of one unit id, added or removed together.
"""

import math
import os
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from ...kernels.collect import Collector
from ...models.adapters import AdaptedModel
from ...models.errors import StateMismatch
from ..errors import BatchMalformed, InvalidPrivacyParameter, SourceRefused
from . import adaptive_clipping
from .batches import (
    ONE_BY_ONE,
    Batch,
    BatchShapes,
    RowStates,
    batch_states,
    microbatches,
    thread_count,
    used_tokens,
)
from .clipping import MAX_UNITS, PerUnitClipper
from .noise import MAX_SIGMA
from .opacus_optimizer import LoRADPOptimizer, RingNoise, StepHook
from .sampling import Integers, RandomBytes, choose, poisson_sample
from .workers import Alone, SumPart, Vector, WorkerGroup, made_up, shared_out

_ALONE = Alone()
LEAST_CLIP = 1e-6  # far above the numbers at which a factor clip_norm / norm loses digits, also 1e4 times lower


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalSteps:
    """Local steps of one round: a site's copy of the model moves by its own noised sums alone."""

    steps: int = 1
    lr: float = 1.0  # of the adapters, on the mean noised gradient in clip units
    head_lr: float = 1.0  # of the head
    batch_units: float = 1.0  # units expected in a step of one site; public, never counted

    def __post_init__(self) -> None:
        if not (self.steps >= 1 and all(0 < x < math.inf for x in (self.lr, self.head_lr, self.batch_units))):
            raise InvalidPrivacyParameter(f"need steps >= 1 and finite lr, head_lr, batch_units > 0, got {self}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReleaseTerms:
    """The terms of a round, the same at all sites of a study; `max_rows_per_batch` alone is a matter of memory."""

    mode: Literal["distributed", "local", "none"]
    clip_norm: float | None  # the threshold, or what an adaptive one starts from; None only in mode "none"
    sample_rate: float  # probability that a unit takes part, in (0, 1]
    site_noise_int: int  # std of this site's noise in ring units; 0 exactly in mode "none"
    scale_bits: int  # a ring unit is 2**-scale_bits
    max_rows_per_batch: int  # rows that may be computed at once
    max_records_per_unit: int  # more are cut by a random choice inside the unit
    clipping: Literal["fixed", "adaptive"] = "fixed"
    local: LocalSteps = LocalSteps()
    max_norm: float | None = None  # longest sum of one step before noise, L2, in its own units; None: as it comes
    weight: float = 1.0  # what the sum is multiplied by, in (0, 1]; public
    trained_rank: int | None = None  # leading components of every B that this site trains; None: all

    def __post_init__(self) -> None:
        if self.mode not in ("distributed", "local", "none"):
            raise InvalidPrivacyParameter(f"mode must be distributed, local or none, got {self.mode!r}")
        is_private = self.mode != "none"
        if is_private if self.clip_norm is None else not LEAST_CLIP <= self.clip_norm < math.inf:
            raise InvalidPrivacyParameter(f"clip_norm must be finite and at least {LEAST_CLIP:g}, got {self.clip_norm}")
        if self.clipping not in ("fixed", "adaptive"):
            raise InvalidPrivacyParameter(f"clipping must be fixed or adaptive, got {self.clipping!r}")
        if self.clipping == "adaptive" and self.clip_norm is None:
            raise InvalidPrivacyParameter("adaptive clipping needs a clip_norm to start from")
        if self.mode == "distributed" and self.local.steps > 1:
            raise InvalidPrivacyParameter(
                f"local steps must be 1 in mode distributed, got {self.local.steps}: a site's own share of the noise "
                "does not protect what its copy would learn"
            )
        if not 0 < self.sample_rate <= 1:  # NaN fails too
            raise InvalidPrivacyParameter(f"sample_rate must be in (0, 1], got {self.sample_rate}")
        if self.max_norm is not None and not 0 < self.max_norm < math.inf:
            raise InvalidPrivacyParameter(f"max_norm must be positive and finite, got {self.max_norm}")
        if not 0 < self.weight <= 1:
            raise InvalidPrivacyParameter(f"weight must be in (0, 1], got {self.weight}")
        low, high = (1, MAX_SIGMA) if is_private else (0, 0)
        if not low <= self.site_noise_int <= high:
            raise InvalidPrivacyParameter(
                f"site_noise_int must be in [{low}, {high}] in mode {self.mode}, got {self.site_noise_int}"
            )
        if not 0 <= self.scale_bits <= 48:
            raise InvalidPrivacyParameter(f"scale_bits must be in [0, 48], got {self.scale_bits}")
        if not 1 <= self.max_records_per_unit <= self.max_rows_per_batch:
            raise InvalidPrivacyParameter(
                f"need 1 <= max_records_per_unit <= max_rows_per_batch, got {self.max_records_per_unit} and "
                f"{self.max_rows_per_batch}"
            )


def round_release(
    adapted: AdaptedModel,
    state: npt.NDArray[np.float32],
    ids: npt.NDArray[np.int64],
    targets: npt.ArrayLike,
    unit_of_row: npt.ArrayLike,
    *,
    terms: ReleaseTerms,
    shapes: BatchShapes = ONE_BY_ONE,
    source: RandomBytes = os.urandom,
    group: WorkerGroup = _ALONE,
    entering: RowStates | None = None,
) -> Integers:
    """Computes a site's release for a round that begins at `state`: int64, as long as `state`.

    With one step that is a `private_release` at `state`. With several, the copy of the model moves by each noised sum
    as it would be released, and the result is the sum of them all. That is the difference between the first and the
    last state over the local rates, without rounding it a second time: post-processing of `terms.local.steps` releases,
    each of which has all the noise of its mode, so they are charged as that many.

    Args:
        shapes: of the batches, as `batches.probed_shapes` found them here.
        state: the trained parameters in the order of `adapted.layout`; then, with adaptive clipping, the logarithm of
            the threshold over `terms.clip_norm`.
        entering: as in `private_release`.

    Raises:
        StateMismatch: the state is not finite or of another length.
    """
    dim = adapted.layout.dim
    weights, log_clip = weights_and_clip(adapted, state, terms)
    adapted.load_state(weights)
    release = partial(
        private_release, adapted, ids, targets, unit_of_row, terms=terms, shapes=shapes, source=source,
        log_clip=log_clip, group=group, entering=entering,
    )  # fmt: skip
    total = release()
    if terms.local.steps == 1:
        return total
    step = _local_step(adapted, terms)
    copy, last = weights.astype(np.float64), total
    for _ in range(terms.local.steps - 1):
        copy -= step * last[:dim]
        adapted.load_state(copy)
        last = release()
        total = total + last
    return total


def weights_and_clip(
    adapted: AdaptedModel, state: npt.NDArray[np.float32], terms: ReleaseTerms
) -> tuple[npt.NDArray[np.float32], float]:
    """Splits a state into the trained numbers and the logarithm of the threshold over `clip_norm`.

    Raises:
        StateMismatch: the state is not finite or of another length.
    """
    if not np.isfinite(state).all():
        raise StateMismatch("the state is not finite")
    dim = adapted.layout.dim
    if terms.clipping != "adaptive":
        return state, 0.0
    if len(state) != dim + 1:
        raise StateMismatch(f"state has {len(state)} numbers; {dim} trained ones and the clip's logarithm are due")
    return state[:dim], float(state[dim])


def _local_step(adapted: AdaptedModel, terms: ReleaseTerms) -> npt.NDArray[np.float64]:
    """[dim], how far one ring unit of a noised sum moves each trained number of the site's copy."""
    rates = np.full(adapted.layout.dim, terms.local.lr)
    rates[adapted.layout.head_slice] = terms.local.head_lr
    in_clip_units = 1.0 if terms.clipping == "adaptive" or terms.clip_norm is None else terms.clip_norm
    step: npt.NDArray[np.float64] = rates * 2.0**-terms.scale_bits / (terms.local.batch_units * in_clip_units)
    return step


def private_release(
    adapted: AdaptedModel,
    ids: npt.NDArray[np.int64],
    targets: npt.ArrayLike,
    unit_of_row: npt.ArrayLike,
    *,
    terms: ReleaseTerms,
    shapes: BatchShapes = ONE_BY_ONE,
    source: RandomBytes = os.urandom,
    on_step: StepHook | None = None,
    log_clip: float = 0.0,
    group: WorkerGroup = _ALONE,
    entering: RowStates | None = None,
) -> Integers:
    """The noised, clipped gradient sum of one Poisson sample of units, as int64 [dim] in ring units of 2**-scale_bits.

    The loss of a unit is the mean over its rows of `adapted.losses`. Entries are in the order of `adapted.layout`. The
    model is left as it was. An empty sample gives pure noise and is a step like any other. In mode "none" there is no
    noise, and a seeded `source` gives the same bytes on every call on one machine. In mode "distributed" the noise of
    one site does not suffice: the result must go nowhere but into secret sharing.

    With `terms.max_norm` the sum is projected onto a ball of that radius before it is rounded: `projection.onto_ball`
    shows why one unit moves it no further than before.

    With `terms.clipping` "adaptive" gradients are in clip units and one entry more ends the vector, [dim + 1]:
    `adaptive_clipping` says what it counts. Its L2 sensitivity is `adaptive_clipping.SENSITIVITY` for any `log_clip`.

    Args:
        ids: [rows, length] tokens, padded on the right with 0; a row holds one record. Of tokens that carry bytes,
            [rows, length, 1 + C], see `models.tokens`.
        targets: as `adapted.losses` takes them: [rows] labels, or bool [rows, length], what is a completion.
        unit_of_row: [rows], any ids, of `MAX_UNITS` units at most.
        shapes: of the batches, as `batches.probed_shapes` found them here.
        on_step: runs once, before the release, as an Opacus step hook: for its accountants.
        log_clip: with adaptive clipping, the threshold is terms.clip_norm * exp(log_clip).
        group: processes that compute parts of the sum, at the state that `adapted` has here.
        entering: gives, for the rows of a batch, the states of their tokens that enter the lowest adapted layer, as
            `batches.entering_states` computes them; each a function of that row alone, to the last bit, whether it
            was kept or is computed now. None computes all layers in the shape of a unit's batch: other bits, so which
            of the two a site takes may not depend on its table. Only for a group of one.

    Raises:
        BatchMalformed: the arrays do not fit together, or there are more units than an exact sum can hold; or states
            are given to a group, whose other processes compute all layers.
        SourceRefused: a mode with noise and a source other than the operating system's.
        UnprotectedGradient: something trainable is out of the clipper's reach.
    """
    if terms.mode != "none" and source is not os.urandom:
        raise SourceRefused(f"mode {terms.mode} draws its coins and noise from the operating system only")
    ids, targets = np.asarray(ids, dtype=np.int64), np.asarray(targets)
    is_fit = ids.ndim in (2, 3) and targets.shape in (ids.shape[:1], ids.shape[:2])
    if not is_fit or len(ids) != np.size(unit_of_row):
        raise BatchMalformed(
            f"ids {ids.shape}, targets {targets.shape}, units {np.shape(unit_of_row)} do not fit together"
        )
    if entering is not None and group.size > 1:
        raise BatchMalformed(f"states of rows are given to {group.size} processes: the others compute all layers")
    used = used_tokens(ids, targets)
    shares = shared_out(drawn(unit_of_row, terms, source), group.size)
    passes = max(sum(1 for _ in microbatches(share, used, shapes)) for share in shares)
    optimizer = new_optimizer(adapted, terms, log_clip, source=source)
    optimizer.attach_step_hook(on_step)
    try:
        group.begin([_part(adapted, ids, targets, share, passes, log_clip, shapes) for share in shares[1:]])
        _sum_up(adapted, ids, targets, shares[0], passes, terms, shapes, optimizer, entering)
        for total in group.finish():
            optimizer.include(total)
        return optimizer.release()
    finally:
        optimizer.discard()


def partial_sum(
    adapted: AdaptedModel, part: SumPart, *, terms: ReleaseTerms, shapes: BatchShapes = ONE_BY_ONE
) -> Vector:
    """The clipped sum over the units of one part, float64, and what adaptive clipping counts, in units.

    UNPROTECTED: for `private_release` in the process that leads the group, and for nothing else.

    Raises:
        BatchMalformed: the leading process computes in other shapes, in which gradients may have other bits.
    """
    if part.shapes != str(shapes):
        raise BatchMalformed(f"this process computes {shapes}, the leading one {part.shapes}: make workers alike")
    adapted.load_state(part.state)
    rows_of_unit = np.split(np.arange(len(part.ids)), np.cumsum(part.sizes)[:-1]) if len(part.sizes) else []
    optimizer = new_optimizer(adapted, replace(terms, mode="none", site_noise_int=0), part.log_clip)
    try:
        _sum_up(adapted, part.ids, part.targets, rows_of_unit, part.passes, terms, shapes, optimizer)
        return optimizer.take_sum()
    finally:
        optimizer.discard()


def new_optimizer(
    adapted: AdaptedModel,
    terms: ReleaseTerms,
    log_clip: float,
    *,
    source: RandomBytes = os.urandom,
    clipper: PerUnitClipper | None = None,
) -> LoRADPOptimizer:
    """Makes the optimizer of one private step, with its noise.

    Args:
        clipper: of the same model and trained rank; None to make one.
    """
    clipper = clipper or PerUnitClipper(adapted, trained_rank=terms.trained_rank)
    # lr is never used: the model moves by the opened aggregate alone.
    idle = torch.optim.SGD(clipper.parameters.values(), lr=0.0)
    clip_norm, count_weight = terms.clip_norm, 0.0
    if terms.clipping == "adaptive":
        assert clip_norm is not None
        clip_norm, count_weight = adaptive_clipping.clip_at(clip_norm, log_clip), adaptive_clipping.COUNT_WEIGHT
    return LoRADPOptimizer(
        idle,
        clipper,
        clip_norm=clip_norm,
        noise=RingNoise(sigma=terms.site_noise_int, scale_bits=terms.scale_bits, source=source),
        count_weight=count_weight,
        max_norm=terms.max_norm,
        weight=terms.weight,
    )


def _part(
    adapted: AdaptedModel,
    ids: npt.NDArray[np.int64],
    targets: npt.NDArray[np.generic],
    share: list[Integers],
    passes: int,
    log_clip: float,
    shapes: BatchShapes,
) -> SumPart:
    rows = np.concatenate([np.zeros(0, np.int64), *share])
    sizes = np.array([len(own) for own in share], dtype=np.int64)
    return SumPart(
        state=adapted.state(),
        ids=ids[rows],
        targets=targets[rows],
        sizes=sizes,
        passes=passes,
        log_clip=log_clip,
        shapes=str(shapes),
    )


def _sum_up(
    adapted: AdaptedModel,
    ids: npt.NDArray[np.int64],
    targets: npt.NDArray[np.generic],
    rows_of_unit: list[Integers],
    passes: int,
    terms: ReleaseTerms,
    shapes: BatchShapes,
    optimizer: LoRADPOptimizer,
    entering: RowStates | None = None,
) -> None:
    """Adds the clipped gradients of these units, in exactly `passes` passes over the model."""
    batches = list(microbatches(rows_of_unit, used_tokens(ids, targets), shapes))
    # How a matrix product is split among threads decides its order of additions: without noise, steps are to repeat.
    with torch.enable_grad(), thread_count(1 if terms.mode == "none" else shapes.threads):
        for batch in batches:
            losses_of(adapted, ids, targets, batch, optimizer.clipper, entering)
            optimizer.accumulate()
        for _ in range(passes - len(batches)):
            _pass_idly(adapted)


def _pass_idly(adapted: AdaptedModel) -> None:
    """Forward and backward of a made-up record, of which nothing is kept: others gather their weights with this."""
    device = next(iter(adapted.trained.values())).device
    ids, target = (torch.as_tensor(array, device=device)[None] for array in made_up(adapted))
    with adapted.slot.filled(Collector(torch.zeros(1, dtype=torch.long, device=device), 1, ids.shape[1])):
        adapted.losses(ids, target).sum().backward()  # type: ignore[no-untyped-call]


def drawn(unit_of_row: npt.ArrayLike, terms: ReleaseTerms, source: RandomBytes) -> list[Integers]:
    """Draws the units that take part: the rows of each, at most max_records_per_unit of them.

    Raises:
        BatchMalformed: there are more units than an exact sum can hold.
    """
    units, inverse = np.unique(unit_of_row, return_inverse=True)
    if len(units) > MAX_UNITS:
        raise BatchMalformed(f"a table may have {MAX_UNITS:,} units at most: divide it")
    order = np.argsort(inverse, kind="stable")
    rows_of_unit = np.split(order, np.cumsum(np.bincount(inverse, minlength=len(units)))[:-1])
    taken = []
    for unit in poisson_sample(len(units), terms.sample_rate, source):
        rows = rows_of_unit[unit]
        if len(rows) > terms.max_records_per_unit:
            rows = rows[choose(len(rows), terms.max_records_per_unit, source)]
        taken.append(rows)
    return taken


def losses_of(
    adapted: AdaptedModel,
    ids: npt.NDArray[np.int64],
    targets: npt.NDArray[np.generic],
    batch: Batch,
    clipper: PerUnitClipper,
    entering: RowStates | None,
) -> None:
    """Computes the losses of a batch's units and their gradients, one microbatch of the clipper.

    Raises:
        BatchMalformed: `entering` does not give the states of each row.
    """
    rows, sizes = np.concatenate(batch.rows_of_unit), np.array([len(own) for own in batch.rows_of_unit])
    device = next(iter(adapted.trained.values())).device

    def filled(values: npt.NDArray[Any]) -> torch.Tensor:
        """With blank rows and columns up to the batch's shape."""
        values = values if values.ndim == 1 else values[:, : batch.length]
        whole = (batch.num_rows, batch.length, *values.shape[2:])
        missing = [(0, full - there) for full, there in zip(whole, values.shape, strict=False)]
        return torch.as_tensor(np.pad(values, missing), device=device)

    # Before the microbatch is open: what is not kept is computed now, by the model.
    states = None if entering is None else _states_of(rows, batch, entering).to(device)
    with clipper.microbatch(np.repeat(batch.units, sizes), batch.length, num_rows=batch.num_rows):
        by_row = adapted.losses(filled(ids[rows]), filled(targets[rows]), states)
        share = filled(np.repeat(1 / sizes, sizes)).to(by_row)  # the mean inside a unit
        (by_row * share).sum().backward()  # type: ignore[no-untyped-call]


def _states_of(rows: Integers, batch: Batch, entering: RowStates) -> torch.Tensor:
    found = entering(rows)
    if len(found) != len(rows):
        raise BatchMalformed(f"states of {len(found)} rows for a batch of {len(rows)}: need those of each row")
    return batch_states(found, batch)
