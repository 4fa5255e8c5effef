"""Granite 4 hybrids: Mamba-2 (arXiv:2405.21060) in most layers, attention in some, routed and shared experts in all.

A model of this kind may have no attention, no Mamba-2 or no routed experts. Its states are multiplied on their way, and
its logits divided (`logits_scaling`).
"""

import re
from typing import Any

from .family import LM_HEAD, Backbone, BackboneConfig, ExpertNames, common_settings
from .llama import ATTENTION


class GraniteMoeHybrid(Backbone):
    """The family of `model_type` granitemoehybrid, in transformers' `GraniteMoeHybridForCausalLM`."""

    model_type = "granitemoehybrid"
    name = "Granite 4 hybrid"
    title = "Granite 4 hybrid of Mamba-2 and attention"
    published = "Granite-4.0-H-Tiny, -Small and -Micro, Granite-4.0-Micro"
    architecture = "GraniteMoeHybridForCausalLM"
    targets = ("embed_tokens", *ATTENTION, "in_proj", "input_linear", "output_linear", "experts", "router")
    frozen = LM_HEAD | {
        "out_proj": "a Mamba-2 layer in training mode gives its weight to a fused kernel and passes an adapter by",
        "conv1d": "no adapter fits the short convolution of a state-space layer",
    }
    experts = ExpertNames(
        weight=re.compile(r"\.block_sparse_moe\.(input|output)_linear\."),
        bank=(".experts", ""),
        gate_up=("input_linear.weight",),
        down="output_linear.weight",
        count=("num_local_experts",),
        top_k=("num_experts_per_tok",),
    )
    router = "router"

    def model_class(self) -> Any:
        """Returns transformers' class, whose scans go by our chunks on processors from now on."""
        from .scans import scan_mamba2_in_chunks

        scan_mamba2_in_chunks()
        return super().model_class()

    def borders(self, config: Any) -> tuple[int, ...]:
        """Returns the chunks of the scan, ours and that of other devices, if there is a Mamba-2 layer."""
        from ...kernels.scans import CHUNK

        return (CHUNK, config.mamba_chunk_size) if "linear_attention" in config.layer_types else ()

    def settings(self, config: BackboneConfig) -> dict[str, Any]:
        """Returns the settings of Mamba-2 layers with attention in every fourth and in the last."""
        kinds = ["linear_attention"] * config.layers
        kinds[3::4] = ["full_attention"] * len(kinds[3::4])
        kinds[-1] = "full_attention"
        head_dim = config.hidden // config.heads
        return common_settings(config) | {
            "intermediate_size": config.hidden // 2,
            "shared_intermediate_size": config.hidden // 2,
            "num_local_experts": config.experts,
            "num_experts_per_tok": config.top_k,
            "layer_types": kinds,
            "position_embedding_type": None,
            "attention_multiplier": head_dim**-0.5,
            "mamba_n_heads": config.heads,
            "mamba_d_state": 16,
            "mamba_chunk_size": 16,  # records of tables are short
            "router_aux_loss_coef": 0.0,
        }
