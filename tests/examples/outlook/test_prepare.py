from collections import Counter

import numpy as np
import pytest

from confide.client_node.study.terms import load_draft

from ..conftest import EXAMPLES, are_prepared_alike, are_split_by, checked, rows


def test_the_outcomes_are_what_the_same_person_s_next_record_says(example):
    table = example.read_table()
    years = table[table["person_id"] == "p125024"]
    np.testing.assert_allclose(years["next_cost"].iloc[:-1], np.log10(1 + years["meddol"].iloc[1:]), atol=1e-4)
    assert [bool(stay) for stay in years["next_stay"].iloc[:-1]] == list(years["totadm"].iloc[1:] > 0)
    most = {**example.VISITS, example.VISITS_ABOVE: float("inf")}
    for said, visits in zip(years["next_visits"].iloc[:-1], years["mdvis"].iloc[1:], strict=True):
        assert said == next(words for words, end in most.items() if visits <= end)


def test_no_outcome_is_a_column_that_is_read_and_two_sites_have_no_stays(example, prepared):
    draft = load_draft(EXAMPLES / "outlook" / "study.toml")
    assert not {*example.OUTCOMES} & {*draft.data.fields()}
    for site, paths in prepared[1].items():
        has = tuple(rows(paths["train"])[0].keys())
        assert has == (example.COLUMNS[:-1] if site in example.WITHOUT_STAYS else example.COLUMNS)
    assert {*draft.data.tasks["stay"].sites} == {*prepared[1]} - {*example.WITHOUT_STAYS}


def test_persons_are_held_out_as_in_rand(example, prepared):
    assert are_split_by(example.rand.is_held_out, prepared[1], "person_id")


def test_preparing_twice_writes_the_same_bytes(example, prepared, tmp_path):
    assert are_prepared_alike(example, prepared, tmp_path)


@pytest.mark.parametrize("part", ["train", "heldout"])
def test_a_site_can_use_its_table_without_renaming_anything(prepared, part):
    draft = load_draft(EXAMPLES / "outlook" / "study.toml")
    said = Counter()
    for site, paths in prepared[1].items():
        report = checked(paths[part], draft, site=site)
        assert report.is_fit, (site, report.problems)
        said.update(row["next_visits"] for row in rows(paths[part]))
    assert said.keys() == {*draft.data.tasks["visits"].classes}
