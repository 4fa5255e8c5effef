import pytest

from confide.coordinator.errors import NotFound
from confide.coordinator.federation import Settings, create_home
from confide.coordinator.results.reports import budget_report, export_ledger
from confide.coordinator.store.ledger_replica import LedgerReplica
from confide.coordinator.store.tables import SuccessionRow
from confide.privacy.errors import LedgerFileInvalid
from confide.privacy.ledger import backup, canonical
from confide.privacy.ledger.ledger import Ledger
from confide.privacy.ledger.succession import Succession
from confide.privacy.report.verify import verify

from ...privacy.ledgers import budget, ledger_with, signer


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


def test_a_ledger_over_a_succession_is_reported_and_written_from_its_first_key_on(federation, tmp_path):
    second, keys = signer(12), {canonical.public_hex(signer(seed)): signer(seed) for seed in (1, 12)}
    first, now = keys
    with Ledger.open(tmp_path / "svi.db", signer(), "svi", keyring=keys.get) as ledger:
        ledger.set_budget(budget())
        made = Succession.make("svi", "c0" * 32, signer(), second, "2026-03-01T09:00:00Z")
        ledger.succeed(made, second)
        entries = ledger.entries()
    federation.change("svi", identity=now)
    with federation.store.session() as session:
        session.add(SuccessionRow(old=first, new=now, site="svi", taken_at=1.0, statement=made.model_dump_json()))
    LedgerReplica(federation.store).extend("svi", first, entries)
    export_ledger(federation.store, "svi", tmp_path / "svi.jsonl")
    assert list(backup.read(tmp_path / "svi.jsonl")) == entries
    federation.create()
    create_home(tmp_path / "issuer", Settings(federation="f", address="h:1", listen="h", port=1, superlink_port=2))
    report = budget_report(federation.store, tmp_path / "issuer")
    assert report["sites"][0]["public_key"] == first
    assert verify(report, site_keys={"svi": now}).ok
