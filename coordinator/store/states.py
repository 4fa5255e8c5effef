"""States of a run and the transitions between them, each with the one who may make it: driver or operator.

The store checks the state and changes it in one SQL statement. So an order to stop never overwrites an end that a
driver has just written, and no driver restarts a run that is over.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal


class RunState(StrEnum):
    """The state of a run."""

    PENDING = "pending"  # waits for a driver
    RUNNING = "running"
    STOPPING = "stopping"  # an operator has asked for it; the driver obeys between two questions
    STOPPED = "stopped"
    DONE = "done"
    FAILED = "failed"
    ABANDONING = "abandoning"  # given up; a driver still tells its nodes
    ABANDONED = "abandoned"

    @property
    def is_over(self) -> bool:
        """True once the run needs no driver; a stopped or failed run can still be resumed."""
        return self in (RunState.STOPPED, RunState.DONE, RunState.FAILED, RunState.ABANDONED)

    @property
    def is_settled(self) -> bool:
        """True if no round of the run can follow any more."""
        return self in (RunState.DONE, RunState.ABANDONING, RunState.ABANDONED)


@dataclass(frozen=True, kw_only=True, slots=True)
class Transition:
    """A change of a run's state that a driver or an operator may make."""

    name: str
    by: Literal["driver", "operator"]  # a driver needs the run's lease
    moves: Mapping[RunState, RunState]  # allowed state before -> state after
    refusal: str  # the error's text for a run in any other state
    fences: bool = False  # takes the lease from a driver, which may be hung: it can write nothing any more

    def allows(self, state: RunState) -> bool:
        """True if the transition may start from `state`."""
        return state in self.moves


PENDING, RUNNING, STOPPING, STOPPED, DONE, FAILED, ABANDONING, ABANDONED = RunState

STOP = Transition(
    name="stop",
    by="operator",
    moves={PENDING: STOPPED, RUNNING: STOPPING},  # nobody drives a pending run
    refusal="there is nothing to stop",
)
CUT = Transition(
    name="cut",
    by="operator",
    moves={STOPPING: STOPPED},
    refusal="nobody has asked it to stop",
    fences=True,
)
ABANDON = Transition(
    name="abandon",
    by="operator",
    moves=dict.fromkeys((PENDING, RUNNING, STOPPING, STOPPED, FAILED), ABANDONING),
    refusal="there is nothing to abandon",
    fences=True,
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
    # An older driver may have left it so; an order stands.
    moves={PENDING: RUNNING, RUNNING: RUNNING, STOPPING: STOPPING, ABANDONING: ABANDONING},
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
    moves={RUNNING: FAILED, STOPPING: FAILED, ABANDONING: ABANDONED},
    refusal="only a run that is driven can fail",
)
LEAVE = Transition(
    name="leave",
    by="driver",
    moves={ABANDONING: ABANDONED},
    refusal="nobody has abandoned it",
)
TRANSITIONS = (STOP, CUT, ABANDON, RESUME, BEGIN, HALT, FINISH, FAIL, LEAVE)
