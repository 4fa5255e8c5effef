import copy

import pytest
import torch
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention

from confide.models.adapters import AdapterConfig, attach
from confide.models.backbones.grouped_query import _found, as_stored, speed_up
from confide.privacy.mechanism.batches import probed_shapes
from confide.privacy.mechanism.independence import refuse_dependence

from .test_upcycling import IDS, llama, upcycled  # noqa: F401 - a fixture

GROUPS = [
    {},
    {"num_key_value_heads": 1},
    {"num_key_value_heads": 6},
    {"num_key_value_heads": 2, "num_attention_heads": 4, "head_dim": 8},
]
TARGETS = ("q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")


def attentions(model):
    return [layer.self_attn for layer in model.model.layers]


def widths_of_scores(monkeypatch):
    """What attention is asked to multiply from now on: (key heads, width of a head) of each layer."""
    seen, exact = [], torch.nn.functional.scaled_dot_product_attention

    def noting(query, key, *rest, **named):
        seen.append(tuple(key.shape[1::2]))
        return exact(query, key, *rest, **named)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noting)
    return seen


@torch.no_grad()
@pytest.mark.parametrize("settings", GROUPS, ids=str)
def test_layers_cost_and_compute_what_the_llama_does(upcycled, settings, monkeypatch):  # noqa: F811
    dense = llama(**settings)
    model = upcycled(dense)
    seen = widths_of_scores(monkeypatch)
    expected, found = dense(IDS).logits, model(IDS).logits
    assert seen[:3] == seen[3:]  # no wider, and no more key heads
    as_stored(model)
    assert all(type(attention) is DeepseekV3Attention for attention in attentions(model))
    torch.testing.assert_close(found, model(IDS).logits, rtol=0, atol=2e-5)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    mask = torch.ones_like(IDS)
    mask[0, :40] = 0  # padding on the left
    assert speed_up(model) == 3
    masked = model(IDS, attention_mask=mask).logits[mask.bool()]
    torch.testing.assert_close(masked, dense(IDS, attention_mask=mask).logits[mask.bool()], rtol=0, atol=2e-5)


@torch.no_grad()
def test_text_with_a_cache_is_the_llama_s_word_for_word(upcycled):  # noqa: F811
    dense, options = llama(), {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
    prompt = IDS[:, :9]
    model = upcycled(dense)
    expected, found = dense.generate(prompt, **options), model.generate(prompt, **options)
    assert len(set(expected[0, 9:].tolist())) > 3
    assert torch.equal(found, expected)


def gradients(adapted):
    adapted.model(input_ids=IDS[:, :20]).logits.square().sum().backward()
    return {name: parameter.grad for name, parameter in adapted.trained.items()}


def test_layers_with_adapters_compute_as_they_stand_and_the_others_pass_the_same_gradients(upcycled):  # noqa: F811
    config = AdapterConfig(rank=2, alpha=2.0, targets=TARGETS, seed="a", layers=(1,))
    models = upcycled(llama()), upcycled(llama())
    as_stored(models[1])
    # In float64 the constant in the norm of the values shows, in the tenth digit.
    ours, plain = (attach(model.double(), config) for model in models)
    state = 0.3 * torch.randn(ours.layout.dim, generator=torch.Generator().manual_seed(1)).numpy()
    for adapted in (ours, plain):
        adapted.load_state(state)
    assert sum(_found(attention) is None for attention in attentions(ours.model)) == 1
    want = gradients(plain)
    for name, gradient in gradients(ours).items():
        assert want[name].any()
        torch.testing.assert_close(gradient, want[name], rtol=1e-5, atol=1e-6 * float(want[name].abs().max()))


@torch.no_grad()
@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.q_proj.weight[9].fill_(0.1),  # at the place of a key head that is not its own
        lambda a: a.kv_a_proj_with_mqa.weight[a.qk_rope_head_dim + 1].fill_(0.1),
        lambda a: a.kv_a_proj_with_mqa.bias[3].fill_(0.1),
        lambda a: a.kv_a_proj_with_mqa.bias[a.qk_rope_head_dim].mul_(2),
        lambda a: a.kv_a_layernorm.weight[2].mul_(2),
        lambda a: a.kv_b_proj.weight[3, 3].fill_(2),
        lambda a: a.kv_b_proj.weight[3, 4].fill_(1),
        lambda a: setattr(a, "q_proj", torch.nn.Linear(48, 6 * 24, bias=False)),
    ],
)
def test_a_layer_that_was_changed_since_computes_what_its_weights_say(upcycled, change):  # noqa: F811
    model = upcycled(llama())
    model(IDS)
    before = model(IDS).logits
    assert all(_found(attention) is not None for attention in attentions(model))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        change(attentions(model)[1])
    found = model(IDS).logits
    assert _found(attentions(model)[1]) is None
    twin = copy.deepcopy(model)
    as_stored(model)
    torch.testing.assert_close(found, model(IDS).logits, rtol=0, atol=2e-5)
    torch.testing.assert_close(found, twin(IDS).logits, rtol=0, atol=0)
    assert not torch.equal(found, before)


