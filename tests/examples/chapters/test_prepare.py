from collections import Counter

import pytest

from confide.client_node.study.terms import load_draft

from ..conftest import EXAMPLES, are_prepared_alike, checked, rows

pytestmark = pytest.mark.slow


def test_public_texts_are_lines_that_no_site_has(example, prepared):
    directory, _ = prepared
    private = {row["text"] for path in directory.rglob("*.csv") for row in rows(path)}
    public = (directory / "public.txt").read_text(encoding="utf-8").splitlines()
    assert len(public) == len(set(public)) == example.PUBLIC_TEXTS
    assert private.isdisjoint(public)
    assert max(map(len, public)) < example.LONGEST


def test_preparing_again_gives_the_same_bytes(example, prepared, tmp_path):
    assert are_prepared_alike(example, prepared, tmp_path)


def test_the_tables_fit_the_study_and_have_all_its_classes(prepared):
    draft = load_draft(EXAMPLES / "chapters" / "study.toml")
    classes = Counter(row["chapter"] for path in prepared[0].rglob("*.csv") for row in rows(path))
    assert classes.keys() == set(draft.data.document.classes)
    for site in prepared[1].values():
        for part in ("train", "heldout"):
            report = checked(site[part], draft)
            assert report.is_fit, report.problems
            assert report.rows == report.units
    expected = draft.privacy.sample_rate * sum(site["units"] for site in prepared[1].values())
    assert abs(draft.rounds.batch_units / expected - 1) < 0.02
