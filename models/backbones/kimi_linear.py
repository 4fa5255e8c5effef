"""Kimi Linear (arXiv:2510.26692): delta rule in most layers, latent attention in some, experts as in DeepSeek-V3."""

import re
from typing import Any

from .deepseek_v3 import ATTENTION, MLP, latent_attention
from .family import LM_HEAD, Backbone, BackboneConfig, ExpertNames

_DELTA = ("k_proj", "v_proj", "f_a_proj", "f_b_proj", "g_a_proj", "g_b_proj", "b_proj")


class KimiLinear(Backbone):
    """The family of `model_type` kimi_linear, in transformers' `KimiLinearForCausalLM`."""

    model_type = "kimi_linear"
    name = "Kimi Linear"
    title = "Kimi Linear hybrid of delta rule and latent attention"
    published = "Kimi-Linear-48B-A3B"
    architecture = "KimiLinearForCausalLM"
    targets = ("embed_tokens", *ATTENTION, *_DELTA, *MLP, "experts", "gate")
    frozen = LM_HEAD | {"conv1d": "no adapter fits the short convolution of a state-space layer"}
    experts = ExpertNames(
        weight=re.compile(r"\.block_sparse_moe\.experts\."),
        bank=(".mlp.experts", ".block_sparse_moe.experts"),
        gate_up=("{expert}.w1.weight", "{expert}.w3.weight"),
        down="{expert}.w2.weight",
        count=("num_experts",),
        top_k=("num_experts_per_token",),
    )
    router = "gate"
    buffers = re.compile(r"\.e_score_correction_bias$")

    def model_class(self) -> Any:
        """Returns transformers' class, whose delta rule goes by our chunks on processors from now on."""
        from .scans import scan_delta_rule_in_chunks

        scan_delta_rule_in_chunks()
        return super().model_class()

    def borders(self, config: Any) -> tuple[int, ...]:
        """Returns the blocks and the chunk of the delta rule."""
        from ...kernels.scans import BLOCK, CHUNK

        return (BLOCK, CHUNK)

    def settings(self, config: BackboneConfig) -> dict[str, Any]:
        """Returns the settings of layers of the delta rule, with latent attention in every fourth and in the last."""
        kinds = ["linear_attention"] * config.layers
        kinds[3::4] = ["full_attention"] * len(kinds[3::4])
        kinds[-1] = "full_attention"
        return latent_attention(config) | {
            "moe_intermediate_size": config.hidden // 2,
            "num_shared_experts": 1,
            "num_experts": config.experts,
            "num_experts_per_token": config.top_k,
            "routed_scaling_factor": 1.0,
            "num_expert_group": 1,
            "topk_group": 1,
            "layer_types": kinds,
            "linear_head_dim": config.hidden // config.heads,
            "linear_num_heads": config.heads,
            "tie_word_embeddings": False,  # transformers' class has no such tie
        }
