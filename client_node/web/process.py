"""The process behind a page: serves it until its standard input is closed, so that it never outlives its parent.

It is started with one argument, a place in JSON (`command`), and says `{"address": ...}` on its standard output once it
listens.
"""

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp

from ...listening import Listening
from ...log_lines import log_to_stderr
from ...mpc.crash import TextLeftOut
from ..errors import ClientNodeError
from .serving import Place, serve_page

logger = logging.getLogger(__name__)

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
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is for the log

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        listening.stop()

    threading.Thread(target=watch, name="parent watch", daemon=True).start()
