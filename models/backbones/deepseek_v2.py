"""DeepSeek-V2 (arXiv:2405.04434): as DeepSeek-V3, with experts chosen by softmax, of few groups if there are many."""

from typing import Any

from .deepseek_v3 import ATTENTION, MLP, DeepSeekV3

_METHODS = ("greedy", "group_limited_greedy")


class DeepSeekV2(DeepSeekV3):
    """The family of `model_type` deepseek_v2, in transformers' `DeepseekV2ForCausalLM`."""

    model_type = "deepseek_v2"
    name = "DeepSeek-V2"
    title = "DeepSeek-V2 Mixture-of-Experts"
    published = "DeepSeek-V2, DeepSeek-V2-Lite, DeepSeek-Coder-V2"
    architecture = "DeepseekV2ForCausalLM"
    targets = ("embed_tokens", *ATTENTION, *MLP, "experts", "gate")
    buffers = None

    def misfit(self, config: Any) -> str | None:
        """Refuses what transformers' router would not compute: other choices, and weights that sum to one."""
        if config.topk_method not in _METHODS:
            return f"topk_method is {config.topk_method!r}, and transformers computes {' and '.join(_METHODS)}"
        if config.norm_topk_prob:
            return "norm_topk_prob is true, and transformers' router of this architecture reads past it"
        return super().misfit(config)
