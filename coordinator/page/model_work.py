"""Work that takes a loaded model: adapters and merged models for a download, and heat maps, in a process of its own.

One model is loaded at a time, whatever for.
"""

import json
import logging
import secrets
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from ...mpc.crash import TextLeftOut
from ..errors import AuditMissing, Conflict, CoordinatorError, NotFound, StateDamaged
from ..oversight.operators import Operator
from .downloads import alone, busy

logger = logging.getLogger(__name__)

FOLDER = "page-exports"  # in the home; what is in it lasts while a model is written
_PATIENCE_S = 2.0  # for what somebody else is having made
_LONGEST_S = 1800.0
_LONGEST_LINE = 1 << 16
_BUSY = "another model is being loaded"
_ERRORS: Mapping[str, type[CoordinatorError]] = {
    each.__name__: each for each in (AuditMissing, Conflict, NotFound, StateDamaged)
}

Form = Literal["adapter", "merged"]


@dataclass(slots=True)
class Making:
    """A heat map that is being made, or could not be."""

    part: float = 0.0  # of its tokens that are read
    problem: str = ""  # why it could not be


def clear(home: Path) -> None:
    """Removes what a page's process that was killed has left: a merged model may fill the disk."""
    shutil.rmtree(home / FOLDER, ignore_errors=True)


class ModelWork:
    """Loads models in processes of their own. Its methods may be called from any thread."""

    def __init__(self) -> None:
        self._one = threading.Lock()
        self._makings: dict[str, Making] = {}  # by run; those that went well are taken out
        self._thread: threading.Thread | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._is_closed = False

    def zip(
        self, home: Path, run_id: str, form: Form, operator: Operator | None, override_audit: str | None
    ) -> BinaryIO:
        """Writes a run's model as `adapter export` or `adapter merge` does.

        Returns:
            The open archive, which is in no folder any more.

        Raises:
            Conflict: another model is loaded, no round is committed yet, a charge is missing, or the disk is too full.
            AuditMissing: the study claims privacy, and no reason is given where an audit is required.
            CoordinatorError: it cannot be written.
        """
        with alone(self._one, _BUSY, _PATIENCE_S):
            parent = home / FOLDER
            clear(home)
            folder = parent / secrets.token_hex(8)  # an older one, if it still runs, has another
            try:
                parent.mkdir(mode=0o700)
                folder.mkdir(mode=0o700)
                self._order(form, home, run_id, operator, folder=str(folder), override_audit=override_audit)
                return (folder / "model.zip").open("rb")
            except OSError as err:
                raise CoordinatorError(f"{folder} cannot be written: {err.strerror}; nothing is kept of it") from err
            finally:
                clear(home)

    def begin_map(self, home: Path, run_id: str, operator: Operator | None) -> None:
        """Begins to make the heat map of a run, as `adapter map` does; `making` says how far it is.

        Raises:
            Conflict: another model is loaded.
        """
        if not self._one.acquire(timeout=_PATIENCE_S):
            raise busy(_BUSY)
        making = Making()
        own = (home, run_id, operator, making)
        thread = threading.Thread(target=self._map, args=own, name="heat map", daemon=True)
        self._makings[run_id] = making
        try:
            thread.start()
        except BaseException:  # no thread is to be had, and so nobody would give the lock back
            del self._makings[run_id]
            self._one.release()
            raise
        self._thread = thread

    def making(self, run_id: str) -> Making | None:
        """Looks at a run's heat map that is being made or could not be; None if nobody asked, or there it is."""
        return self._makings.get(run_id)

    def close(self) -> None:
        """Ends what is being made."""
        self._is_closed = True
        if (child := self._child) is not None:
            child.kill()
        if self._thread is not None:
            self._thread.join()

    def _map(self, home: Path, run_id: str, operator: Operator | None, making: Making) -> None:
        try:
            self._order("map", home, run_id, operator, tell=lambda part: setattr(making, "part", part))
            del self._makings[run_id]
        except CoordinatorError as err:
            making.problem = str(err)
        except Exception as err:
            logger.error("a heat map was not made", exc_info=TextLeftOut.of(err))
            making.problem = "an error that should not happen; the page's log says where"
        finally:
            self._one.release()

    def _order(
        self,
        do: Literal["map"] | Form,
        home: Path,
        run_id: str,
        operator: Operator | None,
        tell: Callable[[float], None] = lambda _: None,
        **more: str | None,
    ) -> None:
        """Lets another process load the model: it takes hundreds of megabytes, which this one must not keep."""
        who = None if operator is None else operator.name
        order = json.dumps({"do": do, "home": str(home), "run": run_id, "operator": who, **more})
        command = [sys.executable, "-P", "-m", "confide.coordinator.page.model_process"]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        with child:
            assert child.stdin is not None, "it was started with pipes"
            assert child.stdout is not None, "it was started with pipes"
            with suppress(BrokenPipeError):  # it has ended, as its exit code then says
                child.stdin.write(order.encode() + b"\n")
                child.stdin.flush()
            self._child, ending, last = child, threading.Timer(_LONGEST_S, child.kill), b""
            try:
                ending.start()
                if self._is_closed:
                    child.kill()
                while (line := child.stdout.readline(_LONGEST_LINE)).endswith(b"\n"):
                    last = line
                    if (part := json.loads(line).get("part")) is not None:
                        tell(float(part))
                child.wait()
            finally:
                self._child = None
                ending.cancel()
                child.kill()
        told: dict[str, Any] = json.loads(last) if last else {"part": 0}
        if child.returncode != 0 or "part" in told:
            raise CoordinatorError("the model was not loaded: its process ended; the page's log says why")
        if problem := told.get("problem"):
            raise _ERRORS.get(told["kind"], CoordinatorError)(problem)
