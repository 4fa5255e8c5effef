import random

import pytest

from confide.models.evaluation.programs import LONGEST, parses


@pytest.mark.parametrize(
    ("language", "text", "is_fit"),
    [
        ("python", "def f(x):\n    return x", True),
        ("python", "x = '\\d'", True),  # a warning, no error
        ("python", "def f(x):\nreturn x", False),
        ("python", "print 'x'", False),
        ("python", "int f() { return 1; }", False),
        ("python", "", True),
        ("java", "int f() { return 1; }", True),
        ("java", "def f(x):\n    return x", False),
        ("java", "int f() { return 1; ", False),
    ],
)
def test_programs_parse_in_their_own_language(language, text, is_fit):
    assert parses(language, text) is is_fit


def test_nothing_is_run(tmp_path):
    there = tmp_path / "there"
    assert parses("python", f"open({str(there)!r}, 'w').write('x')")
    assert not there.exists()


HOSTILE = {
    "nested": "(" * LONGEST,
    "brackets": "[" * 199 + "]" * 199,
    "unary": "-" * (LONGEST - 1) + "1",
    "not": "not " * 2000 + "x",
    "attributes": "a" + ".b" * 4000,
    "sum": "a" + "+a" * 4000,
    "calls": "a" + "()" * 4000,
    "less": "a<" * (LONGEST // 2),
    "powers": "a" + "**a" * 2700,
    "branches": "if a:\n b\n" + "elif a:\n b\n" * 600,
    "blocks": "".join(" " * depth + "if a:\n" for depth in range(110)) + " " * 110 + "b",
    "digits": "9" * LONGEST,
    "lambdas": "lambda:" * 1100 + "1",
    "formatted": "f'{" * 2700,
    "nul": "a\0b",
    "surrogate": "x = '\ud800'",
    "ten megabytes": "x = 1\n" * 2_000_000,
}


@pytest.mark.slow
@pytest.mark.parametrize("language", ["python", "java"])
def test_hostile_programs_are_answered(language):
    for name, text in HOSTILE.items():
        assert parses(language, text) in (True, False), name
        assert name == "ten megabytes" or len(text) <= LONGEST, name  # else the parser never saw it
    assert not parses(language, HOSTILE["ten megabytes"])


@pytest.mark.slow
def test_random_text_raises_nothing():
    rng = random.Random(5)
    for _ in range(2000):
        text = "".join(rng.choices("()[]{}\"'\\#:;,.=+-*/@ab1 \n\té€\x00\x1d", k=rng.randint(0, 80)))
        assert parses(rng.choice(["python", "java"]), text) in (True, False)
