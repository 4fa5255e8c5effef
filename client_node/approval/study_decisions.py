"""Decisions of a node's people on studies: fetch them, look through them, let one run here, and take that back."""

from dataclasses import dataclass
from pathlib import Path

from ..enrolment import Enrolment, Role
from ..errors import ApprovalRefused, CoordinatorUnreachable
from ..policy import decisions, load_decisions, load_policy, site_policy
from ..study import Study
from .assessment import Assessment, approve, assess
from .catalogue import find_study, is_meant, known_studies, refresh


@dataclass(frozen=True, slots=True)
class Fetched:
    """Problems of an attempt to fetch studies, for a person to know; what was fetched before stays known."""

    turned_away: tuple[str, ...] = ()  # why, a line for each study
    unreachable: str = ""  # why the coordinator did not answer


@dataclass(frozen=True, slots=True)
class KnownStudy:
    """A study that has reached this node, and what the node has to do with it."""

    study: Study
    roles: tuple[Role, ...]  # of a node with this one's name
    decision: str | None  # approved or revoked; None if nothing was decided here


def fetch(home: Path) -> Fetched:
    """Fetches the coordinator's studies; one that is away is no reason not to go on with those that are known."""
    try:
        return Fetched(turned_away=tuple(refresh(home)))
    except CoordinatorUnreachable as away:
        return Fetched(unreachable=str(away))


def fetch_unless_known(home: Path, text: str) -> Fetched:
    """Fetches the coordinator's studies if `text` is the name or hash of none that is known."""
    is_known = any(is_meant(study, text) for study in known_studies(home))
    return Fetched() if is_known else fetch(home)


def overview(home: Path) -> list[KnownStudy]:
    """All studies that this node knows, oldest first, with its roles and decisions."""
    return [_known(home, study) for study in known_studies(home)]


def approve_study(home: Path, text: str, *, unprotected: bool = False) -> Assessment:
    """Lets the study of that name or hash run here, if nothing speaks against it, and says what that means.

    Args:
        unprotected: whether the person accepts a study without privacy.

    Raises:
        ApprovalRefused: names all reasons.
        StudyUnknown: no study is called so, or several are.
    """
    study = find_study(home, text)
    assessment = assess(home, study, unprotected=unprotected)
    if assessment.reasons:
        listed = "".join(f"\n  {reason}" for reason in assessment.reasons)
        raise ApprovalRefused(f"study {study.name} was not approved; nothing left this site:{listed}")
    approve(home, study.study_hash, unprotected=unprotected and study.draft.privacy.mode == "none")
    return assessment


def revoke_study(home: Path, text: str) -> str:
    """Stops letting a study run here and returns its hash; a whole hash is revoked even if no such study is known."""
    study_hash = text if len(text) == 64 else find_study(home, text).study_hash
    decisions.revoke(home, study_hash)
    return study_hash


def _known(home: Path, study: Study) -> KnownStudy:
    name, verdict = Enrolment.load(home).name, load_decisions(home).verdict(study.study_hash)
    if verdict is None and (home / site_policy.FILE).exists():
        stated = load_policy(home).studies
        verdict = "approved" if study.study_hash in {*stated.approved, *stated.unprotected} else None
    trains = name in study.site_names()
    aggregates = name in {party.name for party in study.aggregators}
    parts: tuple[tuple[Role, bool], ...] = (("train", trains), ("aggregate", aggregates))
    return KnownStudy(study, tuple(role for role, takes_part in parts if takes_part), verdict)
