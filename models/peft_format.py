"""A trained adapter as a PEFT checkpoint with a model card, for everybody who uses plain transformers and peft.

Routed experts and the router are stored by PEFT's `target_parameters` (peft >= 0.17). A bank's A is expert-major
[experts * rank, in], its B rank-major [out, rank * experts]; one wrapper a parameter is nested in the order of the
bank's parameters, so that gate_up_proj lies inside, under `base_layer`, and down_proj outside.

Dense and shared projections go by `target_parameters` as well: PEFT takes the module names gate_proj, up_proj and
down_proj of this architecture for those of routed experts before transformers 5 fused them, and would move the
adapters there.

An embedding is stored as `lora_embedding_A` [rank, words] and `lora_embedding_B` [out, rank]. Where the output matrix
is tied to it, each use keeps its own adapter as long as nobody merges them into the shared matrix; the card says so.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..kernels.experts import peft_factors
from .adapters import AdaptedModel, LoRAEmbedding, LoRAExperts, LoRARouter
from .checkpoints import ExpertFormat
from .directories import new_directory
from .errors import ExportRefused
from .evaluation import Estimate

_TAKEN_FOR_EXPERTS = {"gate_proj", "up_proj", "down_proj"}  # see the module docstring


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCard:
    """What a stranger must know of how the adapter was made."""

    study: str
    study_hash: str  # hex SHA-256 of the approved study
    backbone_hash: str
    sites: tuple[str, ...]
    rounds: int  # that entered the adapter
    unit: str  # what privacy protects, e.g. "patient"
    mode: str  # distributed, local or none
    epsilon: float | None  # spent on any one unit; None for mode "none"
    delta: float | None
    collusion: int  # colluding sites that epsilon allows for
    audit: str  # in words: what an empirical audit of the training step found, or why there is none
    experts: ExpertFormat = "float32"  # how routed experts were held while it was trained
    auc: Estimate | None = None  # measured by the sites on records that they held out


def export(adapted: AdaptedModel, directory: Path, card: ModelCard) -> None:
    """Writes the adapter as it stands now; `directory` appears in one rename.

    Files: `adapter_config.json`, `adapter_model.safetensors`, `README.md` (the card) and, if there is a head,
    `head.safetensors` with its weight and public moments.

    Raises:
        ExportRefused: the card's mode and its epsilon contradict each other.
        FileExistsError: `directory` exists already.
    """
    if (card.epsilon is None or card.delta is None) != (card.mode == "none"):
        raise ExportRefused(f"mode {card.mode} and epsilon {card.epsilon}, delta {card.delta} contradict each other")
    tensors = _peft_tensors(adapted)
    with new_directory(directory) as partial:
        save_file(tensors, partial / "adapter_model.safetensors", metadata={"format": "pt"})
        config = json.dumps(_peft_config(adapted), indent=2) + "\n"
        (partial / "adapter_config.json").write_text(config, encoding="utf-8")
        if adapted.head is not None:
            head = {name: tensor.detach().cpu().contiguous() for name, tensor in adapted.head.state_dict().items()}
            save_file(head, partial / "head.safetensors", metadata={"format": "pt"})
        (partial / "README.md").write_text(_card_text(adapted, card), encoding="utf-8")


def _peft_config(adapted: AdaptedModel) -> dict[str, object]:
    """The fields that PEFT cannot do without or whose defaults would change the result."""
    modules: set[str] = set()
    parameters: set[str] = set()
    for name, module in adapted.adapters.items():
        leaf = name.rpartition(".")[2]
        # Where every module of a name is adapted, its last parts say it all.
        places = name.split(".") if adapted.config.layers is not None else name.split(".")[-2:]
        if isinstance(module, LoRAExperts):
            parameters |= {".".join((*places, part)) for part in ("gate_up_proj", "down_proj")}
        elif isinstance(module, LoRARouter) or leaf in _TAKEN_FOR_EXPERTS:
            parameters.add(".".join((*places, "weight")))
        else:
            modules.add(leaf if adapted.config.layers is None else name)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": adapted.config.rank,
        "lora_alpha": adapted.config.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted(modules),
        "target_parameters": sorted(parameters) or None,
    }


def _peft_tensors(adapted: AdaptedModel) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, module in adapted.adapters.items():
        prefix = f"base_model.model.{name}"
        if isinstance(module, LoRAExperts):
            pairs = [(f"{prefix}.base_layer", module.gate_up_proj), (prefix, module.down_proj)]
            for place, factors in pairs:
                weight_A, weight_B = peft_factors(factors.lora_A, factors.lora_B)
                tensors[f"{place}.lora_A.weight"], tensors[f"{place}.lora_B.weight"] = weight_A, weight_B
        elif isinstance(module, LoRAEmbedding):
            tensors[f"{prefix}.lora_embedding_A"] = module.lora_A
            tensors[f"{prefix}.lora_embedding_B"] = module.lora_B
        else:
            tensors[f"{prefix}.lora_A.weight"] = module.lora_A
            tensors[f"{prefix}.lora_B.weight"] = module.lora_B
    return {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in tensors.items()}


def _card_text(adapted: AdaptedModel, card: ModelCard) -> str:
    head = "" if adapted.head is None else _HEAD_TEXT
    return f"""---
