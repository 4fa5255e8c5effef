"""Simulates a study's run on one machine."""

from collections.abc import Callable
from pathlib import Path

from ...client_node.study import Study, StudyDraft
from .outcome import Plan, RoundOutcome, Simulation

Watch = Callable[[int, int, RoundOutcome | None], None]  # rounds done, rounds in all, the newest


def simulate(
    study: StudyDraft | Study,
    records: Path,
    out: Path,
    *,
    plan: Plan,
    backbone: Path,
    unit_column: str | None = None,
    watch: Watch = lambda done, total, newest: None,
) -> Simulation:
    """Simulates the rounds of a study that `out` does not hold yet.

    After each round `out` holds its checkpoint, and `simulation.json`; after the last one also `adapter`, for PEFT. A
    simulation that was stopped, by KeyboardInterrupt too, goes on at the next call with the same arguments.

    Args:
        study: a draft, or a whole study, whose hash, names and seeds are then those of a real run.
        records: PUBLIC or synthetic: SITE/train.csv and SITE/heldout.csv, or both files in the folder itself.
        out: folder of one simulation.
        backbone: folder of the frozen model.
    """
    raise NotImplementedError
