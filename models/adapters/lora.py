"""LoRA on every part of a backbone: embedding, projections, shared and routed experts, router, output matrix.

The backbone is frozen. With `freeze_a` only the B factors are trained (FFA-LoRA, Sun et al. 2024, arXiv:2403.12313):
the average of sites' updates is then exact and half as long. Not for expert parallelism, modules that run twice in one
forward pass, or quantised weights other than banks of experts.

A backbone may use one matrix as embedding and as output matrix (`tie_word_embeddings`): as it is frozen and adapters
are never merged into it, each of its two uses takes an adapter of its own, and adapting one leaves the other alone.

Legend: `T` tokens, `D` model, `F` expert hidden, `E` experts, `K` top-k.
"""

import hashlib
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ...kernels.collect import CaptureSlot
from ...kernels.embedding import lora_embedding
from ...kernels.errors import KernelError
from ...kernels.experts import Experts, Factors, LoRA
from ...kernels.formats import ExpertWeights
from ...kernels.install import experts_of, is_bank, share_slot
from ...kernels.lora import lora_linear
from ...kernels.moe import moe
from ...kernels.routing import route
from ..errors import InvalidAdapter, TargetMissing, UnsupportedModule
from ..heads import PooledHead, foretell, pooled, record_losses
from .layout import HEAD_WEIGHT, AdapterLayout

_FORETOLD = 64  # tokens whose next word is foretold at a time, in private steps
_LAYER = re.compile(r"\blayers\.([0-9]+)\.")


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterConfig:
    """The places of the adapters and their start; public and equal at all sites."""

    rank: int
    alpha: float  # the low-rank product is scaled by alpha / rank
    targets: tuple[str, ...]  # last names of modules: nn.Linear, nn.Embedding, `experts` (routed bank), `gate` (router)
    seed: str  # public; expands to the same A factors on every machine
    freeze_a: bool = True
    layers: tuple[int, ...] | None = None  # decoder layers that take them, from 0; None: wherever a target is

    def __post_init__(self) -> None:
        if self.rank < 1 or not (self.alpha > 0 and math.isfinite(self.alpha)):
            raise InvalidAdapter(f"need rank >= 1 and a finite alpha > 0, got rank {self.rank}, alpha {self.alpha}")
        if len(set(self.targets)) != len(self.targets):
            raise InvalidAdapter(f"targets are named twice: {self.targets}")

    def is_place(self, name: str) -> bool:
        """True if the module of this full name takes an adapter."""
        found = _LAYER.search(name)
        is_layer = self.layers is None or (found is not None and int(found[1]) in self.layers)
        return is_layer and name.rpartition(".")[2] in self.targets

    @property
    def lora_scaling(self) -> float:
        """The factor of the low-rank product, alpha / rank."""
        return self.alpha / self.rank


class Pair(NamedTuple):
    """The factors of one weight; a bank of experts has a leading expert axis on both."""

    lora_A: Tensor
    lora_B: Tensor


@dataclass(slots=True)
class Rows:
    """Holds the shape of the batch in progress, for modules that see its tokens without rows.

    A backbone flattens rows and tokens before its router and experts. Whoever attributes gradients to rows by what goes
    into a module and comes out of it, as Opacus does, needs the rows back.
    """

    shape: tuple[int, int] | None = None  # rows, tokens; None: not told

    @contextmanager
    def told(self, ids_RT: Tensor) -> Iterator[None]:
        """Tells the shape of a batch to the forward pass inside."""
        rows, tokens = ids_RT.shape
        self.shape = rows, tokens
        try:
            yield
        finally:
            self.shape = None

    def apart(self, by_token: Tensor) -> Tensor:
        """Gives tokens [rows * T, ..] their axis of rows back, [rows, T, ..]; as they are if the shape was not told."""
        return by_token if self.shape is None else by_token.view(*self.shape, *by_token.shape[1:])


