"""Assesses a study for the site that must approve it: its participants, the fit of the data, the cost.

An assessment stays at the site and changes nothing there; `approve` does. It counts records, so its reasons may depend
on them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...models.rounding import rounded_up
from ...privacy.errors import PrivacyError
from ...privacy.ledger.ledger import Charge, Quote
from ..data import DataReport, check
from ..enrolment import Enrolment, NodeIdentity
from ..errors import ChargeRefused, ClientNodeError, PolicyInvalid
from ..policy import SitePolicy, load_policy
from ..study import Study, cost
from ..succession import own_keys
from .charges import Standing, beside, known_elsewhere, planned_charges, standing
from .confirmed_sites import doubts
from .table_check import check_command

_FAR = 10  # times smaller than the average site: possible, and worth a question
_ROUNDED = 1e-6  # relative; two machines' FFTs differ in the last digits


@dataclass(frozen=True, slots=True)
class Assessment:
    """A site's assessment of a study, for its own people."""

    study: Study
    trains: bool
    aggregates: bool
    data: DataReport | None  # None if this node only aggregates
    planned: float | None  # epsilon of the whole run alone, by PLD; None where `quote` is
    spent: float | None  # epsilon of all earlier charges, by PLD; None where `quote` is
    quote: Quote | None  # by the filter, reservations included; None if nothing is charged, or the ledger refused
    evaluates: bool | None  # takes part in the evaluation; None if the study has none for it
    reasons: tuple[str, ...]  # against an approval; empty if it can be approved

    @property
    def remark(self) -> str:
        """Compares the study's size with the site's own table; "" if it only aggregates."""
        return _units_remark(self.study, self.data.units) if self.data else ""


@dataclass(frozen=True, slots=True)
class Outlook:
    """The things about a study that matter at a site, before anybody decides; for its own people."""

    study: Study
    trains: bool
    aggregates: bool
    planned: float | None  # epsilon of one run alone, by PLD; None if it is not known
    quote: Quote | None  # of one more run, reservations included; None if it is not known
    unknown: str  # why there is no quote; "" if there is one
    remark: str  # about the study's size beside the site's own table; "" if that cannot be read


def outlook(home: Path, study: Study, *, looks_at_table: bool = True) -> Outlook:
    """Tells what one more run of the study would cost here, and whether its size fits this table.

    Args:
        looks_at_table: False to leave the table alone, and so its size.
    """
    name = Enrolment.load(home).name
    me = (name, own_keys.of_home(home).key_in(study.identities(), name))
    trains, aggregates = study.has_site(*me), study.has_aggregator(*me)
    if not trains:
        return Outlook(study, trains, aggregates, None, None, "", "")
    try:
        policy = load_policy(home)
    except PolicyInvalid as err:
        return Outlook(study, trains, aggregates, None, None, " ".join(str(err).split()), "")
    remark = ""
    if looks_at_table:
        found = check(policy.data.source, policy)
        remark = _units_remark(study, found.units) if found.units else f"{policy.data.source} could not be looked at."
    if study.draft.privacy.mode == "none":
        return Outlook(study, trains, aggregates, None, None, "", remark)
    charges = planned_charges(study, policy, run="(new 0)")
    try:
        stands = standing(home, policy, charges)
        return Outlook(study, trains, aggregates, stands.planned(charges), stands.quote(), "", remark)
    except (PrivacyError, ClientNodeError) as err:
        return Outlook(study, trains, aggregates, None, None, str(err), remark)


def _units_remark(study: Study, units: int) -> str:
    """Says what the study assumes of all sites, and if that cannot be, beside this table; it stays at the site."""
    draft = study.draft
    implied, sites, unit = draft.rounds.batch_units / draft.privacy.sample_rate, len(study.sites), draft.data.unit
    assumed = (
        f"The study assumes {implied:,.0f} {unit} units at all {sites} sites, {implied / sites:,.0f} at an average "
        f"one; this table has {units:,}"
    )
    if units > implied:
        return f"{assumed}, more than all together: batch_units is surely wrong, ask the operator."
    if units * sites * _FAR < implied:
        return f"{assumed}, far fewer: ask the operator whether batch_units is right."
    return f"{assumed}."


