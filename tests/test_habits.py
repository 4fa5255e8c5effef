"""Habits that rot unless somebody looks: hooks like `make`, pages that keep up with rooms and versions, tidy files."""

import ast
import re
import shlex
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import yaml

import confide

from .architecture import rooms
from .test_hidden_imports import resolves
from .tiers import LONG, is_long

ROOT = Path(__file__).parents[1]
PACKAGES = ("coordinator", "client_node", "privacy", "mpc", "models")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
FOLDERS = ("docs", "tests", "examples", "benchmarks", *PACKAGES, "kernels")
TEXTS = [*ROOT.glob("*.*"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.*"))]
MOVED = re.findall(r"^\| `(confide\.[\w.]+)` \| `(confide\.[\w.]+)` \|$", CHANGELOG, re.MULTILINE)


@pytest.mark.process
def test_hooks_run_what_make_runs():
    command = ("make", "--no-print-directory", "--dry-run", "lint", "types")
    planned = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    made = [shlex.split(line, comments=True) for line in planned.stdout.splitlines()]
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = [shlex.split(hook["entry"].removeprefix("env ")) for hook in local["hooks"]]
    assert hooks == made
    assert local["repo"] == "local"
    assert {hook["language"] for hook in local["hooks"]} == {"system"}


@pytest.mark.parametrize("room", [room for package in PACKAGES for room in rooms(f"confide.{package}")])
def test_contributing_tells_of_every_room(room):
    assert f"| `{room.removeprefix('confide.').replace('.', '/')}` |" in CONTRIBUTING


def test_contributing_tells_of_no_room_that_is_gone():
    told = re.findall(r"^\| (?:`\w+`)? ?\| `(\w+/\w+)` \|", CONTRIBUTING, re.MULTILINE)
    assert {f"confide.{name.replace('/', '.')}" for name in told} == {
        room for package in PACKAGES for room in rooms(f"confide.{package}")
    }


def test_the_newest_version_of_the_changelog_is_the_package_s():
    newest = re.search(r"^## (\d+\.\d+\.\d+) \(\d{4}-\d{2}-\d{2}\)$", CHANGELOG, re.MULTILINE)
    assert newest[1] == confide.__version__


@pytest.mark.parametrize(("old", "new"), MOVED)
def test_names_that_the_changelog_calls_moved_are_where_it_says(old, new):
    assert not resolves(old)
    assert resolves(new)


@pytest.mark.parametrize("suffix", [".py", ".md", ".toml", ".html", ".css", ".svg", ".mako"])
def test_files_end_in_one_newline_and_no_line_in_spaces(suffix):
    texts = {path: path.read_bytes().decode() for path in TEXTS if path.suffix == suffix}
    assert texts
    untidy = re.compile(r"\r|[ \t]$|[^\n]\Z|\n\n\Z", re.MULTILINE)
    assert [str(path.relative_to(ROOT)) for path, text in texts.items() if untidy.search(text)] == []


def test_contributing_names_each_file_that_takes_long_and_why():
    told = re.findall(r"^\| `tests/([\w/.]+)` \| (.+) \|$", CONTRIBUTING, re.MULTILINE)
    assert dict(told) == LONG
    assert [path for path in LONG if not (ROOT / "tests" / path).exists()] == []


def test_a_file_in_a_folder_that_takes_long_takes_long():
    assert is_long("system/faults/test_disk.py")
    assert not is_long("systems/test_disk.py")


WAITS = {"sleep": 63, "monotonic": 69, "perf_counter": 5, "time": 54, "process_time": 2}


def test_no_test_sleeps_or_looks_at_a_clock_anew():
    """A sleep is no way to wait, and a busy machine fails what a clock decides. Who takes one out lowers the number."""
    found: Counter[str] = Counter()
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in WAITS:
                owner = node.func.value
                if isinstance(owner, ast.Name) and owner.id in {"time", "asyncio", "anyio"}:
                    found[node.func.attr] += 1
    assert [name for name, most in WAITS.items() if found[name] > most] == []
