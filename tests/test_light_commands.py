"""Commands import what they use: a help text takes no database, a status no model, and no package's face all its rooms.

Imports are counted, not timed; benchmarks/startup.py has the seconds.
"""

import subprocess
import sys

import pytest

from confide.coordinator.federation import Settings, create_home

from .client_node.conftest import site_in

pytestmark = [pytest.mark.process, pytest.mark.slow]

HEAVY = {"torch", "transformers", "opacus", "flwr", "scipy", "sklearn", "dp_accounting", "pandas", "pyarrow", "grpc"}
OF_A_DATABASE = {"sqlalchemy", "alembic", "numpy", "httpx", "pydantic", "cryptography", "uvicorn", "jinja2"}


def imported(program, *words):
    """The outermost names of all modules that a command has imported at its end, in a process of its own."""
    script = (
        f"import sys; from confide.{program}.cli.main import app\n"
        "try:\n    app(sys.argv[1:])\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "print('IMPORTED', *{name.partition('.')[0] for name in sys.modules})"
    )
    told = subprocess.run([sys.executable, "-c", script, *map(str, words)], capture_output=True, text=True, timeout=300)
    assert told.returncode == 0, told.stdout + told.stderr
    return set(told.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize("program", ["coordinator", "client_node"])
@pytest.mark.parametrize("words", [["--help"], ["study", "--help"], ["budget", "report", "--help"]], ids=" ".join)
def test_a_help_text_imports_nothing_heavy(program, words):
    assert imported(program, *words) & (HEAVY | OF_A_DATABASE) == set()


@pytest.mark.parametrize("words", ["status", "site list", "study list", "run list"])
def test_lists_of_the_coordinator_import_no_model_and_no_arithmetic(tmp_path, words):
    create_home(tmp_path / "home", Settings(federation="f", address="h:1", listen="h", port=1, superlink_port=2))
    assert imported("coordinator", *words.split(), "--home", tmp_path / "home") & (HEAVY | {"numpy", "httpx"}) == set()


@pytest.mark.parametrize("words", ["status", "decisions", "site list"])
def test_status_of_a_node_imports_no_model_and_no_accountant(tmp_path, words):
    assert imported("client_node", *words.split(), "--home", site_in(tmp_path).home) & HEAVY == set()


def test_the_targets_of_a_study_are_checked_without_a_model():
    """The table of families is read for it, and each is a file that knows a class of transformers by its name alone."""
    script = "import sys, confide.client_node.study.terms; print(*{name.partition('.')[0] for name in sys.modules})"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=True)
    assert {*told.stdout.split()} & HEAVY == set()
