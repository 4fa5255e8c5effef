"""Qwen2 (arXiv:2407.10671): Llama's layers with biases on queries, keys and values, and in some a local window."""

from .llama import Llama


class Qwen2(Llama):
    """The family of `model_type` qwen2, in transformers' `Qwen2ForCausalLM`."""

    model_type = "qwen2"
    name = "Qwen2"
    title = "Qwen2"
    published = "Qwen2, Qwen2.5, DeepSeek-R1-Distill-Qwen"
    architecture = "Qwen2ForCausalLM"
