"""Drives one run in a separate process, under a lease, until it is over.

What ends a driver is one of four things. An error of ours needs a person: the run is marked failed and can be resumed.
A passing trouble (the SuperLink is away, the disk is full, the database is busy) is written to the run's row, and
`coordinator serve` starts the next driver after a pause. So is any other error, a mistake in the program or a file that
nobody thought of, once: the second driver that ends in the same way at the same round marks the run failed.
"""

import errno
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from ...client_node.errors import ClientNodeError
from ...log_lines import log_file
from ...mpc.crash import TextLeftOut, spot
from ...mpc.errors import MpcError
from ...privacy.errors import PrivacyError
from ..errors import (
    CoordinatorError,
    LeaseForgotten,
    LeaseLost,
    RunStopped,
    StoreUnavailable,
    SuperLinkFailed,
    TransitionRefused,
)
from ..federation import Pki, Register
from ..fleet import Fleet
from ..store import LedgerReplica, Store
from ..store.run_folder import RunFolder
from ..store.states import FAIL, HALT, RunState
from ..studies.catalogue import load_study, study_start
from .context import RunContext
from .questions import LEASES_FORGOTTEN
from .rounds import drive_run, settle, take_leave

logger = logging.getLogger(__name__)

HEARTBEAT_S = 1.0
_SKIPPED_LEASES = 64  # each start of a driver takes one
LOG_FILE = "driver.log"  # in the run's folder
_PASSING = (
    errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EROFS, errno.ENOLCK,
)  # fmt: skip


def drive(fleet: Fleet, home: Path, run_id: str, *, fenced: Callable[[], object] = lambda: None) -> None:
    """Takes the run's lease and drives it; its end, or what came in between, is written to the store.

    Args:
        fenced: called from another thread once the lease is lost: whatever goes on can write nothing any more.

    Raises:
        Exception: a passing trouble, or an error that nobody thought of, ended this driver; the run needs another one.
    """
    store = Store.open(home)
    lease = store.acquire_lease(run_id)
    ended = threading.Event()
    heart = threading.Thread(target=_beat, args=(store, run_id, lease, ended, fenced), daemon=True)
    heart.start()
    try:
        with _logged(home, run_id):
            _drive_or_say_why(fleet, store, home, run_id, lease)
    finally:
        ended.set()
        heart.join()
        store.close()


def _drive_or_say_why(fleet: Fleet, store: Store, home: Path, run_id: str, lease: int) -> None:
    trouble = store.run(run_id).error  # of the driver before, if the run has not ended since
    try:
        with _passing_told():
            store.begin_driving(run_id, lease)
            # Not by two drivers in a row: a node that always says so would else keep the run from going on.
            may_skip = trouble != LEASES_FORGOTTEN
            _drive_or_stop(_context(fleet, store, home, run_id, lease, may_skip_leases=may_skip))
    except TransitionRefused as err:
        logger.info("%s", err)
    except LeaseLost as err:
        logger.warning("%s", err)
    except LeaseForgotten as err:
        logger.warning("run %s: its driver ends, the next one goes on: %s", run_id, err)
        try:
            store.note_trouble(run_id, lease, str(err), skipped=_SKIPPED_LEASES)
        except LeaseLost as lost:
            logger.warning("%s", lost)
            return
        raise
    except _Passing as err:
        logger.warning("run %s: its driver ends, the next one goes on: %s", run_id, err)
        with suppress(StoreUnavailable):  # which it may be about
            store.note_trouble(run_id, lease, str(err))
        raise
    except (CoordinatorError, ClientNodeError, MpcError, PrivacyError) as err:
        logger.error("run %s failed: %s", run_id, err)
        store.move_run(run_id, FAIL, lease=lease, error=f"{type(err).__name__}: {err}"[:2000])
    except Exception as err:
        logger.error("run %s: its driver ended", run_id, exc_info=TextLeftOut.of(err))
        found = f"{type(err).__name__} in {spot(err)} after round {store.last_round(run_id).number}"
        if found == trouble:
            error = f"{found}, twice: what is committed is kept; {RunFolder(home, run_id).path / LOG_FILE} says more"
            store.move_run(run_id, FAIL, lease=lease, error=error)
            return
        store.note_trouble(run_id, lease, found)
        raise


class _Passing(Exception):
    """A trouble that may be over when the next driver comes."""


@contextmanager
def _passing_told() -> Iterator[None]:
    """Raises a passing trouble as `_Passing`, in words for the run's row."""
    try:
        yield
    except StoreUnavailable as err:
        raise _Passing(f"{err}; trying again") from err
    except (SuperLinkFailed, httpx.HTTPError, ConnectionError, TimeoutError) as err:
        raise _Passing(f"the SuperLink does not answer as it should ({type(err).__name__}); trying again") from err
    except OSError as err:
        if err.errno not in _PASSING:
            raise
        raise _Passing(f"{err.strerror}: {err.filename or 'a file of the run'}; trying again") from err


@contextmanager
def _logged(home: Path, run_id: str) -> Iterator[None]:
    """Writes log lines to the run's own log file, because Flower, whose process this is, does not show them."""
    folder = RunFolder(home, run_id).path
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    handler = log_file(folder / LOG_FILE)
    ours = logging.getLogger(__package__.partition(".")[0])
    before = ours.level
    ours.setLevel(logging.INFO)
    ours.addHandler(handler)
    try:
        yield
    finally:
        ours.removeHandler(handler)
        ours.setLevel(before)
        handler.close()


def _context(fleet: Fleet, store: Store, home: Path, run_id: str, lease: int, *, may_skip_leases: bool) -> RunContext:
    study = load_study(store.study(store.run(run_id).study))
    start, pki = study_start(home, study), Pki.load(home)
    fleet.trust(Register(store, pki).names_by_key)
    return RunContext(
        fleet=fleet,
        store=store,
        folder=RunFolder(home, run_id),
        replica=LedgerReplica(store),
        study=study,
        id=run_id,
        lease=lease,
        pki=pki,
        start=start.start,
        may_skip_leases=may_skip_leases,
    )


def _drive_or_stop(run: RunContext) -> None:
    try:
        if run.store.run(run.id).state == RunState.ABANDONING:
            take_leave(run)
        else:
            drive_run(run)
    except RunStopped as err:
        logger.info("%s", err)
        settle(run, final=False)
        run.store.move_run(run.id, HALT, lease=run.lease)


def _beat(store: Store, run_id: str, lease: int, ended: threading.Event, fenced: Callable[[], object]) -> None:
    while not ended.wait(HEARTBEAT_S):
        try:
            store.beat(run_id, lease)
        except LeaseLost:
            fenced()
            return  # the driver meets the same refusal at its next commit
        except StoreUnavailable as err:  # a full disk or a busy database can be over: the next beat tries again
            logger.warning("run %s: no heartbeat: %s", run_id, err)
