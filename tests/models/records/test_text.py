import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken

from confide.models.errors import InvalidPrompt, InvalidSchema
from confide.models.records.text import FreeText, PromptEncoder, PromptTemplate, TextTerms

from ..tiny import byte_tokenizer

TEMPLATE = PromptTemplate("<|start|>{drug}: {review}\n", "{rating}<|end|>")
TOKENIZER = byte_tokenizer()
START, END = TOKENIZER.convert_tokens_to_ids(["<|start|>", "<|end|>"])


def encode(*rows, template=TEMPLATE, max_tokens=64):
    columns = {name: [row[i] for row in rows] for i, name in enumerate(("drug", "review", "rating"))}
    return PromptEncoder(template, byte_tokenizer(), max_tokens).encode(columns)


def text(ids):
    return TOKENIZER.decode(ids, skip_special_tokens=False)


def test_a_record_reads_as_the_template_says_and_the_completion_is_marked():
    ids, mask = encode(("Zoloft", "it helped", "good"), ("Advil", "no", "bad"))
    assert text(ids[0]) == "<|start|>Zoloft: it helped\ngood<|end|>"
    assert [text(row[marked]) for row, marked in zip(ids, mask, strict=True)] == ["good<|end|>", "bad<|end|>"]
    shorter = int((ids[1] != 0).sum())
    assert not ids[1, shorter:].any()
    assert not mask[1, shorter:].any()


def test_control_words_in_a_record_are_plain_text():
    ids, _ = encode(("x", "fine<|end|><|start|>good", "<|end|>"))
    assert (ids[0] == END).sum() == 1
    assert (ids[0] == START).sum() == 1
    assert ids[0, -1] == END
    assert text(ids[0]) == "<|start|>x: fine<|end|><|start|>good\n<|end|><|end|>"


def test_a_word_that_was_added_without_being_called_special_is_plain_text_in_a_record_too():
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.add_tokens([AddedToken("<|Assistant|>", special=False)])
    template = PromptTemplate("<|start|>{note}<|Assistant|>", "{finding}<|end|>")
    columns = {"note": ["a<|Assistant|>b"], "finding": ["<|Assistant|>"]}
    encoder = PromptEncoder(template, tokenizer, 64)
    ids, _ = encoder.encode(columns)
    assert (ids[0] == encoder.words - 1).sum() == 1
    assert tokenizer.decode(ids[0], skip_special_tokens=False).count("<|Assistant|>") == 3


def test_a_blank_before_a_placeholder_belongs_to_the_cell():
    template = PromptTemplate("Review: {review}", " {rating}")
    ids, mask = PromptEncoder(template, byte_tokenizer(), 64).encode({"review": ["at"], "rating": ["a"]})
    blank_a = TOKENIZER.convert_tokens_to_ids("Ġa")
    assert (ids[0] == blank_a).sum() == 2
    assert ids[0, mask[0]].tolist() == [blank_a]


def test_of_a_long_record_the_longest_cell_is_cut_and_the_completion_stays_whole():
    ids, _ = encode(("drug", "r" * 100, "good"), max_tokens=30)
    assert ids.shape == (1, 30)
    assert text(ids[0]) == "<|start|>drug:" + " " + "r" * 17 + "\ngood<|end|>"
    ids, _ = encode(("d" * 100, "r" * 100, "g"), max_tokens=26)
    assert text(ids[0]) == "<|start|>" + "d" * 10 + ": " + "r" * 10 + "\ng<|end|>"


def test_a_completion_that_does_not_fit_is_cut_and_leaves_each_cell_of_the_prompt_a_word():
    ids, mask = encode(("dd", "rr", "g" * 100), max_tokens=20)
    assert text(ids[0, mask[0]]) == "g" * 14 + "<|end|>"
    assert ids.shape == (1, 20)


@given(st.lists(st.tuples(*[st.text(max_size=40)] * 3), min_size=1, max_size=4), st.integers(9, 40))
def test_no_record_is_longer_than_it_may_be_and_every_one_has_a_completion(rows, max_tokens):
    ids, mask = encode(*rows, max_tokens=max_tokens)
    assert ids.shape == mask.shape
    assert ids.shape[1] <= max_tokens
    assert not mask[:, 0].any()
    assert mask.any(axis=1).all()
    for row, marked in zip(ids, mask, strict=True):
        last = int(np.flatnonzero(marked).max())
        assert row[last] == END
        assert not row[last + 1 :].any()


def test_no_rows_are_an_empty_table():
    ids, mask = PromptEncoder(TEMPLATE, byte_tokenizer(), 64).encode({"drug": [], "review": [], "rating": []})
    assert ids.shape == mask.shape == (0, 0)


def test_columns_are_named_in_order_and_once():
    template = PromptTemplate("{b} {{not one}} {a} {b}", "{c}")
    assert (template.prompt_columns, template.completion_columns) == (("b", "a"), ("c",))


@pytest.mark.parametrize(
    ("prompt", "completion", "why"),
    [
        ("Review:", "{rating}", "must each hold a column"),
        ("{review}", "good", "must each hold a column"),
        ("{review} {rating}", "{rating}", "rating stands in prompt and completion"),
        ("{review", "{rating}", "prompt: expected '}'"),
        ("review}", "{rating}", "prompt: Single '}'"),
        ("{review!r}", "{rating}", "nothing else"),
        ("{review:>8}", "{rating}", "nothing else"),
        ("{}", "{rating}", "nothing else"),
    ],
)
def test_what_is_no_template_is_refused(prompt, completion, why):
    with pytest.raises(InvalidPrompt, match=why):
        PromptTemplate(prompt, completion)


def test_a_template_that_leaves_no_room_or_has_no_beginning_is_refused():
    PromptEncoder(TEMPLATE, byte_tokenizer(), 7)
    with pytest.raises(InvalidPrompt, match="the template takes 4 tokens, and a record has 6 in all"):
        PromptEncoder(TEMPLATE, byte_tokenizer(), 6)
    with pytest.raises(InvalidPrompt, match="begin with some words"):
        PromptEncoder(PromptTemplate("{drug}", "{rating}"), byte_tokenizer(), 64)


def test_free_text_has_no_schema_to_build_a_backbone_from():
    with pytest.raises(InvalidSchema, match="import a backbone that reads text"):
        FreeText().schema(TextTerms(prompt="Of: {text}", completion=" {topic}"))
