"""The definition of a clipped sum, as a loop over units; and models to try it on."""

import copy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import DeepseekV3ForCausalLM

from confide.kernels.install import quantise
from confide.kernels.linear import QuantisedLinear, packed_stacks, quantise_linear
from confide.models.adapters.lora import AdaptedModel, AdapterConfig, attach
from confide.models.backbones.families import family_in
from confide.models.backbones.packing import linear_layers
from confide.models.heads.objectives import BinaryLabel, Objective, OneClass, SeveralTasks, Task, TextTask
from confide.models.heads.pooling import PooledHead
from confide.privacy.mechanism.batches import ONE_BY_ONE, BatchShapes, RowStates, entering_states, used_tokens

from ..models.tiny import tiny_deepseek

_ATTENTION = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
_DENSE_AND_SHARED = ("gate_proj", "up_proj", "down_proj")
_EVERYWHERE = ("embed_tokens", *_ATTENTION, *_DENSE_AND_SHARED, "experts", "gate")
TARGETS = {
    "attention": _ATTENTION,
    "dense and shared": _DENSE_AND_SHARED,
    "experts": ("experts",),
    "router": ("gate",),
    "embedding": ("embed_tokens",),
    "head": (),
    "all": _EVERYWHERE,
    "output": ("lm_head",),
    "all, causal": (*_EVERYWHERE, "lm_head"),
}
CAUSAL = ("output", "all, causal")  # trained to predict the next token; all others classify by a head
C, BITS = 0.05, 24
PLAIN = {  # terms of a step without noise, in which everybody takes part
    "mode": "none",
    "clip_norm": C,
    "sample_rate": 1.0,
    "site_noise_int": 0,
    "scale_bits": BITS,
    "max_rows_per_batch": 3,
    "max_records_per_unit": 3,
}
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def adapted_tiny(
    targets: str = "all",
    *,
    freeze_a: bool = True,
    dtype: torch.dtype = torch.float32,
    rank: int = 4,
    experts: int = 4,
    base: DeepseekV3ForCausalLM | None = None,
    layers: tuple[int, ...] | None = None,
    objective: Objective | None = None,
    reads: tuple[int, ...] | None = None,
) -> AdaptedModel:
    """An adapted model away from its start, where half of the gradients would vanish.

    Args:
        base: to adapt instead of a fresh one; `dtype` and `experts` say what it is.
        layers: with the last alone, steps can start from kept states.
        objective: of the head; None: a label.
        reads: states that the head reads, each whitened by itself; None: those that `pooled` takes.
    """
    model = base or tiny_deepseek(experts=experts, dtype=dtype)
    g, exact = torch.Generator().manual_seed(3), torch.promote_types(dtype, torch.float32)
    sizes = (64,) if reads is None else (len(reads), 32)
    center = torch.randn(sizes, generator=g, dtype=exact)
    whiten = torch.randn((*sizes, sizes[-1]), generator=g, dtype=exact) / 8
    head = None if targets in CAUSAL else PooledHead(center, whiten, objective=objective, reads=reads)
    names = TARGETS[targets]
    # Adapted in any case, because the stock router rounds to float32 inside.
    with_router = names if "gate" in names else (*names, "gate")
    if layers is not None:
        with_router = tuple(name for name in with_router if name != "embed_tokens")
    config = AdapterConfig(rank=rank, alpha=2.0 * rank, targets=with_router, seed="s", freeze_a=freeze_a, layers=layers)
    adapted = attach(model, config, head)
    if "gate" not in names:
        adapted.adapters["model.layers.1.mlp.gate"].requires_grad_(False)
        adapted = AdaptedModel(model, config, head, adapted.slot, adapted.rows, adapted.gates)
    adapted.load_state(np.random.default_rng(0).normal(size=adapted.layout.dim) * 0.2)
    return adapted


def packed_tiny(form: Any, *, dtype: torch.dtype = torch.float32) -> DeepseekV3ForCausalLM:
    """The tiny model with its experts and all linear layers of its decoder in a packed format."""
    model = tiny_deepseek(dtype=dtype)
    quantise(model, form.quantised)
    quantise_linear(model, linear_layers(family_in(model), model), form.quantised)
    return model


def unpacked_tiny(packed: DeepseekV3ForCausalLM, *, dtype: torch.dtype = torch.float32) -> DeepseekV3ForCausalLM:
    """The same model with plain matrices of what the codes stand for."""
    model = tiny_deepseek(dtype=dtype)
    with torch.no_grad():
        for name, module in packed.named_modules():
            for leaf, stack in zip(("gate_up_proj", "down_proj"), packed_stacks(module), strict=False):
                plain = model.get_submodule(name)
                if isinstance(module, QuantisedLinear):
                    plain.weight.copy_(module.weight.dense())
                else:
                    getattr(plain, leaf).copy_(stack.dense())
    return model


