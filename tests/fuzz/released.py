"""Models and what goes with them: folders that others built, adapters that others released, indexes of a disk."""

import base64
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import save

from confide.client_node.data.archive import read_index
from confide.client_node.errors import ArchiveRefused
from confide.models.adapters.peft_import import read as read_adapter
from confide.models.adapters.prototype import PROTOTYPE, read_prototype
from confide.models.backbones.checkpoints import read_config
from confide.models.charts import reader as chart_readers
from confide.models.decoding.forms import Forms
from confide.models.deployment.description import DEPLOYMENT, Deployment, load
from confide.models.errors import (
    FormRefused,
    InvalidBackbone,
    InvalidChart,
    InvalidRelease,
    InvalidSchema,
    InvalidSpace,
)
from confide.models.records import RecordSchema
from confide.models.records.fields import CategoricalField, Fields, FieldTerms, FlagField, NumericField
from confide.models.serving.schema import Chat, Completion, Question
from confide.models.space.space import Space, SpaceSizes, load_space, save_space

from ..models.deployment.test_reading import FIELDS, reader_of
from ..models.serving.conftest import make_parts
from ..models.tiny import byte_tokenizer
from .inputs import as_json, from_file, in_folder, scratch
from .target import Target


@cache
def _parts() -> tuple[Path, Path]:
    """A small backbone that reads text, and an adapter of it."""
    torch.manual_seed(0)
    backbone, (adapter, _) = make_parts(scratch("parts"))
    return backbone, adapter


def _split(file: bytes) -> bytes:
    """Writes a safetensors file as JSON, so that its header can be changed as a tree."""
    size = int.from_bytes(file[:8], "little")
    return json.dumps(
        {"header": json.loads(file[8 : 8 + size]), "data": base64.b64encode(file[8 + size :]).decode()}
    ).encode()


def _joined(data: bytes) -> bytes:
    """Reads what `_split` wrote; other bytes are the file itself."""
    if not data.startswith(b'{"header"'):
        return data
    try:
        said = json.loads(data)
        header, body = json.dumps(said["header"]).encode(), base64.b64decode(said["data"])
    except (ValueError, KeyError, TypeError):
        return data
    return len(header).to_bytes(8, "little") + header + body


def _tensors(file: bytes) -> list[bytes]:
    return [file, _split(file)]


