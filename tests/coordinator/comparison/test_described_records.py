"""A comparison of records that are no table in a file: each site's folder describes them as its site.toml would."""

import shutil

import numpy as np
import pytest

from confide.client_node.errors import PolicyInvalid
from confide.coordinator.comparison.task import read_task
from confide.coordinator.errors import StudyRefused

from ...client_node.data.test_fhir import MAPPING, condition, export, observation, patient
from ..conftest import SITES
from .test_ladder import draft_at, write_records

DATA = '[data]\nname = "own"\nunit = "patient"\n'


def describe(folder, site, text):
    path = folder / site / "records.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(DATA + text)
    return path


def described_export(folder, site, number):
    """Ten patients in training and four held out, every other one ill."""
    for part, people in (("train", 10), ("heldout", 4)):
        own = [f"p{number}-{part}-{each}" for each in range(people)]
        (folder / site).mkdir(parents=True, exist_ok=True)
        export(
            folder / site / part, *map(patient, own), *(observation(each, 2.5) for each in own),
            *(condition(each) for each in own[::2]),
        )  # fmt: skip
    columns = "\n".join(
        f"{name} = {{ " + ", ".join(f"{key} = {str(value)!r}" for key, value in stated.items()) + " }"
        for name, stated in MAPPING.items() if name != "diagnosis"
    )  # fmt: skip
    text = (
        'unit_column = "patient"\n[data.fhir]\nfolder = "train"\nheldout_folder = "heldout"\n[data.fhir.columns]\n'
        f"{columns}\ndiagnosis = {{ condition = {list(MAPPING['diagnosis']['condition'])} }}\n"
        '[data.values.sex]\nfemale = "F"\nmale = "M"\n'
    )
    return describe(folder, site, text)


@pytest.fixture
def exports(tmp_path):
    return [described_export(tmp_path / "records", site, number) for number, site in enumerate(SITES)]


def test_tables_that_are_described_are_those_that_lie_there(tmp_path):
    draft, tables = draft_at(tmp_path), write_records(tmp_path / "tables")
    for site in SITES:
        paths = (f'path = "{tables / site / "train.csv"}"', f'heldout_path = "{tables / site / "heldout.csv"}"')
        describe(tmp_path / "described", site, 'unit_column = "patient_id"\n' + "\n".join(paths))
    plain, described = read_task(draft, tables), read_task(draft, tmp_path / "described")
    for site in SITES:
        np.testing.assert_array_equal(plain.train[site].columns["TSH"], described.train[site].columns["TSH"])
        np.testing.assert_array_equal(plain.held_out[site].labels, described.held_out[site].labels)
    assert (plain.train_digest, plain.held_out_digest) == (described.train_digest, described.held_out_digest)


def test_an_export_is_read_and_told_from_another_and_from_another_mapping(tmp_path, exports):
    draft = draft_at(tmp_path)
    first = read_task(draft, tmp_path / "records")
    assert {len(records.units) for records in first.train.values()} == {12}  # with a and b of every export
    assert {len(records.units) for records in first.held_out.values()} == {6}
    assert first.train[SITES[0]].labels.sum() == 5
    exports[1].write_text(exports[1].read_text().replace("2026-01-01", "2025-01-01"))
    mapped = read_task(draft, tmp_path / "records")
    assert mapped.train_digest != first.train_digest
    assert mapped.held_out_digest != first.held_out_digest
    with (exports[2].parent / "heldout" / "Condition.ndjson").open("a") as file:
        file.write("\n")
    changed = read_task(draft, tmp_path / "records")
    assert (changed.train_digest, changed.held_out_digest != mapped.held_out_digest) == (mapped.train_digest, True)


def test_some_sites_may_describe_records_and_others_have_tables(tmp_path, exports):
    tables = write_records(tmp_path / "tables")
    shutil.rmtree(exports[0].parent)
    shutil.move(tables / SITES[0], exports[0].parent)
    found = read_task(draft_at(tmp_path), tmp_path / "records")
    assert {site: len(records.units) for site, records in found.train.items()} == dict.fromkeys(SITES, 12) | {
        SITES[0]: 40
    }


def test_a_query_and_a_description_of_nothing_held_out_are_refused(tmp_path, exports):
    draft, text = draft_at(tmp_path), exports[3].read_text()
    exports[3].write_text(text.replace('heldout_folder = "heldout"\n', ""))
    with pytest.raises(PolicyInvalid, match="names no records that are held out"):
        read_task(draft, tmp_path / "records")
    describe(tmp_path / "records", SITES[3], 'unit_column = "id"\n[data.sql]\nurl = "sqlite:////nowhere.db"\n'
             'query = "SELECT 1"\nheldout_query = "SELECT 2"\n')  # fmt: skip
    with pytest.raises(StudyRefused, match=r"records\.toml names a query"):
        read_task(draft, tmp_path / "records")
