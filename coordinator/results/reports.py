"""Builds budget reports over the ledgers that sites have replicated to the coordinator, and gives a ledger back."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...privacy.ledger import backup
from ...privacy.ledger.chain import Entry, Head
from ...privacy.report.build import SiteLedger, build_report
from ...privacy.report.schema import membership_facts
from ..errors import NotFound
from ..federation import Pki, load_settings
from ..store import LedgerReplica, Store
from ..store.actions import plain
from ..studies.catalogue import load_study
from .privacy_audit import audits


def budget_report(store: Store, home: Path, study: str | None = None) -> dict[str, Any]:
    """Builds the signed report over every site with a ledger here, or over the sites of one study."""
    studies = [load_study(row) for row in ([store.study(study)] if study else store.studies())]
    wanted = {site.name for found in studies for site in found.sites}
    replica, ledgers = LedgerReplica(store), {}
    for node in store.nodes():
        entries = replica.entries(node.name)
        if node.name in wanted and entries:
            ledgers[node.name] = SiteLedger(entries=entries, public_key=_opening_key(store, node.name, entries))
    if not ledgers:
        raise NotFound("no site has sent a ledger yet; a report needs at least one run that has begun")
    hashes = {found.study_hash for found in studies}
    runs = [run.id for run in store.runs() if run.study in hashes]
    return build_report(
        load_settings(home).federation,
        ledgers,
        [found.canonical().decode() for found in studies],
        Pki.load(home).signer,
        audits=[facts for run in runs for facts in audits(store, run)],
        membership=[membership_facts(text) for run in runs for text in store.privacy_tests(run, "membership")],
    )


def export_ledger(store: Store, site: str, file: Path) -> Head:
    """Writes the replicated ledger of `site`, which has lost its own, to a new file; returns its last entry.

    Raises:
        NotFound: no entry of the site is replicated.
        LedgerFileInvalid: `file` exists already, or it cannot be written.
    """
    entries = _entries(store, site)
    if not os.path.lexists(file):  # else it is refused
        _note_export(store, site, str(file))
    return backup.write(file, entries, _opening_key(store, site, entries))


def ledger_download(store: Store, site: str) -> bytes:
    """Makes what `export_ledger` writes for a browser's download; no disk is written. Raises `NotFound`."""
    entries, file = _entries(store, site), io.BytesIO()
    backup.write_to(file, entries, _opening_key(store, site, entries))
    _note_export(store, site, f"{site}.jsonl, a download from the page")
    return file.getvalue()


def _entries(store: Store, site: str) -> list[Entry]:
    nodes = {node.name: node for node in store.nodes()}
    entries = LedgerReplica(store).entries(site) if site in nodes else []
    if not entries:
        raise NotFound(f"no ledger of {site} is here; a site sends it when a run begins")
    return entries


def _note_export(store: Store, site: str, file: str) -> None:
    with store.session() as session:
        store.log_action(session, "budget.export", site=site, file=plain(file))


def _opening_key(store: Store, site: str, entries: Sequence[Entry]) -> str:
    """Returns that one of a site's keys which opened its ledger; its present one if none did, for the error."""
    keys = store.identities(site) or ("",)
    opened = entries[0].body.get("public_key")
    return str(opened) if opened in keys else keys[-1]
