"""Charges, budgets, ledgers and reports for the tests beside."""

import hashlib
import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from dp_accounting import get_epsilon_gaussian
from scipy.stats import norm

from confide.privacy.accounting.composition import Release, site_noise
from confide.privacy.audit.one_run import epsilon_lower_bound
from confide.privacy.ledger import canonical
from confide.privacy.ledger.chain import START, Head, extend
from confide.privacy.ledger.charges import FORMAT, Opening, Settlement
from confide.privacy.ledger.ledger import Budget, Charge, Ledger
from confide.privacy.report.build import SiteLedger, build_report
from confide.privacy.report.schema import AuditFacts, MembershipFacts, RocPoint

SITES = ("east", "north", "south", "west")


def signer(seed: int = 1) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)


def study_text(name: str = "thyroid", **changes) -> str:
    """The canonical text of a study of the four sites, as far as a report reads it, and a little more."""
    privacy = {
        "mode": "distributed", "noise_multiplier": 1.2, "clip_norm": 1.0, "clipping": "fixed", "sample_rate": 0.2,
        "delta": 1e-05, "collusion": 1, "max_dropouts": 0, "dropouts": "over-provision", "local_steps": 1,
        "target_epsilon": None,
    }  # fmt: skip
    rounds = {"rounds": 40, "min_sites": 4, "deadline_s": 60.0}
    whole = {"dim": 1000, "scale_bits": 24, "evaluation": None}
    for key, value in changes.items():
        next(part for part in (privacy, rounds, whole) if key in part)[key] = value
    parties = [{"name": site, "identity": canonical.public_hex(signer(seed))} for seed, site in enumerate(SITES, 1)]
    draft = {"name": name, "data": {"unit": "patient", "max_tokens": 64}, "privacy": privacy, "rounds": rounds}
    draft["evaluation"] = whole.pop("evaluation")
    text = {"format": 4, "draft": draft, "sites": parties, "ring_bits": 64, "created": "2026-01-05", **whole}
    return json.dumps(text, sort_keys=True, separators=(",", ":"))


def hash_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


STUDY_TEXT = study_text()  # what `charge` is a round of
THYROID_TEXT = study_text(
    noise_multiplier=2.35, max_dropouts=1, dropouts="top-up", dim=20_000, min_sites=3,
    evaluation={"bins": 64, "noise_multiplier": 8.0},
)  # fmt: skip
LOCAL_TEXT = study_text(
    "thyroid-local", mode="local", noise_multiplier=2.5, sample_rate=0.02, dim=20_000, local_steps=4, rounds=8
)
STUDY, THYROID, LOCAL_STUDY = map(hash_of, (STUDY_TEXT, THYROID_TEXT, LOCAL_TEXT))


def release(*, mode="distributed", sites=4, multiplier=1.2, sample_rate=0.2, dim=1000) -> Release:
    noise = site_noise(multiplier, 1.0, len(SITES), 0, 1, 24, mode)
    return Release(
        mode=mode,
        site_noise_int=noise,
        scale_bits=24,
        clip_norm=1.0,
        dim=dim,
        sample_rate=sample_rate,
        sites=sites,
    )


def charge(round=0, *, run="run-1", study=STUDY, dataset="thyroid", cohort=SITES, **of_release) -> Charge:
    return Charge(
        study=study,
        run=run,
        round=round,
        dataset=dataset,
        unit="patient",
        cohort=cohort,
        release=release(**of_release),
    )


def budget(epsilon=8.0, *, dataset="thyroid", delta=1e-5, collusion=1) -> Budget:
    return Budget(dataset=dataset, unit="patient", epsilon=epsilon, delta=delta, collusion=collusion)


def ledger_with(path: Path, *, site="east", seed=1, rounds=3, settled=2, epsilon=8.0) -> Ledger:
    """A ledger with a budget and `rounds` charges, the first `settled` of them settled over all four sites."""
    ledger = Ledger.open(path, signer(seed), site)
    ledger.set_budget(budget(epsilon))
    for round in range(1, rounds + 1):
        ledger.reserve(charge(round))
        if round <= settled:
            ledger.settle("run-1", round, SITES)
    return ledger


