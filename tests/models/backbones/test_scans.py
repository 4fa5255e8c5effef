import inspect
from types import ModuleType

import pytest
import torch
from transformers import DynamicCache
from transformers.models.granitemoehybrid import modeling_granitemoehybrid
from transformers.models.kimi_linear import modeling_kimi_linear

from confide.models.backbones import scans
from confide.models.backbones.families import named
from confide.models.backbones.family import BackboneConfig

PLACES = {
    "granitemoehybrid": (modeling_granitemoehybrid, "mamba2_chunk_scan"),
    "kimi_linear": (modeling_kimi_linear, "chunk_kimi_delta_attention"),
}
LENGTH = 150  # two chunks and a bit


def model_of(kind, **settings):
    family = named(kind)
    config = family.settings(BackboneConfig(family=kind, hidden=32, layers=4, heads=4)) | settings
    torch.manual_seed(0)
    model = family.model_class()(family.config_class()(**config, vocab_size=60)).eval()
    for parameter in model.parameters():
        parameter.data.mul_(3)  # so that layers move the logits
    return model.requires_grad_(False)


@pytest.fixture
def stock(monkeypatch):
    """Has a kind of model run by transformers' own scan instead of ours."""

    def put(kind):
        module, name = PLACES[kind]
        monkeypatch.setattr(module, name, inspect.unwrap(getattr(module, name)))

    return put


def both(kind, stock, run, **settings):
    model = model_of(kind, **settings)
    ours = run(model)
    stock(kind)
    return ours, run(model)


def ids(rows=3, length=LENGTH):
    return torch.randint(2, 60, (rows, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("kind", PLACES)
def test_a_model_computes_what_transformers_own_scan_does(kind, stock):
    mask = torch.ones(3, LENGTH, dtype=torch.long)
    mask[1, 40:] = 0
    ours, theirs = both(kind, stock, lambda model: model(ids(), attention_mask=mask).logits)
    assert not torch.equal(ours, theirs)  # else it is not ours that ran
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert theirs.std() > 0.1


@pytest.mark.parametrize("limits", [(0.0, float("inf")), (0.5, 0.8)])
def test_the_steps_of_mamba2_are_limited_as_in_transformers(limits, stock):
    ours, theirs = both(
        "granitemoehybrid", stock, lambda model: model(ids()).logits, time_step_limit=limits, mamba_n_groups=2
    )
    assert not torch.equal(ours, theirs)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", PLACES)
def test_a_text_is_written_on_from_a_cache_as_by_transformers_own_scan(kind, stock):
    def write(model):
        cache = DynamicCache(config=model.config)
        for part in ids().split((100, 49, 1), dim=1):
            last = model(part, cache=cache, use_cache=True).logits
        return last

    ours, theirs = both(kind, stock, write)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", PLACES)
def test_gradients_by_the_embedding_are_those_of_transformers_own_scan(kind, stock):
    def gradient(model):
        states = model.get_input_embeddings()(ids()).requires_grad_()
        return torch.autograd.grad(model(inputs_embeds=states).logits.square().sum(), states)[0]

    ours, theirs = both(kind, stock, gradient)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


@pytest.mark.parametrize("kind", PLACES)
def test_bfloat16_comes_back_as_bfloat16(kind, stock):
    ours, theirs = both(kind, stock, lambda model: model.bfloat16()(ids()).logits)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), theirs.float(), rtol=0.1, atol=0.1 * float(theirs.abs().max()))


@pytest.mark.parametrize("kind", PLACES)
def test_a_function_is_replaced_once(kind):
    module, name = PLACES[kind]
    model_of(kind)
    before = getattr(module, name)
    model_of(kind)
    assert getattr(module, name) is before
    with pytest.raises(ValueError, match="packed sequences"):
        before(torch.zeros(1, 2, 1, 1), seq_idx=torch.zeros(1, 2))


def test_other_devices_and_packed_texts_are_left_to_transformers():
    module = ModuleType("modelling")
    module.scan = lambda first, **settings: "theirs"

    def ours(first, **settings):
        return "ours"

    for _ in range(2):
        scans._replace(module, "scan", ours)
    assert module.scan(torch.zeros(1), seq_idx=None) == "ours"
    assert module.scan(torch.zeros(1, device="meta")) == "theirs"
    assert module.scan(torch.zeros(1), seq_idx=torch.zeros(1)) == "theirs"
    assert module.scan(torch.zeros(1), cu_seqlens=torch.zeros(1)) == "theirs"
    assert inspect.unwrap(module.scan)(torch.zeros(1)) == "theirs"