def assess(
    home: Path, study: Study, *, unprotected: bool = False, runs: int = 1, under_way: Sequence[str] = ()
) -> Assessment:
    """Assesses the study by the site's policy, data and ledger. Nothing is written.

    Args:
        unprotected: True if the person who asks accepts a study without privacy.
        runs: the number of runs to be paid for, those under way included.
        under_way: runs of the study that have begun here; of these only what is not charged yet counts.
    """
    identity, enrolment = NodeIdentity.load(home), Enrolment.load(home)
    me = (enrolment.name, identity.identity_hex)
    trains, aggregates = study.has_site(*me), study.has_aggregator(*me)
    reasons = _identity_reasons(home, study, *me, takes_part=trains or aggregates) + doubts(home, study)
    data = planned = spent = quote = evaluates = None
    if trains:
        policy = load_policy(home)
        evaluates = policy.held_out() is not None if study.draft.evaluation else None
        reasons += _terms_reasons(study, policy, unprotected=unprotected)
        data = check(policy.data.source, policy, study, site=enrolment.name)
        reasons += _data_reasons(study, policy, data)
        reasons += _held_out_reasons(study, policy, enrolment.name)
        if not reasons:
            reasons += known_elsewhere(home, policy)
        if study.draft.privacy.mode != "none" and not reasons:
            new = [f"(new {number})" for number in range(runs - len(under_way))]
            charges = [each for run in (*under_way, *new) for each in planned_charges(study, policy, run=run)]
            stands = standing(home, policy, charges)
            planned, spent = stands.planned(charges), stands.epsilon_spent
            quote, refusals = _quote(study, stands, charges, planned, runs=len(under_way) + len(new))
            reasons += refusals
    return Assessment(study, trains, aggregates, data, planned, spent, quote, evaluates, tuple(reasons))


def _identity_reasons(home: Path, study: Study, name: str, identity: str, *, takes_part: bool) -> list[str]:
    if takes_part:
        return []
    named = study.identities()
    if named.get(name) in own_keys.of_home(home).all():
        return [
            f"the study names a key of {name} that was followed by another since: only runs that were approved before "
            "go on with it; ask the operator to create the study anew"
        ]
    if name in named:
        return [
            f"the study gives {name} another key than this node's ({identity[:16]}...): somebody else would take part"
        ]
    return [f"the study has no part for this node ({name}); there is nothing to approve"]


def _terms_reasons(study: Study, policy: SitePolicy, *, unprotected: bool) -> list[str]:
    reasons = []
    if study.draft.privacy.mode == "none" and not unprotected:
        reasons.append("the study has no privacy at all: fit for public data only; if this is, add --unprotected")
    if study.draft.data.unit != policy.data.unit:
        reasons.append(
            f"the study protects each {study.draft.data.unit!r}, this site's budget is per {policy.data.unit!r} "
            "(data.unit in site.toml)"
        )
    target = study.draft.privacy.target_epsilon
    if target is not None and not (epsilon := cost.whole_cost(study)) <= target * (1 + _ROUNDED):
        reasons.append(
            f"the study promises epsilon {target:g} (privacy.target_epsilon), but its rounds cost "
            f"{rounded_up(epsilon, 3)}"
        )
    return reasons


def _data_reasons(study: Study, policy: SitePolicy, data: DataReport) -> list[str]:
    if not data.is_fit:
        return [_misfit(study, data, check_command(policy.data.source))]
    if not data.units:
        return [f"{data.path} holds no records"]
    if study.draft.privacy.mode == "none":
        return []
    # With delta above one in n, a mechanism that publishes one of n units at random would count as private.
    return [
        f"{name} is {delta:g}; with {data.units} units here it must be at most {1 / data.units:.2g}"
        for name, delta in (
            ("the budget's delta", policy.budget.delta),
            ("the study's delta", study.draft.privacy.delta),
        )
        if delta > 1 / data.units
    ]


def _held_out_reasons(study: Study, policy: SitePolicy, site: str) -> list[str]:
    held_out = policy.held_out()
    if study.draft.evaluation is None or held_out is None:
        return []
    found = check(held_out.data.source, held_out, study, site=site, both_classes=False)
    return [] if found.is_fit else [_misfit(study, found, check_command(held_out.data.source, is_held_out=True))]


def _misfit(study: Study, data: DataReport, command: str) -> str:
    count = "1 problem" if data.problem_count == 1 else f"{data.problem_count} problems"
    return f"{data.path} has {count}; see: {command} --study {study.study_hash[:12]}"


def _quote(
    study: Study, stands: Standing, charges: Sequence[tuple[Charge, int]], planned: float, *, runs: int
) -> tuple[Quote | None, list[str]]:
    try:
        quote = stands.quote()
    except (PrivacyError, ChargeRefused) as err:
        return None, [str(err)]
    if quote.fits:
        return quote, []
    whole, rounds = sum(count for _, count in charges), stands.coming.total()
    counted = f"all {rounds} rounds" if rounds == whole else f"the {rounds} rounds that are left"
    of_runs = f" of {runs} runs" if runs > 1 else ""
    return quote, [
        f"the budget cannot pay for {counted}{of_runs}: they would bring the guaranteed epsilon from "
        f"{rounded_up(quote.guaranteed)} to {rounded_up(quote.would_be)}{beside(stands.runs)}, the cap is "
        f"{quote.cap:g}; a higher one, or rounds that fit: client-node budget plan {study.study_hash[:12]}. Alone, as "
        f"a plan that nobody changes by its results, the study costs {rounded_up(planned)}; why a cap goes by the "
        'higher figure: "Three figures" in docs/site.md'
    ]
