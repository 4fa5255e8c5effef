"""Drafts of studies that come as text: examined like a file, with a backbone from one folder of the home alone."""

from pathlib import Path

from ...client_node.errors import StudyInvalid
from ...client_node.study.terms import parse_draft
from ..store import Store
from ..studies.examine import Examination, backbone_folder, examine_draft, unreadable

MOST_TEXT = 100_000  # characters
_SOURCE = "study.toml"


def examine_text(
    store: Store, home: Path, text: str, *, units: int | None = None, accept_unused_experts: bool = False
) -> Examination:
    """Examines a draft, and solves for its noise and rates, as `examine`. Nothing is stored.

    Raises:
        StudyRefused: it names a backbone outside of the folder `backbones`.
    """
    try:
        draft = parse_draft(text, _SOURCE)
    except StudyInvalid as err:
        return unreadable(err)
    folder = backbone_folder(home, draft)
    return examine_draft(store, draft, folder, _SOURCE, units=units, accept_unused_experts=accept_unused_experts)
