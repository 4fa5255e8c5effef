"""Lets the answer to a round leave at a public time, which does not depend on what was drawn.

How long a step takes tells how many units were drawn, and amplification by sampling counts on that being secret. So an
answer, a failure's too, leaves a *stated* time after the step began, however early it was ready. The stated time is the
site's `limits.answer_s`, or as much as was needed before. It never shrinks.

An answer that was not ready leaves at the next time of a grid in which each is sqrt(2) of the one before, and that is
the stated time from then on. This is what still leaks, and it is in no epsilon: that a step took longer than all before
it of its kind, and than which time of the grid. From 1/16 of a second to an hour it happens at most 32 times in all
the rounds of a study, for each kind of step; in practice once, at the first, which tells the usual length of a step
within a factor of sqrt(2). Where `answer_s` is longer than any step it never happens.

Kinds are an update, from tokens or from kept states, the first one since the model was loaded (it also reads the
table), a prototype, an evaluation, the reading of a table that is new or has changed, before anything is charged for it
(`client_node.data.known_units`), looking for kept states of its records, and computing those that are missing. The last
is done for a part of the deadline at a time, so how many answers waited for it tells, too, how many tokens a table has:
if there were k, to within one part in k, which for a long table is finer than the grid.
"""

import logging
import math
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, Protocol

from pydantic import Field, TypeAdapter

from ...models.strict import NO_ENTRIES, Frozen, StrictModel
from ..errors import FileDamaged
from ..files import read_json, write_private
from ..policy import SitePolicy
from ..study import PlannedRound, Study

logger = logging.getLogger(__name__)

FILE = "answer-times.json"
LEAST_S = 2.0**-4
MAX_KINDS = 1000  # of all studies; the oldest are forgotten
_MAX_BYTES = 2**20
_REMEDY = (
    "It says when answers leave. Restore it from a backup, or delete it: the times are then found anew, which tells "
    "them once more"
)

_Kind = Annotated[str, Field(max_length=128)]
_Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _File(StrictModel):
    seconds: Annotated[Mapping[_Kind, _Seconds], Field(max_length=MAX_KINDS), *Frozen] = NO_ENTRIES


_FORM = TypeAdapter(_File)


class Step(Protocol):
    """Describes what computes a step."""

    @property
    def starts_from(self) -> Literal["tokens", "kept states"]:
        """Names what a step computes from."""
        ...


class PublicTimes:
    """The stated times of a site's answers, stored in `answer-times.json` under the node's home."""

    def __init__(
        self, home: Path, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._path, self._clock, self._sleep = home / FILE, clock, sleep
        self._found: dict[str, float] = {}  # by this process, should the file not take them
        self._last: Callable[[], object | None] = lambda: None  # the model of the last update

    @contextmanager
    def read(self, study: Study, policy: SitePolicy) -> Iterator[None]:
        """Like `answered`, for a reading of the whole table before a charge: its time tells how many rows it has."""
        with self._until(study, policy, "table"):
            yield

    @contextmanager
    def kept(self, study: Study, policy: SitePolicy, part: Literal["looked for", "computed"]) -> Iterator[None]:
        """Like `read`, where kept states of the table's records are looked for, or the missing ones are computed."""
        with self._until(study, policy, f"kept states {part}"):
            yield

    @contextmanager
    def answered(self, study: Study, planned: PlannedRound, policy: SitePolicy, model: Step) -> Iterator[None]:
        """Lasts until the public time of the answer, also if what is done inside fails; waits only in a private study.

        Args:
            model: what computes the step; another one has to read the records first.

        Raises:
            FileDamaged: the file of stated times is damaged.
        """
        with self._until(study, policy, self._kind(planned, model)):
            yield

    @contextmanager
    def _until(self, study: Study, policy: SitePolicy, name: str) -> Iterator[None]:
        if study.draft.privacy.mode == "none":
            yield
            return
        began, kind = self._clock(), f"{study.study_hash}/{name}"
        stated = max(LEAST_S, policy.limits.answer_s, self._stated().get(kind, 0.0), self._found.get(kind, 0.0))
        try:
            yield
        except Exception:
            self._wait(kind, began, stated, study.draft.rounds.deadline_s)
            raise
        self._wait(kind, began, stated, study.draft.rounds.deadline_s)

    def _kind(self, planned: PlannedRound, model: Step) -> str:
        if planned.purpose != "update":
            return planned.purpose
        is_warm, self._last = self._last() is model, weakref.ref(model)
        kind = "update" if is_warm else "first update"
        return kind if model.starts_from == "tokens" else f"{kind} from kept states"

    def _wait(self, kind: str, began: float, stated: float, deadline_s: float) -> None:
        seconds = next_on_grid(self._clock() - began, stated)
        if seconds > stated:
            logger.info("answers of this kind leave %.3g s after their step began from now on", seconds)
            if seconds > deadline_s / 2:
                logger.warning(
                    "that is more than half of the study's deadline of %g s; if this machine only stalled, stop the "
                    "node and delete %s",
                    deadline_s,
                    self._path,
                )
            self._note(kind, seconds)
        while (left := began + seconds - self._clock()) > 0:
            self._sleep(left)

    def _note(self, kind: str, seconds: float) -> None:
        """Stores a new stated time. What keeps it from the disk does not let the answer go early, nor find it anew."""
        self._found[kind] = seconds
        try:
            known = {old: stated for old, stated in self._stated().items() if old != kind} | {kind: seconds}
            write_private(self._path, _File(seconds=dict(list(known.items())[-MAX_KINDS:])).model_dump_json().encode())
        except (OSError, FileDamaged) as err:
            logger.error("the time of answers is kept only until this node stops: %s", err)

    def _stated(self) -> Mapping[str, float]:
        found = read_json(self._path, _FORM, remedy=_REMEDY, max_bytes=_MAX_BYTES)
        return {} if found is None else found.seconds


def next_on_grid(seconds: float, stated: float) -> float:
    """The first of `stated` * sqrt(2)^k, k = 0, 1, 2, ..., that is at least `seconds`."""
    if seconds <= stated:
        return stated
    found: float = stated * 2.0 ** (math.ceil(2 * math.log2(seconds / stated)) / 2)
    return found if found >= seconds else found * math.sqrt(2)  # the logarithm was rounded down
