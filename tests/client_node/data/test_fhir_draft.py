"""Columns proposed of an export: by codes that ten patients have, for the columns of a study; nothing of a cell."""

import datetime as dt
import tomllib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from confide.client_node.data import check, fhir_draft
from confide.client_node.data.fhir_draft import FEWEST, look, propose, toml_lines
from confide.client_node.data.site_draft import PolicyWishes, own_names, site_toml, sketch
from confide.client_node.errors import DataInvalid
from confide.client_node.policy.site_policy import load_policy

from ..conftest import TEXT
from .test_fhir import ICD, LOINC, RXNORM, SECRET, condition, export, medication, observation, patient

DAY = dt.date(2026, 5, 31)
WISHES = PolicyWishes(name="export", unit="patient", unit_column="patient")
PEOPLE = [f"p{number}" for number in range(2 * FEWEST)]


def named(system, code, display):
    return {"coding": [{"system": system, "code": code, "display": display}]}


def hospital(folder, *more, tsh="Thyrotropin [Units/volume] in Serum or Plasma"):
    """An export whose codes have names, of twenty patients beside `a` and `b`."""
    return export(
        folder,
        *(patient(own, gender=["female", "male", "other", "unknown"][place % 4]) for place, own in enumerate(PEOPLE)),
        *(observation(own, 1.5 + place, code=named(LOINC, "3016-3", tsh)) for place, own in enumerate(PEOPLE)),
        *(condition(own) | {"code": named(ICD, "E11.9", "Type 2 diabetes, no diagnosis by it")} for own in PEOPLE[::2]),
        *(medication(own) | {"medicationCodeableConcept": named(RXNORM, "1", "Sick-pills")} for own in PEOPLE[1::2]),
        *more,
    )  # fmt: skip


def test_a_code_its_name_and_its_unit_are_told_if_ten_patients_have_them(tmp_path):
    rare = [observation(own, 7.25, code=named(LOINC, "rare", SECRET)) for own in PEOPLE[: FEWEST - 1] * 3]
    odd = [condition(own) | {"code": named(ICD, "E11.9", f"{SECRET} {own}")} for own in PEOPLE]
    marked = [observation(PEOPLE[0], 3, valueQuantity={"value": 3, "code": SECRET})]
    found = look(hospital(tmp_path / "export", *rare, *odd, *marked))
    assert {code.code: (code.kind, code.patients, code.units) for code in found.codes} == {
        f"{LOINC}|3016-3": ("observation", 20, ("m[IU]/L",)),
        f"{ICD}|E11.9": ("condition", 20, ()),
        f"{RXNORM}|1": ("medication", 10, ()),
    }
    assert found.few == 1
    assert SECRET not in repr(found)
    assert "7.25" not in repr(found)


def test_a_patient_in_many_spellings_and_what_is_no_patient_are_not_ten_patients(tmp_path):
    spelt = [f"{PEOPLE[0]}/_history/{number}" for number in range(2 * FEWEST)]
    own = [condition(each) | {"code": named(ICD, "R1", SECRET)} for each in spelt]
    on = [{"reference": f"https://fhir.org/{number}/Patient/{PEOPLE[0]}"} for number in range(2 * FEWEST)]
    devices = [{"reference": f"Device/{number}"} for number in range(2 * FEWEST)]
    others = [condition("a", subject=each) | {"code": named(ICD, "R2", SECRET)} for each in (*on, *devices)]
    found = look(hospital(tmp_path / "export", *own, *others))
    assert found.few == 2
    assert SECRET not in repr(found)


def test_what_is_written_is_a_policy_by_which_the_study_reads_the_export(site):
    hospital(site.home / "export")
    found, terms = sketch(site.home / "export"), site.study().draft.data
    (site.home / "site.toml").write_text(site_toml(found, WISHES, terms))
    policy = load_policy(site.home)
    assert (policy.data.unit_column, dict(policy.data.values["sex"])) == (
        "patient", {"female": "F", "male": "M", "other": "none", "unknown": "none"},
    )  # fmt: skip
    columns = {name: stated.model_dump(exclude_defaults=True) for name, stated in policy.data.fhir.columns.items()}
    assert columns == {
        "diagnosis": {"condition": f"{ICD}|E11.9"},
        "age": {"patient": "age", "at": f"{columns['age']['at'][:4]}-01-01"},
        "TSH": {"observation": f"{LOINC}|3016-3", "unit": "m[IU]/L"},
        "sex": {"patient": "gender"},
        "sick": {"medication": f"{RXNORM}|1"},
    }
    assert check(policy.data.source, policy, site.study()).is_fit
    assert own_names(terms, found)["TSH"] == f"{LOINC}|3016-3, m[IU]/L"


def test_a_column_like_nothing_stays_open(site):
    hospital(site.home / "export", tsh="Ferritin")
    found, terms = sketch(site.home / "export"), site.study().draft.data
    assert own_names(terms, found)["TSH"] is None
    text = site_toml(found, WISHES, terms)
    assert "# TSH = ... # nothing like it" in text
    (site.home / "site.toml").write_text(text)
    policy = load_policy(site.home)
    (problem,) = check(policy.data.source, policy, site.study()).problems
    assert str(problem) == (
        "column TSH: expected a column of this name for the study's TSH, found none; "
        "name it in site.toml: data.fhir.columns.TSH, with what it is made of"
    )


