"""Routed experts behind one function: plan the routing, then run it on the backend that suits.

    reference   one page of plain torch, the definition; any device, slow
    cpu         hand-written backward, torch's matrix products; any device
    triton      fused kernels for NVIDIA GPUs

Legend: `T` tokens, `D` model, `E` experts, `K` top-k.
"""

import functools
import os
import warnings
from typing import Protocol

import torch
from torch import Tensor

from .collect import Collector
from .cpu import cpu_moe
from .errors import TokensMiscounted, UnfitWeights, UnknownBackend
from .experts import Experts, LoRA, gates_by_token
from .formats import trained_stack
from .reference import reference_moe
from .routing import Plan
from .triton_experts import check_fit, is_available, triton_moe

VARIABLE = "CONFIDE_MOE_BACKEND"


class Backend(Protocol):
    """Runs a plan; x has the dtype of the experts, and what does not fit was refused before."""

    def __call__(
        self,
        x_TD: Tensor,
        plan: Plan,
        topk_weights_TK: Tensor,
        experts: Experts,
        lora: LoRA | None,
        collector: Collector | None,
        /,
    ) -> Tensor:
        """[T, D]."""
        ...


def moe(
    x_TD: Tensor,
    plan: Plan,
    topk_weights_TK: Tensor,
    experts: Experts,
    lora: LoRA | None = None,
    *,
    backend: str | None = None,
    collector: Collector | None = None,
) -> Tensor:
    """[T, D]: for each token, the sum over its experts of weight * down(silu(gate) * up), adapted by `lora`.

    Computed in the dtype of the experts, also under autocast, and returned in that of x. The K outputs of a token are
    added in a fixed order: the same input gives the same bits. Differentiable once, by x, the weights, trained factors
    and, in the `Dense` format, the experts themselves.

    Args:
        plan: of `route`; it must know the owners of the tokens if there is a collector.
        backend: "reference", "cpu" or "triton"; None takes what the variable CONFIDE_MOE_BACKEND names, else what
            suits the device; "cpu" if `lora` has gates, which the fused kernels do not take.
        collector: gets the gradients of the factors unit by unit; their `.grad` is left alone.

    Raises:
        UnknownBackend, UnfitWeights, TokensMiscounted, GatesUntrained: before anything is computed.
        CaptureClosed, CapturedTwice: from backward, see `collect`.
    """
    _check_fit(x_TD, plan, topk_weights_TK, experts, lora, collector)
    if collector is not None and lora is not None:
        collector.announce(*lora.factors)
    is_gated = lora is not None and lora.gates_TR is not None
    name = backend or os.environ.get(VARIABLE) or ("cpu" if is_gated else _suiting(x_TD.device, experts))
    if is_gated and name == "triton":
        raise UnknownBackend("the fused kernels of triton take no gates: name no backend, or cpu")
    run = _named(name, x_TD.device)
    with torch.autocast(x_TD.device.type, enabled=False):
        return run(x_TD.to(experts.gate_up.dtype), plan, topk_weights_TK, experts, lora, collector).to(x_TD.dtype)


def _named(backend: str, device: torch.device) -> Backend:
    if backend == "reference":
        return reference_moe
    if backend == "cpu":
        return cpu_moe
    if backend == "triton":
        if not is_available(device):
            raise UnknownBackend(f"triton does not run on {device}: it takes the package and an NVIDIA GPU from 8.0 on")
        return triton_moe
    raise UnknownBackend(f"backend must be reference, cpu or triton, got {backend!r}")


def _suiting(device: torch.device, experts: Experts) -> str:
    if device.type != "cuda":
        return "cpu"
    try:
        _named("triton", device)
        check_fit(experts)
    except (UnknownBackend, UnfitWeights) as err:
        _say_once(f"experts on {device} run as single matrix products: {err}")
        return "cpu"
    return "triton"


@functools.cache
def _say_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)


def _check_fit(
    x_TD: Tensor,
    plan: Plan,
    topk_weights_TK: Tensor,
    experts: Experts,
    lora: LoRA | None,
    collector: Collector | None,
) -> None:
    if x_TD.ndim != 2 or x_TD.shape[1] != experts.gate_up.shape[2] or plan.num_experts != experts.num_experts:
        raise UnfitWeights(
            f"x {tuple(x_TD.shape)} routed to {plan.num_experts} experts, gate_up {tuple(experts.gate_up.shape)}"
        )
    if not len(x_TD) == len(plan.slot_TK) or topk_weights_TK.shape != plan.slot_TK.shape:
        raise TokensMiscounted(
            f"{len(x_TD)} tokens and weights {tuple(topk_weights_TK.shape)}, routed {tuple(plan.slot_TK.shape)}"
        )
    if lora is not None:
        lora.check_fit(experts)
        if (gates := lora.gates_TR) is not None:
            stacks = trained_stack(experts.gate_up), trained_stack(experts.down)
            inputs = x_TD, topk_weights_TK, *lora.factors, *stacks
            gates_by_token(gates, x_TD.shape[:1], gates.shape[1], collector, *inputs)
    if collector is not None and plan.runs is None:
        raise TokensMiscounted("with a collector, route must be told who owns each token")
    if collector is not None and any(trained_stack(w) is not None for w in (experts.gate_up, experts.down)):
        raise UnfitWeights("a collector takes gradients of the factors alone: the experts must be frozen")
