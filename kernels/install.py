"""These kernels inside unchanged transformers models, with adapters on the routed experts.

`install()` makes `experts_implementation="confide"` known; `quantise` packs the experts of a model; `adapt` freezes it
and puts LoRA on every bank. The factors are parameters of the experts module itself, beside `gate_up_proj` and
`down_proj`.

Not for experts with biases, transposed or interleaved weights, a norm of their own, or any gate but silu(gate) * up:
those are refused when they first run.

This file is the face of the folder for who has a model and wants adapters on its experts; docs/kernels.md says more.
Two layers of four experts, with factors of rank 2 on both projections:

>>> from transformers import MixtralConfig, MixtralForCausalLM
>>> from confide.kernels.install import adapt
>>> sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=32)
>>> model = MixtralForCausalLM(MixtralConfig(**sizes, num_key_value_heads=1, num_local_experts=4))
>>> adapted = adapt(model, rank=2, alpha=4.0)
>>> sorted({name.rpartition(".")[2] for name in adapted.parameters})
['lora_down_A', 'lora_down_B', 'lora_gate_up_A', 'lora_gate_up_B']
>>> all(parameter.requires_grad for parameter in adapted.parameters.values()), model.lm_head.weight.requires_grad
(True, False)
"""

import math
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.finegrained_fp8 import ALL_FP8_EXPERTS_FUNCTIONS
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from .collect import CaptureSlot, Collector
from .errors import CaptureMissed, SavedWithoutWeights, UnfitWeights, UnsupportedExperts
from .experts import Experts, Factors, LoRA
from .formats import FP8_BLOCK, Dense, ExpertWeights, FP8Block128, Pack
from .moe import moe
from .routing import route

__all__ = [
    "NAME", "AdaptedExperts", "adapt", "experts_of", "fill", "install", "is_bank", "quantise", "refuse_saving",
    "share_slot",
]  # fmt: skip

NAME = "confide"

_PROJECTIONS = ("gate_up_proj", "down_proj")
_NAMES = ("lora_gate_up_A", "lora_gate_up_B", "lora_down_A", "lora_down_B")
_checked: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()


def install() -> str:
    """Registers the experts implementation `confide` with transformers and returns its name; twice is no harm."""
    ALL_EXPERTS_FUNCTIONS.register(NAME, _experts_forward)
    ALL_FP8_EXPERTS_FUNCTIONS.register(NAME, _experts_forward)
    return NAME


@dataclass(frozen=True, slots=True)
class AdaptedExperts:
    """The adapters that `adapt` put into a model."""

    parameters: dict[str, nn.Parameter]  # that are trained, by their name in the model
    slot: CaptureSlot = field(repr=False)

    @contextmanager
    def collect(self, unit_of_row: Tensor, num_units: int, tokens_per_row: int) -> Iterator[Collector]:
        """Inside, forward and backward hand the gradient of every unit to the collector that is returned.

        Only these adapters are covered, and in this model only: the gradient of anything else that is trainable goes to
        its `.grad`, of all units together.

        Args:
            unit_of_row: [R] in [0, num_units), the owner of each row of the batch.

        Raises:
            CaptureNested: a batch of this model is open already.
            CaptureMissed: at the end, backward has reached no adapter inside; or an adapter holds a gradient in `.grad`
                that did not come through here.
        """
        self._refuse_stray_gradients()
        with self.slot.filled(Collector(unit_of_row, num_units, tokens_per_row)) as collector:
            yield collector
        self._refuse_stray_gradients()
        if not collector.parameters:
            raise CaptureMissed("backward reached no adapter inside: forward and backward must both run there")

    def _refuse_stray_gradients(self) -> None:
        for name, parameter in self.parameters.items():
            if parameter.grad is not None and bool(parameter.grad.any()):
                raise CaptureMissed(f"{name} holds a gradient of all units together: clear it, and run backward inside")


