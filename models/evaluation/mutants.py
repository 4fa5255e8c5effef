"""Makes mutants of a program: copies with one common error each, of seven patterns, which still parse.

What an error is follows from the syntax tree, in Python and Java alike; so a parser does not find it, and a model that
tells the program from its mutant knows more than the grammar. Patterns go both ways where they can (a negation is taken
away or added), so that none is found by counting signs. Java's indentation means nothing, and none of its lines is
moved. Mutation operators are those of mutation testing (DeMillo, Lipton and Sayward 1978, Computer 11(4); mutmut,
cosmic-ray); a wrong name is the misused variable of Allamanis et al. 2018 (ICLR, arXiv:1711.00740).
"""

import ast
import hashlib
import warnings
from collections.abc import Iterator, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from ..structure.code import parser_of
from .programs import parses

T = TypeVar("T")

PATTERNS = ("operator", "off by one", "return", "negation", "wrong name", "swapped arguments", "indentation")

_STEP = b"    "  # of indentation
_SWAPS = MappingProxyType(
    {a: b for pair in ("+ -", "* /", "< <=", "> >=", "== !=", "&& ||", "and or", "+= -=") for a, b in
     (pair.split(), pair.split()[::-1])}
)  # fmt: skip
_OPERATIONS = frozenset(
    {"binary_operator", "boolean_operator", "comparison_operator", "augmented_assignment",
     "binary_expression", "assignment_expression"}
)  # fmt: skip
_NUMBERS = frozenset({"integer", "decimal_integer_literal"})
_NEGATIONS = frozenset({"not_operator", "unary_expression"})
_CONDITIONS = frozenset({"identifier", "attribute", "call", "field_access", "method_invocation"})
_STATEMENTS = frozenset(  # Java's expressions that may stand as a statement
    {"method_invocation", "assignment_expression", "update_expression", "object_creation_expression"}
)
_NEVER_WRONG = frozenset({"self", "cls"})
# Where a name is bound: the node, and the field that holds the name, or holds what holds it.
_BINDINGS = MappingProxyType(
    {
        "parameters": None, "lambda_parameters": None, "inferred_parameters": None,
        "assignment": "left", "for_statement": "left", "for_in_clause": "left", "named_expression": "name",
        "as_pattern": "alias", "formal_parameter": "name", "catch_formal_parameter": "name",
        "variable_declarator": "name", "enhanced_for_statement": "name", "resource": "name",
    }
)  # fmt: skip
_PATTERNS_OF_NAMES = frozenset(  # what a binding may consist of; its other parts, as a type or a default, read names
    {"parameters", "lambda_parameters", "inferred_parameters", "pattern_list", "tuple_pattern", "list_pattern",
     "list_splat_pattern", "dictionary_splat_pattern", "as_pattern_target", "default_parameter", "typed_parameter",
     "typed_default_parameter"}
)  # fmt: skip
_SCOPES = MappingProxyType(  # nodes outside of which a name that is bound in them means nothing
    {
        "python": frozenset(
            {"function_definition", "lambda", "list_comprehension", "set_comprehension", "dictionary_comprehension",
             "generator_expression"}
        ),
        "java": frozenset(
            {"block", "for_statement", "enhanced_for_statement", "lambda_expression", "catch_clause",
             "try_with_resources_statement", "switch_block", "method_declaration", "constructor_declaration"}
        ),
    }
)  # fmt: skip


class Mutant(NamedTuple):
    """A copy of a program with one error."""

    pattern: str  # in `PATTERNS`
    text: str


class _Edit(NamedTuple):
    pattern: str
    start: int  # bytes [start, stop) of the program are replaced
    stop: int
    text: bytes


class _Binding(NamedTuple):
    name: str
    start: int  # byte from which on it may be read, up to the end of its scope
    scope: tuple[int, int]

    def reaches(self, place: int) -> bool:
        return self.start <= place and self.scope[0] <= place < self.scope[1]


