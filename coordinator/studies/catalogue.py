"""The coordinator's catalogue of studies: their immutable texts, and the start of their runs.

Apart from `create`, which makes studies: driving a run needs no model and must not wait for torch.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter

from ...client_node.errors import StudyInvalid
from ...client_node.files import damaged, read_json
from ...client_node.replay import Checkpoint
from ...client_node.replay.following import start_digest
from ...client_node.study import Study
from ...models.strict import StrictModel
from ..errors import StateDamaged
from ..store.tables import StudyRow

_ROW_REMEDY = "No run of it can be driven: restore the newest backup"
_REMEDY = (
    "It is the start of the study's runs, which none of them begins or goes on without: restore it from a backup, or "
    "create the study again from the same study.toml"
)


class _Stored(StrictModel):
    model_config = ConfigDict(extra="ignore")  # earlier versions stored more

    state: tuple[float, ...]
    backbone: Annotated[str, Field(max_length=4096)]


_FORM = TypeAdapter(_Stored)


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyStart:
    """The start of a study's runs, stored beside the study so that driving a run needs no model."""

    start: Checkpoint
    backbone: Path  # the operator's folder of the backbone


def load_study(row: StudyRow) -> Study:
    """Parses the study of a row. Raises `StateDamaged` unless its hash is the row's."""
    try:
        study = Study.parse(row.canonical)
    except StudyInvalid as err:
        raise StateDamaged(f"study {row.name} in the database is damaged: {err}\n{_ROW_REMEDY}") from err
    if study.study_hash != row.hash:
        raise StateDamaged(
            f"study {row.name} in the database is not the one that was approved as {row.hash}. {_ROW_REMEDY}"
        )
    return study


def study_start(home: Path, study: Study) -> StudyStart:
    """Loads the start of runs of `study`. Raises `StateDamaged` if its file is missing, or holds another start."""
    path = start_file(home, study.study_hash)
    stored = read_json(path, _FORM, remedy=_REMEDY, error=StateDamaged)
    if stored is None:
        raise damaged(path, "is missing", remedy=_REMEDY, error=StateDamaged)
    with np.errstate(over="ignore"):  # a number too large for float32 is infinite, and so of no study
        state = np.asarray(stored.state, dtype=np.float32)
    if study.start is not None and start_digest(state) != study.start.state:
        raise damaged(path, f"is not the start that study {study.name} states", remedy=_REMEDY, error=StateDamaged)
    return StudyStart(start=Checkpoint.beginning(state), backbone=Path(stored.backbone))


def start_file(home: Path, study_hash: str) -> Path:
    """Path of the file with the start of a study's runs."""
    return home / "studies" / f"{study_hash}.json"
