"""Writes the exact value of a numeric expression behind its equals sign, so that a model need not calculate.

Calculator annotations are those of GSM8K (Cobbe et al. 2021, arXiv:2110.14168). Here nothing marks the expression: a
text that ends in one and `=` is owed its value. Only digits, operations, brackets and blanks are read, by the bounded
reader of `evaluation.answers`; a value is written as a whole number or a decimal that ends.

An expression begins behind an equals sign, a semicolon, a comma or a line break. A comma between digits that three
digits follow may part thousands, so it parts nothing, and such a text is owed nothing.
"""

import re
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from ..errors import AnswerRefused
from ..evaluation import answers
from ..evaluation.derivations import PARTED
from .guide import Guide

MOST_PLACES = 6  # of a decimal; a longer one is left to the model
MOST_SIGNS = 24  # of a value
_LONGEST = 200  # characters of an expression
_EXPRESSION = re.compile(r"(?:[-+0-9./(){}^* ]|\\[,;:! ]|\\cdot|\\times|\\sqrt|\\frac)+")
_OPERATION = re.compile(r"(?<=.)[-+/*^]|\\[a-z]")  # a sign alone is none
_GOES_ON = re.compile(r"\.?[0-9]")  # behind a value: the number is another
_BEFORE = re.compile(f"=|{PARTED}")


class Arithmetic(Guide):
    """Allows behind the equals sign of a numeric expression its value alone, and everything elsewhere."""

    def __init__(self, words: Sequence[str]) -> None:
        """Takes the text of every word of the vocabulary."""
        self._words = tuple(words)
        self._by_sign: dict[str, list[int]] = {}
        for number, word in enumerate(words):
            if word:
                self._by_sign.setdefault(word[0], []).append(number)
        self._through = [number for number, word in enumerate(words) if "=" in word[:-1]]  # an equals sign and more
        self._longer = np.array([word[:1].isdigit() or word[:1] == "." for word in words], dtype=np.bool_)

    def allowed(self, prompt: str, text: str) -> npt.NDArray[np.bool_] | None:
        """Returns the words that begin what is owed, or a blank before it; None if all may come, or none begins it.

        Behind a whole value no word may make its number longer, and no word with an equals sign inside may pass over
        what is owed there. An expression in the prompt is owed nothing.
        """
        del prompt
        rest, begun = _debt(text)
        if rest:
            choices = [rest, f" {rest}"] if text.endswith("=") else [rest]
            found = [
                number
                for choice in choices
                for number in self._by_sign.get(choice[0], ())
                if choice.startswith(self._words[number])
            ]
            if not found:
                return None
            mask = np.zeros(len(self._words), dtype=np.bool_)
            mask[found] = True
            return mask
        refused = [number for number in self._through if self._passes_over(text, self._words[number])]
        if not (refused or begun):
            return None
        mask = ~self._longer if begun else np.ones(len(self._words), dtype=np.bool_)
        mask[refused] = False
        return mask

    def _passes_over(self, text: str, word: str) -> bool:
        """True if a word has an equals sign that is owed a value, and goes on with something else."""
        head, _, tail = word.rpartition("=")
        rest, _ = _debt(f"{text}{head}=")
        tail = tail.lstrip(" ")
        return bool(rest and tail) and not rest.startswith(tail)


def owed(text: str) -> str:
    """Returns what remains to be written of the value that a text owes; "" if it owes none."""
    return _debt(text)[0]


def given(text: str) -> list[tuple[int, int]]:
    """Finds the places [start, end) in a text of values that are owed there, and stand there as they should."""
    found = []
    for equals in re.finditer("= *", text):
        start = equals.end()
        value = _value(_before(text, equals.start()))
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


def _debt(text: str) -> tuple[str, str]:
    """Finds what remains to be written of a value, and what of it is written; ("", value) where all of it is."""
    equals = text.rfind("=", max(0, len(text) - MOST_SIGNS - 8))
    if equals < 0:
        return "", ""
    begun = text[equals + 1 :].lstrip(" ")
    value = _value(_before(text, equals))
    return (value[len(begun) :], begun) if value is not None and value.startswith(begun) else ("", "")


def _before(text: str, equals: int) -> str:
    """Returns what stands between an equals sign and what parts it from the text before."""
    return _BEFORE.split(text[max(0, equals - _LONGEST - 1) : equals])[-1]


def _value(expression: str) -> str | None:
    """Computes the value of a numeric expression; None if it is none, or has no short value."""
    expression = expression.strip()
    if len(expression) > _LONGEST or not _EXPRESSION.fullmatch(expression) or not _OPERATION.search(expression):
        return None
    try:
        value = answers.value(answers.read(expression, symbols=()))
    except AnswerRefused:
        return None
    written = None if value is None else decimal(value)
    return written if written is not None and len(written) <= MOST_SIGNS else None
