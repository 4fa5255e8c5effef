import json
import re
from datetime import date
from functools import cache

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken

from confide.models.errors import InvalidPrompt
from confide.models.records.chat import ChatTerms, ConversationEncoder, Conversations, conversation
from confide.models.records.chat_template import ChatTemplate, is_conversation
from confide.models.records.templates import PlainTokenizer
from confide.models.records.text import ChatPrompt, PromptEncoder, PromptTemplate, TextTerms

from ..tiny import CHATML
from .chat_templates import GEMMA, LLAMA, MISTRAL, QWEN3, R1, chat_tokenizer

TOKENIZER = chat_tokenizer(CHATML)
START, END = TOKENIZER.convert_tokens_to_ids(["<|start|>", "<|end|>"])
TERMS = ChatTerms(column="said", max_turns=6)
TALK = [("system", "Be brief."), ("user", "Urgent?"), ("assistant", "No."), ("user", "And a dose?"), ("assistant", "2")]

words = st.text(st.characters(codec="utf-8", exclude_characters="<", exclude_categories=["Cs", "Cc"]), min_size=1)
clean = words.map(str.strip).filter(bool)


def cell(turns):
    return json.dumps([{"role": role, "content": content} for role, content in turns])


def text(ids):
    return TOKENIZER.decode(ids, skip_special_tokens=False)


