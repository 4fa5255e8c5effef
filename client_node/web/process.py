"""The process behind a page: serves it until its standard input is closed, so that it never outlives its parent.

It is started with one argument, a place in JSON (`command`), and says `{"address": ...}` on its standard output once it
listens. From then on it says an empty line every few seconds, by which `WebChild` sees that it does not hang.
"""

import asyncio
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp

from ...listening import Listening
from ...log_lines import log_to_stderr
from ...mpc.crash import TextLeftOut, hide_values
from ..errors import ClientNodeError
from .serving import Place, serve_page

logger = logging.getLogger(__name__)

SIGN_S = 5.0  # between two signs of life
END_S = 10.0  # after the parent's end, for what is under way
Opened = Callable[[Path, Place], AbstractContextManager[ASGIApp]]


def command(module: str, home: Path, place: Place) -> list[str]:
    """Writes the command that starts the process `module` for a home, at a place."""
    files = {"certificate": place.certificate, "key": place.key}
    told = {name: None if path is None else str(path.resolve()) for name, path in files.items()}
    where = json.dumps({"home": str(home.resolve()), "host": place.host, "port": place.port, **told})
    return [sys.executable, "-P", "-m", module, where]


def run(opened: Opened, errors: tuple[type[Exception], ...] = ()) -> int:
    """Serves until told to end; returns the exit code.

    Args:
        opened: opens the app of a home for a place.
        errors: of the page, whose text is fit for a log; all others are logged without it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the parent, which decides
    hide_values()  # a thread that fails says in the log where, and no more
    log_to_stderr(logging.WARNING)
    told: dict[str, Any] = json.loads(sys.argv[1])
    files = {name: Path(told[name]) if told[name] else None for name in ("certificate", "key")}
    place = Place(host=str(told["host"]), port=int(told["port"]), **files)
    known: tuple[type[Exception], ...] = (ClientNodeError, *errors)
    try:
        with opened(Path(told["home"]), place) as app:
            serve_page(app, place, _announce)
    except known as err:
        logger.error("%s", err)
        return 1
    except Exception as err:
        logger.error("the page ended", exc_info=TextLeftOut.of(err))
        return 1
    return 0


def _announce(address: str, listening: Listening) -> None:
    print(json.dumps({"address": address}), flush=True)
    signs = os.dup(sys.stdout.fileno())
    os.set_blocking(signs, False)  # a parent that stands still does not stop the page
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is for the log
    living = asyncio.get_running_loop().create_task(_live(signs))

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        listening.stop()
        with suppress(RuntimeError):  # the loop is closed already
            living.get_loop().call_soon_threadsafe(living.cancel)
        time.sleep(END_S)
        os._exit(1)  # what hangs would hold the port for good, and nobody is there who ends it

    threading.Thread(target=watch, name="parent watch", daemon=True).start()


async def _live(signs: int) -> None:
    """Gives a sign of life as long as the loop turns and a thread is free, which every request takes."""
    while True:
        await run_in_threadpool(_nothing)
        with suppress(OSError):  # the parent does not read, or has ended, which `watch` sees
            os.write(signs, b"\n")
        await asyncio.sleep(SIGN_S)


def _nothing() -> None:
    """Takes a thread and gives it back."""
