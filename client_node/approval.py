"""What a site should know before it approves a study: who takes part, whether the data fits, what it would cost.

Nothing of an assessment leaves the site. It counts records, so its reasons may depend on them.
"""

from dataclasses import dataclass
from pathlib import Path

from ..privacy.accounting import Release, site_noise
from ..privacy.errors import PrivacyError
from ..privacy.ledger import Budget, Charge, Ledger, Quote
from .data import DataReport, check
from .enrolment import Enrolment
from .identity import NodeIdentity
from .policy import SitePolicy, load_policy
from .study import Study

LEDGER_FILE = "ledger.db"


@dataclass(frozen=True, slots=True)
class Assessment:
    """A site's own view of a study."""

    study: Study
    trains: bool
    aggregates: bool
    data: DataReport | None  # None if this node only aggregates
    quote: Quote | None  # None if nothing is to be paid, or the ledger would not say
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
    reasons = _identity_reasons(study, *me, takes_part=trains or aggregates)
    data = quote = None
    if trains:
        policy = load_policy(home)
        reasons += _terms_reasons(study, policy, unprotected=unprotected)
        data = check(policy.data.path, policy, study)
        reasons += _data_reasons(study, policy, data)
        if study.draft.privacy.mode != "none" and not reasons:
            with open_ledger(home, identity, enrolment) as ledger:
                record_budget(ledger, policy)
                quote, refusals = _quote(ledger, study, policy)
            reasons += refusals
    return Assessment(study, trains, aggregates, data, quote, tuple(reasons))


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
    privacy = study.draft.privacy
    return Charge(
        study=study.study_hash,
        run=run,
        round=round_number,
        dataset=policy.data.name,
        unit=policy.data.unit,
        cohort=study.site_names(),
        release=Release(
            mode=privacy.mode,
            site_noise_int=noise(study),
            scale_bits=study.scale_bits,
            clip_norm=privacy.sensitivity,
            dim=study.dim,
            sample_rate=privacy.sample_rate,
            sites=study.quorum,  # the fewest whose noise protects the sum
            steps=privacy.local_steps,
        ),
    )


def noise(study: Study) -> int:
    """Std of one site's integer noise, in ring units."""
    privacy = study.draft.privacy
    return site_noise(
        noise_multiplier=privacy.noise_multiplier,
        clip_norm=privacy.sensitivity,
        cohort=len(study.sites),
        max_dropouts=privacy.max_dropouts,
        collusion=privacy.collusion,
        scale_bits=study.scale_bits,
        mode=privacy.mode,
    )


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
    return reasons


def _data_reasons(study: Study, policy: SitePolicy, data: DataReport) -> list[str]:
    if not data.is_fit:
        count = "1 problem" if data.problem_count == 1 else f"{data.problem_count} problems"
        return [f"{data.path} has {count}; see: client-node data check {data.path} --study {study.study_hash[:12]}"]
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


def _quote(ledger: Ledger, study: Study, policy: SitePolicy) -> tuple[Quote | None, list[str]]:
    rounds = study.draft.rounds.rounds
    try:
        quote = ledger.affordable(charge(study, policy, run="(before approval)", round_number=1), rounds)
    except PrivacyError as err:
        return None, [str(err)]
    if quote.fits:
        return quote, []
    return quote, [
        f"the budget cannot pay for all {rounds} rounds: they would bring epsilon from {quote.spent:.4g} to "
        f"{quote.would_be:.4g}, the cap is {quote.cap:g}"
    ]
