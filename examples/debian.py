"""Fetches a Debian package for an example, without installing it.

Python does not find this file from a script's own folder, so each script first appends this folder to `sys.path`.
"""

import os
import subprocess
import tempfile
from pathlib import Path


def unpacked(package: str, folder: Path) -> bool:
    """Fetches a package with apt-get and unpacks its `usr` into `folder`; False if it is not to be had."""
    with tempfile.TemporaryDirectory() as place:
        fetch = ("apt-get", "download", "-qq", package)
        if subprocess.run(fetch, cwd=place, capture_output=True).returncode:
            subprocess.run(("apt-get", "update", "-qq"), capture_output=True)  # lists may be missing; root may do so
            if subprocess.run(fetch, cwd=place, capture_output=True).returncode:
                return False
        (fetched,) = Path(place).glob(f"{package}_*.deb")
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Beside it first: who stops this half-way must not be left with half of the files.
        with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
            if subprocess.run(("dpkg-deb", "-x", str(fetched), beside), capture_output=True).returncode:
                return False
            folder.mkdir(exist_ok=True)
            os.replace(Path(beside, "usr"), folder / "usr")
    return True
