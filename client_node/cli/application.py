"""The frame of both commands, `client-node` and `coordinator`: `--debug`, `--json`, exit codes, errors as one message.

Exit codes: 0 done, 1 refused or failed (the message says what to do), 2 wrong usage, 3 a check found problems, 77 the
coordinator does not know this node's key, 130 stopped by Ctrl-C.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ...models.errors import ModelError
from ...mpc.errors import MpcError
from ...privacy.errors import PrivacyError
from ..errors import ClientNodeError
from .console import err, tell

FAILED, PROBLEMS, INTERRUPTED = 1, 3, 130

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON value instead of a table.")]
LangOption = Annotated[
    str | None, typer.Option("--lang", help="Language of the page that --html writes: en (the default) or de.")
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


def application(purpose: str, *errors: type[Exception]) -> typer.Typer:
    """Makes an application that turns our errors and `errors` into one message on stderr and an exit code.

    Files that it writes can be read by their owner only.
    """
    told = (ClientNodeError, ModelError, MpcError, PrivacyError, OSError, *errors)

    class Told(TyperGroup):
        """Runs a command and prints its error, if it fails."""

        def invoke(self, ctx: Any) -> Any:
            with _told(told, debug=ctx.params["debug"]):
                return super().invoke(ctx)

    app = typer.Typer(cls=Told, help=purpose, no_args_is_help=True)
    app.callback()(_common_options)
    return app


def group(purpose: str) -> typer.Typer:
    """Makes a group for the commands on one noun."""
    return typer.Typer(help=purpose, no_args_is_help=True)


def until_stopped(*chatty: str) -> threading.Event:
    """Logs to stderr, from loggers in `chatty` warnings only; returns the event that SIGTERM and SIGINT set."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    for name in chatty:
        logging.getLogger(name).setLevel(logging.WARNING)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _common_options(debug: DebugOption = False) -> None:
    """Common options."""
    os.umask(0o077)


@contextmanager
def _told(errors: tuple[type[Exception], ...], *, debug: bool) -> Iterator[None]:
    try:
        yield
    except errors as problem:
        if debug:
            raise
        err.print(f"[bold red]{type(problem).__name__}[/]: ", end="")
        tell(str(problem))
        raise typer.Exit(FAILED) from problem
    except KeyboardInterrupt as stop:
        raise typer.Exit(INTERRUPTED) from stop
