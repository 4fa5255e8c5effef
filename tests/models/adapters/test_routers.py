"""Adapted routers choose as transformers' own do, of every class that takes an adapter."""

import pytest
import torch
import transformers

from confide.kernels.collect import CaptureSlot
from confide.models.adapters.factors import AdapterConfig, Rows
from confide.models.adapters.lora import attach
from confide.models.adapters.routers import CHOICES, LoRARouter
from confide.models.errors import UnsupportedModule

CONFIG = AdapterConfig(rank=2, alpha=2.0, targets=("gate",), seed="x")
V2 = {"n_routed_experts": 8, "routed_scaling_factor": 16.0}
V3 = {"n_routed_experts": 8, "n_group": 1, "topk_group": 1, "norm_topk_prob": False}
ROUTERS = [  # class, and settings that lead it through each of its branches
    ("DeepseekV2TopkRouter", V2),
    ("DeepseekV2TopkRouter", V2 | {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}),
    ("DeepseekV3TopkRouter", V3),
    ("DeepseekV3TopkRouter", V3 | {"n_group": 4, "topk_group": 2, "norm_topk_prob": True}),
    ("GraniteMoeHybridTopKRouter", {"num_local_experts": 8, "mamba_n_heads": 4}),
    ("KimiLinearTopkRouter", {"num_experts": 8, "num_expert_group": 2, "topk_group": 1}),
    ("KimiLinearTopkRouter", {"num_experts": 8, "num_expert_group": 1, "topk_group": 1, "moe_renormalize": False}),
    ("MixtralTopKRouter", {"num_local_experts": 8}),
    ("Qwen3MoeTopKRouter", {"num_experts": 8, "norm_topk_prob": True}),
    ("Qwen3MoeTopKRouter", {"num_experts": 8, "norm_topk_prob": False}),
]


def stock_router(name, settings, dtype=torch.float32):
    """A router of transformers with random scores and, if it has one, a random balance bias."""
    architecture = name.removesuffix("TopKRouter").removesuffix("TopkRouter")
    config = getattr(transformers, f"{architecture}Config")(
        hidden_size=32, num_attention_heads=4, **{"num_experts_per_tok": 3} | settings
    )
    module = getattr(transformers, f"{architecture}PreTrainedModel").__module__
    router = getattr(__import__(module, fromlist=[name]), name)(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        router.weight.copy_(torch.randn(router.weight.shape, generator=generator) / 3)
        if hasattr(router, "e_score_correction_bias"):
            router.e_score_correction_bias.copy_(torch.randn(8, generator=generator) / 5)
    router.weight.data = router.weight.data.to(dtype)
    return router


def hidden_states(dtype=torch.float32):
    return torch.randn(50, 32, generator=torch.Generator().manual_seed(1)).to(dtype)


def dense(router, hidden):
    """[T, E], the weight of every expert for every token."""
    logits, weights, ids = router(hidden)
    return torch.zeros(logits.shape, dtype=weights.dtype).scatter(1, ids, weights)


def test_every_class_of_routers_is_tried():
    assert {name for name, _ in ROUTERS} == {*CHOICES}


@pytest.mark.parametrize(("name", "settings"), ROUTERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fresh_adapter_chooses_and_weighs_as_the_stock_router(name, settings, dtype):
    kept_wide = CHOICES[name].in_float32
    stock = stock_router(name, settings, torch.float32 if kept_wide else dtype)
    ours, hidden = LoRARouter(stock, CONFIG, "gate", CaptureSlot(), Rows()), hidden_states(dtype)
    with torch.no_grad():
        assert torch.equal(ours(hidden)[0], stock(hidden)[0])
        want, got = dense(stock, hidden), dense(ours, hidden)
    assert got.dtype == want.dtype
    assert torch.equal(got > 0, want > 0)
    torch.testing.assert_close(got, want, rtol=1e-6 if dtype == torch.float32 else 1e-2, atol=0)


@pytest.mark.parametrize(("name", "settings"), ROUTERS)
def test_a_trained_adapter_is_the_stock_router_with_the_product_in_its_matrix(name, settings):
    stock = stock_router(name, settings)
    ours, hidden = LoRARouter(stock, CONFIG, "gate", CaptureSlot(), Rows()), hidden_states()
    with torch.no_grad():
        before = dense(stock, hidden)
        ours.lora_B.copy_(torch.randn(ours.lora_B.shape, generator=torch.Generator().manual_seed(2)) / 2)
        got = dense(ours, hidden)
        stock.weight.add_(ours.lora_B @ ours.lora_A)  # alpha / rank is 1
        want = dense(stock, hidden)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert ((got > 0) != (before > 0)).any(1).float().mean() > 0.2


@pytest.mark.parametrize(("name", "settings"), ROUTERS)
def test_gradients_are_those_of_the_product_in_the_matrix(name, settings):
    stock = stock_router(name, settings)
    ours, hidden = LoRARouter(stock, CONFIG, "gate", CaptureSlot(), Rows()), hidden_states()
    pull = torch.randn(50, 8, generator=torch.Generator().manual_seed(3))
    (dense(ours, hidden) * pull).sum().backward()
    stock.weight.requires_grad_()
    (dense(stock, hidden) * pull).sum().backward()
    torch.testing.assert_close(ours.lora_B.grad, stock.weight.grad @ ours.lora_A.T, rtol=1e-4, atol=1e-5)


def test_a_router_of_a_class_that_is_not_in_the_table_is_refused():
    model = transformers.Qwen2MoeForCausalLM(
        transformers.Qwen2MoeConfig(
            hidden_size=16, intermediate_size=16, moe_intermediate_size=8, shared_expert_intermediate_size=8,
            num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, num_experts=4, vocab_size=16,
        )
    )  # fmt: skip
    with pytest.raises(UnsupportedModule, match=r"layers.0.mlp.gate is a Qwen2MoeTopKRouter, which no adapter fits"):
        attach(model, CONFIG)