def test_an_export_like_no_column_of_the_study_still_gives_a_policy(site):
    hospital(site.home / "export", tsh="Ferritin")
    found, terms = sketch(site.home / "export"), site.study(*TEXT).draft.data
    assert own_names(terms, found) == {"note": None, "finding": None}
    (site.home / "site.toml").write_text(site_toml(found, WISHES, terms))
    assert load_policy(site.home).data.fhir.columns.keys() == {"age", "sex"}


def test_a_number_in_several_units_gets_none_and_says_so(site):
    others = [observation(own, 2, valueQuantity={"value": 2, "unit": "ng/L"}) for own in PEOPLE]
    found = look(hospital(site.home / "export", *others))
    (column,) = [
        each for each in site.study().draft.data.kind.columns(site.study().draft.data.terms) if each.name == "TSH"
    ]
    proposal = propose(found, column, day=DAY)
    assert dict(proposal.stated) == {"observation": f"{LOINC}|3016-3"}
    assert "in several units, of which it takes one: m[IU]/L, ng/L" in proposal.note


def test_a_code_without_numbers_is_no_column_of_numbers(site):
    words = [observation(own, 0, code=named(LOINC, "text", "Smoking"), valueQuantity={}) for own in PEOPLE]
    found = look(hospital(site.home / "export", *words))
    assert f"{LOINC}|text" not in [code.code for code in found.codes]


def test_without_a_study_what_every_export_has_is_read_and_the_codes_are_there_to_choose(site):
    hospital(site.home / "export")
    text = site_toml(sketch(site.home / "export"), WISHES)
    (site.home / "site.toml").write_text(text)
    policy = load_policy(site.home)
    assert policy.data.fhir.columns.keys() == {"age", "sex"}
    assert check(policy.data.source, policy).is_fit
    chosen = text.replace("# type_2", "type_2").replace("# thyrotropin", "thyrotropin").replace("# sick", "sick")
    (site.home / "site.toml").write_text(chosen)
    policy = load_policy(site.home)
    assert policy.data.fhir.columns.keys() == {
        "age", "sex", "thyrotropin_units_volume_in", "type_2_diabetes_no", "sick_pills",
    }  # fmt: skip
    assert check(policy.data.source, policy).is_fit


@pytest.mark.parametrize("most", [2**30, 1000])
def test_of_a_large_export_lines_are_looked_at_from_its_beginning_to_its_end(tmp_path, monkeypatch, most):
    people = [f"q{number}" for number in range(40 * FEWEST)]
    first, last = ([condition(own) | {"code": named(ICD, code, code)} for own in people] for code in ("A1", "Z9"))
    monkeypatch.setattr(fhir_draft, "_BYTES", most * 10)
    found = look(export(tmp_path / "export", *map(patient, people), *first, *last))
    assert [code.code for code in found.codes] == [f"{ICD}|A1", f"{ICD}|Z9"]
    assert (found.codes[0].patients == len(people)) == (most == 2**30)


def test_broken_lines_are_passed_over(tmp_path):
    folder = hospital(tmp_path / "export")
    whole = look(folder)
    with (folder / "Observation.ndjson").open("ab") as file:
        for line in (
            b"{",
            b"[]",
            b'{"resourceType": "Observation", "subject": 3, "code": [1]}',
            b"\xff",
            b'{"resourceType": "Observation", "subject": {"reference": "Patient/a"}, "code": {"coding": [5]}}',
            b'{"resourceType": "Observation", "subject": {"reference": "Patient/a"}, "component": ["a", {}]}',
        ):
            file.write(line + b"\n")  # fmt: skip
    assert look(folder) == whole


def test_an_export_without_patients_is_refused(tmp_path):
    folder = hospital(tmp_path / "export")
    (folder / "Patient.ndjson").unlink()
    with pytest.raises(DataInvalid, match=r"expected a file Patient\.ndjson"):
        sketch(folder)


@given(name=st.text(max_size=120), unit=st.text(max_size=20), code=st.text(min_size=1, max_size=30))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_name_code_or_unit_of_an_export_leaves_its_line(site, name, unit, code):
    quantity = {"value": 1, "code": unit}
    tsh = [
        observation(own, 1, code=named(LOINC, code, f"TSH {name}"), valueQuantity=quantity) for own in PEOPLE[:FEWEST]
    ]
    folder = export(site.home / "export", *map(patient, PEOPLE), *tsh)
    terms = site.study().draft.data
    for columns in (None, terms.kind.columns(terms.terms)):
        lines, _ = toml_lines(folder, look(folder), columns, day=DAY)
        stated = tomllib.loads("\n".join(lines))
        assert stated.keys() <= {"data"}
        assert stated["data"]["fhir"]["columns"].keys() <= {"age", "sex", "TSH"}
