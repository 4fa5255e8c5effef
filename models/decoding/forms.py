"""Forms that a written text must have: JSON of a schema, a regular expression, a report around given figures.

A form says before each word which ones may come. Its automata are llguidance's (MIT; the engine of vLLM, SGLang and
llama.cpp): they are built while a text is written and within limits of memory and work, so a hostile form ends its own
text and no other. What is asked for is bounded before that: `Forms` takes the keywords of JSON Schema that are kept in
full and refuses all others, and schemas that no text could ever complete.
"""

import functools
import json
import math
import re
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher
from tokenizers import Tokenizer

from ..errors import FormRefused
from .trial import LIMITS, Trial, vocabulary_of

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

_MOST_NODES, _DEEPEST, _MOST_REFS = 4000, 32, 100
_MOST_JSON, _MOST_REGEX, _MOST_TEMPLATE = 1 << 16, 4096, 1 << 14  # characters
_LONGEST = 1 << 20  # characters of the shortest text of a schema
_MULTIPLES = 10_000  # all `multipleOf` together: each takes as many states
_SECONDS = 0.8  # for a form to be made
_JSON: "JsonCompileOptions" = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "lenient": False,
}

_END, _NOTHING = "<end of a form>", "NoExtension"
_LEAST_OF = {"object": 2, "array": 2, "string": 2, "number": 1, "integer": 1, "boolean": 4, "null": 4}  # characters
_COUNTS = ("minItems", "maxItems", "minLength", "maxLength")
_SIZES = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_CHOICES = ("anyOf", "oneOf", "allOf")
_NOTES = frozenset({"title", "description", "default", "examples", "$schema", "$comment", "deprecated"})
KEYWORDS = frozenset(
    {
        "type", "enum", "const", "properties", "required", "additionalProperties", "items", "prefixItems", "pattern",
        "format", "multipleOf", "$ref", "$defs", "definitions", *_COUNTS, *_SIZES, *_CHOICES,
    }
)  # fmt: skip
# What a refusal may name: a request's own words are never repeated.
_KNOWN = KEYWORDS | {
    "not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems", "patternProperties",
    "propertyNames", "minProperties", "maxProperties", "dependentRequired", "dependentSchemas", "unevaluatedItems",
    "unevaluatedProperties", "additionalItems", "$id", "$anchor", "$dynamicRef", "contentEncoding",
}  # fmt: skip

_SLOT = re.compile(r"\{\{|\}\}|\{([A-Za-z_][A-Za-z0-9_]{0,63})(?::([^{}]*))?\}|[{}]")
_WORDS = re.compile(r" *text +([0-9]{1,4}) *")
_MOST_WORDS = 1000  # characters of one slot


class Following:
    """A text that is being written in a form."""

    def __init__(self, matcher: LLMatcher, words: int) -> None:
        self._matcher, self._words = matcher, words

    @property
    def may_end(self) -> bool:
        """True if the text has the form as it stands."""
        return bool(self._matcher.is_accepting())

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Returns bool [words], those that may come next; words that end a text are none.

        Raises:
            FormRefused: nothing may come and the text may not end, or finding out takes too much work.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        found = np.unpackbits(bits, bitorder="little")[: self._words].view(np.bool_)
        if self._matcher.is_error() or not (found.any() or self.may_end):
            raise FormRefused("the form cannot be followed any further")
        return found

    def take(self, word: int) -> bool:
        """Goes on by a word that was allowed; returns True if the text now has the form and nothing may follow."""
        self._matcher.consume_token(word)
        return self.may_end and bool(self._matcher.is_stopped())


@dataclass(frozen=True, slots=True)
class Form:
    """A form that texts of one vocabulary can have."""

    matcher: LLMatcher  # at the beginning of a text
    words: int

    def begin(self) -> Following:
        """Begins a text."""
        return Following(self.matcher.deep_copy(), self.words)


