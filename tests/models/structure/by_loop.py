"""Clipping per unit through a sense beside a loop over the units: what tests of eyes and ears share."""

import numpy as np
import torch

from confide.models.adapters import AdapterConfig, attach
from confide.models.heads import completion_losses
from confide.privacy.mechanism.clipping import PerUnitClipper

from ..tiny import put_exact_norms

UNITS = np.array([4, 7, 7, 9])


def away_from_start(model, targets, *, dtype, freeze_a=True, layers=None):
    """An adapted model away from its start, where half of the gradients would vanish."""
    if dtype == torch.float64:
        put_exact_norms(model)
        model.config._experts_implementation = "eager"
    config = AdapterConfig(rank=2, alpha=2.0, targets=targets, seed="x", freeze_a=freeze_a, layers=layers)
    adapted = attach(model.to(dtype), config)
    with torch.no_grad():
        for parameter in adapted.trained.values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    return adapted


def learned_of(ids, seen):
    """What is learned of rows that begin with `seen` tokens of a picture or a sound: all behind two words."""
    is_learned = torch.zeros(ids.shape[:2], dtype=torch.bool)
    is_learned[:, seen + 2 :] = True
    return is_learned


def unit_losses(adapted, ids, rows, seen):
    losses = completion_losses(adapted.model, ids[rows], learned_of(ids[rows], seen))
    own = torch.from_numpy(UNITS[rows])
    return [losses[own == unit].mean() for unit in own.unique()]


def assert_clipped_as_in_a_loop(adapted, ids, seen):
    """Four rows of three units; every unit's gradient by itself, clipped, and summed."""
    by_unit, norms = [], []
    for unit in np.unique(UNITS):
        (loss,) = unit_losses(adapted, ids, np.flatnonzero(unit == UNITS), seen)
        grads = torch.autograd.grad(loss, list(adapted.trained.values()))
        by_unit.append(dict(zip(adapted.trained, grads, strict=True)))
        norms.append(sum(float(grad.square().sum()) for grad in grads) ** 0.5)
    clip_norm = sorted(norms)[1]  # bites for one or two of them
    clipper = PerUnitClipper(adapted)
    with clipper.microbatch(UNITS, ids.shape[1]), adapted.rows.told(ids):
        sum(unit_losses(adapted, ids, np.arange(4), seen)).backward()
    got, report = clipper.clipped_sum(clip_norm)
    np.testing.assert_allclose(report.norms.numpy(), norms, rtol=1e-6)  # the stock router rounds to float32 inside
    for name in adapted.trained:
        want = sum(grads[name] * min(1.0, clip_norm / norm) for grads, norm in zip(by_unit, norms, strict=True))
        assert float(want.abs().max()) > 0, name
        assert float((got[name] - want).abs().max()) < 1e-6 * float(want.abs().max()), name
