"""Decisions of a node's people by command, in `decisions.json` under its home: studies, the budget, confirmed sites.

`client-node study approve`, `study revoke`, `budget set` and `site confirm` write here; no command rewrites site.toml.
Where both speak of the same thing the decision made here counts, so that `revoke` always revokes.
"""

import fcntl
import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from ...models.strict import NO_ENTRIES, Digest, Frozen, Name, StrictModel, rule
from ...privacy.ledger import chain
from ..errors import PolicyInvalid
from ..files import read_private, write_private
from ..study.toml import MAX_BYTES, parse_json

FILE = "decisions.json"


def _is_fingerprint(value: str) -> str:
    if not re.fullmatch(r"[A-Z2-7]{4}(-[A-Z2-7]{4}){7}", value):
        raise rule("a fingerprint, eight groups of four letters or digits, such as ABCD-EF23-...")
    return value


Fingerprint = Annotated[str, AfterValidator(_is_fingerprint)]


class BudgetPolicy(StrictModel):
    """The most that all studies together may cost one unit of the data set."""

    epsilon: float = Field(gt=0, le=1000, examples=["4.0"])
    delta: float = Field(gt=0, le=1e-3, examples=["1e-5"], description="less than one in the number of units")
    collusion: int = Field(default=1, ge=0, le=1000)  # sites that may pool what they know with an observer


class Verdict(StrictModel):
    """A decision about one study, and its time."""

    verdict: Literal["approved", "revoked"]
    unprotected: bool = False  # approved although the study has no privacy
    decided: Annotated[str, Field(max_length=40)] = ""  # UTC


class Decisions(StrictModel):
    """All decisions. A study without a verdict is not approved here."""

    format: Literal[1] = 1
    studies: Annotated[Mapping[Digest, Verdict], Field(max_length=10_000), *Frozen] = NO_ENTRIES
    budget: BudgetPolicy | None = None
    sites: Annotated[Mapping[Name, Fingerprint], Field(max_length=10_000), *Frozen] = NO_ENTRIES  # confirmed keys

    def verdict(self, study_hash: str) -> str | None:
        """Finds the decision on a study: `approved`, `revoked`, or None if nothing was decided here."""
        decision = self.studies.get(study_hash)
        return decision.verdict if decision else None


def load_decisions(home: Path) -> Decisions:
    """Reads the decisions under `home`; none for a fresh node.

    Raises:
        PolicyInvalid: the file is damaged. Nothing is approved until a person has looked at it.
    """
    path = home / FILE
    try:
        data = read_private(path, max_bytes=MAX_BYTES + 1)
    except FileNotFoundError:
        return Decisions()
    except OSError as err:
        raise PolicyInvalid(str(path), (f"the file cannot be read: {err.strerror}",)) from err
    return parse_json(data, Decisions, error=PolicyInvalid, source=str(path))


def approve(home: Path, study_hash: str, *, unprotected: bool = False) -> None:
    """Records that the study may run here; `unprotected` if that includes running it without privacy."""
    _change(home, lambda decisions: _judged(decisions, study_hash, "approved", unprotected))


def revoke(home: Path, study_hash: str) -> None:
    """Records that the study may not run here any more, from its next message on."""
    _change(home, lambda decisions: _judged(decisions, study_hash, "revoked", False))


def set_budget(home: Path, budget: BudgetPolicy) -> None:
    """Records a cap that replaces the one in site.toml."""
    _change(home, lambda decisions: decisions.model_copy(update={"budget": budget}))


def confirm_sites(home: Path, fingerprints: Mapping[str, str]) -> None:
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

    _change(home, change)


def remove_sites(home: Path, names: Collection[str]) -> None:
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

    _change(home, change)


def _judged(
    decisions: Decisions, study_hash: str, verdict: Literal["approved", "revoked"], unprotected: bool
) -> Decisions:
    found = Verdict(verdict=verdict, unprotected=unprotected, decided=chain.now())
    judged = {**decisions.studies, study_hash: found}
    return decisions.model_copy(update={"studies": judged})


def _change(home: Path, change: Callable[[Decisions], Decisions]) -> None:
    with _locked(home):
        changed = change(load_decisions(home))
        write_private(home / FILE, json.dumps(changed.model_dump(mode="json"), indent=1, sort_keys=True).encode())


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Locks the decisions, so that two commands at once do not lose a decision."""
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(home / f".{FILE}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
