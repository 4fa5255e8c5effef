"""Makes three hospitals' tables of doses by a protocol that only they know, and a table of public mathematics.

    python examples/derivations/prepare.py DIRECTORY

Writes DIRECTORY/<site>/train.csv and heldout.csv, a row a patient, and DIRECTORY/public.csv, on which a backbone is
trained. A patient is held out if the question is, at all hospitals: no training record has it. All rows are generated;
weights, stages and protocols are invented: never dose by them.
"""

import csv
import itertools
import random
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent))
sys.path.append(str(Path(__file__).resolve().parents[1]))
from chains import PROTOCOLS, Problem, by_protocol, is_held_out, problems
from splitting import main

SITES = {"north": "ABCDE", "harbor": "CDEFG", "valley": "AFGHB"}  # the drugs that a hospital gives
PATIENTS = 3000  # of a hospital
PUBLIC = 80_000  # rows
COLUMNS = ("question", "derivation", "answer")


def prepare(directory: Path) -> dict[str, Any]:
    """Writes the tables below `directory` and says what is in them.

    Returns:
        {site: {"train": path, "heldout": path, "units": n, "heldout_units": n, "drugs": letters}}.
    """
    report = {}
    for site, drugs in SITES.items():
        rng = random.Random(f"patients at {site}")
        rows = []
        for number in range(PATIENTS):
            patient = f"{site}-{number:04}"
            problem = by_protocol(rng.choice(drugs), rng.randint(3, 120), rng.randint(1, 4))
            rows.append((patient, problem))
        parts: dict[str, list[tuple[str, Problem]]] = {"train": [], "heldout": []}
        for row in rows:
            parts["heldout" if is_held_out(row[1].question) else "train"].append(row)
        for part, chosen in parts.items():
            write(Path(directory) / site / f"{part}.csv", chosen)
        report[site] = {
            **{part: str(Path(directory) / site / f"{part}.csv") for part in parts},
            "units": len(parts["train"]), "heldout_units": len(parts["heldout"]), "drugs": drugs,
        }  # fmt: skip
    write(Path(directory) / "public.csv", public_rows(PUBLIC))
    return report


def public_rows(count: int) -> list[tuple[str, Problem]]:
    """Draws problems of all public families, none of which is among those that are held out for tests."""
    return [
        (f"public-{number}", each) for number, each in enumerate(itertools.islice(problems(1, held_out=False), count))
    ]


def write(path: Path, rows: Iterable[tuple[str, Problem]]) -> None:
    """Writes problems as rows of a table, each with the id of its patient."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("patient_id", *COLUMNS))
        table.writerows((unit, each.question, each.derivation, each.answer) for unit, each in rows)


if __name__ == "__main__":
    assert {drug for drugs in SITES.values() for drug in drugs} == set(PROTOCOLS)
    main(prepare, __doc__)
