import numpy as np
import pytest
import torch

from confide.models.backbones.balancing import balanced
from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.loading import build, load
from confide.models.backbones.pretraining import PretrainingConfig, SyntheticRecords, fit, pretrain
from confide.models.backbones.public_tokens import of_records
from confide.models.evaluation.router_statistics import router_of, router_statistics
from confide.models.records.fields import CategoricalField, FlagField, NumericField, RecordSchema

from ..tiny import random_ids, tiny_deepseek

IDS = random_ids(6)
LENGTHS = (7, 3, 5, 1, 7, 0)
IS_TOKEN = torch.arange(IDS.shape[1]) < torch.tensor(LENGTHS)[:, None]
BIAS = torch.tensor([0.1, 0.0, -0.1, 0.02])


def gate_of(model):
    return model.model.layers[1].mlp.gate


def load_by_loop(model):
    """One token after another, in float64, from what the MoE block is given: how often each expert is chosen."""
    seen, counts = [], np.zeros(4)
    handle = model.model.layers[1].mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(IDS)
    handle.remove()
    for row, length in zip(seen[0].double().numpy(), LENGTHS, strict=True):
        for hidden in row[:length]:
            scores = 1 / (1 + np.exp(-gate_of(model).weight.detach().double().numpy() @ hidden))
            counts[np.argsort(-(scores + BIAS.double().numpy()))[:2]] += 1
    return counts


def test_every_bias_moves_one_step_against_the_load_of_tokens_and_padding_is_no_load():
    model = tiny_deepseek()
    gate_of(model).e_score_correction_bias.copy_(BIAS)
    load = load_by_loop(model)
    with balanced(model, IS_TOKEN, 0.25):
        model(IDS)
    model(IDS)  # outside nothing is counted
    moved = (gate_of(model).e_score_correction_bias - BIAS).numpy()
    np.testing.assert_allclose(moved, 0.25 * np.sign(load.mean() - load), atol=1e-6)
    assert len(set(np.sign(moved))) > 1


def test_a_step_that_fails_moves_nothing_and_leaves_no_hook():
    model = tiny_deepseek()
    with pytest.raises(IndexError), balanced(model, IS_TOKEN, 0.25):
        model(IDS + 64)  # words that the model has not
    assert not gate_of(model).e_score_correction_bias.any()
    assert not gate_of(model)._forward_hooks


def test_a_model_without_routers_is_left_alone():
    with balanced(torch.nn.Linear(2, 2), torch.ones(1, 1, dtype=torch.bool), 1.0):
        pass


SCHEMA = RecordSchema(
    tuple(NumericField(name, (1.0, 2.0, 3.0, 4.0, 5.0)) for name in "abcdefgh"),
    tuple(FlagField(name) for name in ("x", "y", "z")),
    (CategoricalField("sex", ("F", "M")),),
)


def routing_of(directory):
    (layer,) = router_statistics(load(directory).model, of_records(SCHEMA, 8192))
    return layer


@pytest.mark.slow
def test_experts_die_in_pretraining_without_balancing_and_none_with_it(tmp_path):
    for name, step in (("without", 0.0), ("with", PretrainingConfig().bias_step)):
        config = PretrainingConfig(steps=200, batch=24, questions=64, moment_records=64, bias_step=step)
        pretrain(SCHEMA, tmp_path / name, backbone=BackboneConfig(), config=config)
    without, balanced = routing_of(tmp_path / "without"), routing_of(tmp_path / "with")
    assert without.unused  # the defect
    assert not balanced.unused
    assert balanced.entropy > 0.8 > without.entropy


@pytest.mark.parametrize("family", ["deepseek_v2", "qwen3_moe", "mixtral"])
def test_the_balance_loss_of_softmax_routers_is_share_times_mean_probability(family):
    model = build(SCHEMA, BackboneConfig(family=family, hidden=32, layers=2, experts=4))
    routers = {i: router for i, layer in enumerate(model.model.layers) if (router := router_of(layer)) is not None}
    generator = torch.Generator().manual_seed(3)
    for router in routers.values():
        torch.nn.init.normal_(router.weight, std=0.5, generator=generator)
    seen = {layer: [] for layer in routers}
    hooks = [
        router.register_forward_pre_hook(lambda _, inputs, layer=layer: seen[layer].append(inputs[0].detach()))
        for layer, router in routers.items()
    ]
    ids = torch.tensor([[2, 3, 4, 5], [5, 6, 0, 0]])
    with balanced(model, ids > 0, 0.5) as balance_loss:
        model(ids, attention_mask=(ids > 0).long())
        found = balance_loss()
    for hook in hooks:
        hook.remove()
    want = 0.0
    for layer, router in routers.items():
        tokens = seen[layer][0].reshape(-1, 32)[(ids > 0).flatten()].double().numpy()
        scores = tokens @ router.weight.detach().double().numpy().T
        chances = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        chosen = np.argsort(-scores, axis=1)[:, : model.config.num_experts_per_tok]
        for expert in range(4):
            share = sum(expert in row for row in chosen) / len(tokens)
            want += 4 * share * np.mean([row[expert] for row in chances])
    assert found.item() == pytest.approx(want, rel=1e-4)
    found.backward()
    assert all(router.weight.grad.abs().max() > 0 for router in routers.values())
    with balanced(tiny_deepseek(), IS_TOKEN, 0.5) as balance_loss:
        assert balance_loss() is None  # a bias keeps its experts in use


def test_the_balance_loss_keeps_experts_of_a_softmax_router_in_use():
    found = {}
    for factor in (0.0, 0.05):
        model = build(SCHEMA, BackboneConfig(family="mixtral", hidden=32, layers=2, experts=8))
        config = PretrainingConfig(steps=150, batch=32, questions=32, balance_loss=factor)
        fit(model, SyntheticRecords(SCHEMA, questions=32, seed=1), config, lambda done, total: None)
        layers = router_statistics(model, of_records(SCHEMA, 2048))
        found[factor] = min(layer.entropy for layer in layers)
    assert found[0.05] > found[0.0]
