"""A federation's studies as the coordinator keeps them: immutable texts, and what runs of them begin with.

Kept apart from `drafting`, which makes them: driving a run needs no model and must not wait for torch.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...client_node.study import Study, StudyDraft
from ..errors import StateDamaged
from ..store import Checkpoint
from ..store.tables import StudyRow


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyStart:
    """What a run of the study begins with; kept beside the study because driving a run needs no model."""

    start: Checkpoint
    head_size: int
    backbone: Path  # where the operator keeps the backbone


def load_study(row: StudyRow) -> Study:
    """The study of a row, whose hash must be the row's."""
    study = Study.parse(row.canonical)
    if study.study_hash != row.hash:
        raise StateDamaged(f"study {row.name} in the store is not the one that was approved as {row.hash}")
    return study


def study_start(home: Path, study: Study) -> StudyStart:
    """What runs of `study` begin with."""
    path = start_file(home, study.study_hash)
    if not path.exists():
        raise StateDamaged(f"{path} is missing; create the study again from the same study.toml")
    stored = json.loads(path.read_text())
    state = np.asarray(stored["state"], dtype=np.float32)
    return StudyStart(
        start=Checkpoint.beginning(state),
        head_size=int(stored["head_size"]),
        backbone=Path(stored["backbone"]),
    )


def start_state(draft: StudyDraft, trained: np.ndarray) -> np.ndarray:
    """The state of round 0: the trained numbers as they start, and an adaptive clip at its start value."""
    state = np.zeros(draft.state_dim(len(trained)), dtype=np.float32)
    state[: len(trained)] = trained
    return state


def start_file(home: Path, study_hash: str) -> Path:
    """Where a study's beginning is kept."""
    return home / "studies" / f"{study_hash}.json"
