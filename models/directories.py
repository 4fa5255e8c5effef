"""Writes directories that exist whole or not at all."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_directory(directory: Path) -> Iterator[Path]:
    """Makes an empty folder beside `directory`; it becomes `directory` in one rename if the block succeeds.

    Its files become readable by everybody (0644): they are meant to be published.

    Raises:
        FileExistsError: `directory` exists already. Nothing is left behind on this or any other error.
    """
    directory = Path(directory)
    if directory.exists():
        raise FileExistsError(f"{directory} exists already")
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        yield partial
        partial.chmod(0o755)
        for path in partial.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        partial.rename(directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
