import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from confide.client_node.data import tables
from confide.client_node.data.records import check, read
from confide.client_node.data.sources import csv, parquet
from confide.client_node.errors import DataInvalid
from confide.client_node.policy.site_policy import load_policy
from confide.models.records import cells

from ..conftest import NOTES_CSV, TEXT, tokens

SECRET = "zq7secretzq7"  # stands in every cell that must not be told


def read_csv(site, text, *changes):
    (site.home / "patients.csv").write_text(text)
    site.write(*changes)
    return read(load_policy(site.home), site.study(), site=None)


def check_csv(site, text, *changes):
    (site.home / "patients.csv").write_text(text) if isinstance(text, str) else (
        site.home / "patients.csv"
    ).write_bytes(text)
    site.write(*changes)
    policy = load_policy(site.home)
    return check(policy.data.path, policy, site.study())


HEADER = "patient_id,age,tsh_miu_l,sex,sick,diagnosis\n"


def test_a_table_is_read_by_the_studys_names(site):
    records = read(load_policy(site.home), site.study(), site=None)
    np.testing.assert_array_equal(records.columns["age"], [34, 71, 35, np.nan])
    np.testing.assert_array_equal(records.columns["TSH"], [1.5, np.nan, 12, 0.2])
    assert list(records.columns["sex"]) == ["F", "M", "F", None]
    assert list(records.columns["sick"]) == [False, True, False, True]
    assert list(records.units) == [0, 1, 0, 2]  # p1 has two records
    assert list(records.labels) == [0, 1, 1, 0]
    assert records.num_units == 3


def test_tokens_are_those_of_the_schema(site):
    study = site.study()
    records = read(load_policy(site.home), study, site=None)
    words = study.record_schema().words()
    lines = [" ".join(words[i] for i in row if i) for row in tokens(study, records)]
    assert lines[0] == "TSH=b01 age=b01 sex=F"
    assert lines[3] == "TSH=b00 age=na sex=na sick"


@pytest.mark.parametrize("typed", [False, True])
def test_csv_and_parquet_read_equal(site, typed):
    table = pd.read_csv(site.home / "patients.csv", na_values="?", keep_default_na=typed, dtype=None if typed else str)
    if typed:
        table["sick"] = table["sick"].map({"f": False, "no": False, "t": True, "yes": True})
        table["sex"] = table["sex"].astype("category")
    table.to_parquet(site.home / "patients.parquet")
    from_csv = read(load_policy(site.home), site.study(), site=None)
    site.write(("patients.csv", "patients.parquet"))
    from_parquet = read(load_policy(site.home), site.study(), site=None)
    for name, column in from_csv.columns.items():
        np.testing.assert_array_equal(column, from_parquet.columns[name])
        assert column.dtype == from_parquet.columns[name].dtype
    np.testing.assert_array_equal(from_csv.units, from_parquet.units)
    np.testing.assert_array_equal(from_csv.labels, from_parquet.labels)


def test_batches_do_not_show(site, monkeypatch):
    monkeypatch.setattr(csv, "_BATCH_BYTES", 64)
    monkeypatch.setattr(parquet, "BATCH_ROWS", 7)
    rows = "".join(f"p{i % 40:02},{i},{i / 8},F,t,{i % 2}\n" for i in range(100))
    from_csv = read_csv(site, HEADER + rows)
    pd.read_csv(site.home / "patients.csv").to_parquet(site.home / "patients.parquet")
    site.write(("patients.csv", "patients.parquet"))
    from_parquet = read(load_policy(site.home), site.study(), site=None)
    for records in (from_csv, from_parquet):
        np.testing.assert_array_equal(records.columns["age"], np.arange(100))
        np.testing.assert_array_equal(records.columns["TSH"], np.arange(100) / 8)
        np.testing.assert_array_equal(records.units, np.arange(100) % 40)


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + HEADER + "p1,34,1.5,F,f,0\n",
        "\n" + HEADER.replace(",", " , ") + "\n p1 , 34,1.5 ,F, f ,0\n\n",
        HEADER.replace("\n", "\r\n") + "p1,34.0,+15e-1,female,FALSE,0.0\r\n",
        HEADER.replace("age,", 'age,"a note,\nin two lines",') + 'p1,34,"free\ntext, with ""quotes""",1.5,F,0,false',
    ],
)
def test_ways_to_write_the_same_record(site, text):
    records = read_csv(site, text)
    assert (records.columns["age"][0], records.columns["TSH"][0], records.columns["sex"][0]) == (34, 1.5, "F")
    assert (records.columns["sick"][0], records.labels[0], len(records.labels)) == (False, 0, 1)


def test_a_separator_can_be_named(site):
    text = (HEADER + "p1,34,1.5,F,f,0\n").replace(",", ";")
    assert "set data.separator" in str(check_csv(site, text).problems[0])
    assert read_csv(site, text, ("[data.columns]", 'separator = ";"\n[data.columns]')).num_units == 1