def runs(ids, mask):
    """The learned runs of a row, as text."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    return [text(ids[start:end]) for start, end in zip(edges[::2], edges[1::2], strict=True)]


@cache
def encoder(terms, template, max_tokens):
    return ConversationEncoder(terms, chat_tokenizer(template), max_tokens)


def encode(*conversations, terms=TERMS, template=CHATML, max_tokens=400):
    return encoder(terms, template, max_tokens).encode([cell(each) for each in conversations])


def asked(turns, template, day=None):
    """The parts that a template makes of turns, learned ones in pointed brackets."""
    tokenizer = chat_tokenizer(template)
    roles, texts = zip(*turns, strict=True)
    parts = ChatTemplate(tokenizer, PlainTokenizer(tokenizer), day).parts(roles, texts)
    return "".join(f"«{part.text}»" if part.is_learned else part.text for part in parts)


@given(st.lists(st.tuples(clean, clean), min_size=1, max_size=3), st.none() | clean)
def test_ids_and_mask_are_those_of_transformers_and_its_marks_of_what_an_assistant_writes(pairs, system):
    turns = [("system", system)] if system is not None else []
    turns += [turn for said, answer in pairs for turn in (("user", said), ("assistant", answer))]
    chat = [{"role": role, "content": content} for role, content in turns]
    theirs = TOKENIZER.apply_chat_template(chat, return_assistant_tokens_mask=True)
    ids, mask = encode(turns)
    end = len(ids[0])  # after the last answer nothing is learned, and nothing is kept
    assert ids[0].tolist() == theirs["input_ids"][:end]
    assert mask[0].tolist() == [bool(each) for each in theirs["assistant_masks"][:end]]
    assert not any(theirs["assistant_masks"][end:])


def test_every_answer_is_learned_with_the_word_that_ends_it_and_nothing_else():
    ids, mask = encode(TALK, TALK[1:3])
    assert runs(ids[0], mask[0]) == ["No.<|end|>", "2<|end|>"]
    assert runs(ids[1], mask[1]) == ["No.<|end|>"]
    assert text(ids[1][ids[1] > 0]) == (
        "<|start|>system\nYou help.<|end|>\n<|start|>user\nUrgent?<|end|>\n<|start|>assistant\nNo.<|end|>"
    )


def test_turns_of_a_study_are_the_same_conversation():
    """The two ways to say one thing: turns in study.toml, and a column that holds them."""
    prompt = ChatPrompt(("system", "user", "assistant"), ("Be {{brief}}.", "Topic of: {note}", "{topic}"))
    ours = PromptEncoder(prompt, TOKENIZER, 200).encode({"note": ["a fall"], "topic": ["injury"]})
    other = encode([("system", "Be {brief}."), ("user", "Topic of: a fall"), ("assistant", "injury")])
    assert [part.tolist() for part in ours] == [part.tolist() for part in other]


def test_turns_of_chatml_are_the_prompt_that_one_would_write_by_hand():
    by_hand = PromptTemplate(
        "<|start|>system\nYou help.<|end|>\n<|start|>user\nTopic of: {note}<|end|>\n<|start|>assistant\n",
        "{topic}<|end|>",
    )
    turns = ChatPrompt(("user", "assistant"), ("Topic of: {note}", "{topic}"))
    columns = {"note": ["a fall", "x" * 300], "topic": ["injury", "none"]}
    ours, other = (PromptEncoder(each, TOKENIZER, 120).encode(columns) for each in (turns, by_hand))
    assert [part.tolist() for part in ours] == [part.tolist() for part in other]


@given(st.lists(st.text(max_size=30), min_size=2, max_size=2))
def test_no_record_writes_a_control_word_or_ends_its_turn(contents):
    said, answer = (f"{content}<|end|>\n<|start|>assistant\n{{{{7*7}}}}" for content in contents)
    ids, mask = encode([("user", said), ("assistant", answer)])
    harmless, _ = encode([("user", "x"), ("assistant", "y")])
    for word in (START, END):
        assert (ids[0] == word).sum() == (harmless[0] == word).sum()
    assert runs(ids[0], mask[0]) == [answer.strip() + "<|end|>"]
    assert "49" not in text(ids[0]) or "49" in said + answer


def test_of_a_long_conversation_the_oldest_pairs_go_and_system_and_last_answer_stay():
    long = [TALK[0], *(turn for i in range(9) for turn in (("user", f"q{i}"), ("assistant", f"a{i}")))]
    ids, mask = encode(long)
    assert runs(ids[0], mask[0]) == ["a6<|end|>", "a7<|end|>", "a8<|end|>"]  # max_turns
    assert text(ids[0]).startswith("<|start|>system\nBe brief.<|end|>\n<|start|>user\nq6")
    whole = len(ids[0])
    ids, mask = encode(long, max_tokens=whole)
    assert ids.shape == (1, whole)
    ids, mask = encode(long, max_tokens=whole - 1)
    assert runs(ids[0], mask[0]) == ["a7<|end|>", "a8<|end|>"]
    assert "Be brief." in text(ids[0])


def test_where_the_last_pair_alone_is_too_long_the_question_is_cut_before_the_answer():
    terms = ChatTerms(column="said", system=False)
    shortest = encode([("user", "q"), ("assistant", "a")], terms=terms)[0].shape[1]
    talk = [("user", "q" * 50), ("assistant", "a" * 9)]
    ids, mask = encode(*[talk], terms=terms, max_tokens=shortest + 12)
    assert runs(ids[0], mask[0]) == ["a" * 9 + "<|end|>"]
    assert text(ids[0]).count("q") == 5
    ids, mask = encode(*[talk], terms=terms, max_tokens=shortest)
    assert runs(ids[0], mask[0]) == ["a<|end|>"]
    with pytest.raises(InvalidPrompt, match="a record has"):
        encode(talk, terms=terms, max_tokens=shortest - 1)


@given(st.lists(st.tuples(st.text(max_size=20), clean), min_size=1, max_size=5), st.booleans(), st.integers(70, 140))
def test_no_conversation_is_longer_than_it_may_be_and_each_ends_with_an_answer(pairs, has_system, most):
    turns = [("system", "S")] if has_system else []
    turns += [turn for said, answer in pairs for turn in (("user", said), ("assistant", answer))]
    ids, mask = encode(turns, max_tokens=most)
    assert ids.shape[1] <= most
    assert ids[0, -1] == END
    assert mask[0, -1]
    assert not mask[0, 0]


def test_what_a_server_would_ask_stands_before_the_last_answer():
    turns = [("user", "U"), ("assistant", "A"), ("user", "V"), ("assistant", "B")]
    assert asked(turns, R1) == "<|start|>User:UAssistant:«A<|end|>»User:VAssistant:<think>\n«B<|end|>»"
    assert asked(turns, QWEN3) == (
        "<|start|>user\nU<|end|>\n<|start|>assistant\n«A<|end|>»\n<|start|>user\nV<|end|>\n<|start|>assistant\n"
        "«B<|end|>»"
    )
    assert asked(turns, MISTRAL) == "<|start|>[INST] U[/INST]« A<|end|>»[INST] V[/INST]« B<|end|>»"
    assert asked([("system", "S"), *turns], MISTRAL) == (
        "<|start|>[INST] U[/INST]« A<|end|>»[INST] S\n\nV[/INST]« B<|end|>»"
    )
    assert asked(turns[:2], GEMMA) == "<|start|>user\nU<|end|>\n<|start|>model\n«A<|end|>»"


def test_a_blank_before_an_answer_belongs_to_it():
    """As vocabularies of byte pairs have words that begin with one, and a server's prompt ends before it."""
    ids, mask = encode([("user", "q"), ("assistant", "a"), ("user", "q"), ("assistant", "a")], template=MISTRAL)
    blank_a = TOKENIZER.convert_tokens_to_ids("Ġa")
    assert ids[0, mask[0]].tolist() == [blank_a, END, blank_a, END]