library_name: peft
tags: [lora, mixture-of-experts, federated-learning, differential-privacy]
---
# {card.study}

A LoRA adapter (rank {adapted.config.rank}, alpha {adapted.config.alpha:g}) for a DeepSeek-V3 Mixture-of-Experts
backbone: {adapted.layout.dim:,} numbers trained by {len(card.sites)} sites together without sharing records.

| | |
|---|---|
| study | `{card.study_hash}` |
| backbone | `{card.backbone_hash}` |
| sites | {", ".join(card.sites)} |
| rounds | {card.rounds} |
| privacy | {_privacy_text(card)} |
| quality | {_quality_text(card)} |
| audit | {_one_line(card.audit)} |

## Load
```python
from peft import PeftModel
from transformers import DeepseekV3ForCausalLM

model = PeftModel.from_pretrained(DeepseekV3ForCausalLM.from_pretrained(backbone_directory), adapter_directory)
```
Use the backbone with the hash above and no other: the adapter is meaningless on different weights.
{_quantised(card)}{_merging(adapted)}{head}
## Limits
{_limits(card)}Nothing here says how fair the adapter is, or how it does on other records than the sites'.
"""


_HEAD_TEXT = """
`head.safetensors` holds a linear classifier on pooled states: the mean over a record's own tokens of embedding / 0.05
and last state side by side, minus `center`, times `whiten`, a constant sqrt(length)/2 appended, cut to unit length,
times `weight`.
"""


def _quantised(card: ModelCard) -> str:
    if card.experts == "float32":
        return ""
    return (
        f"It was trained, and measured, with the backbone's routed experts in {card.experts}; in float32 they compute "
        "nearly the same.\n"
    )


def _merging(adapted: AdaptedModel) -> str:
    is_shared = adapted.model.config.tie_word_embeddings and any(
        isinstance(module, LoRAEmbedding) or name == "lm_head" for name, module in adapted.adapters.items()
    )
    if not is_shared:
        return ""
    return (
        "Do not merge it: the backbone uses one matrix as embedding and as output matrix, and what belongs to one use "
        "would change the other.\n"
    )


def _one_line(text: str) -> str:
    """Text of a person inside a table's cell."""
    return " ".join(text.split()).replace("|", "\\|")


def _limits(card: ModelCard) -> str:
    if card.mode == "none":
        return "Nothing bounds what this adapter tells about the records it was trained on. "
    return (
        f"Epsilon bounds what this adapter, and every round's sum behind it, tells about any single {card.unit} of one "
        "site; a person known to several sites is protected at each of them separately. "
    )


def _quality_text(card: ModelCard) -> str:
    if card.auc is None:
        return "not measured"
    auc, noise = card.auc, "" if card.mode == "none" else "; noise is counted, and the release is in the epsilon above"
    interval = f"{100 * auc.confidence:g} % interval {auc.low:.3f} to {auc.high:.3f}"
    return f"AUC {auc.value:.3f} ({interval}) on records that the sites held out{noise}"


def _privacy_text(card: ModelCard) -> str:
    if card.epsilon is None or card.delta is None:
        return "**none: trained without noise, not for private records**"
    return (
        f"epsilon {card.epsilon:.3f} at delta {card.delta:g} for one {card.unit} (added or removed with all records), "
        f"noise {card.mode}, even if {card.collusion} of the sites collude"
    )