class Forms:
    """Makes forms for one vocabulary. No error repeats what was asked for."""

    def __init__(self, tokenizer: Any, words: int) -> None:
        """Reads the vocabulary of a transformers tokenizer in Rust.

        Args:
            words: that can be written; one more than the largest id.
        """
        core = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        core.no_padding()
        core.no_truncation()
        # llguidance wants one word that ends texts, and ours may have several or none: it gets one of its own.
        core.add_special_tokens([_END])
        end = int(core.token_to_id(_END) or 0)
        given = core.to_str(), max(words, end + 1), end
        self._words, self._vocabulary = words, vocabulary_of(*given)
        self._trial = Trial(*given, seconds=_SECONDS)

    def close(self) -> None:
        """Ends the process in which forms are tried, if there was one."""
        self._trial.close()

    def json(self, schema: Mapping[str, Any]) -> Form:
        """Makes the form of JSON texts that a schema describes: in one line, properties in the schema's order.

        Raises:
            FormRefused: the schema is too large, has a keyword that is not kept, or no text fits it.
        """
        try:
            text = json.dumps(schema, allow_nan=False)
        except (ValueError, RecursionError) as err:
            raise FormRefused("the schema is no JSON of moderate depth") from err
        if len(text) > _MOST_JSON:
            raise FormRefused(f"the schema has more than {_MOST_JSON:,} characters")
        _check(schema)
        return self._form(LLMatcher.grammar_from_json_schema(text, overrides=_JSON), "schema")

    def regex(self, pattern: str) -> Form:
        """Makes the form of texts that a regular expression describes as a whole, in the syntax of Rust's `regex`.

        Raises:
            FormRefused: it is too long, is none, or looks around or back.
        """
        if len(pattern) > _MOST_REGEX:
            raise FormRefused(f"the regular expression has more than {_MOST_REGEX:,} characters")
        return self._form(LLMatcher.grammar_from_regex(pattern), "regular expression")

    def report(self, template: str, given: Mapping[str, str]) -> Form:
        """Makes the form of a report: a text in which given figures stand in their places, and no other figure.

        In the template `{name}` is the given value of that name, `{name: a|b}` one of the words `a` and `b`, and
        `{name: text 80}` words of the model's own: up to 80 letters, blanks and `,;()'-`, and nothing that stands for
        a number in any script. `{{` and `}}` are braces.

        Raises:
            FormRefused: the template is none, a given value is not in it or twice, or one is missing.
        """
        if len(template) > _MOST_TEMPLATE:
            raise FormRefused(f"the template has more than {_MOST_TEMPLATE:,} characters")
        return self._form(LLMatcher.grammar_from_regex("".join(_report(template, given))), "template")

    def _form(self, grammar: str, what: str) -> Form:
        if not self._trial.passes(grammar):
            raise FormRefused(f"the {what} takes too long to prepare: it leaves too many ways open")
        matcher = LLMatcher(self._vocabulary, grammar, log_level=0, limits=LIMITS)
        first = matcher.deep_copy()
        found = first.compute_bitmask()
        if first.is_error() or not (any(found) or first.is_accepting()):
            raise FormRefused(_problem(first.get_error() or _NOTHING, what))
        return Form(matcher, self._words)


def _problem(said: str, what: str) -> str:
    """Says in our own words why the library takes no grammar: its own repeat what was asked for."""
    if any(part in said for part in (_NOTHING, "Unsatisfiable", "unsatisfiable")):
        return f"no text fits the {what}"
    if any(part in said for part in ("too large", "too big", "too many")):
        return f"the {what} is too large: it leaves too many ways open"
    if "regex parse error" in said:
        where = "" if what == "regular expression" else "a pattern of "
        return f"{where}the {what} is no regular expression that is served: none looks around or back"
    if said.startswith("oneOf"):
        return f"a oneOf of the {what} may fit twice: write anyOf, or give each part another type"
    if said.startswith("Unknown format"):
        return f"a format of the {what} is not served"
    return f"the {what} is none that is served"


