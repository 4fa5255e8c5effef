import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from confide.kernels import install as plugin
from confide.kernels import moe as dispatch
from confide.kernels.collect import Collector
from confide.kernels.errors import (
    CaptureClosed,
    CaptureMissed,
    CaptureNested,
    SavedWithoutWeights,
    UnfitWeights,
    UnsupportedExperts,
)
from confide.kernels.experts import from_peft
from confide.kernels.formats import FP8Block128, Int8Row, NF4Block64
from confide.kernels.install import adapt, experts_of, install, quantise

from .fp8 import fp8_twin

SMALL = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
DEEPSEEK = {**SMALL, **LATENT, "n_routed_experts": 8, "num_experts_per_tok": 3, "n_shared_experts": 1}
FAMILIES = {
    "deepseek-v3": (
        DeepseekV3ForCausalLM,
        DeepseekV3Config(**DEEPSEEK, n_group=2, topk_group=2, first_k_dense_replace=1),
    ),
    "deepseek-v2": (DeepseekV2ForCausalLM, DeepseekV2Config(**DEEPSEEK, first_k_dense_replace=1, n_group=1)),
    "qwen3-moe": (Qwen3MoeForCausalLM, Qwen3MoeConfig(**SMALL, num_experts=8, num_experts_per_tok=2, head_dim=16)),
    "mixtral": (MixtralForCausalLM, MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2)),
}


