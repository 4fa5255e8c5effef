"""Times the privacy ledger: charging, opening, reporting, composing.

    python benchmarks/ledger.py [--full] [--json]

Long ledgers have really signed entries and are written to disk by the call that `budget import` makes. A pair is a
noise multiplier with a sample rate. Times are processor time, which other programs on the machine change little; beside
it is the wall time of a charge, which waits for the disk and for other programs. --full adds the opening of 100,000
entries, which take minutes to make.
"""

import argparse
import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confide.privacy.accounting import Release, composition, epsilon_pld
from confide.privacy.ledger import canonical, chain
from confide.privacy.ledger.chain import START, Entry, Head
from confide.privacy.ledger.charges import FORMAT, Books, Budget, Charge, Opening
from confide.privacy.ledger.ledger import Ledger, check_extension
from confide.privacy.report import statement
from confide.privacy.report.build import SiteLedger, build_report, render_html
from confide.privacy.report.verify import verify

SITES = ("east", "north", "south", "west")
BUDGET = Budget(dataset="patients", unit="patient", epsilon=60.0, delta=1e-5, collusion=1)
TIME = "2026-03-01T09:00:00Z"
CHARGES = 30  # measured after each length


def main() -> None:
    """Measures and prints everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="open 100,000 entries as well")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, Any] = {
            "machine": f"{platform.machine()}, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}",
            "charges": [
                charging(Path(folder), earlier, pairs) for pairs in (3, 120) for earlier in (100, 1_000, 10_000)
            ],
            "openings": [opening(Path(folder), entries) for entries in (10_000, *([100_000] if options.full else []))],
            "statements": [stating(charges) for charges in (10_000, 1_000_000)],
            "compositions": [composing(pairs) for pairs in (1, 10, 50, 120, 250)],
            "report": reporting(Path(folder)),
        }
    if options.json:
        print(json.dumps(found, indent=2))
        return
    for part, rows in found.items():
        print(f"\n{part}")
        for row in rows if isinstance(rows, list) else [rows]:
            print("  " + (row if isinstance(row, str) else ", ".join(f"{name} {value}" for name, value in row.items())))


def charging(folder: Path, earlier: int, pairs: int) -> dict[str, Any]:
    """Milliseconds that one more charge takes after `earlier` ones over so many distinct `pairs`."""
    path = made(folder, earlier, pairs)
    with Ledger.open(path, signer(), "east") as ledger:
        run = iter(range(CHARGES + 1))
        first = seconds(lambda: ledger.reserve(charge(next(run), pairs, 0)))
        reserves, settles, waited = [], [], []
        for number in run:
            start = time.perf_counter()
            reserves.append(seconds(lambda number=number: ledger.reserve(charge(number, pairs, 0))))
            waited.append(time.perf_counter() - start)
            settles.append(seconds(lambda number=number: ledger.settle("run-new", number, SITES)))
        spent = ledger.spent("patients", "patient", 1, 1e-5).pld
    return {
        "earlier charges": earlier,
        "pairs": pairs,
        "first ms": ms(first),
        "median ms": ms(median(reserves)),
        "worst ms": ms(max(reserves)),
        "median wall ms": ms(median(waited)),
        "settle ms": ms(median(settles)),
        "epsilon": round(spent, 2),
    }


def opening(folder: Path, entries: int) -> dict[str, Any]:
    """Seconds that taking up a ledger of so many entries takes, and checking all its signatures beside."""
    path = made(folder, entries - 2, 3)
    holder: list[Ledger] = []
    taken = seconds(lambda: holder.append(Ledger.open(path, signer(), "east")))
    with holder[0] as ledger:
        read = ledger.entries()
        checked = seconds(lambda: check_extension(START, read, ledger.public_key))
        size = path.stat().st_size
    return {
        "entries": entries,
        "open s": round(taken, 2),
        "all signatures beside s": round(checked, 2),
        "MB": round(size / 1e6, 1),
    }


def stating(charges: int) -> dict[str, Any]:
    """Seconds that the figures of a report over so many charges take, first without anything in a cache."""
    books = Books()
    start = time.process_time()
    for entry in entries_of(charges, 3, spread=charges / 1000):
        books.apply(entry)
    kept = time.process_time() - start
    taken = seconds(lambda: statement.accounts(books))
    again = seconds(lambda: statement.accounts(books))
    account = statement.accounts(books)[0]
    return {
        "charges": charges,
        "kept s": round(kept, 1),
        "statement s": round(taken, 3),
        "again s": round(again, 3),
        "epsilon": round(account.spent[1].pld, 3),
    }


def composing(pairs: int) -> dict[str, Any]:
    """Milliseconds that epsilon over so many distinct pairs takes: from nothing, and with one release more."""
    counts = {release(6.0 + pairs / 1000 + number / 40, 0.02): 40 for number in range(pairs)}
    cold = seconds(lambda: epsilon_pld(counts, 1e-5, 1))
    more = []
    for number in range(5):
        counts[list(counts)[number * 7 % pairs]] += 1
        more.append(seconds(lambda: epsilon_pld(counts, 1e-5, 1)))
    return {"pairs": pairs, "cold ms": ms(cold), "one more ms": ms(median(more))}


def reporting(folder: Path) -> dict[str, Any]:
    """Seconds for a report of four sites with 40 settled releases each, its page, and verifying it."""
    sites = {}
    for seed, site in enumerate(SITES, start=2):
        with Ledger.open(folder / f"{site}.db", signer(seed), site) as ledger:
            ledger.set_budget(BUDGET)
            for number in range(40):
                ledger.reserve(charge(number, 3, 1))
                ledger.settle("run-new", number, SITES)
            sites[site] = SiteLedger(ledger.public_key, ledger.entries())
    built: list[dict[str, Any]] = []
    build = seconds(lambda: built.append(build_report("benchmark", sites, [], signer(9))))
    page = seconds(lambda: render_html(built[0]))
    check = seconds(lambda: verify(built[0]).ok or exit("the report does not hold"))
    return {"build s": round(build, 2), "page s": round(page, 2), "verify s": round(check, 2)}


def made(folder: Path, charges: int, pairs: int) -> Path:
    """A ledger on disk with a budget and so many charges, as `budget import` puts it there."""
    path = folder / f"{charges}-{pairs}.db"
    if not path.exists():
        Ledger.restore(path, signed(entries_of(charges, pairs)), signer(), "east")
    return path


def entries_of(charges: int, pairs: int, *, spread: float = 10.0) -> Iterator[Entry]:
    """A ledger's contents with no chain yet: opening, budget, then charges, pair after pair like studies in a row."""
    bodies = [
        ("open", canonical.to_record(Opening(format=FORMAT, site="east", public_key=canonical.public_hex(signer())))),
        ("budget", canonical.to_record(BUDGET)),
    ]
    for seq, (kind, body) in enumerate(bodies):
        yield bare(seq, kind, body)
    body = {}
    for number in range(charges):
        pair = number * pairs // charges
        if number == 0 or pair != (number - 1) * pairs // charges:
            body = canonical.to_record(charge(0, pairs, pair, run=f"run-{pair}", spread=spread))
        yield bare(number + 2, "reserve", body | {"round": number})


