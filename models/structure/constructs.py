"""Follows the open constructs of a program as it is written: brackets, strings, comments, blocks, Python's and Java's.

Signs are read one by one and nothing is looked at twice, so half a program has its place in it, and so has one that is
none. Positions of tokens in trees are Shiv & Quirk 2019 (NeurIPS); syntax as an input of code models is Kim et al. 2021
(ICSE); checking a continuation sign by sign is PICARD (Scholak et al. 2021, EMNLP).
"""

from types import MappingProxyType
from typing import NamedTuple

LANGUAGES = ("python", "java")
_BRACKETS = MappingProxyType({"(": ")", "[": "]", "{": "}"})
_QUOTES = "\"'"
_LINE_COMMENTS = ("#", "//")
_HEADS = {
    "python": (
        "async", "case", "class", "def", "elif", "else", "except", "finally", "for", "if", "match", "try", "while",
        "with",
    ),
    "java": (
        "case", "catch", "class", "do", "else", "enum", "finally", "for", "if", "interface", "new", "record", "return",
        "switch", "synchronized", "try", "while",
    ),
}  # fmt: skip
# Signs that stand in strings and comments alone, or, as blanks other than " ", in no record.
_FOREIGN = {"python": "$?`\t\r\f\v", "java": "#`\\\t\r\f\v"}
BREAKING = frozenset("\n").union(_BRACKETS.values(), *_FOREIGN.values())  # all that can break a line that has begun
_OTHERS = ("assert", "break", "continue", "del", "from", "import", "pass", "raise", "return", "throw", "yield")
_NONE, _OTHER = "<none>", "other"
_WORDS = sorted({word for heads in _HEADS.values() for word in heads})
KINDS = {kind: number for number, kind in enumerate((_NONE, "(", "[", "{", "string", "comment", *_WORDS, _OTHER))}
FIRST = {word: number for number, word in enumerate(dict.fromkeys((_NONE, *_WORDS, *_OTHERS, _OTHER)))}
SIZES = MappingProxyType(
    {
        "innermost": len(KINDS),  # what is open
        "second": len(KINDS),
        "third": len(KINDS),
        "brackets": 8,
        "depth": 16,  # brackets, strings, comments and blocks
        "sibling": 8,  # statements or commas so far in the innermost
        "words": 8,  # so far in the statement
        "first": len(FIRST),  # word of the statement
        "last_first": len(FIRST),  # of the statement before
        "indentation": 20,  # of the line on the page, in twos
    }
)


class _Open(NamedTuple):
    """A construct that is not closed."""

    kind: str  # in `KINDS`
    mate: str  # the bracket that closes it; "" for the file, for blocks of Python, strings and comments
    body: int  # indentation of a Python block's statements; 0 for the file, -1 for all others
    siblings: int = 0  # statements or commas so far


