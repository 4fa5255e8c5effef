"""What a site should know before it approves a study: who takes part, whether the data fits, what it would cost.

Nothing of an assessment leaves the site. It counts records, so its reasons may depend on them.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...privacy.errors import PrivacyError
from ...privacy.ledger.ledger import Budget, Charge, Ledger, Quote
from ..data import DataReport, check
from ..enrolment import Enrolment, NodeIdentity
from ..errors import StudyInvalid, StudyUnknown
from ..policy import SitePolicy, load_policy
from ..study import Study, cost
from .catalogue import cached_study
from .confirmed_sites import doubts
from .run_reservations import Holds

logger = logging.getLogger(__name__)

LEDGER_FILE = "ledger.db"
_ROUNDED = 1e-6  # relative; two machines' FFTs differ in the last digits


@dataclass(frozen=True, slots=True)
class Assessment:
    """A site's own view of a study."""

    study: Study
    trains: bool
    aggregates: bool
    data: DataReport | None  # None if this node only aggregates
    quote: Quote | None  # None if nothing is to be paid, or the ledger would not say
    evaluates: bool | None  # whether it takes part in the evaluation; None if there is none for it
    reasons: tuple[str, ...]  # why not to approve it; none: it can be approved


def assess(home: Path, study: Study, *, unprotected: bool = False) -> Assessment:
    """Looks at the study, the site's data and its ledger; changes only the budget in the ledger, to the policy's.

    Args:
        unprotected: whether the person who asks accepts a study without privacy.
    """
    identity, enrolment = NodeIdentity.load(home), Enrolment.load(home)
    me = (enrolment.name, identity.identity_hex)
    trains = me in {(site.name, site.identity) for site in study.sites}
    aggregates = me in {(party.name, party.identity) for party in study.aggregators}
    reasons = _identity_reasons(study, *me, takes_part=trains or aggregates) + doubts(home, study)
    data = quote = evaluates = None
    if trains:
        policy = load_policy(home)
        evaluates = policy.held_out() is not None if study.draft.evaluation else None
        reasons += _terms_reasons(study, policy, unprotected=unprotected)
        data = check(policy.data.path, policy, study)
        reasons += _data_reasons(study, policy, data)
        reasons += _held_out_reasons(study, policy)
        if study.draft.privacy.mode != "none" and not reasons:
            with open_ledger(home, identity, enrolment) as ledger:
                record_budget(ledger, policy)
                quote, refusals = _quote(ledger, study, policy, held_charges(home, policy))
            reasons += refusals
    return Assessment(study, trains, aggregates, data, quote, evaluates, tuple(reasons))


def open_ledger(home: Path, identity: NodeIdentity, enrolment: Enrolment) -> Ledger:
    """This node's ledger."""
    return Ledger.open(home / LEDGER_FILE, identity.signer, enrolment.name)


def record_budget(ledger: Ledger, policy: SitePolicy) -> None:
    """Puts the policy's budget in force; a budget that is in force already is not written again."""
    ledger.set_budget(
        Budget(
            dataset=policy.data.name,
            unit=policy.data.unit,
            epsilon=policy.budget.epsilon,
            delta=policy.budget.delta,
            collusion=policy.budget.collusion,
        )
    )


def charge(study: Study, policy: SitePolicy, *, run: str, round_number: int) -> Charge:
    """What one round of the study is charged before it begins: the release at its worst."""
    planned = study.planned_round(round_number)
    return Charge(
        study=study.study_hash,
        run=run,
        round=round_number,
        dataset=policy.data.name,
        unit=policy.data.unit,
        cohort=study.site_names(),
        release=cost.release(study, planned, sites=study.quorum),  # the fewest whose noise protects the sum
        purpose=planned.purpose,
    )


def planned_charges(study: Study, policy: SitePolicy, *, run: str) -> list[tuple[Charge, int]]:
    """What a whole run will be charged at this site, for each purpose one charge and how many like it.

    A site that holds nothing out takes no part in the evaluation and pays nothing for it.
    """
    rounds = study.draft.rounds.rounds
    planned = [(charge(study, policy, run=run, round_number=1), rounds)]
    if study.draft.evaluation and policy.data.heldout_path:
        planned.append((charge(study, policy, run=run, round_number=study.last_round), 1))
    return planned


def held_charges(home: Path, policy: SitePolicy, *, besides: str = "") -> dict[str, list[tuple[Charge, int]]]:
    """What each other run that has begun here was planned to charge, `planned_charges` by the run's name.

    A run whose study may not run here any more holds nothing.
    """
    held = {}
    for run, study_hash in Holds(home).runs().items():
        try:
            study = cached_study(home, study_hash)
        except (StudyUnknown, StudyInvalid) as err:
            logger.warning("run %s holds no budget: %s", run, err)
            continue
        if run != besides and study.draft.privacy.mode != "none" and policy.permits(study):
            held[run] = planned_charges(study, policy, run=run)
    return held


def _identity_reasons(study: Study, name: str, identity: str, *, takes_part: bool) -> list[str]:
    if takes_part:
        return []
    named = {party.name for party in study.sites} | {party.name for party in study.aggregators}
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
            f"the study promises epsilon {target:g} (privacy.target_epsilon), but its rounds cost {epsilon:.4g}"
        )
    return reasons


def _data_reasons(study: Study, policy: SitePolicy, data: DataReport) -> list[str]:
    if not data.is_fit:
        return [_misfit(study, data)]
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


def _held_out_reasons(study: Study, policy: SitePolicy) -> list[str]:
    held_out = policy.held_out()
    if study.draft.evaluation is None or held_out is None:
        return []
    found = check(held_out.data.path, held_out, study)
    return [] if found.is_fit else [_misfit(study, found)]


def _misfit(study: Study, data: DataReport) -> str:
    count = "1 problem" if data.problem_count == 1 else f"{data.problem_count} problems"
    return f"{data.path} has {count}; see: client-node data check {data.path} --study {study.study_hash[:12]}"


def _quote(
    ledger: Ledger, study: Study, policy: SitePolicy, held: Mapping[str, list[tuple[Charge, int]]]
) -> tuple[Quote | None, list[str]]:
    planned = planned_charges(study, policy, run="(before approval)")
    try:
        quote = ledger.affordable(planned, held=[charge for each in held.values() for charge in each])
    except PrivacyError as err:
        return None, [str(err)]
    if quote.fits:
        return quote, []
    rounds = sum(count for _, count in planned)
    return quote, [
        f"the budget cannot pay for all {rounds} rounds: they would bring epsilon from {quote.spent:.4g} to "
        f"{quote.would_be:.4g}{beside(held)}, the cap is {quote.cap:g}"
    ]


def beside(held: Iterable[str]) -> str:
    """Names the runs that hold a part of the budget, to go on a sentence; nothing if none does."""
    names = ", ".join(sorted(held))
    return f" with what is held for {names}" if names else ""
