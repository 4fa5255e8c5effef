"""Statistics of routing: how evenly tokens spread over the routed experts of every layer.

Figures depend on what is fed in. From public text or synthetic records they are public; at a site they depend on its
records, no ledger charges them, and they are for that site's own eyes.

Legend: `R` rows, `L` length of a row, `T` tokens, `E` experts, `K` top-k.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import MetricUndefined
from .layer_routing import LayerRouting


def router_statistics(model: Any, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[LayerRouting, ...]:
    """Routing of all tokens of the batches, layer by layer; memory does not grow with their number.

    A token's affinities are its router scores divided by their sum: sigmoids with a balance bias beside them, as in
    DeepSeek-V3's balance loss (arXiv:2412.19437, eq. 19), or else a softmax. Experts are chosen, and their load
    counted, as the router does, with its balance bias or within the strongest groups.

    Args:
        model: a causal language model with routers, with or without adapters, its experts in any format; runs as it is.
        batches: token ids int64 [R, L], padded on the right, and bool [R, L], true where there is a token.

    Raises:
        MetricUndefined: the model has no routed experts; or there was no token.
    """
    routers = {i: router for i, layer in enumerate(model.model.layers) if (router := router_of(layer)) is not None}
    if not routers:
        raise MetricUndefined("the model has no routed experts, so there is no routing to measure")
    tallies = {layer: _Tally(by_sigmoid=scores_by_sigmoid(router)) for layer, router in routers.items()}
    hooks = [router.register_forward_hook(tallies[layer]) for layer, router in routers.items()]
    try:
        with torch.no_grad():
            for ids_RL, is_token_RL in batches:
                for tally in tallies.values():
                    tally.is_token_T = is_token_RL.flatten()
                model.model(input_ids=ids_RL, attention_mask=is_token_RL.long(), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(tally.total(layer) for layer, tally in tallies.items())


def unused_by_layer(layers: Iterable[LayerRouting]) -> dict[int, tuple[int, ...]]:
    """Lists the experts that no token was sent to, for every layer that has some."""
    return {layer.layer: layer.unused for layer in layers if layer.unused}


def describe_experts(by_layer: Mapping[int, Sequence[int]]) -> str:
    """Names experts in words, layer by layer.

    >>> describe_experts({1: (0, 3), 2: (5,)})
    'experts 0, 3 of layer 1 and expert 5 of layer 2'
    """
    return " and ".join(
        f"expert{'s' * (len(experts) > 1)} {', '.join(map(str, experts))} of layer {layer}"
        for layer, experts in by_layer.items()
    )


def router_of(layer: Any) -> Any | None:
    """Finds the router beside a layer's routed experts; None where there are none."""
    for part in layer.children():
        if hasattr(part, "experts"):
            return part.gate if hasattr(part, "gate") else part.router
    return None


def scores_by_sigmoid(router: Any) -> bool:
    """True if a router has a balance bias: its affinities are then sigmoids, else a softmax."""
    return hasattr(getattr(router, "base", router), "e_score_correction_bias")


class _Tally:
    """Counts of one router, taken from what it returns."""

    is_token_T: Tensor

    def __init__(self, *, by_sigmoid: bool) -> None:
        self._by_sigmoid = by_sigmoid
        self._tokens = 0
        self._entropy = 0.0
        self._choices_E = torch.zeros((), dtype=torch.int64)
        self._weights_E = torch.zeros((), dtype=torch.float64)

    def __call__(self, _router: Any, _inputs: Any, routed: tuple[Tensor, Tensor, Tensor]) -> None:
        logits_TE, weights_TK, ids_TK = (part[self.is_token_T].cpu() for part in routed)
        tokens, experts = logits_TE.shape
        self._tokens += tokens
        self._choices_E = self._choices_E + torch.bincount(ids_TK.flatten(), minlength=experts)
        weights = weights_TK.flatten().double()
        self._weights_E = self._weights_E + torch.bincount(ids_TK.flatten(), weights, minlength=experts)
        scores_TE = logits_TE.double().sigmoid() if self._by_sigmoid else logits_TE.double().softmax(-1)
        affinities_TE = scores_TE / scores_TE.sum(-1, keepdim=True)
        self._entropy += float(torch.special.entr(affinities_TE).sum()) / math.log(experts)

    def total(self, layer: int) -> LayerRouting:
        if not self._tokens:
            raise MetricUndefined("there was no token to route")
        weights = self._weights_E / self._weights_E.sum()
        choices = tuple(map(int, self._choices_E))
        return LayerRouting(layer, self._tokens, choices, tuple(map(float, weights)), self._entropy / self._tokens)
