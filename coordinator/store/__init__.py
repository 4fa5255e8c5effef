"""Storage of the coordinator: tables in SQL, vectors and envelopes of a run in files, replicas of ledgers.

`Store` holds nodes, studies, runs and rounds. `run_folder` holds the files of one run, each known by its SHA-256.
`LedgerReplica` holds the signed entries that sites send. `place` says where the tables are, in SQLite or PostgreSQL,
and `dump` writes their rows so that either can read them. `tables` has the rows, `states` the states of a run and the
allowed changes between them. `audit_log` chains who did what: `actions` is its vocabulary and says who acts.

A round's state is read back bit for bit; a damaged file is refused:

>>> from pathlib import Path
>>> from tempfile import TemporaryDirectory
>>> import numpy as np
>>> from confide.client_node.replay import Checkpoint
>>> from confide.coordinator.store.run_folder import RunFolder
>>> with TemporaryDirectory() as home:
...     folder = RunFolder(Path(home), "run")
...     digest = folder.save(Checkpoint.beginning(np.array([0.5, -1.0], np.float32)))
...     folder.load(0, digest).state.tolist()
[0.5, -1.0]
"""

from typing import TYPE_CHECKING

from ...faces import lazy

if TYPE_CHECKING:
    from .ledger_replica import LedgerReplica
    from .store import Store, migrate
else:
    __getattr__ = lazy(__name__, ledger_replica="LedgerReplica", store="Store migrate")

__all__ = [
    "LedgerReplica",
    "Store",
    "actions",
    "audit_log",
    "dump",
    "migrate",
    "place",
    "run_folder",
    "states",
    "tables",
]
