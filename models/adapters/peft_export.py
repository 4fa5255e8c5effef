"""A trained adapter as a PEFT checkpoint with a model card, for everybody who uses plain transformers and peft."""

from pathlib import Path

from ..backbones.families import family_in
from ..directories import new_directory
from ..structure.inputs import is_joined
from ..structure.sense import sense_of
from .card import CARD, HEAD_ALONE, ModelCard, attention_text, head_text
from .lora import AdaptedModel, LoRAEmbedding
from .peft_import import exported_head, released, save
from .prototype import Prototype
from .provenance import Provenance

_PLAIN = """```python
from peft import PeftModel
from transformers import {kind}

model = PeftModel.from_pretrained({kind}.from_pretrained(backbone_directory), adapter_directory)
```
"""
JOINED = """Transformers and PEFT by themselves miss what lies beside the backbone's weights, structure tables
(`structure.safetensors`), an eye (`eye.safetensors`) or an ear (`ear.safetensors`), and compute something else without
a word. Let confide load the backbone:
```python
from pathlib import Path

from confide.models.backbones.loading import load_text
from peft import PeftModel

model = PeftModel.from_pretrained(load_text(Path(backbone_directory)).model, adapter_directory)
```
"""


def export(
    adapted: AdaptedModel, backbone: Path, directory: Path, card: ModelCard, prototype: Prototype | None = None
) -> None:
    """Writes the adapter as it stands now; `directory` appears in one rename.

    Files: `adapter_config.json`, `adapter_model.safetensors` (`released` tells their format), `README.md` (the card),
    `confide.json` (its facts for programs); if there is a head, `head.safetensors` with its weight and public moments;
    if there is a prototype, `prototype.safetensors`.

    Args:
        backbone: the directory that the model was loaded from; what earlier studies it holds is told with the adapter.

    Raises:
        InvalidRelease: the backbone's own `confide.json` cannot be read.
        FileExistsError: `directory` exists already.
    """
    provenance = Provenance.of(card, backbone)
    with new_directory(directory) as partial:
        save(released(adapted, provenance, prototype), partial)
        (partial / CARD).write_text(_card_text(adapted, card, provenance, prototype), encoding="utf-8")


def _card_text(adapted: AdaptedModel, card: ModelCard, provenance: Provenance, prototype: Prototype | None) -> str:
    family = family_in(adapted.model)
    kind = family.model_class().__name__
    head = head_text(*exported_head(adapted)) + _prototype_text(prototype)
    attention = attention_text(card.segments, "model.get_base_model()" if adapted.adapters else "model")
    return f"""---
library_name: peft
tags: [lora, federated-learning, differential-privacy]
---
# {card.study}

{_kind_text(adapted)} for a {family.title}
backbone: {adapted.layout.dim:,} numbers trained by {len(card.sites)} sites together without sharing records.

{card.table()}
{_loading(adapted, kind) if adapted.adapters else HEAD_ALONE}{attention}{_merging(adapted)}{head}
{provenance.earlier_studies()}{card.limits()}"""


def _prototype_text(prototype: Prototype | None) -> str:
    if prototype is None:
        return ""
    if prototype.direction is None:
        found = "It is lost in its noise, so nothing can be told from it."
    else:
        found = "`coordinator adapter ask` chooses this adapter by it for requests that the backbone reads alike."
    return f"""
## Prototype
`prototype.safetensors` says how the backbone reads the sites' records: the sum of a vector of length 1 for each unit,
with noise of standard deviation {prototype.noise_std:.4g} in each of its {prototype.length} numbers. That release is in
the epsilon above. {found}
"""


def _kind_text(adapted: AdaptedModel) -> str:
    if not adapted.adapters:
        return "A head"
    return f"A LoRA adapter (rank {adapted.config.rank}, alpha {adapted.config.alpha:g})"


def _loading(adapted: AdaptedModel, kind: str) -> str:
    is_more = is_joined(adapted.model) or sense_of(adapted.model) is not None
    code = JOINED if is_more else _PLAIN.format(kind=kind)
    return f"""
## Load
{code}Use the backbone with the hash above and no other: the adapter is meaningless on different weights.
"""


def _merging(adapted: AdaptedModel) -> str:
    is_shared = adapted.model.config.tie_word_embeddings and any(
        isinstance(module, LoRAEmbedding) or name == "lm_head" for name, module in adapted.adapters.items()
    )
    if not is_shared:
        return ""
    return (
        "Do not let PEFT merge it: the backbone uses one matrix as embedding and as output matrix, and what belongs to "
        "one use would change the other. `coordinator adapter merge` parts the two.\n"
    )
