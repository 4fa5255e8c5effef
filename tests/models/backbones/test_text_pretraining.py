import pytest
import torch

from confide.models.backbones import loading
from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.text_pretraining import TextPretrainingConfig, build_text, drawn, fit_text, pretrain_text
from confide.models.errors import InvalidPretraining
from confide.models.heads import foretell
from confide.models.records.vocabularies import COMMANDS, character_tokenizer

SMALL = BackboneConfig(hidden=32, experts=4, max_tokens=32)


@pytest.fixture(scope="module")
def tokenizer():
    return character_tokenizer(COMMANDS)


def rows_of(tokenizer, *texts):
    """Texts whose first three tokens are shown."""
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] for text in texts]
    return [(row, [place >= 3 for place in range(len(row))]) for row in rows]


@pytest.fixture
def rows(tokenizer):
    return rows_of(tokenizer, *(f"{a}+{b}={a + b}" for a in range(10) for b in range(10)))


def loss(model, rows):
    total = 0.0
    with torch.no_grad():
        for ids, learned in rows:
            total += float(foretell(model, torch.tensor([ids]), torch.tensor([learned])).by_record())
    return total / len(rows)


@pytest.mark.parametrize("structure", [None, "formulas"])
def test_training_lowers_the_loss_of_what_is_learned(tokenizer, rows, structure):
    model = build_text(tokenizer, structure, SMALL)
    before = loss(model, rows)
    fit_text(model, rows, TextPretrainingConfig(tokens=12_000, batch_tokens=300), lambda done, total: None)
    assert loss(model, rows) < before - 1


def test_one_step_is_that_of_the_mean_loss_of_what_is_learned(tokenizer, rows):
    """AdamW's first step moves every weight by the rate against the sign of its gradient, here taken by another way."""
    config = TextPretrainingConfig(tokens=1, batch_tokens=10_000, bias_step=0.0)
    model, other = (build_text(tokenizer, None, SMALL) for _ in range(2))
    fit_text(model, rows[:20], config, lambda done, total: None)
    found = [foretell(other, torch.tensor([ids]), torch.tensor([learned])) for ids, learned in rows[:20]]
    torch.cat([each.losses_N for each in found]).mean().backward()
    moved = model.model.layers[0].self_attn.o_proj.weight - other.model.layers[0].self_attn.o_proj.weight * (
        1 - config.lr / 50 * 0.02  # weight decay, at the first of 50 steps of warm-up
    )
    gradient = other.model.layers[0].self_attn.o_proj.weight.grad
    clear = gradient.abs() > gradient.abs().median()
    assert torch.equal(moved.sign()[clear], -gradient.sign()[clear])
    torch.testing.assert_close(moved.abs()[clear].median().item(), config.lr / 50, rtol=1e-2, atol=0)


@pytest.mark.slow
def test_a_folder_is_the_same_each_time_and_can_be_loaded(tokenizer, rows, tmp_path):
    config, told = TextPretrainingConfig(tokens=2000, batch_tokens=300), []
    first, second = (
        pretrain_text(
            rows, tokenizer, tmp_path / name, structure="formulas", backbone=SMALL, config=config,
            progress=lambda done, total: told.append((done, total)),
        )
        for name in ("first", "second")
    )  # fmt: skip
    assert first == second == loading.load_text(tmp_path / "first", expected_hash=first).hash
    half = len(told) // 2
    assert told[:half] == told[half:] == sorted(told[:half])
    assert told[-1] == (2000, 2000)
    described = loading.describe(tmp_path / "first")
    assert (described.reads, described.experts) == ("text", 4)
    other = TextPretrainingConfig(tokens=2000, batch_tokens=300, seed=2)
    assert pretrain_text(rows, tokenizer, tmp_path / "other", backbone=SMALL, config=other) != first
    with pytest.raises(FileExistsError):
        pretrain_text(rows, tokenizer, tmp_path / "first", backbone=SMALL, config=config)


def test_rows_that_teach_nothing_are_refused(tokenizer, tmp_path):
    silent = [([5, 6, 7], [False, False, False]), ([5], [True])]  # nothing foretells a first token
    with pytest.raises(InvalidPretraining, match="nothing"):
        pretrain_text([], tokenizer, tmp_path / "none", backbone=SMALL)
    with pytest.raises(InvalidPretraining):
        pretrain_text(silent, tokenizer, tmp_path / "none", backbone=SMALL)
    with pytest.raises(InvalidPretraining, match="33 tokens, and the model reads 32"):
        pretrain_text([([5] * 33, [True] * 33)], tokenizer, tmp_path / "none", backbone=SMALL)
    with pytest.raises(InvalidPretraining, match="no structure reader 'music'"):
        pretrain_text([([5] * 3, [True] * 3)], tokenizer, tmp_path / "none", structure="music", backbone=SMALL)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "wrong", [{"tokens": 0}, {"batch_tokens": 0}, {"lr": 0.0}, {"lr": float("nan")}, {"bias_step": 2.0}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(InvalidPretraining):
        TextPretrainingConfig(**wrong)


def test_nothing_is_drawn_of_no_rows():
    with pytest.raises(InvalidPretraining, match="no rows to draw from"):
        next(drawn([], TextPretrainingConfig()))
