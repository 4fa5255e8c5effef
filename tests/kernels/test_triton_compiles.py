"""Every Triton kernel compiles for GPUs that nobody here owns, within what they have; and the judge can say no.

In processes of their own, as compiled kernels and interpreted ones cannot live in one.
"""

import importlib.util
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

GATE = Path(__file__).resolve().parents[2] / "benchmarks" / "triton_resources.py"
KERNELS = {
    "gate_up_kernel", "grouped_kernel", "combine_kernel", "inner_gradient_kernel", "run_products_kernel",
    "run_norms_kernel", "run_sums_kernel",
}  # fmt: skip
OF_SEGMENTS = {"shares_kernel", "slopes_kernel", "block_sums_kernel", "query_sums_kernel"}
HEADS = {"192,128,32", "48,32,16"}
WITHOUT_PRODUCTS = {"combine_kernel", "query_sums_kernel"}

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton has no wheel for this platform"),
]


@pytest.fixture
def gate(tmp_path):
    def run(*options):
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        environment["TRITON_CACHE_DIR"] = str(tmp_path)
        command = [sys.executable, GATE, "--json", *options]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode in (0, 1), done.stderr
        rows = json.loads(done.stdout)
        assert done.returncode == any(row["broken"] for row in rows)
        return rows

    return run


def test_kernels_stay_within_the_limits(gate):
    rows = gate("--capability", "80", "--capability", "90", "--capability", "100")
    kernels = {*itertools.product(["dense"], KERNELS), *itertools.product(HEADS, OF_SEGMENTS)}
    found = {(row["capability"], (row["format"], row["kernel"])) for row in rows}
    assert found == set(itertools.product((80, 90, 100), kernels))
    for row in rows:
        assert not row["broken"], row
        assert row["spilled_bytes"] == 0
        assert row["registers"] <= 255
        if row["kernel"] not in WITHOUT_PRODUCTS:
            assert row["tensor_core"] > 0
            assert row["async_copies"] > 0


def test_codes_are_widened_within_the_limits(gate):
    # The one that widens two tiles at once, and the one that reads them the other way round.
    formats, kernels = ("int8", "nf4", "fp8"), ("gate_up_kernel", "inner_gradient_kernel")
    options = [f"--format={name}" for name in formats] + [f"--kernel={name}" for name in kernels]
    rows = gate("--capability", "90", *options)
    assert {(row["format"], row["kernel"]) for row in rows} == set(itertools.product(formats, kernels))
    assert not [row for row in rows if row["broken"]]


def test_segments_of_other_windows_stay_within_the_limits(gate):
    # The one that holds most at once, where registers are scarcest.
    heads = {f"192,128,{window}" for window in (16, 64, 128)}
    rows = gate("--capability", "80", *(f"--head={head}" for head in heads), "--kernel", "slopes_kernel")
    assert {row["format"] for row in rows} == heads
    assert not [row for row in rows if row["broken"]]


def test_a_head_whose_rows_start_anywhere_is_noticed(gate):
    (row,) = gate("--capability", "80", "--head", "191,127,32", "--kernel", "shares_kernel")
    assert row["broken"] == ["no asynchronous copy"]


@pytest.mark.parametrize(
    ("limit", "options"),
    [
        ("spills", ["--tile", "128,128,64,4,3"]),
        ("shared memory", ["--tile", "64,64,128,4,8"]),
        ("no asynchronous copy", ["--model", "1023"]),  # rows that start anywhere are read element by element
        ("no tensor cores", ["--dtype", "float32"]),  # full precision takes the ordinary units
    ],
)
def test_broken_limit_is_noticed(gate, limit, options):
    (row,) = gate("--capability", "80", "--kernel", "gate_up_kernel", *options)
    assert limit in row["broken"]