def mutants(language: str, program: str) -> list[Mutant]:
    """Makes all mutants of a program, each other than it and the others, in the order of their patterns and places.

    Which of several other names stands in the place of one follows from SHA-256 of program and place, so that the same
    program always has the same mutants.

    Args:
        language: in `structure.constructs.LANGUAGES`.
    """
    found: dict[str, str] = {}
    for edit in _edits(language, program):
        if (text := _edited(language, program, edit)) is not None:
            found.setdefault(text, edit.pattern)
    return [Mutant(pattern, text) for text, pattern in found.items()]


def some_mutant(language: str, program: str) -> Mutant | None:
    """Makes one of a program's mutants; None if no error has a place in it.

    Which one follows from SHA-256 of the program: first the pattern, each as likely as another, then the place.
    """
    by_pattern: dict[str, list[_Edit]] = {}
    for edit in _edits(language, program):
        by_pattern.setdefault(edit.pattern, []).append(edit)
    digest = hashlib.sha256(b"confide mutant\0" + program.encode()).digest()
    first, second = (int.from_bytes(digest[place : place + 8], "little") for place in (0, 8))
    for own in _from(list(by_pattern.values()), first):
        for edit in _from(own, second):
            if (text := _edited(language, program, edit)) is not None:
                return Mutant(edit.pattern, text)
    return None


def _from(items: list[T], number: int) -> list[T]:
    """Returns all items, beginning at one of them."""
    place = number % max(1, len(items))
    return items[place:] + items[:place]


def _edits(language: str, program: str) -> list[_Edit]:
    """Finds where errors have a place, in the order of their patterns and places."""
    data = program.encode()
    nodes = list(_walk(parser_of(language).parse(data).root_node))
    found = [
        *_swapped_operators(nodes),
        *_off_by_one(nodes),
        *_returns(language, nodes),
        *_negations(language, nodes),
        *_wrong_names(language, nodes, data),
        *_swapped_arguments(nodes, data),
        *(_indentations(data) if language == "python" else ()),
    ]
    return sorted(found, key=lambda edit: (PATTERNS.index(edit.pattern), edit.start))


def _edited(language: str, program: str, edit: _Edit) -> str | None:
    """Returns the copy with an edit; None if it does not parse, or is the same program: a line may move and mean so."""
    data = program.encode()
    text = (data[: edit.start] + edit.text + data[edit.stop :]).decode()
    if text == program or not parses(language, text):
        return None
    return None if edit.pattern == "indentation" and _mean_the_same(program, text) else text


def _mean_the_same(program: str, other: str) -> bool:
    """True if two programs of Python have the same syntax tree; one that does not parse is like no other."""
    if not parses("python", program):
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of strange escapes, which are no errors
        return ast.dump(ast.parse(program)) == ast.dump(ast.parse(other))


def _walk(root: Any) -> Iterator[Any]:
    todo = [root]
    while todo:
        node = todo.pop()
        yield node
        todo += reversed(node.children)


def _swapped_operators(nodes: Sequence[Any]) -> Iterator[_Edit]:
    for node in nodes:
        if node.type in _SWAPS and node.parent.type in _OPERATIONS:
            yield _Edit("operator", node.start_byte, node.end_byte, _SWAPS[node.type].encode())


def _off_by_one(nodes: Sequence[Any]) -> Iterator[_Edit]:
    for node in nodes:
        if node.type in _NUMBERS and (word := _text(node)).isdigit() and (word == "0" or word[0] != "0"):
            for other in (int(word) - 1, int(word) + 1):
                if other >= 0:
                    yield _Edit("off by one", node.start_byte, node.end_byte, str(other).encode())


def _returns(language: str, nodes: Sequence[Any]) -> Iterator[_Edit]:
    """Takes away the word `return`, or puts one before a call whose value is not used."""
    for node in nodes:
        value = node.next_sibling if node.type == "return" else None
        if value is not None and value.is_named and (language == "python" or value.type in _STATEMENTS):
            yield _Edit("return", node.start_byte, value.start_byte, b"")
        if node.type == "expression_statement" and node.children[0].type in ("call", "method_invocation"):
            yield _Edit("return", node.start_byte, node.start_byte, b"return ")


