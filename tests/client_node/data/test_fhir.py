"""Records from a FHIR R4 Bulk Data export: a row a patient, what is broken counted and never shown."""

import datetime as dt
import gzip
import itertools
import json
import os
import random
import statistics

import numpy as np
import pytest
from carebundle import generate_cohort, to_ndjson
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from confide.client_node.data import check, read
from confide.client_node.data.known_units import KnownUnits
from confide.client_node.data.sources import fhir
from confide.client_node.data.tables import Problems, open_table, stamp
from confide.client_node.errors import DataInvalid, PolicyInvalid
from confide.client_node.policy.site_policy import load_policy
from confide.client_node.policy.sources import FhirColumn, FhirExport

from ..test_node import make_desk, prepare

SECRET = "zq7secret"
NUMBERS = itertools.count()
LOINC, ICD, RXNORM = (
    "http://loinc.org",
    "http://hl7.org/fhir/sid/icd-10-cm",
    "http://www.nlm.nih.gov/research/umls/rxnorm",
)
VERIFICATION = "http://terminology.hl7.org/CodeSystem/condition-ver-status"
NEGATION = {"modifierExtension": [{"url": "http://example.org/negation", "valueBoolean": True}]}
MAPPING = {
    "age": {"patient": "age", "at": "2026-01-01"},
    "sex": {"patient": "gender"},
    "TSH": {"observation": f"{LOINC}|3016-3"},
    "sick": {"medication": f"{RXNORM}|861007"},
    "diagnosis": {"condition": [f"{ICD}|E11.9", f"{ICD}|E11.65"]},
}


def coded(system, code, **more):
    return {"coding": [{"system": system, "code": code, "display": SECRET}], **more}


def patient(own, **more):
    return {"resourceType": "Patient", "id": own, "gender": "female", "birthDate": "1980-06-15", "name": SECRET, **more}


def observation(own, value, when="2025-01-01", **more):
    return {
        "resourceType": "Observation", "id": f"o{next(NUMBERS)}", "status": "final",
        "code": coded(LOINC, "3016-3"), "effectiveDateTime": when,
        "subject": {"reference": f"Patient/{own}"}, "valueQuantity": {"value": value, "code": "m[IU]/L"}, **more,
    }  # fmt: skip


def condition(own, code="E11.9", **more):
    return {"resourceType": "Condition", "code": coded(ICD, code), "subject": {"reference": f"Patient/{own}"}, **more}


def medication(own, **more):
    return {
        "resourceType": "MedicationRequest", "status": "active", "intent": "order", "authoredOn": "2025-01-01",
        "medicationCodeableConcept": coded(RXNORM, "861007"), "subject": {"reference": f"Patient/{own}"}, **more,
    }  # fmt: skip


def export(folder, *resources, compressed=False):
    """Writes an export of the resources, and of the patients a and b."""
    folder.mkdir(exist_ok=True)
    lines = {kind: [] for kind in ("Patient", "Observation", "Condition", "MedicationRequest")}
    for resource in (patient("a"), patient("b", gender="male"), *resources):
        lines[resource["resourceType"]].append(json.dumps(resource))
    for kind, found in lines.items():
        data = "".join(f"{line}\n" for line in found).encode()
        path = folder / f"{kind}.ndjson{'.gz' if compressed else ''}"
        path.write_bytes(gzip.compress(data) if compressed else data)
    return folder


def cells(folder, **columns):
    """The cells of declared columns, patient by patient; the export must have no problem."""
    found, problems = table_of(folder, **columns)
    assert problems.kept == []
    return found


def table_of(folder, **columns):
    source = FhirExport(folder, {name: FhirColumn.model_validate_json(json.dumps(c)) for name, c in columns.items()})
    table, problems = open_table(source), Problems()
    batches = list(table.batches(table.names, problems))
    return {name: [cell for batch in batches for cell in batch[name].to_pylist()] for name in table.names}, problems


