from collections import Counter

import pandas as pd
import pytest

from confide.client_node.study.terms import load_draft

from ..conftest import EXAMPLES, are_prepared_alike, are_split_by, checked, has_round_cut_points, rows


def test_a_person_has_one_file_with_all_records(prepared):
    directory, report = prepared
    owners = {path: Counter(row["person_id"] for row in rows(path)) for path in directory.rglob("*.csv")}
    everybody = Counter(person for records in owners.values() for person in records)
    assert len(everybody) == 5_639
    assert set(everybody.values()) == {1}  # one file each
    assert sum(sum(records.values()) for records in owners.values()) == 14_266
    assert sum(part["units"] + part["heldout_units"] for part in report.values()) == 5_639
    assert sum(part["rows"] + part["heldout_rows"] for part in report.values()) == 14_266


def test_no_person_has_more_records_than_the_study_learns_from(prepared):
    draft = load_draft(EXAMPLES / "rand" / "study.toml")
    most = max(max(Counter(row["person_id"] for row in rows(path)).values()) for path in prepared[0].rglob("train.csv"))
    assert most == draft.data.max_records_per_unit == 4


def test_label_is_the_spending_of_the_same_persons_next_year(example):
    table = example.read_table()
    years = table[table["person_id"] == "p125024"]
    following = list(years["meddol"].iloc[1:] > example.HIGH_COST)
    assert [bool(label) for label in years["high_cost"].iloc[:-1]] == following


def test_split_is_a_function_of_the_person_alone(example, prepared):
    # Computed once with `printf 'confide rand held-out 1\0%s' ID | sha256sum`: first byte below 0x40 is held out.
    known = {"p125024": False, "p125025": False, "p225586": True, "p328374": False, "p526425": True}
    assert {person: example.is_held_out(person) for person in known} == known
    assert are_split_by(example.is_held_out, prepared[1], "person_id")


def test_nothing_of_the_following_year_is_a_column(example, prepared):
    assert tuple(rows(prepared[1]["site-1"]["train"])[0].keys()) == example.COLUMNS


def test_preparing_twice_writes_the_same_bytes(example, prepared, tmp_path):
    assert are_prepared_alike(example, prepared, tmp_path)


def test_cut_points_are_not_quantiles_of_the_table(example):
    table, draft = example.read_table(), load_draft(EXAMPLES / "rand" / "study.toml")
    assert has_round_cut_points(draft, table)
    assert set(draft.data.numeric) == set(example.NUMERIC)


@pytest.mark.parametrize("part", ["train", "heldout"])
def test_a_site_can_use_its_table_without_renaming_anything(prepared, part):
    draft = load_draft(EXAMPLES / "rand" / "study.toml")
    for site, paths in prepared[1].items():
        report = checked(paths[part], draft)
        assert report.is_fit, (site, report.problems)
        assert report.rows_per_unit is not None
        assert report.rows_per_unit[2] <= draft.data.max_records_per_unit
        assert set(pd.read_csv(paths[part])["high_cost"]) == {0, 1}
