"""Mixtral (arXiv:2401.04088): Llama's attention; in every layer routed experts, chosen by softmax, and no other MLP."""

import re
from typing import Any

from .family import Backbone, BackboneConfig, ExpertNames, common_settings
from .llama import ATTENTION


class Mixtral(Backbone):
    """The family of `model_type` mixtral, in transformers' `MixtralForCausalLM`."""

    model_type = "mixtral"
    name = "Mixtral"
    title = "Mixtral Mixture-of-Experts"
    published = "Mixtral-8x7B, Mixtral-8x22B"
    architecture = "MixtralForCausalLM"
    targets = ("embed_tokens", *ATTENTION, "experts", "gate")
    experts = ExpertNames(
        weight=re.compile(r"\.block_sparse_moe\.experts\."),
        bank=(".mlp.experts", ".block_sparse_moe.experts"),
        gate_up=("{expert}.w1.weight", "{expert}.w3.weight"),
        down="{expert}.w2.weight",
        count=("num_local_experts",),
        top_k=("num_experts_per_tok",),
    )
    router = "gate"

    def settings(self, config: BackboneConfig) -> dict[str, Any]:
        """Returns the settings of layers of routed experts, each a quarter as wide as a dense MLP."""
        return common_settings(config) | {
            "intermediate_size": config.hidden // 2,
            "num_local_experts": config.experts,
            "num_experts_per_tok": config.top_k,
        }