def _report(template: str, given: Mapping[str, str]) -> Iterator[str]:
    """The parts of a report as regular expressions, in order."""
    place, named = 0, set[str]()
    for found in _SLOT.finditer(template):
        yield _exactly(template[place : found.start()])
        place, (name, rule) = found.end(), found.groups()
        if found[0] in ("{{", "}}"):
            yield _exactly(found[0][0])
            continue
        if name is None:
            raise FormRefused("the template has a brace that is no slot: write {{ or }} for a brace")
        if name in named:
            raise FormRefused("the template has the same name twice")
        named.add(name)
        yield _value(given, name) if rule is None else _slot(rule)
        if rule is not None and name in given:
            raise FormRefused("a given value has the name of a slot that the model fills")
    yield _exactly(template[place:])
    if given.keys() - named:
        raise FormRefused("a given value has no place in the template")


def _value(given: Mapping[str, str], name: str) -> str:
    if name not in given:
        raise FormRefused("the template has the name of a value that is not given")
    if not given[name].strip() or not given[name].isprintable():
        raise FormRefused("a given value is empty, or has signs that cannot be printed")
    return _exactly(given[name])


def _slot(rule: str) -> str:
    if found := _WORDS.fullmatch(rule):
        most = int(found[1])
        if not 2 <= most <= _MOST_WORDS:
            raise FormRefused(f"a slot of text has 2 to {_MOST_WORDS:,} characters")
        return rf"{_letter()}(?:(?:{_letter()}|[ ,;()'’\-]){{0,{most - 2}}}{_letter()})?"
    words = [word.strip() for word in rule.split("|")]
    if len(words) < 2 or not all(words) or len({*words}) < len(words):
        raise FormRefused("a slot is {name}, {name: one|another} or {name: text 80}")
    return f"(?:{'|'.join(map(_exactly, words))})"


@functools.cache
def _letter() -> str:
    """The letters of any script, but for those that stand for a number, as three and ten do in Chinese."""
    letters = (chr(code) for code in range(sys.maxunicode + 1) if chr(code).isnumeric())
    numbers = "".join(_exactly(sign) for sign in letters if unicodedata.category(sign)[0] in "LM")
    return rf"[\p{{L}}\p{{M}}--[{numbers}]]"


def _exactly(text: str) -> str:
    """A regular expression of this text alone; letters need no escape, and some have another meaning with one."""
    return re.sub(r"[^\w\s]|_", lambda sign: f"\\x{{{ord(sign[0]):x}}}", text)


def _check(schema: object) -> None:
    """Raises `FormRefused` if a schema is too large or deep, has keywords that are not kept, or never ends."""
    places: dict[str, Any] = {}  # what a reference can name, by JSON pointer
    count, references, multiples = 0, set[str](), 0
    todo: list[tuple[Any, str, int]] = [(schema, "#", 0)]
    while todo:
        node, place, depth = todo.pop()
        count += 1
        if count > _MOST_NODES or depth > _DEEPEST:
            raise FormRefused(f"the schema has more than {_MOST_NODES:,} parts, or is deeper than {_DEEPEST}")
        places[place] = node
        if isinstance(node, bool):
            continue
        if not isinstance(node, dict):
            raise FormRefused("a part of the schema is no object")
        _check_keywords(node)
        references |= {node["$ref"]} if "$ref" in node else set()
        multiples += node.get("multipleOf", 0)
        count += len(node.get("enum", ())) + len(node.get("required", ()))
        todo += [(child, f"{place}/{_escaped(path)}", depth + 1) for path, child in _children(node)]
    if multiples > _MULTIPLES:
        raise FormRefused(f"the numbers of multipleOf are more than {_MULTIPLES:,} together")
    if len(references) > _MOST_REFS or not references <= places.keys():
        raise FormRefused(f"the schema has more than {_MOST_REFS} references, or one to what is no part of it")
    least = dict.fromkeys(references, math.inf)
    for _ in range(len(references) + 1):  # each round makes one more reference finite, or none
        least = {name: _least(places[name], least) for name in references}
    if _least(schema, least) > _LONGEST:
        raise FormRefused(f"no text of up to {_LONGEST:,} characters fits the schema")


