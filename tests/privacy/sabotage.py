"""Engines with one mistake each, made of the true one: what the checks and the audit must tell from it."""

import contextlib
from dataclasses import replace
from unittest import mock

import numpy as np
import torch

from confide.kernels import cpu, formats, products
from confide.privacy.audit.engine_checks import blocks, site_round
from confide.privacy.mechanism import site_round as site_round_module
from confide.privacy.mechanism.batches import Batch, BatchShapes
from confide.privacy.mechanism.sampling import poisson_sample
from confide.privacy.mechanism.site_round import private_release

SHAPES = BatchShapes({32: (32, 16, 8)})  # taken for granted, where a site would have tested them


def padded_to_the_longest(adapted, ids, labels, units, *, terms):
    """All units in one batch, as long as its longest record."""

    def one_batch(rows_of_unit, used, shapes):
        rows = [len(own) for own in rows_of_unit]
        if rows:
            yield Batch(
                list(range(len(rows))), list(rows_of_unit), sum(rows), int(max(used[own].max() for own in rows_of_unit))
            )

    with mock.patch.object(site_round_module, "microbatches", one_batch):
        return private_release(adapted, ids, labels, units, terms=terms)


def product_by_group(x, weight, out):
    """Adds in another order in every other number of rows, as a library may that has two kernels.

    Not from some number on: blank rows of a batch are multiplied too, so that most groups have many rows.
    """
    middle = len(weight) // (2 if len(x) % 2 else 3)
    torch.add(x[..., :middle] @ weight[:middle], x[..., middle:] @ weight[middle:], out=out)
    return out


def products_by_group():
    """Everywhere where experts multiply."""
    patched = [mock.patch.object(module, "product", product_by_group) for module in (cpu, formats, products)]
    stack = contextlib.ExitStack()
    for patch in patched:
        stack.enter_context(patch)
    return stack


def rounded_by_group(adapted, ids, labels, units, *, terms):
    """An expert's rows are rounded by how many others go to it."""
    with products_by_group():
        return private_release(adapted, ids, labels, units, terms=terms, shapes=SHAPES)


def drawn(units, terms):
    """Rows of an honest Poisson sample, and terms that then take all of them."""
    names = np.unique(units)
    rows = np.flatnonzero(np.isin(units, names[poisson_sample(len(names), terms.sample_rate)]))
    return rows, replace(terms, sample_rate=1.0)


def true_engine(adapted, ids, labels, units, *, terms):
    return private_release(adapted, ids, labels, units, terms=terms)


def no_noise(adapted, ids, labels, units, *, terms):
    return private_release(
        adapted, ids, labels, units, terms=replace(terms, mode="none", site_noise_int=0), source=_coins
    )


def _coins(size):
    return np.random.default_rng().bytes(size)


def less_noise(factor):
    def engine(adapted, ids, labels, units, *, terms):
        noise = max(1, round(terms.site_noise_int / factor))
        return private_release(adapted, ids, labels, units, terms=replace(terms, site_noise_int=noise))

    return engine


def no_clipping(adapted, ids, labels, units, *, terms):
    rows, everybody = drawn(units, terms)
    noise = private_release(adapted, ids[:0], labels[:0], units[:0], terms=everybody)
    plain = replace(everybody, mode="none", site_noise_int=0, clip_norm=None)
    return noise + private_release(adapted, ids[rows], labels[rows], units[rows], terms=plain)


def one_expert_unclipped(adapted, ids, labels, units, *, terms):
    """The last expert of the last bank is left out of the bound."""
    rows, everybody = drawn(units, terms)
    ids, labels, units = ids[rows], labels[rows], units[rows]
    total = private_release(adapted, ids, labels, units, terms=everybody)
    silent = replace(everybody, mode="none", site_noise_int=0)
    experts = [part for name, part in blocks(adapted).items() if name.endswith("]")]
    expert = experts[-1] if experts else slice(0)
    for clip_norm, sign in ((terms.clip_norm, -1), (None, 1)):
        without = private_release(adapted, ids, labels, units, terms=replace(silent, clip_norm=clip_norm))
        total[expert] += sign * without[expert]
    return total


