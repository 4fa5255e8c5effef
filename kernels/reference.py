"""Routed experts with LoRA in plain torch: the definition that every backend is held to.

Autograd does the backward pass. The stack is widened whole and every product is written out, so this is for judging,
not for use.

Legend: `T` tokens, `D` model, `F` expert hidden, `G` = 2F, `E` experts, `K` top-k, `S` routed pairs, `U` units.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .collect import Collector
from .experts import Experts, LoRA
from .routing import Plan


def reference_moe(
    x_TD: Tensor,
    plan: Plan,
    topk_weights_TK: Tensor,
    experts: Experts,
    lora: LoRA | None,
    collector: Collector | None,
) -> Tensor:
    """[T, D]; with a collector, every unit gets factors of its own, whose gradients are handed over."""
    factors = None if lora is None else [_per_unit(factor, collector, x_TD.dtype) for factor in lora.factors]
    scaling = 0.0 if lora is None else lora.scaling
    weights_S = topk_weights_TK.flatten().to(x_TD.dtype)[plan.pair_S]
    gate_up_EGD, down_EDF = experts.gate_up.dense(), experts.down.dense()
    out_TD = torch.zeros_like(x_TD)
    for expert, unit, pairs in _groups(plan, collector):
        token = plan.token_S[pairs]
        gates = None if lora is None or lora.gates_TR is None else lora.gates_TR[token]

        def project(
            x: Tensor, stack: Tensor, first: int, *, e: int = expert, u: int = unit, gates: Tensor | None = gates
        ) -> Tensor:
            y = x @ stack[e].T
            if factors is not None:
                A, B = factors[first][u][e], factors[first + 1][u][e]
                z = x @ A.T
                if gates is not None:
                    z = torch.where(gates == 0, 0, z * gates).to(z.dtype)
                y = y + scaling * z @ B.T
            return y

        gate, up = project(x_TD[token], gate_up_EGD, 0).chunk(2, dim=1)
        y = project(F.silu(gate) * up, down_EDF, 2)
        out_TD = out_TD.index_add(0, token, weights_S[pairs, None] * y)
    return out_TD


def _groups(plan: Plan, collector: Collector | None) -> Iterator[tuple[int, int, slice]]:
    """(expert, unit, its pairs); without a collector all units are one."""
    if collector is None:
        yield from ((expert, 0, pairs) for expert, pairs in plan.slices)
        return
    assert plan.runs is not None
    start = 0
    runs = (t.tolist() for t in (plan.runs.length_N, plan.runs.expert_N, plan.runs.unit_N))
    for length, expert, unit in zip(*runs, strict=True):
        yield expert, unit, slice(start, start + length)
        start += length


def _per_unit(factor: Tensor, collector: Collector | None, dtype: torch.dtype) -> Tensor:
    """[U, ...]: one factor for each unit, all equal."""
    if collector is None or not factor.requires_grad:
        units = 1 if collector is None else collector.num_units
        return factor.to(dtype).expand(units, *factor.shape)
    assert isinstance(factor, nn.Parameter)
    own = factor.detach().expand(collector.num_units, *factor.shape).clone().requires_grad_()
    own.register_hook(_hand_over(collector, factor))  # type: ignore[no-untyped-call]
    return own.to(dtype)


def _hand_over(collector: Collector, parameter: nn.Parameter) -> Callable[[Tensor], None]:
    def hook(grad: Tensor) -> None:
        collector.capture_units(parameter, grad)

    return hook