class Constructs:
    """The open constructs of a program's beginning, innermost last."""

    def __init__(self, language: str) -> None:
        """Begins a program in one of `LANGUAGES`."""
        self._is_python, self._heads, self._foreign = language == "python", _HEADS[language], _FOREIGN[language]
        self._open = [_Open(_NONE, "", 0)]  # the file itself is never closed
        self._delimiter = self._inside = ""  # of the string or comment that is open, and its last signs
        self._length, self._is_escaped = 0, False  # of what is inside; whether its next sign is meant as one
        self._empty = ""  # the quote of an empty string that was closed by the last sign
        self._word = self._last = self._before = ""  # the word that grows; the last sign; the last but blanks
        self._header = ""  # the word of this statement that opens a block
        self._first, self._last_first, self._words = _NONE, _NONE, 0
        self._blanks, self._is_line_blank = 0, True  # of the line on the page
        self._is_begun = False  # the statement, in Python
        self._base = list(self._open)  # open before the line's indentation
        self._waiting = ""  # the block that a line may begin

    def copy(self) -> "Constructs":
        """Returns a copy, which grows by itself."""
        twin = object.__new__(Constructs)
        twin.__dict__.update(self.__dict__)
        twin._open, twin._base = list(self._open), list(self._base)
        return twin

    def feed(self, text: str) -> bool:
        """Adds text; returns False if a sign of it cannot stand where it does in a program that parses."""
        fits = [self._add(sign) for sign in text]
        return all(fits)

    def ids(self) -> tuple[int, ...]:
        """Returns an id for each of `SIZES`."""
        kinds = [KINDS[each.kind] for each in self._open[:0:-1][:3]]
        said = (
            *kinds, *[0] * (3 - len(kinds)),
            sum(bool(each.mate) for each in self._open), len(self._open) - 1, self._open[-1].siblings, self._words,
            FIRST.get(self._first, FIRST[_OTHER]), FIRST.get(self._last_first, FIRST[_OTHER]), self._blanks // 2,
        )  # fmt: skip
        return tuple(min(value, size - 1) for value, size in zip(said, SIZES.values(), strict=True))

    def may_grow_by(self, word: str) -> bool:
        """True if a word may come next, as far as brackets, strings and indentation go."""
        twin = self.copy()
        is_fit = twin.feed(word)
        # Blanks can only grow: a line too far to the right can become a comment or an empty line alone, and shall not.
        return is_fit and (not twin.is_indenting or bool(twin._waiting) or twin._blanks <= twin._base[-1].body)

    @property
    def is_indenting(self) -> bool:
        """True between a line break of Python and the first sign of the next statement, where blanks decide."""
        is_free = not self._delimiter and not self._is_in_bracket()
        return self._is_python and not self._is_begun and is_free

    def may_end(self) -> bool:
        """True if the program may end here: nothing is open, and no block waits for its first statement."""
        if self._delimiter not in ("", *_LINE_COMMENTS) or self._is_in_bracket() or not self._before:
            return False
        return self._before not in ":\\" if self._is_python else self._before in "};"

    def _add(self, sign: str) -> bool:
        empty, self._empty = self._empty, ""
        if self._delimiter:
            is_fit = self._in_text(sign)
        elif empty and sign == empty:  # the third quote in a row
            self._open_text("string", sign * 3)
            is_fit = True
        else:
            is_fit = self._in_code(sign)
        if sign == "\n":
            self._blanks, self._is_line_blank = 0, True
        return is_fit

    def _in_text(self, sign: str) -> bool:
        delimiter, is_string = self._delimiter, self._delimiter[0] in _QUOTES
        if sign == "\n" and not self._is_escaped and (delimiter in _QUOTES or delimiter in _LINE_COMMENTS):
            self._close_text()
            return self._in_code(sign) and not is_string
        self._length += 1
        if self._is_escaped or (is_string and sign == "\\"):
            self._is_escaped, self._inside = not self._is_escaped, ""
            return True
        self._inside = (self._inside + sign)[-3:]
        if self._inside.endswith(delimiter if is_string else "*/") and delimiter not in _LINE_COMMENTS:
            self._empty = delimiter if self._length == 1 else ""
            self._before = sign if is_string else self._before
            self._close_text()
        return True

    def _open_text(self, kind: str, delimiter: str) -> None:
        self._open.append(_Open(kind, "", -1))
        self._delimiter, self._inside, self._length = delimiter, "", 0

    def _close_text(self) -> None:
        self._open.pop()
        self._delimiter = self._last = ""
        self._is_escaped = False

    def _in_code(self, sign: str) -> bool:
        last, self._last = self._last, sign
        if sign == "\n":
            self._end_word()
            return self._end_line(is_continued=last == "\\")
        if sign == " ":
            self._end_word()
            if self._is_line_blank:
                self._blanks += 1
                self._indent()
            return True
        self._is_line_blank = False
        if self._is_comment(last, sign):
            self._end_word()
            self._open_text("comment", sign if self._is_python else last + sign)
            return True
        is_fit = self._begin_statement()
        if sign.isalnum() or sign == "_":
            self._word += sign
        else:
            self._end_word()
            is_fit &= self._punctuate(sign)
        if sign != "/":  # which may begin a comment
            self._before = sign
        return is_fit

    def _is_comment(self, last: str, sign: str) -> bool:
        return sign == "#" if self._is_python else last == "/" and sign in "/*"

    def _punctuate(self, sign: str) -> bool:
        top = self._open[-1]
        if sign in _QUOTES:
            self._open_text("string", sign)
        elif sign in _BRACKETS:
            is_block = sign == "{" and not self._is_python
            self._open.append(_Open((is_block and self._header) or sign, _BRACKETS[sign], -1))
            if is_block:
                self._end_statement()
        elif sign in _BRACKETS.values():
            if top.mate != sign:
                return False
            self._open.pop()
            if sign == "}" and not self._is_python:
                self._end_statement()
                self._count()
        elif sign in self._foreign:
            return False
        elif sign == "," or (sign == ";" and top.mate != ")"):
            if sign == ";":
                self._end_statement()
            self._count()
        return True

    def _count(self) -> None:
        self._open[-1] = self._open[-1]._replace(siblings=self._open[-1].siblings + 1)

    def _end_word(self) -> None:
        word, self._word = self._word, ""
        if not word:
            return
        if self._words == 0:
            self._first = word if word in FIRST else _OTHER
        if word in self._heads and (not self._is_python or self._words == 0 or self._first == "async"):
            self._header = word
        self._words += 1

    def _end_statement(self) -> None:
        self._last_first, self._first, self._words, self._header = self._first, _NONE, 0, ""

    def _is_in_bracket(self) -> bool:
        return any(each.mate for each in self._open)

    def _end_line(self, *, is_continued: bool) -> bool:
        if not self._is_python or is_continued or self._is_in_bracket():
            return True
        if self._is_begun:
            self._base, self._waiting = list(self._open), self._header if self._before == ":" else ""
            self._is_begun = False
            self._end_statement()
        self._blanks = 0
        self._indent()
        return True

    def _indent(self) -> None:
        """Opens and closes Python's blocks as the blanks of a line say so far."""
        if not self._is_python or self._is_begun or self._is_in_bracket():
            return
        self._open = list(self._base)
        if self._waiting and self._blanks > self._open[-1].body:
            self._open.append(_Open(self._waiting, "", self._blanks))
            return
        while self._open[-1].body > self._blanks:
            self._open.pop()
        self._count()

    def _begin_statement(self) -> bool:
        """Says whether the indentation of a line that begins is one that is open."""
        if not self._is_python or self._is_begun:
            return True
        self._is_begun = True
        is_new = bool(self._waiting)
        self._waiting = ""
        return self._open[-1].body == self._blanks and (not is_new or len(self._open) > len(self._base))
