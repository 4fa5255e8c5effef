"""Checks derivations line by line: numbers that are said to be equal must be."""

import re
from fractions import Fraction

from ..errors import AnswerRefused
from . import answers

_NUMBER = re.compile(r"-?[0-9]{1,18}(?:\.[0-9]{1,18})?")
_LETTER = re.compile(r"(?<!\\)(?<![A-Za-z])[A-Za-z](?![A-Za-z])")  # a symbol, or e: no exact number
# Parts of a derivation, each a chain of sides with equals signs between them. LaTeX writes blanks with a backslash, and
# a comma between digits that three digits follow may be one of thousands.
PARTED = r"(?<!\\)[;\n#]|(?<!\\)(?:(?<![0-9]),|,(?![0-9]{3}(?![0-9])))"
_PARTS = re.compile(PARTED)


def wrong_equalities(text: str) -> list[str]:
    """Finds the chains `a=b=c` of a derivation with numeric sides that are not all equal.

    A side is numeric if `answers` reads it without symbols and finds its exact value; others are passed over.
    """
    wrong = []
    for part in _PARTS.split(text):
        values = {value for side in part.split("=") if (value := _value(side)) is not None}
        if len(values) > 1:
            wrong.append(part)
    return wrong


def _value(side: str) -> object:
    side = side.strip()
    if _NUMBER.fullmatch(side):
        return Fraction(side)
    if _LETTER.search(side):
        return None
    try:
        return answers.value(answers.read(side, symbols=()))
    except AnswerRefused:
        return None
