"""Passes on the opened totals from which every site computes the state by itself, to each site those that it lacks.

The coordinator keeps the totals of a run, one file a round, until the run ends. A total travels in parts and with the
evidence that the aggregators signed, so it need not be believed. A site says where it stands and how much it holds of
the next total, so a site that was away gets what it missed, and a transfer goes on where it stopped. Sites that stand
at the same place are sent the same bytes; only a few places are read at a time, however many sites there are.
"""

import logging
import time
from collections.abc import Collection

from ...client_node.errors import SiteBehind
from ...client_node.wire.evidence import signed_total
from ...client_node.wire.messages import Outcome, Packet, Replay, Replayed, sign
from ..fleet import NodeFailure
from ..store.tables import Round
from .context import RunContext
from .questions import verified_answers

logger = logging.getLogger(__name__)

PLACES = 4  # different parts that are in memory at a time

Place = tuple[int, int]  # a round, and an offset into its total


def bring_up(run: RunContext, sites: Collection[str], stand: int) -> dict[str, NodeFailure]:
    """Sends each of `sites` the totals up to round `stand` that it lacks; returns why some of them are not there yet.

    A site that lacks more than can be sent within the study's deadline gets the rest another time: the others need not
    wait for it.
    """
    waiting: dict[str, Place] = {}
    for site in sites:
        stands = run.standings.get(site, max(0, stand - 1))  # of a site not heard yet: one total is missing, as usual
        if stands < stand:
            waiting[site] = (stands + 1, 0)
    rounds = {row.number: row for row in run.store.rounds(run.id)} if waiting else {}
    failures: dict[str, NodeFailure] = {}
    heard: set[str] = set()
    deadline = time.monotonic() + run.study.draft.rounds.deadline_s
    while waiting and time.monotonic() < deadline:
        run.stop_if_asked()
        places = sorted(set(waiting.values()), reverse=True)[:PLACES]
        parts = {place: _part(run, rounds[place[0]], place[1]) for place in places}
        requests = {
            site: _request(run, site, rounds[place[0]], place[1], parts[place])
            for site, place in waiting.items()
            if place in parts
        }
        for site, answer in verified_answers(run, "replay", requests, Replayed):
            if not isinstance(answer, tuple):
                failures[site] = answer if isinstance(answer, NodeFailure) else _failure(str(answer))
                del waiting[site]
                continue
            asked, run.standings[site] = waiting.pop(site), answer[0].round
            place = (answer[0].round + 1, answer[0].held)
            if answer[0].round >= stand:
                continue
            if site in heard and place <= asked:
                failures[site] = _failure("it does not keep what it was brought")
                continue
            heard.add(site)
            waiting[site] = place
    return failures | dict.fromkeys(waiting, _failure("it gets the totals that it lacks"))


def total_digest(run: RunContext, row: Round) -> str:
    """Reads the SHA-256 of a committed round's total from what the aggregators have signed.

    Raises:
        MessageInvalid: they have not signed it.
    """
    return signed_total(run.study, run.id, _outcome(row)).total_digest


def _request(run: RunContext, site: str, row: Round, offset: int, part: bytes) -> Packet:
    message = Replay(
        **run.addressed(site),
        outcome=_outcome(row),
        tag_key=run.tag_key(row.number),
        offset=offset,
    )
    return sign(message, run.signer, {"part": part})


def _part(run: RunContext, row: Round, offset: int) -> bytes:
    return run.folder.total_part(row.number, offset, total_digest(run, row))


def _outcome(row: Round) -> Outcome:
    return Outcome(round=row.number, sites=row.summed, evidence=row.signed)


def _failure(why: str) -> NodeFailure:
    return NodeFailure(reason="failed", error=SiteBehind.__name__, message=why)
