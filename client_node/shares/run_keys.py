"""Files of an aggregator's keys for runs, one for each run that it was ever prepared for.

A run that has ended keeps its file, without a key in it: so no other key is ever made for it.
"""

import json
from pathlib import Path

from ..secret_files import write_secret

FILES = "aggregator/run-keys/*.json"  # below the home
_ENDED = json.dumps({"ended": True}).encode()


def key_file(home: Path, run: str) -> Path:
    """Names the file of a run's key."""
    return home / "aggregator" / "run-keys" / f"{run}.json"


def runs(home: Path) -> list[str]:
    """Lists the runs that have a file here, also those that have ended."""
    return sorted(path.stem for path in home.glob(FILES) if not path.name.startswith("."))


def end(home: Path, run: str) -> None:
    """Puts, durably, the mark of an ended run in place of its key, if it has one."""
    write_secret(key_file(home, run), _ENDED)