GOOD = "p1,34,1.5,F,f,0\n"
BAD_CELLS = {
    "bad number": ("p1,x34,1.5,F,f,0", "line 3, column age: expected a number, found text"),
    "infinite number": ("p1,inf,1.5,F,f,0", "line 3, column age: expected a number, found text"),
    "overflowing number": ("p1,1e999,1.5,F,f,0", "line 3, column age: expected a number, found a number"),
    "decimal comma": ('p1,34,"1,5",F,f,0', "line 3, column tsh_miu_l: expected a number, found text"),
    "unknown category": ("p1,34,1.5,X,f,0", "line 3, column sex: expected one of the study's 2 values, found text"),
    "category in another case": ("p1,34,1.5,f,f,0", "column sex: expected one of the study's 2 values, found text"),
    "no flag": ("p1,34,1.5,F,maybe,0", "line 3, column sick: expected true or false (t/f, yes/no, 1/0), found text"),
    "flag of 2": ("p1,34,1.5,F,2,0", "column sick: expected true or false (t/f, yes/no, 1/0), found a number"),
    "label of 2": ("p1,34,1.5,F,f,2", "line 3, column diagnosis: expected 0 or 1, found a number"),
    "label missing": ("p1,34,1.5,F,f,", "line 3, column diagnosis: expected 0 or 1, found nothing"),
    "unit missing": (",34,1.5,F,f,0", "line 3, column patient_id: expected an id"),
    "endless unit": ("p" * 257 + ",34,1.5,F,f,0", "column patient_id: expected an id of at most 256"),
    "cell too many": ("p1,34,1.5,F,f,0,7", "expected 6 cells, as in the header, on line 3, found 7 cells"),
    "cell too few": ("p1,34,1.5,F,f", "expected 6 cells, as in the header, on line 3, found 5 cells"),
    "quote left open": ('p1,34,1.5,"F,f,0', 'expected every " closed by another, found one left open'),
}


def test_labels_are_counted_for_the_site(site):
    assert check_csv(site, HEADER + GOOD + GOOD.replace("f,0", "f,1") + GOOD).labels == (2, 1)
    assert check_csv(site, HEADER + GOOD + GOOD.replace("f,0", "f,7")).labels is None


@pytest.mark.parametrize("label", ["0", "1"])
def test_a_table_of_one_class_is_told(site, label):
    report = check_csv(site, HEADER + GOOD.replace("f,0", f"f,{label}") * 3)
    assert not report.is_fit
    (problem,) = report.problems
    assert str(problem) == (
        f"column diagnosis: expected rows of both labels, 0 and 1, found {label} in all; is it the right column?"
    )
    policy = load_policy(site.home)
    assert check(policy.data.path, policy, site.study(), both_classes=False).is_fit


def test_a_table_of_no_rows_is_told(site):
    report = check_csv(site, HEADER)
    assert [str(problem) for problem in report.problems] == ["the file: expected rows below the header, found none"]


@pytest.mark.parametrize("bytes_", [4 << 20, 64])
def test_a_column_of_decimal_commas_is_one_problem_with_its_remedy(site, monkeypatch, bytes_):
    monkeypatch.setattr(csv, "_BATCH_BYTES", bytes_)
    rows = "".join(f'p{i:04},34,"{i},5",F,f,{i % 2}\n' for i in range(1000))
    report = check_csv(site, HEADER + rows + GOOD)
    assert [str(problem) for problem in report.problems] == [
        'column tsh_miu_l: expected numbers with decimal points, found 1,000 with decimal commas; set decimal = "," in '
        "[data] of site.toml"
    ]
    site.write(('unit_column = "patient_id"', 'unit_column = "patient_id"\ndecimal = ","'))
    (site.home / "patients.csv").write_text(HEADER + rows)
    np.testing.assert_array_equal(
        read(load_policy(site.home), site.study(), site=None).columns["TSH"][:3], [0.5, 1.5, 2.5]
    )


def test_a_few_decimal_commas_are_told_by_line(site):
    report = check_csv(site, HEADER + GOOD * 5 + GOOD.replace("1.5", '"1,5"') + GOOD.replace("f,0", "f,1"))
    assert [str(problem) for problem in report.problems] == ["line 7, column tsh_miu_l: expected a number, found text"]


def test_with_decimal_commas_a_point_is_no_number(site):
    """1.234 would be a thousand to whoever writes 1,5, and a bit more than one to whoever reads it."""
    rows = GOOD.replace("1.5", '"1,5"') + GOOD.replace("1.5", "1.234") + GOOD.replace("f,0", "f,1").replace("1.5", "2")
    (problem,) = check_csv(
        site, HEADER + rows, ('unit_column = "patient_id"', 'unit_column = "patient_id"\ndecimal = ","')
    ).problems
    assert str(problem) == "line 3, column tsh_miu_l: expected a number, found text"


