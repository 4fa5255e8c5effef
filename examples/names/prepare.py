"""Makes six offices' customer tables from one public dictionary: first names, and the form of address of each.

    python examples/names/prepare.py DIRECTORY

Writes DIRECTORY/<site>/train.csv and heldout.csv. The rows come from `nam_dict.txt` inside the installed package
`gender-guesser` 0.4.0 (dictionary by Jörg Michael, GNU Free Documentation License), which is not imported.
"""

import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

sys.path.append(str(Path(__file__).resolve().parents[1]))
from splitting import draw, main, package_file, write_tables

LETTERS = "abcdefghijklmnopqrstuvwxyz'- "
# Columns of the dictionary, one a country in its own order, by who would have the customers.
SITES = {
    "british": (*range(0, 3),),
    "romance": (*range(3, 9), 27),
    "german": (*range(9, 15),),
    "nordic": (*range(15, 23),),
    "slavic": (*range(23, 27), *range(28, 42)),
    "east": (*range(42, 55),),
}
COLUMNS = ("name", "is_female")
HELD_OUT = 0.25
_SALT = b"x"
_COUNTRIES = slice(30, 85)  # of a line: a hexadecimal digit a country, log2 of how common the name is there
_SPELT_OUT = str.maketrans(
    {"ß": "ss", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "đ": "d", "Đ": "D", "æ": "ae", "Æ": "Ae", "ı": "i", "þ": "th",
     "Þ": "Th", "ð": "d", "+": "-"}
)  # fmt: skip


def prepare(directory: Path) -> dict[str, Any]:
    """Writes the sites' tables below `directory` and says what is in them.

    Returns:
        {site: {"train": path, "heldout": path, "units": n, "heldout_units": n, "female": share}}.

    Raises:
        FileNotFoundError: the package `gender-guesser` is not installed.
    """
    return write_tables(directory, read_table(), SITES, COLUMNS, is_held_out, female="is_female")


def read_table() -> pd.DataFrame:
    """Every spelling once, sorted, with `is_female` and the site where it is most common.

    Unisex and mostly-one-sex entries are left out, as are spellings that one country gives to women and another to men
    and spellings of fewer than two letters. Accents are dropped, so that all names share 29 characters.
    """
    weights: dict[str, dict[str, list[int]]] = {}
    for sex, name, commonness in _entries(package_file("gender_guesser", "data", "nam_dict.txt")):
        spelling = plain(name)
        if sex in ("M", "F") and len(spelling) >= 2:
            known = weights.setdefault(spelling, {}).setdefault(sex, [0] * len(commonness))
            weights[spelling][sex] = [old + new for old, new in zip(known, commonness, strict=True)]
    rows = []
    for spelling, by_sex in sorted(weights.items()):
        (sex, commonness), *others = by_sex.items()
        if not others and any(commonness):
            rows.append((spelling, int(sex == "F"), _home(commonness)))
    return pd.DataFrame(rows, columns=[*COLUMNS, "site"])


def plain(name: str) -> str:
    """Lower case without accents, in `LETTERS` alone."""
    decomposed = unicodedata.normalize("NFKD", name.translate(_SPELT_OUT))
    return "".join(letter for letter in decomposed.lower() if letter in LETTERS)


def is_held_out(name: str) -> bool:
    """True for about one name in four."""
    return draw(_SALT + name.encode()) < HELD_OUT


def _entries(path: Path) -> Iterator[tuple[str, str, list[int]]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            if not line.startswith("#"):
                digits = line[_COUNTRIES].ljust(55)
                commonness = [int(digit, 16) if digit in "123456789ABCD" else 0 for digit in digits]
                yield line[:2].strip(), line[3:29].strip(), commonness


def _home(commonness: list[int]) -> str:
    share = {site: sum(2 ** commonness[c] for c in countries if commonness[c]) for site, countries in SITES.items()}
    return max(share, key=lambda site: share[site])


if __name__ == "__main__":
    main(prepare, __doc__)
