import numpy as np
import pytest
import torch

from confide.models.backbones.balancing import balanced
from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.loading import load
from confide.models.backbones.pretraining import PretrainingConfig, pretrain
from confide.models.backbones.public_tokens import of_records
from confide.models.evaluation.router_statistics import router_statistics
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
