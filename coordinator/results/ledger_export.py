"""Exports a site's replicated ledger as one file, for a site that lost its own."""

from pathlib import Path

from ...privacy.ledger import backup
from ...privacy.ledger.chain import Head
from ..errors import NotFound
from ..store import LedgerReplica, Store


def export_ledger(store: Store, site: str, file: Path) -> Head:
    """Writes the replicated ledger of `site` to a new file, and returns its last entry's number and hash.

    Raises:
        NotFound: no entry of the site is replicated.
        LedgerFileInvalid: `file` exists already, or it cannot be written.
    """
    nodes = {node.name: node for node in store.nodes()}
    entries = LedgerReplica(store).entries(site) if site in nodes else []
    if not entries:
        raise NotFound(f"no ledger of {site} is here; a site sends it when a run begins")
    return backup.write(file, entries, nodes[site].identity or "")
