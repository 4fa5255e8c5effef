"""Times the steps of a round at the coordinator, by its own clock.

Sites answer at public times, and what follows works on vectors and envelopes of sizes that the study fixes. So no step
says more of records than the answers themselves, see docs/threat-model.md, "Timing".
"""

import time
from typing import Literal, get_args

Step = Literal[
    "collect",  # sites are asked, until the last sealed share is here
    "topup",  # sites of the set are asked to make up for the noise of missing ones
    "deliver",  # sealed shares are brought to the aggregators
    "wait",  # for a turn at the aggregators, and between two tries
    "sum",  # the aggregators check the vectors' lengths, add them and open the total
    "open",  # the total's tags are verified, and it is read
    "apply",  # the server step, until its state is on disk
]
STEPS: tuple[Step, ...] = get_args(Step)


class Laps:
    """The seconds of each step of a round, from the moment when this object is made."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._seconds: dict[Step, float] = {}

    @property
    def total(self) -> float:
        """The seconds of all steps that have ended."""
        return sum(self._seconds.values())

    @property
    def columns(self) -> dict[str, float]:
        """The columns of a round's row, for the steps that have ended."""
        return {f"{step}_s": seconds for step, seconds in self._seconds.items()}

    def end(self, step: Step) -> None:
        """Counts the time since the last step ended to `step`, which may come more than once."""
        now = time.monotonic()
        self._seconds[step] = self._seconds.get(step, 0.0) + now - self._since
        self._since = now
