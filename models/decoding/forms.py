"""Forms that a written text must have: JSON of a schema, a regular expression, a report around given figures.

A form says before each word which ones may come. Its automata are llguidance's (MIT), as vLLM, SGLang and llama.cpp
offer them too: they are built while a text is written and within limits of memory and work, so a hostile form ends its
own text and no other. What is asked for is bounded before that: `Forms` takes the keywords of JSON Schema that are kept
in full and refuses all others, and schemas that no text could ever complete.
"""

import functools
import json
import math
import re
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLTokenizer
from tokenizers import Tokenizer

from ..errors import FormRefused
from .trial import LIMITS, Trial, vocabulary_of

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

_MOST_NODES, _DEEPEST, _MOST_REFS = 4000, 32, 50
_MOST_JSON, _MOST_REGEX, _MOST_TEMPLATE = 1 << 16, 4096, 1 << 14  # characters
_LONGEST = 1 << 20  # characters of the shortest text of a schema
_MULTIPLES = 10_000  # all `multipleOf` together: each takes as many states
_SECONDS = 0.8  # for a form to be made: a half for the trial, and as long again here
_JSON: "JsonCompileOptions" = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "lenient": False,
    # No letter by its number: a name in another spelling would pass by what the schema says of that name.
    "json_allowed_escapes": '"\\bfnrt',
}

_END, _NOTHING = "<end of a form>", "NoExtension"
_LEAST_OF = {"object": 2, "array": 2, "string": 2, "number": 1, "integer": 1, "boolean": 4, "null": 4}  # characters
_COUNTS = ("minItems", "maxItems", "minLength", "maxLength")
_SIZES = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_CHOICES = ("anyOf", "oneOf", "allOf")
_NOTES = frozenset({"title", "description", "default", "examples", "$comment", "deprecated"})
_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_EXACT = 2**53  # up to which all integers are numbers of JSON readers
KEYWORDS = frozenset(
    {
        "type", "enum", "const", "properties", "required", "additionalProperties", "items", "prefixItems", "pattern",
        "format", "multipleOf", "$schema", "$ref", "$defs", "definitions", *_COUNTS, *_SIZES, *_CHOICES,
    }
)  # fmt: skip
# What a refusal may name: a request's own words are never repeated.
_KNOWN = KEYWORDS | {
    "not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems", "patternProperties",
    "propertyNames", "minProperties", "maxProperties", "dependentRequired", "dependentSchemas", "unevaluatedItems",
    "unevaluatedProperties", "additionalItems", "$id", "$anchor", "$dynamicRef", "contentEncoding",
}  # fmt: skip

_beside = ThreadPoolExecutor(max_workers=2, thread_name_prefix="confide-forms")

_SLOT = re.compile(r"\{\{|\}\}|\{([A-Za-z_][A-Za-z0-9_]{0,63})(?::([^{}]*))?\}|[{}]")
_WORDS = re.compile(r" *text +([0-9]{1,4}) *")
_TWO_AND_HALF = "两兩俩倆双雙半皕"  # which Unicode does not call numeric
_MOST_WORDS = 2000  # characters of all slots together


