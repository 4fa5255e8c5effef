"""Makes mutants of a program: copies with one common error each, of seven patterns, which still parse.

What an error is follows from the syntax tree, in Python and Java alike; so no parser finds it, and a model that tells
the program from its mutant knows more than the grammar. Patterns go both ways where they can (a negation is taken away
or added), so that none is found by counting signs. Mutation operators are those of mutation testing (DeMillo, Lipton
and Sayward 1978, Computer 11(4); mutmut, cosmic-ray); a wrong name is the misused variable of Allamanis et al. 2018
(ICLR, arXiv:1711.00740).
"""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple

from ..structure.code import parser_of
from .programs import parses

PATTERNS = ("operator", "off by one", "return", "negation", "wrong name", "swapped arguments", "indentation")

_STEP = "    "  # of indentation
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


class Mutant(NamedTuple):
    """A copy of a program with one error."""

    pattern: str  # in `PATTERNS`
    text: str


class _Edit(NamedTuple):
    pattern: str
    start: int  # bytes [start, stop) of the program are replaced
    stop: int
    text: str


def mutants(language: str, program: str) -> list[Mutant]:
    """Makes all mutants of a program, each other than it and the others, in the order of their patterns and places.

    Which of several other names stands in the place of one follows from SHA-256 of program and place, so that the same
    program always has the same mutants.

    Args:
        language: in `constructs.LANGUAGES`.
        program: printable ASCII, as records of code are.
    """
    nodes = list(_walk(parser_of(language).parse(program.encode()).root_node))
    edits = [
        *_swapped_operators(nodes),
        *_off_by_one(nodes),
        *_returns(nodes),
        *_negations(language, nodes),
        *_wrong_names(nodes, program),
        *_swapped_arguments(nodes, program),
        *_indentations(program),
    ]
    edits.sort(key=lambda edit: (PATTERNS.index(edit.pattern), edit.start))
    found = {program[: edit.start] + edit.text + program[edit.stop :]: edit.pattern for edit in edits}
    return [Mutant(pattern, text) for text, pattern in found.items() if text != program and parses(language, text)]


def _walk(root: Any) -> Iterator[Any]:
    todo = [root]
    while todo:
        node = todo.pop()
        yield node
        todo += reversed(node.children)


def _swapped_operators(nodes: Sequence[Any]) -> Iterator[_Edit]:
    for node in nodes:
        if node.type in _SWAPS and node.parent.type in _OPERATIONS:
            yield _Edit("operator", node.start_byte, node.end_byte, _SWAPS[node.type])


def _off_by_one(nodes: Sequence[Any]) -> Iterator[_Edit]:
    for node in nodes:
        if node.type in _NUMBERS and (word := _text(node)).isdigit() and (word == "0" or word[0] != "0"):
            for other in {abs(int(word) - 1), int(word) + 1}:
                yield _Edit("off by one", node.start_byte, node.end_byte, str(other))


def _returns(nodes: Sequence[Any]) -> Iterator[_Edit]:
    """Takes away the word `return`, or puts one before a call whose value is not used."""
    for node in nodes:
        if node.type == "return" and node.next_sibling is not None and node.next_sibling.is_named:
            yield _Edit("return", node.start_byte, node.next_sibling.start_byte, "")
        if node.type == "expression_statement" and node.children[0].type in ("call", "method_invocation"):
            yield _Edit("return", node.start_byte, node.start_byte, "return ")


def _negations(language: str, nodes: Sequence[Any]) -> Iterator[_Edit]:
    for node in nodes:
        if node.type in _NEGATIONS and node.children[0].type in ("not", "!"):
            yield _Edit("negation", node.start_byte, node.children[1].start_byte, "")
        if node.type not in ("if_statement", "while_statement", "elif_clause"):
            continue
        condition = node.child_by_field_name("condition")
        if language == "python":
            if condition.type in ("identifier", "attribute", "call"):
                yield _Edit("negation", condition.start_byte, condition.start_byte, "not ")
        elif condition.named_child_count == 1 and (inner := condition.named_children[0]).type in (
            "identifier", "field_access", "method_invocation",
        ):  # fmt: skip
            yield _Edit("negation", inner.start_byte, inner.start_byte, "!")


def _wrong_names(nodes: Sequence[Any], program: str) -> Iterator[_Edit]:
    """Puts another variable that is bound by then where one is read."""
    bound: dict[str, int] = {}
    places = set()
    for node in nodes:
        if node.type in _BINDINGS:
            field, value = _BINDINGS[node.type], node.child_by_field_name("right") or node.child_by_field_name("value")
            for name in _names(node if field is None else node.child_by_field_name(field)):
                places.add(name.start_byte)
                bound.setdefault(_text(name), name.start_byte if value is None else value.end_byte)
    for node in nodes:
        if node.type != "identifier" or node.start_byte in places or _is_member(node):
            continue
        word = _text(node)
        if word in bound and word not in _NEVER_WRONG and bound[word] <= node.start_byte:
            others = [name for name, start in bound.items() if start <= node.start_byte]
            others = [name for name in others if name != word and name not in _NEVER_WRONG]
            if others:
                seed = f"confide wrong name\0{node.start_byte}\0{program}".encode()
                number = int.from_bytes(hashlib.sha256(seed).digest()[:8], "little")
                yield _Edit("wrong name", node.start_byte, node.end_byte, others[number % len(others)])


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


def _swapped_arguments(nodes: Sequence[Any], program: str) -> Iterator[_Edit]:
    for node in nodes:
        if node.type != "argument_list":
            continue
        for first, second in pairwise(node.named_children):
            if not any("keyword" in each.type or "splat" in each.type for each in (first, second)):
                text = _text(second) + program[first.end_byte : second.start_byte] + _text(first)
                yield _Edit("swapped arguments", first.start_byte, second.end_byte, text)


def _indentations(program: str) -> Iterator[_Edit]:
    """Moves a line a step in or out, none out of the function that the program is."""
    start = program.find("\n") + 1
    while start:
        if program.startswith(2 * _STEP, start):
            yield _Edit("indentation", start, start + len(_STEP), "")
        yield _Edit("indentation", start, start, _STEP)
        start = program.find("\n", start) + 1


def _text(node: Any) -> str:
    text: bytes = node.text
    return text.decode()
