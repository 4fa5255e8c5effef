"""Puts an exported adapter on a model, module by module, as `peft_import` has read it."""

import re
from collections.abc import Sequence
from typing import Any

import torch

from ..errors import CombinationRefused
from ..heads import PooledHead
from ..structure.places import sense_in
from .factors import AdapterConfig, Pair, layer_of, target_of
from .lora import AdaptedModel, Adapter, LoRAExperts, attach
from .peft_import import Released

_NAME = re.compile(r"base_model\.model\.(.+?)(\.base_layer)?\.lora_(embedding_)?\{\}(\.weight)?")


def places(whole: Released) -> dict[str, list[str]]:
    """Names of the pairs by the full name of the module that they adapt; of a bank gate_up_proj's first."""
    found: dict[str, list[str]] = {}
    for key in sorted(whole.pairs, key=lambda key: ".base_layer." not in key):
        match = _NAME.fullmatch(key)
        if match is None:
            raise CombinationRefused(f"{key.format('*')} is no name that an adapted module has")
        found.setdefault(match[1], []).append(key)
    return found


def attached(model: Any, whole: Released, head: PooledHead | None) -> AdaptedModel:
    """Puts the factors of an exported adapter into a model, frozen, and adapters nowhere else.

    Raises:
        CombinationRefused: the model has no such modules, or they are of other shapes.
    """
    by_module = places(whole)
    layers = [layer_of(name) for name in by_module if sense_in(name) is None]
    within = tuple(sorted({layer for layer in layers if layer is not None})) if layers and None not in layers else None
    config = AdapterConfig(
        rank=whole.rank,
        alpha=whole.alpha,
        targets=tuple(sorted({target_of(name) for name in by_module})),
        seed="composed",
        layers=within,
    )
    adapted = attach(model, config, head=head)  # heads alone adapt nothing
    if missing := sorted(by_module.keys() - adapted.adapters.keys()):
        raise CombinationRefused(f"the backbone has no {missing[0]} that could take an adapter")
    for name, adapter in list(adapted.adapters.items()):
        if name in by_module:
            _fill(adapter, name, [whole.pairs[key] for key in by_module[name]])
        else:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, adapter.base)
            del adapted.adapters[name]
    return adapted


@torch.no_grad()
def _fill(adapter: Adapter, name: str, pairs: Sequence[Pair]) -> None:
    factors = list(adapter.named_factors().values())
    given = [tensor for pair in pairs for tensor in pair]
    is_bank = isinstance(adapter, LoRAExperts)
    if len(pairs) != 1 + is_bank or any(a.shape != b.shape for a, b in zip(factors, given, strict=True)):
        raise CombinationRefused(f"{name} of the backbone has another shape than the adapters are for")
    for factor, tensor in zip(factors, given, strict=True):
        factor.copy_(tensor)
        factor.requires_grad_(False)