def name_export(site):
    """Has site.toml name the folder `export` in the place of its table."""
    site.write(
        ('path = "patients.csv"\n', ""), ('unit_column = "patient_id"', 'unit_column = "patient"'),
        ('TSH = "tsh_miu_l"\n', ""), ("[budget]", '[data.fhir]\nfolder = "export"\n[data.fhir.columns]\n' + "\n".join(
            f"{name} = {{ " + ", ".join(f"{key} = {json.dumps(value)}" for key, value in stated.items()) + " }"
            for name, stated in MAPPING.items()
        ) + "\n[budget]"),
    )  # fmt: skip
    text = (
        (site.home / "site.toml")
        .read_text()
        .replace('male = "M"', 'male = "M"\n[data.values.diagnosis]\ntrue = "1"\nfalse = "0"')
    )
    (site.home / "site.toml").write_text(text)


def test_a_study_reads_an_export(site):
    export(
        site.home / "export", patient("c", gender=None), observation("a", 4.5), observation("a", 1.5, "2024-01-01"),
        condition("b", "E11.65"), medication("b"), condition("c", "I10"),
    )  # fmt: skip
    name_export(site)
    policy = load_policy(site.home)
    assert check(policy.data.source, policy, site.study()).is_fit
    records = read(policy, site.study(), site=None)
    assert records.columns["age"].tolist() == [45, 45, 45]
    assert records.columns["sex"].tolist() == ["F", "M", None]
    np.testing.assert_array_equal(records.columns["TSH"], [4.5, np.nan, np.nan])
    assert records.columns["sick"].tolist() == [False, True, False]
    assert records.labels.tolist() == [0, 1, 0]
    assert records.num_units == 3


@pytest.mark.process
def test_a_node_trains_on_an_export_whose_people_were_noted(site):
    people = [patient(f"p{number}") for number in range(40)]
    export(site.home / "export", *people, *(condition(each["id"]) for each in people[::2]))
    name_export(site)
    desk = make_desk(site)
    prepare(desk)
    policy = load_policy(site.home)
    assert KnownUnits(site.home).is_covered(policy)
    desk.step()
    export(site.home / "export", *people, patient("new"))
    assert not KnownUnits(site.home).is_covered(policy)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_made_up_hospital_reads_as_a_plain_loop_over_it_does(tmp_path, compressed):
    streams = to_ndjson(generate_cohort(count=25, seed=7, reference_date=dt.date(2026, 1, 1)))
    for kind, text in streams.items():
        half = len(text.splitlines()) // 2
        for part, lines in enumerate((text.splitlines()[:half], text.splitlines()[half:])):
            data = "\n".join(lines).encode()
            name = f"{kind}.{part:04}.ndjson"
            (tmp_path / (name + ".gz" * compressed)).write_bytes(gzip.compress(data) if compressed else data)
    found = cells(
        tmp_path,
        age={"patient": "age", "at": "2026-01-01"},
        sex={"patient": "gender"},
        glucose={"observation": f"{LOINC}|2345-7"},
        pressure={"observation": f"{LOINC}|8480-6"},  # a component of a panel
        hypertension={"condition": f"{ICD}|I10"},
        metformin={"medication": [f"{RXNORM}|861007", f"{RXNORM}|861004"]},
    )
    by_kind = {kind: [json.loads(line) for line in text.splitlines()] for kind, text in streams.items()}
    for place, own in enumerate(by_kind["Patient"]):

        def of(kind, own=own):
            return [each for each in by_kind[kind] if each["subject"]["reference"] == f"Patient/{own['id']}"]

        born = dt.date.fromisoformat(own["birthDate"])
        (glucose,) = [
            e["valueQuantity"]["value"] for e in of("Observation") if e["code"]["coding"][0]["code"] == "2345-7"
        ]
        (systolic,) = [c["valueQuantity"]["value"] for e in of("Observation") for c in e.get("component", ())
                       if c["code"]["coding"][0]["code"] == "8480-6"]  # fmt: skip
        said = {e["code"]["coding"][0]["code"] for e in of("Condition")}
        given_ = {e["medicationCodeableConcept"]["coding"][0]["code"] for e in of("MedicationRequest")}
        assert found["patient"][place] == own["id"]
        assert int(found["age"][place]) == 2026 - born.year - ((born.month, born.day) > (1, 1))
        assert found["sex"][place] == own["gender"]
        assert float(found["glucose"][place]) == glucose
        assert float(found["pressure"][place]) == systolic
        assert found["hypertension"][place] == ("true" if "I10" in said else "false")
        assert found["metformin"][place] == ("true" if given_ & {"861007", "861004"} else "false")
    assert len(found["patient"]) == 25