def bare(seq: int, kind: str, body: dict[str, Any]) -> Entry:
    """An entry that nobody has signed."""
    return Entry.model_construct(
        seq=seq, time=TIME, kind=kind, body=body, previous="0" * 64, hash="0" * 64, signature="0" * 128
    )


def signed(entries: Iterator[Entry]) -> Iterator[Entry]:
    """The same contents, chained and signed."""
    head = START
    for entry in entries:
        full = chain.extend(head, signer(), entry.time, entry.kind, entry.body)
        head = Head(full.seq, full.hash)
        yield full


def charge(number: int, pairs: int, pair: int, *, run: str = "run-new", spread: float = 10.0) -> Charge:
    """One round of a study with the noise of `pair`; `spread` makes room for so many times as many rounds."""
    return Charge(
        study=f"{pair:064x}",
        run=run,
        round=number,
        dataset="patients",
        unit="patient",
        cohort=SITES,
        release=release((1.5 + pair / pairs) * math.sqrt(spread), 0.02),
    )


def release(multiplier: float, rate: float) -> Release:
    """A sum over four sites that shows this multiplier to an observer who knows one site's noise."""
    noise = composition.site_noise(multiplier, 1.0, len(SITES), 0, 1, 24, "distributed")
    return Release(
        mode="distributed",
        site_noise_int=noise,
        scale_bits=24,
        clip_norm=1.0,
        dim=16_513,
        sample_rate=rate,
        sites=len(SITES),
    )


def signer(seed: int = 1) -> Ed25519PrivateKey:
    """A key for a benchmark."""
    return Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)


def seconds(work: Callable[[], object]) -> float:
    """Processor time of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def ms(taken: float) -> float:
    """Milliseconds, to show."""
    return round(taken * 1000, 1)


if __name__ == "__main__":
    main()
