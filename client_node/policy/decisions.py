"""Decisions of a node's people by command, in `decisions.json` under its home: studies, the budget, confirmed sites.

`client-node study approve`, `study revoke`, `budget set` and `site confirm` write here; no command rewrites site.toml.
Where both speak of the same thing the decision made here counts, so that `revoke` always revokes. Each is also a line
of the `decision_log`.

An approval counts runs. The daemon notes here which runs have used it, before their first charge.
"""

import datetime as dt
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, TypeAdapter

from ...models.strict import NO_ENTRIES, Digest, Frozen, Name, StrictModel, rule
from ...privacy.ledger import chain
from ...privacy.ledger.succession import Succession
from ..errors import PolicyInvalid, StudyNotApproved
from ..files import locked, read_json, read_own, write_private
from ..study.toml import MAX_BYTES, parse_json
from . import decision_log

FILE = "decisions.json"
LEASES = "leases.json"  # which runs have begun here, also before approvals counted them
MOST_RUNS = 1000  # of one approval
_LEASES_REMEDY = (
    "It says which driver of each run is the newest. Stop the daemon and restore the file from a backup; without one, "
    "end the runs that are on and delete it: of a run that goes on, a driver that was replaced would be heard again"
)
_REMEDY = (
    "It says what may run here, and which caps hold. Restore the newest copy from a backup; deleted, it approves "
    "nothing, and the cap is that of site.toml"
)


def _is_fingerprint(value: str) -> str:
    if not re.fullmatch(r"[A-Z2-7]{4}(-[A-Z2-7]{4}){7}", value):
        raise rule("a fingerprint, eight groups of four letters or digits, such as ABCD-EF23-...")
    return value


Fingerprint = Annotated[str, AfterValidator(_is_fingerprint)]


class BudgetPolicy(StrictModel):
    """The most that all studies together may cost one unit of the data set."""

    epsilon: float = Field(gt=0, le=1000, examples=["4.0"])
    delta: float = Field(gt=0, le=1e-3, examples=["1e-5"], description="at most 1 / units")
    collusion: int = Field(default=1, ge=0, le=1000)  # sites that may pool what they know with an observer


class Verdict(StrictModel):
    """A decision about one study: what it allows, whose it is, and its time."""

    verdict: Literal["approved", "revoked"]
    unprotected: bool = False  # approved although the study has no privacy
    runs: int = Field(default=1, ge=1, le=MOST_RUNS)  # different runs that an approval covers
    until: dt.date | None = None  # the last day of an approval, in UTC
    by: Annotated[str, Field(max_length=256)] = ""  # as the person said
    decided: Annotated[str, Field(max_length=40)] = ""  # UTC

    def is_live(self, today: dt.date) -> bool:
        """True for an approval that has not expired."""
        return self.verdict == "approved" and (self.until is None or today <= self.until)


Lease = tuple[Digest, Annotated[int, Field(ge=0, lt=2**63)]]  # of a run: its study, its newest driver's token
_LEASES_FORM = TypeAdapter(dict[str, Lease])  # by run
_Runs = Annotated[tuple[Annotated[str, Field(max_length=256)], ...], Field(max_length=MOST_RUNS)]


class Decisions(StrictModel):
    """All decisions. A study without a verdict is not approved here."""

    format: Literal[1, 2] = 2
    studies: Annotated[Mapping[Digest, Verdict], Field(max_length=10_000), *Frozen] = NO_ENTRIES
    used: Annotated[Mapping[Digest, _Runs], Field(max_length=10_000), *Frozen] = NO_ENTRIES  # runs of approvals
    budget: BudgetPolicy | None = None
    sites: Annotated[Mapping[Name, Fingerprint], Field(max_length=10_000), *Frozen] = NO_ENTRIES  # confirmed keys

    def verdict(self, study_hash: str) -> str | None:
        """Finds the decision on a study: `approved`, `revoked`, or None if nothing was decided here."""
        decision = self.studies.get(study_hash)
        return decision.verdict if decision else None

    def runs_used(self, study_hash: str) -> tuple[str, ...]:
        """Lists the runs that have used the study's approval, in the order in which they began."""
        return self.used.get(study_hash, ())


def today() -> dt.date:
    """Tells the day by which approvals expire, in UTC."""
    return dt.datetime.now(dt.UTC).date()


def load_decisions(home: Path) -> Decisions:
    """Reads the decisions under `home`; none for a fresh node.

    Decisions of format 1 counted no runs. Each of its approvals is read as one for a single run, which every run that
    had begun here before has used: such runs go on, and a new one needs a new approval.

    Raises:
        PolicyInvalid: the file is damaged. Nothing is approved until a person has looked at it.
    """
    found = _stored(home)
    if found is not None and found.format == 2:
        return found
    return (found or Decisions()).model_copy(update={"format": 2, "used": _begun_before(home)})


