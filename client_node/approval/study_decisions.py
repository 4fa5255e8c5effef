"""Decisions of a node's people on studies: fetch, list, approve and revoke them.

To approve takes two steps. `propose` looks at everything and says what the approval would mean; `approve_study` then
decides, after a person has read that.
"""

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from ..data import kept_files
from ..enrolment import Enrolment, Role
from ..errors import ApprovalRefused, CoordinatorUnreachable
from ..policy import decisions, load_decisions, load_policy, pending, site_policy
from ..spoken_hash import parse
from ..study import Study
from . import peers, rulings
from .assessment import Assessment, assess
from .catalogue import cached_study, find_study, is_meant, known_studies, refresh
from .charges import record_budget, whole_ledger
from .confirmed_sites import doubts
from .peers import Peer
from .run_reservations import RunReservations

NOTHING_ACCEPTED: Mapping[str, str] = MappingProxyType({})
_LISTED = ("model", "sites", "aggregators")  # rules of lists in site.toml


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
    decision: str | None  # approved, expired or revoked; None if nothing was decided here
    runs: int = 0  # that the approval covers
    used: tuple[str, ...] = ()  # runs that have begun under it
    until: dt.date | None = None  # its last day, UTC


@dataclass(frozen=True, slots=True)
class Proposal:
    """An approval before anybody agrees to it."""

    assessment: Assessment
    runs: int  # different runs that it covers, those under way included
    under_way: tuple[str, ...]  # runs of the study that have begun here and go on
    until: dt.date | None  # the last day, UTC; None for no end
    unprotected: bool  # also without privacy
    peers: tuple[Peer, ...] = ()  # parties whose keys are not known here yet, or not the newest ones known
    accepted: Mapping[str, str] = field(default_factory=dict)  # fingerprints of new keys of known names, as typed

    @property
    def terms(self) -> str:
        """All that is decided beside the study's hash, in one spelling, for a second person to say the same."""
        keys = "".join(f", new key of {name} {typed}" for name, typed in sorted(self.accepted.items()))
        bare = ", without privacy" if self.unprotected else ""
        return f"runs {self.runs}, until {self.until or 'revoked'}{bare}{keys}"


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


def whole_hash(text: str) -> str:
    """Returns the hash that a person has typed as 64 digits or as 24 words.

    Raises:
        ApprovalRefused: it is neither. A name says nothing about a study's content, and a study whose hash begins with
            given digits is found by trying.
    """
    try:
        return parse(text)
    except ValueError as err:
        raise ApprovalRefused(
            f"{text!r} does not say which study is meant: {err}. Ask the operator, by telephone, for the 24 words or "
            "the 64 digits of the hash, compare them with `client-node study list`, and type them: "
            "client-node study approve HASH"
        ) from err


def approval(home: Path, study_hash: str) -> KnownStudy | None:
    """Finds the approval, given by command, under which the study can begin or go on here; None if there is none.

    Raises:
        StudyUnknown: no such study has reached this node.
    """
    known = _known(home, cached_study(home, study_hash))
    is_ours = load_decisions(home).verdict(study_hash) == "approved" and known.decision == "approved"
    goes_on = {*known.used} & {*RunReservations(home).of_study(study_hash)}
    return known if is_ours and (goes_on or len(known.used) < known.runs) else None


def propose(
    home: Path,
    study_hash: str,
    *,
    unprotected: bool = False,
    runs: int | None = None,
    until: dt.date | None = None,
    accepted: Mapping[str, str] = NOTHING_ACCEPTED,
) -> Proposal:
    """Looks at everything that speaks against a study, and says what its approval would mean. Nothing is written.

    Args:
        unprotected: True if the person accepts a study without privacy.
        runs: different runs that it shall cover, those under way included; None for those under way, or for one.
        until: the last day, in UTC; None for no end.
        accepted: fingerprints of new keys of names that earlier studies gave others, as a person has typed them.

    Raises:
        ApprovalRefused: something speaks against it; the message has all reasons.
        StudyUnknown: no such study has reached this node.
    """
    study, under_way = cached_study(home, study_hash), RunReservations(home).of_study(study_hash)
    covered = max(1, len(under_way)) if runs is None else runs
    assessment = assess(home, study, unprotected=unprotected, runs=covered, under_way=under_way)
    reasons = [*assessment.reasons, *peers.objections(home, study, accepted)]
    # An approval cannot widen what site.toml allows; the other rules are those that it is about, or assessed above.
    reasons += [each.why for each in rulings.of_study(home, study) if each.rule in _LISTED and not each.allows]
    if covered < len(under_way):
        names = ", ".join(under_way)
        reasons.append(f"{len(under_way)} runs of it are under way ({names}) and count too; --runs is {covered}")
    if until is not None and until < decisions.today():
        reasons.append(f"--until {until} is over")
    is_bare = unprotected and study.draft.privacy.mode == "none"
    odd = tuple(each for each in peers.compare(home, study) if each.state != "known")
    proposal = Proposal(assessment, covered, under_way, until, is_bare, odd, accepted)
    if len(proposal.terms) > pending.MOST_LETTERS:
        reasons.append(f"{len(accepted)} new keys are too many for one approval")
    if reasons:
        listed = "".join(f"\n  {reason}" for reason in reasons)
        raise ApprovalRefused(f"study {study.name} was not approved; nothing left this site:{listed}")
    return proposal


