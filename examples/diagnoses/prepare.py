"""Makes three hospitals' tables from one public list: short diagnosis texts of ICD-10-CM, each with its chapter.

    python examples/diagnoses/prepare.py DIRECTORY

Writes DIRECTORY/<site>/train.csv and heldout.csv. The texts come from the XML file inside the installed package
`simple-icd-10-cm` (MIT licence, `pip install confide[examples]`), which is not imported. No row is about a person.
"""

import csv
import hashlib
import importlib.util
import json
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

SITES = ("north", "south", "west")
# A word of everyday English for each chapter, in the order of the list. Chapters 21 and 22 are not about illness.
CHAPTERS = (
    "infection", "cancer", "blood", "hormones", "mind", "nerves", "eye", "ear", "heart", "lungs", "digestion", "skin",
    "bones", "kidneys", "pregnancy", "newborn", "malformation", "symptom", "injury", "accident",
)  # fmt: skip
COLUMNS = ("text_id", "text", "chapter")
MOST_A_CHAPTER = 400  # texts: half of the list are injuries
HELD_OUT = 0.1
_SALT = "confide diagnoses 1"


@dataclass(frozen=True, slots=True)
class Text:
    """One code of the list."""

    code: str  # unique
    text: str
    chapter: str

    @property
    def category(self) -> str:
        """The first three characters, shared by codes of nearly equal texts."""
        return self.code[:3]

    @property
    def site(self) -> str:
        """By category, so that no site sees another's near copies."""
        return SITES[int(_share(f"site {self.category}") * len(SITES))]

    @property
    def is_held_out(self) -> bool:
        """One category in ten, whole: what is asked about was never seen in other words."""
        return _share(f"held out {self.category}") < HELD_OUT


def prepare(directory: Path) -> dict[str, Any]:
    """Writes the three sites' tables below `directory` and says what is in them.

    Returns:
        {site: {"train": path, "heldout": path, "units": n, "heldout_units": n}}.

    Raises:
        FileNotFoundError: the package `simple-icd-10-cm` is not installed.
    """
    texts, report = read_texts(), {}
    for site in SITES:
        folder = Path(directory) / site
        folder.mkdir(parents=True, exist_ok=True)
        own = [text for text in texts if text.site == site]
        parts = {"train": [t for t in own if not t.is_held_out], "heldout": [t for t in own if t.is_held_out]}
        for part, chosen in parts.items():
            with (folder / f"{part}.csv").open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerows([COLUMNS, *((text.code, text.text, text.chapter) for text in chosen)])
        report[site] = {
            "train": str(folder / "train.csv"),
            "heldout": str(folder / "heldout.csv"),
            "units": len(parts["train"]),
            "heldout_units": len(parts["heldout"]),
        }
    return report


def read_texts() -> list[Text]:
    """At most `MOST_A_CHAPTER` codes of each chapter, chosen and ordered by hash."""
    by_chapter: dict[str, list[Text]] = defaultdict(list)
    for number, chapter in enumerate(ElementTree.parse(_list_file()).iter("chapter")):
        if number < len(CHAPTERS):
            for entry in chapter.iter("diag"):
                code, text = entry.findtext("name", ""), entry.findtext("desc", "")
                by_chapter[CHAPTERS[number]].append(Text(code, text, CHAPTERS[number]))
    chosen = [sorted(texts, key=_place)[:MOST_A_CHAPTER] for texts in by_chapter.values()]
    return sorted((text for texts in chosen for text in texts), key=_place)


def _place(text: Text) -> float:
    return _share(f"place {text.code}")


def _share(label: str) -> float:
    """A number in [0, 1) that looks random and is the same everywhere."""
    return int.from_bytes(hashlib.sha256(f"{_SALT} {label}".encode()).digest()[:6], "big") / 2**48


def _list_file() -> Path:
    found = importlib.util.find_spec("simple_icd_10_cm")
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError("package simple-icd-10-cm is not installed: pip install 'confide[examples]'")
    (path,) = (Path(next(iter(found.submodule_search_locations))) / "data").glob("*.xml")
    return path


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(json.dumps(prepare(Path(sys.argv[1])), indent=2))
