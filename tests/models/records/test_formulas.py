import numpy as np
import pyarrow as pa
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from confide.models.adapters import AdapterConfig, attach
from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.text_pretraining import TextPretrainingConfig, build_text, fit_text
from confide.models.errors import AnswerRefused, BackboneMismatch
from confide.models.records.formulas import FormulaEncoder, Formulas, FormulaTerms
from confide.models.records.kind import Examples
from confide.models.records.vocabularies import COMMANDS, character_tokenizer

from ..tiny import byte_tokenizer

QUESTION, LINES, ANSWER = "y'+3y=12,y(0)=-8", "k=12/3=4;C=-8-4=-12", "-12e^{-3x}+4"


def terms(**changes):
    return FormulaTerms(**{"question": "question", "derivation": "derivation", "answer": "answer", **changes})


@pytest.fixture(scope="module")
def tokenizer():
    return character_tokenizer(COMMANDS)


def encoder(tokenizer, max_tokens=128, **changes):
    return FormulaEncoder(terms(**changes), tokenizer, max_tokens)


def learned_text(found, ids, mask):
    return "".join(found.texts[token] if is_learned else "_" for token, is_learned in zip(ids, mask, strict=True))


def test_all_behind_the_question_is_learned_but_what_the_engine_writes(tokenizer):
    found = encoder(tokenizer)
    ids, mask = found.encode([QUESTION], [LINES], [ANSWER])
    text = "".join(found.texts[token] for token in ids[0])
    assert text == f"{QUESTION}?{LINES};#{ANSWER}"
    assert ids[0, -1] == tokenizer.eos_token_id
    assert mask[0, -1]
    shown = "_" * (len(QUESTION) + 1)
    assert learned_text(found, ids[0], mask[0]) == f"{shown}k=12/3=_;C=-8-4=___;#{ANSWER}"


def test_without_the_engine_values_are_learned_too(tokenizer):
    found = encoder(tokenizer, engine=False)
    ids, mask = found.encode([QUESTION], [LINES], [ANSWER])
    assert learned_text(found, ids[0], mask[0]) == "_" * (len(QUESTION) + 1) + f"{LINES};#{ANSWER}"


def test_without_a_derivation_the_answer_follows_the_question(tokenizer):
    found = encoder(tokenizer, derivation=None)
    columns = {"question": np.array([QUESTION], dtype=object), "answer": np.array([ANSWER], dtype=object)}
    ids, mask = found.examples(columns, None)
    assert found.told(ids[0], mask[0]) == f"#{ANSWER}"


def test_a_token_is_left_out_of_learning_only_if_the_engine_writes_all_of_it():
    """Words of several characters: ` a` of the byte vocabulary is none of a value, a digit is one."""
    found = encoder(byte_tokenizer())
    ids, mask = found.encode(["q"], ["1+1=2;b a"], ["3"])
    assert learned_text(found, ids[0], mask[0]) == "__1+1=_;b a;#3"


def test_records_are_padded_and_cut(tokenizer):
    found = encoder(tokenizer, max_tokens=20)
    ids, mask = found.encode([QUESTION, "1"], [LINES, "1+1=2"], [ANSWER, "2"])
    assert ids.shape == mask.shape == (2, 20)
    assert found.told(ids[0], mask[0]) == "k=1"
    assert found.told(ids[1], mask[1]) == "1+1=2;#2"
    assert not mask[1][ids[1] == 0].any()


def test_a_record_that_was_cut_can_never_be_right(tokenizer):
    found = encoder(tokenizer, max_tokens=12)
    ids, mask = found.encode(["1"], ["1+1=2"], ["12345"])
    assert found.told(ids[0], mask[0]) == "1+1=2;#123"
    assert not found.is_right("#123", ids[0], mask[0])
    whole = encoder(tokenizer)
    ids, mask = whole.encode(["1"], ["1+1=2"], ["12345"])
    assert whole.is_right("#12345", ids[0], mask[0])


