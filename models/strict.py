"""The strict base of all models of files and messages, and the text types that they share.

Each type states its rule in words that follow `KEY is VALUE; it must be`.
"""

import re
from collections import Counter
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from pydantic_core import PydanticCustomError

T = TypeVar("T")


class StrictModel(BaseModel):
    """Base of all models of files and messages: immutable, no unknown keys, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class SparseModel(StrictModel):
    """Base of terms in a study that are written without what is not set: later keys change no older study's hash."""

    @model_serializer(mode="wrap")
    def _without_what_is_not_set(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        plain: dict[str, Any] = serialize(self)
        return {name: value for name, value in plain.items() if value is not None}


def rule(text: str) -> PydanticCustomError:
    """Makes an error for a field's validator to raise; `text` follows `KEY is VALUE; it must be`."""
    return PydanticCustomError("rule", "{text}", {"text": text})


def contradictions(problems: list[str]) -> PydanticCustomError:
    """Makes an error for a model's validator to raise: whole sentences, each naming its keys."""
    return PydanticCustomError("contradictions", "{text}", {"text": "\n".join(problems)})


def matches(pattern: str, text: str) -> AfterValidator:
    """Makes a validator for text that `pattern` matches as a whole; `text` states the rule in words."""

    def check(value: str) -> str:
        if not _compiled(pattern).fullmatch(value):
            raise rule(text)
        return value

    return AfterValidator(check)


@cache  # where `re` looks a pattern up for longer than it takes to match a key
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def one_line(text: str) -> str:
    """Replaces what no terminal should show and no database store: line breaks, escapes, lone surrogates."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _is_printable(value: str) -> str:
    if not value.replace("\n", " ").isprintable():
        raise rule("printable text")
    return value


def _has_no_twins(entries: tuple[T, ...]) -> tuple[T, ...]:
    if twins := sorted({str(entry) for entry, count in Counter(entries).items() if count > 1}):
        raise rule(f"without repeats; more than once: {', '.join(twins[:5])}")
    return entries


def _frozen(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    return MappingProxyType(dict(mapping))


FIELD_NAME = r"[A-Za-z_][A-Za-z0-9_.\-]{0,63}"
FIELD_NAME_RULE = "a letter or _, then up to 63 letters, digits, '_', '.' or '-'"

Unique = AfterValidator(_has_no_twins)
NO_ENTRIES: Any = Field(default_factory=dict, validate_default=True)
Frozen = (AfterValidator(_frozen), PlainSerializer(dict, return_type=dict[str, Any]))

Name = Annotated[
    str, matches(r"[a-z0-9][a-z0-9._-]{0,62}", "1 to 63 of a-z, 0-9, '.', '_', '-', beginning with a letter or digit")
]
Digest = Annotated[str, matches(r"[0-9a-f]{64}", "64 lower-case hexadecimal digits")]
Text = Annotated[str, Field(max_length=4000), AfterValidator(_is_printable)]
Label = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_is_printable)]
FieldName = Annotated[str, matches(FIELD_NAME, FIELD_NAME_RULE)]
