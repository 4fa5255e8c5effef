import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.models.structure.readers import READERS

READER = READERS["formulas"]
SIGNS = [*"0123456789+-=/,.()[]{}^_;x ye\n", "\\frac", "\\cdot", "\\int", "\\sqrt"]


def said(words):
    prefix = READER.begin()
    return [dict(zip(READER.sizes, prefix.feed(word), strict=True)) for word in words]


def column(words, field):
    return [each[field] for each in said(words)]


def test_the_innermost_bracket_is_known_by_what_opened_it():
    words = ["\\frac", "{", "1", "}", "{", "(", "2", ")", "^", "{", "3", "}", "}", "+", "\\sqrt", "{", "4", "}"]
    frac, second, bracket, power, root = 3, 6, 7, 1, 4
    assert column(words, "opener") == [
        *(0, frac, frac, 0, second, bracket, bracket, second, second, power, power, second, 0),
        *(0, 0, root, root, 0),
    ]
    assert column(words, "depth") == [0, 1, 1, 0, 1, 2, 2, 1, 1, 2, 2, 1, 0, 0, 0, 1, 1, 0]


def test_terms_are_counted_and_signs_are_none():
    assert column("-3+4-(-5)+6=1-2", "term") == [0, 0, 1, 1, 2, 0, 0, 0, 2, 3, 3, 0, 0, 1, 1]


def test_a_digit_knows_its_place_in_its_number():
    assert column("12.5+3,407", "digit") == [1, 2, 3, 4, 0, 1, 0, 1, 2, 3]


def test_roles_are_those_of_the_token_itself():
    assert column(["2", "x", "^", "\\cdot", "/", "("], "role") == [1, 2, 3, 4, 5, 0]


@pytest.mark.parametrize("end", [";", "\n"])
def test_a_line_begins_anew(end):
    words = [*"(1+2", *end, *"x=3"]
    assert column(words, "line") == [0, 0, 0, 0, 1, 1, 1, 1]
    assert column(words, "column") == [1, 2, 3, 4, 0, 1, 2, 3]
    assert column(words, "depth")[4:] == [0, 0, 0, 0]  # what was open is closed


def test_arguments_are_counted_by_commas_equals_signs_and_closed_brackets():
    assert column("y(0)=1,2", "argument") == [0, 0, 0, 1, 2, 2, 3, 3]


def test_a_word_of_several_signs_stands_where_its_last_one_does():
    assert said(["12", "+(x", ")^2"])[-1] == said("12+(x)^2")[-1]
    assert said(["\\fr", "ac"])[-1] != said(["\\frac"])[-1]  # a command that is cut is none


def test_a_word_without_text_changes_nothing():
    assert said(["1", "", "2"])[-1] == said(["1", "2"])[-1]


@given(st.lists(st.sampled_from(SIGNS), max_size=60), st.integers(0, 60))
def test_ids_follow_from_the_prefix_alone(words, end):
    assert said(words[:end]) == said(words)[:end]


@given(st.text(max_size=200))
def test_ids_of_any_text_lie_in_their_tables(text):
    sizes = list(READER.sizes.values())
    prefix = READER.begin()
    for sign in text:
        assert all(0 <= value < size for value, size in zip(prefix.feed(sign), sizes, strict=True))


def test_ids_of_long_texts_stay_in_their_tables():
    words = random.Random(1).choices(SIGNS, k=5000)
    assert all(0 <= each[name] < size for each in said(words) for name, size in READER.sizes.items())
    assert said(["("] * 100)[-1]["depth"] == READER.sizes["depth"] - 1
