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
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..kernels.experts import peft_factors
from .adapters import AdaptedModel, LoRAEmbedding, LoRAExperts, LoRARouter
from .card import HEAD_TEXT, ModelCard
from .directories import new_directory

_TAKEN_FOR_EXPERTS = {"gate_proj", "up_proj", "down_proj"}  # see the module docstring


def export(adapted: AdaptedModel, directory: Path, card: ModelCard) -> None:
    """Writes the adapter as it stands now; `directory` appears in one rename.

    Files: `adapter_config.json`, `adapter_model.safetensors`, `README.md` (the card) and, if there is a head,
    `head.safetensors` with its weight and public moments.

    Raises:
        FileExistsError: `directory` exists already.
    """
    tensors = _peft_tensors(adapted)
    with new_directory(directory) as partial:
        save_file(tensors, partial / "adapter_model.safetensors", metadata={"format": "pt"})
        config = json.dumps(_peft_config(adapted), indent=2) + "\n"
        (partial / "adapter_config.json").write_text(config, encoding="utf-8")
        save_head(adapted, partial)
        (partial / "README.md").write_text(_card_text(adapted, card), encoding="utf-8")


def _peft_config(adapted: AdaptedModel) -> dict[str, object]:
    """The fields that PEFT cannot do without or whose defaults would change the result."""
    modules: set[str] = set()
    parameters: set[str] = set()
    for name, module in adapted.adapters.items():
        path, _, leaf = name.rpartition(".")
        parent = path.rpartition(".")[2]
        if isinstance(module, LoRAExperts):
            parameters |= {f"{leaf}.gate_up_proj", f"{leaf}.down_proj"}
        elif isinstance(module, LoRARouter) or leaf in _TAKEN_FOR_EXPERTS:
            parameters.add(f"{parent}.{leaf}.weight")
        else:
            modules.add(leaf)  # `attach` adapts every module of a name, so the last part says it all
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


def save_head(adapted: AdaptedModel, directory: Path) -> None:
    """Writes `head.safetensors`, the head with its public moments, if the model has one."""
    if adapted.head is not None:
        head = {name: tensor.detach().cpu().contiguous() for name, tensor in adapted.head.state_dict().items()}
        save_file(head, directory / "head.safetensors", metadata={"format": "pt"})


def _card_text(adapted: AdaptedModel, card: ModelCard) -> str:
    return f"""---
library_name: peft
tags: [lora, mixture-of-experts, federated-learning, differential-privacy]
---
# {card.study}

A LoRA adapter (rank {adapted.config.rank}, alpha {adapted.config.alpha:g}) for a DeepSeek-V3 Mixture-of-Experts
backbone: {adapted.layout.dim:,} numbers trained by {len(card.sites)} sites together without sharing records.

{card.table()}

## Load
```python
from peft import PeftModel
from transformers import DeepseekV3ForCausalLM

model = PeftModel.from_pretrained(DeepseekV3ForCausalLM.from_pretrained(backbone_directory), adapter_directory)
```
Use the backbone with the hash above and no other: the adapter is meaningless on different weights.
{_merging(adapted)}{"" if adapted.head is None else HEAD_TEXT}
{card.limits()}"""


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
