import json
import subprocess
import sys
from pathlib import Path

import pytest

from confide.client_node.data import check
from confide.client_node.data.fhir_draft import look
from confide.client_node.study.terms import load_draft
from confide.coordinator.studies.held_out import described_policies

from ..conftest import EXAMPLES

pytestmark = [pytest.mark.slow, pytest.mark.process]


@pytest.fixture(scope="module")
def prepared(example, tmp_path_factory):
    """The hospitals of a smoke run, of some forty patients each."""
    directory = tmp_path_factory.mktemp("fhir")
    return directory, example.prepare_few(directory)


def resources(folder):
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.ndjson"))]
    return [json.loads(line) for text in texts for line in text.split("\n") if line]


def patient_of(resource):
    if resource["resourceType"] == "Patient":
        return resource["id"]
    return resource["subject"]["reference"].removeprefix("Patient/")


def test_a_patient_is_in_one_part_with_all_that_is_about_the_patient(example, prepared):
    directory, report = prepared
    assert list(report) == list(example.SITES)
    for site, told in report.items():
        for part, count in (("train", told["units"]), ("heldout", told["heldout_units"])):
            found = resources(directory / site / part)
            patients = [each["id"] for each in found if each["resourceType"] == "Patient"]
            assert len(patients) == len(set(patients)) == count > 0
            assert {patient_of(each) for each in found} <= set(patients)
            assert {example.is_held_out(own) for own in patients} == {part == "heldout"}


def test_a_hospital_is_the_same_every_time_and_no_other_s(example, prepared, tmp_path):
    directory, _ = prepared
    population, seed = example.FEW["south"]
    command = [sys.executable, EXAMPLES / "fhir" / "hospital.py", tmp_path, str(population), str(seed)]
    subprocess.run(command, check=True, capture_output=True)
    made = sorted(path.name for path in tmp_path.iterdir())
    assert made == ["Condition.ndjson", "MedicationRequest.ndjson", "Observation.ndjson", "Patient.ndjson"]
    for name in made:
        train, held_out = (
            (directory / "south" / part / name).read_text().splitlines() for part in ("train", "heldout")
        )
        assert sorted((tmp_path / name).read_text().splitlines()) == sorted(train + held_out)
    people = [(directory / site / "train" / "Patient.ndjson").read_text().splitlines() for site in ("north", "south")]
    assert not {*people[0]} & {*people[1]}  # ids begin anew in every hospital, persons do not


def test_a_site_reads_its_export_by_its_own_description(prepared):
    draft = load_draft(EXAMPLES / "fhir" / "study.toml")
    for site, told in prepared[1].items():
        for policy, units in zip(
            described_policies(Path(told["records"])), (told["units"], told["heldout_units"]), strict=True
        ):
            report = check(policy.data.source, policy, draft, site=site, both_classes=False)
            assert report.is_fit, (site, report.problems)
            assert report.units == units
            assert policy.data.name == f"fhir-{site}"


def test_every_column_of_the_study_is_described_in_the_unit_of_its_cut_points(example):
    described = described_policies(EXAMPLES / "fhir" / "records.toml")[0].data.fhir.columns
    terms = load_draft(EXAMPLES / "fhir" / "study.toml").data
    assert described.keys() == {column.name for column in terms.kind.columns(terms.terms)}
    cuts = (EXAMPLES / "fhir" / "study.toml").read_text().splitlines()
    for name, column in described.items():
        if column.observation is not None:
            (line,) = [line for line in cuts if line.startswith(f"{name} = [")]
            assert line.endswith(f"# {column.unit}")


def test_codes_of_the_description_occur_in_every_hospital_of_a_smoke_run(prepared):
    directory, _ = prepared
    for site in prepared[1]:
        codes = {code.code for code in look(directory / site / "train").codes}
        assert {"http://loinc.org|2160-0", "http://loinc.org|8480-6"} <= codes