VALUES = [(1.0, "2024-01-01"), (5.5, "2024-06-01T08:00:00+02:00"), (0.25, "2025"), (7.0, "2025-01-01T00:00:00Z")]


@pytest.mark.parametrize(
    ("take", "expected"),
    [
        ("last", 7.0), ("first", 1.0), ("least", 0.25), ("most", 7.0), ("count", 4),
        ("mean", statistics.fmean(value for value, _ in VALUES)),
    ],
)  # fmt: skip
def test_one_of_several_observations_is_taken_in_whatever_order_they_come(tmp_path, take, expected):
    lines = [observation("a", *each) for each in VALUES]
    for seed in range(4):
        random.Random(seed).shuffle(lines)
        found = cells(export(tmp_path / "x", *lines), TSH={"observation": f"{LOINC}|3016-3", "take": take})
        assert float(found["TSH"][0]) == expected
        assert found["TSH"][1] == ("0" if take == "count" else "")


def test_since_and_before_bound_what_is_read(tmp_path):
    folder = export(
        tmp_path / "x", *(observation("a", *each) for each in VALUES), condition("a", onsetDateTime="2025-03-01"),
        condition("b"), medication("b", authoredOn="2024-05-01"),
    )  # fmt: skip
    window = {"since": "2024-02-01", "before": "2025-01-01"}
    found = cells(
        folder,
        TSH={"observation": f"{LOINC}|3016-3", **window},
        early={"condition": f"{ICD}|E11.9", "before": "2025-03-01"},  # what has no day is not known to be earlier
        late={"condition": f"{ICD}|E11.9", "since": "2025-03-01"},
        drug={"medication": f"{RXNORM}|861007", **window},
    )
    assert found["TSH"] == ["5.5", ""]
    assert (found["early"], found["late"]) == (["false", "false"], ["true", "false"])
    assert found["drug"] == ["false", "true"]


@pytest.mark.parametrize(
    "resource",
    [
        observation("a", 9.0, status="entered-in-error"),
        observation("a", 9.0, code=coded("http://other.org", "3016-3")),
        observation("a", 9.0, valueQuantity={"value": 9.0, "comparator": "<", "code": "m[IU]/L"}),
        observation("a", 9.0, valueQuantity={"code": "m[IU]/L"}),
        {key: value for key, value in observation("a", 9.0).items() if key != "valueQuantity"},
        observation("a", 9.0, subject={"reference": "Group/a"}),
        condition("a", verificationStatus=coded(VERIFICATION, "refuted")),
        condition("a", verificationStatus=coded(VERIFICATION, "entered-in-error")),
        condition("a", verificationStatus={"coding": [{"code": "refuted"}]}),
        condition("a", verificationStatus={"coding": [{"code": "confirmed"}, {"system": "x", "code": "refuted"}]}),
        medication("a", doNotPerform=True),
        medication("a", intent="proposal"),
        medication("a", status="cancelled"),
    ],
)
def test_what_was_taken_back_or_says_nothing_is_no_cell(tmp_path, resource):
    found = cells(export(tmp_path / "x", resource), **{name: MAPPING[name] for name in ("TSH", "sick", "diagnosis")})
    assert (found["TSH"], found["sick"], found["diagnosis"]) == (["", ""], ["false"] * 2, ["false"] * 2)


