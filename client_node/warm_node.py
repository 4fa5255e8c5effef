"""A node's warm process on its way through the day: it connects, pulls questions, and answers each.

It outlives whatever the network and Flower do, and says in its log what it does: a line when something changes, never
one for each question, and nothing that depends on records.
"""

import errno
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx

from ..privacy.errors import LedgerUnavailable
from ..versions import OWN
from .authority_keeper import AuthorityKeeper
from .decision_teller import DecisionTeller
from .diary import Diary
from .enrolment import Enrolment, NodeIdentity, outbound, protocol
from .enrolment.sessions import Hello
from .errors import ClientNodeError, CoordinatorUnreachable, SiteAway, VersionRefused
from .flower import Connection, Question, Session, Undelivered, failure_text, pack, unpack
from .traffic import Passed, Traffic
from .vitals import Vitals, known_kind
from .wire.messages import Packet

logger = logging.getLogger(__name__)

STOPPED, REFUSED = 0, 77  # exit codes; a supervisor starts the node again unless it was refused

_REFUSED_HEADER = "confide-refused"
_POLL_S = (0.05, 0.5)  # from the last message on
_RESTING_POLL_S = 2.0  # after a minute without a message
_RESTING_AFTER_S = 60.0
_BUSY_S = 1.0  # keeps the shortest poll this long after a message: the next phase of a round follows soon
_RETRY_S = (0.25, 5.0)
_DAY_S = 86_400.0
_LEAVE_AFTER_S = 2.0  # from a stop on, for an answer in progress to be sent


