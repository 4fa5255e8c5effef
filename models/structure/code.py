"""Reads where a token stands in a program: in its syntax tree, in which open constructs, at which word of which line.

A text names its language in its first line, `python` or `java`, and the program begins in the next. `SPLIT` parts what
is shown of a program's end from its beginning, which is read anew behind it: so a model that fills in a gap stands
where it would stand if it wrote on.

The tree is tree-sitter's, of the prefix alone: a parse of the whole program would tell what comes. Node types are read
by their names, which outlive a grammar's numbers. Syntax trees as an input are Kim et al. 2021 (ICSE) and, for small
models, GrammarCoder (2025, arXiv:2503.05507).
"""

import zlib
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, NamedTuple

from .constructs import LANGUAGES, SIZES, Constructs

SPLIT = "\x1d"  # ASCII's group separator, which stands in no program
_NODES = 1024  # rows of a table of node types; names that share a row are told apart by the others
_LONGEST_HEADING = 1 + max(map(len, LANGUAGES))  # signs that are kept of a first line: one too many is no language
_WINDOW, _SLACK = 2048, 256  # signs of a program that are parsed, so that a long one takes no longer for each word


class Code:
    """The reader of programs in Python and Java."""

    name = "code"
    sizes: Mapping[str, int] = MappingProxyType(
        {"leaf": _NODES, "parent": _NODES, "grandparent": _NODES, **SIZES}  # the last node of the tree so far
    )

    def begin(self) -> "CodePrefix":
        """Begins a text."""
        return CodePrefix()


class Parts(NamedTuple):
    """The parts of a text."""

    language: str  # what stands in the first line
    before: str  # the program up to where one writes on
    behind: str  # what follows a gap; "" without one


def parts_of(text: str) -> Parts:
    """Takes apart a text: a line that names its language, the program behind a gap if there is one, and that before."""
    language, end, program = text.partition("\n")
    behind, _, before = program.rpartition(SPLIT)
    return Parts(language if end else "", before, behind)


class CodePrefix:
    """The beginning of a program, behind a line that names its language."""

    def __init__(self) -> None:
        self._heading: str | None = ""  # None behind the first line
        self._text = ""
        self._constructs: Constructs | None = None  # None of a text that names no language
        self._language = ""
        self._parser: Any = None

    def feed(self, word: str) -> tuple[int, ...]:
        """Adds a word; see `readers.Prefix`."""
        for sign in word:
            self._add(sign)
        if self._constructs is None:
            return (0,) * len(Code.sizes)
        return (*self._nodes(), *self._constructs.ids())

    def _add(self, sign: str) -> None:
        if self._heading is not None:
            self._add_to_heading(self._heading, sign)
        elif self._constructs is not None and sign == SPLIT:
            self._constructs, self._text = Constructs(self._language), ""
        elif self._constructs is not None:
            self._constructs.feed(sign)
            self._text += sign

    def _add_to_heading(self, heading: str, sign: str) -> None:
        if sign != "\n":
            self._heading = (heading + sign)[:_LONGEST_HEADING]
            return
        self._heading = None
        if heading in LANGUAGES:
            self._language, self._constructs, self._parser = heading, Constructs(heading), parser_of(heading)

    def _nodes(self) -> tuple[int, int, int]:
        if len(self._text) > _WINDOW + _SLACK:
            self._text = self._text[self._text.find("\n", -_WINDOW) + 1 :][-_WINDOW:]
        node = self._parser.parse(self._text.encode(errors="replace")).root_node
        parent = grandparent = node
        while node.child_count:
            grandparent, parent, node = parent, node, node.child(node.child_count - 1)
        return _row(node.type), _row(parent.type), _row(grandparent.type)


def has_error(language: str, text: str) -> bool:
    """True if a program does not parse, by tree-sitter's grammar; declarations and statements may stand by themselves.

    Args:
        language: in `constructs.LANGUAGES`.
    """
    return bool(parser_of(language).parse(text.encode(errors="replace")).root_node.has_error)


def parser_of(language: str) -> Any:
    """Returns a parser, which is its caller's own: two threads may not share one."""
    import tree_sitter

    return tree_sitter.Parser(_grammar(language))


@cache
def _grammar(language: str) -> Any:
    import tree_sitter
    import tree_sitter_java
    import tree_sitter_python

    grammars = {"python": tree_sitter_python, "java": tree_sitter_java}
    return tree_sitter.Language(grammars[language].language())


@cache
def _row(name: str) -> int:
    return 1 + zlib.crc32(name.encode()) % (_NODES - 1)
