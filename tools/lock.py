"""Writes requirements-lock.txt and requirements-lock-cuda.txt: what confide was tested with, each file with its hash.

Run by `make lock` in the environment that the tests passed in: whatever confide needs gets the version that is
installed there. uv finds the hashes of all files of these releases, and markers where Python's version decides. What
PyTorch's ordinary build for Linux adds on top, NVIDIA's libraries and Triton, goes into the second file, at the
versions that this build asks for, so that a machine without a GPU can leave it out.
"""

import importlib.metadata
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements-lock.txt"
CUDA_LOCK = ROOT / "requirements-lock-cuda.txt"
OLDEST_PYTHON = "3.11"  # requires-python of pyproject.toml
CUDA = re.compile(r"(?:nvidia|cuda)-|triton\b")
HEADS = {
    LOCK: "# Made by `make lock`; docs/install.md says how to install from it.\n",
    CUDA_LOCK: "# Made by `make lock`: what torch's ordinary build for Linux needs beside requirements-lock.txt.\n",
}


def installed() -> str:
    """Versions of this environment as constraints, without the build in `2.13.0+cpu`."""
    held = {one.name: one.version.partition("+")[0] for one in importlib.metadata.distributions()}
    return "".join(f"{name}=={version}\n" for name, version in sorted(held.items()) if not CUDA.match(name))


def resolved(constraints: str) -> str:
    """The requirements of pyproject.toml and theirs with hashes, as uv finds them."""
    with tempfile.TemporaryDirectory() as folder:
        limits = Path(folder) / "constraints.txt"
        limits.write_text(constraints)
        uv = (sys.executable, "-m", "uv", "pip", "compile", "--universal", "--python-version", OLDEST_PYTHON)
        how = ("--generate-hashes", "--no-annotate", "--no-header", "--quiet", "--constraints", limits)
        command = (*uv, *how, "pyproject.toml")
        return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def entries(text: str) -> list[str]:
    """The requirements of a lock, each with the lines of its hashes."""
    return re.findall(r"^[a-z0-9].*(?:\n +--hash=.*)+\n", text, re.MULTILINE)


def main() -> None:
    """Writes both files."""
    found = entries(resolved(installed()))
    LOCK.write_text(HEADS[LOCK] + "".join(one for one in found if not CUDA.match(one)))
    CUDA_LOCK.write_text(HEADS[CUDA_LOCK] + "".join(one for one in found if CUDA.match(one)))


if __name__ == "__main__":
    main()
