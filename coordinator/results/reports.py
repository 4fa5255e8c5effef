"""Budget reports over the ledgers that sites have replicated to the coordinator."""

from pathlib import Path
from typing import Any

from ...client_node.study import Study
from ...privacy.report.build import SiteLedger, build_report
from ...privacy.report.schema import membership_facts
from ..errors import NotFound
from ..federation import Pki, load_settings
from ..store import LedgerReplica, Store
from ..studies.catalogue import load_study
from .privacy_audit import audits


def budget_report(store: Store, home: Path, study: str | None = None) -> dict[str, Any]:
    """The signed report over every site with a ledger here, or over the sites of one study."""
    studies = [load_study(row) for row in ([store.study(study)] if study else store.studies())]
    wanted = {site.name for found in studies for site in found.sites}
    replica, ledgers = LedgerReplica(store), {}
    for node in store.nodes():
        entries = replica.entries(node.name)
        if node.name in wanted and entries:
            ledgers[node.name] = SiteLedger(entries=entries, public_key=node.identity or "")
    if not ledgers:
        raise NotFound("no site has sent a ledger yet; a report needs at least one run that has begun")
    hashes = {found.study_hash for found in studies}
    runs = [run.id for run in store.runs() if run.study in hashes]
    return build_report(
        load_settings(home).federation,
        ledgers,
        [study_facts(found) for found in studies],
        Pki.load(home).signer,
        audits=[facts for run in runs for facts in audits(store, run)],
        membership=[membership_facts(text) for run in runs for text in store.privacy_tests(run, "membership")],
    )


def study_facts(study: Study) -> dict[str, Any]:
    """What a report says about a study."""
    privacy = study.draft.privacy
    has_guarantee = privacy.mode != "none"
    return {
        "name": study.name,
        "hash": study.study_hash,
        "mode": privacy.mode,
        "delta": privacy.delta if has_guarantee else None,
        "collusion": privacy.collusion,
        "sites": [site.name for site in study.sites],
        "rounds": study.draft.rounds.rounds,
        "noise_multiplier": privacy.noise_multiplier if has_guarantee else None,
        "clip_norm": privacy.clip_norm,
        "sample_rate": privacy.sample_rate,
        "max_dropouts": privacy.max_dropouts,
    }


def summary(report: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per site, data set and number of colluding sites, for a table."""
    return [
        {
            "site": site["name"],
            "data set": account["dataset"],
            "unit": account["unit"],
            "releases": account["releases"],
            "colluding": spent["colluding"],
            "ε by PLD": f"{float(spent['pld']):.3f}",
            "ε by RDP": f"{float(spent['rdp']):.3f}",
            "budget": f"{float(account['budget']['epsilon']):g}" if account["budget"] else "none",
            "δ": f"{float(account['budget']['delta']):g}" if account["budget"] else "",
        }
        for site in report["sites"]
        for account in site["accounts"]
        for spent in account["spent"]
    ]
