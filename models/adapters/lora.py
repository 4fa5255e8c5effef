"""LoRA on every part of a backbone: embedding, projections, shared and routed experts, router, output matrix.

The backbone is frozen. With `freeze_a` only the B factors are trained (FFA-LoRA, Sun et al. 2024, arXiv:2403.12313):
the average of sites' updates is then exact and half as long. Not for expert parallelism, modules that run twice in one
forward pass, or quantised weights other than our own: packed banks of experts and `QuantisedLinear`.

A backbone may use one matrix as embedding and as output matrix (`tie_word_embeddings`): as it is frozen and adapters
are never merged into it, each of its two uses takes an adapter of its own, and adapting one leaves the other alone.

Legend: `T` tokens, `D` model, `F` expert hidden, `E` experts, `K` top-k.
"""

from contextlib import AbstractContextManager
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ...kernels.collect import CaptureSlot
from ...kernels.embedding import lora_embedding
from ...kernels.errors import KernelError
from ...kernels.experts import Experts, Factors, LoRA
from ...kernels.install import experts_of, is_bank, share_slot
from ...kernels.linear import QuantisedLinear
from ...kernels.lora import lora_linear
from ...kernels.moe import moe
from ...kernels.routing import route
from ..errors import InvalidAdapter, TargetMissing, UnsupportedModule
from ..heads import PooledHead, completion_losses, pooled, pooled_and_last, written
from ..heads.objectives import TextTask
from ..structure.sense import READS, sense_of, tokens_seen
from ..tokens import made_up
from . import resuming
from .factors import AdapterConfig, Gates, LoRAFactors, Pair, Rows, base_alone, layer_of, start, target_of
from .layout import HEAD_WEIGHT, AdapterLayout
from .routers import CHOICES, LoRARouter

_PASSED_BY = ("out_proj", "x_proj", "dt_proj")  # of Mamba layers
_FORETOLD = 32  # tokens whose next word is foretold at a time, in private steps


class LoRALinear(LoRAFactors):
    """An adapted nn.Linear, or QuantisedLinear: then the low-rank product is added to what the codes stand for."""

    def __init__(
        self, base: nn.Linear | QuantisedLinear, config: AdapterConfig, name: str, slot: CaptureSlot, gates: Gates
    ) -> None:
        super().__init__(base.weight, config, name)
        self.base, self.lora_scaling, self.slot, self.gates = base, config.lora_scaling, slot, gates
        self.tokens_per_row: int | None = None  # that it sees; None: all of a row

    def forward(self, x: Tensor) -> Tensor:
        """Computes the base layer plus the low-rank product."""
        if self.gates.are_closed:
            return cast(Tensor, base_alone(self.base, x, self.base.weight.dtype))
        return lora_linear(
            x, self.base.weight, self.base.bias, self.lora_A, self.lora_B, self.lora_scaling, self.slot.collector,
            gates_TR=self.gates.of(self, x), tokens_per_row=self.tokens_per_row,
        )  # fmt: skip


class LoRAEmbedding(LoRAFactors):
    """An adapted nn.Embedding; the factors are those of the transposed table, A [R, words] and B [D, R], as in PEFT."""

    def __init__(self, base: nn.Embedding, config: AdapterConfig, name: str, slot: CaptureSlot, gates: Gates) -> None:
        # A word reads one column of A, so a spread of 1 makes what B sees as large as behind a projection.
        super().__init__(base.weight.T, config, name, start_std=1.0)
        if base.max_norm is not None or base.scale_grad_by_freq:
            raise UnsupportedModule(f"{name} rescales its table by the words of a batch (max_norm, scale_grad_by_freq)")
        self.base, self.lora_scaling, self.slot, self.gates = base, config.lora_scaling, slot, gates

    def forward(self, ids: Tensor) -> Tensor:
        """Looks up the base table and adds the low-rank product."""
        if self.gates.are_closed:
            return cast(Tensor, self.base(ids))
        return lora_embedding(
            ids, self.base.weight, self.lora_A, self.lora_B, self.lora_scaling, self.slot.collector,
            gates_TR=self.gates.of(self, ids),
        )  # fmt: skip