def _in_whole(source: Callable[[], Path], name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """Makes a decoder that puts the bytes into a file of a folder that is else whole, and reads the folder."""

    def read_bytes(data: bytes) -> object:
        folder = scratch(f"whole-{name}") / "folder"
        if not folder.exists():
            shutil.copytree(source(), folder)
        (folder / name).write_bytes(_joined(data))
        return read(folder)

    return read_bytes


def _of_tensors(read: Callable[[bytes], object]) -> Callable[[bytes], object]:
    """Makes a decoder of what `_tensors` made of one that takes the file itself."""
    return lambda data: read(_joined(data))


def _schema() -> list[bytes]:
    schema = RecordSchema(
        numeric=(NumericField("age", cuts=(40, 60)),),
        categorical=(CategoricalField("sex", values=("F", "M")),),
        flags=(FlagField("sick"),),
    )
    return [json.dumps(schema.to_dict()).encode()]


def _read_schema(data: bytes) -> object:
    try:
        plain = json.loads(data)
    except (ValueError, RecursionError) as err:
        raise InvalidSchema("no JSON") from err
    if not isinstance(plain, dict):
        raise InvalidSchema("no object")
    return RecordSchema.from_dict(plain)


def _deployment() -> list[bytes]:
    terms = FieldTerms(**FIELDS)
    folder = scratch("deployment")
    Deployment(
        study="s", request=reader_of(Fields(), terms, terms.record_schema()), runtime="onnx", weights="int8", words=9,
        longest=64, ends=(2,), structure="code", cache=(((1, 24), (1, 12)),), segments=(32, 8),
    ).save(folder)  # fmt: skip
    return [(folder / DEPLOYMENT).read_bytes()]


def _index() -> list[bytes]:
    facts = {"space": "ab" * 32, "entries": [{"name": "a.png", "kind": "picture", "sha256": "cd" * 32}]}
    return _tensors(save({"points": torch.ones(1, 4)}, metadata={"archive": json.dumps(facts)}))


def _prototype() -> list[bytes]:
    return _tensors(save({"total": torch.ones(5)}, metadata={"facts": json.dumps({"noise_std": 1.5})}))


_SPACE = {
    "backbone": "ab" * 32, "reads": [0, 1], "states": 8, "axes": 4, "width": 8, "side": 32, "eye": 8, "rate": 8000,
    "seconds": 1, "ear": 8,
}  # fmt: skip


def _space_folder() -> Path:
    folder = scratch("space") / "made"
    if not folder.exists():
        save_space(Space(SpaceSizes.model_validate_json(json.dumps(_SPACE))), folder)
    return folder


def _chart_reader() -> list[bytes]:
    return _tensors(chart_readers._READER.read_bytes())


_ASKED = TypeAdapter(Chat | Completion | Question)
_REQUESTS: tuple[dict[str, Any], ...] = (
    {"model": "m", "prompt": "a", "max_tokens": 5, "stop": ["."], "seed": 3, "logprobs": 2, "stream_options": None},
    {"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
     "logprobs": True, "top_logprobs": 2,
     "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}},
    {"model": "m", "input": ["a", "b"], "template": "{text}"},
)  # fmt: skip


@cache
def _forms() -> Forms:
    tokenizer = byte_tokenizer()
    return Forms(tokenizer, len(tokenizer))


_WANTED: tuple[dict[str, Any], ...] = (
    {"schema": {"type": "object", "properties": {"a": {"type": "integer", "minimum": 1}, "b": {"enum": ["x", "y"]}},
                "required": ["a"], "additionalProperties": False}},
    {"schema": {"$defs": {"n": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]{2}$"}, "maxItems": 3}},
                "anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}},
    {"regex": "[a-c]{1,3}(x|y)*"},
    {"template": "Age {age}, {state: well|ill}, {note: text 20}.", "given": {"age": "42"}},
)  # fmt: skip


def _read_form(data: bytes) -> object:
    try:
        said = json.loads(data)
    except (ValueError, RecursionError) as err:
        raise FormRefused("no JSON") from err
    if not isinstance(said, dict):
        raise FormRefused("no object")
    if isinstance(said.get("regex"), str):
        return _forms().regex(said["regex"])
    given = said.get("given")
    if (
        isinstance(said.get("template"), str)
        and isinstance(given, dict)
        and all(type(v) is str for v in given.values())
    ):
        return _forms().report(said["template"], given)
    return _forms().json(said["schema"]) if isinstance(said.get("schema"), dict) else None


def _file_of(folder: Callable[[], Path], name: str) -> Callable[[], list[bytes]]:
    def made() -> list[bytes]:
        file = (folder() / name).read_bytes()
        return _tensors(file) if name.endswith(".safetensors") else [file]

    return made


def _backbone() -> Path:
    return _parts()[0]


def _adapter() -> Path:
    return _parts()[1]


TARGETS = (
    Target(
        name="schema of records", sender="who built a backbone", made=_schema, read=_read_schema,
        refusals=(InvalidSchema,),
    ),
    Target(
        name="config.json of a backbone", sender="who built a backbone", made=_file_of(_backbone, "config.json"),
        read=_in_whole(_backbone, "config.json", read_config), refusals=(InvalidBackbone,),
    ),
    Target(
        name="facts of an adapter", sender="who released it", made=_file_of(_adapter, "confide.json"),
        read=_in_whole(_adapter, "confide.json", read_adapter), refusals=(InvalidRelease,), most=20_000,
    ),
    Target(
        name="configuration of an adapter", sender="who released it", made=_file_of(_adapter, "adapter_config.json"),
        read=_in_whole(_adapter, "adapter_config.json", read_adapter), refusals=(InvalidRelease,), most=20_000,
    ),
    Target(
        name="weights of an adapter", sender="who released it", made=_file_of(_adapter, "adapter_model.safetensors"),
        read=_in_whole(_adapter, "adapter_model.safetensors", read_adapter), refusals=(InvalidRelease,), most=20_000,
    ),
    Target(
        name="prototype", sender="who released it", made=_prototype,
        read=_of_tensors(in_folder(PROTOTYPE, read_prototype)), refusals=(InvalidRelease,),
    ),
    Target(
        name="deployed model", sender="who deployed it", made=_deployment, read=in_folder(DEPLOYMENT, load),
        refusals=(InvalidRelease,),
    ),
    Target(
        name="sizes of a space", sender="who built it", made=_file_of(_space_folder, "space.json"),
        read=_in_whole(_space_folder, "space.json", load_space), refusals=(InvalidSpace,), most=5_000,
    ),
    Target(
        name="weights of a space", sender="who built it", made=_file_of(_space_folder, "space.safetensors"),
        read=_in_whole(_space_folder, "space.safetensors", load_space), refusals=(InvalidSpace,), most=1_000,
    ),
    Target(
        name="reader of charts", sender="who built it", made=_chart_reader,
        read=_of_tensors(from_file("reader.safetensors", chart_readers.load)), refusals=(InvalidChart,),
        most=5_000,
    ),
    Target(
        name="index of an archive", sender="the disk", made=_index,
        read=_of_tensors(from_file("index", read_index)), refusals=(ArchiveRefused,),
    ),
    Target(
        name="request to a served model", sender="who asks",
        made=as_json(*_REQUESTS), read=_ASKED.validate_json,
        refusals=(ValidationError,),
    ),
    Target(
        name="form of an answer", sender="who asks", made=as_json(*_WANTED),
        read=_read_form, refusals=(FormRefused,), most=500,
    ),
)  # fmt: skip
