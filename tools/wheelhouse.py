"""Collects all that an installation needs into one folder, for machines without a network.

    python tools/wheelhouse.py FOLDER [--torch FILE]

The folder gets confide's wheel, the wheels of the lock file for this machine's Python and platform, checked against its
hashes, `requirements.txt`, with which pip installs just these files, and `SHA256SUMS` of them all. `--torch` takes a
build of torch that is at hand, such as the one for CPUs, and leaves out what the ordinary build needs for a GPU.
"""

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from lock import CUDA_LOCK, LOCK, entries
from wheel import build


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pinned(wheel: Path) -> str:
    """The requirement that this very wheel fulfils, and no other file."""
    name, version = wheel.name.split("-")[:2]
    return f"{name.replace('_', '-')}=={version} --hash=sha256:{sha256(wheel)}\n"


def wanted(torch: Path | None) -> str:
    """The locked requirements: with what a GPU needs, or with `torch` in place of the ordinary build."""
    locked = entries(LOCK.read_text())
    if torch is None:
        return "".join((*locked, *entries(CUDA_LOCK.read_text())))
    (ordinary,) = (one for one in locked if one.startswith("torch=="))
    version = ordinary.split()[0].removeprefix("torch==")
    if not torch.is_file() or not re.match(rf"torch-{re.escape(version)}[+-]", torch.name):
        raise SystemExit(f"--torch must be a wheel of torch {version}, the version in {LOCK.name}; got {torch}")
    return "".join(one for one in locked if one is not ordinary) + pinned(torch)


def collect(folder: Path, torch: Path | None) -> None:
    """Fills `folder`, which must be new or empty."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise SystemExit(f"{folder} is not empty: choose a new folder, so that no older wheel stays in it")
    with tempfile.TemporaryDirectory() as name:
        requirements = Path(name) / "requirements.txt"
        requirements.write_text(wanted(torch))
        pip = (sys.executable, "-m", "pip", "download", "--require-hashes", "--only-binary=:all:", "--dest", folder)
        beside = ("--find-links", torch.parent) if torch else ()
        subprocess.run((*pip, *beside, "-r", requirements), check=True)
    build(folder)
    wheels = sorted(folder.glob("*.whl"))
    (folder / "requirements.txt").write_text("".join(map(pinned, wheels)))
    sums = [f"{sha256(path)}  {path.name}\n" for path in (*wheels, folder / "requirements.txt")]
    (folder / "SHA256SUMS").write_text("".join(sums))
    size = sum(wheel.stat().st_size for wheel in wheels)
    print(f"{len(wheels)} wheels, {size / 1e6:.0f} MB, in {folder}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="new or empty")
    parser.add_argument("--torch", type=Path, help="a wheel of torch to use instead of the ordinary build")
    asked = parser.parse_args()
    collect(asked.folder, asked.torch)
