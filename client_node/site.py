"""The training role of a node: it is one of the sites of a study.

Its messages were admitted: the signature is valid and the study is approved. From there on the order of steps inside
`contribute` protects the site: stored answer, then charge, and only then the records. After any failure there may be a
charge without a release, never a release without a charge.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ..mpc.crash import place
from ..mpc.sharing.position import Position
from ..privacy.ledger.chain import Entry
from ..privacy.ledger.ledger import Ledger
from .approval import charges
from .approval.run_reservations import RunReservations
from .data import kept_files
from .data.known_units import KnownUnits
from .errors import (
    ChargeRefused,
    DataInvalid,
    FileDamaged,
    MessageInvalid,
    RoundOver,
    SiteBehind,
    SiteNotReady,
    StateRefused,
    StepFailed,
    UnitsKnown,
)
from .ledger_head import LedgerHead
from .policy import SitePolicy, load_policy
from .policy.sources import Source
from .replay import FollowedRuns, Standing
from .replay.following import RoundStart, round_start
from .shares import Files, Outbox
from .shares.seal import Sealer
from .shares.topup import top_up
from .study import Study
from .training.public_time import PublicTimes
from .training.warm_model import WarmModel
from .wire.chunks import read_part
from .wire.evidence import require_evidence
from .wire.messages import ENTRIES_A_MESSAGE, Fetch, Outcome, Prepare, Replay, RoundPlan, Settle, TopUpPlan, one_part

logger = logging.getLogger(__name__)

_FAILED = "the step failed after its charge; the site's log says why"
_NOT_CHARGED = "the site cannot charge its table as it stands; its log says why"


class SiteRole:
    """A site's part of every round, with its ledger, reservations, outbox of sealed shares, and warm model."""

    def __init__(
        self, home: Path, name: str, signer_in: Callable[[Study], Ed25519PrivateKey], ledger: Ledger, model: WarmModel
    ) -> None:
        """Takes up the role.

        Args:
            signer_in: finds the key by which this node takes part in a study.
        """
        self._home, self._name, self._signer_in, self._ledger, self._model = home, name, signer_in, ledger, model
        self._outbox, self._reservations, self._followed = Outbox(home), RunReservations(home), FollowedRuns(home)
        self._times = PublicTimes(home)
        self._head, self._units = LedgerHead(home, ledger), KnownUnits(home, ledger)

    def prepare(self, study: Study, message: Prepare) -> bool:
        """Makes sure that the budget can pay for a run, and loads its model.

        Returns:
            True if this site can take part in an evaluation.
        """
        policy = load_policy(self._home)
        self._require_whole_ledger(message.ledger_from)
        self._units.look_again()
        self._note_units(study, policy)
        charges.require_run(self._home, self._ledger, study, policy, run=message.run)
        self._model.look_again(study, policy, self._units)
        self._model.load(study, policy)
        kept_files.keep_only(self._home, {*self._reservations.runs().values(), study.study_hash})
        try:
            self._keep_states(study, policy)
        except Exception as err:  # the coordinator is told the same for every cause, as it may lie in a record
            logger.error("nothing is charged: %s", err if isinstance(err, DataInvalid) else place(err))
            raise ChargeRefused(_NOT_CHARGED) from err
        self._followed.checkpoint(study, message.run, self._start_of(study))  # refuses a start that is not the study's
        self._followed.keep({*self._reservations.runs(), message.run})
        return policy.held_out() is not None

    def replay(self, study: Study, message: Replay, part: bytes) -> Standing:
        """Takes a part of a round's signed total, see `FollowedRuns.take`."""
        return self._followed.take(study, message, part, self._start_of(study))

    def contribute(self, study: Study, plan: RoundPlan) -> Files:
        """Returns this site's sealed shares of a round: drawn once, the same files for a repeated plan."""
        self._require_whole_ledger(plan.ledger_from)
        self._reservations.note(plan.run, study.study_hash)
        self._settle(study, plan.run, plan.outcomes)
        self._refuse_settled(plan)
        return self._stored(study, plan) or self._release(study, plan)

    def has_sealed(self, plan: RoundPlan) -> bool:
        """True if the answer to a round is stored: it is sent again, and nothing is computed."""
        return self._outbox.get(plan.run, plan.round) is not None

    def top_up(self, study: Study, plan: TopUpPlan) -> Files:
        """Returns this site's sealed top-up for a sum over the sites of `plan`, see `shares.topup`."""
        self._head.require()
        self._refuse_settled(plan)
        self._stored(study, plan)

        def position() -> Position:
            return self._charge(study, load_policy(self._home), plan)

        return top_up(
            study, plan, outbox=self._outbox, site=self._name, signer=self._signer_in(study), position=position
        )

    def fetch(self, study: Study, message: Fetch) -> bytes:
        """Reads a part of one aggregator's sealed share of an update or a top-up.

        Raises:
            MessageInvalid: there is no such share.
        """
        self._head.require()
        self._refuse_settled(message)
        files = self._stored(study, message)
        if message.topup_for is not None:
            files = self._outbox.topup(message.run, message.round, message.topup_for)
        part = b"" if files is None else read_part(files[message.aggregator_id], message.offset)
        if not part:
            raise MessageInvalid(f"{self._name} has sealed nothing there in round {message.round}")
        return part

    def settle(self, study: Study, message: Settle) -> None:
        """Settles the run's rounds in the ledger, and removes the run's reservation when it has ended."""
        self._settle(study, message.run, message.outcomes)
        if message.final:
            self._reservations.end(message.run)
            self._followed.end(message.run)
            if not self._reservations.of_study(study.study_hash):
                self._forget_states(study)

    def entries(self, since: int) -> tuple[Entry, ...]:
        """Returns the next ledger entries for the replica, at most one message's; the coordinator asks for the rest."""
        return one_part(self._ledger.entries(since, ENTRIES_A_MESSAGE))

    def stop(self) -> None:
        """Drops the model and ends its workers."""
        self._model.stop()

    def _release(self, study: Study, plan: RoundPlan) -> Files:
        """Charges the round, computes this site's vector, seals and stores it; no record is trained on before."""
        planned = study.planned_round(plan.round)
        start = self._round_start(study, plan)
        sealer = Sealer.of_plan(study, plan, site=self._name, signer=self._signer_in(study))
        policy = load_policy(self._home)
        compute = self._model.contribution(study, policy, planned)
        is_held_out = planned.purpose == "evaluation"
        self._note_units(study, policy, policy.data.heldout_source if is_held_out else policy.data.source)
        position = self._charge(study, policy, plan)
        try:
            try:
                if planned.purpose == "update":
                    self._keep_states(study, policy)
            except Exception as err:
                raise StepFailed(_FAILED) from err
            with self._times.answered(study, planned, policy, self._model.load(study, policy)):
                try:
                    vector = compute(start.vector)
                except Exception as err:  # the coordinator is told the same for every cause
                    raise StepFailed(_FAILED) from err
                envelopes = sealer.seal(vector, state=start.digest, position=position)
                return self._outbox.put(plan.run, plan.round, envelopes)
        except StepFailed as err:  # logged at the public time, and without the message, which may quote a record
            where = place(err.__cause__ or err)
            logger.error("round %d of run %s failed after its charge: %s", plan.round, plan.run, where)
            raise

    def _round_start(self, study: Study, plan: RoundPlan) -> RoundStart:
        """Computes what the round starts from, and compares it with what the coordinator says.

        Raises:
            SiteBehind: this site lacks totals of earlier rounds.
            RoundOver: this site has taken the total of this round.
            StateRefused: the coordinator says something else.
        """
        checkpoint = self._followed.checkpoint(study, plan.run, self._start_of(study))
        if checkpoint.round < study.last_update_before(plan.round):
            raise SiteBehind(f"{self._name} has taken the totals of {checkpoint.round} rounds of run {plan.run}")
        if checkpoint.round >= plan.round:
            raise RoundOver(f"{self._name} has gone on to round {checkpoint.round} of run {plan.run}")
        start = round_start(study, checkpoint, plan.round)
        if start.digest != plan.start:
            raise StateRefused(
                "the round would start from another state than the one that follows from the study and its totals"
            )
        return start

    def _start_of(self, study: Study) -> Callable[[], np.ndarray]:
        return lambda: self._model.start(study, load_policy(self._home))

    def _stored(self, study: Study, asked: RoundPlan | TopUpPlan | Fetch) -> Files | None:
        """Finds the stored shares of the round, if there are any, and makes sure that the round is charged.

        The charge is there already, unless the ledger was lost or is an older copy.
        """
        files = self._outbox.get(asked.run, asked.round)
        if files is not None:
            self._charge(study, load_policy(self._home), asked)
        return files

    def _charge(self, study: Study, policy: SitePolicy, asked: RoundPlan | TopUpPlan | Fetch) -> Position:
        """Charges a round, if it is not charged yet, and keeps the ledger's head; returns the charge's position."""
        entry = charges.reserve(self._ledger, study, policy, run=asked.run, round_number=asked.round)
        self._head.keep()
        return self._head.position(entry)

    def _refuse_settled(self, asked: RoundPlan | TopUpPlan | Fetch) -> None:
        if self._ledger.is_settled(asked.run, asked.round):
            raise RoundOver(
                f"round {asked.round} of run {asked.run} is settled here; another draw would be another release"
            )
        if self._outbox.is_lost(asked.run, asked.round):
            raise RoundOver(
                f"round {asked.round} of run {asked.run} was charged before the ledger of {self._name} was restored, "
                "and what was sealed for it is not here; another draw would be another release, and the charge stands"
            )

    def _note_units(self, study: Study, policy: SitePolicy, source: Source | None = None) -> None:
        """Notes whose records the account pays for, or refuses people that another account has paid for.

        It looks at one source, or at all of the policy's.

        What the coordinator is told is one constant text: the reason counts records. A table that has to be read for it
        is read until a public time.
        """
        if self._units.is_covered(policy, source):
            return
        try:
            with self._times.read(study, policy):
                self._units.cover(policy, source)
        except (UnitsKnown, DataInvalid) as err:
            logger.error("nothing is charged: %s", err)
            raise ChargeRefused(_NOT_CHARGED) from err

    def _keep_states(self, study: Study, policy: SitePolicy) -> None:
        """Computes kept states of the table's records, for a third of the study's deadline at most.

        What is missing then is computed before the next step; until all are there, steps compute what they lack. How
        long it took tells how many records the table has, so each part lasts until a public time.
        """
        model = self._model.load(study, policy)
        if model.is_warm or not self._is_approved(study):
            return
        with self._times.kept(study, policy, "looked for"):
            model.look_at_kept()
        if not model.is_warm:
            with self._times.kept(study, policy, "computed"):
                model.keep(seconds=study.draft.rounds.deadline_s / 3)  # and a step has to follow in the rest
        if not self._is_approved(study):  # revoked after this message was admitted, perhaps before the filling began
            self._forget_states(study)

    def _is_approved(self, study: Study) -> bool:
        return load_policy(self._home).studies.names(study.study_hash)

    def _forget_states(self, study: Study) -> None:
        try:
            kept_files.forget(self._home, study.study_hash)
        except FileDamaged as err:
            logger.error("%s", err)

    def _require_whole_ledger(self, known: int) -> None:
        """Refuses a ledger that lacks what was sent by it, or has fewer entries than the `known` ones of a replica."""
        self._head.require()
        here = self._ledger.head.seq + 1
        if here < known:
            raise SiteNotReady(
                f"the ledger of {self._name} has {here} entries here and {known} at the coordinator: an "
                "older copy was put back; the site can restore it: stop the daemon, then client-node budget import"
            )

    def _settle(self, study: Study, run: str, outcomes: Sequence[Outcome]) -> None:
        """Settles the rounds that this site took part in, by outcomes that all three aggregators have signed."""
        for outcome in outcomes:
            if self._ledger.is_open(run, outcome.round):
                require_evidence(study, run, outcome)
                self._require_topped(study, run, outcome)
                self._ledger.settle(run, outcome.round, outcome.sites)
                self._head.keep()
            if self._ledger.is_settled(run, outcome.round):  # else a second draw could follow under one charge
                self._outbox.drop(run, outcome.round)

    def _require_topped(self, study: Study, run: str, outcome: Outcome) -> None:
        """Refuses an outcome over fewer sites with this site's update, unless this site gave a top-up for that set."""
        summed = outcome.sites
        if self._name not in summed or len(summed) >= study.draft.min_untopped:
            return
        if not self._outbox.has_topped(run, outcome.round, summed):
            raise MessageInvalid(
                f"round {outcome.round}: {self._name} never added noise for a sum over {', '.join(summed)}"
            )
