import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.loading import build, load
from confide.models.backbones.pretraining import (
    _SETTLING,
    MixedRecords,
    PretrainingConfig,
    SyntheticRecords,
    fit,
    pretrain,
)
from confide.models.backbones.public_tokens import of_records
from confide.models.errors import InvalidPretraining, InvalidSchema
from confide.models.evaluation.router_statistics import router_statistics
from confide.models.heads.pooling import pooled
from confide.models.records.fields import CategoricalField, FlagField, NumericField, RecordSchema, united

SCHEMA = RecordSchema(
    (NumericField("TSH", (0.4, 1.0, 2.0, 4.0)), NumericField("age", (18.0, 65.0))),
    (FlagField("sick"),),
    (CategoricalField("sex", ("F", "M")),),
)
SMALL = BackboneConfig(hidden=32, experts=4)
SHORT = PretrainingConfig(steps=3, batch=16, questions=8, moment_records=600)


def test_equal_settings_give_the_same_bytes(tmp_path):
    first = pretrain(SCHEMA, tmp_path / "a", backbone=SMALL, config=SHORT)
    assert first == pretrain(SCHEMA, tmp_path / "b", backbone=SMALL, config=SHORT)
    other = PretrainingConfig(steps=3, batch=16, questions=8, moment_records=600, seed=2)
    assert first != pretrain(SCHEMA, tmp_path / "c", backbone=SMALL, config=other)


def test_biases_that_balance_the_experts_are_written_with_the_weights_and_count_in_the_hash(tmp_path):
    balanced = pretrain(SCHEMA, tmp_path / "a", backbone=SMALL, config=SHORT)
    bias = load(tmp_path / "a").model.model.layers[1].mlp.gate.e_score_correction_bias
    assert bias.any()
    assert bias.abs().max() <= SHORT.bias_step * (SHORT.steps + (_SETTLING + 1) / 2) + 1e-6  # steps fall to 0
    stays = replace(SHORT, bias_step=0.0)
    assert balanced != pretrain(SCHEMA, tmp_path / "b", backbone=SMALL, config=stays)
    assert not load(tmp_path / "b").model.model.layers[1].mlp.gate.e_score_correction_bias.any()


def test_an_expert_that_training_left_behind_is_in_use_when_the_biases_have_settled():
    model = build(SCHEMA, SMALL)
    gate = model.model.layers[1].mlp.gate
    gate.e_score_correction_bias[2] = -0.5  # far more than one step of training gives back
    weights = {name: tensor.clone() for name, tensor in model.named_parameters()}

    def unused():
        (layer,) = router_statistics(model.eval(), of_records(SCHEMA, 4096))
        return layer.unused

    assert unused() == (2,)
    config = replace(SHORT, steps=1, lr=1e-12)
    fit(model, SyntheticRecords(SCHEMA, questions=8, seed=1), config, lambda done, total: None)
    assert unused() == ()
    for name, tensor in model.named_parameters():
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=1e-9)


def test_synthetic_histories_are_one_to_so_many_visits_each_with_its_end():
    schema = replace(SCHEMA, visits=3)
    source = SyntheticRecords(schema, questions=8, seed=1)
    ids, answers = source.batch(300)
    words, seen, stayed = schema.words(), set(), []
    for row in ids.tolist():
        own = [words[token] for token in row if token]
        assert own[-1] == "<eos>"
        visits = " ".join(own[:-1]).split("<eos>")
        seen.add(len(visits))
        for visit in visits:
            names = [word.partition("=")[0] for word in visit.split()]
            assert sorted(name for name in names if name != "sick") == ["TSH", "age", "sex"]
            assert names.count("sick") <= 1
        stayed += [one.split()[0] == other.split()[0] for one, other in itertools.pairwise(visits)]
    assert seen == {1, 2, 3}
    assert 0.3 < np.mean(stayed) < 1  # much of a visit stays in the next
    assert answers.shape == (300, 8)


def test_questions_ask_about_the_last_visit_the_mean_of_all_or_their_difference():
    source = SyntheticRecords(replace(SCHEMA, visits=3), questions=30, seed=1)
    codes, visits = source._records(40)
    got = source._answers(codes, visits)
    for record, count in enumerate(visits):
        scores = [source._scores(codes[record : record + 1, visit])[0] for visit in range(count)]
        mean = np.mean(scores, axis=0)
        want = np.choose(source._of_last + 2 * (source._of_mean == 1), [0, scores[-1], mean])
        want = np.where(source._of_mean == -1, scores[-1] - mean, want)
        np.testing.assert_allclose(got[record], want)
    assert {*zip(source._of_last.tolist(), source._of_mean.tolist(), strict=True)} == {(1, 0), (0, 1), (1, -1)}