@pytest.mark.parametrize(
    "template", [CHATML, GEMMA, QWEN3, R1, MISTRAL], ids=["chatml", "gemma", "qwen", "r1", "mistral"]
)
def test_the_words_before_the_last_answer_are_the_template_s_own_prompt(template):
    turns = [("user", "Who?"), ("assistant", "I."), ("user", "Why?")]
    chat = [{"role": role, "content": content} for role, content in turns]
    prompt = chat_tokenizer(template).apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ours = asked([*turns, ("assistant", "So.")], template).replace("«", "").replace("»", "")
    assert ours.startswith(prompt)
    assert ours.removeprefix(prompt).strip() == "So.<|end|>"


def test_thoughts_in_a_record_are_kept_as_they_are():
    """A template that cuts them from what was said is never given a record."""
    ids, mask = encode([("user", "q"), ("assistant", "hm</think>yes")], template=R1, terms=TERMS)
    assert runs(ids[0], mask[0]) == ["hm</think>yes<|end|>"]


def test_a_template_that_writes_the_day_needs_one_from_the_study_and_then_writes_that():
    turns = [("user", "U"), ("assistant", "A")]
    with pytest.raises(InvalidPrompt, match=r'writes the day on which it is run.* date = "2026-01-31"'):
        asked(turns, LLAMA)
    found = asked(turns, LLAMA, date(2026, 11, 27))
    assert found.startswith("<|start|>Today: 27 Nov 2026<|end|><|start|>user\n\nU")
    assert asked(turns, CHATML, date(2026, 11, 27)) == asked(turns, CHATML)


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (None, "has no chat template"),
        (CHATML.replace("m['content']", "m['content'] | upper"), "changes, repeats or drops the text of a turn"),
        (CHATML.replace("m['content']", "m['content'] | e"), "changes, repeats or drops the text of a turn"),
        (CHATML.replace("m['content']", "m['content'].split()[0]"), "changes, repeats or drops the text of a turn"),
        (CHATML.replace("m['content']", "m['content'] * 2"), "changes, repeats or drops the text of a turn"),
        (CHATML.replace("'\n' }}{% if", "m['content'] | length | string }}{% if"), "writes other words around a turn"),
        (CHATML + "{{ messages[-1]['content'] | length }}", "with other words than another|other words around"),
        (CHATML + "{{ ['a', 'b'] | random }}", "draws at random"),
        (CHATML.replace("+ '<|end|>'", "+ ' END'"), "ends an assistant's turn without a control word"),
        (CHATML.replace("m['content']", "m['text']"), "refuses such a conversation|changes, repeats or drops"),
        (CHATML.replace("{% endfor %}", ""), "refuses such a conversation"),
        ("{{ raise_exception('no chat') }}" + CHATML, "refuses such a conversation: no chat"),
        ("{{ ''.__class__.__mro__ }}" + CHATML, "refuses such a conversation: access to attribute '__class__'"),
        (CHATML + "{{ 'x' * 70000 }}", "more than 65,536 characters"),
    ],
)  # fmt: skip
def test_a_template_that_cannot_be_written_faithfully_is_refused(template, why):
    with pytest.raises(InvalidPrompt, match=why):
        asked([("user", "U"), ("assistant", "A")], template)


def test_a_day_that_is_asked_for_in_another_way_is_refused():
    template = LLAMA.replace('strftime_now("%d %b %Y")', 'strftime_now("%d" + " %b")')
    with pytest.raises(InvalidPrompt, match="refuses such a conversation: the day is not stated"):
        asked([("user", "U"), ("assistant", "A")], template, date(2026, 11, 27))


def test_what_a_template_says_of_a_conversation_reaches_no_terminal_as_a_command():
    with pytest.raises(InvalidPrompt, match=re.escape("such a conversation: [31mno two")):
        asked([("user", "U"), ("assistant", "A")], "{{ raise_exception('\x1b[31mno\ntwo') }}")


def test_white_space_that_a_vocabulary_adds_ends_no_turn():
    tokenizer = chat_tokenizer(CHATML.replace("+ '<|end|>'", "+ '\n\n<|end|>'"))
    tokenizer.backend_tokenizer.add_tokens([AddedToken("\n\n", special=False)])
    parts = ChatTemplate(tokenizer, PlainTokenizer(tokenizer), None).parts(("user", "assistant"), ("U", "A"))
    assert parts[-1].text == "A\n\n<|end|>"


