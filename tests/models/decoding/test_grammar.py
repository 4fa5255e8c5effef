import numpy as np
import pytest

from confide.models.decoding.grammar import Grammar
from confide.models.evaluation.programs import parses
from confide.models.records.vocabularies import code_tokenizer
from confide.models.structure.code import SPLIT
from confide.models.structure.constructs import Constructs
from confide.models.structure.inputs import words_of

WORDS = [
    "",
    "<end>",
    "a",
    " if",
    "(",
    ")",
    "]",
    "}",
    ":",
    "\n",
    "\n    ",
    "\n        ",
    "'",
    "b'",
    " ",
    "x)",
    '"',
    "{",
    ";",
]
END = 1
PYTHON = "def f(x):\n    if x:\n        return [g(x), 'a\\'b']\n    return {1: \"x\"}"
JAVA = "int f(int x) {\n    if (x > 0) { return g(\"a\", x); }\n    return 'b';\n}"


@pytest.fixture(scope="module")
def grammar():
    return Grammar(WORDS, (END,))


def allowed(grammar, text, language="python"):
    mask = grammar.allowed(f"{language}\n", text)
    return {"<end>" if place == END else WORDS[place] for place in np.flatnonzero(mask)}


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("f(a", {"]", "}", "<end>"}),
        ("f(a)", {")", "]", "}", "x)", "\n    ", "\n        "}),
        ("'a", {"\n", "\n    ", "\n        ", "<end>"}),
        ("if a:", {")", "]", "}", "x)", "<end>"}),
        ("if a:\n    b", {")", "]", "}", "x)", "\n        "}),
        (
            "if a:\n    b\n  ",
            {"a", ")", "]", "}", ":", "(", "'", "x)", "b'", '"', "{", ";", " if", "\n        "},
        ),
    ],
)
def test_words_that_would_break_python_are_refused(grammar, text, refused):
    some = allowed(grammar, text)
    assert not some & refused
    assert {"<end>", *WORDS[2:]} - some <= refused | {"<end>"}


def test_words_that_would_break_java_are_refused(grammar):
    assert not allowed(grammar, "void f() { g(", "java") & {"}", "]", "<end>"}
    assert "<end>" in allowed(grammar, "void f() { }", "java")
    assert "<end>" not in allowed(grammar, "void f() {", "java")


def test_control_words_never_come(grammar):
    assert "" not in {WORDS[place] for place in np.flatnonzero(grammar.allowed("python\n", "a")) if place != END}


def test_a_program_goes_on_behind_the_prompt(grammar):
    shown = grammar.allowed("python\nf([", ")")
    assert shown is not None
    assert {WORDS[place] for place in np.flatnonzero(grammar.allowed("python\nf([", ""))} & {"]", ")"} == {"]"}


@pytest.mark.parametrize(
    ("language", "behind", "before", "texts"),
    [
        ("java", "\n}", "int f() {", {"": True, "\n    a;": True, "\n    a;\n}": False, "\n    if (a) {": False}),
        ("python", "\n        b)", "x = [f(a,", {"\n        c,": False}),
        ("python", "\n        b)]", "x = [f(a,", {"\n        c,": True}),
        ("python", "\n        b", "def f():", {"\n    if a:": True, "\n    a": False}),
    ],
)
def test_a_gap_ends_where_the_lines_behind_it_may_follow(grammar, language, behind, before, texts):
    for text, may_end in texts.items():
        assert grammar.allowed(f"{language}\n{behind}{SPLIT}{before}", text)[END] == may_end, text
        assert parses(language, before + text + behind) is may_end, text


@pytest.mark.parametrize(
    ("language", "program"), [("python", "def f(x):\n    return x"), ("java", "int f() { return 1; }")]
)
def test_blanks_that_no_record_has_never_come(language, program):
    """Published vocabularies have words of tabs and of Windows' line breaks."""
    words = ["", "<end>", "\t", "a\t", "\r\n", "\x0c", "a"]
    guide = Grammar(words, (END,))
    for end in range(len(program) + 1):
        mask = guide.allowed(f"{language}\n", program[:end])
        assert mask is None or not mask[2:6].any()


def test_a_prompt_may_end_inside_its_first_comment(grammar):
    assert grammar.allowed("python\n# a comm", "ent")[WORDS.index("\n")]


def test_all_words_may_come_in_a_text_of_no_language(grammar):
    assert grammar.allowed("cobol\n", "a)") is None


@pytest.mark.parametrize(("language", "program"), [("python", PYTHON), ("java", JAVA)])
def test_no_word_of_a_program_that_parses_is_refused(language, program):
    tokenizer = code_tokenizer([PYTHON, JAVA], words=160)
    words = words_of(tokenizer)
    ids = tokenizer(program, add_special_tokens=False)["input_ids"]
    guide = Grammar(words, (tokenizer.eos_token_id,))
    text = ""
    for token in ids:
        assert guide.allowed(f"{language}\n", text)[token], (text, words[token])
        text += words[token]
    assert text == program
    assert guide.allowed(f"{language}\n", text)[tokenizer.eos_token_id]


def test_words_that_are_alike_are_refused_as_each_would_be_alone():
    tokenizer = code_tokenizer([PYTHON, JAVA], words=160)
    words, end = words_of(tokenizer), tokenizer.eos_token_id
    guide = Grammar(words, (end,))
    for text in ("def f(x):\n    if x:\n  ", "f([x", "'a", "if x", "def f(x):\n    return x"):
        here = Constructs("python")
        here.feed(text)
        mask = guide.allowed("python\n", text)
        alone = [
            word != SPLIT and here.may_grow_by(word) if word else place == end and here.may_end()
            for place, word in enumerate(words)
        ]
        assert mask.tolist() == alone
