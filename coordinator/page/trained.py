"""Figures of what a run has trained, which are computed once for a run that is done."""

from dataclasses import dataclass

from ..results.metrics import Measurement
from ..run.progress import Event


@dataclass(frozen=True, slots=True)
class Trained:
    """The figures of a run after its last committed round."""

    rounds: int
    state_hash: str  # of the adapter
    event: Event
    measured: Measurement | None
    unmeasured: str  # why it is not
