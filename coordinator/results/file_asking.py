"""Answers requests with pictures or sounds: a table that names files, and a text that the model writes of each."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...client_node.data.named_files import files_below
from ...client_node.data.tables import Problems, open_table
from ...client_node.errors import DataInvalid
from ...client_node.study import StudyDraft
from ...models.adapters.composing import Composition
from ...models.backbones.family import context_length
from ...models.backbones.loading import TextBackbone
from ...models.errors import BackboneMismatch
from ...models.records import cells
from ...models.records.kind import Column
from ...models.structure.sense import require_layout
from ..errors import Conflict

MOST_REQUESTS = 100_000
_ANSWER = "?"
_TOGETHER = 64  # requests that are written at a time


def texts_of_files(
    composition: Composition,
    draft: StudyDraft,
    requests: Path,
    *,
    weights: Sequence[float] | None = None,
    longest: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Writes behind the file and the prompt of each row of a table.

    Args:
        draft: of the study, which says what a record is.
        requests: a table of the column of files and of those that the prompt shows; others are not read. Files lie in
            the folder `pictures` or `sounds` beside it.
        weights: how much the adapter counts; None: as it stands.
        longest: words that are written at most.

    Raises:
        Conflict: the study's records are of another kind, or there are several adapters.
        DataInvalid: a column is missing, or a cell does not fit.
        InvalidPicture, InvalidSound: a file cannot be decoded.
    """
    kind, terms, backbone = draft.data.kind, draft.data.terms, composition.backbone
    things = composition.adapted.begins_with
    if kind.files != things or not isinstance(backbone, TextBackbone):
        raise Conflict(f"the backbone reads {things}, and records of the study are of kind {kind.name}")
    if len(composition.adapters) > 1:
        raise Conflict(f"requests with {things} are answered by one adapter: name one")
    try:
        require_layout(backbone.model, kind.layout(terms))
    except BackboneMismatch as err:
        raise Conflict(f"the backbone {err}") from None
    reader: Any = kind.reader(terms, backbone.vocabulary, max_tokens=draft.data.max_tokens)
    shown = [column for column in kind.columns(terms) if column.kind != "text to learn" and column.sites != ()]
    told = [column.name for column in kind.columns(terms) if column.kind == "text to learn"]
    values = _values(requests, shown, kind.files)
    count = len(next(iter(values.values())))
    if (most := context_length(backbone.model.config) - draft.data.max_tokens) < longest:
        raise Conflict(f"the backbone has room for {max(0, most)} words behind a record: --longest is {longest}")
    # Something must stand where the answer will: what is before it is the prompt.
    columns = {**values, **{name: np.full(count, _ANSWER, dtype=object) for name in told}}
    texts: list[str] = []
    for start in range(0, count, _TOGETHER):
        some = {name: column[start : start + _TOGETHER] for name, column in columns.items()}
        ids, is_learned = reader.examples(some, None)
        with composition.answering(composition.fixed(len(ids), weights)) as adapted:
            texts += reader.written(adapted.model, ids, is_learned, longest=longest)
        progress(len(texts), count)
    return texts


def _values(path: Path, wanted: list[Column], folder: str) -> dict[str, np.ndarray]:
    table, problems, rows = open_table(path), Problems(), 0
    if missing := [column.name for column in wanted if column.name not in table.names]:
        raise Conflict(f"{path} has no column {', '.join(missing)}, which the study's prompt shows")
    found: dict[str, list[np.ndarray]] = {column.name: [] for column in wanted}
    for batch in table.batches([column.name for column in wanted], problems):
        for column in wanted:
            text = batch[column.name]
            read = column.read(text)
            if column.opens is None:
                values, places = read.values, np.flatnonzero(read.misfit)
                problems.add_rows(rows + places, column.name, column.expected, cells.kinds(text, places))
            else:
                values, wrong = files_below(path.parent / folder, read.values, read.misfit, column.opens)
                problems.add_rows(
                    np.array([*wrong]) + rows,
                    column.name,
                    column.expected.replace("data.files", folder),
                    wrong.values(),
                )
            found[column.name].append(values)
        rows += len(next(iter(batch.values())))
        if rows > MOST_REQUESTS:
            raise Conflict(f"{path} has more than {MOST_REQUESTS:,} requests, and no more are answered")
    if problems.count:
        raise DataInvalid(str(table.source), problems.located(table.lines), problems.count)
    if not rows:
        raise Conflict(f"{path} has no requests")
    return {name: np.concatenate(parts) for name, parts in found.items()}
