import math

import numpy as np
import pytest
import torch
import transformers

from confide.kernels.formats import Int8Row
from confide.kernels.install import quantise
from confide.models.adapters.lora import AdapterConfig, attach
from confide.models.errors import MetricUndefined
from confide.models.evaluation.router_statistics import describe_experts, router_statistics, unused_by_layer

from ..tiny import random_ids, tiny_deepseek

IDS = random_ids(6)
ALL = torch.ones_like(IDS, dtype=torch.bool)


def gate_of(model):
    return model.model.layers[1].mlp.gate


def by_loop(model, ids):
    """One token after another, in float64, from what the MoE block is given: choices, weights, entropy."""
    seen = []
    handle = model.model.layers[1].mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(ids)
    handle.remove()
    weight, bias = (
        t.detach().double().numpy() for t in (gate_of(model).weight, gate_of(model).e_score_correction_bias)
    )
    choices, weights, entropies = np.zeros(len(weight), dtype=int), np.zeros(len(weight)), []
    for hidden in seen[0].flatten(0, 1).double().numpy():
        scores = 1 / (1 + np.exp(-weight @ hidden))
        chosen = np.argsort(-(scores + bias))[:2]
        for expert in chosen:
            choices[expert] += 1
            weights[expert] += scores[expert] / scores[chosen].sum()
        shares = scores / scores.sum()
        entropies.append(-sum(share * math.log(share) for share in shares) / math.log(len(shares)))
    return choices, weights / weights.sum(), np.mean(entropies)


def test_counts_weights_and_entropies_are_those_of_a_loop_over_tokens():
    model = tiny_deepseek()
    gate_of(model).e_score_correction_bias.copy_(torch.tensor([0.1, 0.0, -0.1, 0.02]))
    (found,) = router_statistics(model, [(IDS, ALL)])
    choices, weights, entropy = by_loop(model, IDS)
    assert (found.layer, found.tokens, found.choices) == (1, IDS.numel(), tuple(choices))
    assert found.weights == pytest.approx(weights, rel=1e-5)
    assert found.token_entropy == pytest.approx(entropy, rel=1e-5)
    load = choices / choices.sum()
    assert found.entropy == pytest.approx(-(load * np.log(load)).sum() / math.log(4), rel=1e-12)
    assert found.max_violation == pytest.approx(choices.max() / choices.mean() - 1, rel=1e-12)


def test_batches_add_up_and_padding_counts_for_nothing():
    model = tiny_deepseek()
    (whole,) = router_statistics(model, [(IDS, ALL)])
    padded, is_token = torch.zeros(6, 20, dtype=torch.int64), torch.zeros(6, 20, dtype=torch.bool)
    padded[:, :12], is_token[:, :12] = IDS, True
    rows = ((padded[i : i + 1], is_token[i : i + 1]) for i in range(6))
    (found,) = router_statistics(model, rows)
    assert (found.tokens, found.choices) == (whole.tokens, whole.choices)
    assert found.weights == pytest.approx(whole.weights, rel=1e-5)
    assert found.token_entropy == pytest.approx(whole.token_entropy, rel=1e-6)


def test_all_tokens_to_one_expert_is_no_entropy_and_the_largest_violation():
    model = tiny_deepseek()
    gate_of(model).top_k = 1
    gate_of(model).e_score_correction_bias[2] = 9.0
    (found,) = router_statistics(model, [(IDS, ALL)])
    assert found.choices == (0, 0, IDS.numel(), 0)
    assert (found.load, found.weights) == ((0, 0, 1, 0), (0, 0, 1, 0))
    assert (found.entropy, found.max_violation, found.unused) == (0.0, 3.0, (0, 1, 3))
    assert found.token_entropy > 0.5  # the bias chooses; the affinities are what they were


def test_all_experts_for_every_token_is_even():
    model = tiny_deepseek()
    gate_of(model).top_k = 4
    with torch.no_grad():
        gate_of(model).weight.zero_()
    (found,) = router_statistics(model, [(IDS, ALL)])
    assert found.load == found.weights == (0.25,) * 4
    assert (found.max_violation, found.unused) == (0.0, ())
    assert (found.entropy, found.token_entropy) == pytest.approx((1.0, 1.0), abs=1e-12)


def test_quantised_experts_are_routed_to_as_any_others():
    model = tiny_deepseek()
    (want,) = router_statistics(model, [(IDS, ALL)])
    quantise(model, Int8Row.quantised)
    assert router_statistics(model, [(IDS, ALL)]) == (want,)  # the only layer with experts: what it reads is the same


