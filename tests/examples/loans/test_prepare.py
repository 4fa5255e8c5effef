from collections import Counter

import pandas as pd
import pytest

from confide.client_node.study.terms import load_draft

from ..conftest import EXAMPLES, are_prepared_alike, are_split_by, checked, has_round_cut_points, rows

LEAKS = {
    "grade", "sub_grade", "interest_rate", "installment", "balance", "paid_total", "paid_principal", "paid_interest",
    "paid_late_fees", "loan_status", "initial_listing_status", "disbursement_method", "issue_month", "state",
}  # fmt: skip


def test_every_borrower_is_in_exactly_one_file(prepared):
    directory, report = prepared
    ids = Counter(row["borrower_id"] for path in directory.rglob("*.csv") for row in rows(path))
    assert len(ids) == 10_000
    assert set(ids.values()) == {1}
    assert sum(part["units"] + part["heldout_units"] for part in report.values()) == 10_000


def test_every_state_belongs_to_one_region(example):
    assert len(example.REGION) == 51  # fifty states and the District of Columbia
    assert set(example.REGION.values()) == set(example.SITES)
    assert not example.read_table()["site"].isna().any()


def test_no_column_follows_from_the_risk_grade(example, prepared):
    header = rows(prepared[1]["west"]["train"])[0].keys()
    assert tuple(header) == example.COLUMNS
    assert not LEAKS & set(header)


def test_split_is_a_function_of_the_loan_alone(example, prepared):
    # Computed once with `printf 'confide loans held-out 1\0%s' ID | sha256sum`: first byte below 0x40 is held out.
    known = {"loan-1": False, "loan-2": True, "loan-3": False, "loan-4": False, "loan-6": True}
    assert {borrower: example.is_held_out(borrower) for borrower in known} == known
    assert are_split_by(example.is_held_out, prepared[1], "borrower_id")


def test_preparing_twice_writes_the_same_bytes(example, prepared, tmp_path):
    assert are_prepared_alike(example, prepared, tmp_path)


def test_cut_points_are_round_numbers_within_the_range_of_their_column(example):
    table, draft = example.read_table(), load_draft(EXAMPLES / "loans" / "study.toml")
    assert has_round_cut_points(draft, table)
    assert set(draft.data.numeric) == set(example.NUMERIC)


@pytest.mark.parametrize("part", ["train", "heldout"])
def test_a_site_can_use_its_table_without_renaming_anything(prepared, part):
    draft = load_draft(EXAMPLES / "loans" / "study.toml")
    for site, paths in prepared[1].items():
        report = checked(paths[part], draft)
        assert report.is_fit, (site, report.problems)
        assert report.rows_per_unit == (1, 1.0, 1)
        assert set(pd.read_csv(paths[part])["high_risk"]) == {0, 1}
