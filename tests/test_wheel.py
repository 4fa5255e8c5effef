"""What a wheel holds, built from a copy of this tree: whoever installs it has all that a clone has."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import confide

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[1]
PACKAGES = ("coordinator", "client_node", "privacy", "mpc", "models", "kernels")
SOURCES = (*PACKAGES, "src", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built without a network: by the setuptools that is installed, in a copy that no older build has touched."""
    copy = tmp_path_factory.mktemp("tree")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            leave_out = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=leave_out)
        else:
            shutil.copy(ROOT / name, copy)
    built = tmp_path_factory.mktemp("wheel")
    command = (
        sys.executable,
        "-m",
        "pip",
        "wheel",
        ".",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--wheel-dir",
        built,
    )
    result = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    (path,) = built.iterdir()
    with zipfile.ZipFile(path) as archive:
        yield path, {name: archive.read(name) for name in archive.namelist()}


def test_a_wheel_is_for_any_platform_and_has_the_version(wheel):
    path, _ = wheel
    assert path.name == f"confide-{confide.__version__}-py3-none-any.whl"


def test_a_wheel_holds_every_file_of_every_package_and_no_other(wheel):
    _, held = wheel
    wanted = {
        f"confide/{path.relative_to(ROOT)}": path.read_bytes()
        for folder in PACKAGES
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    own = {f"confide/{path.name}": path.read_bytes() for path in (ROOT / "src" / "confide").iterdir() if path.is_file()}
    assert {name: text for name, text in held.items() if ".dist-info/" not in name} == wanted | own


@pytest.mark.parametrize(
    "name",
    [
        "confide/py.typed",
        "confide/privacy/report/templates/report.html",
        "confide/coordinator/gateway/fab/pyproject.toml",
        "confide/coordinator/gateway/fab/confide_run/server.py",
        "confide/coordinator/store/migrations/script.py.mako",
        "confide/coordinator/store/migrations/versions/0001_first_tables.py",
    ],
)
def test_a_wheel_holds_what_is_no_module(wheel, name):
    assert name in wheel[1]


def test_a_wheel_brings_both_commands_and_the_licence(wheel):
    path, held = wheel
    info = f"{'-'.join(path.name.split('-')[:2])}.dist-info"
    assert held[f"{info}/entry_points.txt"].decode().split() == [
        "[console_scripts]",
        *("client-node", "=", "confide.client_node.cli.main:app"),
        *("coordinator", "=", "confide.coordinator.cli.main:app"),
    ]
    assert held[f"{info}/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
