"""Drives one run in a separate process, under a lease, until it is done, stopped or failed."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...client_node.errors import ClientNodeError
from ...mpc.errors import MpcError
from ...privacy.errors import PrivacyError
from ..errors import CoordinatorError, LeaseLost, RunStopped, StoreUnavailable, TransitionRefused
from ..federation import Pki, Register
from ..fleet import Fleet
from ..store import LedgerReplica, RunFolder, Store
from ..store.states import FAIL, HALT
from ..studies.catalogue import load_study, study_start
from .context import RunContext
from .rounds import drive_run, settle

logger = logging.getLogger(__name__)

HEARTBEAT_S = 1.0
LOG_FILE = "driver.log"  # in the run's folder


def drive(fleet: Fleet, home: Path, run_id: str) -> None:
    """Takes the run's lease and drives it; its end is written to the store.

    An error of ours needs a person: the run is marked failed and can be resumed. After any other error (a lost link to
    Flower, for example) it stays running, and `coordinator serve` starts the next driver.
    """
    store = Store.open(home)
    lease = store.acquire_lease(run_id)
    ended = threading.Event()
    heart = threading.Thread(target=_beat, args=(store, run_id, lease, ended), daemon=True)
    heart.start()
    try:
        with _logged(home, run_id):
            _drive_or_say_why(fleet, store, home, run_id, lease)
    finally:
        ended.set()
        heart.join()
        store.close()


def _drive_or_say_why(fleet: Fleet, store: Store, home: Path, run_id: str, lease: int) -> None:
    try:
        store.begin_driving(run_id, lease)
        _drive_or_stop(_context(fleet, store, home, run_id, lease))
    except TransitionRefused as err:
        logger.info("%s", err)
    except LeaseLost as err:
        logger.warning("%s", err)
    except StoreUnavailable as err:  # nothing can be written, and nothing is lost: the run goes on by the next driver
        logger.error("%s", err)
        raise
    except (CoordinatorError, ClientNodeError, MpcError, PrivacyError) as err:
        logger.error("run %s failed: %s", run_id, err)
        store.move_run(run_id, FAIL, lease=lease, error=f"{type(err).__name__}: {err}"[:2000])


@contextmanager
def _logged(home: Path, run_id: str) -> Iterator[None]:
    """Writes log lines to the run's own log file, because Flower, whose process this is, does not show them."""
    folder = RunFolder(home, run_id).path
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    handler = logging.FileHandler(folder / LOG_FILE)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
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


def _context(fleet: Fleet, store: Store, home: Path, run_id: str, lease: int) -> RunContext:
    study = load_study(store.study(store.run(run_id).study))
    start, pki = study_start(home, study), Pki.load(home)
    fleet.trust(Register(store, pki).site_of)
    return RunContext(
        fleet=fleet,
        store=store,
        folder=RunFolder(home, run_id),
        replica=LedgerReplica(store),
        study=study,
        id=run_id,
        lease=lease,
        signer=pki.signer,
        start=start.start,
    )


def _drive_or_stop(run: RunContext) -> None:
    try:
        drive_run(run)
    except RunStopped as err:
        logger.info("%s", err)
        settle(run, final=False)
        run.store.move_run(run.id, HALT, lease=run.lease)


def _beat(store: Store, run_id: str, lease: int, ended: threading.Event) -> None:
    while not ended.wait(HEARTBEAT_S):
        try:
            store.beat(run_id, lease)
        except LeaseLost:
            return  # the driver meets the same refusal at its next commit
        except StoreUnavailable as err:  # a full disk or a busy database can be over: the next beat tries again
            logger.warning("run %s: no heartbeat: %s", run_id, err)
