import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.loading import build
from confide.models.backbones.pretraining import MixedRecords
from confide.models.backbones.text_pretraining import build_text, up_to_the_last
from confide.models.compression.distilling import (
    DistillingConfig,
    PooledStates,
    Words,
    learn,
    loss_of_words,
    ridge,
)
from confide.models.errors import InvalidCompression
from confide.models.heads import PooledHead
from confide.models.records import RecordSchema
from confide.models.records.fields import FlagField, NumericField
from confide.models.records.vocabularies import COMMANDS, character_tokenizer

SMALL = BackboneConfig(hidden=32, experts=4, max_tokens=32)
SCHEMA = RecordSchema(
    numeric=(NumericField("age", (20.0, 40.0, 60.0)), NumericField("TSH", (0.4, 4.0))), flags=(FlagField("sick"),)
)


def test_a_ridge_is_least_squares_on_rows_more():
    rng = np.random.default_rng(1)
    inputs, wanted = rng.normal(size=(40, 5)).astype(np.float32), rng.normal(size=(40, 3)).astype(np.float32)
    longer = np.concatenate([inputs, math.sqrt(2.0) * np.eye(5)]), np.concatenate([wanted, np.zeros((5, 3))])
    found = ridge(torch.from_numpy(inputs), torch.from_numpy(wanted), 2.0)
    np.testing.assert_allclose(found.numpy(), np.linalg.lstsq(*longer, rcond=None)[0], rtol=1e-4, atol=1e-5)


def test_a_ridge_of_inputs_that_repeat_each_other_is_finite():
    inputs = torch.ones(10, 4)
    assert bool(ridge(inputs, torch.ones(10, 2), 1e-3).isfinite().all())


@pytest.fixture(scope="module")
def pair():
    """Two models that write, and rows that both read."""
    tokenizer = character_tokenizer(COMMANDS)
    models = [build_text(tokenizer, None, BackboneConfig(hidden=32, experts=4, max_tokens=32, seed=n)) for n in (1, 2)]
    texts = [f"{a}+{b}={a + b}" for a in range(9) for b in range(4)]
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] for text in texts]
    return *models, [(row, [place >= 3 for place in range(len(row))]) for row in rows]


@pytest.mark.parametrize("of_text", [0.0, 0.3, 1.0])
def test_the_loss_of_words_is_that_of_hinton(pair, of_text):
    model, teacher, rows = pair
    config = DistillingConfig(of_text=of_text, temperature=3.0, batch_tokens=60)
    lesson = Words(model, teacher, rows, config)
    ids, is_learned = lesson.batch()
    plain, apart, words = 0.0, 0.0, 0
    with torch.no_grad():
        for row, learned in zip(ids, is_learned, strict=True):
            own, theirs = (each(row[None]).logits[0].double() for each in (model, teacher))
            for place in learned.nonzero()[:, 0].tolist():
                words += 1
                plain -= float(F.log_softmax(own[place - 1], 0)[row[place]])
                p, q = F.softmax(theirs[place - 1] / 3, 0), F.log_softmax(own[place - 1] / 3, 0)
                apart += float((p * (p.log() - q)).sum())
    want = of_text * plain / words + (1 - of_text) * 9 * apart / words
    assert lesson.loss(ids, is_learned).item() == pytest.approx(want, rel=1e-4)
    assert loss_of_words(model, [(ids, is_learned)]) == pytest.approx(plain / words, rel=1e-4)


def test_a_model_that_learns_of_itself_has_nothing_to_learn(pair):
    model, _, rows = pair
    lesson = Words(model, model, rows, DistillingConfig(of_text=0.0))
    assert lesson.loss(*lesson.batch()).item() == pytest.approx(0.0, abs=1e-6)


def records(seed=1):
    return MixedRecords((SCHEMA,), SCHEMA, questions=1, seed=seed)


def lens():
    return PooledHead(torch.zeros(64), torch.eye(64))


def test_pooled_states_are_learned():
    teacher = build(SCHEMA, BackboneConfig(hidden=32, experts=4, seed=1)).eval()
    with torch.no_grad():  # states that are no linear function of the words
        for weight in teacher.model.layers.parameters():
            weight.mul_(10 if weight.ndim > 1 else 1)
    model = build(SCHEMA, BackboneConfig(hidden=32, experts=4, seed=2))
    lesson = PooledStates(model, teacher, lens(), records(), 32)
    before, told = lesson.lost(), []
    assert 0.001 < before < 1
    config = DistillingConfig(steps=60)
    learn(lesson, [*model.parameters(), *lesson.map.parameters()], config, lambda *at: told.append(at), routed=model)
    assert lesson.lost() < 0.7 * before
    assert told == [(step, 60) for step in range(1, 61)]
    assert all(weight.grad is None for weight in teacher.parameters())


def test_of_a_model_that_is_the_whole_one_nothing_is_lost():
    teacher = build(SCHEMA, SMALL).eval()
    lesson = PooledStates(teacher, teacher, lens(), records(), 32)
    assert lesson.lost() == pytest.approx(0.0, abs=1e-3)
    loss = lesson.loss(*lesson.batch()).item()
    assert loss < 0.05 * float(torch.cat([lesson._wanted(lesson.batch()[0]) for _ in range(9)]).var(0).mean())


def test_routers_are_moved_only_where_that_is_wanted():
    teacher = build(SCHEMA, SMALL).eval()
    for routed in (True, False):
        model = build(SCHEMA, SMALL)
        lesson = PooledStates(model, teacher, lens(), records(), 32)
        learn(
            lesson, model.parameters(), DistillingConfig(steps=3), lambda done, total: None,
            routed=model if routed else None,
        )  # fmt: skip
        bias = model.model.layers[1].mlp.gate.e_score_correction_bias
        assert bool(bias.any()) == routed


def test_padding_is_what_stands_behind_the_last_token():
    ids = torch.tensor([[3, 0, 4, 0, 0], [0, 0, 0, 0, 0], [1, 2, 3, 4, 5]])
    assert up_to_the_last(ids).tolist() == [[True] * 3 + [False] * 2, [False] * 5, [True] * 5]


@pytest.mark.parametrize(
    "settings", [{"steps": 0}, {"batch": 0}, {"lr": 0.0}, {"lr": math.inf}, {"temperature": 0.0}, {"of_text": 1.1}]
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(InvalidCompression, match="need"):
        DistillingConfig(**settings)
