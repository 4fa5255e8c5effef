"""Makes three hospitals' tables of patients who say a few words, and a public one: tables with sounds beside them.

    python examples/voices/prepare.py DIRECTORY

Writes DIRECTORY/<site>/train.csv and heldout.csv, a row a patient, whose sounds lie in DIRECTORY/<site>/sounds, and
DIRECTORY/public.csv with DIRECTORY/sounds, on which a listener is trained. The hospitals' sounds are people who read
names of things aloud, of Debian's package tuxpaint-stamps-default (GPL-2, for examples and tests only), each made
higher or lower by a factor of its own. Public ones are the synthesiser espeak-ng's, by the package espeakng-loader. A
quarter of the things is held out in all languages: neither a hospital's training nor a public sound says them.
"""

import csv
import random
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent))
sys.path.append(str(Path(__file__).resolve().parents[1]))
from debian import unpacked
from readings import LANGUAGES, as_wav, read, require_packages, spoken, things_of
from splitting import draw, main

SITES = {  # how many of ten speakers of a language come to a hospital
    "north": {"fr": 6, "ca": 5, "es": 2, "ro": 2, "ru": 2, "bg": 3},
    "harbor": {"fr": 2, "ca": 3, "es": 6, "ro": 5, "ru": 2, "bg": 2},
    "valley": {"fr": 2, "ca": 2, "es": 2, "ro": 3, "ru": 6, "bg": 5},
}
PASSPORTS = {  # of speakers of a language; one in three shows none
    "fr": ("france", "france", "belgium", "canada"),
    "ca": ("spain", "spain", "andorra"),
    "es": ("spain", "spain", "mexico", "peru"),
    "ro": ("romania", "romania", "moldova"),
    "ru": ("russia", "russia", "moldova", "bulgaria"),
    "bg": ("bulgaria", "bulgaria", "moldova"),
}
PUBLIC = 6000  # sounds
HELD_OUT = 0.25  # of the things
HIGHER = 0.15  # a voice is made higher or lower by up to so much
FEW, FEW_PUBLIC = 60, 200  # sounds of a hospital's table and of the public one, where few are enough
PACKAGE = "tuxpaint-stamps-default"
STAMPS = Path("usr/share/tuxpaint/stamps")
COLUMNS = ("patient_id", "call", "passport", "language")
OF_ITSELF = "--public"  # said by this file to itself
OF_PUBLIC = "spoken"  # a column of the public table alone
Row = tuple[str, str, str]  # unit, passport, language


def prepare(directory: Path, *, sounds: int | None = None, public: int | None = None) -> dict[str, Any]:
    """Writes the tables and sounds below `directory` and says what is in them.

    Args:
        sounds: of each table of a hospital; None: all that there are readings for.
        public: sounds of the public table; None: `PUBLIC`.

    Returns:
        {site: {"train": path, "heldout": path, "units": n, "heldout_units": n, "files": folder}}.

    Raises:
        FileNotFoundError: the package of readings or a package of Python is not there, with what to do.
        OSError: the synthesiser failed.
    """
    directory = Path(directory)
    require_packages()
    things = list(things_of(stamps(directory)))
    report: dict[str, Any] = {}
    for site, parts in shared_out(things).items():
        folder = directory / site
        for part, readings in parts.items():
            rows = []
            for number, (code, path) in enumerate(readings[:sounds]):
                unit = f"{site}-{part}-{number:04}"
                higher = 1 + HIGHER * (2 * draw(f"higher {unit}".encode()) - 1)
                rows.append(_kept(folder, unit, code, as_wav(read(path, higher=higher))))
            write(folder / f"{part}.csv", rows)
        report[site] = {
            **{part: str(folder / f"{part}.csv") for part in parts},
            "units": len(parts["train"][:sounds]), "heldout_units": len(parts["heldout"][:sounds]),
            "files": str(folder / "sounds"),
        }  # fmt: skip
    # The synthesiser says the same in the same order, but only from its start: so it has a process of its own.
    alone = (sys.executable, __file__, OF_ITSELF, str(directory), str(PUBLIC if public is None else public))
    if subprocess.run(alone).returncode:
        raise OSError("the synthesiser could not say the public sounds; what it said of that stands above")
    return report


