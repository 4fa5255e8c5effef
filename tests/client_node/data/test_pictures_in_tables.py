import io
import logging
import os
import tomllib
import zlib

import numpy as np
import pytest
from PIL import Image

from confide.client_node.data import records as records_module
from confide.client_node.data.records import check, read
from confide.client_node.data.site_draft import PolicyWishes, site_toml, sketch
from confide.client_node.data.sources import csv
from confide.client_node.errors import DataInvalid
from confide.client_node.policy.site_policy import load_policy
from confide.client_node.training.record_arrays import from_arrays, to_arrays

from ..conftest import STUDY_TOML, TEXT, changed

SECRET = "zq7secretzq7"  # stands in every cell that must not be told
PICTURE = (
    *TEXT[:3],
    (
        '[data.categorical]\nsex = ["F", "M"]',
        '[data.picture]\nfile = "form"\nsize = [32, 64]\ncell = [32, 32]\nprompt = "typed {typed} :"\n'
        'completion = " {written} <eos>"\nshows = "digits"',
    ),
    *TEXT[4:],
)
FILES = ('unit_column = "patient_id"', 'unit_column = "patient_id"\nfiles = "scans"')
NOT_SO = (('[data.columns]\nTSH = "tsh_miu_l"\n[data.values.sex]\nfemale = "F"\nmale = "M"\n', ""),)
HEADER = "patient_id,form,typed,written\n"


def png(seed, shape=(32, 64)):
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def scans(site):
    """A folder of pictures, and a table and a policy that name it."""
    folder = site.home / "scans"
    (folder / "late").mkdir(parents=True)
    for seed, name in enumerate(("a.png", "b.png", "late/c.png")):
        (folder / name).write_bytes(png(seed))
    (site.home / "patients.csv").write_text(f"{HEADER}p1,a.png,1,2\np2,late/c.png,,3\np1,b.png,4,5\np3,a.png,6,7\n")
    site.write(*NOT_SO, FILES)
    return folder


def checked(site, *changes, named=None):
    policy = load_policy(site.home)
    return check(policy.data.path, policy, site.study(*PICTURE, *changes), site=named)


def refused(site):
    """What is said of a table that cannot be used, by `check` and by `read` alike, without a cell of it."""
    report = checked(site)
    assert not report.is_fit
    with pytest.raises(DataInvalid) as caught:
        read(load_policy(site.home), site.study(*PICTURE), site="svi")
    assert caught.value.count == report.problem_count
    said = [str(problem) for problem in report.problems]
    assert SECRET not in "".join((*said, str(caught.value), repr(report)))
    return said


def rewrite(site, *rows):
    (site.home / "patients.csv").write_text(HEADER + "\n".join(rows) + "\n")


def test_files_come_back_as_bytes_in_the_order_of_rows(site, scans):
    records = read(load_policy(site.home), site.study(*PICTURE), site="svi")
    assert records.columns["form"].tolist() == [png(0), png(2), png(1), png(0)]
    assert records.columns["form"].dtype == object
    assert records.columns["typed"].tolist() == ["1", "", "4", "6"]
    assert records.units.tolist() == [0, 1, 0, 2]
    assert records.labels is None
    assert "PNG" not in repr(records)


def test_a_good_table_is_fit_and_its_columns_are_counted(site, scans):
    report = checked(site, named="svi")
    assert report.is_fit
    assert (report.rows, report.units, report.problem_count) == (4, 3, 0)
    assert [(column.name, column.own, column.kind, column.missing) for column in report.columns] == [
        ("unit", "patient_id", "unit id", 0), ("form", "form", "picture", 0), ("typed", "typed", "text", 1),
        ("written", "written", "text to learn", 0),
    ]  # fmt: skip


def test_batches_do_not_show(site, scans, monkeypatch):
    monkeypatch.setattr(csv, "_BATCH_BYTES", 32)
    names = ["a.png", "b.png", "late/c.png"] * 30
    rewrite(site, *(f"p{i:02},{name},1,2" for i, name in enumerate(names)))
    records = read(load_policy(site.home), site.study(*PICTURE), site="svi")
    assert records.columns["form"].tolist() == [png(0), png(1), png(2)] * 30
    rewrite(site, *(f"p{i},{name},1,2" for i, name in enumerate([*names, f"{SECRET}.png"])))
    (said,) = refused(site)
    assert said.startswith("line 92, column form: ")


