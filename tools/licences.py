"""Writes docs/licences.md: the licence of every locked package, as its own metadata names it.

Run by `make licences` in the environment that the lock was made from. A package that is not installed there (those for
a GPU) is listed as such: nothing is guessed.
"""

import importlib.metadata
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCKS = ("requirements-lock.txt", "requirements-lock-cuda.txt")
PAGE = ROOT / "docs" / "licences.md"
PERMISSIVE = re.compile(
    r"(?:MIT(?:-0|-CMU)?|BSD|Apache|ISC|PSF|Python Software Foundation|Zlib|0BSD|HPND|Unlicense|CC0|BlueOak)", re.I
)
OTHER = re.compile(r"(?<![A-Z])(?:A?GPL|LGPL|MPL|EUPL|EPL|CDDL|GNU|Mozilla|NVIDIA|Proprietary)", re.I)
HEAD = """# Licences

What runs with confide, as locked in `requirements-lock.txt` and `requirements-lock-cuda.txt`, with the licence that
each package's own metadata names. confide is Apache-2.0, its copy of CrypTen MIT. Written by `make licences`; nobody
has read the texts for it. **Look** marks what is not plainly permissive: read it before you hand an installation on.

| package | version | licence |
|---|---|---|
"""


def locked() -> dict[str, str]:
    """Versions of the locked packages by their names."""
    found = {}
    for lock in LOCKS:
        found |= dict(re.findall(r"^([a-z0-9][\w.-]*)==([\w.+!-]+)", (ROOT / lock).read_text(), re.MULTILINE))
    return dict(sorted(found.items()))


def licence_of(name: str) -> str:
    """The licence in an installed package's metadata, in one line; empty if it is not installed or names none."""
    try:
        told = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
    classifiers = [
        each.rpartition(" :: ")[2] for each in told.get_all("Classifier", []) if each.startswith("License :: OSI")
    ]
    stated = (told.get("License-Expression") or "").strip() or ", ".join(classifiers) or (told.get("License") or "")
    return stated.strip().splitlines()[0][:80] if stated.strip() else ""


def row(name: str, version: str) -> str:
    """A line of the table."""
    licence = licence_of(name)
    if not licence:
        return f"| {name} | {version} | **Look**: not installed where this page was made, or it names none |\n"
    plain = PERMISSIVE.search(licence) and not OTHER.search(licence)
    return f"| {name} | {version} | {'' if plain else '**Look**: '}{licence} |\n"


def page() -> str:
    """The whole page."""
    return HEAD + "".join(row(name, version) for name, version in locked().items())


if __name__ == "__main__":
    PAGE.write_text(page())