BAD = [
    observation("a", SECRET),
    observation("a", True),
    observation("a", 9.0, SECRET),
    observation("a", 9.0, "2025-13-01"),
    observation("a", 9.0, "2025-01-01T25:00:00Z"),
    observation("a", 9.0, subject={"reference": SECRET}),
    observation("a", 9.0, subject=SECRET),
    observation("a", 9.0, code=SECRET),
    observation("a", 9.0, component=SECRET),
    observation("a", 9.0, valueQuantity={"value": 9.0, "code": SECRET}),
    observation("a", 10**400),
    {**observation("a", 9.0), "status": 1},
    {**observation("a", 9.0), "subject": None},
    patient("a"),  # twice
    patient(SECRET + " "),
    patient(None),
    patient("c", birthDate=SECRET),
    patient("c", birthDate="1980-02-30"),
    patient("c", gender=1),
    condition("a", onsetDateTime=SECRET),
    medication("a", authoredOn=7),
    observation("a", 9.0, status=None),
    observation("a", 9.0, status="Entered-In-Error"),
    observation("a", 9.0, **NEGATION),
    observation("a", 9.0, component=[{"code": coded(LOINC, "3016-3"), "valueInteger": 9, **NEGATION}]),
    observation("a", 9.0, modifierExtension=SECRET),
    condition("a", **NEGATION),
    condition("a", verificationStatus={"text": "refuted"}),
    condition("a", verificationStatus=coded(VERIFICATION, "Refuted")),
    condition("a", verificationStatus=coded("http://snomed.info/sct", "410594000")),
    condition("a", verificationStatus=coded("http://snomed.info/sct", "refuted")),
    condition("a", verificationStatus={"coding": [{"system": VERIFICATION}]}),
    medication("a", **NEGATION),
    medication("a", status="entered-in-error "),
    medication("a", status="cancelled", intent=None),
    medication("a", intent="Order"),
    medication("a", doNotPerform="true"),
    medication("a", doNotPerform=None),
    patient("c", **NEGATION),
    patient("c", gender="\ud800"),
    *(
        observation("a", 9.0, subject={"reference": reference}, contained=[{"resourceType": "Patient", "id": "a"}])
        for reference in (
            "#a",
            "Patient/a ",
            "Patient/a_1",
            "Patient/a/_history/",
            "Patient/a#x",
            "patient/a",
            "Patient/" + "x" * 65,
            "Practitioner/a",
            "urn:uuid:a",
            "ftp://x/Patient/a",
            "",
        )
    ),
]


@pytest.mark.parametrize("resource", BAD)
def test_a_broken_resource_is_counted_and_not_shown(tmp_path, resource):
    mapping = {**MAPPING, "TSH": {**MAPPING["TSH"], "unit": "m[IU]/L"}}
    found, problems = table_of(export(tmp_path / "x", resource), **mapping)
    assert problems.count == 1
    (problem,) = problems.kept
    kind = resource["resourceType"]
    expected = f"expected {kind} resources of FHIR R4 in {kind}.ndjson, a line each"
    assert str(problem) == f"the file: {expected}, found 1 that are none, or are broken"
    assert found["patient"] == ["a", "b"]  # and nothing of it was kept
    assert found["TSH"] == ["", ""]
    assert found["diagnosis"] == ["false", "false"]


@pytest.mark.parametrize(
    "line",
    [b"{", b"[]", b"7", b'"x"', b"\xff", b'{"resourceType": "Patient"}', b"[" * 100_000, b"NaN",
     b'{"resourceType": "Observation", "x": NaN}', b'{"resourceType": "Observation", "x": ' + b"9" * 5000 + b"}"],
)  # fmt: skip
def test_a_line_that_is_no_resource_is_counted(tmp_path, line):
    folder = export(tmp_path / "x", observation("a", 4.5))
    path = folder / "Observation.ndjson"
    path.write_bytes(path.read_bytes() + b"\n\n" + line + b"\n" + line)
    found, problems = table_of(folder, TSH=MAPPING["TSH"])
    assert problems.count == 2
    assert found["TSH"] == ["4.5", ""]


def test_an_export_of_some_patients_alone_is_told(tmp_path):
    _, problems = table_of(export(tmp_path / "x", observation("zq7", 1.0), observation("zq7", 2.0)), TSH=MAPPING["TSH"])
    assert problems.count == 2
    assert "found 2 about patients who are not in it" in str(problems.kept[0])
    assert "zq7" not in str(problems.kept)


