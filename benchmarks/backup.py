"""Times the coordinator's database on SQLite and on PostgreSQL, and its backup and restoration.

    python benchmarks/backup.py [--charges 1000000] [--database URL] [--json]

Replicas of ledgers are filled with entries of the size of a charge. They are made up, not signed: what is measured are
the database and the file. Replicating is measured with really signed entries besides. Without --database, which names
an empty PostgreSQL database on a server that is used for nothing else, SQLite alone is measured. Times are by the
clock; beside those of backups stands the processor time of this process, which other programs change little.
"""

import argparse
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import insert, text

from confide.coordinator.federation import Settings, backup, create_home
from confide.coordinator.store import LedgerReplica, Store
from confide.coordinator.store.place import parse_database
from confide.coordinator.store.tables import LedgerRow, Round, Run, StudyRow
from confide.privacy.accounting import Release
from confide.privacy.ledger import canonical
from confide.privacy.ledger.chain import START, Head, extend
from confide.privacy.ledger.charges import FORMAT, Budget, Charge, Opening

SITES = 10
TIME = "2026-03-01T09:00:00Z"
COMMITS = 200
REPLICATED = 2000  # entries
_AT_ONCE = 10_000


def main() -> None:
    """Measures and prints everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--charges", type=int, default=1_000_000, help="entries of all replicas together")
    parser.add_argument("--database", help="URL of an empty PostgreSQL database; all in it is deleted at the end")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    found: dict[str, Any] = {
        "machine": f"{platform.machine()}, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}",
        "charges": options.charges,
        "databases": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        for database in (None, *([options.database] if options.database else [])):
            found["databases"].append(measured(Path(folder), options.charges, database))
    print(json.dumps(found, indent=2) if options.json else shown(found))


def measured(folder: Path, charges: int, database: str | None) -> dict[str, Any]:
    """Measures one database."""
    home, again = folder / "home", folder / "again"
    settings = Settings(federation="f", address="127.0.0.1:1", listen="127.0.0.1", port=1, superlink_port=2)
    create_home(home, settings, database)
    store = Store.open(home)
    try:
        found: dict[str, Any] = {"kind": "SQLite" if database is None else "PostgreSQL"}
        found |= committing(store)
        found |= replicating(store)
        found["filling_s"] = seconds(lambda: fill(store, charges))
        for name, passphrase in (("plain", None), ("sealed", b"a passphrase of 29 characters")):
            file = folder / name
            found |= both(f"{name}_backup", lambda f=file, p=passphrase: backup.back_up(home, f, p))
            found[f"{name}_bytes"] = file.stat().st_size
            found |= both(f"{name}_check", lambda f=file, p=passphrase: backup.check(f, p))
        store.close()
        if database is not None:
            emptied(database)
        found |= both("restore", lambda: backup.restore(folder / "plain", again, database=database))
    finally:
        store.close()
        for each in (home, again):
            shutil.rmtree(each, ignore_errors=True)
        for name in ("plain", "sealed"):
            (folder / name).unlink(missing_ok=True)
        if database is not None:
            emptied(database)
    return found


def committing(store: Store) -> dict[str, float]:
    """Commits rounds, one transaction each."""
    with store.session() as session:
        session.add(StudyRow(hash="0" * 64, name="s", canonical=b"{}", signature="", created_at=0.0))
    with store.session() as session:
        session.add(Run(id="r", study="0" * 64, state="running", created_at=0.0))
    lease = store.acquire_lease("r")
    rows = [
        Round(
            run="r", number=number, sites="[]", evidence='["' + "e" * 2000 + '"]', state_hash="0" * 64, seconds=1.0,
            bytes_per_site=1, lease=lease, committed_at=0.0,
        )
        for number in range(1, COMMITS + 1)
    ]  # fmt: skip
    commits = [seconds(lambda row=row: store.commit_round(row)) for row in rows]
    reads = [seconds(lambda: store.last_round("r")) for _ in rows]
    return {"commit_ms": 1000 * median(commits), "commits_s": COMMITS / sum(commits), "read_ms": 1000 * median(reads)}


def replicating(store: Store) -> dict[str, float]:
    """Appends signed charges to a replica, as many as one message carries, checked as those of a site are."""
    signer = Ed25519PrivateKey.from_private_bytes(bytes(32))
    entries = list(signed(signer, REPLICATED))
    replica = LedgerReplica(store)
    took = seconds(
        lambda: [
            replica.extend("east", canonical.public_hex(signer), entries[at : at + 100])
            for at in range(0, len(entries), 100)
        ]
    )
    return {"replicated_s": len(entries) / took}


def signed(signer: Ed25519PrivateKey, charges: int) -> Iterator[Any]:
    """Entries of a ledger: its opening, a budget, charges."""
    head = START
    opening = Opening(format=FORMAT, site="east", public_key=canonical.public_hex(signer))
    budget = Budget(dataset="patients", unit="patient", epsilon=60.0, delta=1e-5, collusion=1)
    bodies = [("open", canonical.to_record(opening)), ("budget", canonical.to_record(budget))]
    release = Release(
        mode="distributed", site_noise_int=2**20, scale_bits=16, clip_norm=1.0, dim=1000, sample_rate=0.02, sites=2
    )
    for number in range(charges - 2):
        charge = Charge(
            study="0" * 64, run="r", round=number, dataset="patients", unit="patient", cohort=("east", "north"),
            release=release, purpose="update",
        )  # fmt: skip
        bodies.append(("reserve", canonical.to_record(charge)))
    for kind, body in bodies:
        entry = extend(head, signer, TIME, kind, body)
        head = Head(entry.seq, entry.hash)
        yield entry


def fill(store: Store, charges: int) -> None:
    """Fills replicas of ten sites, ten thousand rows a transaction."""
    entry = json.dumps(
        {"body": "x" * 420, "hash": "0" * 64, "previous": "0" * 64, "signature": "0" * 128, "time": TIME}
    )
    each = charges // SITES
    for site in range(SITES):
        for start in range(0, each, _AT_ONCE):
            numbers = range(start, min(start + _AT_ONCE, each))
            rows = [
                {"site": f"site-{site}", "seq": number, "kind": "reserve", "hash": f"{number:064x}", "entry": entry}
                for number in numbers
            ]
            with store.session() as session:
                session.execute(insert(LedgerRow), rows)


def emptied(database: str) -> None:
    """Deletes all tables of a database that was made for this."""
    store = Store(parse_database(database))
    with store.session() as session:
        session.execute(text("DROP SCHEMA public CASCADE"))
        session.execute(text("CREATE SCHEMA public"))
    store.close()


def both(name: str, work: Callable[[], object]) -> dict[str, float]:
    """Measures the wall time and the processor time of `work`."""
    before = time.process_time()
    return {f"{name}_s": seconds(work), f"{name}_cpu_s": time.process_time() - before}


def seconds(work: Callable[[], object]) -> float:
    """Measures the wall time of `work`."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def shown(found: dict[str, Any]) -> str:
    """Writes the figures for people."""
    lines = [f"{found['machine']}; {found['charges']:,} charges"]
    for row in found["databases"]:
        lines.append(f"\n{row['kind']}")
        lines += [f"  {name}: {value:,.2f}" for name, value in row.items() if name != "kind"]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
