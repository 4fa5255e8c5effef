"""Names of modules that stand in strings, where no import statement and no type checker sees them."""

import ast
import importlib
import re
import tomllib
from pathlib import Path

import pytest

from confide.client_node.study.terms import PrivacyTerms

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGE_DATA = PROJECT["tool"]["setuptools"]["package-data"]
FOLDERS = ("coordinator", "client_node", "privacy", "mpc", "models", "kernels", "benchmarks", "examples", "tests")
PACKAGES = FOLDERS[:6]
DOTTED = re.compile(rf"\bconfide\.(?:{'|'.join(PACKAGES)})(?:\.\w+)*")  # not `confide.json`, nor a key of a message
SHORT = re.compile(rf"`((?:{'|'.join(PACKAGES)})(?:\.\w+)+)[`(]")  # as prose names a module of ours
NO_MODULES = {"coordinator.db", *(f"privacy.{name}" for name in PrivacyTerms.model_fields)}  # a file, and settings
TEXTS = sorted([*(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")),
                *ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.md")])  # fmt: skip


def strings(path: Path) -> set[str]:
    """Dotted names of ours in the string literals of a source, docstrings and f-strings included."""
    tree = ast.parse(path.read_text())
    texts = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return {name for text in texts for name in DOTTED.findall(text)}


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or something that a module holds."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            thing = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            if not hasattr(thing, part):
                return False
            thing = getattr(thing, part)
        return True
    return False


@pytest.fixture(scope="module")
def named() -> list[tuple[str, str]]:
    """Paths of sources with the names that their strings hold; a fixture, as every worker collects all tests."""
    files = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    return sorted((str(path.relative_to(ROOT)), name) for path in files for name in strings(path))


def test_every_module_that_a_string_names_exists(named):
    assert len(named) > 100
    assert [(path, name) for path, name in named if not resolves(name)] == []


def test_every_module_that_prose_names_exists():
    """In comments and docstrings, where a module that has moved keeps its old name unseen."""
    named = {(str(path.relative_to(ROOT)), name) for path in TEXTS for name in SHORT.findall(path.read_text())}
    assert len(named) > 5
    assert [each for each in sorted(named) if each[1] not in NO_MODULES and not resolves(f"confide.{each[1]}")] == []


def test_processes_of_ours_are_started_by_names_that_strings_hold(named):
    started = {name for path, name in named if not path.startswith("tests/")}
    parties = {"confide.mpc.party.process", "confide.mpc.party.shard_process"}
    assert parties | {"confide.client_node.training.worker_process"} <= started


@pytest.mark.parametrize("name", PROJECT["project"]["scripts"].values())
def test_every_command_is_an_application(name):
    module, _, attribute = name.partition(":")
    assert callable(getattr(importlib.import_module(module), attribute))


@pytest.mark.parametrize(
    ("package", "pattern"),
    [(package, pattern) for package, patterns in PACKAGE_DATA.items() for pattern in patterns],
)
def test_every_pattern_of_package_data_matches_a_file(package, pattern):
    folder = Path(importlib.import_module(package).__path__[0])
    assert list(folder.glob(pattern))


def test_no_file_beside_the_code_stays_out_of_the_package():
    """What a wheel must hold and is no module: pages, the bundle for Flower, the schema's migrations."""
    held = set()
    for package, patterns in PACKAGE_DATA.items():
        folder = ROOT / package.removeprefix("confide.").replace(".", "/")
        held |= {path for pattern in patterns for path in folder.glob(pattern)}
    beside = {path for folder in PACKAGES for path in (ROOT / folder).rglob("*")
              if path.is_file() and path.suffix not in (".py", ".pyc")}  # fmt: skip
    assert beside <= held


def test_modules_that_tools_are_told_of_exist():
    rules = PROJECT["tool"]["importlinter"]["contracts"]
    layers = [name.strip() for rule in rules for layer in rule.get("layers", []) for name in layer.split("|")]
    named = [*layers, *(name for rule in PROJECT["tool"]["mypy"]["overrides"] for name in rule["module"])]
    ours = [name for name in named if name.startswith("confide.")]
    assert ours
    assert [name for name in ours if not resolves(name)] == []
