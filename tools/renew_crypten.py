"""Copies from CrypTen's published wheel, byte for byte, what confide computes with into third_party/crypten.

Run by `make crypten`. The wheel must have the hash below; SHA256SUMS lists what was copied. What is left out, neural
networks and the random numbers that confide replaces, has a stand-in in mpc/crypten/runtime.py.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

VERSION = "0.4.1"
WHEEL_SHA256 = "26e7f4b54997b3a78d10c8c0bcb604215eef6ad7830ddbfe93a14d80c9c1dd84"
LICENSE = f"crypten-{VERSION}.dist-info/LICENSE"
CONFIG = "configs/default.yaml"  # CrypTen reads it at its import
LEFT_OUT = (
    "crypten/nn/", "crypten/optim/", "crypten/models/", "crypten/autograd_cryptensor.py", "crypten/common/rng.py",
)  # fmt: skip
TARGET = Path(__file__).parents[1] / "third_party" / "crypten"
SUMS = "SHA256SUMS"


def fetch(folder: Path) -> Path:
    """The published wheel, downloaded into `folder`; pip refuses another hash."""
    wanted = folder / "requirements.txt"
    wanted.write_text(f"crypten=={VERSION} --hash=sha256:{WHEEL_SHA256}\n")
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes")
    subprocess.run((*pip, "-r", wanted, "--dest", folder), check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def chosen(names: list[str]) -> dict[str, str]:
    """Those of a wheel's `names` that are copied, with where to."""
    code = [name for name in names if name.startswith("crypten/") and not name.startswith(LEFT_OUT)]
    return {name: name for name in (*code, CONFIG)} | {LICENSE: "LICENSE"}


def copy(wheel: Path, target: Path) -> None:
    """Writes the chosen files of `wheel` and their sums below `target`, and deletes what an older copy left."""
    for stale in ("crypten", "configs"):
        shutil.rmtree(target / stale, ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        held = {goal: archive.read(name) for name, goal in chosen(archive.namelist()).items()}
    for goal, data in held.items():
        (target / goal).parent.mkdir(parents=True, exist_ok=True)
        (target / goal).write_bytes(data)
    lines = [f"{hashlib.sha256(data).hexdigest()}  {goal}\n" for goal, data in sorted(held.items())]
    (target / SUMS).write_text("".join(lines))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        copy(fetch(Path(folder)), TARGET)