def carry_over(home: Path) -> None:
    """Writes decisions of an earlier format, or none yet, in this one; what begins from then on is counted."""
    found = _stored(home)
    if found is None or found.format != 2:
        _change(home, lambda decisions: decisions)


def approve(
    home: Path,
    study_hash: str,
    *,
    unprotected: bool = False,
    runs: int = 1,
    until: dt.date | None = None,
    under_way: Sequence[str] = (),
    by: str | None = None,
    first: str = "",
) -> None:
    """Records that the study may run here; it replaces what was decided on the study before.

    Args:
        unprotected: True if that includes running it without privacy.
        runs: how many different runs may begin or go on.
        until: the last day, in UTC; None for no end.
        under_way: runs that go on and have used the approval already.
        by: who decides; None for the account that runs this process.
        first: who decided the same before, where it takes two; "" where it takes one.
    """
    who = decision_log.person(by)

    def change(decisions: Decisions) -> Decisions:
        verdict = Verdict(
            verdict="approved", unprotected=unprotected, runs=runs, until=until, by=who, decided=chain.now()
        )
        judged, used = {**decisions.studies, study_hash: verdict}, {**decisions.used, study_hash: tuple(under_way)}
        return decisions.model_copy(update={"studies": judged, "used": used})

    detail = f"runs {runs}, until {until or 'revoked'}" + (", without privacy" if unprotected else "")
    detail += f"; {first}" if first else ""
    _change(home, change, lambda _: decision_log.write(home, "approve", study_hash, detail, by=who))


def revoke(home: Path, study_hash: str, *, by: str | None = None) -> None:
    """Records that the study may not run here any more, from its next message on."""
    who = decision_log.person(by)

    def change(decisions: Decisions) -> Decisions:
        verdict = Verdict(verdict="revoked", by=who, decided=chain.now())
        return decisions.model_copy(update={"studies": {**decisions.studies, study_hash: verdict}})

    _change(home, change, lambda _: decision_log.write(home, "revoke", study_hash, "", by=who))


def count_run(home: Path, study_hash: str, run: str, *, allowed: int) -> None:
    """Counts a run under its study's approval, durably; a run that is counted already changes nothing.

    Args:
        allowed: how many runs the approval covers.

    Raises:
        StudyNotApproved: other runs have used the approval up.
    """
    if run in load_decisions(home).runs_used(study_hash):
        return

    def change(decisions: Decisions) -> Decisions:
        require_room(decisions, study_hash, run, allowed=allowed)
        used = decisions.runs_used(study_hash)
        counted = used if run in used else (*used, run)
        return decisions.model_copy(update={"used": {**decisions.used, study_hash: counted}})

    _change(home, change)


def require_room(decisions: Decisions, study_hash: str, run: str, *, allowed: int) -> None:
    """Checks that a run is covered by its study's approval: counted, or one more of those `allowed`.

    Raises:
        StudyNotApproved: other runs have used the approval up.
    """
    if why := no_room(decisions, study_hash, run, allowed=allowed):
        raise StudyNotApproved(f"study {study_hash[:12]}: {why}")


def no_room(decisions: Decisions, study_hash: str, run: str | None, *, allowed: int) -> str:
    """Says why a run, or one more for None, is not covered by its study's approval; "" if it is."""
    used = decisions.runs_used(study_hash)
    if run in used or len(used) < allowed:
        return ""
    covered = "1 run" if allowed == 1 else f"{allowed} runs"
    return (
        f"the approval at this site covers {covered}, {run or 'one more'} would be another; the site can approve it "
        "again"
    )


def set_budget(
    home: Path, budget: BudgetPolicy, *, before: BudgetPolicy | None = None, by: str | None = None, first: str = ""
) -> None:
    """Records a cap that replaces the one in site.toml.

    Args:
        before: the cap that was in force, for the decision log.
        by: who decides; None for the account that runs this process.
        first: who decided the same before, where it takes two; "" where it takes one.
    """
    caps = [
        f"epsilon {cap.epsilon:g}, delta {cap.delta:g}, colluding {cap.collusion}" for cap in (before, budget) if cap
    ]
    _change(
        home,
        lambda decisions: decisions.model_copy(update={"budget": budget}),
        lambda _: decision_log.write(home, "cap", "budget", " -> ".join(caps) + (f"; {first}" if first else ""), by=by),
    )


