import hashlib
import json

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


STYLES = (
    TEMPLATE,
    PromptTemplate("<|start|>Of {drug} they say: {review}|", " {rating}<|end|>"),
    PromptTemplate("<|start|>{review}=", "{rating}<|end|>"),
)


def many(count):
    return {
        "drug": [f"drug {i % 7}" for i in range(count)],
        "review": [f"text {i}" for i in range(count)],
        "rating": ["good" if i % 2 else "bad" for i in range(count)],
    }


def test_each_record_takes_one_style_and_reads_as_that_alone_would():
    columns = many(60)
    encoder = PromptEncoder(STYLES, byte_tokenizer(), 64)
    ids, mask = encoder.encode(columns)
    chosen = encoder.styles(columns)
    assert {*chosen} == {0, 1, 2}
    for row, style in enumerate(chosen):
        alone = {name: [column[row]] for name, column in columns.items()}
        own, own_mask = PromptEncoder(STYLES[style], byte_tokenizer(), 64).encode(alone)
        end = own.shape[1]
        assert ids[row, :end].tolist() == own[0].tolist()
        assert mask[row, :end].tolist() == own_mask[0].tolist()
        assert not ids[row, end:].any()


def test_a_style_is_a_function_of_the_record_alone():
    """Of the published hash, so that another program chooses the same; whoever else is in the table moves nothing."""
    columns, encoder = many(50), PromptEncoder(STYLES, byte_tokenizer(), 64)
    chosen = encoder.styles(columns)
    for row, style in enumerate(chosen):
        data = b"confide prompt style 1\0"
        for name in ("drug", "review", "rating"):
            cell = columns[name][row].encode()
            data += len(cell).to_bytes(8, "little") + cell
        assert style == int.from_bytes(hashlib.sha256(data).digest(), "little") % 3
    order = np.random.default_rng(0).permutation(50)[:20]
    some = {name: [column[row] for row in order] for name, column in columns.items()}
    assert encoder.styles(some).tolist() == chosen[order].tolist()


def test_styles_are_taken_evenly():
    counts = np.bincount(PromptEncoder(STYLES, byte_tokenizer(), 64).styles(many(3000)))
    assert np.abs(counts - 1000).max() < 5 * (3000 * 2 / 9) ** 0.5  # five standard deviations


def test_a_column_that_any_style_learns_may_not_be_empty():
    terms = TextTerms.model_validate_json(
        json.dumps({"styles": [
            {"prompt": "Of: {a}", "completion": " {b}"},
            {"turns": [{"role": "user", "text": "{b}"}, {"role": "assistant", "text": "{c}"}]},
        ]})
    )  # fmt: skip
    kinds = {column.name: column.kind for column in FreeText().columns(terms)}
    assert kinds == {"a": "text", "b": "text to learn", "c": "text to learn"}
    assert FreeText().facts(terms) == {
        "style 1, prompt": "Of: {a}",
        "style 1, completion": " {b}",
        "style 2, turns": ["user: {b}", "assistant: {c}"],
        "columns": ["a (free text, shown)", "b (free text, learned)", "c (free text, learned)"],
    }


@pytest.mark.parametrize(
    ("stated", "why"),
    [
        ({}, "say what a record is"),
        ({"prompt": "Of: {a}"}, "say what a record is"),
        ({"prompt": "Of: {a}", "turns": [{"role": "user", "text": "{a}"}]}, "keep one way"),
        ({"styles": [{"prompt": "Of: {a}", "completion": "{b}"}]}, "styles has one entry"),
        ({"styles": 2 * [{"prompt": "Of: {a}", "completion": "{b}"}]}, "the same entry twice"),
        ({"styles": 2 * [{"prompt": "Of: {a}"}], "prompt": "Of: {a}"}, "make it one of the styles"),
        ({"prompt": "Of: {a}", "completion": "{b}", "date": "2026-01-31"}, "data.text.date without turns"),
        ({"prompt": "Of: {0a}", "completion": "{b}"}, "names a column '0a'"),
    ],
)  # fmt: skip
def test_terms_that_are_no_template_are_told(stated, why):
    (problem,) = FreeText().problems(TextTerms.model_validate_json(json.dumps(stated)), max_tokens=64)
    assert why in problem


def test_what_is_not_said_is_not_written():
    stated = {"prompt": "Of: {a}", "completion": " {b}"}
    assert TextTerms.model_validate_json(json.dumps(stated)).model_dump(mode="json") == stated
    styles = {"date": "2026-01-31", "styles": [stated, {"turns": [{"role": "user", "text": "{a}"}]}]}
    assert TextTerms.model_validate_json(json.dumps(styles)).model_dump(mode="json") == styles
