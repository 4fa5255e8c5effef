"""Builds the rivals of routed experts on any device: bare matrix products, transformers' modules, PEFT's adapters.

`benchmarks/experts.py` and `benchmarks/gpu_experts.py` hand over one bank of experts: `gate_up` [E, 2H, D] and `down`
[E, D, H].
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Experts

from confide.kernels.experts import Factors
from confide.kernels.routing import Plan

Call = Callable[[], object]


def stock_experts(gate_up: Tensor, down: Tensor, implementation: str) -> nn.Module:
    """Transformers' module on the same weights."""
    experts, model, hidden = down.shape
    config = DeepseekV3Config(hidden_size=model, moe_intermediate_size=hidden, n_routed_experts=experts)
    config._experts_implementation = implementation
    with torch.device("meta"):
        module = DeepseekV3Experts(config)
    module.gate_up_proj = nn.Parameter(gate_up, requires_grad=False)
    module.down_proj = nn.Parameter(down, requires_grad=False)
    return module


def peft_experts(gate_up: Tensor, down: Tensor, rank: int, scaling: float) -> nn.Module:
    """The same under PEFT's LoRA on both projections, factors in the dtype of the experts."""
    import peft

    names = ["experts.gate_up_proj", "experts.down_proj"]
    config = peft.LoraConfig(r=rank, lora_alpha=scaling * rank, target_modules=[], target_parameters=names)
    model = nn.Module()
    model.experts = stock_experts(gate_up, down, "grouped_mm")
    model.forward = lambda *args: model.experts(*args)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's hints
        adapted = peft.get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter.data, std=0.02)
            parameter.data = parameter.data.to(gate_up)
    return adapted


def bare_products(plan: Plan, gate_up: Tensor, down: Tensor, factors: Factors) -> dict[str, Call]:
    """The products of a forward and of a backward pass, without and with LoRA, into buffers that are there."""
    hidden, model, rank = down.shape[2], down.shape[1], factors[0].shape[1]
    widths = model, 2 * hidden, hidden, model, hidden, model
    x, gu, h, y, dh, dx = (gate_up.new_empty(plan.num_pairs, width).normal_() for width in widths)
    z = gate_up.new_empty(plan.num_pairs, rank).normal_()
    A1, B1, A2, B2 = (factor.detach() for factor in factors)
    totals = [torch.empty_like(factor) for factor in (A1, B1.mT, A2, B2.mT)]

    def forward() -> None:
        for e, s in plan.slices:
            torch.mm(x[s], gate_up[e].T, out=gu[s])
            torch.mm(h[s], down[e].T, out=y[s])

    def backward() -> None:
        for e, s in plan.slices:
            torch.mm(y[s], down[e], out=dh[s])
            torch.mm(gu[s], gate_up[e], out=dx[s])

    def lora_forward() -> None:
        for e, s in plan.slices:
            torch.mm(x[s], A1[e].T, out=z[s])
            torch.mm(x[s], gate_up[e].T, out=gu[s]).addmm_(z[s], B1[e].T)
            torch.mm(h[s], A2[e].T, out=z[s])
            torch.mm(h[s], down[e].T, out=y[s]).addmm_(z[s], B2[e].T)

    def lora_backward() -> None:
        for e, s in plan.slices:
            torch.mm(y[s], B2[e], out=z[s])
            torch.mm(y[s], down[e], out=dh[s]).addmm_(z[s], A2[e])
            torch.mm(gu[s], B1[e], out=z[s])
            torch.mm(gu[s], gate_up[e], out=dx[s]).addmm_(z[s], A1[e])
            for total, right in zip(totals, (x, gu, h, y), strict=True):
                torch.mm(z[s].T, right[s], out=total[e])

    return {
        "forward": no_grad(forward),
        "forward + backward": no_grad(lambda: (forward(), backward())),
        "LoRA forward": no_grad(lora_forward),
        "LoRA forward + backward": no_grad(lambda: (lora_forward(), lora_backward())),
    }


def no_grad(call: Call) -> Call:
    def run() -> None:
        with torch.no_grad():
            call()

    return run
