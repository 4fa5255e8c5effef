"""Releases of several sites that one process computes, for simulations: their units share batches.

A site alone has few units in a round, and a pass over the model costs nearly as much for few rows as for many. Together
they fill batches. No bit of a release changes: in the shapes of `batches` a unit's gradient does not depend on who
shares its batch, and clipped gradients add up exactly. Draws, projection, rounding and noise are each site's own.

Out of scope: real sites. Whoever computes this holds the records of all of them.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...models.adapters import AdaptedModel
from ..errors import BatchMalformed, SourceRefused
from .batches import ONE_BY_ONE, BatchShapes, RowStates, microbatches, thread_count, used_tokens
from .clipping import PerUnitClipper
from .sampling import Integers, RandomBytes
from .site_round import ReleaseTerms, drawn, losses_of, new_optimizer, weights_and_clip


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteTable:
    """One site's records, the terms of its release, and its randomness; as `site_round.round_release` takes them."""

    ids: Integers = field(repr=False)
    targets: npt.NDArray[np.generic] = field(repr=False)
    unit_of_row: npt.NDArray[np.generic] = field(repr=False)
    terms: ReleaseTerms
    source: RandomBytes = field(default=os.urandom, repr=False)
    entering: RowStates | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class _Drawn:
    """The units of all sites that take part."""

    ids: Integers
    targets: npt.NDArray[np.generic]
    rows_of_unit: list[Integers]
    site_of_unit: Integers
    site_of_row: Integers
    row_at_site: Integers


def many_releases(
    adapted: AdaptedModel,
    state: npt.NDArray[np.float32],
    sites: Sequence[SiteTable],
    *,
    shapes: BatchShapes = ONE_BY_ONE,
) -> list[Integers]:
    """Computes what `site_round.round_release` gives for each site by itself, bit for bit.

    Args:
        sites: of one model, with one clip, one trained rank and a single local step.
        shapes: of the batches, as `batches.probed_shapes` found them here.

    Raises:
        BatchMalformed: the sites' terms or arrays do not go together.
        SourceRefused: a mode with noise and a source other than the operating system's.
        StateMismatch: the state is not finite or of another length.
    """
    first = sites[0].terms
    if any(_common(site.terms) != _common(first) for site in sites) or first.local.steps > 1 or first.clip_norm is None:
        raise BatchMalformed("sites that are computed together have one mode, one clip, one rank and one local step")
    if first.mode != "none" and any(site.source is not os.urandom for site in sites):
        raise SourceRefused(f"mode {first.mode} draws its coins and noise from the operating system only")
    weights, log_clip = weights_and_clip(adapted, state, first)
    adapted.load_state(weights)
    taken = _take(sites)
    totals = np.zeros((len(sites), len(state)))
    optimizer = new_optimizer(adapted, first, log_clip)
    clipper, clip_norm = optimizer.clipper, optimizer.clip_norm
    try:
        with torch.enable_grad(), thread_count(1 if first.mode == "none" else shapes.threads):
            for batch in microbatches(taken.rows_of_unit, used_tokens(taken.ids, taken.targets), shapes):
                entering = None if sites[0].entering is None else _entering(sites, taken)
                losses_of(adapted, taken.ids, taken.targets, batch, clipper, entering)
                site_of_unit = taken.site_of_unit[batch.units]
                sums, report = clipper.clipped_sums(clip_norm, site_of_unit)
                for site, parts in sums.items():
                    _add(totals[site], list(parts.values()))
                if optimizer.count_weight and clip_norm is not None:
                    is_below = (report.norms <= clip_norm).cpu().numpy()
                    np.add.at(totals[:, -1], site_of_unit, 2.0 * is_below - 1)
    finally:
        optimizer.discard()
    return [_release(adapted, site, total, log_clip, clipper) for site, total in zip(sites, totals, strict=True)]


def _common(terms: ReleaseTerms) -> tuple[object, ...]:
    return terms.mode, terms.clip_norm, terms.clipping, terms.trained_rank, terms.local


def _take(sites: Sequence[SiteTable]) -> _Drawn:
    """Draws each site's units, and puts their rows behind each other."""
    ids, targets, at_site, units, of_unit = [], [], [], list[Integers](), list[int]()
    end = 0
    for number, site in enumerate(sites):
        own = drawn(site.unit_of_row, site.terms, site.source)
        rows = np.concatenate([np.zeros(0, np.int64), *own])
        ids.append(site.ids[rows])
        targets.append(np.asarray(site.targets)[rows])
        at_site.append(rows)
        borders = np.cumsum([end, *(len(each) for each in own)])
        units += [np.arange(start, stop) for start, stop in pairwise(borders.tolist())]
        of_unit += [number] * len(own)
        end = int(borders[-1])
    if len({each.shape[1:] for each in ids}) > 1 or len({each.shape[1:] for each in targets}) > 1:
        raise BatchMalformed("records of sites that are computed together are padded to one length")
    sizes = [len(each) for each in at_site]
    return _Drawn(
        np.concatenate(ids),
        np.concatenate(targets),
        units,
        np.array(of_unit, dtype=np.int64),
        np.repeat(np.arange(len(sites)), sizes),
        np.concatenate(at_site),
    )


def _entering(sites: Sequence[SiteTable], taken: _Drawn) -> RowStates:
    def of(rows: Integers) -> list[Tensor]:
        found: list[Tensor] = []
        borders = np.flatnonzero(np.diff(taken.site_of_row[rows])) + 1
        for own in np.split(rows, borders):  # those of one site
            entering = sites[int(taken.site_of_row[own[0]])].entering
            if entering is None:
                raise BatchMalformed("states are given of some sites' records and not of others'")
            found += entering(taken.row_at_site[own])
        return found

    return of


def _add(total: npt.NDArray[np.float64], parts: list[Tensor]) -> None:
    end = 0
    for part in parts:
        start, end = end, end + part.numel()
        total[start:end] += part.flatten().cpu().numpy()


def _release(
    adapted: AdaptedModel, site: SiteTable, total: npt.NDArray[np.float64], log_clip: float, clipper: PerUnitClipper
) -> Integers:
    optimizer = new_optimizer(adapted, site.terms, log_clip, source=site.source, clipper=clipper)
    try:
        optimizer.include(total)
        return optimizer.release()
    finally:
        optimizer.discard()
