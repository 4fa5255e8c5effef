"""The program benchmarks/utility.py runs as it stands: every rung of a real example, on few records."""

import json
import runpy
from pathlib import Path

import pytest

from confide.coordinator.comparison import federated
from confide.coordinator.comparison.ladder import RUNGS

PROGRAM = Path(__file__).resolve().parents[3] / "benchmarks" / "utility.py"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def program():
    return runpy.run_path(str(PROGRAM))


def test_quick_climbs_every_rung_of_a_table_and_then_computes_nothing(program, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(federated, "_ROWS_TRAINED", 12)  # shapes of batches are probed up to that
    program["main"](["--quick", "--dir", str(tmp_path)])
    table = capsys.readouterr().out
    assert "thyroid: AUC on 120 held-out records" in table
    assert all(f"| {RUNGS[rung]} |" in table for rung in ("constant", "site", "words", "head", "adapters"))
    assert "Left out, linear on groups of letters: records of fields" in table
    assert "Tried on these held-out records so far: 15 runs" in table  # 1 + (4 sites + 3) at two noises
    program["main"](["--quick", "--dir", str(tmp_path), "--json"])
    assert json.loads(capsys.readouterr().out)["tried"]["runs"] == 15


def test_quick_reads_texts_without_a_backbone_if_no_rung_needs_one(program, tmp_path, capsys):
    words = ["--quick", "--task", "diagnoses", "--rung", "constant", "words", "ngrams", "--dir", str(tmp_path)]
    program["main"](words)
    assert "| linear on groups of letters |" in capsys.readouterr().out
    assert not (tmp_path / "backbone").exists()
