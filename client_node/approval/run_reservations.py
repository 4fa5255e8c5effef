"""Which runs have begun here and shall be able to end: their rounds to come are held back from other runs.

Without this, two runs prepared one after the other could each fit what is left of a budget, and both would end half
done with all of it spent. A hold is a courtesy to the study, no part of the guarantee: the cap is kept by the ledger,
round by round, whatever is held. So it lapses by itself when a run is silent for long; a run that is resumed is
prepared anew, and then has to fit again.
"""

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field

from ...models.strict import NO_ENTRIES, Digest, Frozen, StrictModel
from ..errors import PolicyInvalid, SiteNotReady
from ..files import read_private, write_private
from ..study.toml import MAX_BYTES, parse_json

logger = logging.getLogger(__name__)

FILE = "holds.json"
LAPSE_S = 86_400.0  # a run that has been silent for so long holds nothing
MAX_RUNS = 1000


class Hold(StrictModel):
    """One run that has begun."""

    study: Digest
    heard: float  # of its last message, Unix time


class _Held(StrictModel):
    runs: Annotated[Mapping[Annotated[str, Field(max_length=256)], Hold], Field(max_length=MAX_RUNS), *Frozen] = (
        NO_ENTRIES
    )


class Holds:
    """The runs that hold a part of the budget, in `holds.json` under the node's home."""

    def __init__(self, home: Path, clock: Callable[[], float] = time.time) -> None:
        self._path, self._clock = home / FILE, clock

    def runs(self) -> dict[str, str]:
        """The study of each run that holds something now.

        Raises:
            SiteNotReady: the file is damaged; deleting it gives up all holds, which costs no privacy.
        """
        return {run: hold.study for run, hold in self._live().items()}

    def keep(self, run: str, study_hash: str) -> None:
        """Notes that `run` has begun, or is still heard of."""
        live, now = self._live(), self._clock()
        if run in live and now - live[run].heard < LAPSE_S / 24:
            return  # written a short time ago
        newest = sorted({**live, run: Hold(study=study_hash, heard=now)}.items(), key=lambda item: -item[1].heard)
        self._write(dict(newest[:MAX_RUNS]))

    def drop(self, run: str) -> None:
        """Notes that `run` has ended."""
        live = self._live()
        if live.pop(run, None) is not None:
            self._write(live)

    def _live(self) -> dict[str, Hold]:
        if not self._path.exists():
            return {}
        data = read_private(self._path, max_bytes=MAX_BYTES + 1)
        now = self._clock()
        try:
            held = parse_json(data, _Held, error=PolicyInvalid, source=str(self._path))
        except PolicyInvalid as err:
            logger.error("%s; deleting the file gives up what runs hold, and costs no privacy", err)
            raise SiteNotReady("the site's note of runs that have begun is damaged; its log says where") from err
        return {run: hold for run, hold in held.runs.items() if abs(now - hold.heard) < LAPSE_S}

    def _write(self, runs: Mapping[str, Hold]) -> None:
        write_private(self._path, _Held(runs=runs).model_dump_json().encode())
