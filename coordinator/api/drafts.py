"""Drafts of studies that come as text: examined like a file, with a backbone from one folder of the home alone."""

import re
from pathlib import Path, PurePosixPath

from ...client_node.errors import StudyInvalid
from ...client_node.study.terms import parse_draft
from ..errors import StudyRefused
from ..store import Store
from ..studies.examine import Examination, backbone_folder, examine_draft, unreadable

BACKBONES = "backbones"  # in the home; what it holds or links to, only the home's account decides
MOST_TEXT = 100_000  # characters
_SOURCE = "study.toml"
_PART, _MOST_PARTS = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}"), 8  # so neither .. nor /


def examine_text(
    store: Store, home: Path, text: str, *, units: int | None = None, accept_unused_experts: bool = False
) -> Examination:
    """Examines a draft, and solves for its noise and rates, as `examine`. Nothing is stored.

    Raises:
        StudyRefused: it names a backbone outside of the folder `backbones`: whoever may create studies need not learn
            what else lies on this machine.
    """
    try:
        draft = parse_draft(text, _SOURCE)
    except StudyInvalid as err:
        return unreadable(err)
    named = PurePosixPath(draft.model.backbone)
    if len(named.parts) > _MOST_PARTS or not all(map(_PART.fullmatch, named.parts)):
        raise StudyRefused(
            f'model.backbone must name a folder inside {BACKBONES} of the federation\'s home, as "tiny"; nothing '
            "was stored"
        )
    folder = backbone_folder(home / BACKBONES, draft)
    return examine_draft(store, draft, folder, _SOURCE, units=units, accept_unused_experts=accept_unused_experts)