def approve_study(home: Path, proposal: Proposal, *, by: str | None = None) -> None:
    """Approves what was proposed; if the site will be charged, the policy's budget is put in force first.

    From then on this node knows the keys of the study's other parties.

    Args:
        by: who decides; None for the account that runs this process.

    Raises:
        SecondPersonMissing: by the policy an approval takes two people, and this is the first.
    """
    study, first = proposal.assessment.study, ""
    if site_policy.load_node_policy(home).policy.four_eyes:
        first = pending.seconded(home, "approve", study.study_hash, proposal.terms, by=by).told()
    if proposal.assessment.trains and study.draft.privacy.mode != "none":
        with whole_ledger(home) as ledger:
            record_budget(ledger, load_policy(home))
    peers.note(home, study, proposal.accepted, by=by)
    decisions.approve(
        home,
        study.study_hash,
        unprotected=proposal.unprotected,
        runs=proposal.runs,
        until=proposal.until,
        under_way=proposal.under_way,
        by=by,
        first=first,
    )


def replaced_peers(home: Path, study: Study) -> list[Peer]:
    """Lists the parties to whom the study gives another key than the one known here; an approval has to accept it."""
    return [each for each in peers.compare(home, study) if each.state == "changed"]


def unconfirmed_sites(home: Path, study: Study) -> list[str]:
    """Names the sites whose keys this node's people still have to confirm, if it adds up in the study."""
    name = Enrolment.load(home).name
    if not doubts(home, study):
        return []
    known = load_decisions(home).sites
    return [each.name for each in study.sites if each.name != name and each.name not in known]


def to_revoke(home: Path, text: str) -> tuple[str, tuple[str, ...]]:
    """Finds the study to be revoked; returns its hash, and its runs that are under way here.

    Args:
        text: name of a study, the beginning of its hash, or the whole hash, also of a study that is not known here.

    Raises:
        StudyUnknown: no study is meant, or several are.
    """
    try:
        study_hash = parse(text)
    except ValueError:
        study_hash = find_study(home, text).study_hash
    return study_hash, RunReservations(home).of_study(study_hash)


def revoke_study(home: Path, study_hash: str, *, by: str | None = None) -> None:
    """Revokes a study's approval, also of a study that is not known here, and deletes what is kept of its records."""
    pending.drop(home, "approve", study_hash)
    decisions.revoke(home, study_hash, by=by)
    kept_files.forget(home, study_hash)


def forget_states(home: Path, study_hash: str) -> int:
    """Deletes what is kept of the site's records for a study; returns how many bytes that was."""
    return kept_files.forget(home, study_hash)


def _known(home: Path, study: Study) -> KnownStudy:
    name, made = Enrolment.load(home).name, load_decisions(home)
    decided, approvals = made.studies.get(study.study_hash), site_policy.approvals(home)
    decision: str | None = decided.verdict if decided else None
    if approvals.names(study.study_hash):
        decision = "approved"
    elif decision == "approved":
        decision = "expired"
    trains = name in study.site_names()
    aggregates = name in {party.name for party in study.aggregators}
    parts: tuple[tuple[Role, bool], ...] = (("train", trains), ("aggregate", aggregates))
    roles = tuple(role for role, takes_part in parts if takes_part)
    if decision is None or decision == "revoked":
        return KnownStudy(study, roles, decision)
    runs, until = (decided.runs, decided.until) if decided else (approvals.runs_of(study.study_hash), None)
    return KnownStudy(study, roles, decision, runs, made.runs_used(study.study_hash), until)