class LoRAFactors(nn.Module):
    """The pair (A, B) of one weight."""

    def __init__(self, weight: Tensor, config: AdapterConfig, name: str, *, start_std: float | None = None) -> None:
        """A starts with `start_std`, by default inputs ** -0.5; B at zero."""
        super().__init__()
        self.lora_A, self.lora_B = _start(weight, config, name, start_std)

    def named_factors(self) -> dict[str, nn.Parameter]:
        """Returns the factors by the last part of their name."""
        return {"lora_A": self.lora_A, "lora_B": self.lora_B}


class LoRALinear(LoRAFactors):
    """An adapted nn.Linear."""

    def __init__(self, base: nn.Linear, config: AdapterConfig, name: str, slot: CaptureSlot) -> None:
        super().__init__(base.weight, config, name)
        self.base, self.lora_scaling, self.slot = base, config.lora_scaling, slot

    def forward(self, x: Tensor) -> Tensor:
        """Computes the base layer plus the low-rank product."""
        return lora_linear(
            x, self.base.weight, self.base.bias, self.lora_A, self.lora_B, self.lora_scaling, self.slot.collector
        )


class LoRAEmbedding(LoRAFactors):
    """An adapted nn.Embedding; the factors are those of the transposed table, A [R, words] and B [D, R], as in PEFT."""

    def __init__(self, base: nn.Embedding, config: AdapterConfig, name: str, slot: CaptureSlot) -> None:
        # A word reads one column of A, so a spread of 1 makes what B sees as large as behind a projection.
        super().__init__(base.weight.T, config, name, start_std=1.0)
        if base.max_norm is not None or base.scale_grad_by_freq:
            raise UnsupportedModule(f"{name} rescales its table by the words of a batch (max_norm, scale_grad_by_freq)")
        self.base, self.lora_scaling, self.slot = base, config.lora_scaling, slot

    def forward(self, ids: Tensor) -> Tensor:
        """Looks up the base table and adds the low-rank product."""
        return lora_embedding(ids, self.base.weight, self.lora_A, self.lora_B, self.lora_scaling, self.slot.collector)


class RouterFactors(LoRAFactors):
    """The trained part of an adapted router."""

    def __init__(self, weight: Tensor, config: AdapterConfig, name: str) -> None:
        super().__init__(weight, config, name)
        self.lora_scaling = config.lora_scaling

    def forward(self, hidden: Tensor, *, weight: Tensor, slot: CaptureSlot) -> Tensor:
        """Computes logits [.., E] of hidden states [.., D], with the low-rank product."""
        return lora_linear(hidden, weight, None, self.lora_A, self.lora_B, self.lora_scaling, slot.collector)


