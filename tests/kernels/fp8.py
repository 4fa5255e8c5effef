"""Models whose routed experts are stored as a DeepSeek-V3 checkpoint stores them."""

import copy
from typing import Any

from transformers.integrations.finegrained_fp8 import ALL_FP8_EXPERTS_FUNCTIONS, FP8Experts
from transformers.integrations.moe import use_experts_implementation

from confide.kernels.formats import FP8Block128


def fp8_twin(ours: Any) -> Any:
    """A copy of the model with its second layer's experts in fp8; the model itself gets what those codes stand for."""
    use_experts_implementation(FP8Experts, experts_interface=ALL_FP8_EXPERTS_FUNCTIONS)
    twin = copy.deepcopy(ours)
    plain = ours.model.layers[1].mlp.experts
    bank = FP8Experts(twin.config, block_size=(128, 128))
    for name in ("gate_up_proj", "down_proj"):
        packed = FP8Block128.quantised(getattr(plain, name))
        getattr(bank, name).data = packed.codes_EOI
        scale = getattr(bank, f"{name}_scale_inv")
        scale.data.fill_(float("nan"))  # what transformers allocates and no tile uses must not be used
        scale.data[:, : packed.scale_inv_EPQ.shape[1]] = packed.scale_inv_EPQ
        getattr(plain, name).data = packed.dense()
    twin.model.layers[1].mlp.experts = bank
    return twin
