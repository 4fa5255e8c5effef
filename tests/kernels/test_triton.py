"""The Triton backend, judged in a process of its own: see triton_interpreted.py."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKS = Path(__file__).with_name("triton_interpreted.py")

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton has no wheel for this platform"
)


def test_interpreted_kernels_pass_all_their_checks():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", CHECKS]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    summary = done.stdout.splitlines()[-1]
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in summary
    assert "skipped" not in summary
