"""Finds files that Python packages carry, such as weights; a package is located and never imported."""

import hashlib
import importlib.util
from pathlib import Path

from .errors import SourceMissing


def located(module: str, file: str) -> Path | None:
    """Finds a file in the folder of an installed package's module; None if there is none."""
    spec = importlib.util.find_spec(module)
    found = [Path(folder) / file for folder in (spec and spec.submodule_search_locations) or ()]
    return found[0] if found and found[0].is_file() else None


def packaged_file(package: str, file: str, *, sha256: str, install: str) -> Path:
    """Finds a package's file of a known SHA-256.

    Args:
        package: as pip names it; its module has underscores in place of hyphens.
        install: what brings the package, for the message.

    Raises:
        SourceMissing: the file is missing or is another one, with what to do.
    """
    path = located(package.replace("-", "_"), file)
    if path is None:
        raise SourceMissing(f"the package {package}, which holds {file}, is not installed; install: {install}")
    with path.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if digest != sha256:
        raise SourceMissing(f"{path} has SHA-256 {digest}, expected {sha256}; install: {install}")
    return path
