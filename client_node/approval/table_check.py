"""Checks of a table for the people of a site, before a study asks for it."""

from dataclasses import replace
from pathlib import Path

from ..data import DataReport, check
from ..enrolment import Enrolment
from ..errors import NotEnrolled
from ..policy import load_policy
from ..study import StudyDraft, load_draft
from .catalogue import find_study
from .charges import known_elsewhere


def check_table(home: Path, table: Path, study: str | None = None) -> DataReport:
    """Checks a table by the site's policy, and for the columns of a study if one is named.

    Args:
        study: name or hash of a study that the node has fetched, or path of a study.toml.
    """
    policy, path = load_policy(home), table.resolve()
    draft = None if study is None else draft_of(home, study)
    found = check(path, policy, draft, site=own_name(home), both_classes=path != policy.data.heldout_path)
    return replace(found, objections=known_elsewhere(home, policy, path)) if found.is_fit else found


def own_name(home: Path) -> str | None:
    """The node's name in its federation; None if it is in none yet: tables are checked before that, too."""
    try:
        return Enrolment.load(home).name
    except NotEnrolled:
        return None


def draft_of(home: Path, study: str) -> StudyDraft:
    """Finds the draft of a study that is known here by name or hash, or reads the study.toml at a path."""
    return load_draft(Path(study)) if study.endswith(".toml") else find_study(home, study).draft
