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
        for part, rows in (("train", 100), ("heldout", 15)):
            with (directory / site / f"{part}.csv").open("w", newline="") as file:
                csv.writer(file).writerows([["id", "note"], *([i, "two\\nlines"] for i in range(rows))])
        paths = {part: str(directory / site / f"{part}.csv") for part in ("train", "heldout")}
        found[site] = paths | {"units": 100, "heldout_units": 15}
    return found
"""


@pytest.fixture
def bench(tmp_path, monkeypatch, write_draft):
    """Prepares the tables of an example in a folder, whole or short; its backbone is a file."""
    (tmp_path / "examples" / "thyroid").mkdir(parents=True)
    (tmp_path / "examples" / "thyroid" / "prepare.py").write_text(PREPARE)
    monkeypatch.setattr(demo, "_EXAMPLES", tmp_path / "examples")
    monkeypatch.setattr(
        demo, "_make_backbone", lambda draft, directory, console, is_smoke: directory.write_text("weights")
    )
    draft, console = load_draft(write_draft()), Console(quiet=True)
    return lambda is_smoke: demo._workbench("thyroid", draft, tmp_path / "demo", console, is_smoke=is_smoke)


def rows(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def test_a_smoke_run_keeps_the_first_records_and_counts_them(bench):
    table = bench(True).tables["svi"]
    assert (table["units"], table["heldout_units"]) == (40, 10)
    assert (len(rows(table["train"])), len(rows(table["heldout"]))) == (41, 11)
    assert rows(table["train"])[40] == ["39", "two\nlines"]


def test_a_smoke_run_reads_few_records_if_the_example_can(bench, tmp_path):
    script = tmp_path / "examples" / "thyroid" / "prepare.py"
    script.write_text(f"{PREPARE.replace('100', '20')}\n\nprepare_few = prepare\n{PREPARE}")
    assert len(rows(bench(True).tables["svi"]["train"])) == 21


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


@pytest.mark.parametrize("example", ["derivations", "code"])  # one says how much is written, one leaves it out
def test_the_study_of_a_smoke_run_writes_little_and_that_of_a_whole_demo_what_the_example_says(example, tmp_path):
    whole, file = demo._draft(example, None), tmp_path / "study.toml"
    for draft in (whole, demo._shortened(demo._draft(example, 2))):
        file.write_text(demo._study_text(draft, demo.Workbench(root=tmp_path, tables={})))
        found = load_draft(file)
        assert (found.data, found.rounds) == (draft.data, draft.rounds)
    assert found.data.terms.max_written == 12 < whole.data.terms.max_written


def point(value, site, noise):
    return {"value": value, "site": site, "noise_multiplier": noise}


OUTCOME = {
    "auc_private": 0.952, "auc_private_interval": [0.943, 0.96], "auc_measured": 0.934, "accuracy_private": 0.9,
    "auc_measured_interval": [0.915, 0.953], "auc_measured_binning": 0.015, "auc_before": 0.5, "auc_nonprivate": 0.955,
    "ladder": [
        {"rung": rung, "name": name, "points": [point(*each) for each in points]}
        for rung, name, points in (
            ("constant", "best constant", [(0.5, None, 0.0)]),
            ("site", "best site alone", [(0.93, "a", 1.0), (0.94, "b", 0.0)]),
            ("words", "linear on words", [(0.956, None, 1.0)]),
            ("adapters", "adapters", [(0.952, None, 1.0)]),
        )
    ],
    "epsilon": 2.72, "epsilon_rdp": 3.0,
    "epsilon_guaranteed": 3.29, "unit": "patient", "delta": 1e-5,
    "audit": None, "bytes_per_site_round": 70000, "seconds_per_round": 1.5, "peak_memory_gib": 5.7,
    "membership": [{"auc": "0.5", "auc_low": "0.49", "auc_high": "0.51", "attacked": "the adapter"}],
}  # fmt: skip


def test_the_first_figure_is_what_the_sites_measured_and_controls_stand_below():
    """A federation cannot pool its held-out records, and an attack that finds nothing anywhere is no result."""
    rows = demo.figures(OUTCOME)
    name, figure, text = rows[0]
    assert "AUC" in name
    assert "0.934" in figure
    assert "0.915 to 0.953 over records and the counts' noise; bins hide up to 0.015" in text
    names = [row[0].strip() for row in rows]
    assert names.index("controls") < names.index("exact") < names.index("best constant")
    assert [row[0].strip() for row in rows[-3:]] == ["best constant", "best site alone", "linear on words"]
    assert rows[-2][1:] == ("0.930", "same noise (a); 0.940 without")
    assert not any("attack" in " ".join(row) for row in rows)


def test_programs_are_told_from_mutants_where_errors_have_a_place():
    shares = {f"{name}_{when}": 0.25 for name in ("parses", "boundaries", "perplexity") for when in
              ("private", "nonprivate", "before")}  # fmt: skip
    outcome = {name: value for name, value in OUTCOME.items() if "auc" not in name and name != "ladder"} | shares
    outcome |= {"parses_private_interval": [0.2, 0.3], "parses_measured": 0.2, "parses_measured_interval": [0.1, 0.3]}
    names = [row[0].strip() for row in demo.figures(outcome)]
    assert names[-5:] == ["exact", "without privacy", "before", "boundaries", "perplexity"]
    preferred = {"preferred_private": 0.8, "preferred_nonprivate": 0.85, "preferred_before": 0.7}
    name, value, text = demo.figures(outcome | preferred)[-2]
    assert (name.strip(), value) == ("preferred", "0.800")
    assert text.endswith("one error; 0.850 without noise, 0.700 before")


def test_without_an_evaluation_nothing_computed_here_takes_the_first_place():
    unmeasured = dict.fromkeys(("auc_measured", "auc_measured_interval", "auc_measured_binning"))
    name, figure, text = demo.figures(OUTCOME | unmeasured)[0]
    assert (name, figure) == ("AUC", "")
    assert "not measured by the sites" in text
