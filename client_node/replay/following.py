"""Follows a run: from its start and each round's opened total to what every round starts from.

All of it follows from the study and the totals, which the three aggregators have signed. The coordinator computes it to
know where the run stands. A site computes it because it believes nobody else.
"""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ...mpc.sharing import Ring
from ...mpc.sharing.ring import decode, to_integers
from ..errors import StateRefused
from ..study import PlannedRound, Study, StudyDraft
from .bounds import require_length
from .broadcast import broadcast
from .checkpoint import Checkpoint
from .server_optimizer import server_step


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundStart:
    """The vector from which all sites train, or which they evaluate, in the round after a checkpoint."""

    planned: PlannedRound
    vector: npt.NDArray[np.float32]  # [dim], as it is after rounding, if the study rounds it
    digest: str  # SHA-256 of its encoding by `Study.state_format`
    residual: npt.NDArray[np.float32] | None  # what rounding leaves for the next round


def start_state(draft: StudyDraft, trained: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Makes the state of round 0: the initial trained numbers, and an adaptive clip at its start value."""
    state = np.zeros(draft.state_dim(len(trained)), dtype=np.float32)
    state[: len(trained)] = trained
    return state


def start_digest(state: npt.NDArray[np.float32]) -> str:
    """Hashes a start, float32 little-endian, as a study states it."""
    return hashlib.sha256(state.astype("<f4").tobytes()).hexdigest()


def beginning(study: Study, state: npt.NDArray[np.float32]) -> Checkpoint:
    """Makes the checkpoint of round 0.

    Raises:
        StateRefused: `state` is not the start that the study states.
        StudyOutdated: the study states none.
    """
    if start_digest(state) != study.require_start().state:
        raise StateRefused(f"the start that follows from the seed of study {study.name} is not the one that it states")
    return Checkpoint.beginning(state)


def round_start(study: Study, checkpoint: Checkpoint, number: int | None = None) -> RoundStart:
    """Computes what a round starts from.

    Args:
        checkpoint: as the update before it has left it.
        number: of the round; None: the one after `checkpoint`. Rounds after the last update all start from the exported
            vector, unrounded.
    """
    planned = study.planned_round(checkpoint.round + 1 if number is None else number)
    form = study.state_format(planned)
    if planned.purpose != "update":
        encoded, residual = form.encode(checkpoint.exported), None
    else:
        encoded, residual = broadcast(form, checkpoint)
    digest = hashlib.sha256(encoded).hexdigest()
    return RoundStart(planned=planned, vector=form.decode(encoded), digest=digest, residual=residual)


def follow(study: Study, checkpoint: Checkpoint, total: bytes, *, kept: int) -> Checkpoint:
    """Computes the checkpoint after one more round of training.

    Args:
        total: the ring elements of the round's opened total, little-endian.
        kept: number of sites in it.

    Raises:
        StateRefused: `total` is not as many bytes as the round's totals have, or longer than they can be (L2).
        InvalidOptimizer: the step is not finite.
    """
    start = round_start(study, checkpoint)
    head = slice(0, study.require_start().head_size)
    units = units_of(start.planned, total)
    require_length(study, start.planned, units, kept)
    after = server_step(study.draft, checkpoint, decode(units, _ring(start.planned)), head)
    return replace(after, residual=start.residual)


def units_of(planned: PlannedRound, total: bytes) -> npt.NDArray[np.int64]:
    """Reads a round's opened total as integers, in ring units."""
    ring = _ring(planned)
    if len(total) != total_bytes(planned):
        raise StateRefused(
            f"a total of {len(total)} bytes, where {total_bytes(planned)} are due, does not fit the study"
        )
    return to_integers(np.frombuffer(total, ring.unsigned), ring)


def total_bytes(planned: PlannedRound) -> int:
    """Size of a round's opened total: its ring elements, without tags."""
    return planned.dim * planned.ring_bits // 8


def _ring(planned: PlannedRound) -> Ring:
    return Ring(bits=planned.ring_bits, scale_bits=planned.scale_bits)
