"""A folder of Parquet parts is one table."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.client_node.data import check, read
from confide.client_node.data.sources import parquet
from confide.client_node.data.tables import Problems, open_table, stamp
from confide.client_node.errors import DataInvalid
from confide.client_node.policy.site_policy import load_policy

from ..conftest import Site


@pytest.fixture
def folder(site: Site) -> Path:
    """The site's table, cut in four parts, as the source that site.toml names."""
    table = pd.read_csv(site.home / "patients.csv", dtype=str, keep_default_na=False)
    parts = site.home / "parts"
    parts.mkdir()
    for row in range(4):
        table.iloc[[row]].to_parquet(parts / f"part-{row}.parquet", index=False)
    site.write(('path = "patients.csv"', 'path = "parts"'))
    return parts


def refused(site: Site) -> str:
    policy = load_policy(site.home)
    report = check(policy.data.source, policy, site.study())
    assert not report.is_fit
    return str(report.problems[0])


def test_parts_read_as_one_table_does(site, folder):
    by_parts = read(load_policy(site.home), site.study(), site=None)
    site.write()
    by_file = read(load_policy(site.home), site.study(), site=None)
    for name, column in by_file.columns.items():
        np.testing.assert_array_equal(by_parts.columns[name], column)
    np.testing.assert_array_equal(by_parts.units, by_file.units)
    np.testing.assert_array_equal(by_parts.labels, by_file.labels)


def test_marks_of_what_wrote_the_parts_are_no_parts(site, folder):
    (folder / "_SUCCESS").touch()
    (folder / ".part-0.parquet.crc").write_bytes(b"x")
    assert read(load_policy(site.home), site.study(), site=None).num_units == 3


def test_rows_are_counted_through_all_parts_in_the_order_of_names(site, folder):
    frame = pd.read_parquet(folder / "part-2.parquet")
    frame["age"] = "x34"
    frame.to_parquet(folder / "part-2.parquet", index=False)
    assert refused(site) == "line 3, column age: expected a number, found text"


def _link(folder: Path) -> None:
    (folder / "part-4.parquet").symlink_to(folder / "part-0.parquet")


def _inner(folder: Path) -> None:
    (folder / "part-4.parquet").mkdir()


def _pipe(folder: Path) -> None:
    os.mkfifo(folder / "part-4.parquet")


def _other(folder: Path) -> None:
    (folder / "zq7secret.csv").write_text("patient_id\n")


def _columns(folder: Path) -> None:
    pd.read_parquet(folder / "part-1.parquet").drop(columns="sick").to_parquet(folder / "part-1.parquet", index=False)


def _types(folder: Path) -> None:
    pd.read_parquet(folder / "part-1.parquet").astype({"age": int}).to_parquet(folder / "part-1.parquet", index=False)


def _order(folder: Path) -> None:
    frame = pd.read_parquet(folder / "part-1.parquet")
    frame[[*reversed(frame.columns)]].to_parquet(folder / "part-1.parquet", index=False)


def _cut(folder: Path) -> None:
    part = folder / "part-3.parquet"
    part.write_bytes(part.read_bytes()[:-9])


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    ("break_", "expected"),
    [
        (_link, "a link, a folder or a device"), (_inner, "a link, a folder or a device"),
        (_pipe, "a link, a folder or a device"), (_other, "a file of another kind"),
        (_columns, "the columns of part-0"),
        (_types, "the columns of part-0"), (_order, "the columns of part-0"), (_cut, "expected a PARQUET file"),
        (_empty, "found none"),
    ],
)  # fmt: skip
def test_a_folder_that_is_not_one_table_is_told(site, folder, break_, expected):
    break_(folder)
    message = refused(site)
    assert expected in message
    assert "zq7" not in message


def test_a_part_that_changes_after_the_folder_was_opened_is_told(site, folder):
    table = open_table(folder)
    _columns(folder)
    with pytest.raises(DataInvalid, match="the columns that it had when it was opened"):
        list(table.batches(["age"], Problems()))


def test_limits_hold_for_all_parts_together(site, folder, monkeypatch):
    monkeypatch.setattr(parquet, "MAX_ROWS", 3)
    assert "at most 3 rows" in refused(site)
    monkeypatch.undo()
    monkeypatch.setattr(parquet, "MOST_PARTS", 3)
    assert "at most 3 parts" in refused(site)


def test_a_folder_has_the_stamps_of_its_parts(folder):
    before = stamp(folder)
    assert stamp(folder) == before
    part = folder / "part-3.parquet"
    os.utime(part, ns=(1, 1))
    after = stamp(folder)
    assert after != before
    part.rename(folder / "part-5.parquet")
    assert stamp(folder) not in (before, after)


@given(st.data())
def test_a_damaged_part_gives_rows_or_one_error(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("parts")
    pq.write_table(pa.table({"age": ["34", "35"], "n": [1, 2]}), folder / "a.parquet", compression="none")
    raw = bytearray((folder / "a.parquet").read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=4)):
        raw[place] ^= data.draw(st.integers(1, 255))
    (folder / "a.parquet").write_bytes(raw)
    with suppress(DataInvalid):
        table = open_table(folder)
        list(table.batches(table.names, Problems()))