def test_patients_of_two_servers_are_told(tmp_path):
    def of(server):
        return condition("a", subject={"reference": f"{server}Patient/a"})

    one = export(tmp_path / "x", of("https://one.org/fhir/"), of("https://one.org/fhir/"), of(""))
    assert cells(one, diagnosis=MAPPING["diagnosis"])["diagnosis"] == ["true", "false"]
    two = export(tmp_path / "y", of("https://one.org/fhir/"), of("https://other.zq7/fhir/"))
    _, problems = table_of(two, diagnosis=MAPPING["diagnosis"])
    assert [str(each) for each in problems.kept] == [
        "the file: expected references to patients of one server, found those of 2"
    ]


def test_a_part_that_is_there_compressed_too_is_refused(tmp_path):
    folder = export(tmp_path / "x", observation("a", 4.5))
    export(folder, observation("a", 4.5), compressed=True)
    with pytest.raises(DataInvalid, match=r"each part of an export once, found a part as .ndjson and as .ndjson.gz"):
        table_of(folder, TSH=MAPPING["TSH"])


@pytest.mark.parametrize("take", ["count", "mean", "last"])
def test_an_observation_that_is_there_twice_is_not_counted_twice(tmp_path, take):
    folder = export(tmp_path / "x", observation("a", 4.0, id="o"), observation("b", 1.0, id="p"))
    (folder / "Observation.2.ndjson").write_text(json.dumps(observation("a", 4.0, id="o")))
    found, problems = table_of(folder, TSH={**MAPPING["TSH"], "take": take})
    assert [float(cell) for cell in found["TSH"]] == ([1, 1] if take == "count" else [4, 1])
    assert problems.count == (0 if take == "last" else 1)


@pytest.mark.parametrize("own", [None, 7, "", "x" * 65])
def test_an_observation_that_is_counted_needs_an_id(tmp_path, own):
    folder = export(tmp_path / "x", observation("a", 4.0, id=own))
    assert cells(folder, TSH=MAPPING["TSH"])["TSH"] == ["4", ""]
    assert table_of(folder, TSH={**MAPPING["TSH"], "take": "count"})[1].count == 1


def test_a_resource_that_no_column_needs_may_say_what_it_likes(tmp_path):
    """A code of another status in an observation of another kind makes no export unfit."""
    folder = export(
        tmp_path / "x", condition("a", "I10", verificationStatus=SECRET, **NEGATION),
        observation("a", 1.0, code=coded(LOINC, "1-1"), status=SECRET, subject=SECRET, **NEGATION),
    )  # fmt: skip
    assert cells(folder, **MAPPING)["diagnosis"] == ["false", "false"]


def test_two_units_of_one_column_are_told(tmp_path):
    two = export(
        tmp_path / "x", observation("a", 1.0), observation("b", 1.0, valueQuantity={"value": 1, "code": "u/L"})
    )
    _, problems = table_of(two, TSH=MAPPING["TSH"])
    assert "observations in one unit" in str(problems.kept[0])


def test_a_line_and_a_file_have_a_limit(tmp_path, monkeypatch):
    folder = export(tmp_path / "x", compressed=True)
    (folder / "Observation.ndjson.gz").write_bytes(gzip.compress(b" " * (fhir.MOST_LINE + 2)))  # some KiB on disk
    with pytest.raises(DataInvalid, match="expected lines of at most 4 MiB"):
        table_of(folder, TSH=MAPPING["TSH"])
    (folder / "Observation.ndjson.gz").write_bytes(gzip.compress(b"\n" * 2000))
    monkeypatch.setattr(fhir, "MOST_FILE", 1000)
    with pytest.raises(DataInvalid, match="expected lines of at most"):
        table_of(folder, TSH=MAPPING["TSH"])


@pytest.mark.parametrize("damage", ["cut", "flipped", "no gzip"])
def test_a_damaged_file_is_one_sentence(tmp_path, damage):
    folder = export(tmp_path / "x", *(observation("a", i / 7) for i in range(500)), compressed=True)
    path = folder / "Observation.ndjson.gz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes({"cut": path.read_bytes()[:-20], "flipped": bytes(data), "no gzip": b"plain"}[damage])
    with pytest.raises(DataInvalid, match=r"Observation.ndjson.gz: 1 problem\n.*expected a whole file"):
        table_of(folder, TSH=MAPPING["TSH"])


