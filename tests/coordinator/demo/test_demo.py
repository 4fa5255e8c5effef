"""What a demo keeps between its starts; `tests/system` runs whole ones."""

import csv

import pytest
from rich.console import Console

from confide.client_node.study.terms import load_draft
from confide.coordinator.demo import demo
from confide.coordinator.errors import DemoFailed

from ...client_node.conftest import write_draft

__all__ = ["write_draft"]  # a fixture
PREPARE = """
import csv
def prepare(directory):
    found = {}
    for site in ("other", "svi", "svhc", "rest"):
        (directory / site).mkdir(parents=True)
        for part, rows in (("train", 100), ("heldout", 10)):
            with (directory / site / f"{part}.csv").open("w", newline="") as file:
                csv.writer(file).writerows([["id", "note"], *([i, "two\\nlines"] for i in range(rows))])
        paths = {part: str(directory / site / f"{part}.csv") for part in ("train", "heldout")}
        found[site] = paths | {"units": 100, "heldout_units": 10}
    return found
"""


@pytest.fixture
def bench(tmp_path, monkeypatch, write_draft):
    """Prepares the tables of an example in a folder, whole or short; its backbone is a file."""
    (tmp_path / "examples" / "thyroid").mkdir(parents=True)
    (tmp_path / "examples" / "thyroid" / "prepare.py").write_text(PREPARE)
    monkeypatch.setattr(demo, "_EXAMPLES", tmp_path / "examples")
    monkeypatch.setattr(demo, "_make_backbone", lambda draft, directory, console: directory.write_text("weights"))
    draft, console = load_draft(write_draft()), Console(quiet=True)
    return lambda is_smoke: demo._workbench("thyroid", draft, tmp_path / "demo", console, is_smoke=is_smoke)


def rows(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def test_a_smoke_run_keeps_the_first_records_and_counts_them(bench):
    table = bench(True).tables["svi"]
    assert (table["units"], table["heldout_units"]) == (60, 10)
    assert (len(rows(table["train"])), len(rows(table["heldout"]))) == (61, 11)
    assert rows(table["train"])[60] == ["59", "two\nlines"]


@pytest.mark.parametrize("first", [True, False])
def test_a_whole_demo_and_a_smoke_run_never_share_tables(bench, first):
    bench(first)
    bench(first)  # goes on
    with pytest.raises(DemoFailed, match="choose another folder"):
        bench(not first)


def test_the_tables_of_another_example_are_refused(bench, tmp_path):
    bench(False)
    described = tmp_path / "demo" / "data" / "tables.json"
    described.write_text(described.read_text().replace("svhc", "north"))
    with pytest.raises(DemoFailed, match="another example"):
        bench(False)