class WarmNode:
    """Pulls questions for this node and answers each with the packet that `handle(kind, packet)` returns.

    A handler's failure is answered with the error's class name. Its text is sent only if it is a ClientNodeError whose
    `public` is true, because any other text may quote a record.
    """

    def __init__(
        self,
        identity: NodeIdentity,
        enrolment: Enrolment,
        handle: Callable[[str, Packet], Packet],
        vitals: Vitals | None = None,
        *,
        may_refuse: Callable[[int], bool] = lambda _: True,
        traffic: Traffic | None = None,
    ) -> None:
        """Connects to nothing yet.

        Args:
            vitals: counts for those who watch the daemon.
            may_refuse: returns False if a failure of so many bytes may not be told to the coordinator any more.
            traffic: counts messages for the site's people; None for none.
        """
        self._identity, self._enrolment, self._handle, self._may_refuse = identity, enrolment, handle, may_refuse
        self._vitals, self._traffic = vitals or Vitals(), traffic
        self._troubles, self._changes = Diary(logger, again_s=60.0), Diary(logger)
        self._absences = Diary(logger, again_s=_DAY_S)  # asked again and again meanwhile
        self._authority = AuthorityKeeper(identity.home)
        self._decisions = DecisionTeller(identity.home, traffic)
        self._session: Session | None = None
        self._ended = threading.Event()

    def run(self, stop: threading.Event) -> int:
        """Serves until `stop` is set; keeps reconnecting while the coordinator is away.

        Returns:
            0 when stopped, 77 when the coordinator refuses this node's key.

        Raises:
            ProxyInvalid: the proxy in the enrolment is none.
        """
        vitals = self._vitals
        connection = Connection(self._identity, self._enrolment, Hello.of(self._identity.home), vitals.sent)
        threading.Thread(target=self._leave, args=(stop,), name="confide-leave", daemon=True).start()
        delay = _RETRY_S[0]
        try:
            while not stop.is_set():
                self._authority.look(connection)
                self._session = session = Session(connection)
                try:
                    vitals.polls()
                    session.open()
                    vitals.connected()
                    self._changes.note(
                        "%s is connected to %s%s", self._identity.name, self._enrolment.address, _at(connection)
                    )
                    delay = _RETRY_S[0]
                    self._serve(session, connection, stop)
                except Exception as err:  # a daemon outlives whatever Flower raises
                    reason = _refusal(err)
                    trouble = self._trouble(err) if reason is None else ""
                    if reason == "unknown":
                        renewed, trouble = self._renewed()
                        if renewed is not None:
                            connection.close()
                            self._identity = renewed
                            connection = Connection(renewed, self._enrolment, Hello.of(renewed.home), vitals.sent)
                            self._changes.note("%s has a new transport key", renewed.name)
                            continue
                    if reason is not None and not trouble:
                        logger.error("%s", _REFUSALS.get(reason, _REFUSALS["unknown"]) % self._enrolment.address)
                        return REFUSED
                    vitals.disconnected(trouble)
                    self._troubles.note("%s: %s; trying again", self._enrolment.address, trouble, level=logging.WARNING)
                finally:
                    session.close()
                stop.wait(delay * random.uniform(0.8, 1.2))  # noqa: S311 (spreads load, guards nothing)
                delay = min(delay * 1.7, _RETRY_S[1])
        finally:
            self._ended.set()
            if self._session is not None and stop.is_set():
                self._session.leave()
            connection.close()
        return STOPPED

    def _renewed(self) -> tuple[NodeIdentity | None, str]:
        """The node's keys, if the transport key has been rotated since this daemon read it; else why to try again."""
        try:
            found = protocol.complete_rotation(self._identity.home)
        except CoordinatorUnreachable as err:
            return None, f"the rotation of the transport key is not completed: {err}"
        except ClientNodeError as err:
            logger.warning("the rotation of the transport key is not completed: %s", err)
            return None, ""
        return (found if found.transport_fingerprint != self._identity.transport_fingerprint else None), ""

    def _leave(self, stop: threading.Event) -> None:
        """Tells the coordinator that this node stops: at once if it waits for a question, else when that is answered.

        The gate then ends the request that it holds for this node.
        """
        stop.wait()
        is_idle = self._session is not None and self._session.is_taking
        if (is_idle or not self._ended.wait(_LEAVE_AFTER_S)) and self._session is not None:
            self._session.leave()

    def _serve(self, session: Session, connection: Connection, stop: threading.Event) -> None:
        last, wait = time.monotonic(), _POLL_S[0]
        is_resting = False
        while not stop.is_set():
            session.check()
            self._authority.look(connection)
            self._decisions.look()
            asked = time.monotonic()
            self._vitals.polls()
            question = session.pull()
            self._vitals.heard()
            idle = time.monotonic() - last
            if question is None:
                if idle > _RESTING_AFTER_S and not is_resting:
                    is_resting = True
                    self._changes.note("%s waits for questions", self._identity.name)
                if time.monotonic() - asked > _POLL_S[1]:
                    continue  # the gate held the poll until now
                if idle > _BUSY_S:
                    wait = _RESTING_POLL_S if is_resting else min(wait * 1.3, _POLL_S[1])
                stop.wait(wait * random.uniform(0.8, 1.2))  # noqa: S311
                continue
            try:
                self._answer(session, question)
            except httpx.HTTPStatusError as err:
                if err.response.status_code != httpx.codes.FORBIDDEN:
                    raise
                self._troubles.note("the run that asked is over; its message was dropped", level=logging.WARNING)
            last, wait, is_resting = time.monotonic(), _POLL_S[0], False

    def _answer(self, session: Session, question: Question) -> None:
        self._vitals.asked(question.kind)
        self._decisions.settle()
        try:
            message = session.receive(question)
        except Undelivered as err:
            self._troubles.note("%s: the message did not arrive whole (%s)", question.kind, err, level=logging.WARNING)
            self._fail(session, question, question.head, err)  # else whoever asked would wait until its time is over
            return
        try:
            packet = unpack(message.content)
            self._count(question.kind, Passed(came=1, came_bytes=packet.size))
            answer = self._handle(question.kind, packet)
            records = pack(answer)
        except Exception as err:  # the coordinator is told that it failed; the daemon lives on
            if isinstance(err, SiteAway):
                self._absences.note("%s", err)
            else:
                self._troubles.note("%s failed: %s", question.kind, _logged(err), level=logging.WARNING)
            logger.debug("handler failed", exc_info=True)
            self._fail(session, question, message, err)
            return
        # No size and no duration: what is computed in between may grow with the number of drawn records.
        logger.debug("%s is answered", question.kind)
        self._count(question.kind, Passed(answered=1, left_bytes=answer.size))
        session.answer(message, records, until=question.until)
        self._vitals.replied(question.kind, failed=False)

    def _fail(self, session: Session, question: Question, message: Any, err: Exception) -> None:
        told = _told(err)
        if self._may_refuse(len(told.encode())):
            self._count(question.kind, Passed(failed=1, left_bytes=len(told.encode())))
            session.fail(message, told, until=question.until)
            self._vitals.replied(question.kind, failed=True)
        else:
            self._absences.note("the bytes of today are used up to the last: questions stay without an answer")

    def _count(self, kind: str, passed: Passed) -> None:
        if self._traffic is not None:
            self._traffic.note(known_kind(kind), passed)

    def _trouble(self, err: Exception) -> str:
        if told := outbound.certificate_trouble(err, self._enrolment.ca_path):
            return told
        if isinstance(err, httpx.TransportError):
            return outbound.connection_trouble(err, self._enrolment.proxy)
        if isinstance(err, VersionRefused):
            return str(err)
        if not isinstance(err, httpx.HTTPStatusError):
            return f"the connection broke ({type(err).__name__})"
        code, reason = err.response.status_code, err.response.headers.get(_REFUSED_HEADER, "")
        if code == httpx.codes.PRECONDITION_FAILED:
            reason = "in-use"  # from a gate that passes Flower's own answer on
        if code == httpx.codes.NOT_FOUND:
            reason = "older"  # it has not the call by which this node takes a question
        return _AGAIN.get(reason, f"the coordinator cannot serve this node just now ({code})")


