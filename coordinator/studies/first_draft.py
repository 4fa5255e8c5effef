"""Writes a first study.toml from a data dictionary, the register, and the number of units that the sites have told.

Every setting that is not the operator's to say is computed from those, or is a value that held in our own studies
(docs/benchmarks/quality.md), with its reason beside it. No record is read, here or anywhere at the coordinator.
"""

import itertools
import json
import math
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass

from ...client_node.errors import StudyInvalid
from ...client_node.study import StudyDraft
from ...client_node.study.terms import MOST_TOKENS_IN_FULL, NUM_AGGREGATORS
from ...client_node.study.toml import parse_json
from ..errors import StudyRefused
from ..federation.members import Member
from .dictionary import ColumnEntry, Dictionary

_RATE = 0.2
_LARGEST_BATCH = 10_000  # units of all sites: more costs time and hardly helps
_DELTA = 1e-5  # or a tenth of one in the units, where that is less
_NEAR = 10  # an answer on a scale is right within this part of its length
_LONGEST_TASK = 58  # of a task's name, which may get a number
_VISITS = 8  # of a history: as many as synthetic ones have
_SPARE_FROM = 4  # sites, from which on one may be away
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Wishes:
    """The settings of a study that only its operator can know or decide."""

    name: str
    units: int  # persons at all sites together, as the sites have told
    unit: str = "person"  # the word for one of them
    epsilon: float = 3.0  # what a whole run may cost one of them
    rounds: int = 40
    backbone: str = "backbone"  # folder, from where study.toml lies
    targets: tuple[str, ...] = ("o_proj", "down_proj")  # of a study of text
    layers: tuple[int, ...] = (28, 29)  # of a study of text; those of smollm2


def first_draft(dictionary: Dictionary, members: Sequence[Member], wishes: Wishes) -> str:
    """Writes the text of a study.toml with comments, which `create_study` takes as it is.

    Args:
        members: of the federation; those that train or aggregate and are not revoked take part.

    Raises:
        StudyRefused: too few of them are invited.
        StudyInvalid: a wish is out of range.
    """
    sites, aggregators = _takes_part(members, "train"), _takes_part(members, "aggregate")[:NUM_AGGREGATORS]
    missing = []
    if len(sites) < 2:
        missing.append("two sites or more: coordinator site invite NAME...")
    if len(aggregators) < NUM_AGGREGATORS:
        missing.append(f"{NUM_AGGREGATORS} aggregators: coordinator site invite NAME... --role aggregate")
    if missing:
        raise StudyRefused("nothing was written; first invite " + ", and ".join(missing))
    text = "\n".join(
        (
            *_heading(dictionary, wishes),
            *_adapter(dictionary, wishes),
            *_data(dictionary, wishes),
            *_privacy(wishes, len(sites)),
            *_rounds(wishes, len(sites)),
            *_optimizer(dictionary),
            "[participants] # by their names in the register",
            f"sites = {_list(sites)}",
            f"aggregators = {_list(aggregators)}",
            "",
        )
    )
    source = f"study {wishes.name}"
    try:
        parse_json(json.dumps(tomllib.loads(text)), StudyDraft, error=StudyInvalid, source=source)
    except tomllib.TOMLDecodeError as err:
        raise StudyInvalid(source, ("name, unit and backbone must each be one line",)) from err
    return text


def sample_rate_of(units: int) -> float:
    """Chance that a unit enters a round: a fifth, or less where that would be more than ten thousand units."""
    return min(_RATE, float(f"{_LARGEST_BATCH / max(units, 1):.2g}"))


def delta_of(units: int) -> float:
    """A tenth of one in the units, rounded down to a power of ten, and at most 1e-5."""
    return float(min(_DELTA, 10.0 ** -math.ceil(math.log10(10 * max(units, 1)))))


def _takes_part(members: Sequence[Member], role: str) -> list[str]:
    return [member.name for member in members if role in member.roles.split(",") and member.state != "revoked"]