@pytest.mark.parametrize("case", BAD_CELLS)
def test_a_bad_cell_is_told_by_line_column_and_kinds(case, site):
    line, expected = BAD_CELLS[case]
    report = check_csv(site, HEADER + GOOD + line + "\n" + GOOD)
    assert report.problem_count == 1
    assert expected in str(report.problems[0])
    with pytest.raises(DataInvalid, match=re.escape(expected)):
        read(load_policy(site.home), site.study(), site=None)


BAD_FILES = {
    "Latin-1 that ends in an accent": (
        "patient_id,caf\xe9".encode("latin-1"),
        "UTF-8 text, found other bytes near line 1",
    ),
    "nothing that is wanted": ("a,b\n1,2\n", "column patient_id: expected a column of this name"),
    "one column": ("patient_id\np1\n", "column age: expected a column of this name"),
    "empty": ("", "expected a header"),
    "Latin-1": (
        (HEADER + GOOD + "p2,34,1.5,caf\xe9,f,0\n").encode("latin-1"),
        "UTF-8 text, found other bytes near line 3",
    ),
    "UTF-16": ((HEADER + GOOD).encode("utf-16"), "expected UTF-8 text"),
    "column twice": (HEADER.replace("sick", "age") + GOOD, "column age: expected one column of this name, found 2"),
    "column missing": (
        HEADER.replace("sick", "Sick_") + GOOD,
        "did you mean Sick_? Name it in site.toml under data.columns.sick",
    ),
    "unit missing": (
        HEADER.replace("patient_id", "patientid") + GOOD,
        "did you mean patientid? Name it in site.toml under data.unit_column",
    ),
    "label missing": (HEADER.replace("diagnosis", "outcome") + GOOD, "name it in site.toml: data.label_column"),
}


@pytest.mark.parametrize("before", ["", "\n\n"])
def test_no_line_of_another_length_is_dropped_unseen(site, before):
    lines = [GOOD, "p2,34\n", "\n", "p3,1,2,F,t,1,1,1\n", GOOD] * 50
    report = check_csv(site, before + HEADER + "".join(lines))
    assert (report.rows, report.problem_count, len(report.problems)) == (100, 100, 5)
    assert f"on line {len(before) + 3}, found 2 cells" in str(report.problems[0])


def test_a_cell_too_long_to_locate_is_no_escape(site):
    report = check_csv(site, HEADER.replace("age,", "age,note,") + f'p1,34,"{"x" * 200_000}",1.5,F,f,0\np1,bad\n')
    assert report.problem_count == 1


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_told(case, site):
    text, expected = BAD_FILES[case]
    report = check_csv(site, text)
    assert expected in "\n".join(map(str, report.problems))
    assert not report.is_fit


def test_an_absent_or_foreign_file_is_told(site, tmp_path):
    policy = load_policy(site.home)
    (tmp_path / "table.parquet").write_bytes(b"PAR1" + SECRET.encode())
    (tmp_path / "table.xlsx").write_bytes(b"PK")
    for path, expected in (
        (tmp_path / "absent.csv", "none that can be read"),
        (tmp_path, "expected Parquet parts alone, found a"),
        (Path("/dev/null"), "found a device"),
        (tmp_path / "table.parquet", "expected a PARQUET file, found something else, or damage"),
        (tmp_path / "table.xlsx", "expected a name that ends in .csv or .parquet"),
    ):
        assert expected in str(check(path, policy, site.study()).problems[0])


def test_lines_are_those_of_the_file_across_blank_and_broken_ones(site):
    text = (
        HEADER.replace("age,", "age,note,")
        + 'p1,34,"two\nlines",1.5,F,f,0\n\np1,bad,n,1.5,F,f,0\nshort\np1,34,n,bad,F,f,0\n'
    )
    shown = "\n".join(map(str, check_csv(site, text).problems))
    assert "line 5, column age" in shown  # the record of lines 2 and 3, and a blank line, come before
    assert "on line 6, found 1 cells" in shown
    assert "line 7, column tsh_miu_l" in shown


def test_at_most_20_problems_are_shown_and_all_are_counted(site):
    report = check_csv(site, HEADER + "x,z,z,z,z,z\n" * 1000)
    assert len(report.problems) == 20
    assert report.problem_count == 5000
    assert len({problem.column for problem in report.problems}) >= 4  # one bad column does not hide the others
    with pytest.raises(DataInvalid, match="and 4980 more"):
        read(load_policy(site.home), site.study(), site=None)