class Following:
    """A text that is being written in a form.

    Which words may come next is found out in another thread, while the model reads the last one.
    """

    def __init__(self, matcher: LLMatcher, words: int) -> None:
        self._matcher, self._words = matcher, words
        self._look_ahead()

    @property
    def may_end(self) -> bool:
        """True if the text has the form as it stands."""
        return self._may_end

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Returns bool [words], those that may come next; words that end a text are none.

        Raises:
            FormRefused: nothing may come and the text may not end, or finding out takes too much work.
        """
        if self._bits.exception() is None and not self._matcher.is_error():
            bits = np.frombuffer(self._bits.result(), dtype=np.uint8)
            found = np.unpackbits(bits, bitorder="little")[: self._words].view(np.bool_)
            if found.any() or self.may_end:
                return found
        raise FormRefused("the form cannot be followed any further")

    def take(self, word: int) -> bool:
        """Goes on by a word that was allowed; returns True if the text now has the form and nothing may follow."""
        self._bits.result()
        self._matcher.consume_token(word)
        return self._look_ahead()

    def _look_ahead(self) -> bool:
        """Begins to find out what may come next; returns True if nothing may."""
        self._may_end = bool(self._matcher.is_accepting())
        is_whole = self._may_end and bool(self._matcher.is_stopped())
        if not is_whole:
            self._bits = _beside.submit(self._matcher.compute_bitmask)  # while it runs, nothing else can be asked
        return is_whole


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
        """Takes the vocabulary of a transformers tokenizer in Rust, which is read for the first form.

        Args:
            words: that can be written; one more than the largest id.
        """
        self._tokenizer, self._words = tokenizer, words
        self._trial = Trial(lambda: self._given, seconds=_SECONDS / 2)

    @functools.cached_property
    def _given(self) -> tuple[str, int, int]:
        """The tokenizer's definition, how many words it has, and the one that ends a form."""
        core = Tokenizer.from_str(self._tokenizer.backend_tokenizer.to_str())
        core.no_padding()
        core.no_truncation()
        # llguidance wants one word that ends texts, and ours may have several or none: it gets one of its own.
        core.add_special_tokens([_END])
        end = int(core.token_to_id(_END) or 0)
        return core.to_str(), max(self._words, end + 1), end

    @functools.cached_property
    def _vocabulary(self) -> LLTokenizer:
        try:
            return vocabulary_of(*self._given)
        except ValueError:
            raise FormRefused("answers of a given form are not served: the tokenizer is of a kind without") from None

    def close(self) -> None:
        """Ends the process in which forms are tried, if there was one."""
        self._trial.close()

    def json(self, schema: Mapping[str, Any]) -> Form:
        """Makes the form of JSON texts that a schema describes: in one line, properties in the schema's order.

        Raises:
            FormRefused: the schema is too large, has a keyword that is not kept, or no text fits it.
        """
        _check(schema)
        text = json.dumps(schema, ensure_ascii=False)
        if len(text) > _MOST_JSON:
            raise FormRefused(f"the schema has more than {_MOST_JSON:,} characters")
        try:
            grammar = LLMatcher.grammar_from_json_schema(text, overrides=_JSON)
        except ValueError:  # which quotes it
            raise FormRefused("the schema is none that is served") from None
        return self._form(grammar, "schema")

    def regex(self, pattern: str) -> Form:
        """Makes the form of texts that a regular expression describes as a whole, in the syntax of Rust's `regex`.

        Raises:
            FormRefused: it is too long, is none, or looks around or back.
        """
        if len(pattern) > _MOST_REGEX:
            raise FormRefused(f"the regular expression has more than {_MOST_REGEX:,} characters")
        try:
            grammar = LLMatcher.grammar_from_regex(pattern)
        except UnicodeEncodeError:  # half of a letter that takes two numbers in UTF-16; the error quotes the pattern
            raise FormRefused(_problem("regex parse error", "regular expression")) from None
        return self._form(grammar, "regular expression")

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
        vocabulary = self._vocabulary
        if not self._trial.passes(grammar):
            raise FormRefused(f"the {what} cannot be prepared in time: it leaves too many ways open")
        matcher = LLMatcher(vocabulary, grammar, log_level=0, limits=LIMITS)
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
    place, letters, named = 0, 0, set[str]()
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
        own = None if rule is None else _WORDS.fullmatch(rule)
        letters += 0 if own is None else int(own[1])
        if letters > _MOST_WORDS:
            raise FormRefused(f"the slots of text have more than {_MOST_WORDS:,} characters together")
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
        if most < 2:
            raise FormRefused("a slot of text has 2 characters or more")
        return rf"{_letter()}(?:(?:{_letter()}|[ ,;()'’\-]){{0,{most - 2}}}{_letter()})?"
    words = [word.strip() for word in rule.split("|")]
    if len(words) < 2 or not all(words) or len({*words}) < len(words):
        raise FormRefused("a slot is {name}, {name: one|another} or {name: text 80}")
    return f"(?:{'|'.join(map(_exactly, words))})"


@functools.cache
def _letter() -> str:
    """The letters of any script, but for those that stand for a number, as three and ten do in Chinese."""
    numeric = (chr(code) for code in range(sys.maxunicode + 1) if chr(code).isnumeric())
    letters = [sign for sign in numeric if unicodedata.category(sign)[0] in "LM"]
    numbers = "".join(map(_exactly, (*letters, *_TWO_AND_HALF)))
    return rf"[\p{{L}}\p{{M}}--[{numbers}]]"


def _exactly(text: str) -> str:
    """A regular expression of this text alone; letters need no escape, and some have another meaning with one."""
    return re.sub(r"[^\w\s]|_", lambda sign: f"\\x{{{ord(sign[0]):x}}}", text)


