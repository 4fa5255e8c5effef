"""Answers requests with the adapters of several studies, chosen or mixed for each request; trains nothing."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ...client_node.data.tables import Problems, Table, open_table
from ...client_node.errors import DataInvalid
from ...client_node.study import StudyDraft
from ...models.adapters.composing import FLOOR, Composition, Spent, compose
from ...models.backbones.loading import RecordBackbone, TextBackbone
from ...models.decoding.writing import by_length, write
from ...models.records import RecordSchema, cells, documents
from ...models.records.fields import AnyField, CategoricalField, NumericField
from ...models.records.text import Requests
from ...models.structure.inputs import words_of
from ..errors import Conflict
from .file_asking import MOST_REQUESTS, texts_of_files

Rule = Literal["prototypes", "arrow", "fixed"]
MOST_BYTES = 2**28
_ENCODED = 1000  # made into tokens together


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one request, and whose adapters gave it."""

    weights: tuple[float, ...] | None  # of each adapter; what is missing to 1 is the backbone's; None by arrow
    text: str | None  # what was written
    outputs: tuple[float, ...] | None  # of the heads, see `Answers.meaning`


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers to all requests, in their order, and what they rest on."""

    studies: tuple[str, ...]  # by adapter; names of those that were combined, joined by +
    lost: tuple[str, ...]  # studies that were never chosen, as their prototypes are lost in their noise
    spent: tuple[Spent, ...]  # for one person in all of the studies: holds for every answer, and for all together
    unbounded: tuple[str, ...]  # studies without privacy
    meaning: str  # of outputs
    answers: tuple[Answer, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON values; every answer says what epsilons add up to."""
        spent = [each._asdict() for each in self.spent]
        return {
            "studies": list(self.studies),
            "lost_in_noise": list(self.lost),
            "without_privacy": list(self.unbounded),
            "meaning": self.meaning,
            "answers": [
                {
                    "weights": None if each.weights is None else dict(zip(self.studies, each.weights, strict=True)),
                    "backbone": None if each.weights is None else max(0.0, 1 - sum(each.weights)),
                    "answer": each.text if each.outputs is None else list(each.outputs),
                    **({} if each.outputs is None or each.text is None else {"text": each.text}),
                    "spent": spent,
                }
                for each in self.answers
            ],
        }