def test_a_report_counts_rows_units_and_missing_cells(site):
    policy = load_policy(site.home)
    report = check(policy.data.path, policy, site.study())
    assert report.is_fit
    assert (report.rows, report.units, report.rows_per_unit) == (4, 3, (1, 1.0, 2))
    assert {column.own: column.missing for column in report.columns} == {
        "patient_id": 0, "diagnosis": 0, "age": 1, "tsh_miu_l": 1, "sex": 1, "sick": 0,
    }  # fmt: skip


def test_a_table_can_be_checked_for_no_study(site):
    policy = load_policy(site.home)
    report = check(policy.data.path, policy)
    assert report.is_fit
    assert next(column.own for column in report.columns) == "patient_id"
    assert report.units == 3
    site.write(("unit_column = ", 'label_column = "result"\nunit_column = '))
    assert "data.label_column" in str(check(policy.data.path, load_policy(site.home)).problems[0])


def test_too_many_rows_are_refused(site, monkeypatch):
    monkeypatch.setattr(tables, "MAX_ROWS", 3)
    assert "expected at most 3 rows, found more" in str(check_csv(site, HEADER + GOOD * 4).problems[0])
    monkeypatch.setattr(tables, "MAX_FILE_BYTES", 10)
    assert "found a larger file" in str(check_csv(site, HEADER + GOOD).problems[0])


def notes(site, text=NOTES_CSV):
    (site.home / "patients.csv").write_text(text)
    site.write(('TSH = "tsh_miu_l"', 'finding = "finding"'))
    return load_policy(site.home), site.study(*TEXT)


def test_free_text_is_read_as_it_stands_and_a_missing_note_is_empty(site):
    records = read(*notes(site), site=None)
    assert list(records.columns["note"]) == ["feels tired, <|end|> gains weight", "", "sweats"]
    assert list(records.columns["finding"]) == ["low", "none", "high"]
    assert records.labels is None
    assert list(records.units) == [0, 1, 0]


def test_what_is_to_be_learned_may_not_be_missing_and_no_text_may_be_endless(site, monkeypatch):
    policy, study = notes(site, NOTES_CSV.replace("low", "").replace("sweats", "s" * 100))
    assert [(p.line, p.column) for p in check(policy.data.path, policy, study).problems] == [(2, "finding")]
    monkeypatch.setattr(cells, "MAX_TEXT", 99)
    found = check(policy.data.path, policy, study)
    assert [(p.line, p.column, p.found) for p in found.problems] == [(2, "finding", "nothing"), (4, "note", "text")]


def test_published_categories_go_before_marks_of_what_is_missing(site):
    (site.home / "patients.csv").write_text(HEADER + "p1,34,1.5,none,f,0\np2,34,1.5,NA,f,0\n")
    study = site.study(('["F", "M"]', '["F", "M", "none"]'))
    assert list(read(load_policy(site.home), study, site=None).columns["sex"]) == ["none", None]


def test_records_do_not_show_themselves(site):
    assert "34" not in repr(read(load_policy(site.home), site.study(), site=None))


def test_nested_columns_are_told(site):
    table = pd.DataFrame({"patient_id": ["p1"], "age": [[SECRET]], "tsh_miu_l": [b"\xff"], "sex": ["F"], "sick": [True],
                          "diagnosis": [1]})  # fmt: skip
    table.to_parquet(site.home / "patients.parquet")
    site.write(("patients.csv", "patients.parquet"))
    policy = load_policy(site.home)
    report = check(policy.data.path, policy, site.study())
    assert [problem.column for problem in report.problems] == ["age", "tsh_miu_l"]


CELLS = [
    SECRET,
    f"7{SECRET}",
    f" {SECRET}\u00e9",
    f'"{SECRET}"',
    f'"{SECRET},\n{SECRET}"',
    f'{SECRET}"',
    "",
    "1",
    "F",
]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.lists(st.sampled_from(CELLS), min_size=1, max_size=8), min_size=1, max_size=6),
    encoding=st.sampled_from(["utf-8", "utf-16", "latin-1"]),
    as_parquet=st.booleans(),
)
def test_no_message_ever_holds_a_value(site, rows, encoding, as_parquet):
    path = site.home / ("patients.parquet" if as_parquet else "patients.csv")
    if as_parquet:
        cells = [(row + [SECRET] * 6)[:6] for row in rows]
        pd.DataFrame(cells, columns=HEADER.strip().split(",")).to_parquet(path)
    else:
        path.write_bytes((HEADER + "\n".join(",".join(row) for row in rows)).encode(encoding))
    site.write(("patients.csv", path.name))
    policy = load_policy(site.home)
    for study in (site.study(), None):
        told = str(check(path, policy, study).to_dict())
        assert "secret" not in told
    try:
        read(policy, site.study(), site=None)
    except DataInvalid as err:
        chain = [err, err.__cause__, *([] if err.__suppress_context__ else [err.__context__])]
        assert not any("secret" in str(each) for each in chain)
