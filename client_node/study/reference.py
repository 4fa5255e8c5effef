"""Writes study.toml as a reference: every setting with an example, its default and its bounds, from the schema itself.

docs/study-toml.md shows the output.
"""

import json
import types
import typing
from collections.abc import Iterator

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ...models.records.kinds import KINDS
from ...models.records.tasks import TaskTerms
from .terms import StudyDraft

_WIDTH = 38  # column in which explanations begin
# Of several ways to say what a record is and what is learned, those shown.
_SAID = {"label", "flags", "numeric", "categorical", "prompt", "completion"}
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def study_toml() -> str:
    """Returns a study.toml with every setting of a study of fields; those absent by default are comments."""
    return "\n".join(_lines(StudyDraft, "")) + "\n"


def kind_toml(name: str) -> str:
    """Returns the table of another kind of record."""
    return "\n".join([f"[data.{name}]", *_settings(KINDS[name].terms)]) + "\n"


def task_toml(name: str) -> str:
    """Returns the table of one task of several, in a study of fields."""
    return "\n".join([f"[data.tasks.{name}]", *_settings(TaskTerms)]) + "\n"


def _lines(model: type[BaseModel], path: str) -> Iterator[str]:
    yield from _settings(model)
    for name, field in model.model_fields.items():
        table = _table(field)
        if table is None or (path == "data" and name in KINDS):
            continue
        yield ""
        place = f"{path}.{name}" if path else name
        yield f"[{place}]" + ("" if field.is_required() else "  # optional")
        yield from _lines(table, place)


def _settings(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        if _table(field) is None:
            yield _setting(name, field)


def _setting(name: str, field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True, validated_data={})
    has_default = not (field.is_required() or field.examples)  # else there is an example of what to say
    value = json.dumps(default) if has_default else field.examples[0] if field.examples else ""
    is_left_out = not field.is_required() and default in (None, {}, ()) and name not in _SAID
    text = "; ".join(filter(None, ["default" if has_default else "", field.description, _range(field)]))
    return f"{'# ' if is_left_out else ''}{name} = {value}".ljust(_WIDTH - 2) + f"  # {text}"


def _range(field: FieldInfo) -> str:
    """The bounds of a number in words, `1 to 256` or `above 0, at most 1000`."""
    bound = {name: _number(getattr(part, name)) for part in field.metadata for name in _BOUNDS if hasattr(part, name)}
    if bound.keys() == {"ge", "le"}:
        return f"{bound['ge']} to {bound['le']}"
    return ", ".join(f"{_BOUNDS[name]} {value}" for name, value in bound.items())


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


def _table(field: FieldInfo) -> type[BaseModel] | None:
    """The model of a table; None for a plain setting, and for a small table that is written in one line."""
    if field.examples and field.examples[0].startswith("{"):
        return None
    kinds = typing.get_args(field.annotation) if isinstance(field.annotation, types.UnionType) else (field.annotation,)
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
