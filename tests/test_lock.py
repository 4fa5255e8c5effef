"""The lock has all that pyproject.toml asks for, in its ranges, with hashes; the copy of CrypTen is as published."""

import hashlib
import importlib.metadata
import re
import runpy
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import confide

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK, CUDA_LOCK = (ROOT / name for name in ("requirements-lock.txt", "requirements-lock-cuda.txt"))
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def spelt(name):
    """A package's name as its index spells it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def entries(path):
    """Requirements of a lock, each with its hashes."""
    found = []
    for entry in path.read_text().replace("\\\n", " ").splitlines():
        if not entry.startswith("#"):
            requirement, *hashes = re.split(r"\s+(?=--hash)", entry.strip())
            found.append((Requirement(requirement), hashes))
    return found


LOCKED = {one.name: one for path in (LOCK, CUDA_LOCK) for one, _ in entries(path)}


@pytest.mark.parametrize("path", [LOCK, CUDA_LOCK], ids=lambda path: path.name)
def test_every_entry_is_one_version_with_hashes(path):
    for one, hashes in entries(path):
        assert [spec.operator for spec in one.specifier] == ["=="], one
        assert hashes, one
        assert all(HASH.fullmatch(each) for each in hashes), one


@pytest.mark.parametrize("text", PROJECT["dependencies"])
def test_what_the_package_asks_for_is_locked_inside_its_range(text):
    wanted = Requirement(text)
    (pin,) = LOCKED[spelt(wanted.name)].specifier
    assert wanted.specifier.contains(pin.version)


def test_what_the_locked_ask_for_is_locked_too():
    """So nothing is resolved at a site. Read from packages that are installed here in the locked version: most are."""
    checked = 0
    for name, one in LOCKED.items():
        try:
            here = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:  # what a GPU needs
            continue
        if not one.specifier.contains(Version(here.version).public):
            continue
        for wanted in map(Requirement, here.requires or ()):
            if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
                (pin,) = LOCKED[spelt(wanted.name)].specifier
                assert wanted.specifier.contains(pin.version, prereleases=True), (name, wanted)
                checked += 1
    assert checked > 10


def test_what_a_gpu_needs_stands_apart():
    assert "torch" not in {one.name for one, _ in entries(CUDA_LOCK)}
    assert {"triton", "nvidia-cublas"} <= {one.name for one, _ in entries(CUDA_LOCK)}
    assert not [name for name in {one.name for one, _ in entries(LOCK)} if re.match("nvidia|cuda|triton", name)]


def test_the_locks_divide_what_was_resolved():
    """`make lock` writes what it reads again: the wheelhouse is made of these entries."""
    tool = runpy.run_path(str(ROOT / "tools" / "lock.py"))
    for path in (LOCK, CUDA_LOCK):
        assert tool["HEADS"][path] + "".join(tool["entries"](path.read_text())) == path.read_text()
        assert len(tool["entries"](path.read_text())) == len(entries(path))


def test_the_page_on_installing_names_the_wheel_and_the_torch_that_are_locked():
    page = (ROOT / "docs" / "install.md").read_text()
    (torch,) = LOCKED["torch"].specifier
    assert set(re.findall(r"confide-([\d.]+)-py3", page)) == {confide.__version__}
    assert set(re.findall(r"torch-([\d.]+)\+cpu", page)) == {torch.version}


def test_crypten_s_copy_has_the_files_and_sums_that_it_lists_and_no_others():
    folder = ROOT / "third_party" / "crypten"
    listed = dict(line.split("  ")[::-1] for line in (folder / "SHA256SUMS").read_text().splitlines())
    held = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert held == {*listed, "SHA256SUMS", "README.md"}
    for name, digest in listed.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name


def test_crypten_s_page_names_the_wheel_that_make_fetches():
    tool = runpy.run_path(str(ROOT / "tools" / "renew_crypten.py"))
    page = (ROOT / "third_party" / "crypten" / "README.md").read_text()
    assert tool["WHEEL_SHA256"] in page
    assert f"CrypTen {tool['VERSION']}" in page
