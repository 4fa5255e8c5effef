"""Adapters added into the weights: a plain model, and a whole checkpoint for whoever loads no adapters.

Embedding and output matrix come out as two, as in DeepSeek's own checkpoints, also where the backbone ties them: each
of the two uses may have an adapter of its own.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.formats import Dense
from ...kernels.install import experts_of
from ...kernels.linear import QuantisedLinear
from ..backbones import checkpoints
from ..backbones.families import family_in
from ..compression.compressing import KEPT
from ..directories import new_directory
from ..errors import UnsupportedModule
from ..structure.inputs import is_joined
from ..structure.inputs import save as save_tables
from ..structure.sense import sense_of
from .card import CARD, ModelCard, attention_text, head_text
from .factors import Pair
from .lora import AdaptedModel, Adapter, LoRAEmbedding, LoRAExperts
from .peft_import import HEAD, exported_head, save_head
from .provenance import FILE, Provenance, write_provenance


@contextmanager
def merged(adapted: AdaptedModel) -> Iterator[Any]:
    """The backbone's own architecture with W + lora_scaling * B A for every adapted W; for as long as the block runs.

    Each merged weight is computed in float64 and rounded once to the type it is stored in. Frozen weights are never
    written to: merged ones are copies, so that afterwards the adapters stand again over the same bits as before.

    Raises:
        UnsupportedModule: an adapted weight is quantised, and its sum with an adapter has no such format.
    """
    model = adapted.model
    plain = {name: _merged_module(adapter, name) for name, adapter in adapted.adapters.items()}
    if model.config.tie_word_embeddings and "lm_head" not in plain:
        plain["lm_head"] = copy.deepcopy(model.lm_head)
    replaced = {name: model.get_submodule(name) for name in plain}
    was_tied, tied_keys = model.config.tie_word_embeddings, model.all_tied_weights_keys
    try:
        _put(model, plain)
        model.config.tie_word_embeddings, model.all_tied_weights_keys = False, {}
        yield model
    finally:
        _put(model, replaced)
        model.config.tie_word_embeddings, model.all_tied_weights_keys = was_tied, tied_keys


def save_merged(adapted: AdaptedModel, backbone: Path, directory: Path, card: ModelCard) -> None:
    """Writes the merged model as a checkpoint under its family's published names; `directory` appears in one rename.

    Files: what transformers writes; the head, if there is one, the card and its facts, as `peft_export.export` has
    them; what else lies in the backbone's directory beside its weights; `origin.json`, if there is one, with the change
    added.

    Args:
        backbone: the directory that the model was loaded from.

    Raises:
        UnsupportedModule: as `merged`; or the backbone has tables of structure, an eye or an ear, which would be lost.
        InvalidRelease: the backbone's own `confide.json` cannot be read.
        FileExistsError: `directory` exists already.
    """
    if is_joined(adapted.model) or sense_of(adapted.model) is not None:
        raise UnsupportedModule(
            "the backbone has structure tables, an eye or an ear, which whoever loads a merged checkpoint would miss; "
            "export the adapter instead: coordinator adapter export"
        )
    with merged(adapted) as model, new_directory(directory) as partial:
        save_parts(adapted, model, partial, beside=partial)
        for path in checkpoints.beside_weights(backbone):
            # Of an earlier study, if one was merged before; and of weights that these are no longer.
            if path.name not in (HEAD, FILE, CARD, KEPT):
                (partial / path.name).write_bytes(path.read_bytes())
        provenance = save_facts(card, backbone, partial)
        (partial / CARD).write_text(_card_text(adapted, card, provenance), encoding="utf-8")


def save_parts(adapted: AdaptedModel, model: Any, directory: Path, *, beside: Path) -> None:
    """Writes what a merged model is made of: a checkpoint, and beside it tables of structure and the head, if any.

    Args:
        model: that `merged` gave.
        directory: of the checkpoint.
    """
    checkpoints.save_model(model, directory)
    if is_joined(model):
        save_tables(model, beside)
    save_head(*exported_head(adapted), beside)


def save_facts(card: ModelCard, backbone: Path, directory: Path) -> Provenance:
    """Writes where a merged model comes from: `confide.json`, and `origin.json` of the backbone with the change."""
    provenance, origin = Provenance.of(card, backbone), checkpoints.load_origin(backbone)
    if origin is not None:
        changes = f"{origin.changes}; adapters of study {card.study} ({card.study_hash}) added into the weights"
        checkpoints.write_json(directory / checkpoints.ORIGIN, replace(origin, changes=changes).to_dict())
    write_provenance(provenance, directory)
    return provenance


def _put(model: nn.Module, modules: dict[str, nn.Module]) -> None:
    for name, module in modules.items():
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, module)


@torch.no_grad()
def _merged_module(adapter: Adapter, name: str) -> nn.Module:
    if isinstance(adapter.base, QuantisedLinear):
        raise UnsupportedModule(f"{name} is quantised, and a merged weight has no such codes; load it in full")
    plain: Any = copy.deepcopy(adapter.base)
    if isinstance(adapter, LoRAExperts):
        experts = experts_of(plain)
        if not (isinstance(experts.gate_up, Dense) and isinstance(experts.down, Dense)):
            raise UnsupportedModule(f"{name} is quantised, and a merged expert has no such codes; load it in full")
        for weight, factors in ((plain.gate_up_proj, adapter.gate_up_proj), (plain.down_proj, adapter.down_proj)):
            for expert in range(len(weight)):  # one at a time: in float64 a bank would be twice as large again
                _add(weight[expert], _product(factors, adapter.lora_scaling, expert))
    else:
        product = _product(Pair(adapter.lora_A, adapter.lora_B), adapter.lora_scaling)
        _add(plain.weight, product.T if isinstance(adapter, LoRAEmbedding) else product)
    return plain  # type: ignore[no-any-return]


def _product(factors: Pair, scaling: float, expert: int | None = None) -> Tensor:
    one = ... if expert is None else expert
    return scaling * (factors.lora_B[one].double() @ factors.lora_A[one].double())


def _add(weight: Tensor, product: Tensor) -> None:
    weight.copy_(weight.double() + product)


def _card_text(adapted: AdaptedModel, card: ModelCard, provenance: Provenance) -> str:
    family = family_in(adapted.model)
    kind = family.model_class().__name__
    return f"""---
library_name: transformers
tags: [federated-learning, differential-privacy]
---
# {card.study}

A {family.title} with a LoRA adapter (rank {adapted.config.rank}, alpha {adapted.config.alpha:g}) added
into its weights: {adapted.layout.dim:,} numbers trained by {len(card.sites)} sites together without sharing records.

{card.table()}

## Load
```python
from transformers import {kind}

model = {kind}.from_pretrained(directory)
```
Names and shapes are those under which transformers writes a {family.name}. It is a whole model: no adapter and no
backbone is needed, and what bounds the adapter bounds what was added here.
{attention_text(card.segments, "model")}{head_text(*exported_head(adapted))}
{provenance.earlier_studies()}{card.limits()}"""
