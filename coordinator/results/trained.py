"""Loads the model that a run has trained, for audits, exports and measurements."""

from pathlib import Path

from ...client_node.training.study_model import StudyModel, load_study_model
from ..errors import Conflict
from ..store import Store
from ..store.run_folder import RunFolder
from ..studies.catalogue import load_study, study_start


def trained_model(store: Store, home: Path, run_id: str, *, unpacked: bool = False) -> StudyModel:
    """Loads the study's model with the adapter as of the run's last committed round.

    Args:
        unpacked: True to hold all weights in float32, as the checkpoint has them, whatever the study says.

    Raises:
        Conflict: no round is committed yet.
    """
    return trained_at(store, home, run_id, unpacked=unpacked)[0]


def trained_at(store: Store, home: Path, run_id: str, *, unpacked: bool = False) -> tuple[StudyModel, int, str]:
    """Loads the same, and returns the round behind it and the SHA-256 of its state: a run may go on meanwhile."""
    study = load_study(store.study(store.run(run_id).study))
    last = store.last_round(run_id)
    if last.state_hash is None:
        raise Conflict(f"run {run_id} has no committed round yet, so there is no adapter")
    folder = study_start(home, study).backbone
    model = load_study_model(study.draft, folder, expected_hash=study.backbone_hash, unpacked=unpacked)
    exported = RunFolder(home, run_id).load(last.number, last.state_hash).exported
    model.adapted.load_state(exported[: model.adapted.layout.dim])  # an adaptive clip's logarithm may follow
    return model, last.number, last.state_hash
