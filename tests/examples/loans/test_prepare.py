import csv
import importlib.util
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from confide.client_node.data import check
from confide.client_node.draft import load_draft
from confide.client_node.policy import SitePolicy

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "loans"
LEAKS = {
    "grade", "sub_grade", "interest_rate", "installment", "balance", "paid_total", "paid_principal", "paid_interest",
    "paid_late_fees", "loan_status", "initial_listing_status", "disbursement_method", "issue_month", "state",
}  # fmt: skip


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("loans_prepare", EXAMPLE / "prepare.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def prepared(example, tmp_path_factory):
    directory = tmp_path_factory.mktemp("loans")
    return directory, example.prepare(directory)


def rows(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


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
    for part in prepared[1].values():
        assert all(example.is_held_out(row["borrower_id"]) for row in rows(part["heldout"]))
        assert not any(example.is_held_out(row["borrower_id"]) for row in rows(part["train"]))


def test_preparing_twice_writes_the_same_bytes(example, prepared, tmp_path):
    example.prepare(tmp_path)
    for path in prepared[0].rglob("*.csv"):
        assert path.read_bytes() == (tmp_path / path.relative_to(prepared[0])).read_bytes()


def test_cut_points_are_round_numbers_within_the_range_of_their_column(example):
    table, draft = example.read_table(), load_draft(EXAMPLE / "study.toml")
    for name, cuts in draft.data.numeric.items():
        assert all(cut == float(f"{cut:.4g}") for cut in cuts), name
        assert min(cuts) <= table[name].max(), name
    assert set(draft.data.numeric) == set(example.NUMERIC)


@pytest.mark.parametrize("part", ["train", "heldout"])
def test_a_site_can_use_its_table_without_renaming_anything(prepared, part):
    draft = load_draft(EXAMPLE / "study.toml")
    for site, paths in prepared[1].items():
        path = Path(paths[part])
        data = {"path": str(path), "name": "loans", "unit": "borrower", "unit_column": "borrower_id"}
        budget = {"epsilon": 3.0, "delta": 1e-5, "collusion": 1}
        policy = SitePolicy.model_validate({"data": data, "budget": budget, "backbone": {"directory": "backbone"}})
        report = check(path, policy, draft)
        assert report.is_fit, (site, report.problems)
        assert report.rows_per_unit == (1, 1.0, 1)
        assert set(pd.read_csv(path)["high_risk"]) == {0, 1}