def labels_for(rows: int) -> torch.Tensor:
    """0, 1, 0, 1, ..."""
    return (torch.arange(rows) % 2).to(torch.float64)


def unit_loss(adapted: AdaptedModel, ids: torch.Tensor, labels: torch.Tensor, units: np.ndarray) -> torch.Tensor:
    """Sum over units of the mean over the unit's rows."""
    by_row = row_losses(adapted, ids, labels)
    size = torch.as_tensor([(units == unit).sum() for unit in units])
    return (by_row / size).sum()


def row_losses(adapted: AdaptedModel, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[R]: cross-entropy of the label or, without a head, of the next token, as a mean over the row's own tokens."""
    if adapted.head is not None:
        logits = adapted.classify(ids)
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits), reduction="none")
    logits = adapted.model(input_ids=ids, attention_mask=(ids > 0).long()).logits[:, :-1]
    is_target = ids[:, 1:] > 0
    by_token = F.cross_entropy(logits.mT, ids[:, 1:], reduction="none").masked_fill(~is_target, 0)
    return by_token.sum(1) / is_target.sum(1).clamp_min(1)


def clipped_loop(
    adapted: AdaptedModel,
    ids: torch.Tensor,
    labels: torch.Tensor,
    units: np.ndarray,
    clip_norm: float,
    *,
    as_it_is: bool = False,
    trained_rank: int | None = None,
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """One plain backward a unit in float64: clip, add. Returns the sum and the norms, units ascending.

    Args:
        as_it_is: compute in the model's own precision; only clipping and adding are in float64.
        trained_rank: columns of every B from here on are set to zero before the norm is taken.
    """
    adapted = copy.deepcopy(adapted) if as_it_is else copy.deepcopy(adapted).double()
    total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in adapted.trained.items()}
    norms = []
    for unit in np.unique(units):
        own = torch.as_tensor(units == unit)
        loss = unit_loss(adapted, ids[own], labels[own], units[units == unit])
        grads = torch.autograd.grad(loss, list(adapted.trained.values()), allow_unused=True)
        for name, grad in zip(adapted.trained, grads, strict=True):
            if trained_rank is not None and grad is not None and name.endswith("lora_B"):
                grad[..., trained_rank:] = 0
        norm = torch.stack([g.double().norm() for g in grads if g is not None]).norm()
        norms.append(norm)
        for name, grad in zip(adapted.trained, grads, strict=True):
            if grad is not None:
                total[name] += grad.double() * min(1.0, clip_norm / float(norm))
    return total, torch.stack(norms)


def norm_of(total: dict[str, torch.Tensor]) -> float:
    """Over all tensors together."""
    return float(torch.stack([t.norm() for t in total.values()]).norm())


def kept_states(
    adapted: AdaptedModel, ids: np.ndarray, targets: np.ndarray, shapes: BatchShapes = ONE_BY_ONE
) -> list[torch.Tensor] | None:
    """The states of each record, as a site keeps them; None where nothing lies below what is trained."""
    if not adapted.can_keep:
        return None
    found = dict(entering_states(adapted, ids, used_tokens(ids, targets), shapes))
    return [found[row] for row in range(len(ids))]


def given(states: list[torch.Tensor] | None) -> RowStates | None:
    """Hands kept states to a step."""
    return None if states is None else lambda rows: [states[row] for row in rows]


def writing_tiny(*, layers: tuple[int, ...] | None = None, reads: tuple[int, ...] | None = None) -> AdaptedModel:
    """An adapted model whose head learns two tasks of a document, behind which it writes a text."""
    tasks = (Task("ill", BinaryLabel()), Task("stage", OneClass(("a", "b", "c")), 0.5))
    objective = SeveralTasks(tasks, text=TextTask("summary", "In short:", 0.7))
    return adapted_tiny("dense and shared", objective=objective, layers=layers, reads=reads)


def completing_tiny(*, dtype: torch.dtype = torch.float32, layers: tuple[int, ...] | None = None) -> AdaptedModel:
    """An adapted model that writes completions, away from its start."""
    targets = ("o_proj", "down_proj", "experts", "gate")
    config = AdapterConfig(rank=3, alpha=6.0, targets=targets, seed="s", layers=layers)
    adapted = attach(tiny_deepseek(dtype=dtype), config)
    adapted.load_state(np.random.default_rng(1).normal(size=adapted.layout.dim) * 0.2)
    return adapted
