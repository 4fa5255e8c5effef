import pytest

from confide.coordinator.errors import NotFound
from confide.coordinator.results.reports import export_ledger
from confide.coordinator.store.ledger_replica import LedgerReplica
from confide.privacy.errors import LedgerFileInvalid
from confide.privacy.ledger import backup

from ...privacy.ledgers import ledger_with


@pytest.fixture
def replicated(federation, tmp_path):
    """The entries of svi's ledger, which the store holds as well."""
    with ledger_with(tmp_path / "svi.db", site="svi") as ledger:
        federation.change("svi", identity=ledger.public_key)
        LedgerReplica(federation.store).extend("svi", ledger.public_key, ledger.entries())
        return ledger.entries()


def test_a_replicated_ledger_is_written_whole(federation, replicated, tmp_path):
    head = export_ledger(federation.store, "svi", tmp_path / "svi.jsonl")
    assert list(backup.read(tmp_path / "svi.jsonl")) == replicated
    assert (head.seq, head.hash) == (replicated[-1].seq, replicated[-1].hash)
    with pytest.raises(LedgerFileInvalid, match="exists already"):
        export_ledger(federation.store, "svi", tmp_path / "svi.jsonl")


@pytest.mark.parametrize("site", ["rest", "nobody"])
def test_a_site_that_sent_nothing_has_no_ledger_here(federation, tmp_path, site):
    with pytest.raises(NotFound, match=f"no ledger of {site} is here"):
        export_ledger(federation.store, site, tmp_path / "file")
    assert not (tmp_path / "file").exists()