def eventful_ledger(site="east", seed=1, *, rounds=40) -> SiteLedger:
    """Months of work on two data sets: training with two sums topped up, its evaluation, and local steps still open."""
    start, key = datetime(2026, 1, 12, 8, 0, tzinfo=UTC), signer(seed)
    head, entries = START, []

    def write(hours: float, kind: str, record) -> None:
        nonlocal head
        time = (start + timedelta(hours=hours)).strftime("%Y-%m-%dT%H:%M:%SZ")
        entries.append(extend(head, key, time, kind, canonical.to_record(record)))
        head = Head(entries[-1].seq, entries[-1].hash)

    def charged(hours: float, item: Charge, summed=SITES) -> None:
        write(hours, "reserve", item)
        if summed:
            write(hours + 0.1, "settle", Settlement(run=item.run, round=item.round, summed=summed))

    public_key = canonical.public_hex(key)
    write(0, "open", Opening(format=FORMAT, site=site, public_key=public_key))
    write(1, "budget", budget(4.0))
    write(1, "budget", budget(2.0, dataset="follow-up", collusion=2))
    topped_up = replace(release(multiplier=2.35, sites=3, dim=20_000), planned_sites=4, noise_collusion=1)
    others = tuple(name for name in SITES if name != "west")
    for round in range(rounds):
        left_out_west = round % 13 == 12
        item = replace(charge(round + 1, study=THYROID), release=topped_up)
        charged(24 + 30 * round, item, others if left_out_west else SITES)
    counts = replace(release(sample_rate=1.0, dim=128, sites=3), planned_sites=4, noise_collusion=1, scale_bits=20)
    histogram = replace(counts, site_noise_int=site_noise(8.0, 1.0, len(SITES), 0, 1, 20, "distributed"))
    charged(30 * rounds + 60, replace(charge(rounds + 1, study=THYROID), purpose="evaluation", release=histogram))
    local = replace(release(mode="local", multiplier=2.5, sample_rate=0.02, dim=20_000), steps=4)
    for round in range(8):
        item = replace(charge(round + 1, run="run-2", study=LOCAL_STUDY, dataset="follow-up"), release=local)
        charged(900 + 70 * round, item, SITES if round < 7 else None)
    return SiteLedger(public_key, entries)


def audit_facts(**changes) -> AuditFacts:
    """An audit that passed, its bound as its guesses give it."""
    facts = {
        "run": "run-1", "study": THYROID, "round": 39, "time": "2026-03-04T10:00:00Z", "delta": 1e-5,
        "claimed_epsilon": math.ceil(1e3 * get_epsilon_gaussian(2.35, 1e-5)) / 1e3,
        "lower_bound": epsilon_lower_bound(136, 200, 800, delta=1e-5, confidence=0.95),
        "largest_bound": epsilon_lower_bound(200, 200, 800, delta=1e-5, confidence=0.95),
        "confidence": 0.95, "noise_multiplier": 2.35, "colluding": 1, "steps": 2, "canaries": 800, "guesses": 200,
        "right": 136, "checks": ["every contribution is clipped", "noise has its std", "no unit is drawn twice"],
        "findings": [], "blocks": 212, "blocks_reached": 209, "seconds": 41.5, "versions": "confide 0.1, torch 2.13",
    }  # fmt: skip
    return AuditFacts(**(facts | changes))


def membership_facts(*, power=0.15, **changes) -> MembershipFacts:
    """An attack that tells members by scores `power` standard deviations apart, on 2,000 records of each kind."""
    rates = [0.0, *(10 ** (-3.3 + 3.3 * step / 60) for step in range(61))]
    curve = [(rate, float(norm.cdf(norm.ppf(rate) + power))) for rate in rates]
    one, tenth = (float(norm.cdf(norm.ppf(rate) + power)) for rate in (0.01, 0.001))
    area = float(norm.cdf(power / math.sqrt(2)))
    facts = {
        "run": "run-1", "study": THYROID, "time": "2026-03-04T11:00:00Z", "attacked": "the run's adapter",
        "is_private": True, "shadows": 16, "shadow_model": "a head alone on the frozen backbone",
        "members": 2000, "nonmembers": 2000, "auc": area, "auc_low": area - 0.018, "auc_high": area + 0.018,
        "tpr_at_1_percent_fpr": one, "tpr_at_1_percent_fpr_low": 0.7 * one, "tpr_at_1_percent_fpr_high": 1.4 * one,
        "tpr_at_01_percent_fpr": tenth, "tpr_at_01_percent_fpr_low": 0.3 * tenth,
        "tpr_at_01_percent_fpr_high": 2.5 * tenth, "confidence": 0.95,
        "roc": [RocPoint(false_positive_rate=false, true_positive_rate=true) for false, true in curve],
    }  # fmt: skip
    return MembershipFacts(**(facts | changes))


def eventful_report() -> dict:
    """A signed report over four such ledgers, with audits and attacks."""
    ledgers = {site: eventful_ledger(site, seed) for seed, site in enumerate(SITES, start=1)}
    undefended = membership_facts(power=1.1, attacked="the same study trained without noise", is_private=False)
    return build_report(
        "Thyroid network",
        ledgers,
        [THYROID_TEXT, LOCAL_TEXT],
        signer(99),
        audits=[audit_facts()],
        membership=[membership_facts(), undefended],
    )