@pytest.mark.parametrize(
    ("written", "is_right"),
    [
        ("k=4;#-12e^{-3x}+4", True),
        ("#4-12e^{-3x}", True),
        ("#4-\\frac{12}{e^{3x}}", True),
        ("-12e^{-3x}+4", False),  # nothing says that this is the answer
        ("#4#5", False),  # the last one counts
        ("#5#4-12e^{-3x}", True),
        ("#__import__('os')", False),
        ("#", False),
        ("", False),
    ],
)
def test_an_answer_is_compared_as_mathematics(tokenizer, written, is_right):
    assert encoder(tokenizer).is_answered(written, ANSWER) is is_right


def test_a_truth_that_cannot_be_compared_is_said(tokenizer):
    with pytest.raises(AnswerRefused):
        encoder(tokenizer).is_answered("#1", "x=1")


def test_a_tokenizer_without_an_end_is_refused(tokenizer):
    other = character_tokenizer()
    other.eos_token = None
    with pytest.raises(BackboneMismatch, match="ends a text"):
        encoder(other)


@pytest.mark.parametrize(
    ("column", "cell", "is_fit"),
    [
        ("question", "1+1", True),
        ("question", "1?", False),
        ("question", "", False),
        ("derivation", LINES, True),
        ("derivation", "k=12/3=5", False),
        ("derivation", "1#2", False),
        ("derivation", "", False),
        ("derivation", "a=b", True),
        ("answer", ANSWER, True),
        ("answer", "z+1", False),
        ("answer", "x=1", False),
        ("answer", "9" * 500, False),
        ("answer", "\x00", False),
        ("answer", "", False),
    ],
)
def test_cells_that_do_not_fit_are_counted(column, cell, is_fit):
    by_name = {each.name: each for each in Formulas().columns(terms())}
    found = by_name[column].read(pa.array(["1", cell, "2"]))
    assert found.misfit.tolist() == [False, not is_fit, False]
    assert is_fit or cell not in found.values.tolist()


def test_columns_that_stand_for_two_things_are_said():
    assert Formulas().problems(terms(), max_tokens=64) == []
    (said,) = Formulas().problems(terms(answer="question"), max_tokens=64)
    assert "columns of their own" in said


def test_a_study_says_what_is_computed():
    assert Formulas().facts(terms())["values in derivations"] == "computed"
    assert Formulas().facts(terms(engine=False))["values in derivations"] == "learned"
    assert Formulas().facts(terms(derivation=None)) == {
        "columns": ["question (question, shown)", "answer (answer, learned)"]
    }


