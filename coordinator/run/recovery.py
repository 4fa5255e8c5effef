"""Loads the checkpoint that a run goes on from, and computes it again if its file is damaged.

A checkpoint follows from the one before it and the round's total, which the aggregators have signed; the totals of a
run are kept until it ends. Both ways lead to the same bytes, whose hash the round has committed, or the damage stays.
"""

import hashlib
import logging

from ...client_node.errors import ClientNodeError
from ...client_node.replay import Checkpoint
from ...client_node.replay.following import follow
from ..errors import StateDamaged
from ..store.tables import Round
from .context import RunContext
from .replaying import total_digest

logger = logging.getLogger(__name__)


def newest_checkpoint(run: RunContext) -> Checkpoint:
    """Loads the checkpoint of the last committed round; the start before the first.

    Raises:
        StateDamaged: its file is damaged, and so is something that it follows from.
    """
    last = run.store.last_round(run.id)
    if last.state_hash is None:
        return run.start
    try:
        return run.folder.load(last.number, last.state_hash)
    except StateDamaged as err:
        logger.warning("run %s: %s. It is computed again from the totals", run.id, err)
        try:
            found = _follow_again(run, run.store.rounds(run.id))
        except (StateDamaged, ClientNodeError) as why:
            logger.error("run %s: the model after round %d cannot be computed again: %s", run.id, last.number, why)
            raise err from why
        if hashlib.sha256(found.to_bytes()).hexdigest() != last.state_hash:
            raise
        try:
            run.folder.save(found)
        except IsADirectoryError as why:  # what lies there is no file at all, and for a person to look at
            raise err from why
        return found


def _follow_again(run: RunContext, rounds: list[Round]) -> Checkpoint:
    """Computes the checkpoint after the last of `rounds` from the newest earlier one that can be read, or the start."""
    *earlier, _ = rounds
    checkpoint = run.start
    if earlier:
        try:
            checkpoint = run.folder.load(earlier[-1].number, earlier[-1].state_hash)
        except StateDamaged as err:
            logger.warning("run %s: %s. It is computed again from the start", run.id, err)
    for row in rounds[checkpoint.round :]:
        total = run.folder.total(row.number, total_digest(run, row))
        checkpoint = follow(run.study, checkpoint, total, kept=len(row.summed))
    return checkpoint