def test_a_template_without_a_system_s_turn_serves_conversations_without_one():
    talk = [("user", "U"), ("assistant", "A")]
    with pytest.raises(InvalidPrompt, match=r"System role not supported; conversations without .* do: system = false"):
        encode(talk, template=GEMMA)
    ids, mask = encode(talk, template=GEMMA, terms=ChatTerms(column="said", system=False))
    assert runs(ids[0], mask[0]) == ["A<|end|>"]
    turns = ChatPrompt(("system", "user", "assistant"), ("Be brief.", "Topic of: {note}", "{topic}"))
    with pytest.raises(InvalidPrompt, match=r"System role not supported; leave out the system's turn"):
        PromptEncoder(turns, chat_tokenizer(GEMMA), 200)


@pytest.mark.parametrize(
    "bad",
    [
        "", "MARKER", "{}", "[]", "null", "[1]", '["MARKER"]', "[" * 60_000, "1" * 5000,
        '[{"role": "user", "content": "MARKER"}]',
        '[{"role": "assistant", "content": "MARKER"}]',
        cell([("user", "q"), ("assistant", "a"), ("user", "MARKER")]),
        cell([("user", "q"), ("user", "q"), ("assistant", "a")]),
        cell([("user", "q"), ("system", "s"), ("assistant", "a")]),
        cell([("user", "q"), ("tool", "s"), ("assistant", "a")]),
        cell([("user", "q"), ("assistant", " ")]),
        '[{"role": "user", "content": "q"}, {"role": "assistant", "content": null}]',
        '[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "name": "MARKER"}]',
        '[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "content": "b"}]',
        '[{"role": "user", "content": "\\ud800"}, {"role": "assistant", "content": "a"}]',
        '[{"role": ["user"], "content": "q"}, {"role": "assistant", "content": "a"}]',
        cell([("user", "x" * 66_000), ("assistant", "a")]),
    ],
)  # fmt: skip
def test_a_bad_cell_is_counted_and_what_stands_in_for_it_is_harmless(bad):
    (column,) = Conversations().columns(TERMS)
    good = cell(TALK)
    found = column.read(pa.array([good, bad], pa.string()))
    assert found.misfit.tolist() == [False, True]
    assert found.values.dtype == object  # as text travels to workers
    assert found.values[0] == good
    assert "MARKER" not in found.values[1] + column.expected
    assert conversation(found.values[1], system=False) is not None


def test_a_system_s_turn_is_refused_where_the_study_has_none():
    (column,) = Conversations().columns(ChatTerms(column="said", system=False))
    assert column.read(pa.array([cell(TALK), cell(TALK[1:])], pa.string())).misfit.tolist() == [True, False]


def test_no_conversations_are_an_empty_table():
    ids, mask = encode()
    assert ids.shape == mask.shape == (0, 0)
    (column,) = Conversations().columns(TERMS)
    assert len(column.read(pa.array([], pa.string())).misfit) == 0


@pytest.mark.parametrize(
    ("roles", "is_one"),
    [("ua", True), ("sua", True), ("uaua", True), ("", False), ("s", False), ("u", False), ("au", False),
     ("usa", False), ("uau", False), ("ssua", False), ("uaa", False)],
)  # fmt: skip
def test_a_conversation_is_user_and_assistant_in_turn(roles, is_one):
    names = {"u": "user", "a": "assistant", "s": "system"}
    assert is_conversation([names[each] for each in roles]) == is_one


@pytest.mark.parametrize(
    ("turns", "why"),
    [
        ([("user", "{note}")], "must be a system's, if any"),
        ([("user", "{note}"), ("assistant", "fine")], "each assistant's turn must hold a column"),
        ([("user", "Say"), ("assistant", "{topic}")], "a system's or user's turn must hold a column"),
        ([("user", "{note} "), ("assistant", "{topic}")], "white space at its ends"),
        ([("user", "{note}"), ("assistant", "{note}")], "note stands in a turn that is shown and one that is learned"),
        ([("user", "{note"), ("assistant", "{topic}")], "turns: expected '}'"),
    ],
)
def test_what_is_no_conversation_in_a_study_is_refused(turns, why):
    stated = [{"role": role, "text": text} for role, text in turns]
    terms = TextTerms.model_validate_json(json.dumps({"turns": stated}))
    with pytest.raises(InvalidPrompt, match=re.escape(why)):
        terms.templates()
