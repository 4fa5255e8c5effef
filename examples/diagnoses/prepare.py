"""Makes three hospitals' tables from one public list: short diagnosis texts of ICD-10-CM, each with its chapter.

    python examples/diagnoses/prepare.py DIRECTORY

Writes DIRECTORY/<site>/train.csv and heldout.csv. The texts come from the XML file inside the installed package
`simple-icd-10-cm` (MIT licence, `pip install confide[examples]`), which is not imported. No row is about a person.
"""

import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd

sys.path.append(str(Path(__file__).resolve().parents[1]))
from splitting import draw, main, package_file, write_tables

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


def prepare(directory: Path) -> dict[str, Any]:
    """Writes the three sites' tables below `directory` and says what is in them.

    Returns:
        {site: {"train": path, "heldout": path, "units": n, "heldout_units": n}}.

    Raises:
        FileNotFoundError: the package `simple-icd-10-cm` is not installed.
    """
    return write_tables(directory, read_table(), SITES, COLUMNS, is_held_out)


def read_table() -> pd.DataFrame:
    """At most `MOST_A_CHAPTER` codes of each chapter, chosen and ordered by hash, with `COLUMNS` and `site`.

    The site follows from the code's category, so that no site sees another's near copies.
    """
    table = pd.DataFrame(read_list(), columns=COLUMNS)
    table["site"] = table["text_id"].map(lambda code: SITES[int(_share("site", _category(code)) * len(SITES))])
    place = table["text_id"].map(lambda code: _share("place", code))
    return table.iloc[place.argsort()].groupby("chapter").head(MOST_A_CHAPTER).reset_index(drop=True)


def read_list() -> list[tuple[str, str, str]]:
    """All codes of the list in the first chapters, each with its text and the word for its chapter."""
    return [
        (entry.findtext("name", ""), entry.findtext("desc", ""), word)
        for word, chapter in zip(CHAPTERS, _published().iter("chapter"), strict=False)
        for entry in chapter.iter("diag")
    ]


def read_notes() -> list[str]:
    """All notes of the list: inclusion terms, and what a code excludes or is to be coded with."""
    return [note.text.strip() for note in _published().iter("note") if note.text and note.text.strip()]


def is_held_out(code: str) -> bool:
    """True for one category in ten, whole: what is asked about was never seen in other words."""
    return _share("held out", _category(code)) < HELD_OUT


def _published() -> Any:
    (path,) = package_file("simple_icd_10_cm", "data").glob("*.xml")
    return ElementTree.parse(path)


def _category(code: str) -> str:
    """The first three characters, shared by codes of nearly equal texts."""
    return code[:3]


def _share(purpose: str, name: str) -> float:
    return draw(f"{_SALT} {purpose} {name}".encode())


if __name__ == "__main__":
    main(prepare, __doc__)