def _at(connection: Connection) -> str:
    """Says what runs at the coordinator, and which protocol is common; nothing where it does not tell."""
    gate = connection.gate
    return "" if gate is None else f", which runs {gate}; both speak protocol {gate.common(OWN)}"


def _told(err: Exception) -> str:
    """Encodes a failure for the coordinator."""
    is_public = isinstance(err, ClientNodeError) and err.public
    return failure_text(type(err).__name__, str(err) if is_public else "")


def _logged(err: Exception) -> str:
    """Describes a failure for this node's own log, which may be shown to others: no text that may quote a record."""
    name = type(err).__name__
    if isinstance(err, LedgerUnavailable) or (isinstance(err, ClientNodeError) and err.public):
        return f"{name}: {err}"
    if isinstance(err, OSError) and err.errno is not None:
        return f"{name}: {errno.errorcode.get(err.errno, err.errno)}, {err.strerror}"
    return name


def _refusal(err: Exception) -> str | None:
    """Reason for which the gate refuses this node for good; None if trying again may help."""
    if isinstance(err, httpx.HTTPStatusError) and err.response.status_code == httpx.codes.UNAUTHORIZED:
        reason: str | None = err.response.headers.get(_REFUSED_HEADER)
        return reason
    return None


_REFUSALS: Mapping[str, str] = {
    "revoked": "the coordinator at %s has revoked this node; ask its operator, and enrol anew with a new code",
    "left": "the coordinator at %s has noted that this node left the federation; to come back under its name, ask the "
    "operator for a code, and use it here: client-node enroll CODE --again",
    "unknown": "the coordinator at %s does not know this node's key; check which home this is. If the key was rotated, "
    "and the coordinator restored from an older backup since: client-node keys rotate. Else enrol this node",
    "signature": "the coordinator at %s cannot verify this node's signature; restore its keys from a backup",
}
_AGAIN: Mapping[str, str] = {
    "in-use": (
        "another daemon uses this node's key. If it was killed on another machine, this one is let in within 20 s, "
        "within 70 s if that machine was cut off or stands still. If it runs, from a copy of this home, stop one of "
        "the two; if nobody here started it, have this node revoked"
    ),
    "replaced": (
        "another daemon uses this node's key, and took over while this one was silent. Stop one of the two; if nobody "
        "here started the other, have this node revoked"
    ),
    "reconnect": "the coordinator was restarted, and this node has to connect anew",
    "older": "the coordinator runs an older version of confide than this node and cannot serve it; upgrade it first",
    "clock": (
        "this machine's clock is more than four minutes behind the coordinator's, or more than five seconds ahead; set "
        "the clock"
    ),
}
