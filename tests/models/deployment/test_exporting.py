"""Graphs beside the models that they were made of: every family, every rule of routing, step by step."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from confide.kernels.install import is_bank
from confide.models.backbones import checkpoints, segments
from confide.models.backbones.families import named
from confide.models.backbones.family import BackboneConfig
from confide.models.deployment import deploying, exporting
from confide.models.deployment.onnx_model import OnnxModel
from confide.models.deployment.segments import read_in_segments
from confide.models.deployment.torch_model import Embeds
from confide.models.errors import DeploymentRefused

from ..tiny import tiny_deepseek

pytestmark = pytest.mark.slow


def stock(model, folder):
    """The model as transformers itself loads it."""
    checkpoints.save_model(model, folder / "model")
    return AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()


def built(family, **sizes):
    torch.manual_seed(0)
    model = named(family).build(50, BackboneConfig(family=family, hidden=64, max_tokens=256, **sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.ndim > 1 else 1)  # so that what a token sees counts
    return model


def written(model, folder, weights, ids, first, tables=None, places=None):
    """Logits behind rows of tokens, of which the first are read together and the others one by one."""
    cache = exporting.remembered(model)
    exporting.export_writer(model, tables, cache, folder, weights)
    graph = OnnxModel(folder, SimpleNamespace(cache=cache, request=SimpleNamespace(picture=None)), 1)
    given = ids.numpy()
    place = (lambda at: None) if places is None else (lambda at: places[:, at].numpy())
    logits, known = graph.next(given[:, :first], place(slice(first)), None)
    for token in range(first, ids.shape[1]):
        logits, known = graph.next(given[:, token : token + 1], place(slice(token, token + 1)), known)
    return torch.from_numpy(logits)


@pytest.mark.parametrize("family", deploying.GRAPHS)
def test_a_graph_writes_what_the_model_writes(family, tmp_path):
    model, ids = built(family), torch.randint(2, 50, (2, 9))
    with torch.no_grad():
        want = model(input_ids=ids, use_cache=False).logits[:, -1]
    found = written(stock(model, tmp_path), tmp_path, "float32", ids, 5)
    torch.testing.assert_close(found, want, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["deepseek_v3", "llama"])
def test_bytes_are_near(family, tmp_path):
    model, ids = built(family), torch.randint(2, 50, (16, 6))
    with torch.no_grad():
        want = model(input_ids=ids, use_cache=False).logits[:, -1]
    found = written(stock(model, tmp_path), tmp_path, "int8", ids, 6)
    assert float((found - want).norm() / want.norm()) < 0.02
    assert bool((found.argmax(1) == want.argmax(1)).float().mean() > 0.9)
    assert not torch.equal(found, want)


def by_a_loop(bank, hidden, chosen, weights):
    """What experts give in bytes, token by token."""

    def in_bytes(x):
        blocks = torch.nn.functional.pad(x, (0, -x.shape[-1] % 32)).unflatten(-1, (-1, 32))
        step = blocks.abs().amax(-1, keepdim=True) / 127
        return ((blocks / step.clamp_min(1e-12)).round() * step).flatten(-2)[..., : x.shape[-1]]

    found = torch.zeros_like(hidden)
    for token, own in enumerate(hidden):
        for expert, weight in zip(chosen[token], weights[token], strict=True):
            gate, up = (in_bytes(bank.gate_up_proj[expert]) @ in_bytes(own)).chunk(2)
            found[token] += weight * (in_bytes(bank.down_proj[expert]) @ in_bytes(torch.nn.functional.silu(gate) * up))
    return found


@pytest.mark.parametrize("make", [partial(built, "deepseek_v3"), partial(tiny_deepseek, experts=8, groups=4)])
def test_a_graph_in_bytes_computes_what_bytes_say(make, tmp_path):
    model, ids = make(), torch.randint(2, 50, (16, 6))
    plain = stock(model, tmp_path)
    with torch.no_grad():
        for bank in [module for module in model.modules() if is_bank(module)]:
            bank.forward = partial(by_a_loop, bank)
        want = model(input_ids=ids, use_cache=False).logits[:, -1]
        with exporting.with_banks(plain, exporting.RoundedExperts):
            same = plain(input_ids=ids, use_cache=False).logits[:, -1]
    found = written(plain, tmp_path, "int8", ids, 6)
    torch.testing.assert_close(same, want, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(found, want, atol=2e-5, rtol=1e-5)


def test_experts_are_chosen_by_groups_in_a_graph_too(tmp_path):
    model, ids = tiny_deepseek(experts=8, groups=4), torch.randint(2, 60, (3, 7))
    for layer in model.model.layers[1:]:
        torch.nn.init.normal_(layer.mlp.gate.e_score_correction_bias)
    with torch.no_grad():
        want = model(input_ids=ids, use_cache=False).logits[:, -1]
    # A width of 24 and 32 numbers: neurons are filled up to whole blocks.
    found = written(stock(model, tmp_path), tmp_path, "int8", ids, 7)
    assert float((found - want).norm() / want.norm()) < 0.02


def test_attention_in_segments_goes_into_a_graph(tmp_path):
    model, ids = built("deepseek_v3"), torch.randint(2, 50, (2, 70))
    plain = stock(model, tmp_path)
    read_in_segments(plain, 8, 2)
    segments.read_in_segments(model, segments.Segments(8, 2))
    with torch.no_grad():
        want = model(input_ids=ids, use_cache=False).logits[:, -1]
    found = written(plain, tmp_path, "float32", ids, 61)
    torch.testing.assert_close(found, want, atol=2e-5, rtol=1e-5)


def test_tables_of_structure_go_into_a_graph(tmp_path):
    model, ids = built("deepseek_v3"), torch.randint(2, 50, (2, 6))
    weight = torch.randn(64, 7)
    places = torch.randint(0, 8, (2, 6, 3))  # 7 is nowhere
    with torch.no_grad():
        embedded = Embeds(model.get_input_embeddings(), weight)(ids, places)
        columns = torch.cat([weight, torch.zeros(64, 1)], 1)
        by_hand = model.get_input_embeddings()(ids) + sum(columns.T[places[..., table]] for table in range(3))
        torch.testing.assert_close(embedded, by_hand)
        want = model(inputs_embeds=by_hand, use_cache=False).logits[:, -1]
    found = written(stock(model, tmp_path), tmp_path, "float32", ids, 4, exporting.Tables(weight, 3), places)
    torch.testing.assert_close(found, want, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["granitemoehybrid", "kimi_linear"])
def test_a_state_is_not_remembered_by_a_graph(family):
    with pytest.raises(DeploymentRefused, match="--target torch"):
        exporting.remembered(built(family))


def test_banks_are_back_when_the_graph_is_made(tmp_path):
    model = built("deepseek_v3")
    before = dict(model.named_modules())
    with exporting.as_graph(model, "int8"):
        assert any(isinstance(module, exporting.ExpertsIn8Bits) for module in model.modules())
    assert dict(model.named_modules()) == before


def test_what_is_packed_comes_back_within_half_a_step():
    weight = torch.randn(3, 5, 70)
    codes, scale = exporting._packed(weight)
    assert codes.shape == (3, 5, 96)
    assert scale.shape == (3, 5, 3)
    back = (codes.float() - 128) * scale.repeat_interleave(32, 2)
    assert torch.equal(exporting.rounded(weight), back[..., :70])
    assert bool(((back[..., :70] - weight).abs() <= scale.repeat_interleave(32, 2)[..., :70] * 0.5001).all())
    assert bool((back[..., 70:] == 0).all())
    assert np.array_equal(codes.numpy().min(), codes.numpy().clip(1).min())  # symmetric: 0 would be -128