def test_a_record_that_is_one_visit_is_drawn_as_ever():
    """Backbones of plain records keep their hash."""
    ids, answers = SyntheticRecords(SCHEMA, questions=40, seed=3).batch(20)
    assert (int(ids.sum()), int(answers.sum())) == (530, 249)


def test_progress_counts_every_step_and_threads_are_put_back(tmp_path):
    seen, threads = [], torch.get_num_threads()
    pretrain(
        SCHEMA, tmp_path / "a", backbone=SMALL, config=SHORT, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert torch.get_num_threads() == threads


def test_a_cancelled_run_leaves_nothing_behind(tmp_path):
    def cancel(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(SCHEMA, tmp_path / "a", backbone=SMALL, config=SHORT, progress=cancel)
    assert list(tmp_path.iterdir()) == []


def test_published_moments_whiten_synthetic_records(tmp_path):
    config = PretrainingConfig(steps=3, batch=16, questions=8, moment_records=4096, shrink=1e-3)
    pretrain(SCHEMA, tmp_path / "a", backbone=SMALL, config=config)
    backbone = load(tmp_path / "a")
    ids, _ = SyntheticRecords(SCHEMA, questions=8, seed=99).batch(4096)
    with torch.no_grad():
        white = (pooled(backbone.model, ids) - backbone.center) @ backbone.whiten
    assert white.mean(0).abs().max() < 1  # within a standard deviation; batches differ in their marginals
    # Two numbers, a flag and a category vary in few directions: those come out near unit variance, all others near 0.
    variances = torch.linalg.eigvalsh(white.T.cov())
    assert 0.5 < variances[-5:].mean() < 2
    assert torch.allclose(backbone.whiten, backbone.whiten.T, atol=1e-5)


def test_synthetic_records_are_what_encode_makes_of_rendered_ones():
    ids, answers = SyntheticRecords(SCHEMA, questions=8, seed=5).batch(300)
    words = SCHEMA.words()
    lines = [" ".join(words[i] for i in row if i) for row in ids.tolist()]
    np.testing.assert_array_equal(SCHEMA.encode(lines)[:, : ids.shape[1]], ids)
    names = [field.name for field in SCHEMA.fields()]
    for line in lines[:50]:
        fields = [word.partition("=")[0] for word in line.split()]
        assert fields == [name for name in names if name in fields]
        assert {"TSH", "age", "sex"} <= set(fields)
    assert answers.shape == (300, 8)


def test_every_word_of_the_vocabulary_is_practised():
    ids, _ = SyntheticRecords(SCHEMA, questions=8, seed=5).batch(3000)
    assert set(np.unique(ids)) | {1} >= set(range(2, len(SCHEMA.words()))) | {0}


def test_a_record_without_words_is_its_end():
    ids, _ = SyntheticRecords(RecordSchema(flags=(FlagField("x"),)), questions=4, seed=1).batch(200)
    assert set(ids.flatten().tolist()) == {1, 2}


def test_answers_are_functions_of_the_record_and_neither_rare_nor_usual():
    source = SyntheticRecords(SCHEMA, questions=32, seed=5)
    ids, answers = source.batch(4000)
    by_record = {}
    for row, answer in zip(ids.tolist(), answers.tolist(), strict=True):
        assert by_record.setdefault(tuple(row), answer) == answer
    shares = answers.mean(0)
    assert 0.05 < shares.median() < 0.6


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"lr": 0.0}, {"shrink": float("nan")}, {"moment_records": 1}, {"bias_step": -0.1}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(InvalidPretraining):
        PretrainingConfig(**wrong)


HEART = RecordSchema((NumericField("BMI", (18.5, 25.0)), NumericField("age", (18.0, 65.0))), (FlagField("smoker"),))
WHOLE = united([SCHEMA, HEART])


def names_in(ids):
    """Names of the fields in each record, and the visits that it has."""
    words = WHOLE.words()
    lines = [[words[token] for token in row if token] for row in ids.tolist()]
    return [({word.partition("=")[0] for word in line} - {"<eos>"}, line.count("<eos>")) for line in lines]


def test_records_of_one_study_are_drawn_as_ever():
    alone, mixed = (
        SyntheticRecords(SCHEMA, questions=8, seed=3),
        MixedRecords([SCHEMA], SCHEMA, questions=8, seed=3),
    )
    for size in (20, 7):
        for one, other in zip(alone.batch(size), mixed.batch(size), strict=True):
            assert torch.equal(one, other)


def test_a_part_draws_the_same_records_in_the_words_of_the_whole():
    own, answers = SyntheticRecords(HEART, questions=8, seed=3).batch(200)
    ids, same = SyntheticRecords(HEART, WHOLE, questions=8, seed=3).batch(200)
    mine, words = HEART.words(), WHOLE.words()
    assert [[words[token] for token in row] for row in ids] == [[mine[token] for token in row] for row in own]
    assert torch.equal(answers, same)


def test_a_record_of_several_studies_is_of_one_and_is_asked_its_questions_alone():
    ids, answers = MixedRecords([SCHEMA, HEART], WHOLE, questions=8, seed=3).batch(600)
    assert answers.shape == (600, 16)
    of_heart = 0
    for (names, ends), row in zip(names_in(ids), answers, strict=True):
        is_heart = "BMI" in names
        of_heart += is_heart
        assert {"BMI", "age"} <= names <= {"BMI", "age", "smoker"} or {"TSH", "age", "sex"} <= names <= {
            "TSH", "age", "sex", "sick"
        }  # fmt: skip
        assert ends == 0
        assert row.isnan().tolist() == [is_heart] * 8 + [not is_heart] * 8
    assert 240 < of_heart < 360  # of each study about half
    assert set(answers[~answers.isnan()].tolist()) == {0, 1}


def test_histories_of_several_studies_have_the_visits_of_theirs():
    parts = [replace(SCHEMA, visits=2), replace(HEART, visits=4)]
    ids, _ = MixedRecords(parts, united(parts), questions=4, seed=1).batch(400)
    found = {("BMI" in names, visits) for names, visits in names_in(ids)}
    assert found == {(False, 1), (False, 2), *((True, visits) for visits in range(1, 5))}


def test_a_backbone_of_several_studies_has_all_their_words_and_moments_of_their_records(tmp_path):
    config = PretrainingConfig(steps=3, batch=16, questions=8, moment_records=4096, shrink=1e-3)
    digest = pretrain([SCHEMA, HEART], tmp_path / "a", backbone=SMALL, config=config)
    assert digest == pretrain([SCHEMA, HEART], tmp_path / "b", backbone=SMALL, config=config)
    backbone = load(tmp_path / "a")
    assert backbone.schema == WHOLE
    ids, _ = MixedRecords([SCHEMA, HEART], WHOLE, questions=8, seed=99).batch(4096)
    with torch.no_grad():
        white = (pooled(backbone.model, ids) - backbone.center) @ backbone.whiten
    assert white.mean(0).abs().max() < 1
    variances = torch.linalg.eigvalsh(white.T.cov())
    assert 0.5 < variances[-5:].mean() < 2


def test_one_study_in_a_list_gives_the_same_bytes_as_its_schema(tmp_path):
    alone = pretrain(SCHEMA, tmp_path / "a", backbone=SMALL, config=SHORT)
    assert alone == pretrain([SCHEMA], tmp_path / "b", backbone=SMALL, config=SHORT)


def test_answers_that_are_not_asked_move_nothing():
    """The first step is the one that each study's own records give."""
    model, config = build(WHOLE, SMALL), replace(SHORT, steps=1, lr=1e-3, bias_step=0.0)
    source = MixedRecords([SCHEMA, HEART], WHOLE, questions=8, seed=3)
    answer, bias = fit(model, source, config, lambda done, total: None)
    ids, answers = MixedRecords([SCHEMA, HEART], WHOLE, questions=8, seed=3).batch(config.batch)
    start = build(WHOLE, SMALL)
    with torch.no_grad():
        states = pooled(start, ids)
    # From zeros, the first step of Adam is lr / 30 long, against the sign of a gradient: a logit's is 1/2 - answer.
    for part, rows in enumerate((~answers[:, 0].isnan(), ~answers[:, 8].isnan())):
        own = answers[rows][:, 8 * part : 8 * part + 8]
        gradient = states[rows].T @ (0.5 - own)
        want = -gradient.sign() * config.lr / 30
        clear = gradient.abs() > 1e-2
        torch.testing.assert_close(answer[:, 8 * part : 8 * part + 8][clear], want[clear], rtol=1e-2, atol=0)
        clear = (0.5 - own).sum(0).abs() > 0
        want = -(0.5 - own).sum(0).sign() * config.lr / 30
        torch.testing.assert_close(bias[8 * part : 8 * part + 8][clear], want[clear], rtol=1e-2, atol=0)


def test_studies_that_contradict_each_other_get_no_backbone(tmp_path):
    other = RecordSchema((NumericField("age", (18.0, 66.0)),))
    with pytest.raises(InvalidSchema, match="age: two studies describe it differently"):
        pretrain([SCHEMA, other], tmp_path / "a", backbone=SMALL, config=SHORT)
    assert list(tmp_path.iterdir()) == []


def test_routing_of_a_part_is_measured_on_its_words():
    batches = of_records(WHOLE, 2000, parts=[HEART])
    assert {name for ids, _ in batches for names, _ in names_in(ids) for name in names} == {"BMI", "age", "smoker"}
