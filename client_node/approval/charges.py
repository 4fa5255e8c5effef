"""Charges rounds of a study at one site, under the policy's cap and beside the reservations of other runs."""

import logging
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...models.rounding import rounded_up
from ...privacy.accounting import Release, epsilon_pld, renyi
from ...privacy.errors import LedgerBroken, LedgerUnavailable, PrivacyError
from ...privacy.ledger import charges as ledger_charges
from ...privacy.ledger.chain import Entry
from ...privacy.ledger.ledger import Budget, Charge, Ledger, Quote, Recovery
from .. import ledger_head
from ..data.known_units import KnownUnits
from ..enrolment import Enrolment, NodeIdentity
from ..errors import ChargeRefused, StudyInvalid, StudyUnknown
from ..files import has_room
from ..ledger_head import LEDGER_FILE as LEDGER_FILE
from ..policy import SitePolicy
from ..policy.sources import Source
from ..ruling import Ruling, require
from ..study import Study, cost
from ..succession import own_keys
from .catalogue import cached_study
from .run_reservations import RunReservations

logger = logging.getLogger(__name__)


_WAY_ON = (
    "Nothing is charged without it. Move it, its -wal and its -shm away and import the newest copy: client-node budget "
    "import. If nobody has the missing entries: client-node budget recover, which counts the budget as spent"
)


def open_ledger(home: Path, identity: NodeIdentity, enrolment: Enrolment, *, may_be_lost: bool = False) -> Ledger:
    """Opens this node's ledger, or starts it if none was begun here; an older copy is opened as well.

    Args:
        may_be_lost: True to start a new one also in the place of a ledger that was lost, for a person who says so.

    Raises:
        LedgerBroken: the file was changed or emptied.
        LedgerUnavailable: it is gone, or cannot be used.
        FileDamaged: it cannot be told whether there must be one.
    """
    path = home / LEDGER_FILE
    keys = own_keys.OwnKeys(identity)
    begun = None if may_be_lost else ledger_head.why_begun(home, *keys.all())
    try:
        return Ledger.open(path, identity.signer, enrolment.name, is_new=begun is None, keyring=keys.find)
    except LedgerBroken as err:
        where = str(err) if str(path) in str(err) else f"the ledger {path} is damaged: {err}"
        raise LedgerBroken(f"{where}. {_WAY_ON}") from err
    except LedgerUnavailable as err:
        if not has_room(home):
            raise LedgerUnavailable(f"{err}: the disk is full; make room, nothing is lost") from err
        if begun is None or path.exists():
            raise
        raise LedgerUnavailable(f"the ledger {path} is gone, {begun}. {_WAY_ON}") from err


def whole_ledger(home: Path) -> Ledger:
    """Opens this node's ledger and makes sure that it holds all by which something was sent.

    Raises:
        SiteNotReady: an older copy was put back.
        LedgerError, FileDamaged: see `open_ledger`.
    """
    ledger = open_ledger(home, NodeIdentity.load(home), Enrolment.load(home))
    try:
        ledger_head.LedgerHead(home, ledger).require()
    except BaseException:
        ledger.close()
        raise
    return ledger


def ledger_if_begun(home: Path) -> Ledger | None:
    """Opens this node's ledger as `whole_ledger` does; None if there is none and need not be one. It starts none."""
    if not (home / LEDGER_FILE).exists():
        traces = (home / ledger_head.FILE, home / ledger_head.PEOPLE_FILE)  # first: before its enrolment it has no keys
        is_traced = any(trace.exists() for trace in traces)
        if not is_traced or ledger_head.why_begun(home, *own_keys.of_home(home).all()) is None:
            return None
    return whole_ledger(home)


def budget_of(policy: SitePolicy) -> Budget:
    """Makes the ledger's budget of the cap in the policy."""
    account = policy.account
    return Budget(dataset=account.dataset, unit=account.unit, **policy.budget.model_dump())


def record_budget(ledger: Ledger, policy: SitePolicy) -> None:
    """Puts the policy's budget in force; a budget that is in force already is not written again."""
    ledger.set_budget(budget_of(policy))


def charge(study: Study, policy: SitePolicy, *, run: str, round_number: int) -> Charge:
    """Computes the charge of one round before it begins: its release at its worst."""
    planned = study.planned_round(round_number)
    return Charge(
        study=study.study_hash,
        run=run,
        round=round_number,
        dataset=policy.account.dataset,
        unit=policy.account.unit,
        cohort=study.site_names(),
        release=cost.release(study, planned, sites=study.quorum),  # the fewest whose noise protects the sum
        purpose=planned.purpose,
    )


