"""Qwen3-MoE (arXiv:2505.09388): Qwen3's attention; routed experts, none shared, chosen by softmax."""

import re
from typing import Any

from .family import BackboneConfig, ExpertNames
from .llama import ATTENTION, MLP
from .qwen3 import Qwen3


class Qwen3Moe(Qwen3):
    """The family of `model_type` qwen3_moe, in transformers' `Qwen3MoeForCausalLM`."""

    model_type = "qwen3_moe"
    name = "Qwen3-MoE"
    title = "Qwen3 Mixture-of-Experts"
    published = "Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder"
    architecture = "Qwen3MoeForCausalLM"
    targets = ("embed_tokens", *ATTENTION, *MLP, "experts", "gate")
    mistaken = MLP
    experts = ExpertNames(
        weight=re.compile(r"\.mlp\.experts\."),
        count=("num_experts", "num_local_experts"),  # as published, and as transformers writes it since 5
        top_k=("num_experts_per_tok",),
    )
    router = "gate"

    def settings(self, config: BackboneConfig) -> dict[str, Any]:
        """Returns the settings of a dense layer, then layers of routed experts whose weights sum to one."""
        return super().settings(config) | {
            "moe_intermediate_size": config.hidden // 2,
            "num_experts": config.experts,
            "num_experts_per_tok": config.top_k,
            "norm_topk_prob": True,
            "mlp_only_layers": [0],
        }