def ask(
    backbone: Path,
    directories: Sequence[Path],
    requests: Path,
    *,
    rule: Rule = "prototypes",
    weights: Sequence[float] | None = None,
    floor: float = FLOOR,
    template: str = "{text}",
    max_tokens: int = 4096,
    longest: int = 64,
    then: str | None = None,
    study: StudyDraft | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Answers:
    """Answers the requests in a file with exported adapters of one backbone.

    Args:
        requests: of a backbone that reads records, a CSV or Parquet table of columns of its schema; what is left out is
            missing. Of one that reads text, a UTF-8 file with a request a line, or with `.jsonl` a JSON string a line;
            blank lines are none.
        rule: who answers, see `composing`.
        weights: of the rule fixed; None: a uniform mean.
        floor: cosine at which the backbone alone counts as much as an adapter.
        template: of text, what the studies show around it, with one name in braces; control words count here alone.
        max_tokens: of text, longer requests are cut, as in the studies.
        longest: tokens that are written.
        then: of studies whose heads answer and of which one task is a text, what stands between a request and the text.
            None writes nothing where heads answer. Its control words count.
        study: of a backbone that reads pictures or sounds, and of no other: it says what a record is, see
            `file_asking`.

    Raises:
        Conflict: the file has no requests, too many, or columns that the backbone does not read; or the backbone reads
            records, and `then` is given.
        InvalidRelease, InvalidBackbone, BackboneMismatch, CombinationRefused: see `compose`.
        DataInvalid: a cell does not fit.
    """
    composition = compose(backbone, directories)
    if bool(composition.adapted.carried) != (study is not None):
        raise Conflict(
            "the backbone reads no pictures and no sounds: leave out --study"
            if study is not None
            else f"the backbone reads {composition.adapted.begins_with}: say what a record is, --study study.toml"
        )
    if study is not None:
        if rule == "arrow" or then is not None or template != "{text}":
            things = composition.adapted.begins_with
            raise Conflict(
                f"requests with {things} are read by their study: leave out --by arrow, --then and --template"
            )
        written = texts_of_files(
            composition, study, requests, weights=weights, longest=longest, progress=progress
        )  # fmt: skip
        return _answers(composition, rule, [Answer(None, text, None) for text in written])
    ids = _ids(composition.backbone, requests, template, max_tokens)
    words: Sequence[str] = ()
    asked: list[int] = []
    if isinstance(composition.backbone, TextBackbone):
        words = words_of(composition.backbone.tokenizer)
        asked = Requests(composition.backbone.tokenizer, max_tokens).stated(then or "")
    elif then is not None:
        raise Conflict("the backbone reads records and writes no text; leave out --then")
    is_written = composition.head is None or then is not None
    answers: list[Answer | None] = [None] * len(ids)
    done = 0
    for places in by_length(ids):
        some = torch.tensor([ids[place] for place in places])
        gates = _gates(composition, some, rule, weights, floor)
        outputs = None if composition.head is None else composition.classify(some, gates).tolist()
        behind = [[*ids[place], *asked] for place in places]
        texts = _written(composition, behind, words, gates, longest) if is_written else None
        for row, place in enumerate(places):
            answers[place] = Answer(
                None if gates is None else tuple(gates[row].tolist()),
                None if texts is None else texts[row],
                None if outputs is None else tuple(outputs[row]),
            )
        done += len(places)
        progress(done, len(ids))
    return _answers(composition, rule, [answer for answer in answers if answer is not None])


def _answers(composition: Composition, rule: Rule, answers: Sequence[Answer]) -> Answers:
    facts = [adapter.provenance for adapter in composition.adapters]
    sources = [*facts[0].backbone_sources, *(source for each in facts for source in each.sources)]
    return Answers(
        studies=_unlike(["+".join(dict.fromkeys(source.study for source in each.sources)) for each in facts]),
        lost=tuple(
            adapter.provenance.sources[0].study
            for adapter in composition.adapters
            if rule == "prototypes" and adapter.prototype is not None and adapter.prototype.direction is None
        ),
        spent=tuple(composition.spent),
        unbounded=tuple(dict.fromkeys(source.study for source in sources if source.mode == "none")),
        meaning=composition.adapters[0].meaning if composition.head is not None else "",
        answers=tuple(answers),
    )


def _gates(
    composition: Composition, ids_RT: torch.Tensor, rule: Rule, weights: Sequence[float] | None, floor: float
) -> torch.Tensor | None:
    if rule == "arrow":
        return None
    if rule == "fixed":
        return composition.fixed(len(ids_RT), weights)
    return composition.by_prototypes(ids_RT, floor=floor)


def _written(
    composition: Composition,
    ids: Sequence[list[int]],
    words: Sequence[str],
    gates: torch.Tensor | None,
    longest: int,
) -> list[str]:
    backbone = composition.backbone
    if not isinstance(backbone, TextBackbone):
        raise Conflict("the adapters have no heads that all learn the same, and the backbone writes no text")
    end = backbone.tokenizer.eos_token_id
    with composition.answering(gates) as adapted:
        written = write(adapted.model, ids, words, ends=() if end is None else (end,), longest=longest)
    texts: list[str] = backbone.tokenizer.batch_decode([list(each.ids) for each in written], skip_special_tokens=True)
    return texts


def _unlike(names: Sequence[str]) -> tuple[str, ...]:
    """Numbers names that come twice, as two runs of one study have."""
    return tuple(f"{name} ({place + 1})" if names.count(name) > 1 else name for place, name in enumerate(names))


def _ids(backbone: RecordBackbone | TextBackbone, requests: Path, template: str, max_tokens: int) -> list[list[int]]:
    if isinstance(backbone, RecordBackbone):
        return _of_records(backbone, requests)
    texts = _texts(requests)
    _refuse_other_than_some(requests, len(texts))
    ids: list[list[int]] = []
    for start in range(0, len(texts), _ENCODED):  # a long one makes an array of all beside it as long
        encoded = documents.encoded(template, texts[start : start + _ENCODED], backbone.tokenizer, max_tokens)
        ids += [row[: max(1, int(np.flatnonzero(row).max(initial=0)) + 1)].tolist() for row in encoded]
    return ids


def _refuse_other_than_some(requests: Path, count: int) -> None:
    if not 1 <= count <= MOST_REQUESTS:
        raise Conflict(f"{requests} has {count:,} requests; from 1 to {MOST_REQUESTS:,} are answered")


def _texts(path: Path) -> list[str]:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise Conflict(f"{path} is longer than {MOST_BYTES >> 20} MiB")
        lines = [line for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
        found = [json.loads(line) for line in lines] if path.suffix == ".jsonl" else lines
        "".join(text for text in found if isinstance(text, str)).encode("utf-8")  # JSON can spell half a letter
    except (OSError, ValueError, RecursionError) as err:
        raise Conflict(f"{path} cannot be read as UTF-8 text, one request a line") from err
    if not all(isinstance(text, str) for text in found):
        raise Conflict(f"{path}: a line is no JSON string")
    return found


def _of_records(backbone: RecordBackbone, path: Path) -> list[list[int]]:
    """Token ids of each row; a column that the table does not have is missing in all.

    Where the backbone was built for several studies, a row is read as a record of those that its filled cells belong
    to: an empty cell of theirs is a missing value, of another study nothing at all.
    """
    schema = backbone.schema
    if schema.visits > 1:
        raise Conflict("the backbone reads histories of several visits, for which requests are not read yet")
    table = open_table(path, format=None)
    own = [field for field in schema.fields() if field.name in table.names]
    if not own:
        raise Conflict(f"{path} has none of the backbone's columns, which are {_some(schema)}")
    values, is_filled = _cells(table, own)
    _refuse_other_than_some(path, len(is_filled))
    patterns, which = np.unique(is_filled, axis=0, return_inverse=True)
    ids: list[list[int]] = [[]] * len(is_filled)
    for number, pattern in enumerate(patterns):
        rows = np.flatnonzero(which == number)
        filled = frozenset(field.name for field, is_there in zip(own, pattern, strict=True) if is_there)
        names = _read_together(filled, backbone.parts) if backbone.parts else {field.name for field in schema.fields()}
        lines = [""] * len(rows)
        if names:
            part = RecordSchema(
                numeric=tuple(field for field in schema.numeric if field.name in names),
                flags=tuple(field for field in schema.flags if field.name in names),
                categorical=tuple(field for field in schema.categorical if field.name in names),
            )
            absent = np.full(len(rows), None)
            lines = part.render(
                {field.name: values[field.name][rows] if field in own else absent for field in part.fields()}
            )
        for row, tokens in zip(rows, schema.encode(lines), strict=True):
            ids[row] = tokens[tokens > 0].tolist()
    return ids


def _read_together(filled: frozenset[str], parts: Sequence[frozenset[str]]) -> set[str]:
    """Columns of the studies that filled cells belong to: of as few as hold them all, those that hold most first."""
    names: set[str] = set()
    while left := filled - names:
        best = max(parts, key=lambda part: (len(part & left), -len(part)))
        if not best & left:
            return names | left
        names |= best
    return names


def _cells(table: Table, fields: Sequence[AnyField]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Values of each column, and bool [rows, columns], which cells hold one."""
    problems, rows = Problems(), 0
    values: dict[str, list[np.ndarray]] = {field.name: [] for field in fields}
    is_filled: list[np.ndarray] = [np.zeros((0, len(fields)), dtype=np.bool_)]
    for batch in table.batches(values, problems):
        missing = []
        for field in fields:
            text = batch[field.name]
            if isinstance(field, NumericField):
                found, expected = cells.numbers(text), "a number"
            elif isinstance(field, CategoricalField):
                found, expected = cells.categories(text, field.values), f"one of {len(field.values)} values"
            else:
                found, expected = cells.flags(text), "true or false"
            misfits = np.flatnonzero(found.misfit)
            problems.add_rows(rows + misfits, field.name, expected, cells.kinds(text, misfits))
            values[field.name].append(found.values)
            missing.append(found.missing)
        is_filled.append(~np.stack(missing, axis=1))
        rows += len(is_filled[-1])
    if problems.count:
        raise DataInvalid(str(table.source), problems.located(table.lines), problems.count)
    whole = {name: np.concatenate(parts) if parts else np.zeros(0) for name, parts in values.items()}
    return whole, np.concatenate(is_filled)


def _some(schema: RecordSchema) -> str:
    names = [field.name for field in schema.fields()]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
