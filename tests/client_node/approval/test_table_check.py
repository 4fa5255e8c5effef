import pytest

from confide.client_node.approval.table_check import check_table
from confide.client_node.errors import StudyUnknown


def test_a_table_is_checked_for_a_study_by_name_by_hash_and_by_its_draft(site):
    study, table = site.keep(site.study()), site.home / "patients.csv"
    for text in ("thyroid", study.study_hash[:8], str(site.home.parent / "study.toml")):
        report = check_table(site.home, table, text)
        assert {column.own for column in report.columns} >= {"patient_id", "diagnosis", "tsh_miu_l"}
        assert (report.rows, report.units, report.is_fit) == (4, 3, True)


def test_without_a_study_the_table_alone_is_checked(site):
    report = check_table(site.home, site.home / "patients.csv")
    assert report.is_fit
    assert "not read" in {column.kind for column in report.columns}


def test_a_study_that_is_not_known_is_refused(site):
    with pytest.raises(StudyUnknown):
        check_table(site.home, site.home / "patients.csv", "nothing")
