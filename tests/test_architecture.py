"""The house itself: faces of rooms, the rule that they are the only doors, and how it refuses to be entered wrongly."""

import ast
import doctest
import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

import confide

from .architecture import ROOT, Faces, face, rooms

PACKAGES = ("coordinator", "client_node", "privacy", "mpc", "models")
ROOMS = [room for package in PACKAGES for room in rooms(f"confide.{package}")]
FACES = [*(f"confide.{package}" for package in PACKAGES), *ROOMS, "confide.kernels.install"]
EXAMPLES = sorted((ROOT / "examples").rglob("*.py"))


@pytest.mark.parametrize("name", FACES)
def test_a_face_names_at_most_ten_things_beside_rooms_and_all_are_there(name):
    module = importlib.import_module(name)
    assert module.__all__
    assert len({f"{name}.{member}" for member in module.__all__} - set(rooms(name))) <= 10
    for member in module.__all__:
        assert hasattr(module, member) or importlib.import_module(f"{name}.{member}")


@pytest.mark.parametrize("name", FACES)
def test_the_examples_of_a_face_run(name):
    module = importlib.import_module(name)
    found = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert found.attempted > 0
    assert found.failed == 0


def lazily(name):
    """What a face imports for types alone, and what it tells `faces.lazy`, by module; None if it imports at once."""
    tree = ast.parse(Path(importlib.import_module(name).__file__).read_text())
    (choice,) = [node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)] or [
        0
    ]
    if not choice:
        return None
    typed = {node.module: {alias.name for alias in node.names} for node in choice.body}
    (told,) = choice.orelse
    return typed, {word.arg: set(word.value.value.split()) for word in told.value.keywords}


def test_lazy_faces_give_what_they_import_for_types():
    found = {name: both for name in FACES if (both := lazily(name))}
    assert len(found) >= 7
    assert [name for name, (typed, told) in found.items() if typed != told] == []


def test_a_lazy_face_does_not_make_names_up():
    with pytest.raises(AttributeError, match=r"module 'confide.coordinator.store' has no attribute 'Storage'"):
        _ = importlib.import_module("confide.coordinator.store").Storage


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_names_its_rooms(package):
    assert {room.rsplit(".", 1)[1] for room in rooms(f"confide.{package}")} <= set(face(f"confide.{package}"))


def test_an_import_past_a_face_is_reported():
    """The rule itself, on a graph with one import that it forbids and the same import where it is allowed."""
    graph = grimp.build_graph("confide", cache_dir=None)
    graph.add_import(
        importer="confide.coordinator.errors", imported="confide.mpc.party.coins",
        line_number=7, line_contents="from ..mpc.party import coins",
    )  # fmt: skip
    graph.add_import(
        importer="confide.mpc.party.handle", imported="confide.mpc.party.coins",
        line_number=9, line_contents="from . import coins",
    )  # fmt: skip
    rule = Faces(name="faces", session_options={}, contract_options={"packages": ["confide.mpc"]})
    broken = rule.check(graph, verbose=False).metadata["broken"]
    assert broken == [("confide.coordinator.errors", 7, "confide.mpc.party.coins", "confide.mpc.party")]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_use_faces_alone(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if not (isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("confide.")):
            continue
        *room, last = node.module.split(".")
        if ".".join(room) in ROOMS:
            assert last in face(".".join(room)), node.module
        if node.module in ROOMS:
            assert {alias.name for alias in node.names} <= face(node.module), node.module


@pytest.mark.process
@pytest.mark.parametrize("folder", PACKAGES)
def test_a_folder_imported_without_the_package_is_refused_with_a_sentence(folder):
    result = subprocess.run([sys.executable, "-c", f"import {folder}"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert f"ImportError: this folder is the package confide.{folder}: write" in result.stderr


@pytest.mark.process
def test_a_clone_without_symbolic_links_says_so(tmp_path):
    """Where git writes links as text files, neither `make` nor an import ends in a syntax error."""
    (tmp_path / "confide").mkdir()
    for path in (ROOT / "src" / "confide").iterdir():
        copy = tmp_path / "confide" / path.name
        if path.is_symlink():
            copy.write_text(str(path.readlink()))
        elif path.is_file():
            shutil.copy(path, copy)
    code = "import sys; sys.path.insert(0, '.'); import confide.coordinator.cli.main"
    result = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert "ImportError: confide's folders are missing" in result.stderr
    assert "core.symlinks=true" in result.stderr


@pytest.mark.process
def test_make_says_so_of_a_clone_without_symbolic_links(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "src" / "confide").mkdir(parents=True)
    for name in ("pyproject.toml", "requirements-smollm.txt", "src/confide/mpc"):
        (tmp_path / name).write_text("../../mpc")
    result = subprocess.run(["make", "setup"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2
    assert "core.symlinks=true" in result.stdout
    assert not (tmp_path / ".venv").exists()


def test_types_are_for_those_who_import_us_too():
    assert (Path(confide.__file__).parent / "py.typed").exists()
