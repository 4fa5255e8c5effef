"""What the coordinator keeps: tables in SQL, vectors and envelopes of a run in files, replicas of ledgers."""

from .ledger_replica import LedgerReplica
from .run_folder import Checkpoint, RunFolder
from .store import Store, migrate

__all__ = ["Checkpoint", "LedgerReplica", "RunFolder", "Store", "migrate", "run_folder", "states", "tables"]
