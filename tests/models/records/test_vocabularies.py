import pytest

from confide.models.records.vocabularies import COMMANDS, character_tokenizer, code_tokenizer
from confide.models.structure.code import SPLIT
from confide.models.structure.inputs import words_of

PROGRAMS = [
    "def f(x):\n    return x.value(12)\n",
    "def g(y):\n    return [y, 'text']  # so",
    "int f() {\n    return 1;\n}",
]


@pytest.fixture(scope="module")
def code():
    return code_tokenizer(PROGRAMS * 5, words=180)


@pytest.fixture(scope="module")
def tokenizer():
    return character_tokenizer(COMMANDS)


@pytest.mark.parametrize(
    "text", ["\\frac{1}{2}x^{2}-\\sqrt{7}", "a b\nc", "\\fraction", "\\sin(x)\\cdot\\sin x", "~!@#$%^&*()_+`|\\"]
)
def test_a_text_of_characters_and_commands_comes_back(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.unk_token_id not in ids
    assert len(tokenizer("\\frac{x}", add_special_tokens=False)["input_ids"]) == 4
    assert len(tokenizer("\\fraction", add_special_tokens=False)["input_ids"]) == 9  # another command: its letters


def test_what_is_no_ascii_is_one_unknown_word(tokenizer):
    assert tokenizer("é∫", add_special_tokens=False)["input_ids"] == [tokenizer.unk_token_id] * 2


@pytest.mark.parametrize("text", [*PROGRAMS, "x  =   1", f"}}{SPLIT}def h(", "~!@#$%^&*()_+`|\\?<>"])
def test_a_program_comes_back_word_by_word(code, text):
    ids = code(text, add_special_tokens=False)["input_ids"]
    words = words_of(code)
    assert "".join(words[token] for token in ids) == text
    assert code.unk_token_id not in ids


def test_no_word_crosses_a_bracket_a_digit_or_a_line_break(code):
    for word in words_of(code):
        signs = set(word.strip(" "))
        assert len(word.strip(" ")) <= 1 or not signs & set("()[]{}:;,0123456789'\".")
        assert "\n" not in word or not word.strip("\n ")


def test_common_pieces_are_words(code):
    words = words_of(code)
    assert {"def", "return", "\n    "} <= set(words)
    assert len(code("\n    return", add_special_tokens=False)["input_ids"]) == 2


def test_what_no_program_had_is_unknown(code):
    assert code.unk_token_id in code("é", add_special_tokens=False)["input_ids"]
