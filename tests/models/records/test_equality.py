"""Completions that are compared as formulas, in studies of free text that say so."""

import numpy as np
import pytest
import torch

from confide.models.adapters import AdapterConfig, attach
from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.text_pretraining import TextPretrainingConfig, build_text, fit_text
from confide.models.records.kind import Examples
from confide.models.records.text import FreeText, PromptEncoder, PromptTemplate, TextTerms
from confide.models.records.vocabularies import character_tokenizer


@pytest.fixture(scope="module")
def sums():
    """A model that knows sums of digits by heart and writes them as decimals, and records of whole numbers."""
    tokenizer = character_tokenizer()
    encoder = PromptEncoder(PromptTemplate("Q {question}=", "{answer}<eos>"), tokenizer, 32)
    rows = [(f"{a}+{b}", str(a + b)) for a in range(5) for b in range(5)]
    questions = [question for question, _ in rows]
    ids, mask = encoder.encode({"question": questions, "answer": [f"{answer}.0" for _, answer in rows]})
    model = build_text(tokenizer, None, BackboneConfig(hidden=32, experts=4, max_tokens=32))
    some = [(row[row > 0].tolist(), own[row > 0].tolist()) for row, own in zip(ids, mask, strict=True)]
    fit_text(model, some, TextPretrainingConfig(tokens=60_000, batch_tokens=400), lambda done, total: None)
    adapted = attach(model, AdapterConfig(rank=1, alpha=1.0, targets=("o_proj",), seed="s"))
    truth = encoder.encode({"question": questions, "answer": [answer for _, answer in rows]})
    return adapted, encoder, Examples(*truth, np.arange(len(rows)))


@pytest.mark.slow
def test_completions_are_compared_as_formulas_if_the_study_says_so(sums):
    adapted, encoder, examples = sums
    words, formulas = (TextTerms(prompt="Q {q}=", completion="{a}", equality=by) for by in (None, "mathematics"))
    assert FreeText().judged(words) == "completions"
    assert FreeText().judged(formulas) == "answers"
    by_words = FreeText().evaluate(words, encoder, adapted, [examples])
    by_formulas = FreeText().evaluate(formulas, encoder, adapted, [examples])
    assert "accuracy" not in by_words
    assert by_formulas["exact_match"] == by_words["exact_match"]
    assert by_formulas["exact_match"]["value"] < 0.2  # it writes 7.0, the truth is 7
    assert by_formulas["accuracy"]["value"] > 0.8
    with torch.no_grad():
        judged = [
            FreeText().judge(formulas, encoder, adapted, *row)[0]
            for row in zip(examples.ids, examples.targets, strict=True)
        ]
    assert np.mean(judged) == by_formulas["accuracy"]["value"]


def test_a_study_that_does_not_say_so_keeps_its_form():
    assert "equality" not in TextTerms(prompt="Q {q}=", completion="{a}").model_dump()
    assert (
        TextTerms(prompt="Q {q}=", completion="{a}", equality="mathematics").model_dump()["equality"] == "mathematics"
    )


def test_a_completion_that_cannot_be_compared_is_never_right(sums):
    adapted, encoder, _ = sums
    ids, mask = encoder.encode({"question": ["1+1"], "answer": ["two"]})
    assert encoder.are_equal(adapted.model, ids, mask) == [False]
