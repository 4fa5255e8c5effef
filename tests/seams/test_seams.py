"""A new family of backbones and a new kind of record take one file each, and a line in a table."""

import subprocess
import sys
from pathlib import Path

import pytest

CHECKS = Path(__file__).with_name("checks.py")


@pytest.mark.process
def test_a_study_of_a_new_kind_on_a_new_backbone_runs_like_any_other():
    """In a process of its own: the tables are read when the study's schema is made."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--noconftest", CHECKS]
    result = subprocess.run(command, cwd=CHECKS.parents[2], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout[-4000:]
    assert "passed" in result.stdout
