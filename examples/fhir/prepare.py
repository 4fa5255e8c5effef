"""Makes up three hospitals, each with its own FHIR R4 Bulk Data export, and splits off the patients that are held out.

    python examples/fhir/prepare.py DIRECTORY

Writes for each hospital DIRECTORY/<site>/train and heldout, two exports of different patients, and records.toml, the
`[data]` of its site.toml. The package `clinosim` (MIT licence, `pip install confide[examples]`) makes the patients up
from a seed: nobody in these records lives.
"""

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))
from splitting import draw, main

HERE = Path(__file__).resolve().parent
# Site -> people around the hospital, of whom some 56 % become its patients, and the seed.
SITES = {"north": (3600, 1), "south": (2400, 2), "west": (1200, 3)}
FEW = {site: (80, seed) for site, (_, seed) in SITES.items()}
PARTS = ("train", "heldout")
HELD_OUT = 0.25
_SALT = b"confide fhir held-out 1"


def prepare(directory: Path) -> dict[str, Any]:
    """Writes the hospitals' exports below `directory`, which takes minutes, and says what is in them.

    A patient is held out by the SHA-256 of a salt and the patient's id alone, with all that is about the patient.

    Returns:
        {site: {"train": folder, "heldout": folder, "records": path, "units": n, "heldout_units": n}}.

    Raises:
        FileNotFoundError: the package `clinosim` is not installed.
    """
    return _prepared(directory, SITES)


def prepare_few(directory: Path) -> dict[str, Any]:
    """Does the same with some forty patients a hospital."""
    return _prepared(directory, FEW)


def is_held_out(patient: str) -> bool:
    """True for about one patient in four."""
    return draw(_SALT + b"\0" + patient.encode()) < HELD_OUT


def _prepared(directory: Path, sites: dict[str, tuple[int, int]]) -> dict[str, Any]:
    report = {}
    for site, (population, seed) in sites.items():
        folder = Path(directory).resolve() / site
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder) as scratch:
            _make_up(Path(scratch), population, seed)
            counts = {part: _write_part(Path(scratch), folder / part, part == "heldout") for part in PARTS}
        records = folder / "records.toml"
        records.write_text(_described(site, folder), encoding="utf-8")
        report[site] = {
            **{part: str(folder / part) for part in PARTS},
            "records": str(records),
            "units": counts["train"],
            "heldout_units": counts["heldout"],
        }
    return report


def _make_up(export: Path, population: int, seed: int) -> None:
    """Has a process of its own make a hospital up.

    Raises:
        FileNotFoundError: the package `clinosim` is not installed.
        RuntimeError: it failed, and what it said last.
    """
    command = [sys.executable, str(HERE / "hospital.py"), str(export), str(population), str(seed)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        last = ended.stderr.strip().rpartition("\n")[2]
        if "No module named 'clinosim'" in last:
            raise FileNotFoundError("package clinosim is not installed: pip install 'confide[examples]'")
        raise RuntimeError(f"clinosim made no hospital: {last}")


def _described(site: str, folder: Path) -> str:
    """Returns this folder's records.toml for one hospital, with whole paths."""
    text = (HERE / "records.toml").read_text(encoding="utf-8").replace('"hospital"', f'"fhir-{site}"')
    for part in PARTS:
        text = text.replace(f'"{part}"', json.dumps(str(folder / part)))
    return text


def _write_part(export: Path, folder: Path, is_for_held_out: bool) -> int:
    """Writes the patients of one part with all that is about them; returns their number."""
    folder.mkdir(exist_ok=True)
    patients = 0
    for path in sorted(export.glob("*.ndjson")):
        with path.open(encoding="utf-8") as lines, (folder / path.name).open("w", encoding="utf-8") as out:
            for line in lines:
                resource = json.loads(line)
                is_patient = resource["resourceType"] == "Patient"
                own = resource["id"] if is_patient else resource["subject"]["reference"].removeprefix("Patient/")
                if is_held_out(own) == is_for_held_out:
                    out.write(line)
                    patients += is_patient
    return patients


if __name__ == "__main__":
    main(prepare, __doc__)
