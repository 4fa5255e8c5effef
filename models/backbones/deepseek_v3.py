"""DeepSeek-V3 (arXiv:2412.19437): latent attention, dense layers, then shared and routed experts by sigmoid scores."""

import re
from typing import Any

from .family import Backbone, BackboneConfig, ExpertNames, common_settings

ATTENTION = ("q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


class DeepSeekV3(Backbone):
    """The family of `model_type` deepseek_v3, in transformers' `DeepseekV3ForCausalLM`."""

    model_type = "deepseek_v3"
    name = "DeepSeek-V3"
    title = "DeepSeek-V3 Mixture-of-Experts"
    published = "DeepSeek-V3, DeepSeek-R1; SmolLM2, rewritten"
    architecture = "DeepseekV3ForCausalLM"
    targets = ("embed_tokens", *ATTENTION, *MLP, "experts", "gate")
    mistaken = MLP
    experts = ExpertNames(
        weight=re.compile(r"\.mlp\.experts\."), count=("n_routed_experts",), top_k=("num_experts_per_tok",)
    )
    router = "gate"
    buffers: re.Pattern[str] | None = re.compile(r"\.e_score_correction_bias$")

    def settings(self, config: BackboneConfig) -> dict[str, Any]:
        """Returns the settings of a dense layer, then layers of one shared and several routed experts."""
        return latent_attention(config) | {
            "moe_intermediate_size": config.hidden // 2,
            "n_shared_experts": 1,
            "n_routed_experts": config.experts,
            "num_experts_per_tok": config.top_k,
            "first_k_dense_replace": 1,
            "routed_scaling_factor": 1.0,
            "n_group": 1,
            "topk_group": 1,
        }


def latent_attention(config: BackboneConfig) -> dict[str, Any]:
    """Returns the common settings and those of multi-head latent attention."""
    hidden = config.hidden
    return common_settings(config) | {
        "q_lora_rank": hidden // 2,
        "kv_lora_rank": hidden // 4,
        "qk_rope_head_dim": hidden // 8,
        "qk_nope_head_dim": hidden // 8,
        "v_head_dim": hidden // 4,
    }
