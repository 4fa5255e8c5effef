"""Completions that are compared as formulas, in studies of free text that say so."""

import json

import numpy as np
import pytest
import torch

from confide.models.adapters import AdapterConfig, attach
from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.text_pretraining import TextPretrainingConfig, build_text, fit_text
from confide.models.records.chat import ChatTerms, ConversationEncoder, Conversations
from confide.models.records.kind import Examples
from confide.models.records.text import FreeText, PromptEncoder, PromptTemplate, TextTerms
from confide.models.records.vocabularies import character_tokenizer

from ..tiny import CHATML
from .chat_templates import chat_tokenizer

SUMS = [(f"{a}+{b}", a + b) for a in range(5) for b in range(5)]


@pytest.fixture(scope="module")
def sums():
    """A model that knows sums of digits by heart and writes them as decimals, and records of whole numbers."""
    tokenizer = character_tokenizer()
    encoder = PromptEncoder(PromptTemplate("Q {question}=", "{answer}<eos>"), tokenizer, 32)

    def encode(answer):
        questions = [question for question, _ in SUMS]
        return encoder.encode({"question": questions, "answer": [answer(total) for _, total in SUMS]})

    return taught(tokenizer, encode), encoder, Examples(*encode(str), np.arange(len(SUMS)))


@pytest.fixture(scope="module")
def talks():
    """The same as conversations, of which the last answer is asked for."""
    tokenizer = chat_tokenizer(CHATML)
    encoder = ConversationEncoder(ChatTerms(column="said"), tokenizer, 64)

    def encode(answer):
        said = [[("user", "0+0"), ("assistant", "0"), ("user", sum_), ("assistant", answer(n))] for sum_, n in SUMS]
        return encoder.encode([json.dumps([{"role": who, "content": what} for who, what in turns]) for turns in said])

    return taught(tokenizer, encode), encoder, Examples(*encode(str), np.arange(len(SUMS)))


def taught(tokenizer, encode):
    """A model that knows the sums as decimals."""
    ids, mask = encode(lambda total: f"{total}.0")
    model = build_text(tokenizer, None, BackboneConfig(hidden=32, experts=4, max_tokens=64))
    lengths = [int(np.flatnonzero(own).max()) + 1 for own in mask]
    rows = [(row[:length].tolist(), own[:length].tolist()) for row, own, length in zip(ids, mask, lengths, strict=True)]
    fit_text(model, rows, TextPretrainingConfig(tokens=sum(lengths) * 240, batch_tokens=400), lambda done, total: None)
    return attach(model, AdapterConfig(rank=1, alpha=1.0, targets=("o_proj",), seed="s"))


def text_terms(equality):
    return TextTerms(prompt="Q {question}=", completion="{answer}", equality=equality)


def chat_terms(equality):
    return ChatTerms(column="said", equality=equality)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "terms", "records"), [(FreeText(), text_terms, "sums"), (Conversations(), chat_terms, "talks")],
    ids=["text", "chat"],
)  # fmt: skip
def test_completions_are_compared_as_formulas_if_the_study_says_so(kind, terms, records, request):
    adapted, encoder, examples = request.getfixturevalue(records)
    words, formulas = terms(None), terms("mathematics")
    assert kind.judged(words) == "completions"
    assert kind.judged(formulas) == "answers"
    by_words = kind.evaluate(words, encoder, adapted, [examples])
    by_formulas = kind.evaluate(formulas, encoder, adapted, [examples])
    assert "accuracy" not in by_words
    assert by_formulas["exact_match"] == by_words["exact_match"]
    assert by_formulas["exact_match"]["value"] < 0.2  # it writes 7.0, the truth is 7
    assert by_formulas["accuracy"]["value"] > 0.8
    with torch.no_grad():
        judged = [
            kind.judge(formulas, encoder, adapted, *row)[0] for row in zip(examples.ids, examples.targets, strict=True)
        ]
    assert np.mean(judged) == by_formulas["accuracy"]["value"]


@pytest.mark.parametrize("terms", [text_terms, chat_terms])
def test_a_study_that_does_not_say_so_keeps_its_form(terms):
    assert "equality" not in terms(None).model_dump()
    assert terms("mathematics").model_dump()["equality"] == "mathematics"


def test_a_completion_that_cannot_be_compared_is_never_right(sums):
    adapted, encoder, _ = sums
    ids, mask = encoder.encode({"question": ["1+1"], "answer": ["two"]})
    assert encoder.comparison.are_equal(adapted.model, ids, mask) == [False]