@pytest.fixture(scope="module")
def trained(tokenizer):
    """A model that knows how to add two digits with an engine, and its encoder."""
    found = encoder(tokenizer, max_tokens=32)
    sums = [(f"{a},{b}", f"{a}+{b}={a + b}", str(a + b)) for a in range(10) for b in range(10)]
    ids, mask = found.encode(*zip(*sums, strict=True))
    rows = [(row[row > 0].tolist(), own[row > 0].tolist()) for row, own in zip(ids, mask, strict=True)]
    model = build_text(tokenizer, "formulas", BackboneConfig(hidden=32, experts=4, max_tokens=32))
    fit_text(model, rows, TextPretrainingConfig(tokens=150_000, batch_tokens=700), lambda done, total: None)
    adapted = attach(model, AdapterConfig(rank=1, alpha=1.0, targets=("o_proj",), seed="s"))
    return adapted, found, Examples(ids, mask, np.arange(len(ids)) // 2)


@pytest.mark.slow
def test_right_answers_are_counted_one_by_one_and_together(trained):
    adapted, found, examples = trained
    table = Formulas().evaluate(terms(), found, adapted, [examples])
    some = range(0, 100, 7)
    with torch.no_grad():
        judged = [Formulas().judge(terms(), found, adapted, examples.ids[i], examples.targets[i]) for i in some]
    texts = found.written(adapted.model, examples.ids, examples.targets)
    right = [found.is_right(text, *row) for text, *row in zip(texts, examples.ids, examples.targets, strict=True)]
    assert table["accuracy"]["value"] == np.mean(right) > 0.6
    assert [label for label, _ in judged] == [float(right[i]) for i in some]
    assert all(np.isfinite(score) for _, score in judged)
    assert table["records"] == 100
    assert table["sound_derivations"]["value"] == 1.0  # the engine wrote every value
    assert table["exact_match"]["value"] <= table["accuracy"]["value"]
    assert 1 < table["perplexity"]["value"] < 2


@pytest.mark.slow
def test_without_the_engine_the_same_model_must_calculate(trained):
    adapted, _, examples = trained
    alone = FormulaEncoder(terms(engine=False), character_tokenizer(COMMANDS), 32)
    table = Formulas().evaluate(terms(engine=False), alone, adapted, [examples])
    assert table["accuracy"]["value"] < 0.5  # it never learned to


@pytest.mark.slow
def test_the_text_behind_a_question_is_never_an_input(trained):
    adapted, found, examples = trained
    other = examples.ids.copy()
    other[examples.targets.cumsum(1) > 1] = 40
    written = found.written(adapted.model, examples.ids[:9], examples.targets[:9])
    assert found.written(adapted.model, other[:9], examples.targets[:9]) == written


def test_losses_read_what_is_learned_alone(trained):
    adapted, _, examples = trained
    ids, mask = torch.from_numpy(examples.ids[:3].copy()), torch.from_numpy(examples.targets[:3])
    before = adapted.losses(ids, mask)
    assert before.shape == (3,)
    assert torch.isfinite(before).all()


@pytest.mark.slow
def test_a_record_is_judged_alike_whoever_stands_beside_it(trained, monkeypatch):
    """Padded by a longer neighbour or alone, right or wrong, the model runs equally often: `max_written` times."""
    adapted, _, examples = trained
    found = encoder(character_tokenizer(COMMANDS), max_tokens=32, max_written=20)
    own = terms(max_written=20)
    passes = []
    handle = adapted.model.model.register_forward_hook(lambda *_: passes.append(1))
    made_up = np.ones(2, dtype=np.int64), np.array([False, True])
    cut = np.full(9, 40), np.zeros(9, dtype=np.bool_)
    try:
        counts = []
        for row in (0, 37, 99):
            ids, mask = examples.ids[row], examples.targets[row]
            padded = np.pad(ids, (0, 300)), np.pad(mask, (0, 300))
            with torch.no_grad():
                pair = [Formulas().judge(own, found, adapted, *each) for each in ((ids, mask), padded)]
            assert pair[0] == pytest.approx(pair[1], abs=1e-5)
        for each in ((examples.ids[3], examples.targets[3]), made_up, cut):
            passes.clear()
            with torch.no_grad():
                label, _ = Formulas().judge(own, found, adapted, *each)
            counts.append(len(passes))
        assert label == 0.0  # a question that fills the record leaves no room for an answer
        assert counts == [21, 21, 21]  # one of the likelihood, and 20 of writing
    finally:
        handle.remove()


@pytest.mark.parametrize("cell", ["2\\cdot\tx", "é", "1\x7f", "1/0", "\\ln(x-5)", "\\sqrt{-1}", "e^{1000}"])
def test_an_answer_that_nothing_could_be_compared_with_is_a_misfit(cell):
    by_name = {each.name: each for each in Formulas().columns(terms())}
    assert by_name["answer"].read(pa.array(["1", cell])).misfit.tolist() == [False, True]


def test_e_is_no_symbol():
    with pytest.raises(ValueError, match="e not among them"):
        terms(symbols="xe")


def test_a_tokenizer_that_does_not_give_texts_back_is_refused():
    words = {word: number for number, word in enumerate(("<eos>", "a", "b"))}
    core = Tokenizer(WordLevel(words, unk_token="a"))
    with pytest.raises(BackboneMismatch, match="do not add up"):
        FormulaEncoder(terms(), PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>"), 32)