def prepare_few(directory: Path) -> dict[str, Any]:
    """Writes tables of few sounds, for a run that only shows that it runs; see `prepare`."""
    return prepare(directory, sounds=FEW, public=FEW_PUBLIC)


def stamps(directory: Path) -> Path:
    """Finds the folder of readings: of the installed package, or of one that is fetched into `directory`.

    Raises:
        FileNotFoundError: there is neither, with what to do.
    """
    for root in (Path("/"), directory / "stamps"):
        if next((root / STAMPS).rglob("*_desc_bg.ogg"), None) is not None:
            return root / STAMPS
    if shutil.which("apt-get") and shutil.which("dpkg-deb") and unpacked(PACKAGE, directory / "stamps"):
        return directory / "stamps" / STAMPS
    raise FileNotFoundError(
        f"the readings were not found: install {PACKAGE} (Debian, Ubuntu), or unpack it in {directory}/stamps"
    )


def is_held_out(thing: str) -> bool:
    """True for one thing in four, by its name."""
    return draw(f"voices {thing}".encode()) < HELD_OUT


def shared_out(things: Iterable[tuple[str, dict[str, Path], Any]]) -> dict[str, dict[str, list[tuple[str, Path]]]]:
    """Shares readings (language, file) out among the sites' tables, each to one patient, in an order that is drawn."""
    found = {site: {"train": list[tuple[str, Path]](), "heldout": list[tuple[str, Path]]()} for site in SITES}
    for thing, readings, _ in things:
        for code, path in readings.items():
            place = 10 * draw(f"hospital {thing} {code}".encode())
            for site, shares in SITES.items():
                if 0 <= place < shares[code]:
                    found[site]["heldout" if is_held_out(thing) else "train"].append((code, path))
                place -= shares[code]
    for site, parts in found.items():
        for part, readings_of in parts.items():
            random.Random(f"order of {site} {part}").shuffle(readings_of)
    return found


def prepare_public(directory: Path, count: int) -> None:
    """Writes the public table and its sounds."""
    things = list(things_of(stamps(directory)))
    write(directory / "public.csv", synthetic(directory, things, count), is_public=True)


def synthetic(directory: Path, things: Iterable[tuple[str, Any, dict[str, str]]], count: int) -> list[Row]:
    """Lets the synthesiser say names of things that are not held out, `count` in all, by one voice after another."""
    texts = [(code, text) for thing, _, own in things if not is_held_out(thing) for code, text in sorted(own.items())]
    rng, rows = random.Random("public voices"), list[Row]()
    while len(rows) < count:
        code, text = rng.choice(texts)
        if (wave := spoken(text, code, rng)) is not None:
            rows.append(_kept(directory, f"public-{len(rows)}", code, as_wav(wave)))
    return rows


def passport(unit: str, code: str) -> str:
    """Draws the country of a patient's passport by the patient's name, or `none`."""
    rng = random.Random(f"passport of {unit}")
    return "none" if rng.random() < 1 / 3 else rng.choice(PASSPORTS[code])


def write(path: Path, rows: Iterable[Row], *, is_public: bool = False) -> None:
    """Writes patients as rows of a table, each with the name of a sound.

    Args:
        is_public: True to write the language once more, from which an ear learns.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow((*COLUMNS, OF_PUBLIC) if is_public else COLUMNS)
        for unit, country, language in rows:
            row = (unit, f"{unit}.wav", country, language)
            table.writerow((*row, language) if is_public else row)


def _kept(folder: Path, unit: str, code: str, wav: bytes) -> Row:
    (folder / "sounds").mkdir(parents=True, exist_ok=True)
    (folder / "sounds" / f"{unit}.wav").write_bytes(wav)
    return unit, passport(unit, code), LANGUAGES[code]


if __name__ == "__main__":
    if sys.argv[1:2] == [OF_ITSELF]:
        prepare_public(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main(prepare, __doc__)
