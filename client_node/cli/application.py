"""The frame of both commands, `client-node` and `coordinator`: common options, exit codes, errors as one message."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ... import __version__, log_lines
from ...models.errors import ModelError
from ...mpc.crash import place
from ...mpc.errors import MpcError
from ...privacy.errors import PrivacyError
from ..errors import ClientNodeError
from .console import USAGE, err, tell

FAILED, PROBLEMS, REFUSED, INTERRUPTED = 1, 3, 77, 130
EXIT_CODES = {
    0: "done",
    FAILED: "refused or failed; the message says what to do",
    USAGE: "wrong usage, or nobody at a terminal to ask; nothing was changed",
    PROBLEMS: "a check found problems",
    REFUSED: "the coordinator does not know this node's key, or revoked it",
    INTERRUPTED: "stopped by Ctrl-C",
}
_USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]  # click's, of all wrong usage; typer has no name for it
_UNEXPECTED = (
    "Its message is left out, since it may quote a record or a key.\nWhat was written before it stands. "
    "CONFIDE_DEBUG=1 before the command shows the message and the traceback, for your eyes first."
)


class LogForm(StrEnum):
    """Forms of the lines that a daemon logs."""

    TEXT = "text"
    JSON = "json"


JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON value instead of a table.")]
LangOption = Annotated[
    str | None, typer.Option("--lang", help="Language of the page that --html writes: en (the default) or de.")
]
MonitorOption = Annotated[
    int | None,
    typer.Option(
        "--monitor", envvar="CONFIDE_MONITOR", min=0, max=65535, metavar="PORT",
        help="Serve healthz, readyz and metrics on this port of 127.0.0.1; 0 takes a free one.",
    ),
]  # fmt: skip
LogFormOption = Annotated[
    LogForm, typer.Option("--log-format", envvar=log_lines.VARIABLE, help="Lines for people, or one JSON object each.")
]
DebugOption = Annotated[
    bool,
    typer.Option(
        "--debug", envvar="CONFIDE_DEBUG", help="Show tracebacks and messages of all errors, never variables."
    ),
]


VersionOption = Annotated[
    bool,
    typer.Option(
        "--version", "-V", callback=lambda asked: _show_version(asked), is_eager=True, help="Show the version and stop."
    ),
]


def application(
    purpose: str,
    *examples: str,
    errors: Sequence[type[Exception]] = (),
    options: Callable[..., None] | None = None,
) -> typer.Typer:
    """Makes an application that turns our errors and `errors` into one message on stderr and an exit code.

    Of any other error it tells class and place alone: its message may quote a record or a key. Files that it writes can
    be read by their owner only.

    Args:
        options: takes the options before the command, in place of `common_options`, which it calls.
    """
    told = (ClientNodeError, ModelError, MpcError, PrivacyError, OSError, *errors)

    class Told(TyperGroup):
        """Runs a command and prints its error, if it fails."""

        def invoke(self, ctx: Any) -> Any:
            with _told(told, debug=ctx.params["debug"]):
                return super().invoke(ctx)

    # typer's own tracebacks print the variables of every frame, among them keys, codes and cells of records
    app = typer.Typer(
        cls=Told,
        help=purpose,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        epilog=epilog(*examples, codes=tuple(EXIT_CODES)),
    )
    app.callback()(options or common_options)
    return app


def group(purpose: str, *examples: str) -> typer.Typer:
    """Makes a group for the commands on one noun, with examples for its help text."""
    return typer.Typer(help=purpose, no_args_is_help=True, epilog=epilog(*examples, codes=tuple(EXIT_CODES)))


def epilog(*examples: str, codes: Sequence[int] = ()) -> str:
    """Writes the end of a help text: whole commands as examples, and the exit codes of all commands and `codes`."""
    kept = [code for code in EXIT_CODES if code in (0, FAILED, USAGE, INTERRUPTED, *codes)]
    told = "; ".join(f"{code} {EXIT_CODES[code].partition(';')[0]}" for code in kept)
    return "\n\n".join([*(f"Example: {example}" for example in examples), f"Exit codes: {told}."])


def until_stopped(*chatty: str, form: LogForm | None = None) -> threading.Event:
    """Logs to stderr, from loggers in `chatty` warnings only; returns the event that SIGTERM and SIGINT set.

    `form` is the form of this process's lines, and of those of its child processes; None leaves it as it is.
    """
    if form is not None:
        os.environ[log_lines.VARIABLE] = form
    log_lines.log_to_stderr()
    for name in chatty:
        logging.getLogger(name).setLevel(logging.WARNING)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _show_version(is_asked: bool) -> None:
    if is_asked:
        print(f"confide {__version__}")
        raise typer.Exit


def common_options(debug: DebugOption = False, version: VersionOption = False) -> None:
    """Common options."""
    os.umask(0o077)


@contextmanager
def _told(errors: tuple[type[Exception], ...], *, debug: bool) -> Iterator[None]:
    try:
        yield
    except (typer.Exit, typer.Abort, _USAGE_ERROR, BrokenPipeError):
        raise  # click's own way to end; whoever reads our output has read enough
    except KeyboardInterrupt as stop:
        raise typer.Exit(INTERRUPTED) from stop
    except Exception as problem:
        if debug:
            raise
        if isinstance(problem, errors):
            err.print(f"[bold red]{type(problem).__name__}[/]: ", end="")
            tell(str(problem))
        else:
            tell(f"{place(problem)}: an error that should not happen. {_UNEXPECTED}")
        raise typer.Exit(FAILED) from problem
