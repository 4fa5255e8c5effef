"""The first page: whether all is well, what waits for a person, what was spent, and what runs here."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.responses import Response

from ...privacy.errors import PrivacyError
from .. import daemon, vitals, witness
from ..approval import site_budget, study_decisions
from ..approval.run_reservations import RunReservations
from ..approval.site_budget import SiteAccount
from ..approval.study_decisions import KnownStudy
from ..errors import ClientNodeError
from ..health import disk_space
from ..policy import pending
from .visits import Visit

_SILENT_S = 4 * vitals.NOTE_S


@dataclass(frozen=True, slots=True)
class Waits:
    """A study that waits for this site's people."""

    known: KnownStudy
    first: str  # the first person's word, where it takes two; "" for none


def show(visit: Visit) -> Response:
    """Shows the node at a glance, as `client-node status` does."""
    home = visit.home
    found, standing = daemon.status(home), vitals.noted(home)
    known = study_decisions.overview(home)
    accounts, trouble = spending(visit)
    return visit.render(
        "overview.html", found=found, standing=standing, waits=list(waiting(home, known)),
        worries=list(_worries(home, found, standing, trouble)), accounts=accounts, going=going(home, known),
        approved=sum(each.decision == "approved" for each in known), today=time.time(),
    )  # fmt: skip


def waiting(home: Path, known: list[KnownStudy]) -> Iterator[Waits]:
    """Lists the studies with a part for this node on which nobody has decided yet, or whose approval has expired."""
    for each in known:
        if each.roles and each.decision in (None, "expired"):
            first = pending.waiting(home, "approve", each.study.study_hash)
            yield Waits(each, "" if first is None else first.told())


def spending(visit: Visit) -> tuple[list[SiteAccount], str]:
    """Lists the site's accounts, and says why they cannot be read; "" if they can."""
    if not visit.node.trains:
        return [], ""
    try:
        return visit.node.of_ledger("accounts", site_budget.accounts), ""
    except (ClientNodeError, PrivacyError) as err:
        return [], str(err)


def going(home: Path, known: list[KnownStudy]) -> dict[str, KnownStudy | None]:
    """Lists the runs that go on here, each with its study as far as that is known."""
    studies = {each.study.study_hash: each for each in known}
    return {run: studies.get(study) for run, study in sorted(RunReservations(home).runs().items())}


def _worries(home: Path, found: dict[str, Any], standing: vitals.Standing | None, trouble: str) -> Iterator[str]:
    if not found["running"]:
        yield "no daemon runs, so this node answers nothing: client-node run"
    elif standing is not None and time.time() - standing.noted > _SILENT_S:
        yield "the daemon shows no sign of life: look at its log, and restart it"
    elif standing is not None and not standing.is_connected:
        yield f"the coordinator at {found['coordinator']} is not reached: {standing.trouble}"
    if "identity" not in found:
        yield str(found["keys"])
    if found.get("ledger", "whole") not in ("whole", "none yet"):
        yield str(found["ledger"])
    elif trouble:
        yield trouble
    if (refused := witness.load(home).refused) is not None:
        yield (
            f"the coordinator's audit log was not countersigned: {refused.words}; ask its people why, and see "
            "client-node witness"
        )
    for finding in disk_space(home):
        if finding.state != "ok":
            yield f"{finding.detail}: {finding.remedy}"
