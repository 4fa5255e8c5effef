"""Tells the coordinator which studies this node's people have approved or revoked, if site.toml says that it may.

`[policy] tells_decisions` is off unless somebody wrote it: nothing new leaves a site because its program was upgraded.
Told are decisions that are whole (one person's word that waits for a second is none), on studies that name this node:
no person, no reason, nothing of records. It is information for the operator; what runs here is decided here, message by
message, whatever was told.

The daemon tells at its start, within a minute of a decision, and every hour, so that a coordinator which was put back
knows again. A word leaves between two messages, so that its time tells nothing of a step. Once the policy says no more,
one last word without decisions takes back what was told: `decisions.told` lies in the home for as long as the
coordinator may hold any.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path

from .approval.catalogue import FOLDER, known_studies
from .diary import Diary
from .enrolment import Enrolment, NodeIdentity
from .enrolment.protocol import send_signed
from .errors import CallUnknown, ClientNodeError
from .files import stamp, write_private
from .policy import load_decisions, site_policy
from .study import Study
from .traffic import TOLD, Passed, Traffic
from .wire.decisions import DECISIONS_PATH, MOST, DecisionsWord, ToldDecision

logger = logging.getLogger(__name__)

FILE = "decisions.told"  # under the home, and empty
_SETTLED_BY = ("decisions.json", "site.toml", "enrolment.json", FOLDER)  # what a word follows from
_HOURLY_S, _AGAIN_S = 3600.0, 60.0
_APART_S = 2.0  # between two words: the coordinator takes one a second
_ANSWER_S, _MOST_ANSWER = 60.0, 1024


class DecisionTeller:
    """Keeps the coordinator told, for one daemon."""

    def __init__(self, home: Path, traffic: Traffic | None = None) -> None:
        self._home, self._traffic = home, traffic
        self._seen: object = None  # stamps of the files, when they were read for the last word
        self._due = self._free = 0.0  # when the same is told again, and when a change is
        self._thread: threading.Thread | None = None
        self._troubles = Diary(logger, again_s=_HOURLY_S)

    def look(self) -> None:
        """Begins to tell what has changed, or what is due; returns at once."""
        seen = [stamp(self._home / name) for name in _SETTLED_BY]
        now = time.monotonic()
        is_due = now >= self._due or (seen != self._seen and now >= self._free)
        if is_due and not (self._thread and self._thread.is_alive()):
            self._seen, self._due, self._free = seen, now + _HOURLY_S, now + _APART_S
            self._thread = threading.Thread(target=self._tell, name="confide-decisions", daemon=True)
            self._thread.start()

    def settle(self) -> None:
        """Waits, a minute at most, for a word on its way: beside a step, its time would tell how busy the node is."""
        if self._thread is not None:
            self._thread.join(_ANSWER_S)

    def _tell(self) -> None:
        try:
            tell(self._home, self._count)
        except CallUnknown:
            self._troubles.note("the coordinator's version takes no word on decisions: its people are not told")
        except (ClientNodeError, OSError) as err:
            self._due = time.monotonic() + _AGAIN_S
            self._troubles.note("the coordinator is not told of decisions: %s", err, level=logging.WARNING)

    def _count(self, size: int) -> None:
        if self._traffic is not None:
            self._traffic.note(TOLD, Passed(answered=1, left_bytes=size))


def tell(home: Path, on_leaving: Callable[[int], None] = lambda size: None) -> tuple[ToldDecision, ...] | None:
    """Tells the coordinator of all decisions that it may know; returns them, or None if nothing was to be told.

    Args:
        on_leaving: is given the size of the word in bytes, before it leaves.

    Raises:
        CallUnknown: the coordinator runs an older version.
        ClientNodeError: a file of this node cannot be used, or the coordinator does not take the word.
    """
    told = tellable(home) if site_policy.load_node_policy(home).policy.tells_decisions else ()
    if not told and not (home / FILE).exists():
        return None
    write_private(home / FILE, b"")  # first: whatever becomes of the word, it is to be taken back
    identity, enrolment = NodeIdentity.load(home), Enrolment.load(home)
    word = DecisionsWord(
        identity=identity.identity_hex, timestamp=time.time(), nonce=secrets.token_hex(16),
        coordinator=enrolment.coordinator, decisions=told,
    )  # fmt: skip
    on_leaving(len(word.model_dump_json().encode()))
    send_signed(word, DECISIONS_PATH, identity, enrolment, most_bytes=_MOST_ANSWER, most_s=_ANSWER_S)
    if not told:
        (home / FILE).unlink(missing_ok=True)
    return told


def tellable(home: Path) -> tuple[ToldDecision, ...]:
    """Lists the decisions that hold on studies that name this node, the newest `MOST` studies' of them."""
    name, approvals, made = Enrolment.load(home).name, site_policy.approvals(home), load_decisions(home)

    def of(study: Study) -> ToldDecision | None:
        study_hash = study.study_hash
        decided = made.studies.get(study_hash)
        if decided is None and not approvals.names(study_hash):
            return None
        if decided is not None and decided.verdict == "revoked":
            return ToldDecision(study=study_hash, verdict="revoked")
        runs, until = (approvals.runs_of(study_hash), None) if decided is None else (decided.runs, decided.until)
        left = max(0, runs - len(made.runs_used(study_hash)))
        return ToldDecision(study=study_hash, verdict="approved", runs_left=left, until=until)

    own = [each for each in known_studies(home) if name in {*each.site_names(), *(p.name for p in each.aggregators)}]
    return tuple(told for each in own if (told := of(each)) is not None)[-MOST:]