def adapt(model: Any, rank: int, alpha: float, *, train_A: bool = True, seed: int = 0) -> AdaptedExperts:
    """Freezes a transformers model and puts LoRA, scaled by alpha / rank, on every bank of routed experts in it.

    A starts uniform within inputs ** -0.5, B at zero, so the model computes what it did; both in float32 or better,
    whatever the format of the bank. The model is switched to these kernels: under another implementation its experts
    refuse to run, as that would ignore the adapters.

    Raises:
        UnsupportedExperts: there is no bank, one that these kernels cannot compute, or one that has adapters already;
            nothing was changed.
        UnfitWeights: rank or alpha is not positive.
    """
    if rank < 1 or not (alpha > 0 and math.isfinite(alpha)):
        raise UnfitWeights(f"need rank >= 1 and a finite alpha > 0, got rank {rank}, alpha {alpha}")
    banks = _banks(model)
    for name, module in banks:
        if hasattr(module, _NAMES[0]):
            raise UnsupportedExperts(f"{name} has adapters already; train those, or load the model anew")
        experts_of(module)
    model.set_experts_implementation(install())
    model.requires_grad_(False)
    slot, generator, trained = CaptureSlot(), torch.Generator().manual_seed(seed), {}
    for name, module in banks:
        experts = experts_of(module)
        bank, both, width = experts.gate_up.shape
        hidden = experts.hidden
        shapes = (bank, rank, width), (bank, both, rank), (bank, rank, hidden), (bank, width, rank)
        for leaf, shape in zip(_NAMES, shapes, strict=True):
            is_A = leaf.endswith("A")
            bound = shape[-1] ** -0.5 if is_A else 0.0
            start = torch.empty(shape).uniform_(-bound, bound, generator=generator)
            dtype = torch.promote_types(experts.gate_up.dtype, torch.float32)
            parameter = nn.Parameter(start.to(experts.down.device, dtype), requires_grad=train_A or not is_A)
            module.register_parameter(leaf, parameter)
            if parameter.requires_grad:
                trained[f"{name}.{leaf}"] = parameter
        module.confide_lora_scaling, module.confide_slot = alpha / rank, slot
        module.register_forward_pre_hook(_refuse_other_implementation)
    return AdaptedExperts(trained, slot)


def quantise(model: Any, pack: Pack) -> None:
    """Freezes every bank of routed experts of a transformers model in another format, for good.

    One bank after another is packed and its parameters are dropped. What is packed is no part of the model's state any
    more and stays on its device: load and move the model before, and train adapters on it after. `save_pretrained`
    raises `SavedWithoutWeights` from then on.

    Raises:
        UnsupportedExperts: as `adapt`.
    """
    banks = _banks(model)
    for name, module in banks:
        if hasattr(module, "confide_experts"):
            raise UnsupportedExperts(f"{name} was quantised before")
        experts_of(module)
    model.set_experts_implementation(install())
    for _, module in banks:
        experts, packed = experts_of(module), []
        for leaf, weights in zip(_PROJECTIONS, (experts.gate_up, experts.down), strict=True):
            packed.append(pack(weights.dense().detach()))
            delattr(module, leaf)
        fill(module, Experts(*packed))
    refuse_saving(model)


def share_slot(model: Any, banks: Sequence[Any], slot: CaptureSlot) -> None:
    """Lets banks without adapters of a transformers model run by these kernels, told by `slot` who owns a token.

    Their pairs are then multiplied in tiles, as in banks with adapters, so that no unit moves another's rounding. If
    these kernels cannot compute one of them, nothing is changed.
    """
    try:
        for module in banks:
            experts_of(module)
    except UnsupportedExperts:
        return
    for module in banks:
        module.confide_slot = slot
    if banks:
        model.set_experts_implementation(install())


def refuse_saving(model: nn.Module) -> None:
    """Makes `save_pretrained` of a transformers model and of the models inside it raise `SavedWithoutWeights`.

    Transformers would write a checkpoint without packed weights and say nothing.
    """
    for module in model.modules():
        if isinstance(module, PreTrainedModel):  # PEFT's models write adapters, and may
            module.save_pretrained = _save_nothing  # type: ignore[method-assign]


def fill(module: Any, experts: Experts) -> None:
    """Gives a transformers experts module without weights a packed bank to run on, for good.

    Raises:
        UnsupportedExperts: the module would compute something else with it than these kernels.
    """
    _check_layout(module)
    _check_gate(module, experts.down.device)
    module.confide_experts = experts
    module.register_forward_pre_hook(_refuse_other_implementation)


def is_bank(module: Any) -> bool:
    """True if a module holds routed experts, in whatever format; `experts_of` refuses those that are not supported."""
    return hasattr(module, "confide_experts") or all(hasattr(module, leaf) for leaf in _PROJECTIONS)


def experts_of(module: Any, dtype: torch.dtype = torch.bfloat16) -> Experts:
    """The bank of a transformers experts module, sharing its memory.

    Args:
        dtype: of the products, if the bank is stored in fp8.

    Raises:
        UnsupportedExperts: naming what these kernels do not compute.
    """
    if hasattr(module, "confide_experts"):
        packed: Experts = module.confide_experts
        return packed
    if module not in _checked:
        _check(module)
        _checked.add(module)
    return Experts(_weights(module, "gate_up_proj", dtype), _weights(module, "down_proj", dtype))


