"""What the coordinator keeps: tables in SQL, vectors and envelopes of a run in files, replicas of ledgers."""

from .ledger_replica import LedgerReplica
from .run_folder import Checkpoint, RunFolder
from .store import Store

__all__ = ["Checkpoint", "LedgerReplica", "RunFolder", "Store", "broadcast", "run_folder", "store"]