def _negations(language: str, nodes: Sequence[Any]) -> Iterator[_Edit]:
    """Takes a negation away, or puts one before a condition that is a name or a call."""
    for node in nodes:
        if node.type in _NEGATIONS and node.children[0].type in ("not", "!"):
            yield _Edit("negation", node.start_byte, node.children[1].start_byte, b"")
        if node.type in ("if_statement", "while_statement", "elif_clause"):
            condition = node.child_by_field_name("condition")
            if language == "java" and condition.named_child_count == 1:
                condition = condition.named_children[0]  # in its brackets
            if condition.type in _CONDITIONS:
                word = b"not " if language == "python" else b"!"
                yield _Edit("negation", condition.start_byte, condition.start_byte, word)


def _wrong_names(language: str, nodes: Sequence[Any], data: bytes) -> Iterator[_Edit]:
    """Puts another variable that is bound by then where one is read."""
    bound, places = _bindings(language, nodes)
    for node in nodes:
        if node.type != "identifier" or node.start_byte in places or _is_member(node):
            continue
        names = dict.fromkeys(each.name for each in bound if each.reaches(node.start_byte))
        word = _text(node)
        others = [name for name in names if name != word and name not in _NEVER_WRONG]
        if word in names and word not in _NEVER_WRONG and others:
            seed = b"confide wrong name\0%d\0" % node.start_byte + data
            number = int.from_bytes(hashlib.sha256(seed).digest()[:8], "little")
            yield _Edit("wrong name", node.start_byte, node.end_byte, others[number % len(others)].encode())


def _bindings(language: str, nodes: Sequence[Any]) -> tuple[list[_Binding], set[int]]:
    """Finds what variables are bound, and the places where they are."""
    found, places = [], set()
    for node in nodes:
        if node.type in _BINDINGS:
            field, value = _BINDINGS[node.type], node.child_by_field_name("right") or node.child_by_field_name("value")
            scope = _scope(language, node)
            for name in _names(node if field is None else node.child_by_field_name(field)):
                places.add(name.start_byte)
                found.append(_Binding(_text(name), name.start_byte if value is None else value.end_byte, scope))
    return found, places


def _scope(language: str, node: Any) -> tuple[int, int]:
    """Finds the bytes of the innermost scope around a binding; those of the program, if there is none."""
    while node.type not in _SCOPES[language] and node.parent is not None:
        node = node.parent
    return node.start_byte, node.end_byte


def _names(node: Any) -> Iterator[Any]:
    """Yields the names that a binding binds."""
    if node is None:
        return
    if node.type == "identifier":
        yield node
    elif node.type in ("default_parameter", "typed_default_parameter"):
        yield from _names(node.child_by_field_name("name"))
    elif node.type == "typed_parameter":
        yield from _names(node.named_children[0])
    elif node.type in _PATTERNS_OF_NAMES:
        for child in node.named_children:
            yield from _names(child)


def _is_member(node: Any) -> bool:
    """True for what an object or a call gives a meaning: an attribute, a method, the name of an argument."""
    parent = node.parent
    fields = {
        "attribute": "attribute",
        "keyword_argument": "name",
        "field_access": "field",
        "method_invocation": "name",
    }
    field = fields.get(parent.type)
    return field is not None and parent.child_by_field_name(field) == node


def _swapped_arguments(nodes: Sequence[Any], data: bytes) -> Iterator[_Edit]:
    for node in nodes:
        if node.type != "argument_list":
            continue
        arguments = [each for each in node.named_children if "comment" not in each.type]
        for first, second in pairwise(arguments):
            if not any("keyword" in each.type or "splat" in each.type for each in (first, second)):
                text = second.text + data[first.end_byte : second.start_byte] + first.text
                yield _Edit("swapped arguments", first.start_byte, second.end_byte, text)


def _indentations(data: bytes) -> Iterator[_Edit]:
    """Moves a line a step in or out, none out of the function that the program is."""
    start = data.find(b"\n") + 1
    while start:
        if data.startswith(2 * _STEP, start):
            yield _Edit("indentation", start, start + len(_STEP), b"")
        yield _Edit("indentation", start, start, _STEP)
        start = data.find(b"\n", start) + 1


def _text(node: Any) -> str:
    text: bytes = node.text
    return text.decode()