def _experts_forward(module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    experts, lora, collector = experts_of(module, hidden_states.dtype), None, None
    if hasattr(module, _NAMES[0]):
        lora = LoRA(Factors(*(getattr(module, name) for name in _NAMES)), module.confide_lora_scaling)
    if hasattr(module, "confide_slot"):
        collector = module.confide_slot.collector
    if collector is None:
        plan = route(top_k_index, experts.num_experts)
    else:
        plan = route(top_k_index, experts.num_experts, collector.unit_of_token, collector.num_units)
    return moe(hidden_states, plan, top_k_weights, experts, lora, collector=collector)


def _banks(model: nn.Module) -> list[tuple[str, Any]]:
    """Modules that transformers dispatches as experts, whatever their layout."""
    named = model.named_modules()
    banks = [(name, m) for name, m in named if hasattr(m, "has_gate") and hasattr(m, "is_transposed")]
    if not banks:
        raise UnsupportedExperts(f"{type(model).__name__} has no bank of experts that transformers could dispatch")
    return banks


def _weights(module: Any, name: str, dtype: torch.dtype) -> ExpertWeights:
    weight: Tensor = getattr(module, name)
    if weight.dtype != torch.float8_e4m3fn:
        return Dense(weight)
    scale_inv: Tensor = getattr(module, f"{name}_scale_inv")
    tiles = [-(-side // FP8_BLOCK) for side in weight.shape[1:]]
    if scale_inv.dtype != torch.float32:  # powers of two in a byte, exact in float32
        scale_inv = scale_inv.float()
    return FP8Block128(weight, scale_inv[:, : tiles[0]], dtype)  # a narrow bank has a spare row


def _check(module: Any) -> None:
    _check_layout(module)
    name = type(module).__name__
    for weight in (module.gate_up_proj, module.down_proj):
        if not isinstance(weight, Tensor) or weight.ndim != 3 or not weight.is_floating_point():
            raise UnsupportedExperts(f"{name} does not store its experts as 3-D tensors of floating-point numbers")
        if weight.dtype == torch.float8_e4m3fn:
            if tuple(module.block_size or ()) != (FP8_BLOCK, FP8_BLOCK):
                raise UnsupportedExperts(f"{name} has fp8 blocks of {module.block_size}, not of 128 x 128")
            if any(bool(expert.isnan().any()) for expert in weight):
                raise UnsupportedExperts(f"{name} has experts that are nan")
            if module.activation_scheme != "dynamic":
                raise UnsupportedExperts(f"{name} has {module.activation_scheme} scales for its activations")
    _check_gate(module, module.down_proj.device)


def _check_layout(module: Any) -> None:
    name = type(module).__name__
    for flag, wanted in (
        ("is_transposed", False),
        ("has_bias", False),
        ("has_gate", True),
        ("is_concatenated", True),
        ("has_post_expert_norm", False),
    ):
        if getattr(module, flag, wanted) != wanted:
            raise UnsupportedExperts(f"{name} has {flag}={not wanted}, and these kernels do not")
    if not hasattr(module, "_apply_gate"):
        raise UnsupportedExperts(f"{name} is no module whose experts transformers dispatches")


def _check_gate(module: Any, device: torch.device) -> None:
    # Clamps and soft caps hide in methods and settings of many names, so the gate is tried, on large inputs too.
    gate, up = torch.meshgrid(torch.linspace(-60, 60, 31), torch.linspace(-60, 60, 31), indexing="ij")
    probe = torch.cat([gate.flatten(), up.flatten()]).to(device).unsqueeze(0)
    want = F.silu(probe[:, : gate.numel()]) * probe[:, gate.numel() :]
    if not torch.allclose(module._apply_gate(probe), want, rtol=1e-4, atol=1e-4):
        raise UnsupportedExperts(f"{type(module).__name__} has another gate than SiLU(gate) * up")


def _save_nothing(*_: object, **__: object) -> None:
    raise SavedWithoutWeights(
        "packed weights are not in the model's state and a checkpoint would lack them; nothing was written: keep the "
        "one that the model was loaded from"
    )


def _refuse_other_implementation(module: Any, _: object) -> None:
    chosen = module.config._experts_implementation
    if chosen != NAME:
        raise UnsupportedExperts(f"adapted or quantised experts run by {NAME!r}; {chosen!r} knows nothing of either")
