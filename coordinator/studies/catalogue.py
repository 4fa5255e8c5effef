"""The coordinator's catalogue of studies: their immutable texts, and the start of their runs.

Apart from `create`, which makes studies: driving a run needs no model and must not wait for torch.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...client_node.replay import Checkpoint
from ...client_node.replay.following import start_digest
from ...client_node.study import Study
from ..errors import StateDamaged
from ..store.tables import StudyRow


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyStart:
    """The start of a study's runs, stored beside the study so that driving a run needs no model."""

    start: Checkpoint
    backbone: Path  # the operator's folder of the backbone


def load_study(row: StudyRow) -> Study:
    """Parses the study of a row. Raises `StateDamaged` unless its hash is the row's."""
    study = Study.parse(row.canonical)
    if study.study_hash != row.hash:
        raise StateDamaged(f"study {row.name} in the store is not the one that was approved as {row.hash}")
    return study


def study_start(home: Path, study: Study) -> StudyStart:
    """Loads the start of runs of `study`. Raises `StateDamaged` if its file is missing, or holds another start."""
    path = start_file(home, study.study_hash)
    if not path.exists():
        raise StateDamaged(f"{path} is missing; create the study again from the same study.toml")
    stored = json.loads(path.read_text())
    state = np.asarray(stored["state"], dtype=np.float32)
    if study.start is not None and start_digest(state) != study.start.state:
        raise StateDamaged(f"{path} is not the start that study {study.name} states; restore it from a backup")
    return StudyStart(start=Checkpoint.beginning(state), backbone=Path(stored["backbone"]))


def start_file(home: Path, study_hash: str) -> Path:
    """Path of the file with the start of a study's runs."""
    return home / "studies" / f"{study_hash}.json"
