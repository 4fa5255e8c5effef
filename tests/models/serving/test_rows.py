import copy
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from confide.kernels.formats import Int8Row
from confide.kernels.install import quantise
from confide.kernels.linear import multiply_in_integers, packed_stacks, quantise_linear
from confide.models.backbones.families import FAMILIES
from confide.models.backbones.packing import linear_layers
from confide.models.heads import word_logits
from confide.models.serving.rows import Row, Rows

from ..backbones.test_families import COMMON, SETTINGS
from ..tiny import VOCABULARY

# Of the others, some layers remember a window of tokens or a state.
SHARE = {"llama", "deepseek_v2", "deepseek_v3", "mixtral, no window", "qwen2, no window"}
KINDS = SETTINGS | {
    "mixtral, no window": SETTINGS["mixtral"] | {"sliding_window": None},
    "qwen2, no window": {},
}


def model_of(kind):
    family = FAMILIES[kind.partition(",")[0]]
    model = family.model_class()(family.config_class()(**COMMON | KINDS[kind])).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.ndim > 1 and "conv1d" not in name and "A_log" not in name:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * tensor.shape[-1] ** -0.5)
    return model


@contextmanager
def answering(_):
    yield


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_texts_of_every_family_are_those_of_reading_everything_anew(kind):
    model, rng = model_of(kind), np.random.default_rng(1)
    rows = Rows(SimpleNamespace(adapted=SimpleNamespace(model=model), answering=answering))
    start = rng.integers(1, VOCABULARY, 9).tolist()
    rows.keep((1.0,), start)
    assert len(rows._prefixes) == (kind in SHARE)
    prompts = [rng.integers(1, VOCABULARY, size).tolist() for size in (3, 14, 1, 22)]
    prompts[1][:9] = start
    longest, written = (9, 4, 12, 6), [[] for _ in prompts]
    texts: dict[int, Row] = {}
    for step in range(20):
        if step % 2 == 0 and step // 2 < len(prompts):  # a text begins at every other step
            place, row = step // 2, Row((1.0,))
            rows.begin(row, prompts[place])
            texts[place] = row
        places = {id(row): place for place, row in texts.items()}
        for go_on in (rows.read, rows.step):
            for row, logits in go_on():
                row.last = int(logits.argmax())
                written[places[id(row)]].append(row.last)
        ended = [place for place in texts if len(written[place]) == longest[place]]
        rows.end([texts.pop(place) for place in ended])
        if kind in SHARE:
            assert len(rows._groups) <= 1
    assert not len(rows)
    for prompt, found in zip(prompts, written, strict=True):
        ids = list(prompt)
        for token in found:
            with torch.no_grad():
                states = model.model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state
                logits = word_logits(model, states[:, -1])[0]
            assert int(logits.argmax()) == token
            ids.append(token)


def held_in_int8(model, kind):
    """What `compose` makes of the model of a family."""
    family = FAMILIES[kind.partition(",")[0]]
    banks = family.banks(model) if family.experts is not None else {}
    if banks:
        quantise(model, Int8Row.quantised)
    quantise_linear(model, [*linear_layers(family, model), "lm_head"], Int8Row.quantised)
    multiply_in_integers(model)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_in_int8_every_family_says_nearly_the_same_together_as_alone(kind):
    plain = model_of(kind)
    packed = held_in_int8(copy.deepcopy(plain), kind)
    stacks = [type(stack).__name__ for module in packed.modules() for stack in packed_stacks(module)]
    assert len(stacks) > 2
    assert {*stacks} == {"Int8Both"}
    rng, rows = (
        np.random.default_rng(1),
        Rows(SimpleNamespace(adapted=SimpleNamespace(model=packed), answering=answering)),
    )
    texts = {
        id(row): (row, rng.integers(1, VOCABULARY, size).tolist())
        for row, size in ((Row((1.0,)), n) for n in (3, 14, 5))
    }
    for row, ids in texts.values():
        rows.begin(row, ids)
    errors = []
    for _ in range(8):
        for go_on in (rows.read, rows.step):
            for row, logits in go_on():
                _, ids = texts[id(row)]
                with torch.inference_mode():
                    alone, exact = (
                        word_logits(
                            each, each.model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[:, -1]
                        )[0]
                        for each in (packed, plain)
                    )
                torch.testing.assert_close(logits, alone, rtol=0, atol=0.02 * float(alone.std()))
                errors.append(float((logits - exact).norm() / exact.norm()))
                row.last = int(logits.argmax())
                ids.append(row.last)
    assert 0 < np.median(errors) < 0.03


@pytest.mark.parametrize("kind", KINDS)
def test_which_families_share_a_cache(kind):
    model = model_of(kind)
    rows = Rows(SimpleNamespace(adapted=SimpleNamespace(model=model), answering=answering))
    for ids in ([1, 2, 3], [4, 5]):
        rows.begin(Row((1.0,)), ids)
        rows.read()
    assert (len(rows._groups) == 1) == (kind in SHARE)
