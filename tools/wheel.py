"""Builds confide's wheel into a folder: `python tools/wheel.py FOLDER`.

It builds in a copy of the sources, so that what an older build left in this tree cannot get in, with the setuptools
that is installed and without a network.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = ("pyproject.toml", "README.md", "LICENSE")


def build(folder: Path) -> Path:
    """The new wheel in `folder`."""
    packages = [link.name for link in (ROOT / "src" / "confide").iterdir() if link.is_symlink()]
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        for package in (*packages, "src"):
            leave_out = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / package, copy / package, symlinks=True, ignore=leave_out)
        for file in FILES:
            shutil.copy(ROOT / file, copy)
        pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
        subprocess.run((*pip, "--wheel-dir", copy / "built", "."), cwd=copy, check=True)
        (wheel,) = (copy / "built").iterdir()
        return Path(shutil.copy(wheel, folder))


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    print(build(target))