def planned_charges(study: Study, policy: SitePolicy, *, run: str) -> list[tuple[Charge, int]]:
    """Lists the charges of a whole run at this site: for each purpose one charge, and the number of such rounds.

    A site without held-out records takes no part in the evaluation and is not charged for it.
    """
    planned = [(charge(study, policy, run=run, round_number=1), study.draft.rounds.rounds)]
    for purpose in study.draft.closing:
        if purpose != "evaluation" or policy.data.heldout_source is not None:
            number = study.closing_round(purpose).number
            planned.append((charge(study, policy, run=run, round_number=number), 1))
    return planned


def reserved_charges(
    home: Path, policy: SitePolicy, *, besides: Collection[str] = ()
) -> dict[str, list[tuple[Charge, int]]]:
    """Lists the `planned_charges` of every other active run here, by the run's name.

    A run whose study is not approved any more reserves nothing, nor does one in which this node only aggregates.
    """
    reserved, active = {}, RunReservations(home).runs()
    name = Enrolment.load(home).name if active else ""
    for run, study_hash in active.items():
        if run in besides:
            continue
        try:
            study = cached_study(home, study_hash)
        except (StudyUnknown, StudyInvalid) as err:
            logger.warning("run %s holds no budget: %s", run, err)
            continue
        is_charged = name in study.site_names() and study.draft.privacy.mode != "none"
        if is_charged and policy.permits(study):
            reserved[run] = planned_charges(study, policy, run=run)
    return reserved


@dataclass(frozen=True, slots=True)
class Standing:
    """A site's budget with the charged releases, and those that runs have reserved and not charged yet."""

    budget: Budget
    order: int  # of the filter that keeps the budget
    spent: Counter[Release]
    reserved: Counter[Release]  # by other runs than those asked about
    coming: Counter[Release]  # of the runs asked about, without those that are charged already
    runs: tuple[str, ...]  # that reserve a part of the budget
    recovery: Recovery | None = None  # of an account that lost entries for good

    def require_open(self) -> None:
        """Raises `ChargeRefused` if nothing more is charged on the account, because entries on it were lost."""
        if self.recovery is not None:
            raise ChargeRefused(
                f"data set {self.budget.dataset!r}, unit {self.budget.unit!r} counts as spent up to its cap, since "
                "entries of the ledger were lost for good: nothing more is charged on it"
            )

    @property
    def epsilon_spent(self) -> float:
        """The epsilon of all charges so far by PLD: true if none of them was chosen by results."""
        return epsilon_pld(self.spent, self.budget.delta, self.budget.collusion)

    def planned(self, planned: Sequence[tuple[Charge, int]]) -> float:
        """Computes the epsilon of a whole run alone by PLD: true if the run is followed, or stopped, and no more."""
        return epsilon_pld(_releases(planned), self.budget.delta, self.budget.collusion)

    def quote(self) -> Quote:
        """Computes the guaranteed epsilon to which the coming releases would bring the data set.

        Raises:
            ChargeRefused: the account is closed.
        """
        self.require_open()
        would_be = self.spent + self.reserved + self.coming
        return Quote(self.budget.epsilon, self.guaranteed, self._guaranteed(would_be))

    def first_over(self, update: Release) -> int | None:
        """Finds the first of the coming `update` releases that the cap does not pay for, from 1; None if it pays all.

        The more releases, the higher the guaranteed epsilon: so the first one is found by bisection.
        """
        before, count = self.spent + self.reserved, self.coming[update]

        def is_over(rounds: int) -> bool:
            return self._guaranteed(before + Counter({update: rounds})) > self.budget.epsilon

        first = 1 + bisect_left(range(1, count + 1), True, key=is_over)
        return first if first <= count else None

    @property
    def guaranteed(self) -> float:
        """The guaranteed epsilon of all charges, at the budget's delta and collusion."""
        return self._guaranteed(self.spent)

    def _guaranteed(self, releases: Counter[Release]) -> float:
        budget = self.budget
        return ledger_charges.guaranteed(
            releases, colluding=budget.collusion, delta=budget.delta, order=self.order, recovery=self.recovery
        )


def standing(home: Path, policy: SitePolicy, coming: Sequence[tuple[Charge, int]] = ()) -> Standing:
    """Reads the standing of the policy's budget. Nothing is written: a missing ledger is not created.

    Args:
        coming: `planned_charges` of the runs asked about; runs under way among them reserve nothing beside.
    """
    asked = {made.run for made, _ in coming}
    budget, by_run = budget_of(policy), reserved_charges(home, policy, besides=asked)
    planned = [each for run_charges in by_run.values() for each in run_charges]
    if (begun := ledger_if_begun(home)) is None:
        order = renyi.filter_order(budget.epsilon, budget.delta)
        return Standing(budget, order, Counter(), _releases(planned), _releases(coming), tuple(by_run))
    with begun as ledger:
        spent, order = ledger.releases(budget.dataset, budget.unit), ledger.order(budget)
        reserved, still = ledger.yet_to_charge(planned), ledger.yet_to_charge(coming)
        recovery = ledger.recovery(budget.dataset, budget.unit)
    return Standing(budget, order, spent, reserved, still, tuple(by_run), recovery)


