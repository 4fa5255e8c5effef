import json

import pytest

from confide.client_node.errors import DictionaryInvalid
from confide.coordinator.studies.dictionary import read_dictionary

CSV = """name,kind,cuts,low,high,values,measured_in
age,number,,0,90,,years
TSH,number,0.4|4.0|10.0,,,,mIU/L
sex,category,,,,F|M,
sick,flag,,,,,
diagnosis,label,,,,,
"""
PLAIN = {
    "columns": [
        {"name": "age", "kind": "number", "low": 0, "high": 90, "measured_in": "years"},
        {"name": "TSH", "kind": "number", "cuts": [0.4, 4.0, 10.0], "measured_in": "mIU/L"},
        {"name": "sex", "kind": "category", "values": ["F", "M"]},
        {"name": "sick", "kind": "flag"},
        {"name": "diagnosis", "kind": "label"},
    ]
}
TOML = """
[[columns]]
name = "age"
kind = "number"
low = 0
high = 90
measured_in = "years"
[[columns]]
name = "TSH"
kind = "number"
cuts = [0.4, 4.0, 10.0]
measured_in = "mIU/L"
[[columns]]
name = "sex"
kind = "category"
values = ["F", "M"]
[[columns]]
name = "sick"
kind = "flag"
[[columns]]
name = "diagnosis"
kind = "label"
"""


def read(folder, text, suffix="csv"):
    path = folder / f"dictionary.{suffix}"
    path.write_text(text)
    return read_dictionary(path)


def test_the_same_dictionary_in_three_formats(tmp_path):
    found = read(tmp_path, CSV)
    assert read(tmp_path, json.dumps(PLAIN), "json") == found == read(tmp_path, TOML, "toml")
    assert read(tmp_path, CSV.replace(",", ";")) == found == read(tmp_path, "\ufeff" + CSV)
    assert [label.name for label in found.labels] == ["diagnosis"]
    assert not found.is_text


def test_a_range_is_cut_into_ten_bins_of_one_width(tmp_path):
    age, tsh = read(tmp_path, CSV).of_kind("number")
    assert age.bin_edges() == (9, 18, 27, 36, 45, 54, 63, 72, 81)
    assert tsh.bin_edges() == (0.4, 4.0, 10.0)


WRONG = {
    "no kind": (("age,number", "age,"), "row 1 (age): kind is missing"),
    "another kind": (("age,number", "age,integer"), "row 1 (age): kind is \"integer\"; it must be 'number'"),
    "no cut points": (("0.4|4.0|10.0", ""), "TSH: cuts, or low and high, are missing"),
    "half a range": (("0,90", "0,"), "age: cuts, or low and high, are missing"),
    "cuts and a range": (("0.4|4.0|10.0,,", "0.4|4.0,0,9"), "TSH: cuts and a range; keep one"),
    "an empty range": (("0,90", "90,90"), "age: low is 90 and high is 90; high must be well above low"),
    "a range the wrong way": (("0,90", "90,0"), "high must be well above low"),
    "cuts that fall": (("0.4|4.0|10.0", "4.0|0.4"), "row 2 (TSH): cuts is [4.0, 0.4]; it must be strictly increasing"),
    "cuts of words": (("0.4|4.0|10.0", "low|high"), "row 2 (TSH): cuts.0 is \"low\"; it must be a number"),
    "no values": (("F|M", ""), "sex: values is missing; add every value that may occur"),
    "one value twice": (("F|M", "F|F"), "row 3 (sex): values is"),
    "values of a flag": (("sick,flag,,,,", "sick,flag,,,,t|f"), "sick: values with kind 'flag'; remove it"),
    "one class": (("diagnosis,label,,,,", "diagnosis,label,,,,ill"), "two classes or more"),
    "no label": (("diagnosis,label", "diagnosis,flag"), "must have kind 'label', what is learned; found none"),
    "two orders": (
        ("age,number,,0,90,,years\nTSH,number,0.4|4.0|10.0,,", "age,order,,,,,\nTSH,order,,,"), "found age, TSH",
    ),
    "a range and classes": (("diagnosis,label,,,,", "diagnosis,label,,0,9,a|b"), "values and a range; keep one"),
    "a label of half a range": (("diagnosis,label,,,,", "diagnosis,label,,0,,"), "has low and high, low below high"),
    "a name twice": (("sick,", "age,"), "age stands there more than once"),
    "a name that is none": (("sick,", "is sick,"), "row 4 (is sick): name is \"is sick\"; it must be a letter or _"),
    "text beside numbers": (("sick,flag", "sick,text"), "text beside other kinds"),
    "a column of examples": (("measured_in\n", "example\n"), "example is not a setting"),
    "a header of other words": (("name,kind", "column,type"), "the first line must name the columns name and kind"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told_with_the_column(case, tmp_path):
    (old, new), expected = WRONG[case]
    assert old in CSV
    with pytest.raises(DictionaryInvalid) as caught:
        read(tmp_path, CSV.replace(old, new, 1))
    assert expected in str(caught.value)


def test_a_file_that_is_none_is_told(tmp_path):
    with pytest.raises(DictionaryInvalid, match="cannot be read"):
        read_dictionary(tmp_path / "absent.csv")
    (tmp_path / "latin.csv").write_bytes("name,kind\ncaf\xe9,flag\n".encode("latin-1"))
    with pytest.raises(DictionaryInvalid, match="not UTF-8"):
        read_dictionary(tmp_path / "latin.csv")
    (tmp_path / "table.csv").write_bytes(b"a" * 2**21)
    with pytest.raises(DictionaryInvalid, match="is it the table itself"):
        read_dictionary(tmp_path / "table.csv")


def test_a_table_in_the_place_of_a_dictionary_is_refused(tmp_path):
    path = tmp_path / "dictionary.csv"
    path.write_text("name,kind\nage," + "9" * 200_000 + "\n")
    with pytest.raises(DictionaryInvalid, match=r"the file is no CSV .* is it the table itself\?"):
        read_dictionary(path)