def test_an_adapted_router_is_measured_as_the_merged_one():
    adapted = attach(tiny_deepseek(), AdapterConfig(rank=2, alpha=2.0, targets=("gate", "experts"), seed="x"))
    merged = tiny_deepseek()
    (before,) = router_statistics(merged, [(IDS, ALL)])
    generator = torch.Generator().manual_seed(3)
    factors = gate_of(adapted.model)
    with torch.no_grad():
        factors.lora_B.copy_(torch.randn(factors.lora_B.shape, generator=generator) * 3)
        gate_of(merged).weight.add_(factors.lora_B @ factors.lora_A)  # alpha / rank is 1
    (found,), (want,) = (router_statistics(model, [(IDS, ALL)]) for model in (adapted.model, merged))
    assert found.choices == want.choices != before.choices
    assert found.weights == pytest.approx(want.weights, rel=1e-5)
    assert found.token_entropy == pytest.approx(want.token_entropy, rel=1e-5)


def test_nothing_stays_on_the_model_whatever_happens():
    model = tiny_deepseek()
    with pytest.raises(IndexError):
        router_statistics(model, [(IDS + 1000, ALL)])
    router_statistics(model, [(IDS, ALL)])
    assert not gate_of(model)._forward_hooks


@pytest.mark.parametrize("batches", [[], [(IDS, ~ALL)]], ids=["no batch", "padding alone"])
def test_no_token_has_no_statistics(batches):
    with pytest.raises(MetricUndefined, match="no token"):
        router_statistics(tiny_deepseek(), batches)


def test_a_model_without_routed_experts_has_no_statistics():
    model = tiny_deepseek()
    model.model.layers = model.model.layers[:1]
    with pytest.raises(MetricUndefined, match="no routed experts"):
        router_statistics(model, [(IDS, ALL)])


@pytest.mark.parametrize("architecture", ["Mixtral", "Qwen3Moe", "GraniteMoeHybrid"])
def test_affinities_of_a_router_by_softmax_are_its_probabilities(architecture):
    kind = getattr(transformers, f"{architecture}ForCausalLM")
    hybrid = {"layer_types": ["full_attention"], "mamba_n_heads": 4} if architecture == "GraniteMoeHybrid" else {}
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    config = kind.config_class(**sizes, **hybrid, vocab_size=64, num_experts_per_tok=2, num_local_experts=4)
    model = kind(config).eval()
    (moe,) = (part for part in model.model.layers[0].children() if hasattr(part, "experts"))
    router = moe.router if architecture == "GraniteMoeHybrid" else moe.gate
    with torch.no_grad():
        router.weight.copy_(torch.randn(4, 16, generator=torch.Generator().manual_seed(0)))
    seen = []
    router.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    (found,) = router_statistics(model, [(IDS, ALL)])
    choices, entropies = np.zeros(4, dtype=int), []
    for hidden in seen[0].reshape(-1, 16).double().numpy():
        odds = np.exp(router.weight.detach().double().numpy() @ hidden)
        shares = odds / odds.sum()
        choices[np.argsort(-shares)[:2]] += 1
        entropies.append(-(shares * np.log(shares)).sum() / math.log(4))
    assert (found.layer, found.choices) == (0, tuple(choices))
    assert found.token_entropy == pytest.approx(np.mean(entropies), rel=1e-5)
    assert sum(found.weights) == pytest.approx(1)


def test_statistics_are_plain_values():
    (found,) = router_statistics(tiny_deepseek(), [(IDS, ALL)])
    plain = found.to_dict()
    assert plain["choices"] == found.choices
    assert plain.keys() == {
        "layer", "tokens", "choices", "weights", "load", "entropy", "token_entropy", "max_violation", "unused",
    }  # fmt: skip


def test_experts_without_a_token_are_listed_by_layer():
    model = tiny_deepseek()
    gate_of(model).e_score_correction_bias.copy_(torch.tensor([0.0, -9.0, 0.0, -9.0]))
    layers = router_statistics(model, [(IDS, ALL)])
    assert unused_by_layer(layers) == {1: (1, 3)}
    assert describe_experts({1: (1, 3), 4: (0,)}) == "experts 1, 3 of layer 1 and expert 0 of layer 4"
    gate_of(model).e_score_correction_bias.zero_()
    assert unused_by_layer(router_statistics(model, [(IDS, ALL)])) == {}
