"""Reads TOML and JSON into pydantic models, and reports every problem at once, with its remedy.

A message names the key, the value found and the rule, e.g. `privacy.sample_rate is 1.2; it must be greater than 0 and
at most 1`. Values of settings are shown; nothing here ever reads records.
"""

import difflib
import json
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import pydantic
from pydantic import BaseModel
from pydantic_core import ErrorDetails

from ...models.strict import StrictModel
from ..errors import SettingsInvalid

MAX_BYTES = 2**20
_MOST_TOLD = 50  # problems of a file; whoever sends more of them has sent something else

_MOST_PARTS = 32
# A key of so many parts, also as a table's name. tomllib takes their square in time, a minute for 100 kB of them.
_LONG_KEY = re.compile(
    rf"""(?<![\w-])(?:(?:[\w-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')[ \t]*\.[ \t]*){{{_MOST_PARTS}}}""", re.ASCII
)

_BOUNDS = {"gt": "greater than", "ge": "at least", "lt": "less than", "le": "at most"}
_NESTED = "lists or tables in it are nested deeper than any setting is"
_LENGTHS = ("too_long", "too_short", "string_too_long", "string_too_short")
_KINDS = {
    "bool": "true or false",
    "date": "a date like 2026-01-31",
    "dict": "a table",
    "finite_number": "a finite number",
    "float": "a number",
    "int": "a whole number",
    "model": "a table",
    "string": "text in quotes",
    "tuple": "a list",
}


S = TypeVar("S", bound=StrictModel)


def read_toml(path: Path, model: type[S], *, error: type[SettingsInvalid]) -> S:
    """Reads the settings in the file at `path`.

    Raises:
        SettingsInvalid: as `error`, with all problems; a missing or unreadable file included.
    """
    return parse_table(read_table(path, error), model, error=error, source=str(path))


def parse_toml(text: str, model: type[S], *, error: type[SettingsInvalid], source: str) -> S:
    """Parses the settings in a TOML text; raises as `read_toml`."""
    if len(text.encode()) > MAX_BYTES:
        raise error(source, (f"the text is longer than {MAX_BYTES} bytes",))
    return parse_table(_parsed(text, error, source), model, error=error, source=source)


def parse_table(table: Mapping[str, Any], model: type[S], *, error: type[SettingsInvalid], source: str) -> S:
    """Checks settings that are a table already; raises as `read_toml`."""
    # By way of JSON, so that a file and a message from the network meet the same strict rules (lists for tuples).
    try:
        text = json.dumps(table, default=str)
    except RecursionError as err:
        raise error(source, (_NESTED,)) from err
    return parse_json(text, model, error=error, source=source)


def top_keys(path: Path, *, error: type[SettingsInvalid]) -> frozenset[str]:
    """Reads the keys at the top of the file at `path`; raises as `read_toml`."""
    return frozenset(read_table(path, error))


def key_lines(text: str) -> dict[str, int]:
    """Finds the line, from 1, on which each key of a TOML text stands; keys of tables with dots, as `data.unit`.

    tomllib names no lines. So the text is cut into its statements, each the fewest lines that tomllib takes, and a
    statement's keys are those that tomllib finds in it. A text that is not TOML has the lines of what comes before.
    """
    found: dict[str, int] = {}
    header, begin, lines = "", 0, text.splitlines()
    for number, line in enumerate(lines, 1):
        if not lines[begin].strip():
            begin = number
            continue
        # Only such a line can end a statement of several: else a list of thousands of hashes takes minutes.
        if number > begin + 1 and not any(end in line for end in ("]", "}", '"""', "'''")):
            continue
        statement = "\n".join(lines[begin:number])
        try:
            table = tomllib.loads(f"{header}\n{statement}")
        except tomllib.TOMLDecodeError:
            continue
        if statement.lstrip().startswith("["):
            header, table = statement, tomllib.loads(statement)
        for key in _dotted(table):
            found.setdefault(key, begin + 1)
        begin = number
    return found