def _heading(dictionary: Dictionary, wishes: Wishes) -> list[str]:
    made = "coordinator backbone build study.toml DIRECTORY, which reads no table"
    if dictionary.is_text:
        made = "coordinator backbone import FOLDER-OF-A-CHECKPOINT DIRECTORY"
    if dictionary.is_text and not dictionary.is_written:
        made += ", then coordinator backbone moments, of public texts"
    return [
        "# Written by `coordinator study init`. Look through it, then: coordinator study check study.toml",
        "# Every setting, those left out here too: docs/study-toml.md",
        f"name = {_text(wishes.name)}",
        'description = "" # for the people who approve it',
        "",
        "[model]",
        f"backbone = {_text(wishes.backbone)} # folder beside this file; make it with: {made}",
        "",
    ]


def _adapter(dictionary: Dictionary, wishes: Wishes) -> list[str]:
    seed = f"seed = {_text(wishes.name + '-1')} # any text; public"
    if dictionary.is_written:
        return [
            "[adapter] # in the last layers: backward stops there; `coordinator backbone show` counts layers",
            "rank = 4",
            "alpha = 16.0",
            f"targets = {_list(wishes.targets)}",
            f"layers = {list(wishes.layers)}",
            'head = "lm"',
            seed,
            "",
        ]
    if dictionary.is_text:
        return [
            "[adapter] # a head alone: where it was measured, adapters under it earned nothing",
            "targets = []",
            "# reads = [0, 24] # the states that it reads; left out, all of which the backbone has moments",
            seed,
            "",
        ]
    return [
        "[adapter] # attention alone: every trained number takes noise, and on tables more parts earned nothing",
        "rank = 4",
        "alpha = 4.0",
        'targets = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]',
        seed,
        "",
    ]