def model(family="deepseek-v3", implementation="eager", dtype=torch.float32):
    kind, config = FAMILIES[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = kind._from_config(copy.deepcopy(config), experts_implementation=implementation)
        for name, parameter in built.named_parameters():
            if "experts" in name:
                nn.init.normal_(parameter, std=0.1)
    return built.to(dtype).eval()


def tokens(rows=2, length=21):
    return torch.randint(0, 97, (rows, length), generator=torch.Generator().manual_seed(1))


def randomise(parameters):
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(torch.randn(parameter.shape, generator=g) * 0.1)


peft_hints = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks for it


@pytest.mark.parametrize("family", FAMILIES)
def test_unchanged_model_code_runs_on_these_kernels(family, monkeypatch):
    calls = []
    monkeypatch.setattr(plugin, "moe", lambda *a, **k: calls.append(1) or dispatch.moe(*a, **k))
    ours, eager = model(family, install()), model(family)
    got, want = (m(input_ids=tokens(), labels=tokens()) for m in (ours, eager))
    assert len(calls) == sum(hasattr(m, "gate_up_proj") and hasattr(m, "num_experts") for m in ours.modules()) > 0
    torch.testing.assert_close(got.logits, want.logits, rtol=1e-4, atol=1e-5)
    got.loss.backward()
    want.loss.backward()
    for (name, mine), stock in zip(ours.named_parameters(), eager.parameters(), strict=True):
        if stock.grad is None:
            assert mine.grad is None, name
        else:
            torch.testing.assert_close(mine.grad, stock.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_built_model_can_be_switched():
    switched = model()
    want = switched(tokens()).logits
    switched.set_experts_implementation(install())
    got = switched(tokens()).logits
    assert not torch.equal(got, want)  # other kernels, other rounding
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_other_experts_are_refused():
    config = GptOssConfig(**{k: v for k, v in SMALL.items() if k != "moe_intermediate_size"}, num_local_experts=4)
    gpt_oss = GptOssForCausalLM._from_config(config, experts_implementation=install())
    with pytest.raises(UnsupportedExperts, match="GptOssExperts has is_transposed=True"):
        gpt_oss(tokens())
    with pytest.raises(UnsupportedExperts, match="GptOssExperts has is_transposed=True"):
        adapt(gpt_oss, 4, 8.0)


@pytest.mark.parametrize(("change", "why"), [
    ({"act_fn": nn.GELU()}, "another gate"),
    ({"has_bias": True}, "has_bias=True"),
    ({"has_gate": False}, "has_gate=False"),
    ({"is_concatenated": False}, "is_concatenated=False"),
    ({"has_post_expert_norm": True}, "has_post_expert_norm=True"),
])  # fmt: skip
def test_bank_that_computes_something_else_is_refused(change, why):
    bank = model().model.layers[1].mlp.experts
    for name, value in change.items():
        setattr(bank, name, value)
    with pytest.raises(UnsupportedExperts, match=why):
        experts_of(bank)


def test_module_of_linear_layers_is_refused():
    class Fused(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_up_proj, self.down_proj = nn.Linear(4, 8), nn.Linear(4, 4)

    with pytest.raises(UnsupportedExperts, match="dispatches"):
        experts_of(Fused())
    Fused._apply_gate = None
    with pytest.raises(UnsupportedExperts, match="3-D tensors"):
        experts_of(Fused())


def test_clamped_gate_is_refused():
    bank = model().model.layers[1].mlp.experts
    bank._apply_gate = lambda gate_up: (
        nn.functional.silu(gate_up.chunk(2, -1)[0].clamp(max=10)) * gate_up.chunk(2, -1)[1]
    )
    with pytest.raises(UnsupportedExperts, match="another gate"):
        experts_of(bank)


@pytest.mark.parametrize("train_A", [True, False])
def test_adapted_model_starts_as_it_was_and_trains_nothing_else(train_A):
    ours = model(implementation=install())
    want = ours(tokens()).logits
    adapted = adapt(ours, 4, 8.0, train_A=train_A)
    assert torch.equal(ours(tokens()).logits, want)
    trained = {name for name, p in ours.named_parameters() if p.requires_grad}
    assert trained == set(adapted.parameters)
    assert len(trained) == (4 if train_A else 2)
    ours(input_ids=tokens(), labels=tokens()).loss.backward()
    assert all((p.grad is not None) == p.requires_grad for p in ours.parameters())


def test_adapters_learn():
    ours = model()
    parameters = list(adapt(ours, 4, 8.0).parameters.values())
    optimizer = torch.optim.Adam(parameters, 1e-2)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = ours(input_ids=tokens(), labels=tokens()).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.05


@pytest.mark.parametrize("pack", [Int8Row.quantised, NF4Block64.quantised, FP8Block128.quantised])
def test_quantised_model_computes_what_its_codes_stand_for(pack):
    ours, want = model(), model()
    for name in ("gate_up_proj", "down_proj"):
        weight = getattr(want.model.layers[1].mlp.experts, name)
        weight.data = pack(weight.data).dense()
    quantise(ours, pack)
    assert not any(".experts." in name for name, _ in ours.named_parameters())
    for adapted in (adapt(ours, 4, 8.0), adapt(want, 4, 8.0)):
        randomise(adapted.parameters.values())
    logits = [m(tokens()).logits for m in (ours, want)]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)
    grads = [
        torch.autograd.grad(out.square().sum(), [p for p in m.parameters() if p.requires_grad])
        for m, out in zip((ours, want), logits, strict=True)
    ]
    for got, plain in zip(*grads, strict=True):
        torch.testing.assert_close(got, plain, rtol=1e-3, atol=1e-4 * float(plain.abs().max()))


@peft_hints
def test_equals_peft_target_parameters():
    base = model()
    ours = copy.deepcopy(base)
    adapt(ours, 4, 8.0)
    bank = "model.layers.1.mlp.experts"
    peft = get_peft_model(
        base,
        LoraConfig(
            r=4,
            lora_alpha=8,
            target_modules=[],
            target_parameters=[f"{bank}.gate_up_proj", f"{bank}.down_proj"],
        ),
    )
    stored = {name: p for name, p in peft.named_parameters() if "lora_" in name}
    assert len(stored) == 4
    randomise(stored.values())
    own = ours.get_submodule(bank)
    for part, width in (("gate_up", 64), ("down", 32)):
        (key,) = (name for name in stored if "lora_A" in name and stored[name].shape[1] == width)
        A, B = from_peft(stored[key], stored[key.replace("lora_A", "lora_B")], 8)
        getattr(own, f"lora_{part}_A").data.copy_(A)
        getattr(own, f"lora_{part}_B").data.copy_(B)
    got, want = ours(tokens()).logits, peft(input_ids=tokens()).logits
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert (got - model()(tokens()).logits).abs().max() > 0.01  # the adapters do something


def test_adapted_experts_refuse_to_run_without_their_adapters():
    ours = model()
    adapt(ours, 4, 8.0)
    ours.set_experts_implementation("eager")
    with pytest.raises(UnsupportedExperts, match="'eager' knows nothing"):
        ours(tokens())


def test_quantised_experts_refuse_other_code_and_a_second_time():
    ours = model()
    quantise(ours, Int8Row.quantised)
    with pytest.raises(UnsupportedExperts, match="quantised before"):
        quantise(ours, Int8Row.quantised)
    ours.set_experts_implementation("grouped_mm")
    with pytest.raises(UnsupportedExperts, match="'grouped_mm' knows nothing"):
        ours(tokens())


@peft_hints
def test_a_quantised_model_is_not_saved_without_its_experts_but_peft_s_adapter_of_it_is(tmp_path):
    ours = model()
    quantise(ours, Int8Row.quantised)
    for part in (ours, ours.model, copy.deepcopy(ours)):
        with pytest.raises(SavedWithoutWeights, match="nothing was written"):
            part.save_pretrained(tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()
    get_peft_model(ours, LoraConfig(r=2, target_modules=["o_proj"])).save_pretrained(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("bad", [(0, 8.0), (4, 0.0), (4, float("nan"))])
def test_rank_and_alpha_must_be_positive(bad):
    with pytest.raises(UnfitWeights):
        adapt(model(), *bad)


def test_model_without_experts_is_refused():
    with pytest.raises(UnsupportedExperts, match="no bank"):
        adapt(nn.Linear(2, 2), 4, 8.0)
    with pytest.raises(UnsupportedExperts, match="no bank"):
        quantise(nn.Linear(2, 2), Int8Row.quantised)


def test_units_of_a_batch_are_collected_apart():
    ours = model(dtype=torch.float64)
    adapted = adapt(ours, 4, 8.0)
    randomise(adapted.parameters.values())
    ids, units = tokens(5), torch.tensor([1, 0, 1, 2, 0])
    with adapted.collect(units, 3, 21) as collector:
        ours(ids).logits.square().sum().backward()
    norms = collector.square_norms()
    assert all(p.grad is None for p in adapted.parameters.values())
    for unit in range(3):
        loss = ours(ids[units == unit]).logits.square().sum()
        want = torch.autograd.grad(loss, list(adapted.parameters.values()))
        # the stock router and norms round to float32
        torch.testing.assert_close(norms[unit], sum(g.square().sum() for g in want), rtol=1e-4, atol=0)
        got = collector.weighted_sum(torch.eye(3)[unit])
        for parameter, grad in zip(adapted.parameters.values(), want, strict=True):
            torch.testing.assert_close(got[parameter], grad, rtol=1e-3, atol=1e-5 * float(grad.abs().max()))


def test_fp8_bank_with_adapters_is_the_widened_bank_with_adapters():
    plain = model()
    twin = fp8_twin(plain)
    for adapted in (adapt(plain, 4, 8.0), adapt(twin, 4, 8.0)):
        randomise(adapted.parameters.values())
    got, want = (m(input_ids=tokens(), labels=tokens()) for m in (twin, plain))
    torch.testing.assert_close(got.logits, want.logits, rtol=1e-4, atol=1e-5)
    got.loss.backward()
    want.loss.backward()
    banks = [m.model.layers[1].mlp.experts for m in (twin, plain)]
    for leaf in ("lora_gate_up_A", "lora_gate_up_B", "lora_down_A", "lora_down_B"):
        mine, stock = (getattr(bank, leaf).grad for bank in banks)
        torch.testing.assert_close(mine, stock, rtol=1e-3, atol=1e-6)


@peft_hints
def test_peft_adds_to_raw_fp8_codes_and_is_off_by_their_scale():
    """What PEFT trains is not what the model computes: code + BA, times a scale of about 0.001, instead of W + BA."""
    twin = fp8_twin(model())
    bank = twin.model.layers[1].mlp.experts
    widened = experts_of(bank).gate_up.dense().float()
    name = "model.layers.1.mlp.experts.gate_up_proj"
    peft = get_peft_model(twin, LoraConfig(r=4, lora_alpha=8, target_modules=[], target_parameters=[name]))
    stored = [p for n, p in peft.named_parameters() if "lora_" in n]
    randomise(stored)
    A, B = from_peft(*stored, 8)
    wrapper = next(m for m in peft.modules() if type(m).__name__ == "ParamWrapper")
    with wrapper._activate_lora(["default"]):
        codes = bank.gate_up_proj.detach()  # as its forward would see them
    scales = bank.gate_up_proj_scale_inv.detach()[:, :1]
    want = 8.0 / 4 * B.detach() @ A.detach()
    theirs = codes.float() * scales.expand(-1, *codes.shape[1:]) - widened
    assert want.norm() > 0.1 * widened.norm()
    assert theirs.norm() < 0.01 * want.norm()  # next to nothing of the adapter arrives
    assert float(scales.max()) < 0.002


@pytest.mark.parametrize(("change", "why"), [
    ({"block_size": (64, 64)}, "not of 128 x 128"),
    ({"activation_scheme": "static"}, "static scales"),
    ({"limit": 10.0}, "another gate"),
])  # fmt: skip
def test_other_fp8_banks_are_refused(change, why):
    bank = fp8_twin(model()).model.layers[1].mlp.experts
    for name, value in change.items():
        setattr(bank, name, value)
    with pytest.raises(UnsupportedExperts, match=why):
        experts_of(bank)


UNITS = torch.arange(2)


def test_collector_is_closed_after_its_batch():
    ours = model()
    adapted = adapt(ours, 4, 8.0)
    with adapted.collect(UNITS, 2, 21) as collector:
        assert isinstance(collector, Collector)
        assert adapted.slot.collector is collector
        ours(tokens()).logits.sum().backward()
    assert adapted.slot.collector is None
    with pytest.raises(CaptureClosed):
        collector.capture_rows(collector.parameters[0], torch.ones(2, 1), torch.ones(2, 1), transposed=False)


def test_a_batch_whose_forward_ran_outside_is_refused_and_its_gradients_with_it():
    ours = model()
    adapted = adapt(ours, 4, 8.0)
    loss = ours(tokens()).logits.sum()
    with pytest.raises(CaptureMissed, match="holds a gradient of all units"), adapted.collect(UNITS, 2, 21):
        loss.backward()
    with pytest.raises(CaptureMissed, match="clear it"), adapted.collect(UNITS, 2, 21):
        pytest.fail("nothing may run over what a stray backward has left")


def test_a_batch_in_which_backward_reached_nothing_is_refused():
    adapted = adapt(model(), 4, 8.0)
    with pytest.raises(CaptureMissed, match="reached no adapter"), adapted.collect(UNITS, 2, 21):
        pass


def test_a_copy_of_an_adapted_model_is_not_taken_for_it():
    ours = model()
    adapted = adapt(ours, 4, 8.0)
    twin = copy.deepcopy(ours)
    with pytest.raises(CaptureMissed), adapted.collect(UNITS, 2, 21):
        twin(tokens()).logits.sum().backward()


def test_no_batch_inside_a_batch():
    ours = model()
    adapted = adapt(ours, 4, 8.0)
    with adapted.collect(UNITS, 2, 21) as collector:
        with pytest.raises(CaptureNested), adapted.collect(UNITS, 2, 21):
            pytest.fail("the inner one must not open")
        ours(tokens()).logits.sum().backward()
    assert len(collector.parameters) == len(adapted.parameters)


def test_a_reentrant_checkpoint_whose_backward_would_come_in_another_batch_is_refused():
    """Run there, its gradients would be taken for those of other units."""
    ours = model()
    adapted = adapt(ours, 4, 8.0)
    randomise(adapted.parameters.values())
    words = ours.get_input_embeddings()(tokens()).detach().requires_grad_()

    def loss():
        return checkpoint(lambda x: ours(inputs_embeds=x).logits, words, use_reentrant=True).sum()

    with pytest.raises(CaptureMissed, match="reentrant"), adapted.collect(UNITS, 2, 21):
        loss()
    with adapted.collect(UNITS, 2, 21) as collector:
        loss().backward()
    assert len(collector.parameters) == len(adapted.parameters)


def test_a_second_adapt_is_refused_and_changes_nothing():
    ours = model()
    first = adapt(ours, 4, 8.0)
    with pytest.raises(UnsupportedExperts, match="has adapters already"):
        adapt(ours, 8, 8.0)
    found = dict(ours.named_parameters())
    assert all(found[name] is parameter for name, parameter in first.parameters.items())


def test_an_adapt_that_fails_at_the_last_bank_changes_nothing():
    config = DeepseekV3Config(**DEEPSEEK | {"num_hidden_layers": 3}, first_k_dense_replace=1)
    ours = DeepseekV3ForCausalLM._from_config(config, experts_implementation="eager")
    ours.model.layers[2].mlp.experts.has_bias = True
    before = {name: parameter.requires_grad for name, parameter in ours.named_parameters()}
    with pytest.raises(UnsupportedExperts):
        adapt(ours, 4, 8.0)
    assert before == {name: parameter.requires_grad for name, parameter in ours.named_parameters()}
    assert ours.config._experts_implementation == "eager"