def _dotted(table: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for name, value in table.items():
        yield above + name
        if isinstance(value, dict):
            yield from _dotted(value, f"{above}{name}.")


def read_table(path: Path, error: type[SettingsInvalid]) -> dict[str, Any]:
    """Reads a file as a table that no model has looked at yet; raises `error` if it is no TOML of ours."""
    source = str(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise error(source, (f"the file is larger than {MAX_BYTES} bytes",))
        text = path.read_text(encoding="utf-8")
    except OSError as err:
        raise error(source, (f"the file cannot be read: {err.strerror}",)) from err
    except UnicodeDecodeError as err:
        raise error(source, ("the file is not UTF-8 text; save it as UTF-8",)) from err
    return _parsed(text, error, source)


def _parsed(text: str, error: type[SettingsInvalid], source: str) -> dict[str, Any]:
    if _LONG_KEY.search(text):
        raise error(source, (f"a name in it has more than {_MOST_PARTS} parts with dots between them",))
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as err:
        raise error(source, (f"not TOML: {err}",)) from err
    except ValueError as err:  # Python's own limit, of some thousand digits
        raise error(source, ("a whole number in it has more digits than any setting takes",)) from err
    except RecursionError as err:
        raise error(source, (_NESTED,)) from err


def parse_json(data: str | bytes, model: type[S], *, error: type[SettingsInvalid], source: str) -> S:
    """Parses the settings in JSON text.

    Raises:
        SettingsInvalid: as `error`, with all problems.
    """
    if len(data) > MAX_BYTES:
        raise error(source, (f"longer than {MAX_BYTES} bytes",))
    try:
        return model.model_validate_json(data)
    except pydantic.ValidationError as err:
        raise_problems(err, model, error=error, source=source)


def raise_problems(
    err: pydantic.ValidationError, model: type[BaseModel], *, error: type[SettingsInvalid], source: str
) -> NoReturn:
    """Turns pydantic's errors for a `model` into ours and raises them; of very many the first, and how many more."""
    found = [details for details in err.errors(include_url=False) if details["type"] != "default_factory_not_called"]
    problems = [line for details in found[:_MOST_TOLD] for line in _explain(details, model)]
    raise error(source, tuple(problems), max(0, len(found) - _MOST_TOLD)) from None


def _explain(details: ErrorDetails, model: type[BaseModel]) -> list[str]:
    kind, location, context = details["type"], details["loc"], details.get("ctx", {})
    key = ".".join(_cut(str(part)) for part in location if part != "[key]") or "the file"
    value = _shown(details["input"])
    if kind == "contradictions":
        return str(context["text"]).split("\n")
    if kind == "missing":
        return [f"{key} is missing; add it{_example(str(location[-1]), _field(model, location))}"]
    if kind == "extra_forbidden":
        return [f"{key} is not a setting; {_hint(model, location)}"]
    if kind == "json_invalid":
        return ["not JSON"]
    if kind == "literal_error":
        return [f"{key} is {value}; it must be {context['expected']}"]
    if kind in _LENGTHS:
        bound = f"at least {context['min_length']}" if "min_length" in context else f"at most {context['max_length']}"
        unit = "characters" if kind.startswith("string") else "entries"
        return [f"{key} is {value}; it must have {bound} {unit}"]
    if context.keys() & _BOUNDS.keys():
        bounds = _bounds(_field(model, location)) or context
        return [f"{key} is {value}; it must be " + " and ".join(f"{_BOUNDS[b]} {bounds[b]:g}" for b in bounds)]
    if kind == "rule":
        return [f"{key} is {value}; it must be {context['text']}"]
    expected = _KINDS.get(kind) or _KINDS.get(kind.split("_")[0])
    return [f"{key} is {value}; " + (f"it must be {expected}" if expected else details["msg"])]


def _example(name: str, field: pydantic.fields.FieldInfo) -> str:
    """An example line to copy, with its meaning."""
    if not field.examples:
        return ""
    line = str(field.examples[0])
    line = line if line.startswith("a table") else f"{name} = {line}"
    return f": {line}" + (f" ({field.description})" if field.description else "")


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True, default=str)
    return _cut(text)


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _hint(model: type[BaseModel], location: tuple[int | str, ...]) -> str:
    owner = _walk(model, location[:-1])
    names = list(owner.model_fields) if owner else []
    near = difflib.get_close_matches(_cut(str(location[-1])), names, n=1)
    return f"did you mean {near[0]}?" if near else f"the settings here are {', '.join(names)}"


def _bounds(field: pydantic.fields.FieldInfo) -> dict[str, float]:
    """All numeric bounds of a field: pydantic tells only the one that failed."""
    return {b: getattr(m, b) for m in field.metadata for b in _BOUNDS if getattr(m, b, None) is not None}


def _field(model: type[BaseModel], location: tuple[int | str, ...]) -> pydantic.fields.FieldInfo:
    owner, name = _walk(model, location[:-1]), str(location[-1])
    fields = owner.model_fields if owner else {}
    return next(
        (field for own, field in fields.items() if name in (own, *_aliases(field))), pydantic.fields.FieldInfo()
    )


def _aliases(field: pydantic.fields.FieldInfo) -> list[str | pydantic.AliasPath]:
    """All names under which a field is read, if it has several."""
    alias = field.validation_alias
    return alias.choices if isinstance(alias, pydantic.AliasChoices) else []


def _walk(model: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel] | None:
    """Finds the model in which `location` ends; None if it ends in a list or mapping of plain values."""
    current: Any = model
    for part in location:
        if not _is_model(current) or str(part) not in current.model_fields:
            current = next(_models_in(current), None)  # an entry of a list or mapping
        else:
            current = current.model_fields[str(part)].annotation
            if isinstance(current, types.UnionType):  # `X | None`
                current = next((a for a in typing.get_args(current) if a is not types.NoneType), None)
    return current if _is_model(current) else None


def _models_in(kind: Any) -> Iterator[type[BaseModel]]:
    """Yields the models that a list or mapping of them names, also behind `Annotated` and `X | None`."""
    for argument in typing.get_args(kind):
        if _is_model(argument):
            yield argument
        else:
            yield from _models_in(argument)


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
