"""Admits messages that are for this node, about an approved study, from the newest driver of a run.

The newest lease and the study of each run are in `leases.json` under the node's home, so that a replaced driver is
refused, also after a restart.
"""

import json
import logging
from pathlib import Path

from ..errors import MessageInvalid, PolicyInvalid, SiteNotReady, StaleLease
from ..files import read_private, write_private
from ..study import Study
from ..wire.messages import Request
from .catalogue import approved_study

logger = logging.getLogger(__name__)

FILE = "leases.json"


class Admission:
    """Admits messages to one node, known by the name that it enrolled under."""

    def __init__(self, home: Path, name: str) -> None:
        self._home, self._name, self._path = home, name, home / FILE

    def admit(self, message: Request) -> Study:
        """Returns the approved study of a message, and stores the driver's lease if it is newer.

        Raises:
            MessageInvalid: the message is for another node, or names another study than the run began with.
            StaleLease: a message of a newer driver was admitted before.
            ClientNodeError: the study may not run here.
        """
        if message.to != self._name:
            raise MessageInvalid(f"the message is for {message.to}, this is {self._name}")
        seen = json.loads(read_private(self._path)) if self._path.exists() else {}
        study_hash, lease = seen.get(message.run, (message.study, 0))
        if study_hash != message.study:
            raise MessageInvalid(f"run {message.run} is of study {study_hash[:12]}, not of {message.study[:12]}")
        if message.lease < lease:
            raise StaleLease(
                f"run {message.run} is driven under lease {lease}, this message is from lease {message.lease}"
            )
        try:
            study = approved_study(self._home, message.study)
        except PolicyInvalid as err:
            logger.error("%s", err)
            raise SiteNotReady("the site's policy cannot be read; its log says why") from err
        if message.lease > lease:
            newest = seen | {message.run: (message.study, message.lease)}
            write_private(self._path, json.dumps(newest).encode())
        return study
