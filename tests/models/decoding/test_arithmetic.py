import random
from fractions import Fraction

import pytest

from confide.models.decoding.arithmetic import Arithmetic, decimal, given, owed


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("k=-12/3=", "-4"),
        ("k=-12/3=-", "4"),
        ("k=-12/3=-4", ""),
        ("k=-12/3=5", ""),  # the model went on by itself
        ("D=(-3)^{2}-4\\cdot(-10)=", "49"),
        ("d=\\sqrt{49}=", "7"),
        ("d=\\sqrt{50}=", ""),
        ("m=5.5\\cdot97\\cdot0.75=400.", "125"),
        ("1/3=", ""),
        ("1/8=", "0.125"),
        ("-1/8=", "-0.125"),
        ("2*3=", "6"),
        ("2\\times3=", "6"),
        ("1/0=", ""),
        ("2^{99}=", ""),
        ("9^{9^{9}}=", ""),
        ("k=", ""),
        ("k=5=", ""),  # a number alone
        ("-5=", ""),
        ("y(0)=", ""),
        ("x+1=", ""),
        ("2x=", ""),
        ("=", ""),
        ("", ""),
        ("1+1", ""),
        ("a=1;b=2+3=", "5"),
        ("a=1,2+3=", "5"),
        ("a=1\n2+3=", "5"),
        ("1+2=3+4=", "7"),  # the last side counts
        ("1" * 300 + "+1=", ""),
    ],
)
def test_a_text_owes_the_value_of_its_last_expression(text, rest):
    assert owed(text) == rest


def test_values_are_those_of_exact_fractions():
    """Random sums, products, quotients and brackets; Python's own arithmetic on `Fraction` is the other reading."""
    rng, seen = random.Random(1), 0
    for _ in range(2000):
        a, b, c = (rng.randint(-99, 99) for _ in range(3))
        one, two, three = (f"({number})" if number < 0 else str(number) for number in (a, b, c))
        expression, value = rng.choice(
            [
                (f"{one}+{two}\\cdot{three}", Fraction(a + b * c)),
                (f"({one}-{two})/{three}", Fraction(a - b, c) if c else None),
                (f"{one}/{two}-{three}", Fraction(a, b) - c if b else None),
                (f"{one}\\cdot{two}/{three}", Fraction(a * b, c) if c else None),
                (f"-{one}^{{2}}+{two}", Fraction(-(a**2) + b)),
            ]
        )
        rest = owed(f"z={expression}=")
        if value is not None and (1_000_000 * value).denominator == 1:
            assert Fraction(rest) == value, expression
            seen += 1
        else:
            assert rest == "", expression
    assert seen > 800


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Fraction(0), "0"), (Fraction(-7), "-7"), (Fraction(1, 2), "0.5"), (Fraction(-1, 8), "-0.125"),
        (Fraction(12345, 100), "123.45"), (Fraction(1, 10**6), "0.000001"), (Fraction(1, 10**7), None),
        (Fraction(1, 3), None), (Fraction(10**20), str(10**20)),
    ],
)  # fmt: skip
def test_decimals_end_or_are_none(value, text):
    assert decimal(value) == text
    assert text is None or Fraction(text) == value


def test_given_finds_the_values_that_stand_where_they_are_owed():
    text = "k=-12/3=-4;C=5-(-4)=9;5+6=12;1+1=2;x=1+1=21;#9"
    assert [text[start:end] for start, end in given(text)] == ["-4", "9", "2"]


def test_a_longer_number_is_not_its_beginning():
    assert given("1+1=20") == []
    assert given("1+1=2.5") == []
    assert given("1+1=2") == [(4, 5)]


def test_words_that_begin_what_is_owed_are_allowed_and_no_others():
    words = ["", "-", "4", "-4", "49", "x", "9", "-41"]
    engine = Arithmetic(words)
    assert engine.allowed("k=-12/3=").tolist() == [word in ("-", "-4") for word in words]
    assert engine.allowed("D=7^{2}=").tolist() == [word in ("4", "49") for word in words]
    assert engine.allowed("D=7^{2}=4").tolist() == [word == "9" for word in words]
    assert engine.allowed("D=7^{2}=49") is None
    assert engine.allowed("D=") is None
    assert engine.allowed("1+2=") is None  # no word begins with 3
