from collections import Counter

import pandas as pd
import pytest

from confide.client_node.study.terms import load_draft

from ..conftest import EXAMPLES, are_prepared_alike, are_split_by, checked, rows


def test_every_patient_is_in_exactly_one_file(prepared):
    directory, report = prepared
    ids = Counter(row["patient_id"] for path in directory.rglob("*.csv") for row in rows(path))
    assert len(ids) == 9168  # 9,172 in the package, four with an impossible age
    assert set(ids.values()) == {1}
    assert sum(part["units"] + part["heldout_units"] for part in report.values()) == 9168


def test_report_counts_what_the_files_hold(prepared):
    for site, part in prepared[1].items():
        assert len(rows(part["train"])) == part["units"], site
        assert len(rows(part["heldout"])) == part["heldout_units"], site
        share = part["heldout_units"] / (part["units"] + part["heldout_units"])
        assert 0.22 < share < 0.28, site  # 0.25 within two standard deviations at the smallest site


def test_split_is_a_function_of_the_patient_alone(example, prepared):
    # Computed once with `printf 'confide thyroid held-out 1\0%s' ID | sha256sum`: first byte below 0x40 is held out.
    known = {"840801013": False, "840801042": False, "840803046": False, "840822023": True, "840824015": True}
    assert {patient: example.is_held_out(patient) for patient in known} == known
    assert are_split_by(example.is_held_out, prepared[1], "patient_id")


def test_no_column_gives_the_answer_away(example, prepared):
    header = rows(prepared[1]["rest"]["train"])[0].keys()
    assert tuple(header) == example.COLUMNS
    assert not any("measured" in name or name in ("target", "referral_source") for name in header)


def test_preparing_twice_writes_the_same_bytes(example, prepared, tmp_path):
    assert are_prepared_alike(example, prepared, tmp_path)


def test_flags_stay_as_a_hospital_writes_them(prepared):
    frame = pd.read_csv(prepared[1]["svi"]["train"], dtype=str, keep_default_na=False)
    assert set(frame["sick"]) == {"t", "f"}
    assert set(frame["sex"]) == {"F", "M", ""}
    assert set(frame["diagnosis"]) == {"0", "1"}


@pytest.mark.parametrize("part", ["train", "heldout"])
def test_a_site_can_use_its_table_without_renaming_anything(prepared, part):
    draft = load_draft(EXAMPLES / "thyroid" / "study.toml")
    for site, paths in prepared[1].items():
        report = checked(paths[part], draft)
        assert report.is_fit, (site, report.problems)
        assert report.rows_per_unit == (1, 1.0, 1)
