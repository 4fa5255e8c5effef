"""What the site's people decided by command, in `decisions.json` under the node's home: studies and the budget.

`client-node study approve`, `study revoke` and `budget set` write here; site.toml is a person's own file and is never
rewritten. Where both speak of the same thing the decision made here holds, so that `revoke` always revokes.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ..privacy import chain
from .draft import NO_ENTRIES, Digest, Frozen
from .errors import PolicyInvalid
from .files import read_private, write_private
from .settings import MAX_BYTES, Settings, parse_json

FILE = "decisions.json"


class BudgetPolicy(Settings):
    """The most that all studies together may cost one unit of the data set."""

    epsilon: float = Field(gt=0, le=1000, description="epsilon = 3.0")
    delta: float = Field(gt=0, le=1e-3, description="delta = 1e-5 (less than one in the number of units)")
    collusion: int = Field(default=1, ge=0, le=1000)  # sites that may pool what they know with an observer


class Verdict(Settings):
    """What was decided about one study, and when."""

    verdict: Literal["approved", "revoked"]
    unprotected: bool = False  # approved although the study has no privacy
    decided: Annotated[str, Field(max_length=40)] = ""  # UTC


class Decisions(Settings):
    """All decisions. A study without a verdict is not approved here."""

    format: Literal[1] = 1
    studies: Annotated[Mapping[Digest, Verdict], Field(max_length=10_000), *Frozen] = NO_ENTRIES
    budget: BudgetPolicy | None = None

    def verdict(self, study_hash: str) -> str | None:
        """`approved`, `revoked`, or None if nothing was decided here."""
        decision = self.studies.get(study_hash)
        return decision.verdict if decision else None


def load_decisions(home: Path) -> Decisions:
    """The decisions under `home`; none for a fresh node.

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
    """Records a cap that holds instead of the one in site.toml."""
    _change(home, lambda decisions: decisions.model_copy(update={"budget": budget}))


def _judged(
    decisions: Decisions, study_hash: str, verdict: Literal["approved", "revoked"], unprotected: bool
) -> Decisions:
    found = Verdict(verdict=verdict, unprotected=unprotected, decided=chain.now())
    judged = {**decisions.studies, study_hash: found}
    return Decisions(studies=judged, budget=decisions.budget)


def _change(home: Path, change: Callable[[Decisions], Decisions]) -> None:
    with _locked(home):
        changed = change(load_decisions(home))
        write_private(home / FILE, json.dumps(changed.model_dump(mode="json"), indent=1, sort_keys=True).encode())


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Two commands at once must not lose either's decision."""
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(home / f".{FILE}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
