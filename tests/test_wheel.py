"""What a wheel holds, built from a copy of this tree, and what it does where nothing but its dependencies is installed.

The bare environment is a new one into which pip installs the wheel. Its dependencies are not downloaded again: those
that the wheel's metadata asks for, and theirs, are linked from the environment that runs the tests. So a package that
is imported and not asked for is missing there, as are the repository, CrypTen as published, and the tools.
"""

import importlib.metadata
import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import confide
from confide.machine import free_ports

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[1]
PACKAGES = ("coordinator", "client_node", "privacy", "mpc", "models", "kernels", "third_party")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built by what `make wheelhouse` builds with, and what it holds."""
    built = tmp_path_factory.mktemp("wheel")
    command = (sys.executable, ROOT / "tools" / "wheel.py", built)
    result = subprocess.run(command, capture_output=True, text=True)
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
        "confide/privacy/report/languages/de.toml",
        "confide/coordinator/gateway/fab/pyproject.toml",
        "confide/coordinator/gateway/fab/confide_run/server.py",
        "confide/coordinator/store/migrations/script.py.mako",
        "confide/coordinator/store/migrations/versions/0001_first_tables.py",
        "confide/client_node/words.txt",
        "confide/third_party/crypten/LICENSE",
        "confide/third_party/crypten/configs/default.yaml",
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
    for name in ("LICENSE", "third_party/crypten/LICENSE"):
        assert held[f"{info}/licenses/{name}"] == (ROOT / name).read_bytes()


def needed(requirements):
    """Distributions here that fulfil the requirements, and theirs, with the extras that are asked for."""
    found, waiting = {}, [(Requirement(text), "") for text in requirements]
    while waiting:
        one, asked = waiting.pop()
        if one.marker and not one.marker.evaluate({"extra": asked}):
            continue
        distribution = importlib.metadata.distribution(one.name)
        for extra in {"", *one.extras} - found.setdefault(distribution.name, set()):
            found[distribution.name].add(extra)
            waiting += [(Requirement(text), extra) for text in distribution.requires or ()]
    return [importlib.metadata.distribution(name) for name in found]


SCRIPT = "#!{python}\nimport sys\nfrom {module} import {name}\nsys.exit({name}())\n"


class Bare:
    """An environment of the wheel and its dependencies, and an empty folder in which its programs run."""

    def __init__(self, folder, wheel):
        self.folder, self.bin = folder / "empty", folder / "env" / "bin"
        self.folder.mkdir()
        self.variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        self._run(sys.executable, "-m", "venv", "--without-pip", folder / "env")
        pip = (sys.executable, "-m", "pip", "--python", self.bin / "python")
        self._run(*pip, "install", "--no-index", "--no-deps", "--isolated", wheel)
        packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder / "env")}))
        (ours,) = importlib.metadata.distributions(path=[str(packages)])
        for distribution in needed(ours.requires):
            for name in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
                if not (packages / name).exists():
                    (packages / name).symlink_to(distribution.locate_file(name))
            for one in distribution.entry_points.select(group="console_scripts"):
                script = self.bin / one.name
                script.write_text(SCRIPT.format(python=self.bin / "python", module=one.module, name=one.attr))
                script.chmod(0o700)

    def __call__(self, program, *arguments):
        return self._run(self.bin / program, *arguments)

    def _run(self, *command):
        how = {"cwd": self.folder, "env": self.variables, "capture_output": True, "text": True, "timeout": 300}
        result = subprocess.run(command, **how)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout


@pytest.fixture(scope="module")
def bare(wheel, tmp_path_factory):
    return Bare(tmp_path_factory.mktemp("bare"), wheel[0])


def test_nothing_but_the_wheel_and_what_it_asks_for_is_there(bare):
    path = bare("python", "-c", "import confide; print(confide.__file__)").strip()
    assert Path(path).is_relative_to(bare.bin.parent)
    code = "from importlib.util import find_spec; print([bool(find_spec(name)) for name in ('crypten', 'pytest')])"
    assert bare("python", "-c", code) == "[False, False]\n"


@pytest.mark.parametrize("program", ["coordinator", "client-node"])
def test_a_bare_installation_has_both_commands(bare, program):
    assert "Usage:" in bare(program, "--help")


@pytest.mark.slow
def test_a_bare_installation_founds_a_federation_and_a_node_enrols(bare, tmp_path):
    coordinator, node = (("--home", tmp_path / name) for name in ("coordinator", "north"))
    gate, superlink = free_ports(2)
    ports = ("--port", str(gate), "--superlink-port", str(superlink))
    bare("coordinator", "init", *coordinator, "--federation", "Wheel", "--host", "127.0.0.1", *ports)
    command = (bare.bin / "coordinator", "serve", *coordinator)
    with subprocess.Popen(command, cwd=bare.folder, env=bare.variables, stderr=subprocess.PIPE, text=True) as serving:
        try:
            seen = ""
            while "the SuperLink answers" not in seen:
                line = serving.stderr.readline()
                assert line, f"serve ended: {seen}"
                seen += line
            code = json.loads(bare("coordinator", "site", "invite", "north", "--json", *coordinator))["code"]
            bare("client-node", "enroll", code, *node)
        finally:
            serving.terminate()
            serving.communicate(timeout=120)
    assert "north" in bare("client-node", "status", *node)
    assert "enrolled" in bare("coordinator", "status", *coordinator)


@pytest.mark.slow
def test_three_parties_of_a_bare_installation_add_up_with_its_crypten(bare, tmp_path):
    assert bare("python", ROOT / "tests" / "sum_of_three.py", tmp_path) == "the sum is right\n"


IMPORTS = """
import importlib, json, sys
missing = {}
for name in json.loads(sys.argv[1]):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as err:
        missing[name] = err.name
print(json.dumps(missing))
"""
NO_IMPORTS = ("confide/third_party/", "confide/coordinator/gateway/fab/", "confide/coordinator/store/migrations/")
"""What is loaded by CrypTen's own name, by Flower and by Alembic."""
EXTRAS = {
    "confide.client_node.training.sharding": "deepspeed",
    "confide.kernels.triton_kernels": "triton",
    "confide.kernels.triton_segment_kernels": "triton",
}
"""What needs a package of an extra; Triton comes with torch's ordinary build too."""


@pytest.mark.slow
def test_all_modules_import_with_what_the_wheel_asks_for_except_those_of_an_extra(bare, wheel):
    files = [name for name in wheel[1] if name.endswith(".py") and not name.startswith(NO_IMPORTS)]
    modules = [name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in files]
    assert len(modules) > 200
    missing = json.loads(bare("python", "-c", IMPORTS, json.dumps(modules)))
    assert "confide.client_node.training.sharding" in missing
    assert missing.items() <= EXTRAS.items()