def test_links_are_not_followed(tmp_path):
    folder = export(tmp_path / "x")
    (tmp_path / "away").write_text(json.dumps(observation("a", 1.0)))
    (folder / "Observation.1.ndjson").symlink_to(tmp_path / "away")
    with pytest.raises(DataInvalid, match="a link, a folder or a device"):
        table_of(folder, TSH=MAPPING["TSH"])


def test_other_files_are_not_read_and_a_folder_without_patients_is_told(tmp_path):
    folder = export(tmp_path / "x")
    (folder / "Encounter.ndjson").write_text(SECRET)
    (folder / "PatientFlags.ndjson").write_text(SECRET)
    assert cells(folder, sex=MAPPING["sex"])["sex"] == ["female", "male"]
    (folder / "Patient.ndjson").unlink()
    with pytest.raises(DataInvalid, match=r"expected a file Patient.ndjson"):
        table_of(folder, sex=MAPPING["sex"])
    with pytest.raises(DataInvalid, match="none that can be read"):
        table_of(tmp_path / "none", sex=MAPPING["sex"])


def test_a_stamp_changes_with_a_file_and_with_a_mapping(tmp_path):
    folder = export(tmp_path / "x")
    source = FhirExport(folder, {"sex": FhirColumn(patient="gender")})
    before = stamp(source)
    assert stamp(source) == before
    assert stamp(FhirExport(folder, {"sex": FhirColumn(patient="deceased")})) != before
    os.utime(folder / "Condition.ndjson", ns=(1, 1))
    assert stamp(source) != before


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("{}", "needs one of patient, observation, condition, medication"),
        ('{ patient = "gender", condition = "a|b" }', "needs one of patient"),
        ('{ patient = "age" }', "needs at with patient = 'age'"),
        ('{ patient = "gender", at = "2026-01-01" }', "needs at with patient = 'age'"),
        ('{ condition = "a|b", take = "last", unit = "g" }', "are for an observation alone"),
        ('{ patient = "gender", since = "2026-01-01" }', "are for what happened to a patient"),
        ('{ observation = "3016-3" }', "it must be SYSTEM|CODE"),
        ('{ observation = "a|b", since = "2026-02-30" }', "it must be a day like"),
        ('{ patient = "name" }', "it must be 'age', 'gender', 'birth_year' or 'deceased'"),
    ],
)
def test_a_mapping_is_checked(site, column, expected):
    site.write(
        ('path = "patients.csv"\n', ""),
        ("[budget]", f'[data.fhir]\nfolder = "export"\n[data.fhir.columns]\nage = {column}\n[budget]'),
    )
    with pytest.raises(PolicyInvalid) as refused:
        load_policy(site.home)
    assert expected in str(refused.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.just("Patient/a"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["resourceType", "id", "status", "code", "coding", "system", "subject", "reference", "valueQuantity", "value",
         "component", "effectiveDateTime", "effectivePeriod", "start", "birthDate", "gender"]), inner, max_size=5),
    max_leaves=12,
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=60) | JSON, max_size=6), st.sampled_from(["Patient", "Observation", "Condition"]))
def test_whatever_stands_in_a_file_gives_rows_or_counted_problems(tmp_path, lines, kind):
    folder = export(tmp_path / "x")
    good = {"Patient": patient("a"), "Observation": observation("a", 4.5), "Condition": condition("a")}[kind]
    written = []
    for line in lines:
        if isinstance(line, bytes):
            written.append(line)
        else:  # something in the place of each element of a good resource
            written += [json.dumps({**good, key: line}).encode() for key in good]
    (folder / f"{kind}.ndjson").write_bytes(b"\n".join(written))
    found, problems = table_of(folder, **MAPPING)
    assert len({*found["patient"]}) == len(found["patient"])
    assert all(problem.line is None for problem in problems.kept)
    assert SECRET not in " ".join(map(str, problems.kept))
