"""Records, and things like records: tables, pictures, sounds, texts that sites, people or models write."""

import io
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from PIL import Image

from confide.client_node.data.records import check, read
from confide.client_node.errors import DataInvalid
from confide.client_node.policy.site_policy import SitePolicy, load_policy
from confide.client_node.study.study import Study
from confide.models.backbones.moments import read_texts
from confide.models.charts import reader as chart_readers
from confide.models.charts import reading
from confide.models.charts.drawing import HEIGHT, WIDTH
from confide.models.errors import (
    AnswerRefused,
    ChartRefused,
    InvalidBackbone,
    InvalidPicture,
    InvalidSound,
    InvalidSpace,
)
from confide.models.evaluation import answers
from confide.models.evaluation.programs import parses
from confide.models.records.chat import conversation
from confide.models.space.public import COLUMNS, read_table
from confide.models.structure import pictures, sounds
from confide.models.structure.sounds import SoundLayout

from ..client_node.conftest import PATIENTS_CSV, SITE_TOML, STUDY_TOML, build_study
from ..client_node.data.test_fhir import MAPPING, export, observation, table_of
from .inputs import from_file, from_text, scratch
from .target import Target

_SIZE = (16, 24)
_LAYOUT = SoundLayout(rate=8000, seconds=1)


@cache
def _study() -> Study:
    path = scratch("study") / "study.toml"
    path.write_text(STUDY_TOML)
    return build_study(path, {})


@cache
def _policy() -> SitePolicy:
    home = scratch("policy")
    (home / "site.toml").write_text(SITE_TOML)
    return load_policy(home)


def _at(path: Path) -> SitePolicy:
    return _policy().model_copy(update={"data": _policy().data.model_copy(update={"path": path})})


def _read_records(path: Path) -> object:
    check(path, _at(path), _study())
    return read(_at(path), _study(), site="svi")


def _parquet() -> list[bytes]:
    out = io.BytesIO()
    pa.parquet.write_table(pa.csv.read_csv(io.BytesIO(PATIENTS_CSV.encode())), out)
    return [out.getvalue()]


@cache
def _export() -> Path:
    return export(scratch("export"), observation("a", 4.5), observation("b", 1.5, "2024-01"))


def _observations() -> list[bytes]:
    return [(_export() / "Observation.ndjson").read_bytes()]


def _read_observations(data: bytes) -> object:
    (_export() / "Observation.ndjson").write_bytes(data)
    return table_of(_export(), **MAPPING)


def _png() -> list[bytes]:
    found = []
    for shape in (_SIZE, (*_SIZE, 3)):
        out = io.BytesIO()
        Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)).save(out, "PNG")
        found.append(out.getvalue())
    return found


def _summed(data: bytes) -> bytes:
    """Mends the checksums of a PNG's chunks, as whoever makes a hostile file would."""
    found, at = [data[:8]], 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunk = data[at + 4 : at + 8 + size]
        found += [data[at : at + 4], chunk, zlib.crc32(chunk).to_bytes(4, "big")]
        at += 12 + size
    return b"".join((*found, data[at:]))


def _wav() -> list[bytes]:
    return [sounds.written(np.arange(1000, dtype="<i2").tobytes(), _LAYOUT.rate)]


@cache
def _chart_reader() -> chart_readers.ChartReader:
    return chart_readers.load()[0]


def _charts() -> list[bytes]:
    out = io.BytesIO()
    picture = np.full((HEIGHT, WIDTH), 255, np.uint8)
    picture[20:170, 40], picture[170, 40:300] = 0, 0
    Image.fromarray(picture).save(out, "PNG")
    return [out.getvalue()]


def _read_chart(data: bytes) -> object:
    picture = reading.decode(_summed(data))
    try:
        return reading.read(_chart_reader(), picture)
    except ChartRefused:
        return None


def _read_answer(text: str) -> object:
    found = answers.read(text)
    return answers.value(found)


_ANSWERS = (r"\frac{x}{2}e^{-x}", r"x/2*exp(-x)+3^{7}", r"\sin^2 x + \sqrt{4}", "2^10*(1-1/3)")
_CHAT = b'[{"role": "system", "content": "s"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]'
_JAVA = b'class A { int f(int a) { String s = "x\\"y"; if (a > 1) { return a * 2; } return 0; } }'
_PYTHON = b'def f(a):\n    """x"""\n    if a > 1:\n        return [b for b in a]\n    return f"{a!r:>{3}}"\n'
_PUBLIC = (",".join(COLUMNS) + "\n").encode()

TARGETS = (
    Target(
        name="table in CSV",
        sender="records",
        made=lambda: [PATIENTS_CSV.encode()],
        read=from_file("patients.csv", _read_records),
        refusals=(DataInvalid,),
        most=20_000,
    ),
    Target(
        name="table in Parquet",
        sender="records",
        made=_parquet,
        read=from_file("patients.parquet", _read_records),
        refusals=(DataInvalid,),
        most=20_000,
    ),
    Target(
        name="observations of a FHIR export",
        sender="records",
        made=_observations,
        read=_read_observations,  # what is broken is counted
        refusals=(),
        most=20_000,
    ),
    Target(
        name="picture",
        sender="records",
        made=_png,
        read=lambda data: pictures.decode([data], _SIZE),
        refusals=(InvalidPicture,),
    ),
    Target(
        name="picture, its checksums mended",
        sender="records",
        made=_png,
        read=lambda data: pictures.decode([_summed(data)], _SIZE),
        refusals=(InvalidPicture,),
    ),
    Target(
        name="sound",
        sender="records",
        made=_wav,
        read=lambda data: sounds.decode([data], _LAYOUT),
        refusals=(InvalidSound,),
    ),
    Target(
        name="chart, its checksums mended", sender="people", made=_charts, read=_read_chart,
        refusals=(InvalidPicture,), most=5_000,
    ),
    Target(
        name="conversation",
        sender="records",
        made=lambda: [_CHAT],
        read=from_text(lambda text: conversation(text, system=True)),
        refusals=(),
    ),
    Target(
        name="answer in mathematics",
        sender="a model",
        made=lambda: [text.encode() for text in _ANSWERS],
        read=from_text(_read_answer),
        refusals=(AnswerRefused,),
    ),
    Target(
        name="program in Java",
        sender="a model",
        made=lambda: [_JAVA],
        read=from_text(lambda text: parses("java", text)),
        refusals=(),
    ),
    Target(
        name="program in Python",
        sender="a model",
        made=lambda: [_PYTHON],
        read=from_text(lambda text: parses("python", text)),
        refusals=(),
    ),
    Target(
        name="public texts", sender="people", made=lambda: [b"one text\nanother\n"],
        read=from_file("texts", read_texts), refusals=(InvalidBackbone,),
    ),
    Target(
        name="table of public things",
        sender="people",
        made=lambda: [_PUBLIC],
        read=from_file("things.csv", read_table),
        refusals=(InvalidSpace,),
    ),
)  # fmt: skip