def test_a_column_of_files_may_have_another_name_at_a_site(site, scans):
    rewrite(site, "p1,a.png,1,2")
    table = site.home / "patients.csv"
    table.write_text(table.read_text().replace("form", "picture of it"))
    site.write(*NOT_SO, FILES, ("[budget]", '[data.columns]\nform = "picture of it"\n[budget]'))
    assert read(load_policy(site.home), site.study(*PICTURE), site="svi").columns["form"].tolist() == [png(0)]


def test_records_of_pictures_travel_to_workers_as_they_are(site, scans):
    records = read(load_policy(site.home), site.study(*PICTURE), site="svi")
    arrays = to_arrays(records)
    assert all(array.dtype != object for array in arrays.values())
    found = from_arrays(arrays)
    assert found.columns.keys() == records.columns.keys()
    for name, column in records.columns.items():
        assert found.columns[name].tolist() == column.tolist()
    assert {type(file) for file in found.columns["form"]} == {bytes}
    np.testing.assert_array_equal(found.units, records.units)


@pytest.mark.parametrize("files", ["scans", "./scans", "../node/scans"])
def test_the_folder_is_found_from_where_site_toml_lies(site, scans, files, monkeypatch, tmp_path):
    monkeypatch.chdir("/")
    site.write(*NOT_SO, (FILES[0], f'{FILES[0]}\nfiles = "{files}"'))
    assert checked(site).is_fit
    site.write(*NOT_SO, (FILES[0], f'{FILES[0]}\nfiles = "{scans}"'))
    assert checked(site).is_fit


def test_without_a_folder_nothing_is_opened_and_it_is_said_how_to_name_one(site, scans, monkeypatch):
    monkeypatch.chdir(scans)
    site.write(*NOT_SO)
    (said,) = refused(site)
    assert said == "column form: expected a folder of the files that it names: data.files in site.toml, found none"
    assert checked(site).rows == 0


def test_a_folder_that_is_not_there_has_no_files(site, scans):
    site.write(*NOT_SO, (FILES[0], f'{FILES[0]}\nfiles = "elsewhere"'))
    (said,) = refused(site)
    assert said.startswith("column form: expected a folder ")
    assert said.endswith("elsewhere, of the files that it names, found none")


def test_a_study_without_pictures_needs_no_folder(site):
    assert load_policy(site.home).data.files is None
    assert read(load_policy(site.home), site.study(), site=None).num_units == 3


EXPECTED = "expected the name of a PNG file below data.files, 32 pixels high and 64 wide, 8 bits grey or RGB"
BAD_NAMES = {
    "missing file": f"{SECRET}.png",
    "in a missing folder": f"{SECRET}/a.png",
    "folder": "late",
    "upwards": "../scans/a.png",
    "upwards and back": "late/../a.png",
    "absolute": f"/{SECRET}",
    "hidden": f".{SECRET}",
    "backslash": f"late\\{SECRET}",
    "word": SECRET,
    "sign in front": "-c.png",
    "blank": "c d.png",
    "letter with a mark": "e\u0308.png",
    "sentence": f"a file of {SECRET}",
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_NAMES)
def test_a_name_of_no_file_is_a_problem_of_its_line(site, scans, what):
    for name in ("-c.png", "c d.png", "e\u0308.png"):  # which are there, and not to be named
        (scans / name).write_bytes(png(1))
    rewrite(site, "p1,a.png,1,2", f"p2,{BAD_NAMES[what]},1,2", "p1,b.png,4,5")
    is_name = what in ("missing file", "in a missing folder", "folder", "word")
    found = "no file that may be read" if is_name else "no name of a file"
    assert refused(site) == [f"line 3, column form: {EXPECTED}, found {found}"]


def test_a_missing_name_is_a_problem(site, scans):
    rewrite(site, "p1,a.png,1,2", "p2,,1,2", "p3,12,1,2")
    assert refused(site) == [
        f"line 3, column form: {EXPECTED}, found nothing",
        f"line 4, column form: {EXPECTED}, found no file that may be read",
    ]


def jpeg():
    out = io.BytesIO()
    Image.new("RGB", (64, 32)).save(out, "JPEG")
    return out.getvalue()


