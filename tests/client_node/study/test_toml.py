"""Lines of keys in a TOML text, which tomllib itself does not tell."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.client_node.errors import StudyInvalid
from confide.client_node.study.toml import key_lines, parse_toml
from confide.models.strict import StrictModel

TEXT = '''# [data]
name = "a"

[data]  # a table
path = """
[not]
a = "table"
"""
"quoted key" = 1
columns = { TSH = "tsh" }
[data.values.sex]
female = "F"
[studies]
approved = [
  "ab", # ]
  "cd",
]
a.b = 3
'''


def test_each_key_has_the_line_on_which_it_stands():
    assert key_lines(TEXT) == {
        "name": 2, "data": 4, "data.path": 5, "data.quoted key": 9, "data.columns": 10, "data.columns.TSH": 10,
        "data.values": 11, "data.values.sex": 11, "data.values.sex.female": 12, "studies": 13, "studies.approved": 14,
        "studies.a": 18, "studies.a.b": 18,
    }  # fmt: skip


@pytest.mark.parametrize("text", ["", "a = [", "[a", "a = 1\na = [\n" * 3, "\x00"])
def test_a_text_that_is_not_toml_has_the_lines_before(text):
    assert key_lines(text).get("a", 1) == 1


def test_a_list_of_ten_thousand_hashes_is_cut_once():
    lines = [f'  "{number:064x}",' for number in range(10_000)]
    found = key_lines("\n".join(["[studies]", "approved = [", *lines, "]", "other = 1"]))
    assert found == {"studies": 1, "studies.approved": 2, "studies.other": 10_004}


NAMES = st.text("abcxyz-_", min_size=1, max_size=5)
VALUES = st.sampled_from(["1", '"x"', "[1, 2]", "[\n 1,\n 2\n]", '"""\n[x]\ny = 1\n"""', "{ a = 1 }", "true"])


@given(tables=st.dictionaries(NAMES, st.dictionaries(NAMES, VALUES, max_size=5), max_size=5))
def test_the_lines_before_a_key_s_own_do_not_hold_it_and_those_up_to_the_next_do(tables):
    text = "".join(
        f"[{table}]\n" + "".join(f"{name} = {value}\n" for name, value in keys.items())
        for table, keys in tables.items()
    )
    lines, found = text.splitlines(), key_lines(text)
    for table, keys in tables.items():
        for name in keys:
            line = found[f"{table}.{name}"]
            assert name not in tomllib.loads("\n".join(lines[: line - 1])).get(table, {})
            assert lines[line - 1].startswith(f"{name} = ")


class Settings(StrictModel):
    name: str = ""
    numbers: tuple[float, ...] = ()


@pytest.mark.parametrize(
    "text",
    [
        ".".join(["a"] * 33) + " = 1",
        " . ".join(['"a\\"."', "'b.'", "c"] * 11) + " = 1",
        "[" + ".".join(["a"] * 33) + "]",
        "a = {" + ".".join(["a"] * 33) + " = 1}",
        ".".join(["a"] * 100_000) + " = 1",  # which tomllib reads in minutes
    ],
)
def test_a_key_of_many_parts_is_refused_before_it_is_read(text):
    with pytest.raises(StudyInvalid, match="more than 32 parts"):
        parse_toml(text, Settings, error=StudyInvalid, source="study.toml")


def test_tables_within_tables_are_refused():
    long = ".".join(["a"] * 30)
    with pytest.raises(StudyInvalid, match="nested deeper than any setting"):
        parse_toml(
            f"{long} = " + f"{{{long} = " * 60 + "1" + "}" * 60, Settings, error=StudyInvalid, source="study.toml"
        )


def test_dots_in_texts_and_numbers_are_no_keys():
    name = "fed.example. It runs... " * 100
    numbers = ", ".join(["0.5"] * 1000)
    found = parse_toml(f'name = "{name}"\nnumbers = [{numbers}]', Settings, error=StudyInvalid, source="study.toml")
    assert (found.name, len(found.numbers)) == (name, 1000)


def test_of_fifteen_thousand_unknown_keys_the_first_are_told_and_the_others_counted():
    text = "".join(f"k{number} = 1\n" for number in range(15_000)) + "y" * 100_000 + " = 1\n"
    with pytest.raises(StudyInvalid) as told:
        parse_toml(text, StrictModel, error=StudyInvalid, source="study.toml")
    lines = str(told.value).splitlines()
    assert (lines[0], lines[-1]) == ("study.toml: 15,001 problems", "  and 14,951 more")
    assert "k0 is not a setting" in lines[1]
    assert len(lines) == 52
    assert len(str(told.value)) < 10_000


def test_a_key_without_an_end_is_told_in_short():
    with pytest.raises(StudyInvalid) as told:
        parse_toml("y" * 100_000 + " = 1\n", StrictModel, error=StudyInvalid, source="study.toml")
    assert len(str(told.value)) < 200
