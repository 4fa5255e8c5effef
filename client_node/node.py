"""What a node does with each message of the coordinator, free of any transport.

The order inside `_step` is the site's whole protection: signature, approval, stored answer, charge, and only then the
records. Whatever fails leaves the charge standing, never a release without one.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..models.errors import ModelError
from ..mpc.errors import NormExceeded, SetConflict, TopUpMissing
from ..privacy.errors import PrivacyError
from ..privacy.ledger.chain import Entry
from ..privacy.ledger.ledger import Ledger
from .approval.assessment import beside, charge, held_charges, planned_charges, record_budget
from .approval.catalogue import approved_study
from .approval.run_reservations import Holds
from .data import Records
from .data import read as read_records
from .enrolment import Enrolment, NodeIdentity
from .errors import (
    ChargeRefused,
    MessageInvalid,
    ModelUnusable,
    NothingHeldOut,
    PolicyInvalid,
    RoundOver,
    SiteNotReady,
    StaleLease,
    StepFailed,
    WorkersFailed,
)
from .files import file_digest, read_private, write_private
from .policy import SitePolicy, load_policy
from .shares import AggregatorRole, Files, Outbox
from .shares.seal import require_keys, seal
from .shares.topup import top_up
from .study import PlannedRound, Study
from .wire.chunks import read_part
from .wire.messages import (
    ENTRIES_A_MESSAGE,
    AggregateOrder,
    Deposit,
    Deposited,
    Fetch,
    Fetched,
    Outcome,
    Packet,
    Prepare,
    Ready,
    Request,
    RoundPlan,
    Sealed,
    SetIncomplete,
    SetTaken,
    Settle,
    Settled,
    ShareOfTotal,
    Three,
    TopUp,
    TopUpPlan,
    Update,
    fitting,
    require_evidence,
    sign,
    start_hash,
    verify,
)

if TYPE_CHECKING:
    from .training.trainer import Trainer
    from .training.workers import Workers

logger = logging.getLogger(__name__)


class Node:
    """The warm state behind a node's answers: at most one study's model, the ledger, the party process."""

    def __init__(
        self, home: Path, identity: NodeIdentity, enrolment: Enrolment, *, ledger: Ledger | None = None
    ) -> None:
        """`ledger` is None for a node that only aggregates."""
        self._home, self._identity, self._enrolment, self._ledger = home, identity, enrolment, ledger
        self._outbox, self._holds = Outbox(home), Holds(home)
        self._aggregator = AggregatorRole(home, enrolment.name, identity.signer)
        self._trainer: tuple[str, Trainer | Workers] | None = None
        self._leases = home / "leases.json"

    def handle(self, kind: str, packet: Packet) -> Packet:
        """The answer to one message. Raises an error of ours for whatever is refused."""
        answers: dict[str, Callable[[Packet], Packet]] = {
            "prepare": self._prepare,
            "step": self._step,
            "topup": self._topup,
            "fetch": self._fetch,
            "deposit": self._deposit,
            "aggregate": self._aggregate,
            "settle": self._settle,
        }
        if kind not in answers:
            raise MessageInvalid(f"no message of kind {kind!r} is known")
        return answers[kind](packet)

    def stop(self) -> None:
        """Ends the party process and the workers."""
        self._aggregator.stop()
        self._drop_trainer()

    def _prepare(self, packet: Packet) -> Packet:
        message = verify(packet, self._enrolment.coordinator, Prepare)
        study = self._admit(message)
        key = self._aggregator.run_key(study, message.run) if self._aggregates(study) else None
        records: tuple[Entry, ...] = ()
        evaluates = False
        if self._trains(study):
            policy = load_policy(self._home)
            self._require_whole_ledger(message.ledger_from)
            self._require_budget(study, policy, message.run)
            self._trainer_for(study, policy)
            self._holds.keep(message.run, study.study_hash)
            records, evaluates = self._ledger_since(message.ledger_from), policy.held_out() is not None
        ready = Ready(request=packet.digest(), key=key, evaluates=evaluates, ledger=records)
        return sign(ready, self._identity.signer)

    def _step(self, packet: Packet) -> Packet:
        plan = verify(packet, self._enrolment.coordinator, RoundPlan)
        study = self._admit_site(plan)
        self._require_whole_ledger(plan.ledger_from)
        self._holds.keep(plan.run, study.study_hash)
        self._settle_outcomes(study, plan.run, plan.outcomes)
        self._refuse_settled(plan.run, plan.round)
        envelopes = self._stored(study, plan.run, plan.round)
        if envelopes is None:
            envelopes = self._new_envelopes(study, plan, packet.blobs.get("state", b""))
        sealed, blobs = _described(envelopes, plan.inline)
        answer = Update(
            request=packet.digest(), run=plan.run, round=plan.round, sealed=sealed,
            ledger=self._ledger_since(plan.ledger_from),
        )  # fmt: skip
        return sign(answer, self._identity.signer, blobs)

    def _stored(self, study: Study, run: str, round_number: int) -> Files | None:
        """The sealed answer to an earlier plan of the round, if there is one; it goes out under a charge too.

        The charge is there already, unless the ledger was lost or is an older copy.
        """
        envelopes = self._outbox.get(run, round_number)
        if envelopes is not None:
            self._reserve(study, load_policy(self._home), run, round_number)
        return envelopes

    def _new_envelopes(self, study: Study, plan: RoundPlan, state: bytes) -> Files:
        planned = study.planned_round(plan.round)
        start = study.state_format(planned).decode(state)
        require_keys(study, plan)
        policy = load_policy(self._home)
        compute = self._contribution(study, policy, planned)
        self._reserve(study, policy, plan.run, plan.round)
        try:
            vector = compute(start)
        except Exception as err:  # whatever it is, the coordinator is told one and the same
            logger.exception("round %d of run %s failed after its charge", plan.round, plan.run)
            raise StepFailed("the step failed after its charge; the site's log says why") from err
        context = study.share_context(
            planned,
            run=plan.run,
            site=self._enrolment.name,
            state=start_hash(hashlib.sha256(state).hexdigest(), plan.tag_key),
        )
        envelopes = seal(study, plan, vector, context, self._identity.signer)
        return self._outbox.put(plan.run, plan.round, envelopes)

    def _topup(self, packet: Packet) -> Packet:
        plan = verify(packet, self._enrolment.coordinator, TopUpPlan)
        study = self._admit_site(plan)
        self._refuse_settled(plan.run, plan.round)
        self._stored(study, plan.run, plan.round)
        name, signer = self._enrolment.name, self._identity.signer
        envelopes = top_up(study, plan, outbox=self._outbox, site=name, signer=signer)
        sealed, blobs = _described(envelopes, plan.inline)
        return sign(TopUp(request=packet.digest(), run=plan.run, round=plan.round, sealed=sealed), signer, blobs)

    def _fetch(self, packet: Packet) -> Packet:
        message = verify(packet, self._enrolment.coordinator, Fetch)
        study = self._admit_site(message)
        self._refuse_settled(message.run, message.round)
        files = self._stored(study, message.run, message.round)
        if message.topup_for is not None:
            files = self._outbox.topup(message.run, message.round, message.topup_for)
        part = b"" if files is None else read_part(files[message.aggregator_id], message.offset)
        if not part:
            raise MessageInvalid(f"{self._enrolment.name} has sealed nothing there in round {message.round}")
        answer = Fetched(request=packet.digest(), run=message.run, round=message.round)
        return sign(answer, self._identity.signer, {"part": part})

    def _deposit(self, packet: Packet) -> Packet:
        message = verify(packet, self._enrolment.coordinator, Deposit)
        study = self._admit(message)
        held = self._aggregator.deposit(study, message, packet.blobs.get("part", b""))
        answer = Deposited(request=packet.digest(), run=message.run, round=message.round, held=held)
        return sign(answer, self._identity.signer)

    def _contribution(
        self, study: Study, policy: SitePolicy, planned: PlannedRound
    ) -> Callable[[np.ndarray], np.ndarray]:
        """What turns the state of a round into this site's noised vector. It reads no record before it is called.

        Raises:
            NothingHeldOut: the round is an evaluation, and this site has nothing to evaluate on.
        """
        trainer = self._trainer_for(study, policy)
        if planned.purpose == "update":
            return lambda state: trainer.release(state, planned.number)
        held_out = policy.held_out()
        if held_out is None:
            raise NothingHeldOut(
                f"{self._enrolment.name} holds no records out (data.heldout_path in its site.toml): not evaluated here"
            )
        return lambda state: trainer.histogram(
            state, lambda: read_records(held_out, study), planned.number, site_noise=study.site_noise(planned)
        )

    def _aggregate(self, packet: Packet) -> Packet:
        order = verify(packet, self._enrolment.coordinator, AggregateOrder)
        study = self._admit(order)
        try:
            release = self._aggregator.aggregate(
                study,
                run=order.run,
                round_number=order.round,
                state=order.state,
                attempt=order.attempt,
                cohort=order.cohort,
                blobs=packet.blobs,
                spooled=order.spooled,
            )
        except SetConflict as conflict:
            bound = SetTaken(request=packet.digest(), run=order.run, round=order.round, bound=conflict.bound)
            return sign(bound, self._identity.signer)
        except TopUpMissing as lack:
            return self._incomplete(packet, order, complete=lack.names)
        except NormExceeded as excess:
            return self._incomplete(packet, order, complete=excess.kept, rejected=excess.names)
        answer = ShareOfTotal(
            request=packet.digest(),
            study=order.study,
            run=order.run,
            round=order.round,
            kept=release.kept,
            rejected=release.rejected,
            set_digest=release.set_digest.hex(),
        )
        return sign(answer, self._identity.signer, {"share": release.share})

    def _incomplete(
        self, packet: Packet, order: AggregateOrder, *, complete: tuple[str, ...], rejected: tuple[str, ...] = ()
    ) -> Packet:
        answer = SetIncomplete(
            request=packet.digest(), run=order.run, round=order.round, complete=complete, rejected=rejected
        )
        return sign(answer, self._identity.signer)

    def _settle(self, packet: Packet) -> Packet:
        message = verify(packet, self._enrolment.coordinator, Settle)
        study = self._admit(message)
        records: tuple[Entry, ...] = ()
        if self._trains(study):
            self._settle_outcomes(study, message.run, message.outcomes)
            records = self._ledger_since(message.ledger_from)
            if message.final:
                self._holds.drop(message.run)
        if self._aggregates(study):
            if message.final:
                self._aggregator.end(message.run)
            else:
                self._aggregator.rest(message.run)
        return sign(Settled(request=packet.digest(), ledger=records), self._identity.signer)

    def _admit(self, message: Request) -> Study:
        """The approved study of a message to this node, from the newest driver of a run of that study.

        Raises:
            MessageInvalid: it is for another node, or names another study than the run began with.
            StaleLease: a newer driver has spoken already.
            ClientNodeError: the study may not run here.
        """
        if message.to != self._enrolment.name:
            raise MessageInvalid(f"the message is for {message.to}, this is {self._enrolment.name}")
        seen = json.loads(read_private(self._leases)) if self._leases.exists() else {}
        study_hash, lease = seen.get(message.run, (message.study, 0))
        if study_hash != message.study:
            raise MessageInvalid(f"run {message.run} is of study {study_hash[:12]}, not of {message.study[:12]}")
        if message.lease < lease:
            raise StaleLease(
                f"run {message.run} is driven under lease {lease}, this message is from lease {message.lease}"
            )
        try:
            study = approved_study(self._home, message.study)
        except PolicyInvalid as err:
            logger.error("%s", err)
            raise SiteNotReady("the site's policy cannot be read; its log says why") from err
        if message.lease > lease:
            newest = seen | {message.run: (message.study, message.lease)}
            write_private(self._leases, json.dumps(newest).encode())
        return study

    def _admit_site(self, message: Request) -> Study:
        """`_admit` for what only a site that trains can do."""
        study = self._admit(message)
        if not self._trains(study):
            raise MessageInvalid(f"{self._enrolment.name} is no site of study {study.draft.name}")
        return study

    def _refuse_settled(self, run: str, round_number: int) -> None:
        if self._require_ledger().is_settled(run, round_number):
            raise RoundOver(f"round {round_number} of run {run} is settled here; another draw would be another release")

    def _require_whole_ledger(self, known: int) -> None:
        """Refuses to go on with a ledger that lacks some of the `known` entries that the coordinator has from here."""
        here = self._require_ledger().head.seq + 1
        if here < known:
            raise SiteNotReady(
                f"the ledger of {self._enrolment.name} has {here} entries here and {known} at the coordinator: an "
                "older copy was put back; the site can restore it: client-node budget import"
            )

    def _require_budget(self, study: Study, policy: SitePolicy, run: str) -> None:
        """Refuses a run whose remaining rounds would not fit in what is left, before it begins."""
        ledger, planned = self._require_ledger(), planned_charges(study, policy, run=run)
        record_budget(ledger, policy)
        held = held_charges(self._home, policy, besides=run)
        try:
            quote = ledger.affordable(
                planned,
                held=[charge for each in held.values() for charge in each],
                unprotected_allowed=self._may_go_unprotected(study, policy),
            )
        except PrivacyError as err:
            raise ChargeRefused(str(err)) from err
        if not quote.fits:
            rounds = sum(count for _, count in planned)
            raise ChargeRefused(
                f"{rounds} rounds of study {study.draft.name} would bring epsilon to {quote.would_be:.3g}, over the "
                f"budget of {quote.cap:g}{beside(held)}; nothing was read"
            )

    def _reserve(self, study: Study, policy: SitePolicy, run: str, round_number: int) -> None:
        record_budget(self._require_ledger(), policy)  # a cap lowered meanwhile counts from the next round on
        release = charge(study, policy, run=run, round_number=round_number)
        try:
            self._require_ledger().reserve(release, unprotected_allowed=self._may_go_unprotected(study, policy))
        except PrivacyError as err:
            raise ChargeRefused(f"round {round_number}: {err}") from err

    @staticmethod
    def _may_go_unprotected(study: Study, policy: SitePolicy) -> bool:
        return study.study_hash in policy.studies.unprotected

    def _settle_outcomes(self, study: Study, run: str, outcomes: tuple[Outcome, ...]) -> None:
        """Signs what was summed in rounds that this site took part in, as all three aggregators have signed it."""
        ledger = self._require_ledger()
        for outcome in outcomes:
            if ledger.is_open(run, outcome.round):
                require_evidence(study, run, outcome)
                self._require_topped(study, run, outcome)
                ledger.settle(run, outcome.round, outcome.sites)
            if ledger.is_settled(run, outcome.round):  # else another draw would follow under the same charge
                self._outbox.drop(run, outcome.round)

    def _require_topped(self, study: Study, run: str, outcome: Outcome) -> None:
        """Refuses a smaller sum with this site's update in it that this site has added no noise for."""
        if self._enrolment.name not in outcome.sites or len(outcome.sites) >= study.draft.min_untopped:
            return
        if self._outbox.topped_set(run, outcome.round) != outcome.sites:
            raise MessageInvalid(
                f"round {outcome.round}: {self._enrolment.name} never added noise for a sum over "
                f"{', '.join(outcome.sites)}"
            )

    def _ledger_since(self, since: int) -> tuple[Entry, ...]:
        """The next entries for the replica, as many as fit in a message; the coordinator asks on from there."""
        return tuple(self._require_ledger().entries(since, ENTRIES_A_MESSAGE))

    def _trainer_for(self, study: Study, policy: SitePolicy) -> "Trainer | Workers":
        wanted = _trainer_key(study, policy)
        if self._trainer is None or self._trainer[0] != wanted:
            self._drop_trainer()
            try:
                self._trainer = wanted, self._new_trainer(study, policy)
            except (ModelError, PrivacyError, WorkersFailed) as err:
                logger.error("study %s cannot be computed here: %s", study.name, err)
                raise ModelUnusable(
                    "the backbone or the limits here do not fit the study; the site's log says why"
                ) from err
        return self._trainer[1]

    def _new_trainer(self, study: Study, policy: SitePolicy) -> "Trainer | Workers":
        directory, limits, site = policy.backbone.directory, policy.limits, self._enrolment.name
        site_noise = study.site_noise(study.planned_round(1))

        def read() -> Records:
            return read_records(policy, study)

        if limits.workers:
            from .training.workers import Workers

            return Workers(study, directory, read, site=site, site_noise=site_noise, limits=limits)
        from .training.trainer import Trainer  # loads torch, which a node that only aggregates does without

        rows, threads = limits.max_rows_per_batch, limits.threads
        return Trainer(study, directory, read, site=site, site_noise=site_noise, max_rows=rows, threads=threads)

    def _drop_trainer(self) -> None:
        if self._trainer is not None:
            self._trainer[1].stop()
            self._trainer = None

    def _trains(self, study: Study) -> bool:
        return any(
            (site.name, site.identity) == (self._enrolment.name, self._identity.identity_hex) for site in study.sites
        )

    def _aggregates(self, study: Study) -> bool:
        return any(
            (party.name, party.identity) == (self._enrolment.name, self._identity.identity_hex)
            for party in study.aggregators
        )

    def _require_ledger(self) -> Ledger:
        if self._ledger is None:
            raise MessageInvalid(f"{self._enrolment.name} keeps no ledger: it does not train")
        return self._ledger


def _described(files: Files, room: int) -> tuple[Three, dict[str, bytes]]:
    """A site's sealed shares by size and digest, and those of them that have `room` bytes together, as blobs."""
    sizes = {f"envelope-{index}": path.stat().st_size for index, path in enumerate(files)}
    chosen = fitting(sizes, room)
    blobs = {name: read_private(path) for name, path in zip(sizes, files, strict=True) if name in chosen}
    first, second, third = (Sealed(size=path.stat().st_size, digest=file_digest(path)) for path in files)
    return (first, second, third), blobs


def _trainer_key(study: Study, policy: SitePolicy) -> str:
    """Changes whenever the model, the records or their columns may have: then both are read anew."""
    try:
        found = policy.data.path.stat()
        version = (found.st_mtime_ns, found.st_size)
    except OSError:
        version = (0, 0)
    return repr((study.study_hash, policy.data, policy.backbone, policy.limits, version))