def _check(schema: object) -> None:
    """Raises `FormRefused` if a schema is too large or deep, has keywords that are not kept, or never ends."""
    nodes: dict[str, _Node] = {}  # by JSON pointer, each before those inside it
    count, references, multiples = 0, set[str](), 0
    todo: list[tuple[Any, str, int]] = [(schema, "#", 0)]
    while todo:
        found, place, depth = todo.pop()
        count += 1
        inside: dict[tuple[str, ...], str] = {}
        if not isinstance(found, bool):
            if not isinstance(found, dict):
                raise FormRefused("a part of the schema is no object")
            _check_keywords(found)
            references |= {found["$ref"]} if "$ref" in found else set()
            multiples += found.get("multipleOf", 0)
            for path, child in _children(found):
                inside[path] = f"{place}/{_escaped(path)}"
                todo.append((child, inside[path], depth + 1))
            count += sum(_values(found[name]) for name in ("const", "enum", *_NOTES) if name in found)
            count += len(found.get("required", ()))
        if count + len(todo) > _MOST_NODES or depth > _DEEPEST:
            raise FormRefused(f"the schema has more than {_MOST_NODES:,} parts, or is deeper than {_DEEPEST}")
        nodes[place] = _Node(found, inside, _least_value(found))
    if multiples > _MULTIPLES:
        raise FormRefused(f"the numbers of multipleOf are more than {_MULTIPLES:,} together")
    if len(references) > _MOST_REFS or not references <= nodes.keys():
        raise FormRefused(f"the schema has more than {_MOST_REFS} references, or one to what is no part of it")
    least = dict.fromkeys(nodes, math.inf)
    for _ in range(len(references) + 1):  # each round makes one more reference finite, or none
        before = {name: least[name] for name in references}
        for place, node in reversed(nodes.items()):  # what is inside first
            least[place] = node.least(least)
        if before == {name: least[name] for name in references}:
            break
    if least["#"] > _LONGEST:
        raise FormRefused(f"no text of up to {_LONGEST:,} characters fits the schema")


def _values(value: object) -> int:
    """Counts the parts of a value of JSON.

    Raises:
        FormRefused: it is deep, or has a number that readers of JSON would read as another.
    """
    count, todo = 0, [(value, 0)]
    while todo and count <= _MOST_NODES:
        found, depth = todo.pop()
        count += 1
        if depth > _DEEPEST or (isinstance(found, int | float) and not abs(found) <= _EXACT):
            raise FormRefused(f"a value in the schema is deeper than {_DEEPEST}, or has a number beyond 2^53")
        inside = found.values() if isinstance(found, dict) else found if isinstance(found, list) else ()
        todo += [(each, depth + 1) for each in inside]
    return count


def _least_value(node: Any) -> float:
    """Characters of the shortest of the values that a schema lists; 0 if it lists none."""
    if isinstance(node, bool):
        return 1 if node else math.inf
    listed = [[node["const"]]] if "const" in node else []
    listed += [node["enum"]] if "enum" in node else []
    return max((min(len(json.dumps(each, ensure_ascii=False)) for each in values) for values in listed), default=0)


@dataclass(frozen=True, slots=True)
class _Node:
    """A schema inside a schema."""

    own: Any
    inside: Mapping[tuple[str, ...], str]  # places of its parts, by their way from here
    value: float  # characters of the shortest value that it lists

    def least(self, least: Mapping[str, float]) -> float:
        """Characters of the shortest text of the schema, or fewer; infinite if none ever ends.

        Args:
            least: the same of what lies inside and of what references name.
        """
        if isinstance(self.own, bool):
            return self.value
        parts: dict[str, list[float]] = {}
        for path, place in self.inside.items():
            parts.setdefault(path[0], []).append(least[place])
        found = [self.value, least[self.own["$ref"]] if "$ref" in self.own else 0, *parts.get("allOf", ())]
        found += [min(parts[name]) for name in ("anyOf", "oneOf") if name in parts]
        kinds = self.own.get("type", ())
        if kinds := [kinds] if isinstance(kinds, str) else kinds:
            found.append(min(self._least_of_kind(kind, least) for kind in kinds))
        most: float = max(found)
        return most

    def _least_of_kind(self, kind: str, least: Mapping[str, float]) -> float:
        def of(path: tuple[str, ...], otherwise: tuple[str, ...] = ()) -> float:
            place = self.inside.get(path, self.inside.get(otherwise))
            return 1 if place is None else least[place]

        if kind == "string":
            return 2.0 + int(self.own.get("minLength", 0))
        if kind == "object":
            needed = dict.fromkeys(self.own.get("required", ()))
            return 2.0 + sum(4 + len(name) + of(("properties", name), ("additionalProperties",)) for name in needed)
        if kind == "array":
            count, first = int(self.own.get("minItems", 0)), len(self.own.get("prefixItems", ()))
            sizes = [of(("prefixItems", str(place))) for place in range(min(first, count))]
            more = count - len(sizes)
            return 2.0 + sum(sizes) + (more * (1 + of(("items",))) if more > 0 else 0)
        return _LEAST_OF[kind]


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
        "$schema": lambda found: found == _DIALECT,
        "$ref": lambda found: isinstance(found, str) and found.startswith("#"),
        "$defs": lambda found: isinstance(found, dict),
        "definitions": lambda found: isinstance(found, dict),
        **dict.fromkeys(_COUNTS, lambda found: type(found) is int and 0 <= found <= _LONGEST),
        **dict.fromkeys(_SIZES, lambda found: type(found) in (int, float) and abs(found) <= _EXACT),
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
