"""Audits that nobody ran, for tests of what is done with them."""

import json

from confide.coordinator.store.store import Store
from confide.coordinator.store.tables import PrivacyTest
from confide.privacy.report.schema import AuditFacts, MembershipFacts, dump


def audit_facts(**changes: object) -> AuditFacts:
    """An audit that passed."""
    facts: dict[str, object] = {
        "run": "run-1", "study": "ab" * 32, "round": 2, "time": "2026-01-02T03:04:05Z", "delta": 1e-5,
        "claimed_epsilon": 1.75, "lower_bound": 0.700018, "largest_bound": 3.47, "confidence": 0.95,
        "noise_multiplier": 2.25, "colluding": 1, "steps": 32, "canaries": 800, "guesses": 100, "right": 75,
        "checks": ["noise-std", "clipping"], "findings": [], "blocks": 33, "blocks_reached": 33, "seconds": 21.5,
        "versions": "confide 0.1.0, torch 2.13.0",
    }  # fmt: skip
    return AuditFacts.model_validate({**facts, **changes})


def membership_facts(**changes: object) -> MembershipFacts:
    """An attack that found nobody."""
    facts: dict[str, object] = {
        "run": "run-1", "study": "ab" * 32, "time": "2026-01-02T03:04:05Z", "attacked": "the run's adapter",
        "is_private": True, "shadows": 16, "shadow_model": "a head alone", "members": 100, "nonmembers": 50,
        "auc": 0.5, "auc_low": 0.4, "auc_high": 0.6, "tpr_at_1_percent_fpr": 0.01, "tpr_at_1_percent_fpr_low": 0.0,
        "tpr_at_1_percent_fpr_high": 0.05, "tpr_at_01_percent_fpr": 0.0, "tpr_at_01_percent_fpr_low": 0.0,
        "tpr_at_01_percent_fpr_high": 0.03, "confidence": 0.95,
        "roc": [{"false_positive_rate": x, "true_positive_rate": x} for x in (0.0, 1.0)],
    }  # fmt: skip
    return MembershipFacts.model_validate({**facts, **changes})


def keep_audit(store: Store, facts: AuditFacts) -> None:
    """Stores it as `coordinator audit privacy` does."""
    store.add_privacy_test(PrivacyTest(run=facts.run, kind="audit", facts=json.dumps(dump(facts))), "audited")
