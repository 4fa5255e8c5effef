"""Writes the exact value of a numeric expression behind its equals sign, so that a model need not calculate.

Calculator annotations are those of GSM8K (Cobbe et al. 2021, arXiv:2110.14168). Here nothing marks the expression: a
text that ends in one and `=` is owed its value. Only digits, operations and brackets are read, by the bounded reader of
`evaluation.answers`; a value is written as a whole number or a decimal that ends.
"""

import re
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from ..errors import AnswerRefused
from ..evaluation import answers
from .guide import Guide

MOST_PLACES = 6  # of a decimal; a longer one is left to the model
_LONGEST = 200  # characters of an expression
_EXPRESSION = re.compile(r"(?:[-+0-9./(){}^*]|\\cdot|\\times|\\sqrt|\\frac)+")
_OPERATION = re.compile(r"(?<=.)[-+/*^]|\\")  # a sign alone is none
_GOES_ON = re.compile(r"\.?[0-9]")  # behind a value: the number is another
_BEFORE = re.compile(r"[=;,\n]")  # what parts expressions


class Arithmetic(Guide):
    """Allows behind the equals sign of a numeric expression its value alone, and everything elsewhere."""

    def __init__(self, words: Sequence[str]) -> None:
        """Takes the text of every word of the vocabulary."""
        self._by_sign: dict[str, list[tuple[int, str]]] = {}
        for number, word in enumerate(words):
            if word:
                self._by_sign.setdefault(word[0], []).append((number, word))
        self._count = len(words)

    def allowed(self, text: str) -> npt.NDArray[np.bool_] | None:
        """Returns the words that begin what is owed; None if nothing is, or no word begins it."""
        rest = owed(text)
        if not rest:
            return None
        begun = [number for number, word in self._by_sign.get(rest[0], ()) if rest.startswith(word)]
        if not begun:
            return None
        mask = np.zeros(self._count, dtype=np.bool_)
        mask[begun] = True
        return mask


def owed(text: str) -> str:
    """Returns what remains to be written of the value that a text owes; "" if it owes none."""
    before, equals, begun = text[-2 * _LONGEST :].rpartition("=")
    value = _value(_BEFORE.split(before)[-1]) if equals else None
    return value[len(begun) :] if value is not None and value.startswith(begun) else ""


def given(text: str) -> list[tuple[int, int]]:
    """Finds the places [start, end) in a text of values that are owed there, and stand there as they should."""
    found = []
    for equals in re.finditer("=", text):
        start = equals.end()
        value = _value(_BEFORE.split(text[max(0, start - 2 * _LONGEST) : start - 1])[-1])
        if value is not None and text.startswith(value, start) and not _GOES_ON.match(text, start + len(value)):
            found.append((start, start + len(value)))
    return found


def decimal(value: Fraction) -> str | None:
    """Writes a number as a whole number or a decimal; None if it has more than `MOST_PLACES` places."""
    for places in range(MOST_PLACES + 1):
        scaled = value * 10**places
        if scaled.denominator == 1:
            digits = str(abs(scaled.numerator)).rjust(places + 1, "0")
            whole, rest = digits[: len(digits) - places], digits[len(digits) - places :]
            return ("-" if value < 0 else "") + whole + ("." + rest if rest else "")
    return None


def _value(expression: str) -> str | None:
    """Computes the value of a numeric expression; None if it is none, or has no short value."""
    if len(expression) > _LONGEST or not _EXPRESSION.fullmatch(expression) or not _OPERATION.search(expression):
        return None
    try:
        value = answers.value(answers.read(expression, symbols=()))
    except AnswerRefused:
        return None
    return None if value is None else decimal(value)