class BankFactors(nn.Module):
    """The trained part of an adapted bank: every expert has factors of its own on `gate_up_proj` and `down_proj`."""

    def __init__(self, experts: Experts, config: AdapterConfig, name: str) -> None:
        super().__init__()
        self.gate_up_A, self.gate_up_B = start(experts.gate_up, config, f"{name}.gate_up_proj")
        self.down_A, self.down_B = start(experts.down, config, f"{name}.down_proj")
        self.last_experts: tuple[Experts, LoRA] | None = None

    def forward(
        self, hidden: Tensor, topk_ids: Tensor, topk_weights: Tensor, *, experts: Experts, lora_scaling: float,
        slot: CaptureSlot, gates_TR: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Computes [.., D] from hidden states [.., D], expert ids and weights [.., K].

        In training mode, which our own training never enters, `last_experts` keeps what was computed with, for a grad
        sampler that repeats it.
        """
        factors = Factors(self.gate_up_A, self.gate_up_B, self.down_A, self.down_B)
        lora, collector = LoRA(factors, lora_scaling, gates_TR), slot.collector
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

    def __init__(
        self, base: Any, config: AdapterConfig, name: str, slot: CaptureSlot, rows: Rows, gates: Gates
    ) -> None:
        super().__init__()
        self.factors = BankFactors(_bank(base, name), config, name)
        self.base, self.lora_scaling, self.slot, self.rows = base, config.lora_scaling, slot, rows
        self.gates = gates

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
        experts = experts_of(self.base, hidden_TD.dtype)
        if self.gates.are_closed:
            return moe(hidden_TD, route(topk_ids_TK, experts.num_experts), topk_weights_TK, experts)
        parts = (self.rows.apart(part) for part in (hidden_TD, topk_ids_TK, topk_weights_TK))
        out: Tensor = self.factors(
            *parts, experts=experts, lora_scaling=self.lora_scaling, slot=self.slot,
            gates_TR=self.gates.of(self, hidden_TD),
        )  # fmt: skip
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
        gates: where whoever stacks several adapters says which counts for which row of a batch.
        frozen_layers: how many decoder layers lie below everything that is trained; 0 if there are none, or it is not
            known. What they give for a record never changes, and can be kept (`entering`).
        frozen_sense: the eye or ear of which only the last projection is trained, if no layer is frozen; what its
            encoder gives for a record can be kept in the same way.
    """

    def __init__(
        self, model: Any, config: AdapterConfig, head: PooledHead | None, slot: CaptureSlot, rows: Rows, gates: Gates
    ) -> None:
        super().__init__()
        self.model, self.head, self.config, self.slot, self.rows = model, head, config, slot, rows
        self.gates = gates
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
        self.frozen_layers = resuming.frozen_layers(model, self.adapters, () if head is None else head.reads or ())
        self.frozen_sense = None if self.frozen_layers else resuming.frozen_sense(model)

    @property
    def can_keep(self) -> bool:
        """True if something below what is trained gives the same for a record at any state of training."""
        return bool(self.frozen_layers) or self.frozen_sense is not None

    @property
    def text(self) -> TextTask | None:
        """The text that is written behind a record beside what the head learns of it; None if there is none."""
        return None if self.head is None else self.head.text

    @property
    def carried(self) -> int:
        """Numbers of 64 bits that each token of a row carries beside its word, see `models.tokens`."""
        sense = sense_of(self.model)
        return 0 if sense is None else sense.layout.carried

    @property
    def carrying_tokens(self) -> int:
        """Number of tokens at the beginning of a row that carry a picture or a sound."""
        sense = sense_of(self.model)
        return 0 if sense is None else sense.layout.tokens

    @property
    def begins_with(self) -> str:
        """Names what rows begin with, "pictures" or "sounds"; "" if with words."""
        sense = sense_of(self.model)
        return "" if sense is None else f"{READS[sense.name]}s"

    def made_up_rows(
        self, generator: torch.Generator, rows: int, length: int, *, words: int | None = None, least: int = 1
    ) -> Tensor:
        """Draws rows of nobody as the model reads them, for probes, see `tokens.made_up`.

        Args:
            words: size of the vocabulary; None: the model's.
        """
        words = int(self.model.config.vocab_size) if words is None else words
        return made_up(generator, rows, length, words=words, carried=self.carried, least=least)

    @property
    def expert_layers(self) -> tuple[int, ...]:
        """Decoder layers, from 0, whose routed experts take adapters."""
        banks = [name for name, adapter in self.adapters.items() if isinstance(adapter, LoRAExperts)]
        return tuple(layer for name in banks if (layer := layer_of(name)) is not None)

    def forward(self, ids_RT: Tensor) -> Tensor:
        """Computes logits: [R] or [R, K] of the records with a head, [R, T, words] of every next token without.

        A Poisson sample may be empty, which no attention takes: then a made-up row passes and is left out, so that
        every trained tensor has a gradient, of zeros.
        """
        if not len(ids_RT):
            nobody: Tensor = self(ids_RT.new_ones(1, max(1, ids_RT.shape[1]), *ids_RT.shape[2:]))
            return nobody[:0]
        with self.rows.told(ids_RT):
            if self.head is not None:
                return self.classify(ids_RT)
            logits: Tensor = self.model(input_ids=ids_RT, use_cache=False).logits
            return logits

    def classify(self, ids_RT: Tensor) -> Tensor:
        """[R] or [R, K] outputs of the head for the records, by the adapted backbone; see `heads.objectives`.

        Raises:
            InvalidAdapter: the model was attached without a head.
        """
        if self.head is None:
            raise InvalidAdapter("the adapted model has no head to classify with")
        return cast(Tensor, self.head(pooled(self.model, ids_RT, self.head.reads)))

    def entering(self, ids_RT: Tensor) -> Tensor:
        """[R, T, D], the states that enter the lowest adapted layer: the same for a record at any state of training.

        Where that is the last projection of an eye or ear, [R, at most N, E]: what its encoder gives for the tokens
        that carry something.

        Raises:
            InvalidAdapter: something is trained below all layers, so there are no such states.
        """
        if self.frozen_sense is not None:
            return resuming.features(self.frozen_sense, ids_RT)
        if not self.frozen_layers:
            raise InvalidAdapter("no layer lies below what is trained: there is nothing to keep")

        def run() -> None:
            if self.head is not None and self.text is None:
                pooled(self.model, ids_RT)
            else:
                self.model.model(input_ids=ids_RT, use_cache=False)

        return resuming.entering(self.model, run, self.frozen_layers)

    def losses(self, ids_RT: Tensor, targets: Tensor, entering_RTD: Tensor | None = None) -> Tensor:
        """[R], what each record adds to the loss, in nats.

        Args:
            targets: with a head, [R], what its objective learns; without, bool [R, T], which tokens are a record's
                completion; with a head and a text behind the record, int64 [R, T], both, see `heads.written`.
            entering_RTD: what `entering` gave for these records; the layers below are then not computed. States behind
                a record's last token may be any finite numbers. None computes all layers.
        """
        if entering_RTD is not None:
            with self._resumed(entering_RTD):
                return self.losses(ids_RT, targets)
        # A collector is there where records of several units share a batch.
        tile = None if self.slot.collector is None else _FORETOLD
        if self.head is None:
            return completion_losses(self.model, ids_RT, targets, tile=tile)
        if self.text is None:
            return self.head.objective.losses(self.classify(ids_RT), targets)
        of_head_R, is_document_RT, is_written_RT = written.apart(targets)
        pooled_RN, last_RTD = pooled_and_last(self.model, ids_RT, is_document_RT, self.head.reads)
        told_R = self.head.objective.losses(self.head(pooled_RN), of_head_R)
        written_R = completion_losses(self.model, ids_RT, is_written_RT, tile=tile, last_RTD=last_RTD)
        return told_R + self.text.weight * written_R

    def _resumed(self, entering_RTD: Tensor) -> AbstractContextManager[None]:
        """Computes inside from what `entering` gave."""
        if self.frozen_sense is not None:
            return resuming.sensed(self.frozen_sense, entering_RTD)
        return resuming.resumed(self.model, entering_RTD, self.frozen_layers)

    def made_up_targets(self, is_learned_RT: Tensor, *, are_alike: bool = False) -> Tensor:
        """Makes targets of nobody, for probes, as `losses` takes them.

        Args:
            is_learned_RT: bool, tokens that a model without a head learns; one with both, only behind the middle of
                those up to a row's last.
            are_alike: of what a head learns, True for the same in all rows; else the first and the last of an odd
                number of rows are alike.
        """
        if self.head is None:
            return is_learned_RT
        objective, (rows, tokens) = self.head.objective, is_learned_RT.shape
        of_head_R = objective.made_up(1).expand(rows) if are_alike else objective.made_up(rows)
        if self.text is None:
            return of_head_R.to(is_learned_RT.device)
        is_learned_RT, place_T = is_learned_RT.cpu(), torch.arange(tokens)
        middle_R = (is_learned_RT * (place_T + 1)).amax(1) // 2
        is_written_RT = is_learned_RT & (place_T >= middle_R[:, None])
        joined = written.joined(of_head_R.numpy(), torch.zeros_like(is_written_RT), is_written_RT)
        return torch.from_numpy(joined).to(next(iter(self.trained.values())).device)

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
        TargetMissing: a target is the last name of no module, or a named layer has none of them or lies above all that
            the head reads.
        UnsupportedModule: a target is neither nn.Linear, nn.Embedding, a packed linear layer, a fused SwiGLU bank,
            nor a top-k router.
        InvalidAdapter: nothing would be trained.
    """
    if not config.targets and head is None:
        raise InvalidAdapter("no targets and no head: nothing to train")
    model.requires_grad_(False)
    slot, rows, gates = CaptureSlot(), Rows(), Gates()
    places = [(name, module) for name, module in model.named_modules() if config.is_place(name)]
    missing = set(config.targets) - {target_of(name) for name, _ in places}
    if missing:
        where = ""
        if config.layers is not None:
            last = len(model.model.layers) - 1
            where = f" in layers {', '.join(map(str, config.layers))}; it has layers 0 to {last}"
        raise TargetMissing(f"the backbone has no module named {', '.join(sorted(missing))}{where}")
    reached = {layer for name, _ in places if (layer := layer_of(name)) is not None}
    if idle := sorted({*(config.layers or ())} - reached):
        raise TargetMissing(f"the backbone has no layer {', '.join(map(str, idle))} with a module of the targets")
    _refuse_passed_by(model, [name for name, _ in places])
    _refuse_unread(model, head, reached)
    adapters = {name: _adapter_for(module, config, name, slot, rows, gates) for name, module in places}
    for name, adapter in adapters.items():
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, adapter)
    _tell_tokens(model, adapters)
    adapted = {id(adapter.base) for adapter in adapters.values()}
    share_slot(model, [m for m in model.modules() if hasattr(m, "has_gate") and id(m) not in adapted], slot)
    return AdaptedModel(model.eval(), config, head, slot, rows, gates)


def _tell_tokens(model: Any, adapters: dict[str, Adapter]) -> None:
    """Tells adapters in an eye or an ear how many tokens of a row they see: its parts may have their own numbers."""
    sense = sense_of(model)
    if sense is None:
        return
    (prefix,) = (f"{name}." for name, module in model.named_modules() if module is sense)
    inside = {name.removeprefix(prefix): adapter for name, adapter in adapters.items() if name.startswith(prefix)}
    seen = tokens_seen(sense, frozenset(inside)) if inside else {}
    for name, adapter in inside.items():
        assert isinstance(adapter, LoRALinear)
        adapter.tokens_per_row = seen[name]


def _refuse_unread(model: Any, head: PooledHead | None, reached: set[int]) -> None:
    """Layers above all that a head reads do not run, so that adapters in them would never learn."""
    if head is None or head.reads is None or model.config.num_hidden_layers in head.reads:
        return
    if head.text is not None:
        return  # what is written reads the last state
    if above := sorted(layer for layer in reached if layer >= max(head.reads)):
        raise TargetMissing(
            f"adapters in layer {', '.join(map(str, above))}, counted from 0, lie above the last state that the head "
            f"reads, {max(head.reads)}: name lower layers in [adapter] layers, or read a later state"
        )


def _refuse_passed_by(model: Any, places: list[str]) -> None:
    """Transformers' state-space layers hand weights to fused kernels, in training mode or always: not the modules."""
    for name in places:
        parent, _, leaf = name.rpartition(".")
        if leaf in _PASSED_BY and hasattr(model.get_submodule(parent), "conv1d"):
            raise UnsupportedModule(f"{name} is read past its module by a state-space layer, which would skip adapters")


def _adapter_for(module: Any, config: AdapterConfig, name: str, slot: CaptureSlot, rows: Rows, gates: Gates) -> Adapter:
    if type(module) in (nn.Linear, QuantisedLinear):  # a subclass may compute something else
        return LoRALinear(module, config, name, slot, gates)
    if type(module) is nn.Embedding:
        return LoRAEmbedding(module, config, name, slot, gates)
    if type(module).__name__ in CHOICES:
        return LoRARouter(module, config, name, slot, rows, gates)
    if is_bank(module):
        return LoRAExperts(module, config, name, slot, rows, gates)
    raise UnsupportedModule(f"{name} is a {type(module).__name__}, which no adapter fits")


def _bank(base: Any, name: str) -> Experts:
    try:
        return experts_of(base)
    except KernelError as err:
        raise UnsupportedModule(f"{name}: {err}") from err
