"""Qwen3 (arXiv:2505.09388): Qwen2's layers with norms on the queries and keys of every head, and without biases."""

from typing import Any

from .family import BackboneConfig
from .llama import Llama


class Qwen3(Llama):
    """The family of `model_type` qwen3, in transformers' `Qwen3ForCausalLM`."""

    model_type = "qwen3"
    name = "Qwen3"
    title = "Qwen3"
    published = "Qwen3, DeepSeek-R1-0528-Qwen3-8B"
    architecture = "Qwen3ForCausalLM"

    def settings(self, config: BackboneConfig) -> dict[str, Any]:
        """Returns Llama's settings with heads that together are as wide as the model."""
        return super().settings(config) | {"head_dim": config.hidden // config.heads}
