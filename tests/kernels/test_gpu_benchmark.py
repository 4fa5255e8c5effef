"""What a GPU will be measured with runs today: every section of benchmarks/gpu.py, on the CPU and tiny shapes."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROGRAM = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.py"
NO_GPU = 3

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton has no wheel for this platform"),
]


def gpu(*options):
    hidden = ("TRITON_INTERPRET", "CONFIDE_MOE_BACKEND", "CONFIDE_SEGMENTS_BACKEND")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    return subprocess.run([sys.executable, PROGRAM, *options], env=environment, capture_output=True, text=True)


def sections(*names):
    done = gpu("--check", "--brief", "--json", "--only", *names)
    found = {section["name"]: section for section in json.loads(done.stdout)["sections"]}
    assert {name: section["problem"] for name, section in found.items()} == dict.fromkeys(names, "")
    assert done.returncode == 0
    return found


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_sentence_says_so():
    done = gpu()
    assert done.returncode == NO_GPU
    assert done.stdout == ""
    assert done.stderr.startswith("No GPU was found")
    assert done.stderr.count("\n") == 1


def test_a_case_of_tiles_that_does_not_exist_is_a_wrong_option():
    assert gpu("--tune", "nf4:33").returncode == 2


def test_a_section_that_fails_says_so_and_the_next_one_runs(monkeypatch):
    spec = importlib.util.spec_from_file_location("gpu_benchmark", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)

    def broken(plan):
        raise RuntimeError("no more memory")

    monkeypatch.setattr(module, "RUN", {"step": broken, "workers": lambda plan: module.Section("workers", ["well"])})
    seen = []
    first, second = module.run(None, ["step", "workers"], seen.append)
    assert seen == [first, second]
    assert "RuntimeError: no more memory" in module.described(first)
    assert (second.lines, second.problem) == (["well"], "")


def test_a_table_that_could_not_be_written_is_noticed_first(tmp_path):
    done = gpu("--out", str(tmp_path / "absent" / "gpu.md"))
    assert done.returncode == 2
    assert "no folder" in done.stderr


@pytest.mark.slow
def test_every_measurement_runs_in_the_interpreter():
    found = sections("exactness", "tiles", "experts", "step")
    assert all(row["ok"] for row in found["exactness"]["data"])
    tuned = found["tiles"]["data"][0]
    assert tuned["case"] == {"format": "nf4", "itemsize": 4, "rank": 16, "pairs": 16}
    methods = found["experts"]["data"]["tiny"]["ms"]["LoRA forward + backward"]
    assert {"limit", "ours", "peft", "norms", "clipped"} <= methods.keys()
    for row in found["step"]["data"]["tiny"]:
        assert set(row["ms"]) == {"plain", "clipped", "private"}
        # Whether they do is up to NumPy's product here, which on some processors gives a last row other bits.
        assert row["rows agree"] is (row["batches"] != "one unit at a time")


@pytest.mark.slow
def test_checks_and_compilation_start():
    found = sections("checks", "resources")
    assert "passed" in found["checks"]["data"]
    assert {(row["capability"], row["kernel"]) for row in found["resources"]["data"]} == {
        (80, "combine_kernel"),
        (90, "combine_kernel"),
    }


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="the extra is not installed")
def test_two_workers_start():
    (row,) = sections("workers")["workers"]["data"].values()
    assert row["seconds a step"] > 0