def _data(dictionary: Dictionary, wishes: Wishes) -> list[str]:
    lines = [
        "[data] # published values alone: never quantiles of anybody's table",
        f"unit = {_text(wishes.unit)} # whom privacy protects; every site.toml must use the same word",
        "max_records_per_unit = 1 # more records of one unit are left out by chance",
    ]
    if dictionary.is_text:
        return [*lines, "max_tokens = 256 # of a record; longer texts are cut", "", *_texts(dictionary), ""]
    flags = dictionary.of_kind("flag")
    words = sum(len(dictionary.of_kind(kind)) for kind in ("number", "category", "flag"))
    place = "data"
    if dictionary.order is not None:
        place = "data.history"
        visits = max(1, min(_VISITS, MOST_TOKENS_IN_FULL // (words + 1)))
        lines = [
            *lines[:2],  # a person is one record
            f"max_tokens = {max(64, visits * (words + 1))} # words: one a column, and one behind each visit",
            "",
            "[data.history] # all rows of a person are one record; what is learned is what the last one says",
            f"order = {_text(dictionary.order.name)} # sorts them",
            f"visits = {visits} # the last ones",
        ]
    else:
        lines.append(f"max_tokens = {max(64, words)} # words of a record, one a column")
    tasks = dictionary.labels if len(dictionary.labels) > 1 else ()
    if not tasks:
        lines += _label(dictionary.labels[0])
    if flags:
        lines.append(f"flags = {_list([column.name for column in flags])}")
    for kind, table in (("number", "numeric"), ("category", "categorical")):
        if entries := dictionary.of_kind("number" if kind == "number" else "category"):
            lines += ["", f"[{place}.{table}]", *(_column(entry) for entry in entries)]
    return [*lines, *_tasks(place, tasks), ""]


def _texts(dictionary: Dictionary) -> list[str]:
    """Writes the table of what a model learns to write of texts, or of what a head tells of them."""
    names, label = [column.name for column in dictionary.of_kind("text")], dictionary.labels[0].name
    if not dictionary.is_written:
        text = f"{{{names[0]}}}" if len(names) == 1 else "\n".join(f"{name}: {{{name}}}" for name in names)
        template = f"text = {_text(text)} # the --template of `backbone moments`, too"
        tasks = dictionary.labels if len(dictionary.labels) > 1 else ()
        learned = _tasks("data.document", tasks) if tasks else _label(dictionary.labels[0])
        return ["[data.document] # names in braces are columns", template, *learned]
    shown = "".join(f"{name}: {{{name}}}\n" for name in names)
    prompt, completion = _text(f"{shown}{label}:"), _text(f" {{{label}}}")
    return ["[data.text] # names in braces are columns", f"prompt = {prompt}", f"completion = {completion}"]


def _tasks(place: str, entries: Sequence[ColumnEntry]) -> list[str]:
    """Writes a table for each of several things that are learned at once."""
    names = _task_names(entries)
    return [
        line
        for name, entry in zip(names, entries, strict=True)
        for line in ("", f"[{place}.tasks.{_key(name)}]", *_label(entry))
    ]


def _task_names(entries: Sequence[ColumnEntry]) -> list[str]:
    """Makes names of tasks of the columns' names; one that is taken gets a number."""
    names: list[str] = []
    for entry in entries:
        plain = re.sub(r"[^a-z0-9._-]", "-", entry.name.lower()).lstrip("._-")[:_LONGEST_TASK] or "task"
        numbered = (f"{plain}-{number}" for number in itertools.count(2))
        names.append(next(name for name in itertools.chain([plain], numbered) if name not in names))
    return names


def _label(entry: ColumnEntry) -> list[str]:
    if entry.low is not None and entry.high is not None:
        within = float(f"{(entry.high - entry.low) / _NEAR:.2g}")
        ends = f"low = {entry.low!r}, high = {entry.high!r}, within = {within!r}"
        return [f"number = {{ column = {_text(entry.name)}, {ends} }} # right if as near as that"]
    if entry.values is None or {*entry.values} == {"0", "1"}:
        return [f"label = {_text(entry.name)} # 0 or 1"]
    return [f"label = {_text(entry.name)}", f"classes = {_list(entry.values)} # one of them, spelt so"]


def _column(entry: ColumnEntry) -> str:
    if entry.values is not None:
        stated, notes = _list(entry.values), []
    else:
        stated = "[" + ", ".join(f"{edge:.12g}" for edge in entry.bin_edges()) + "]"
        is_range = entry.cuts is None
        notes = [f"ten bins from {entry.low:g} to {entry.high:g}; reference values are better"] if is_range else []
    notes = [*filter(None, (entry.measured_in, entry.description)), *notes]
    return f"{_key(entry.name)} = {stated}" + (f" # {' '.join('; '.join(notes).split())}" if notes else "")


def _privacy(wishes: Wishes, sites: int) -> list[str]:
    mode = ["# of two sites each would find the other's update in a sum, so each adds all the noise", 'mode = "local"']
    if sites > 2:
        mode = ['mode = "distributed" # the noise of all sites together protects']
    spare = []
    if sites >= _SPARE_FROM:
        spare = ['max_dropouts = 1 # a site may be away; the others add its noise before a sum is opened',
                 'dropouts = "top-up"']  # fmt: skip
    return [
        "[privacy]",
        *mode,
        f"target_epsilon = {wishes.epsilon:g} # what a whole run may cost one {wishes.unit}: the noise is solved",
        f"delta = {delta_of(wishes.units):g} # at most 1 / units, at every site too",
        f"sample_rate = {sample_rate_of(wishes.units):g} # chance that one {wishes.unit} enters a round",
        "clip_norm = 1.0 # longest gradient of one of them",
        *spare,
        "collusion = 1 # sites whose own noise somebody may know: a site knows its own",
        "",
    ]


def _rounds(wishes: Wishes, sites: int) -> list[str]:
    rate, least = sample_rate_of(wishes.units), sites - (sites >= _SPARE_FROM)
    return [
        "[rounds]",
        f"rounds = {wishes.rounds}",
        f"min_sites = {least} # fewest sites in a sum",
        "deadline_s = 300 # that a round waits for a site that is away; if all answer, it goes on at once",
        f"batch_units = {max(1, round(rate * wishes.units))} # {rate:g} of {wishes.units:,} in all",
        "",
        "# [prototype] # after the last round, by which the adapter is found for requests like the records; of text it",
        "# needs a backbone with moments: coordinator backbone moments",
        "# noise_multiplier = 40.0",
        "",
        "# [evaluation] # after the last round, on records that sites hold out (heldout_path in site.toml)",
        "# bins = 10",
        "# noise_multiplier = 4.0",
        "",
    ]


def _optimizer(dictionary: Dictionary) -> list[str]:
    if dictionary.is_written:
        return ["[optimizer]", "lr = 1.0 # of the adapters", ""]
    return ["[optimizer] # left out, a rule chooses the rates: docs/study-toml.md", ""]


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else _text(name)


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)  # what JSON escapes, TOML reads alike


def _list(values: Sequence[str]) -> str:
    return "[" + ", ".join(map(_text, values)) + "]"
