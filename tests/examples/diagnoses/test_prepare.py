from collections import Counter

import pytest

from confide.client_node.study.terms import load_draft

from ..conftest import EXAMPLES, are_prepared_alike, checked, rows

pytestmark = pytest.mark.slow


def test_every_text_is_at_one_site_and_in_one_part(prepared):
    directory, report = prepared
    seen = Counter(row["text_id"] for path in directory.rglob("*.csv") for row in rows(path))
    assert set(seen.values()) == {1}
    assert len(seen) == sum(site["units"] + site["heldout_units"] for site in report.values())
    for site in report.values():
        assert site["units"] == len(rows(site["train"]))
        assert site["heldout_units"] == len(rows(site["heldout"]))


def test_codes_of_a_category_stay_together(prepared):
    directory, _ = prepared
    places = {
        (row["text_id"][:3], path.parent.name, path.name) for path in directory.rglob("*.csv") for row in rows(path)
    }
    assert len(places) == len({category for category, _, _ in places})


def test_no_chapter_has_more_than_its_share_and_all_are_there(example, prepared):
    chapters = Counter(row["chapter"] for path in prepared[0].rglob("*.csv") for row in rows(path))
    assert chapters.keys() == set(example.CHAPTERS)
    assert max(chapters.values()) == example.MOST_A_CHAPTER


def test_chapters_are_those_of_the_list(prepared):
    by_letter = {
        "C": "cancer",
        "F": "mind",
        "I": "heart",
        "J": "lungs",
        "O": "pregnancy",
        "S": "injury",
        "V": "accident",
    }
    found = {(row["text_id"][0], row["chapter"]) for path in prepared[0].rglob("*.csv") for row in rows(path)}
    assert {(letter, chapter) for letter, chapter in found if letter in by_letter} == set(by_letter.items())


def test_preparing_again_gives_the_same_bytes(example, prepared, tmp_path):
    assert are_prepared_alike(example, prepared, tmp_path)


def test_the_tables_fit_the_study(prepared):
    draft = load_draft(EXAMPLES / "diagnoses" / "study.toml")
    for site in prepared[1].values():
        for part in ("train", "heldout"):
            report = checked(site[part], draft)
            assert report.is_fit, report.problems
            assert report.rows == report.units
    expected = draft.privacy.sample_rate * sum(site["units"] for site in prepared[1].values())
    assert abs(draft.rounds.batch_units / expected - 1) < 0.02
