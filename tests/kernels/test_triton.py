"""The Triton backend, judged in processes of their own: see triton_checks.py."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CHECKS = Path(__file__).with_name("triton_checks.py")

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton has no wheel for this platform"),
]


def summary_of_checks(**variables):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | variables
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", CHECKS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = done.stdout.splitlines()[-1]
    assert "passed" in summary
    return summary


def test_kernels_pass_all_checks_in_the_interpreter():
    assert "skipped" not in summary_of_checks(TRITON_INTERPRET="1")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_kernels_pass_their_checks_on_a_gpu():
    summary_of_checks()