BAD_FILES = {
    "empty": (b"", "a file that is no PNG file"),
    "text": (SECRET.encode() * 10, "a file that is no PNG file"),
    "JPEG": (jpeg(), "a file that is no PNG file"),
    "turned": (png(0, (64, 32)), "a file that is not 32 pixels high and 64 wide"),
    "larger": (png(0, (32, 96)), "a file that is not 32 pixels high and 64 wide"),
    "cut": (png(0)[:-5], "a file that is cut off"),
    "too many bytes": (png(0) + bytes(2**24), "no file that may be read"),
}


@pytest.mark.parametrize("what", BAD_FILES)
def test_a_file_of_another_kind_or_size_is_a_problem(site, scans, what):
    file, found = BAD_FILES[what]
    (scans / "b.png").write_bytes(file)
    assert refused(site) == [f"line 4, column form: {EXPECTED}, found {found}"]


def test_a_file_that_is_named_again_is_kept_once_and_without_what_is_beside_its_pixels(site, scans):
    plain = png(0)
    (scans / "a.png").write_bytes(plain[:33] + chunk(b"tEXt", SECRET.encode() * 1000) + plain[33:])
    rewrite(site, *(f"p{row},a.png,1,2" for row in range(20)))
    files = read(load_policy(site.home), site.study(*PICTURE), site="svi").columns["form"]
    assert len({id(file) for file in files}) == 1
    assert files[0] == plain


def test_all_files_of_a_table_together_have_a_most_of_bytes(site, scans, monkeypatch):
    monkeypatch.setattr(records_module, "_MOST_FILE_BYTES", 2 * len(png(0)))
    (said,) = refused(site)
    assert "of the files that it names" in said


def chunk(name, data):
    return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")


def test_a_link_is_a_problem_even_to_a_good_picture(site, scans, tmp_path):
    (tmp_path / "outside.png").write_bytes(png(1))
    (scans / "b.png").unlink()
    (scans / "b.png").symlink_to(tmp_path / "outside.png")
    assert refused(site) == [f"line 4, column form: {EXPECTED}, found no file that may be read"]


def test_a_pipe_keeps_nobody_waiting(site, scans):
    (scans / "b.png").unlink()
    os.mkfifo(scans / "b.png")
    assert refused(site) == [f"line 4, column form: {EXPECTED}, found no file that may be read"]


def test_all_problems_are_counted_and_the_first_told(site, scans):
    rewrite(site, *(f"p{i},{SECRET}{i}.png,1,2" for i in range(50)))
    report = checked(site)
    assert (report.problem_count, len(report.problems)) == (50, 5)
    refused(site)


def test_a_table_without_the_column_is_said_to_have_none(site, scans):
    table = site.home / "patients.csv"
    table.write_text(table.read_text().replace("form", "from"))
    (said,) = refused(site)
    assert "did you mean from? Name it in site.toml under data.columns.form" in said


def test_what_public_pictures_show_is_read_of_the_public_table_alone(site, scans):
    (site.home / "patients.csv").write_text(
        f"patient_id,form,typed,written,digits\np1,a.png,1,2,{SECRET} 3\np2,b.png,1,2,4 5\n"
    )
    policy, study = load_policy(site.home), site.study(*PICTURE)
    assert read(policy, study, site="svi").columns["digits"].tolist() == ["", ""]
    assert read(policy, study, site=None).columns["digits"].tolist() == [f"{SECRET} 3", "4 5"]
    names = [column.name for column in checked(site, named="svi").columns]
    assert names == ["unit", "form", "typed", "written"]


def test_a_draft_of_site_toml_has_the_folder_and_no_column_of_the_public_table(site, scans):
    found, terms = sketch(site.home / "patients.csv"), site.study(*PICTURE).draft.data
    wishes = PolicyWishes(name="forms", unit="patient", unit_column="patient_id")
    plain = tomllib.loads(site_toml(found, wishes, terms))
    assert plain["data"]["files"] == "pictures"
    assert plain["data"]["columns"] == {}
    assert "digits" not in site_toml(found, wishes, terms)
    assert "files" not in tomllib.loads(site_toml(found, wishes))["data"]


def test_nothing_of_a_table_is_logged(site, scans, caplog):
    caplog.set_level(logging.DEBUG)
    rewrite(site, f"p1,{SECRET}.png,{SECRET},2", "p2,a.png,1,2")
    refused(site)
    assert SECRET not in caplog.text


def test_the_study_of_these_tests_is_one_of_pictures():
    assert "[data.picture]" in changed(STUDY_TOML, PICTURE)
