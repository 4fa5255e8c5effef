"""Admits messages that are for this node, about an approved study, from the newest driver of a run.

The newest lease and the study of each run are in `leases.json` under the node's home, so that a replaced driver is
refused, also after a restart.

An approval covers a number of runs. A run is counted when it is prepared and all that speaks against it was looked at;
any message that could cost something counts it too, should it never have been prepared.
"""

import logging
from pathlib import Path

from ..errors import MessageInvalid, PolicyInvalid, SiteNotReady, StaleLease
from ..policy import decisions, site_policy
from ..ruling import Ruling, require
from ..study import Study
from ..wire.messages import Prepare, Request, Settle
from . import peers, rulings
from .catalogue import approved_study

logger = logging.getLogger(__name__)


class Admission:
    """Admits messages to one node, known by the name that it enrolled under."""

    def __init__(self, home: Path, name: str) -> None:
        self._home, self._name = home, name

    def known_keys(self) -> dict[str, tuple[str, ...]]:
        """Reads the keys of other parties that are known here, in hex, by name. Raises `FileDamaged`."""
        return peers.known_keys(self._home)

    def admit(self, message: Request) -> Study:
        """Returns the approved study of a message, and stores the driver's lease if it is newer.

        Raises:
            MessageInvalid: the message is for another node, or names another study than the run began with.
            StaleLease: a message of a newer driver was admitted before.
            ClientNodeError: the study may not run here, or no further run of it.
        """
        if message.to != self._name:
            raise MessageInvalid(f"the message is for {message.to}, this is {self._name}")
        seen = decisions.load_leases(self._home)
        study_hash, lease = seen.get(message.run, (message.study, 0))
        if study_hash != message.study:
            raise MessageInvalid(f"run {message.run} is of study {study_hash[:12]}, not of {message.study[:12]}")
        if message.lease < lease:
            raise StaleLease(
                f"run {message.run} is driven under lease {lease}, this message is from lease {message.lease}"
            )
        try:
            decisions.carry_over(self._home)
            study = approved_study(self._home, message.study)
            self._require_room(message)
        except PolicyInvalid as err:
            logger.error("%s", err)
            raise SiteNotReady("the site's policy cannot be read; its log says why") from err
        if names := peers.note(self._home, study):
            logger.info(
                "study %s: the keys of %s were never seen here, and are known now", study.name, ", ".join(names)
            )
        if message.lease > lease:
            decisions.store_leases(self._home, seen | {message.run: (message.study, message.lease)})
        return study

    def count(self, message: Request) -> None:
        """Counts a message's run under the approval of its study, durably.

        Raises:
            StudyNotApproved: other runs have used the approval up.
        """
        allowed = site_policy.approvals(self._home).runs_of(message.study)
        decisions.count_run(self._home, message.study, message.run, allowed=allowed)

    def _require_room(self, message: Request) -> None:
        """Refuses a run that the approval does not cover any more; counts one that begins without being prepared.

        To settle costs nothing, and makes charges exact: no count refuses it.
        """
        if isinstance(message, Settle):
            return
        if not isinstance(message, Prepare):
            return self.count(message)
        require([rulings.of_run(self._home, message.study, message.run)], about=f"study {message.study[:12]}")


def rulings_on(home: Path, study: Study, run: str | None) -> list[Ruling]:
    """Lists the rulings by which `Admission` judges a message about a run of a study; None for one more run.

    Raises:
        PolicyInvalid: site.toml or decisions.json is unreadable or invalid.
    """
    return [*rulings.of_study(home, study), rulings.of_run(home, study.study_hash, run)]


def rulings_on_draft(home: Path, study: Study) -> list[Ruling]:
    """Lists those of these rulings that a draft can be judged by, in its `cost.provisional` study; raises as above."""
    return rulings.of_draft(home, study)