def confirm_sites(home: Path, fingerprints: Mapping[str, str], *, by: str | None = None) -> None:
    """Records the fingerprints of sites' keys, by name, as the sites' people read them out.

    Raises:
        PolicyInvalid: one is no fingerprint, or a site was confirmed with another one; nothing is recorded then.
    """

    def change(decisions: Decisions) -> Decisions:
        stated = json.dumps({"sites": dict(fingerprints)}).encode()
        asked = parse_json(stated, Decisions, error=PolicyInvalid, source="site confirm").sites
        if other := sorted(name for name in asked if decisions.sites.get(name, asked[name]) != asked[name]):
            problem = f"{', '.join(other)} was confirmed with another fingerprint; if its key did change: site remove"
            raise PolicyInvalid("site confirm", (problem,))
        return decisions.model_copy(update={"sites": {**decisions.sites, **asked}})

    def note(changed: Decisions) -> None:
        for name in sorted(fingerprints):
            decision_log.write(home, "confirm", name, changed.sites[name], by=by)

    _change(home, change, note)


def remove_sites(home: Path, names: Collection[str], *, by: str | None = None) -> None:
    """Removes the confirmations of sites: studies with one of them are not added up here any more.

    Raises:
        PolicyInvalid: one of `names` was not confirmed; nothing is changed then.
    """

    def change(decisions: Decisions) -> Decisions:
        if unknown := sorted({*names} - {*decisions.sites}):
            raise PolicyInvalid("site remove", (f"{', '.join(unknown)}: not confirmed here",))
        return decisions.model_copy(
            update={"sites": {name: known for name, known in decisions.sites.items() if name not in names}}
        )

    def note(_: Decisions) -> None:
        for name in sorted(names):
            decision_log.write(home, "remove", name, "", by=by)

    _change(home, change, note)


def note_forgotten(home: Path, digest: str, detail: str, *, by: str | None = None) -> None:
    """Records that a person lets the node forget what it countersigned of the coordinator's audit log."""
    with locked(home / FILE):
        decision_log.write(home, "forget", digest, detail, by=by)


def note_trusted(home: Path, digests: Sequence[str], *, key: str | None = None, by: str | None = None) -> None:
    """Records that a person lets the node trust these CAs (SHA-256, hex) for its coordinator, and no others.

    Args:
        key: the coordinator's new key (hex), which the person lets the node follow as well; None for the known one.
    """
    said = f"the coordinator's CAs: {', '.join(digests)}" + (f"; its key from now on: {key}" if key else "")
    with locked(home / FILE):
        decision_log.write(home, "trust", digests[0], said, by=by)


def note_succession(home: Path, stated: Succession, *, by: str | None = None) -> None:
    """Records that this node's identity key is followed by another; a second time changes nothing."""
    with locked(home / FILE):
        decision_log.write_succession(home, stated, by=by)


def load_leases(home: Path) -> dict[str, Lease]:
    """Reads the study and the newest lease of each run whose messages this node has admitted.

    Raises:
        FileDamaged: the file is damaged.
    """
    return read_json(home / LEASES, _LEASES_FORM, remedy=_LEASES_REMEDY) or {}


def store_leases(home: Path, leases: Mapping[str, Lease]) -> None:
    """Stores what `load_leases` reads, durably."""
    write_private(home / LEASES, json.dumps(leases).encode())


def _stored(home: Path) -> Decisions | None:
    def invalid(text: str) -> PolicyInvalid:
        return PolicyInvalid(str(home / FILE), (text.removeprefix(f"{home / FILE} "),))

    data = read_own(home / FILE, remedy=_REMEDY, error=invalid, max_bytes=MAX_BYTES)
    try:
        return None if data is None else parse_json(data, Decisions, error=PolicyInvalid, source=str(home / FILE))
    except PolicyInvalid as err:
        raise PolicyInvalid(err.source, (*err.problems, _REMEDY), err.more) from err


def _begun_before(home: Path) -> dict[str, tuple[str, ...]]:
    """Lists by study the runs whose messages this node admitted before approvals counted runs."""
    begun: dict[str, tuple[str, ...]] = {}
    for run, (study_hash, _) in load_leases(home).items():
        begun[study_hash] = (*begun.get(study_hash, ()), run)[-MOST_RUNS:]
    return begun


def _change(
    home: Path, change: Callable[[Decisions], Decisions], note: Callable[[Decisions], None] | None = None
) -> None:
    """Writes changed decisions; before they count, `note` writes them in the decision log."""
    with locked(home / FILE):  # two commands at once must not lose a decision
        changed = change(load_decisions(home))
        if note is not None:
            note(changed)
        write_private(home / FILE, json.dumps(changed.model_dump(mode="json"), indent=1, sort_keys=True).encode())