def split_units(adapted, ids, labels, units, *, terms):
    """Each half of a unit's rows is clipped by itself, as if it had come in another microbatch."""
    rows, everybody = drawn(units, terms)
    units = units[rows]
    half = np.array([2 * (units[:i] == unit).sum() >= (units == unit).sum() for i, unit in enumerate(units)])
    names = np.unique(units, return_inverse=True)[1] * 2 + half
    return private_release(adapted, ids[rows], labels[rows], names, terms=everybody)


class Shuffled:
    """Batches of one size from a shuffled list, all units once before any comes again."""

    def __init__(self):
        self._left = np.zeros(0, dtype=np.int64)

    def __call__(self, adapted, ids, labels, units, *, terms):
        names = np.unique(units)
        if terms.sample_rate < 1:
            size = max(1, round(terms.sample_rate * len(names)))
            if len(self._left) < size:
                self._left = np.random.default_rng().permutation(len(names))
            names, self._left = names[self._left[:size]], self._left[size:]
        rows = np.flatnonzero(np.isin(units, names))
        return private_release(adapted, ids[rows], labels[rows], units[rows], terms=replace(terms, sample_rate=1.0))


class OldNoise:
    """Noise of the right size that is drawn once and used for every step."""

    def __init__(self):
        self._noise = {}

    def __call__(self, adapted, ids, labels, units, *, terms):
        kept = self._noise.setdefault(
            terms.site_noise_int, private_release(adapted, ids[:0], labels[:0], units[:0], terms=terms)
        )
        return no_noise(adapted, ids, labels, units, terms=terms) + kept


def loud_count(adapted, ids, labels, units, *, terms):
    """The count of an adaptive clip weighs ten times what sensitivity covers."""
    total = site_round(adapted, ids, labels, units, terms=terms)
    total[-1] += 9 * site_round(adapted, ids, labels, units, terms=replace(terms, site_noise_int=1))[-1]
    return total


def bare_count(adapted, ids, labels, units, *, terms):
    """The count of an adaptive clip is released without noise."""
    total = site_round(adapted, ids, labels, units, terms=terms)
    total[-1] = site_round(adapted, ids, labels, units, terms=replace(terms, site_noise_int=1))[-1]
    return total


def forgotten_clip(adapted, ids, labels, units, *, terms):
    """Gradients are clipped at twice the threshold that holds."""
    return site_round(adapted, ids, labels, units, terms=replace(terms, clip_norm=2 * terms.clip_norm))


def noise_in_one_local_step(adapted, ids, labels, units, *, terms):
    """All local steps of a round share the noise of one."""
    return site_round(adapted, ids, labels, units, terms=replace(terms, local=replace(terms.local, steps=1)))


# What each is called and does to an adaptive clip, and the checks that must name it.
ADAPTIVE_ENGINES = {
    "a count that weighs too much": (loud_count, {"clipping", "sensitivity", "unit-whole", "float64-loop"}),
    "a count without noise": (bare_count, {"noise-std"}),
    "a clip that is not the round's": (forgotten_clip, {"float64-loop"}),
}

# What each is called, how to make it, and the checks that must name it.
ENGINES = {
    "no noise": (lambda: no_noise, {"noise-std"}),
    "noise 3.45 times too small": (lambda: less_noise(3.45), {"noise-std"}),
    "noise 10 % too small": (lambda: less_noise(1 / 0.9), {"noise-std"}),
    "one draw of noise for all steps": (OldNoise, {"noise-std", "noise-fresh"}),
    "no clipping": (lambda: no_clipping, {"clipping", "sensitivity", "unit-whole", "float64-loop"}),
    "one expert unclipped": (lambda: one_expert_unclipped, {"clipping", "sensitivity", "unit-whole", "float64-loop"}),
    "a unit in two microbatches": (lambda: split_units, {"unit-whole", "float64-loop"}),
    "a batch as long as its longest record": (lambda: padded_to_the_longest, {"batch-independence"}),
    "rounding by the size of a group": (lambda: rounded_by_group, {"batch-independence"}),
    "shuffling taken for Poisson": (Shuffled, {"poisson-sampling"}),
}