def _are_kinds(found: object) -> bool:
    kinds = found if isinstance(found, list) else [found]
    return bool(kinds) and all(isinstance(each, str) and each in _LEAST_OF for each in kinds)


def _check_keywords(node: Mapping[str, Any]) -> None:
    if unknown := node.keys() - KEYWORDS - _NOTES:
        named = sorted(unknown & _KNOWN)
        raise FormRefused(f"the schema's keyword {named[0] if named else 'of another name'} is not served")
    is_fine: dict[str, Callable[[Any], bool]] = {
        "type": _are_kinds,
        "enum": lambda found: isinstance(found, list) and bool(found),
        "properties": lambda found: isinstance(found, dict),
        "required": lambda found: isinstance(found, list) and all(isinstance(each, str) for each in found),
        "prefixItems": lambda found: isinstance(found, list),
        "pattern": lambda found: isinstance(found, str) and len(found) <= _MOST_REGEX,
        "format": lambda found: isinstance(found, str),
        "multipleOf": lambda found: type(found) is int and 1 <= found <= _MULTIPLES,
        "$ref": lambda found: isinstance(found, str) and found.startswith("#"),
        "$defs": lambda found: isinstance(found, dict),
        "definitions": lambda found: isinstance(found, dict),
        **dict.fromkeys(_COUNTS, lambda found: type(found) is int and 0 <= found <= _LONGEST),
        **dict.fromkeys(_SIZES, lambda found: type(found) in (int, float) and abs(found) <= 1e18),
        **dict.fromkeys(_CHOICES, lambda found: isinstance(found, list) and bool(found)),
    }
    for name, is_right in is_fine.items():
        if name in node and not is_right(node[name]):
            raise FormRefused(f"the schema's {name} is not of a kind that is served")


def _children(node: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The schemas inside a schema, with their way from it."""
    for name in ("properties", "$defs", "definitions"):
        yield from (((name, key), child) for key, child in node.get(name, {}).items())
    for name in (*_CHOICES, "prefixItems"):
        yield from (((name, str(place)), child) for place, child in enumerate(node.get(name, ())))
    yield from (((name,), node[name]) for name in ("items", "additionalProperties") if name in node)


def _escaped(path: Sequence[str]) -> str:
    """A way as a JSON pointer (RFC 6901)."""
    return "/".join(each.replace("~", "~0").replace("/", "~1") for each in path)


def _least(node: Any, least: Mapping[str, float]) -> float:
    """Characters of the shortest text of a schema, or fewer; infinite if none ever ends.

    Args:
        least: the same of what references name.
    """
    if isinstance(node, bool):
        return 1 if node else math.inf
    found: list[float] = [0.0]
    if "const" in node:
        found.append(len(json.dumps(node["const"])))
    if "enum" in node:
        found.append(min(len(json.dumps(each)) for each in node["enum"]))
    if "$ref" in node:
        found.append(least[node["$ref"]])
    found += [_least(each, least) for each in node.get("allOf", ())]
    found += [min(_least(each, least) for each in node[name]) for name in ("anyOf", "oneOf") if name in node]
    kinds = node.get("type", ())
    if kinds := [kinds] if isinstance(kinds, str) else kinds:
        found.append(min(_least_of_kind(kind, node, least) for kind in kinds))
    most: float = max(found)
    return most


def _least_of_kind(kind: str, node: Mapping[str, Any], least: Mapping[str, float]) -> float:
    if kind == "string":
        return 2.0 + int(node.get("minLength", 0))
    if kind == "object":
        properties, other = node.get("properties", {}), node.get("additionalProperties", True)
        needed = dict.fromkeys(node.get("required", ()))
        return 2.0 + sum(4 + len(name) + _least(properties.get(name, other), least) for name in needed)
    if kind == "array":
        first: Sequence[Any] = node.get("prefixItems", ())
        count: int = node.get("minItems", 0)
        sizes = [_least(each, least) for each in first[:count]]
        more = count - len(sizes)
        return 2.0 + sum(sizes) + (more * (1 + _least(node.get("items", True), least)) if more > 0 else 0)
    return _LEAST_OF[kind]