@torch.no_grad()
def test_weights_that_are_scaled_in_place_or_converted_are_taken_anew(upcycled):  # noqa: F811
    model = upcycled(llama())
    model(IDS)
    attentions(model)[0].q_proj.weight.mul_(2)
    found = model(IDS).logits
    assert _found(attentions(model)[0]) is not None
    half = copy.deepcopy(model).to(torch.bfloat16)
    assert half(IDS).logits.dtype == torch.bfloat16
    assert all(_found(attention).q_HCD.dtype == torch.bfloat16 for attention in attentions(half))
    as_stored(model)
    torch.testing.assert_close(found, model(IDS).logits, rtol=0, atol=2e-5)


@torch.no_grad()
def test_whoever_watches_sees_the_path_that_is_taken_without_him_and_divided_weights_are_not_copied(
    upcycled,  # noqa: F811
    monkeypatch,
):
    """The test of independence hooks every module: it must try what training runs."""
    model = upcycled(llama())
    expected, seen = model(IDS).logits, widths_of_scores(monkeypatch)
    for module in model.modules():
        module.register_forward_hook(lambda *_: None)
    assert torch.equal(model(IDS).logits, expected)
    assert seen == [(3, 8)] * 3
    attentions(model)[1].q_proj.weight.ds_id = 0
    assert _found(attentions(model)[1]) is None


def test_units_stay_apart_on_this_path_and_rows_keep_their_bits(upcycled):  # noqa: F811
    config = AdapterConfig(rank=2, alpha=2.0, targets=(*TARGETS, "experts"), seed="a", layers=(2,))
    adapted = attach(upcycled(llama()), config)
    refuse_dependence(adapted, words=97)
    assert probed_shapes(adapted, max_tokens=15, max_rows=16, max_records=1).rows_of_length
    assert [_found(attention) is not None for attention in attentions(adapted.model)] == [True, True, False]


def test_a_model_that_is_no_upcycled_llama_is_left_alone():
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    for q_lora_rank, qk_nope_head_dim in ((8, 8), (None, 0)):
        config = DeepseekV3Config(
            hidden_size=32, intermediate_size=32, moe_intermediate_size=16, num_hidden_layers=2, vocab_size=64,
            num_attention_heads=2, num_key_value_heads=2, kv_lora_rank=16, qk_rope_head_dim=8, v_head_dim=8,
            q_lora_rank=q_lora_rank, qk_nope_head_dim=qk_nope_head_dim, n_routed_experts=4, n_group=1, topk_group=1,
        )  # fmt: skip
        model = DeepseekV3ForCausalLM(config)
        assert speed_up(model) == 0
        assert all(type(attention) is DeepseekV3Attention for attention in attentions(model))
    assert speed_up(llama()) == 0
