"""States of a run and the changes between them: the one table of what may follow what, and who may bring it about.

The store makes a change only for a run that is in one of the states it starts from, in one statement. So no order to
stop overwrites an end that a driver has just written, and no driver brings back a run that is over.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal


class RunState(StrEnum):
    """Names where a run stands."""

    PENDING = "pending"  # waits for a driver
    RUNNING = "running"
    STOPPING = "stopping"  # an operator has asked for it; the driver obeys between two questions
    STOPPED = "stopped"
    DONE = "done"
    FAILED = "failed"

    @property
    def is_over(self) -> bool:
        """Tells a run that wants no driver from one that does; a stopped or failed one can be resumed."""
        return self in (RunState.STOPPED, RunState.DONE, RunState.FAILED)


@dataclass(frozen=True, kw_only=True, slots=True)
class Transition:
    """Describes a change of a run's state: by whom, and what follows what."""

    name: str
    by: Literal["driver", "operator"]  # a driver needs the run's lease
    moves: Mapping[RunState, RunState]  # from each state it may start in to the state after it
    refusal: str  # told of a run in any other state

    def allows(self, state: RunState) -> bool:
        """Tells states that it may start in from the others."""
        return state in self.moves

    @property
    def is_end(self) -> bool:
        """Tells a change after which the run is over."""
        return all(after.is_over for after in self.moves.values())


PENDING, RUNNING, STOPPING, STOPPED, DONE, FAILED = RunState

STOP = Transition(
    name="stop",
    by="operator",
    moves={PENDING: STOPPING, RUNNING: STOPPING},
    refusal="there is nothing to stop",
)
RESUME = Transition(
    name="resume",
    by="operator",
    moves={STOPPED: PENDING, FAILED: PENDING},
    refusal="only a stopped or failed run is resumed",
)
BEGIN = Transition(
    name="begin",
    by="driver",
    moves={PENDING: RUNNING, RUNNING: RUNNING, STOPPING: STOPPING},  # an older driver may have left it; an order stands
    refusal="there is nothing to drive",
)
HALT = Transition(
    name="halt",
    by="driver",
    moves={STOPPING: STOPPED},
    refusal="nobody has asked it to stop",
)
FINISH = Transition(
    name="finish",
    by="driver",
    moves={RUNNING: DONE, STOPPING: DONE},  # an order to stop may come too late
    refusal="only a run that is driven becomes done",
)
FAIL = Transition(
    name="fail",
    by="driver",
    moves={RUNNING: FAILED, STOPPING: FAILED},
    refusal="only a run that is driven can fail",
)
TRANSITIONS = (STOP, RESUME, BEGIN, HALT, FINISH, FAIL)
