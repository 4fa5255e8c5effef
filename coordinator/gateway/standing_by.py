"""Waits as `coordinator serve --standby` until nobody leads the federation, with signs of life for a supervisor."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ...client_node.supervision import Answers, Monitor, Pulse, Supervisor, Verdict, exposition
from ..errors import StoreUnavailable
from .leading import Seat

if TYPE_CHECKING:
    from prometheus_client.core import Metric

logger = logging.getLogger(__name__)

LOOK_S = 1.0
_DUE_S = 120.0  # a database that is locked takes 20 s for each of a few statements
_REPEAT_S = 60.0  # a trouble that stays is logged so often
_LOOP = "the watch over the leader"


def stand_by(home: Path, seat: Seat, stop: threading.Event, supervisor: Supervisor, *, monitor: int | None) -> None:
    """Returns as soon as nobody leads, or `stop` is set.

    Raises:
        MonitorUnavailable: the monitor's port is taken.
    """
    pulse, leader, has_seen, told, told_at = Pulse(), "another machine", False, "", 0.0
    with _monitored(monitor, home, pulse, lambda: leader):
        while not stop.is_set():
            pulse.beat(_LOOP, within_s=_DUE_S)
            supervisor.live()
            trouble = ""
            try:
                found = seat.stand_by()
                if found is None:
                    logger.info("nobody leads this federation%s; this server does", " any more" if has_seen else "")
                    return
                leader, has_seen = found, True
                supervisor.ready()  # for one that leads at once, `Service` says so
            except StoreUnavailable as err:
                trouble = str(err)
            except OSError as err:  # a shared disk that is away for a moment
                trouble = f"{err.filename or home}: {err.strerror or type(err).__name__}"
            said = f"{trouble}; trying again" if trouble else f"stands by; a server on {leader} leads"
            if said != told or (trouble and time.monotonic() - told_at > _REPEAT_S):
                logger.log(logging.WARNING if trouble else logging.INFO, "%s", said)
                told, told_at = said, time.monotonic()
            stop.wait(LOOK_S)


@contextmanager
def _monitored(port: int | None, home: Path, pulse: Pulse, leader: Callable[[], str]) -> Iterator[None]:
    if port is None:
        yield
        return
    started = time.time()

    def look() -> "Iterator[Metric]":
        yield from exposition.of_process("standby", started)
        yield from exposition.of_disk(home)

    served = Monitor(port, Answers(
        alive=lambda: Verdict(tuple(f"{loop} shows no sign of life." for loop in pulse.stuck())),
        ready=lambda: Verdict((f"this server stands by; a server on {leader()} leads.",)),
        metrics=exposition.exposition(look), content_type=exposition.CONTENT_TYPE,
    ))  # fmt: skip
    try:
        yield
    finally:
        served.stop()
