"""Llama (arXiv:2302.13971, arXiv:2407.21783): rotary attention with shared keys, and gated MLPs."""

import re
from typing import Any

from .family import Backbone, BackboneConfig, common_settings

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


class Llama(Backbone):
    """The family of `model_type` llama, in transformers' `LlamaForCausalLM`."""

    model_type = "llama"
    name = "Llama"
    title = "Llama"
    published = "Llama 2 and 3, SmolLM2, DeepSeek-R1-Distill-Llama"
    architecture = "LlamaForCausalLM"
    targets: tuple[str, ...] = ("embed_tokens", *ATTENTION, *MLP)
    buffers = re.compile(r"\.rotary_emb\.inv_freq$")  # stored until transformers 4.31, and computed since

    def settings(self, config: BackboneConfig) -> dict[str, Any]:
        """Returns the settings of dense layers with one head of keys for each of queries."""
        return common_settings(config)
