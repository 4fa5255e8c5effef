import pandas as pd
import pytest

from confide.client_node.data.records import check
from confide.client_node.data.site_draft import PolicyWishes, own_names, site_toml, sketch, unit_word
from confide.client_node.errors import DataInvalid, PolicyInvalid
from confide.client_node.policy.site_policy import load_policy

from ..conftest import PATIENTS_CSV

SECRET = "zq7secretzq7"


def sketched(folder, text, name="patients.csv"):
    (folder / name).write_text(text)
    return sketch(folder / name)


def test_columns_are_told_with_the_kinds_that_they_seem_to_have(tmp_path):
    notes = "".join(f"p{i},{i},{'FM'[i % 2]},{i % 2},note {i},\n" for i in range(60))
    found = sketched(tmp_path, "patient_id,age,sex,sick,note,nothing\n" + notes)
    assert found.kinds == {
        "patient_id": "text", "age": "number", "sex": "category", "sick": "flag", "note": "text", "nothing": "empty",
    }  # fmt: skip
    assert found.unit_columns == ("patient_id",)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("decimal", [".", ","])
def test_separator_and_decimal_sign_are_found(tmp_path, separator, decimal):
    number = f"1{decimal}5" if separator != decimal else f'"1{decimal}5"'
    found = sketched(tmp_path, separator.join(("id", "tsh", "ill")) + "\n" + separator.join(("a", number, "0")) + "\n")
    assert (found.separator, found.decimal, found.kinds["tsh"]) == (separator, decimal, "number")


def test_parquet_is_read_too(tmp_path):
    pd.DataFrame({"Patient": ["a", "b"], "age": [1.5, 2.5]}).to_parquet(tmp_path / "t.parquet")
    found = sketch(tmp_path / "t.parquet")
    assert (found.kinds["age"], found.unit_columns) == ("number", ("Patient",))


@pytest.mark.parametrize(
    ("names", "guess"),
    [("id,age", ("id",)), ("row_nr,customer_id,x", ("customer_id", "row_nr")), ("age,sex", ()),
     ("PATIENT-KEY,a", ("PATIENT-KEY",)), ("idea,paid", ())],
)  # fmt: skip
def test_columns_of_persons_are_guessed_by_their_names(tmp_path, names, guess):
    assert sketched(tmp_path, names + "\n").unit_columns == guess


def test_the_word_for_a_unit_comes_from_its_column():
    assert [unit_word(name) for name in ("Patient_ID", "customer no", "id", "pid", "x")] == [
        "patient", "customer", "person", "person", "person",
    ]  # fmt: skip


def test_what_is_written_is_a_policy_by_which_the_study_reads_the_table(site):
    found = sketched(site.home, PATIENTS_CSV.replace("female", "F"))
    terms = site.study().draft.data
    assert own_names(terms, found) == {"TSH": "tsh_miu_l"}
    wishes = PolicyWishes(name="patients", unit="patient", unit_column="patient_id")
    (site.home / "site.toml").write_text(site_toml(found, wishes, terms))
    policy = load_policy(site.home)
    assert (policy.data.unit, dict(policy.data.columns)) == ("patient", {"TSH": "tsh_miu_l"})
    assert check(policy.data.path, policy, site.study()).is_fit


def test_no_cell_is_copied(tmp_path):
    found = sketched(tmp_path, f"id,a,b\n{SECRET},{SECRET},{SECRET}\n")
    assert SECRET not in repr(found) + site_toml(found, PolicyWishes(name="t", unit="u", unit_column="id"))


@pytest.mark.parametrize("name", ["a # b", 'say "x"', "back\\slash"])
def test_odd_names_of_columns_stay_in_their_places(tmp_path, name):
    quoted = name.replace('"', '""')
    found = sketched(tmp_path, f'id,"{quoted}"\n1,2\n')
    text = site_toml(found, PolicyWishes(name="t", unit="u", unit_column=name, label_column=name))
    (tmp_path / "site.toml").write_text(text)
    assert load_policy(tmp_path).data.unit_column == name


def test_a_column_that_is_not_there_and_a_cap_that_is_none_are_told(tmp_path):
    found = sketched(tmp_path, "patient_id,ill\n")
    with pytest.raises(DataInvalid, match="did you mean patient_id"):
        site_toml(found, PolicyWishes(name="t", unit="u", unit_column="patientid"))
    with pytest.raises(PolicyInvalid, match=r"budget\.epsilon is -1"):
        site_toml(found, PolicyWishes(name="t", unit="u", unit_column="patient_id", epsilon=-1))
    with pytest.raises(PolicyInvalid, match="one line"):
        site_toml(found, PolicyWishes(name="t", unit="u\nx", unit_column="patient_id"))
