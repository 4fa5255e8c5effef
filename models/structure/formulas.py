"""Reads where a token stands in a formula: in which bracket, which term, which role, which digit of a number.

Brackets are counted, no formula is parsed: half a formula has its ids, and so has one that is none. Positions of tokens
in trees are Shiv & Quirk 2019 (NeurIPS); the place of a digit within its number is Abacus embeddings (McLeish et al.
2024, arXiv:2405.17399).
"""

import re
from collections.abc import Mapping
from types import MappingProxyType

LINE_ENDS = ("\n", ";")  # a derivation's lines; a cell of a table writes them with semicolons
_PIECE = re.compile(r"\\[A-Za-z]+|[\s\S]")
_OPENERS = {"^": 1, "_": 2, "frac": 3, "sqrt": 4, "int": 5, "}": 6}  # what stands before a bracket
_ROUND, _OTHER = 7, 8
_VARIABLE, _POWER, _TIMES, _DIVIDED = 2, 3, 4, 5


class Formulas:
    """The reader of formulas in LaTeX or infix."""

    name = "formulas"
    sizes: Mapping[str, int] = MappingProxyType(
        {
            "opener": 9,  # what opened the innermost bracket
            "depth": 8,
            "argument": 8,  # of the innermost bracket: brackets closed, equals signs and commas before
            "term": 8,  # of the innermost sum
            "role": 6,  # number, variable, exponent, product, quotient
            "digit": 12,  # place within a number, from 1
            "line": 16,
            "column": 32,
        }
    )

    def begin(self) -> "FormulaPrefix":
        """Begins a text."""
        return FormulaPrefix()


class FormulaPrefix:
    """The beginning of a text of formulas."""

    def __init__(self) -> None:
        self._last = ""
        self._line = 0
        self._begin_line()

    def feed(self, word: str) -> tuple[int, ...]:
        """Adds a word; see `readers.Prefix`."""
        for piece in _PIECE.findall(word):
            self._add(piece)
        opener, argument, term = self._open[-1]
        said = (opener, len(self._open) - 1, argument, term, self._role, self._digit, self._line, self._column)
        return tuple(min(value, size - 1) for value, size in zip(said, Formulas.sizes.values(), strict=True))

    def _begin_line(self) -> None:
        self._open = [[0, 0, 0]]  # brackets: [opener, argument, term]
        self._column = self._digit = self._role = 0

    def _add(self, piece: str) -> None:
        if piece in LINE_ENDS:
            self._begin_line()
            self._line += 1
        else:
            self._column += 1
            self._bracket(piece)
            is_digit = piece.isdigit() or (piece == "." and self._digit > 0)
            self._digit = self._digit + 1 if is_digit else 0
            self._role = 1 if is_digit else _role(piece)
        self._last = piece

    def _bracket(self, piece: str) -> None:
        top = self._open[-1]
        if piece in ("{", "("):
            plain = _ROUND if piece == "(" else _OTHER
            self._open.append([_OPENERS.get(self._last.lstrip("\\"), plain), 0, 0])
        elif piece in ("}", ")"):
            if len(self._open) > 1:
                self._open.pop()
            self._open[-1][1] += 1
        elif piece in ("+", "-"):
            top[2] += self._last not in ("", "=", ",", "(", "{", *LINE_ENDS)  # else a sign
        elif piece in ("=", ","):
            top[1], top[2] = top[1] + 1, 0


def _role(piece: str) -> int:
    if piece.isalpha():
        return _VARIABLE
    return {"^": _POWER, "\\cdot": _TIMES, "*": _TIMES, "/": _DIVIDED}.get(piece, 0)
