"""Another family of backbones, in one file: OLMo 2 (arXiv:2501.00656), dense, with norms behind its layers."""

from typing import Any

from confide.models.backbones.family import Backbone, BackboneConfig, common_settings


class Olmo2(Backbone):
    """The family of `model_type` olmo2, in transformers' `Olmo2ForCausalLM`."""

    model_type = "olmo2"
    name = "OLMo 2"
    title = "OLMo 2"
    published = "OLMo-2-0425-1B"
    architecture = "Olmo2ForCausalLM"
    targets = ("embed_tokens", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

    def settings(self, config: BackboneConfig) -> dict[str, Any]:
        return common_settings(config)
