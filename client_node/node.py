"""Answers each message of the coordinator to a node, independent of the transport.

Every handler has the same three steps: a message is admitted (signature, lease, approval), one of the node's roles does
its part, and the answer is signed.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ..mpc.errors import NormExceeded, SetConflict, TopUpMissing
from ..privacy.ledger.chain import Entry
from ..privacy.ledger.ledger import Ledger
from . import witness
from .approval.admission import Admission
from .approval.run_reservations import RunReservations
from .diary import Diary
from .enrolment import Enrolment, NodeIdentity
from .enrolment.protocol import enrolment_stamp
from .errors import (
    ChargeRefused,
    FileDamaged,
    IdentityMissing,
    KeyNotFollowed,
    LedgerOutdated,
    MessageInvalid,
    ModelUnusable,
    SiteAway,
)
from .own_faults import told_as_refusals
from .shares import AggregatorRole, described
from .site import SiteRole
from .study import Study
from .succession.own_keys import OwnKeys
from .training.warm_model import WarmModel
from .usage import Usage
from .wire.checkpoints import AuditAnswer, AuditOffer
from .wire.messages import (
    AggregateOrder,
    Deposit,
    Deposited,
    Fetch,
    Fetched,
    Packet,
    Prepare,
    Ready,
    Replay,
    Replayed,
    Reply,
    Request,
    RoundPlan,
    SetIncomplete,
    SetTaken,
    Settle,
    Settled,
    SignedTotal,
    TopUp,
    TopUpPlan,
    Update,
    sign,
    verify,
)

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=Request)


class Node:
    """Answers messages for one node, and keeps its roles warm between them: site, aggregator, or both."""

    def __init__(
        self,
        home: Path,
        identity: NodeIdentity,
        enrolment: Enrolment,
        *,
        ledger: Ledger | None = None,
        model: WarmModel | None = None,
    ) -> None:
        """Takes up the roles of the node at `home`.

        Args:
            ledger: the ledger of the site's releases; None for a node that only aggregates.
            model: the site's model; None for one that is loaded when a run needs it.
        """
        name, signer_in = enrolment.name, self._signer_in
        self._home, self._keys, self._enrolment = home, OwnKeys(identity), enrolment
        self._seen: object = None  # stamp of the enrolment's file, when it was read
        self._admission, self._active = Admission(home, name), RunReservations(home)
        self._site = None if ledger is None else SiteRole(home, name, signer_in, ledger, model or WarmModel(name, home))
        self._aggregator = AggregatorRole(home, name, signer_in, self._admission.known_keys)
        self._usage, self._diary = Usage(home), Diary(logger)

    def handle(self, kind: str, packet: Packet) -> Packet:
        """Answers one message, which counts among the bytes of today before it is returned.

        Raises an error of ours for a refused one; for damaged files see `own_faults`.
        """
        answers: dict[str, Callable[[Packet], Packet]] = {
            "prepare": self._prepare,
            "replay": self._replay,
            "step": self._step,
            "topup": self._topup,
            "fetch": self._fetch,
            "deposit": self._deposit,
            "aggregate": self._aggregate,
            "settle": self._settle,
        }
        if kind not in answers:
            raise MessageInvalid(f"no message of kind {kind!r} is known")
        with told_as_refusals(self._home):
            answer = answers[kind](packet)
            self._usage.send(answer.size)
            return answer

    def stop(self) -> None:
        """Ends the party process and the workers."""
        self._aggregator.stop()
        if self._site is not None:
            self._site.stop()

    def _prepare(self, packet: Packet) -> Packet:
        message, study = self._admitted(packet, Prepare)
        study.require_start()
        self._usage.require_open()
        audit = self._witnessed(study, message.audit)
        entries: tuple[Entry, ...] = ()
        evaluates = False
        if self._trains(study):
            site = self._site_in(study)
            try:
                evaluates = site.prepare(study, message)
                entries = site.entries(message.ledger_from)
            except (ChargeRefused, ModelUnusable) as err:
                if not self._aggregates(study):
                    raise
                # The others need this aggregator all the same. As a site it refuses again when a round asks it.
                self._diary.note("run %s: this node aggregates only, since it cannot train: %s", message.run, err)
        self._diary.note("run %s of study %s: this node takes part", message.run, study.draft.name)
        self._admission.count(message)  # only now: a run that did not fit has used nothing
        self._active.note(message.run, message.study)
        key = self._aggregator.run_key(study, message.run) if self._aggregates(study) else None
        answer = Ready(request=packet.digest(), key=key, evaluates=evaluates, ledger=entries, audit=audit)
        return self._signed(study, answer)

    def _replay(self, packet: Packet) -> Packet:
        message, study = self._admitted(packet, Replay)
        stands = self._site_in(study).replay(study, message, packet.blobs.get("part", b""))
        answer = Replayed(request=packet.digest(), run=message.run, round=stands.round, held=stands.held)
        return self._signed(study, answer)

    def _step(self, packet: Packet) -> Packet:
        plan, study = self._admitted(packet, RoundPlan)
        site = self._site_in(study)
        if not site.has_sealed(plan):
            self._begin_round(plan)
        self._diary.note("run %s: round %d begins", plan.run, plan.round)
        files = site.contribute(study, plan)
        self._diary.note("run %s: round %d is computed and sealed", plan.run, plan.round)
        sealed, blobs = described(files, plan.inline)
        entries = site.entries(plan.ledger_from)
        return self._signed(study, Update(**_to(packet, plan), sealed=sealed, ledger=entries), blobs)

    def _topup(self, packet: Packet) -> Packet:
        plan, study = self._admitted(packet, TopUpPlan)
        files = self._site_in(study).top_up(study, plan)
        sealed, blobs = described(files, plan.inline)
        return self._signed(study, TopUp(**_to(packet, plan), sealed=sealed), blobs)

    def _fetch(self, packet: Packet) -> Packet:
        message, study = self._admitted(packet, Fetch)
        part = self._site_in(study).fetch(study, message)
        return self._signed(study, Fetched(**_to(packet, message)), {"part": part})

    def _deposit(self, packet: Packet) -> Packet:
        message, study = self._admitted(packet, Deposit)
        held = self._aggregator.deposit(study, message, packet.blobs.get("part", b""))
        return self._signed(study, Deposited(**_to(packet, message), held=held))

    def _aggregate(self, packet: Packet) -> Packet:
        order, study = self._admitted(packet, AggregateOrder)
        self._active.note(order.run, order.study)
        self._diary.note("run %s: round %d is added up with the other aggregators", order.run, order.round)
        try:
            opened = self._aggregator.aggregate(study, order, packet.blobs)
        except LedgerOutdated as lack:
            rest = tuple(site for site in order.cohort if site not in lack.seen)
            return self._signed(study, SetIncomplete(**_to(packet, order), complete=rest, outdated=lack.seen))
        except SetConflict as conflict:
            return self._signed(study, SetTaken(**_to(packet, order), bound=conflict.bound))
        except TopUpMissing as lack:
            return self._signed(study, SetIncomplete(**_to(packet, order), complete=lack.names))
        except NormExceeded as excess:
            return self._signed(study, SetIncomplete(**_to(packet, order), complete=excess.kept, rejected=excess.names))
        answer = SignedTotal(
            **_to(packet, order),
            study=order.study,
            start=order.state,
            kept=opened.kept,
            rejected=opened.rejected,
            set_digest=opened.set_digest.hex(),
            total_digest=opened.total_digest.hex(),
        )
        self._diary.note(
            "run %s: the total of round %d is open, over %d sites", order.run, order.round, len(opened.kept)
        )
        blobs = {"tags": opened.tag_share} if opened.tag_share else {}
        return self._signed(study, answer, blobs | ({"total": opened.total} if order.with_total else {}))

    def _settle(self, packet: Packet) -> Packet:
        message, study = self._admitted(packet, Settle)
        entries: tuple[Entry, ...] = ()
        if self._trains(study):
            site = self._site_in(study)
            site.settle(study, message)
            entries = site.entries(message.ledger_from)
        if self._aggregates(study):
            if message.final:
                self._aggregator.end(message.run)
                self._active.end(message.run)
            else:
                self._aggregator.rest(message.run)
        if message.final:
            self._diary.note("run %s is over", message.run)
        answer = Settled(request=packet.digest(), ledger=entries, audit=self._witnessed(study, message.audit))
        return self._signed(study, answer)

    def _begin_round(self, plan: RoundPlan) -> None:
        """Counts a round among those of today; a run that has to wait for this node keeps its reservation."""
        try:
            self._usage.begin_round(plan.run, plan.round)
        except SiteAway:
            if plan.run in self._active.runs():
                self._active.note(plan.run, plan.study)
            raise

    def _admitted(self, packet: Packet, model: type[R]) -> tuple[R, Study]:
        """Verifies and admits the message in `packet`; returns it with its approved study."""
        enrolled = self._enrolled()
        try:
            message = verify(packet, enrolled.coordinator, model)
        except MessageInvalid:
            _require_no_earlier_key(packet, enrolled, model)
            raise
        return message, self._admission.admit(message)

    def _enrolled(self) -> Enrolment:
        """Returns this node's enrolment, read anew if its file is another: the coordinator may have a new key."""
        if (seen := enrolment_stamp(self._home)) not in (None, self._seen):
            self._enrolment, self._seen = Enrolment.load(self._home), seen
        return self._enrolment

    def _witnessed(self, study: Study, offer: AuditOffer | None) -> AuditAnswer | None:
        """Answers an offered checkpoint of the coordinator's audit log; whatever comes of it stops no run."""
        if offer is None:
            return None
        enrolled = self._enrolled()
        try:
            return witness.answer(self._home, enrolled.name, enrolled.coordinators, self._signer_in(study), offer)
        except (FileDamaged, IdentityMissing, MessageInvalid, OSError) as err:
            self._diary.note("the coordinator's audit log is not countersigned: %s", err, level=logging.ERROR)
            return None

    def _signed(self, study: Study, answer: Reply, blobs: dict[str, bytes] | None = None) -> Packet:
        return sign(answer, self._signer_in(study), blobs)

    def _signer_in(self, study: Study) -> Ed25519PrivateKey:
        """Finds the key by which the study names this node: an earlier one, if another has followed since."""
        return self._keys.signer_in(study.identities(), self._enrolment.name)

    def _key_in(self, study: Study) -> str:
        return self._keys.key_in(study.identities(), self._enrolment.name)

    def _site_in(self, study: Study) -> SiteRole:
        """Returns this node's role as a site of the study.

        Raises:
            MessageInvalid: it is no site of the study, or does not train at all.
        """
        if not self._trains(study):
            raise MessageInvalid(f"{self._enrolment.name} is no site of study {study.draft.name}")
        if self._site is None:
            raise MessageInvalid(f"{self._enrolment.name} keeps no ledger: it does not train")
        return self._site

    def _trains(self, study: Study) -> bool:
        return study.has_site(self._enrolment.name, self._key_in(study))

    def _aggregates(self, study: Study) -> bool:
        return study.has_aggregator(self._enrolment.name, self._key_in(study))


def _to(packet: Packet, asked: RoundPlan | TopUpPlan | Fetch | Deposit | AggregateOrder) -> dict[str, Any]:
    """Returns the fields of every answer within a round: the request, the run and the round."""
    return {"request": packet.digest(), "run": asked.run, "round": asked.round}


def _require_no_earlier_key(packet: Packet, enrolled: Enrolment, model: type[Request]) -> None:
    for earlier in enrolled.coordinators[:-1]:
        with suppress(MessageInvalid):
            verify(packet, earlier, model)
            raise KeyNotFollowed(
                "the message is signed with a key of the coordinator's that another one has followed since. If this "
                "does not pass within a minute, the coordinator was restored from a backup that was made before"
            )