class LoRARouter(nn.Module):
    """An adapted token-choice router; `e_score_correction_bias` stays frozen, as it is a statistic of a batch.

    A token's experts depend on that token alone: there is no capacity and no balance loss.
    """

    def __init__(self, base: Any, config: AdapterConfig, name: str, slot: CaptureSlot, rows: Rows) -> None:
        super().__init__()
        self.factors = RouterFactors(base.weight, config, name)
        self.base, self.lora_scaling, self.slot, self.rows = base, config.lora_scaling, slot, rows

    @property
    def lora_A(self) -> nn.Parameter:
        """A, [R, D]."""
        return self.factors.lora_A

    @property
    def lora_B(self) -> nn.Parameter:
        """B, [E, R]."""
        return self.factors.lora_B

    def named_factors(self) -> dict[str, nn.Parameter]:
        """Returns the factors by the last part of their name."""
        return self.factors.named_factors()

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Router logits [T, E], weights [T, K] and expert ids [T, K] (DeepSeek-V3, arXiv:2412.19437, section 2.1.2)."""
        base = self.base
        weight = base.weight.to(self.lora_B.dtype)
        hidden_TD = hidden.reshape(-1, hidden.shape[-1]).to(weight.dtype)
        logits = self.factors(self.rows.apart(hidden_TD), weight=weight, slot=self.slot)
        logits_TE = logits.view(len(hidden_TD), logits.shape[-1])
        scores_TE = logits_TE.sigmoid()
        topk_ids_TK = self._choose(scores_TE)
        topk_weights_TK = scores_TE.gather(1, topk_ids_TK)
        if base.norm_topk_prob:
            topk_weights_TK = topk_weights_TK / (topk_weights_TK.sum(-1, keepdim=True) + 1e-20)
        return logits_TE, topk_weights_TK * base.routed_scaling_factor, topk_ids_TK

    @torch.no_grad()
    def _choose(self, scores_TE: Tensor) -> Tensor:
        base = self.base
        biased_TE = scores_TE + base.e_score_correction_bias
        if base.num_group > 1:
            grouped = biased_TE.unflatten(-1, (base.num_group, -1))
            strength = grouped.topk(2, dim=-1).values.sum(-1)
            is_kept = torch.zeros_like(strength, dtype=torch.bool)
            is_kept.scatter_(-1, strength.topk(base.topk_group, dim=-1).indices, True)
            biased_TE = grouped.masked_fill(~is_kept.unsqueeze(-1), -torch.inf).flatten(-2)
        chosen_TK: Tensor = biased_TE.topk(base.top_k, dim=-1, sorted=False).indices
        return chosen_TK


class BankFactors(nn.Module):
    """The trained part of an adapted bank: every expert has factors of its own on `gate_up_proj` and `down_proj`."""

    def __init__(self, experts: Experts, config: AdapterConfig, name: str) -> None:
        super().__init__()
        self.gate_up_A, self.gate_up_B = _start(experts.gate_up, config, f"{name}.gate_up_proj")
        self.down_A, self.down_B = _start(experts.down, config, f"{name}.down_proj")
        self.last_experts: tuple[Experts, LoRA] | None = None

    def forward(
        self, hidden: Tensor, topk_ids: Tensor, topk_weights: Tensor, *, experts: Experts, lora_scaling: float,
        slot: CaptureSlot,
    ) -> Tensor:  # fmt: skip
        """Computes [.., D] from hidden states [.., D], expert ids and weights [.., K].

        In training mode, which our own training never enters, `last_experts` keeps what was computed with, for a grad
        sampler that repeats it.
        """
        factors = Factors(self.gate_up_A, self.gate_up_B, self.down_A, self.down_B)
        lora, collector = LoRA(factors, lora_scaling), slot.collector
        self.last_experts = (experts, lora) if self.training else None
        ids_TK = topk_ids.flatten(0, -2)
        if collector is None:
            plan = route(ids_TK, experts.num_experts)
        else:
            plan = route(ids_TK, experts.num_experts, collector.unit_of_token, collector.num_units)
        out_TD = moe(hidden.flatten(0, -2), plan, topk_weights.flatten(0, -2), experts, lora, collector=collector)
        return out_TD.view(hidden.shape)


class LoRAExperts(nn.Module):
    """An adapted bank of routed experts."""

    def __init__(self, base: Any, config: AdapterConfig, name: str, slot: CaptureSlot, rows: Rows) -> None:
        super().__init__()
        self.factors = BankFactors(_bank(base, name), config, name)
        self.base, self.lora_scaling, self.slot, self.rows = base, config.lora_scaling, slot, rows

    @property
    def gate_up_proj(self) -> Pair:
        """A [E, R, D] and B [E, 2F, R] of both input projections."""
        return Pair(self.factors.gate_up_A, self.factors.gate_up_B)

    @property
    def down_proj(self) -> Pair:
        """A [E, R, F] and B [E, D, R] of the output projection."""
        return Pair(self.factors.down_A, self.factors.down_B)

    def named_factors(self) -> dict[str, nn.Parameter]:
        """Returns the factors by the last parts of their names."""
        factors = self.factors
        return {
            "gate_up_proj.lora_A": factors.gate_up_A,
            "gate_up_proj.lora_B": factors.gate_up_B,
            "down_proj.lora_A": factors.down_A,
            "down_proj.lora_B": factors.down_B,
        }

    def forward(self, hidden_TD: Tensor, topk_ids_TK: Tensor, topk_weights_TK: Tensor) -> Tensor:
        """[T, D], as the base bank, plus the low-rank products."""
        parts = (self.rows.apart(part) for part in (hidden_TD, topk_ids_TK, topk_weights_TK))
        experts = experts_of(self.base, hidden_TD.dtype)
        out: Tensor = self.factors(*parts, experts=experts, lora_scaling=self.lora_scaling, slot=self.slot)
        return out.view(hidden_TD.shape)


Adapter = LoRALinear | LoRAEmbedding | LoRARouter | LoRAExperts


class AdaptedModel(nn.Module):
    """A frozen backbone with its adapters and, if it classifies, its head.

    Attributes:
        model: the backbone, adapters in place.
        adapters: adapter modules by the name of the module they replaced.
        trained: the trained parameters by name, in the order of `layout`. Names are those of the backbone's modules
            plus `.lora_A` / `.lora_B`, a bank's `<bank>.gate_up_proj.lora_B` and so on, the head's `head.weight`.
        slot: where a clipper puts the collector of the microbatch in progress.
        rows: where `forward` tells the shape of its batch.
    """

    def __init__(
        self, model: Any, config: AdapterConfig, head: PooledHead | None, slot: CaptureSlot, rows: Rows
    ) -> None:
        super().__init__()
        self.model, self.head, self.config, self.slot, self.rows = model, head, config, slot, rows
        if head is not None:
            head.slot = slot
        self.adapters: dict[str, Adapter] = {
            name: module for name, module in model.named_modules() if isinstance(module, Adapter)
        }
        found = {
            f"{name}.{leaf}": factor
            for name, adapter in self.adapters.items()
            for leaf, factor in adapter.named_factors().items()
            if factor.requires_grad
        }
        if head is not None:
            found[HEAD_WEIGHT] = head.weight
        self.layout = AdapterLayout({name: tuple(parameter.shape) for name, parameter in found.items()})
        self.trained: dict[str, nn.Parameter] = {name: found[name] for name in self.layout.names}

    @property
    def expert_layers(self) -> tuple[int, ...]:
        """Decoder layers, from 0, whose routed experts take adapters."""
        banks = [name for name, adapter in self.adapters.items() if isinstance(adapter, LoRAExperts)]
        return tuple(int(found[1]) for name in banks if (found := _LAYER.search(name)))

    def forward(self, ids_RT: Tensor) -> Tensor:
        """Computes logits: [R] of the records with a head, [R, T, words] of every next token without.

        A Poisson sample may be empty, which no attention takes: then a made-up row passes and is left out, so that
        every trained tensor has a gradient, of zeros.
        """
        if not len(ids_RT):
            nobody: Tensor = self(ids_RT.new_ones(1, max(1, ids_RT.shape[1])))
            return nobody[:0]
        with self.rows.told(ids_RT):
            if self.head is not None:
                return self.classify(ids_RT)
            logits: Tensor = self.model(input_ids=ids_RT, use_cache=False).logits
            return logits

    def classify(self, ids_RT: Tensor) -> Tensor:
        """[R] logits of the records, by the adapted backbone and its head.

        Raises:
            InvalidAdapter: the model was attached without a head.
        """
        if self.head is None:
            raise InvalidAdapter("the adapted model has no head to classify with")
        return cast(Tensor, self.head(pooled(self.model, ids_RT)))

    def losses(self, ids_RT: Tensor, targets: Tensor) -> Tensor:
        """[R], what each record adds to the loss, in nats.

        Args:
            targets: with a head, [R] labels, 0 or 1; without, bool [R, T], which tokens are a record's completion.
        """
        if self.head is None:
            # A collector is there where records of several units share a batch.
            tile = None if self.slot.collector is None else _FORETOLD
            return foretell(self.model, ids_RT, targets, tile=tile).by_record()
        return record_losses(self.classify(ids_RT), targets)

    def state(self) -> npt.NDArray[np.float32]:
        """The trained parameters as one vector [dim]."""
        return self.layout.flatten(self.trained)

    @torch.no_grad()
    def load_state(self, state: npt.ArrayLike) -> None:
        """Overwrites the trained parameters.

        Raises:
            StateMismatch: the state is not `dim` finite numbers; nothing was changed.
        """
        for name, array in self.layout.unflatten(state).items():
            self.trained[name].copy_(torch.from_numpy(array))


def attach(model: Any, config: AdapterConfig, head: PooledHead | None = None) -> AdaptedModel:
    """Freezes `model` and puts adapters in place of its target modules; the model object itself is changed.

    Every B starts at zero, so the adapted model computes what the backbone does. It is put into eval mode: fine-tuning
    here uses no dropout.

    Raises:
        TargetMissing: a target is the last name of no module, or a named layer has none of them.
        UnsupportedModule: a target is neither nn.Linear, nn.Embedding, a fused SwiGLU bank, nor a top-k router.
        InvalidAdapter: nothing would be trained.
    """
    if not config.targets and head is None:
        raise InvalidAdapter("no targets and no head: nothing to train")
    model.requires_grad_(False)
    slot, rows = CaptureSlot(), Rows()
    places = [(name, module) for name, module in model.named_modules() if config.is_place(name)]
    missing = set(config.targets) - {name.rpartition(".")[2] for name, _ in places}
    if missing:
        where = "" if config.layers is None else f" in layers {', '.join(map(str, config.layers))}"
        raise TargetMissing(f"the backbone has no module named {', '.join(sorted(missing))}{where}")
    reached = {int(found[1]) for name, _ in places if (found := _LAYER.search(name))}
    if idle := sorted({*(config.layers or ())} - reached):
        raise TargetMissing(f"the backbone has no layer {', '.join(map(str, idle))} with a module of the targets")
    adapters = {name: _adapter_for(module, config, name, slot, rows) for name, module in places}
    for name, adapter in adapters.items():
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, adapter)
    adapted = {id(adapter.base) for adapter in adapters.values()}
    share_slot(model, [m for m in model.modules() if hasattr(m, "has_gate") and id(m) not in adapted], slot)
    return AdaptedModel(model.eval(), config, head, slot, rows)


def _adapter_for(module: Any, config: AdapterConfig, name: str, slot: CaptureSlot, rows: Rows) -> Adapter:
    if type(module) is nn.Linear:  # a subclass may compute something else, a quantised product for instance
        return LoRALinear(module, config, name, slot)
    if type(module) is nn.Embedding:
        return LoRAEmbedding(module, config, name, slot)
    if hasattr(module, "e_score_correction_bias"):
        return LoRARouter(module, config, name, slot, rows)
    if is_bank(module):
        return LoRAExperts(module, config, name, slot, rows)
    raise UnsupportedModule(f"{name} is a {type(module).__name__}, which no adapter fits")


def _bank(base: Any, name: str) -> Experts:
    try:
        return experts_of(base)
    except KernelError as err:
        raise UnsupportedModule(f"{name}: {err}") from err


def _start(
    weight: Tensor | ExpertWeights, config: AdapterConfig, name: str, std: float | None = None
) -> tuple[nn.Parameter, nn.Parameter]:
    """A and B of a weight as they begin: A uniform with `std`, by default inputs ** -0.5; B zero."""
    *bank, width_out, width_in = weight.shape
    std = 1 / math.sqrt(width_in) if std is None else std
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32  # no less: updates are small
    shape_A, shape_B = (*bank, config.rank, width_in), (*bank, width_out, config.rank)
    start = torch.from_numpy(_public_uniform(f"{config.seed}\0{name}.lora_A", shape_A, std))
    return (
        nn.Parameter(start.to(weight.device, dtype), requires_grad=not config.freeze_a),
        nn.Parameter(torch.zeros(shape_B, dtype=dtype, device=weight.device)),
    )


def _public_uniform(label: str, shape: tuple[int, ...], std: float) -> npt.NDArray[np.float32]:
    """Uniform numbers of that standard deviation, expanded from `label` by SHAKE-256: equal on every machine."""
    size = math.prod(shape)
    digest = hashlib.shake_256(b"confide lora_A 1\0" + label.encode()).digest(4 * size)
    unit = np.frombuffer(digest, dtype="<u4").astype(np.float64) / 2**31 - 1 + 2.0**-32
    return (unit * (std * math.sqrt(3))).astype(np.float32).reshape(shape)
