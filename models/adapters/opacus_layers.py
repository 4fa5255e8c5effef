"""Grad samplers of our layers for Opacus: with this module imported, `PrivacyEngine.make_private` takes our models.

Opacus attributes a gradient to the rows of a batch by what went into a layer and what came back to its output, which it
keeps with hooks. Each sampler below is the derivative of one layer by its trained factors, a row at a time. A row is
what Opacus protects; a site's own training protects units of several rows, and needs none of this.

The hooks see a layer's positional tensors, in training mode only. Quantised experts, embeddings and heads are covered;
`grad_sample_mode="ghost"` is not.
"""

import torch
from opacus.grad_sample import register_grad_sampler
from torch import Tensor, nn

from ...kernels.collect import Collector
from ...kernels.moe import moe
from ...kernels.routing import route
from ..errors import RowsUnknown
from ..heads import PooledHead
from .lora import BankFactors, LoRAEmbedding, LoRALinear
from .routers import RouterFactors

GradSamples = dict[nn.Parameter, Tensor]  # [rows, *shape of the parameter]


@register_grad_sampler(LoRALinear)  # type: ignore[untyped-decorator]
def linear_grad_samples(layer: LoRALinear, activations: list[Tensor], backprops: Tensor) -> GradSamples:
    """Computes the gradients of A and B of an adapted linear layer for every row."""
    return _low_rank(layer.lora_A, layer.lora_B, layer.lora_scaling, activations[0], backprops)


@register_grad_sampler(RouterFactors)  # type: ignore[untyped-decorator]
def router_grad_samples(layer: RouterFactors, activations: list[Tensor], backprops: Tensor) -> GradSamples:
    """Computes the gradients of A and B of an adapted router's logits for every row."""
    return _low_rank(layer.lora_A, layer.lora_B, layer.lora_scaling, activations[0], backprops)


@register_grad_sampler(LoRAEmbedding)  # type: ignore[untyped-decorator]
def embedding_grad_samples(layer: LoRAEmbedding, activations: list[Tensor], backprops: Tensor) -> GradSamples:
    """Computes the gradients of A [R, words] and B [D, R] of an adapted embedding for every row."""
    ids, scaled = activations[0], layer.lora_scaling * backprops.to(layer.lora_B.dtype)
    samples: GradSamples = {}
    if layer.lora_B.requires_grad:
        looked_up = layer.lora_A.detach().T[ids]  # [rows, T, R]
        samples[layer.lora_B] = scaled.mT @ looked_up
    if layer.lora_A.requires_grad:
        by_token = scaled @ layer.lora_B.detach()
        grads = by_token.new_zeros(len(ids), layer.lora_A.shape[1], layer.lora_A.shape[0])
        samples[layer.lora_A] = grads.scatter_add_(1, ids[..., None].expand_as(by_token), by_token).mT
    return samples


@register_grad_sampler(BankFactors)  # type: ignore[untyped-decorator]
def bank_grad_samples(layer: BankFactors, activations: list[Tensor], backprops: Tensor) -> GradSamples:
    """Computes the gradients of all four factors of an adapted bank of experts for every row.

    The bank is run once more, with a collector that keeps rows apart: nothing else knows which tokens an expert had.

    Raises:
        RowsUnknown: the layer was not told how many rows a batch has; call the `AdaptedModel` itself.
    """
    if activations[0].ndim != 3:
        raise RowsUnknown("the experts saw tokens without rows: train by calling the AdaptedModel, not its backbone")
    if layer.last_experts is None:
        raise RowsUnknown("the experts' forward pass did not run in training mode")
    (hidden, ids, weights), (experts, lora) = activations, layer.last_experts
    rows, tokens, _ = hidden.shape
    collector = Collector(torch.arange(rows, device=hidden.device), rows, tokens)
    plan = route(ids.flatten(0, 1), experts.num_experts, collector.unit_of_token, rows)
    with torch.enable_grad():
        out = moe(hidden.flatten(0, 1), plan, weights.flatten(0, 1), experts, lora, collector=collector)
        out.backward(backprops.flatten(0, 1))  # type: ignore[no-untyped-call]
    of_rows = collector.weighted_sums(torch.ones(rows, device=hidden.device), collector.unit_of_row, rows)
    return {parameter: samples.to(parameter.dtype) for parameter, samples in of_rows.items()}


@register_grad_sampler(PooledHead)  # type: ignore[untyped-decorator]
def head_grad_samples(layer: PooledHead, activations: list[Tensor], backprops: Tensor) -> GradSamples:
    """Computes the gradient of a head's weight for every row."""
    inputs = layer.inputs(activations[0].to(layer.weight.dtype))
    if backprops.ndim == 2:  # several outputs
        inputs = inputs[:, None]
    return {layer.weight: backprops[..., None].to(inputs.dtype) * inputs}


def _low_rank(
    lora_A: nn.Parameter, lora_B: nn.Parameter, lora_scaling: float, inputs: Tensor, backprops: Tensor
) -> GradSamples:
    """Differentiates scaling (x A^T) B^T by A [R, I] and B [O, R], row by row of x [rows, .., I]."""
    x, scaled = (part.flatten(1, -2).to(lora_B.dtype) for part in (inputs, lora_scaling * backprops))
    samples: GradSamples = {}
    if lora_B.requires_grad:
        samples[lora_B] = scaled.mT @ (x @ lora_A.detach().T)
    if lora_A.requires_grad:
        samples[lora_A] = (scaled @ lora_B.detach()).mT @ x
    return samples
