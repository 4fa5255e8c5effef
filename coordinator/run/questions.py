"""Asks nodes and verifies their signed answers; asks again until enough of them have answered."""

import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping, Sequence
from typing import TypeVar

from ...client_node.errors import FINAL_REFUSALS, MessageInvalid, SiteAway, SiteBehind, StaleLease
from ...client_node.wire.messages import Packet, Reply, verify
from ..errors import LeaseForgotten, MessageRefused, ReplicaBroken, RunRefused, SitesMissing
from ..fleet import NodeFailure
from ..store.tables import Absence
from .context import RunContext
from .overview import refusal_of, waiting_for

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=Reply)

PATIENCE_S = 600.0  # how long a run waits for nodes that are away before it fails
RETRY_S = 1.0
AWAY_RETRY_S = 20.0  # how often a node is asked that is away by its own schedule
LEASES_FORGOTTEN = (
    "nodes know a newer lease of this run than the database: an older copy of the database was put back, or it has "
    "lost its last writes. Leases are skipped, and the run goes on if its rounds are those that the nodes know"
)
_ABSENCES: Mapping[str, Absence] = {
    "offline": "offline", "unknown": "offline", "restarted": "late", "timeout": "late", "failed": "failed",
    "invalid": "invalid",
}  # fmt: skip
_LONGEST_S = {"settle": 60.0}  # nobody computes for it, and whoever stops or abandons a run waits


def ask_until(
    run: RunContext,
    kind: str,
    nodes: Sequence[str],
    request: Callable[[str], Packet],
    models: tuple[type[R], ...],
    *,
    needed: int,
    accept: Callable[[str, R, Packet], None],
    finish: Callable[[Collection[str]], Collection[str]] | None = None,
    ready: Callable[[Collection[str]], Mapping[str, NodeFailure]] | None = None,
    patience: float | None = None,
    absent: MutableMapping[str, Absence] | None = None,
) -> dict[str, R]:
    """Collects verified and accepted answers; asks missing nodes again until `needed` of them have answered.

    An answer that does not verify counts as none. All nodes that are online are asked at least once. A node that says
    it is away by its own schedule, until its hours or its next day begin, costs no patience: the run waits for it.

    Args:
        accept: is given each verified answer; one that it refuses counts as none.
        finish: is given the nodes whose answers were accepted since its last call, and returns those whose answers
            are complete; the others are asked again.
        ready: is given the nodes that are asked next, and returns those that cannot be asked yet, with their failures.
        patience: seconds, for a farewell: no stop breaks it off, and no node's hours prolong it. None for `PATIENCE_S`.
        absent: is told why nodes have given no good answer, each by its last one.

    Raises:
        LeaseForgotten: a node knows a newer lease, and was not believed before.
        RunRefused: too few nodes remain that do not refuse for a reason that asking again can't change.
        SitesMissing: fewer than `needed` nodes answered within `patience` seconds.
    """
    found: dict[str, R] = {}
    refused: dict[str, str] = {}
    resting: dict[str, float] = {}  # when nodes that are away are asked again
    why = {} if absent is None else absent
    deadline = time.monotonic() + (PATIENCE_S if patience is None else patience)

    def note(name: str, failure: NodeFailure) -> None:
        nonlocal deadline
        why[name] = absence_of(failure)
        if failure.error == SiteAway.__name__:
            if name not in resting:
                logger.info("run %s: %s, asked to %s, is away: %s", run.id, name, kind, failure.message)
            resting[name] = time.monotonic() + AWAY_RETRY_S
            if patience is None:
                deadline = max(deadline, resting[name] + PATIENCE_S)
            return
        if failure.error in FINAL_REFUSALS:
            refused[name] = f"{refusal_of(name)}{failure.error}): {failure.message}"
        if failure.error == StaleLease.__name__ and run.may_skip_leases:
            raise LeaseForgotten(LEASES_FORGOTTEN)
        if failure.error == SiteBehind.__name__:
            run.standings.pop(name, None)  # it has lost what it had: it is asked anew where it stands
        logger.warning("run %s: %s, asked to %s: %s", run.id, name, kind, failure)

    while True:
        missing = [name for name in nodes if name not in found and name not in refused]
        if len(nodes) - len(refused) < needed:
            few = f"{kind}: {needed} nodes are needed and {len(nodes)} are not revoked"
            raise RunRefused("; ".join(refused.values()) or few)
        if patience is None:
            run.stop_if_asked()
        online = run.fleet.online()
        now = time.monotonic()
        asked = [name for name in missing if name in online and resting.get(name, now) <= now]
        why.update(dict.fromkeys(asked, "invalid"))  # until they are heard
        why.update({name: "offline" for name in missing if name not in online and name not in resting})
        unready = {} if ready is None else ready(asked)
        for name, failure in unready.items():
            note(name, failure)
        requests = {name: request(name) for name in asked if name not in unready}
        accepted = _ask_once(run, kind, requests, models, accept, note)
        whole = accepted if finish is None else finish(accepted)
        found |= {name: accepted[name] for name in whole}
        for name in whole:
            why.pop(name, None)
        if len(found) >= needed:
            return found
        away = [name for name in missing if name not in found]
        if time.monotonic() > deadline:
            raise SitesMissing(f"{kind}: no good answer from {', '.join(away)} in time; what is committed is kept")
        run.beat(waiting_for(kind, away))
        time.sleep(RETRY_S)


def absence_of(failure: NodeFailure) -> Absence:
    """Names a failure by the coordinator's own words: an error's text stays in the log."""
    if failure.error == SiteAway.__name__:
        return "away"
    if failure.error == SiteBehind.__name__:
        return "behind"
    if failure.error in FINAL_REFUSALS:
        return "refused"
    return _ABSENCES[failure.reason]


def _ask_once(
    run: RunContext,
    kind: str,
    requests: Mapping[str, Packet],
    models: tuple[type[R], ...],
    accept: Callable[[str, R, Packet], None],
    note: Callable[[str, NodeFailure], None],
) -> dict[str, R]:
    """Returns the answers that verify and that `accept` takes; tells `note` why a node gave none."""
    accepted: dict[str, R] = {}
    for name, answer in verified_answers(run, kind, requests, *models):
        if isinstance(answer, NodeFailure):
            note(name, answer)
            continue
        try:
            if not isinstance(answer, tuple):
                raise answer
            accept(name, *answer)
        except (MessageInvalid, MessageRefused, ReplicaBroken) as err:
            logger.warning("run %s: the answer of %s is not taken: %s", run.id, name, err)
        else:
            accepted[name] = answer[0]
    return accepted


def verified_answers(
    run: RunContext, kind: str, requests: Mapping[str, Packet], *models: type[R]
) -> Iterator[tuple[str, tuple[R, Packet] | NodeFailure | MessageInvalid | MessageRefused]]:
    """Yields for each node, as it arrives, its own signed answer to this request, or the reason why there is none."""
    timeout = min(run.study.draft.rounds.deadline_s, _LONGEST_S.get(kind, math.inf))
    together = kind == "aggregate"
    for name, packet in run.fleet.ask(kind, requests, timeout, together=together) if requests else ():
        if isinstance(packet, NodeFailure):
            yield name, packet
            continue
        try:
            message = verify(packet, run.identity_of(name), *models)
            if message.request != requests[name].digest():
                raise MessageRefused(f"{name} answered another request than the one it was sent")
        except (MessageInvalid, MessageRefused) as err:
            yield name, err
        else:
            yield name, (message, packet)
