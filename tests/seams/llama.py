"""A second family of backbones, in one file: a dense Llama without experts."""

import re
from typing import Any

from confide.models.backbones.family import Backbone, BackboneConfig


class Llama(Backbone):
    """The family of `model_type` llama, in transformers' `LlamaForCausalLM`."""

    model_type = "llama"
    name = "Llama"
    title = "Llama"
    targets = ("embed_tokens", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    frozen = {"lm_head": "nobody runs it", "norm": "it has no matrix"}
    experts = None
    buffers = re.compile(r"rotary_emb\.inv_freq$")
    probe_lengths = (7, 11)

    def model_class(self) -> Any:
        from transformers import LlamaForCausalLM

        return LlamaForCausalLM

    def config_class(self) -> Any:
        from transformers import LlamaConfig

        return LlamaConfig

    def banks(self, model: Any) -> dict[str, Any]:
        return {}

    def build(self, vocabulary: int, config: BackboneConfig) -> Any:
        return self.model_class()(
            self.config_class()(
                vocab_size=vocabulary,
                hidden_size=config.hidden,
                intermediate_size=2 * config.hidden,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.heads,
                max_position_embeddings=config.max_tokens,
                tie_word_embeddings=True,
                use_cache=False,
                pad_token_id=0,
                bos_token_id=None,
                eos_token_id=1,
            )
        )
