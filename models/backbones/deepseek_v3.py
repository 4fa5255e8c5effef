"""DeepSeek-V3 (arXiv:2412.19437): latent attention, dense layers, then shared and routed experts by sigmoid scores."""

import re
from typing import TYPE_CHECKING, Any

from .family import Backbone, BackboneConfig, ExpertNames

if TYPE_CHECKING:
    from torch import nn


class DeepSeekV3(Backbone):
    """The family of `model_type` deepseek_v3, in transformers' `DeepseekV3ForCausalLM`."""

    model_type = "deepseek_v3"
    name = "DeepSeek-V3"
    title = "DeepSeek-V3 Mixture-of-Experts"
    targets = (
        "embed_tokens", "q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj",
        "gate_proj", "up_proj", "down_proj", "experts", "gate",
    )  # fmt: skip
    frozen = {"lm_head": "a pooled head never runs lm_head, and a completion is written by it as it is"}  # noqa: RUF012
    experts = ExpertNames(
        weight=re.compile(r"\.mlp\.experts\."),
        leaves=("gate_proj", "up_proj", "down_proj"),
        count="n_routed_experts",
        top_k="num_experts_per_tok",
    )
    buffers = re.compile(r"\.e_score_correction_bias$")
    probe_lengths = (7,)  # rotary attention over all tokens before: no position is treated otherwise than another

    def model_class(self) -> Any:
        """Returns transformers' `DeepseekV3ForCausalLM`."""
        from transformers import DeepseekV3ForCausalLM

        return DeepseekV3ForCausalLM

    def config_class(self) -> Any:
        """Returns transformers' `DeepseekV3Config`."""
        from transformers import DeepseekV3Config

        return DeepseekV3Config

    def banks(self, model: "nn.Module") -> "dict[str, nn.Module]":
        """Returns the `DeepseekV3Experts` modules of a model by name."""
        from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Experts

        return {name: module for name, module in model.named_modules() if isinstance(module, DeepseekV3Experts)}

    def build(self, vocabulary: int, config: BackboneConfig) -> Any:
        """Builds an untrained model for a vocabulary of the given size.

        Embedding and output matrix are tied: records are read, not written, so a separate output matrix would stay
        untrained.
        """
        hidden = config.hidden
        return self.model_class()(
            self.config_class()(
                vocab_size=vocabulary,
                hidden_size=hidden,
                intermediate_size=2 * hidden,
                moe_intermediate_size=hidden // 2,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.heads,
                n_shared_experts=1,
                n_routed_experts=config.experts,
                num_experts_per_tok=config.top_k,
                first_k_dense_replace=1,
                routed_scaling_factor=1.0,
                n_group=1,
                topk_group=1,
                q_lora_rank=hidden // 2,
                kv_lora_rank=hidden // 4,
                qk_rope_head_dim=hidden // 8,
                qk_nope_head_dim=hidden // 8,
                v_head_dim=hidden // 4,
                max_position_embeddings=config.max_tokens,
                initializer_range=0.02,
                tie_word_embeddings=True,
                use_cache=False,
                pad_token_id=0,
                bos_token_id=None,
                eos_token_id=1,
            )
        )
