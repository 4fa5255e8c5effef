"""Checks of a table for the people of a site, before a study asks for it."""

from dataclasses import replace
from pathlib import Path

from ..data import DataReport, check
from ..enrolment import Enrolment
from ..errors import NotEnrolled, PolicyInvalid
from ..policy import load_policy
from ..policy.site_policy import FILE
from ..policy.sources import Source
from ..study import StudyDraft, load_draft
from .catalogue import find_study
from .charges import known_elsewhere


def check_table(
    home: Path, table: Path | None = None, study: str | None = None, *, is_held_out: bool = False
) -> DataReport:
    """Checks a table by the site's policy, and for the columns of a study if one is named.

    Args:
        table: a file, or a folder of Parquet parts; None for the site's own source, whatever that is.
        study: name or hash of a study that the node has fetched, or path of a study.toml.
        is_held_out: True for the source of the site's held-out records, where no table is named.

    Raises:
        PolicyInvalid: the site names no source of held-out records.
    """
    policy = load_policy(home)
    source = policy.data.heldout_source if is_held_out else policy.data.source
    if source is None:
        raise PolicyInvalid(str(home / FILE), ("it names no records that are held out",))
    if table is not None:
        source = table.resolve()
    if is_held_out or source == policy.data.heldout_source:
        policy, is_held_out = policy.held_out() or policy, True
    draft = None if study is None else draft_of(home, study)
    found = check(source, policy, draft, site=own_name(home), both_classes=not is_held_out)
    return replace(found, objections=known_elsewhere(home, policy, source)) if found.is_fit else found


def check_command(source: Source, *, is_held_out: bool = False) -> str:
    """Returns the command that checks a source of the site."""
    if isinstance(source, Path):
        return f"client-node data check {source}"
    return "client-node data check --held-out" if is_held_out else "client-node data check"


def own_name(home: Path) -> str | None:
    """The node's name in its federation; None if it is in none yet: tables are checked before that, too."""
    try:
        return Enrolment.load(home).name
    except NotEnrolled:
        return None


def draft_of(home: Path, study: str) -> StudyDraft:
    """Finds the draft of a study that is known here by name or hash, or reads the study.toml at a path."""
    return load_draft(Path(study)) if study.endswith(".toml") else find_study(home, study).draft