def known_elsewhere(home: Path, policy: SitePolicy, source: Source | None = None) -> tuple[str, ...]:
    """Lists objections to charging the policy's tables, or one of them: their people have another account.

    As when a run is prepared, tables that were noted under this account and have not changed are not read again.
    """
    if (begun := ledger_if_begun(home)) is None:
        return tuple(KnownUnits(home).objections(policy, source))
    with begun as ledger:
        units = KnownUnits(home, ledger)
        return () if units.is_covered(policy, source) else tuple(units.objections(policy, source))


def require_run(home: Path, ledger: Ledger, study: Study, policy: SitePolicy, *, run: str) -> None:
    """Puts the policy's budget in force and refuses a run whose remaining rounds do not fit in it, before it begins.

    Raises:
        ChargeRefused: the rounds do not fit beside the reservations of other runs, or the ledger refuses them.
    """
    planned = planned_charges(study, policy, run=run)
    record_budget(ledger, policy)
    reserved = reserved_charges(home, policy, besides=[run])
    try:
        quote = ledger.affordable(
            planned,
            held=[each for run_charges in reserved.values() for each in run_charges],
            unprotected_allowed=policy.allows_unprotected(study),
        )
    except PrivacyError as err:
        raise ChargeRefused(str(err)) from err
    require([_of_quote(study, quote, planned, tuple(reserved))], about="budget")


def budget_ruling(home: Path, study: Study, policy: SitePolicy, *, run: str | None) -> Ruling:
    """Rules on a run's cost as `require_run` does, without writing; names the first round that the cap does not pay.

    Args:
        run: under way, of which charged rounds are not counted twice; None for one more run.

    Raises:
        ChargeRefused: the account is closed.
        LedgerError, FileDamaged, SiteNotReady: the ledger cannot be used.
    """
    planned = planned_charges(study, policy, run=run or "(one more)")
    stands = standing(home, policy, planned)
    ruling = _of_quote(study, stands.quote(), planned, stands.runs)
    if ruling.allows:
        return ruling
    first = stands.first_over(planned[0][0].release)
    begun = planned[0][1] - stands.coming[planned[0][0].release]
    where = f"round {begun + first} would be the first over the cap" if first else "its closing rounds are over the cap"
    return replace(ruling, why=f"{ruling.why}; {where}")


def _of_quote(study: Study, quote: Quote, planned: Sequence[tuple[Charge, int]], reserved: Collection[str]) -> Ruling:
    """Rules on a run by what the ledger, or its standing, says of its cost."""
    rounds = f"{sum(count for _, count in planned)} rounds of study {study.name}"
    then = f"would bring the guaranteed epsilon to {rounded_up(quote.would_be)}"
    if quote.fits:
        why = f"{rounds} {then}, under the cap of {quote.cap:g}{beside(reserved)}"
        return Ruling("budget", True, "budget.epsilon", why, ChargeRefused)
    why = f"{rounds} {then}, over the cap of {quote.cap:g}{beside(reserved)}; nothing is charged"
    return Ruling("budget", False, "budget.epsilon", why, ChargeRefused)


def reserve(ledger: Ledger, study: Study, policy: SitePolicy, *, run: str, round_number: int) -> Entry:
    """Charges a round of a run, durably, under the cap that the policy sets now; returns the charge's entry.

    Raises:
        ChargeRefused: the ledger refuses the charge.
    """
    record_budget(ledger, policy)  # a lower cap counts from the next round on
    release = charge(study, policy, run=run, round_number=round_number)
    try:
        return ledger.reserve(release, unprotected_allowed=policy.allows_unprotected(study))
    except PrivacyError as err:
        raise ChargeRefused(f"round {round_number}: {err}") from err


def beside(runs: Iterable[str]) -> str:
    """Writes a clause that names the runs that reserve a part of the budget; empty if none does."""
    names = ", ".join(sorted(runs))
    return f" with what is held for {names}" if names else ""


def _releases(planned: Sequence[tuple[Charge, int]]) -> Counter[Release]:
    total: Counter[Release] = Counter()
    for made, count in planned:
        total[made.release] += count
    return total
