import pytest

from confide.client_node.study.terms import load_draft

from ..conftest import EXAMPLES, are_prepared_alike, checked, rows

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def few(example):
    """The example with fewer public rows."""
    example.PUBLIC = 300
    return example


@pytest.fixture(scope="module")
def prepared(few, tmp_path_factory):
    directory = tmp_path_factory.mktemp(few.__name__)
    return directory, few.prepare(directory)


def test_preparing_again_gives_the_same_bytes(few, prepared, tmp_path):
    assert are_prepared_alike(few, prepared, tmp_path)


def test_the_tables_fit_the_study(prepared):
    directory, report = prepared
    draft = load_draft(EXAMPLES / "derivations" / "study.toml")
    assert set(report) == set(draft.participants.sites)
    assert sum(site["units"] for site in report.values()) * draft.privacy.sample_rate == pytest.approx(
        draft.rounds.batch_units, rel=0.01
    )
    for site in report.values():
        for part in ("train", "heldout"):
            assert checked(site[part], draft).is_fit
    assert checked(directory / "public.csv", draft).is_fit


def test_a_row_is_a_patient_of_a_drug_that_the_hospital_gives(prepared):
    _, report = prepared
    patients = []
    for site in report.values():
        own = rows(site["train"]) + rows(site["heldout"])
        assert len(rows(site["train"])) == site["units"]
        assert {row["question"][0] for row in own} == set(site["drugs"])
        patients += [row["patient_id"] for row in own]
    assert len(patients) == len(set(patients)) == 3 * 3000


def test_no_hospital_gives_all_drugs(prepared):
    _, report = prepared
    drugs = {site: set(facts["drugs"]) for site, facts in report.items()}
    together = set().union(*drugs.values())
    assert all(own < together for own in drugs.values())


def test_public_rows_are_of_no_family_of_the_hospitals(prepared):
    directory, report = prepared
    public = {row["question"] for row in rows(directory / "public.csv")}
    private = {row["question"] for site in report.values() for part in ("train", "heldout") for row in rows(site[part])}
    assert len(public) > 250
    assert public.isdisjoint(private)
