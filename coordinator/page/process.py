"""The process that serves the operator's page: `python -m confide.coordinator.page.process PLACE`, PLACE in JSON.

`coordinator serve` starts it and keeps it. It says `{"address": ...}` on its standard output once it listens, and ends
when its standard input is closed, so it never outlives the server.
"""

import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from ...client_node.errors import PageUnavailable
from ...client_node.web.serving import Place, serve_page
from ...listening import Listening
from ...log_lines import log_to_stderr
from ...mpc.crash import TextLeftOut
from ..errors import CoordinatorError
from ..store import Store
from .app import PageApp

logger = logging.getLogger(__name__)


def serve(home: Path, place: Place) -> None:
    """Serves the page of the federation at `home` until the standard input is closed, or a signal comes.

    Raises:
        PageUnavailable: it cannot be served at that place.
        CoordinatorError: the federation cannot be read.
    """
    store = Store.open(home)
    try:
        store.require_schema()
        page = PageApp(home, store, is_https=place.is_https)
        try:
            serve_page(page.app, place, _announce)
        finally:
            page.close()
    finally:
        store.close()


def main() -> int:
    """Serves until told to end; returns the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the parent, which decides
    log_to_stderr(logging.WARNING)
    told: dict[str, Any] = json.loads(sys.argv[1])
    files = {name: Path(told[name]) if told[name] else None for name in ("certificate", "key")}
    try:
        serve(Path(told["home"]), Place(host=str(told["host"]), port=int(told["port"]), **files))
    except (PageUnavailable, CoordinatorError) as err:
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


if __name__ == "__main__":
    sys.exit(main())
