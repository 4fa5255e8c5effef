"""Decisions of a node's people on studies: fetch, list, approve and revoke them."""

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
    """Problems of fetching studies, for people; studies that were fetched before stay known."""

    turned_away: tuple[str, ...] = ()  # reasons, a line for each study
    unreachable: str = ""  # the reason why the coordinator did not answer


@dataclass(frozen=True, slots=True)
class KnownStudy:
    """A study that this node has fetched, with the node's roles in it and its decision."""

    study: Study
    roles: tuple[Role, ...]  # of this node, by its name
    decision: str | None  # approved or revoked; None if nothing was decided here


def fetch(home: Path) -> Fetched:
    """Fetches the coordinator's studies; if the coordinator cannot be reached, the known studies stay usable."""
    try:
        return Fetched(turned_away=tuple(refresh(home)))
    except CoordinatorUnreachable as away:
        return Fetched(unreachable=str(away))


def fetch_unless_known(home: Path, text: str) -> Fetched:
    """Fetches the coordinator's studies, unless `text` is the name or hash of a known study."""
    is_known = any(is_meant(study, text) for study in known_studies(home))
    return Fetched() if is_known else fetch(home)


def overview(home: Path) -> list[KnownStudy]:
    """Lists all studies that this node knows, oldest first, with its roles and decisions."""
    return [_known(home, study) for study in known_studies(home)]


def approve_study(home: Path, text: str, *, unprotected: bool = False) -> Assessment:
    """Approves the study of that name or hash if nothing speaks against it, and returns its assessment.

    Args:
        unprotected: True if the person accepts a study without privacy.

    Raises:
        ApprovalRefused: something speaks against it; the message has all reasons.
        StudyUnknown: no study has that name or hash, or several have.
    """
    study = find_study(home, text)
    assessment = assess(home, study, unprotected=unprotected)
    if assessment.reasons:
        listed = "".join(f"\n  {reason}" for reason in assessment.reasons)
        raise ApprovalRefused(f"study {study.name} was not approved; nothing left this site:{listed}")
    approve(home, study.study_hash, unprotected=unprotected and study.draft.privacy.mode == "none")
    return assessment


def revoke_study(home: Path, text: str) -> str:
    """Revokes a study's approval and returns its hash; a whole hash is revoked even if no such study is known."""
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
