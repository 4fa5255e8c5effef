"""Drafts of studies that come as text: examined like a file, with a backbone from one folder of the home alone."""

import re
from dataclasses import replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from ...client_node.errors import StudyInvalid
from ...client_node.study import load_draft
from ..errors import StudyRefused
from ..store import Store
from ..studies.examine import Examination, examine

BACKBONES = "backbones"  # in the home; what it holds or links to, only the home's account decides
MOST_TEXT = 100_000  # characters
_FILE = "study.toml"
_PART, _MOST_PARTS = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}"), 8  # so neither .. nor /


def examine_text(
    store: Store, home: Path, text: str, *, units: int | None = None, accept_unused_experts: bool = False
) -> Examination:
    """Examines a draft, and solves for its noise and rates, as `examine`. Nothing is stored.

    Raises:
        StudyRefused: it names a backbone outside of the folder `backbones`: whoever may create studies need not learn
            what else lies on this machine.
    """
    with TemporaryDirectory(prefix="confide-draft-") as folder:
        path = Path(folder) / _FILE
        path.write_text(text, encoding="utf-8")
        try:
            named = PurePosixPath(load_draft(path).model.backbone)
        except StudyInvalid:
            named = PurePosixPath()  # its problems are told below
        if len(named.parts) > _MOST_PARTS or not all(map(_PART.fullmatch, named.parts)):
            raise StudyRefused(
                f'model.backbone must name a folder inside {BACKBONES} of the federation\'s home, as "tiny"; nothing '
                "was stored"
            )
        found = examine(
            store, path, units=units, accept_unused_experts=accept_unused_experts, backbones=home / BACKBONES
        )
        return replace(found, problems=tuple(_without(each, folder) for each in found.problems))


def _without(problem: Exception, folder: str) -> Exception:
    """Takes the name of the passing folder out of a problem."""
    said = str(problem)
    return StudyRefused(said.replace(f"{folder}/", "")) if folder in said else problem
