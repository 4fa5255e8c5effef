"""Lets commands through by their operators' roles: every command of the application is asked for, none is left out."""

import functools
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import click
import typer

from ...client_node.cli.application import DebugOption, VersionOption, common_options
from ...client_node.cli.console import tell

TOKEN_VARIABLE = "CONFIDE_TOKEN"  # noqa: S105 (a name)
_WITHOUT_STORE = {"doctor"}  # says what is damaged, which it must be able to where nobody's role can be read
_MOST_BYTES = 1024
_OWN = ("pki", "settings.json", "coordinator.db", "database.json")  # which make a home what it is


def options(
    ctx: typer.Context,
    debug: DebugOption = False,
    version: VersionOption = False,
    token_file: Annotated[
        Path | None,
        typer.Option(
            envvar="CONFIDE_TOKEN_FILE", help="File with an operator's token; left out, CONFIDE_TOKEN has it."
        ),
    ] = None,
) -> None:
    """Common options."""
    common_options(debug, version)
    ctx.obj = token_file


def guard(app: typer.Typer) -> None:
    """Puts every command of `app`, those in groups too, behind `admitted`; call it when all are there."""
    for command, info in commands(app).items():
        if info.callback is None:
            raise TypeError(f"{command} calls nothing")
        info.callback = _guarded(command, info.callback)


def commands(app: typer.Typer) -> dict[str, Any]:
    """Lists typer's description of every command by its words, as `site invite`."""
    found = {_name(info): info for info in app.registered_commands}
    for group in app.registered_groups:
        inside = [] if group.typer_instance is None else group.typer_instance.registered_commands
        found |= {f"{group.name} {_name(info)}": info for info in inside}
    return found


@contextmanager
def admitted(command: str, home: Path | None) -> Iterator[None]:
    """Runs a command as the operator whose token was given.

    Raises:
        AccessRefused: the command takes a role, and nobody showed a token whose role is enough; or the home, or a part
            of it, is a link or belongs to another account.
    """
    from ..oversight import roles

    role = roles.least_role(command)
    if home is not None:
        _require_own(home)
    if role == "anyone":
        yield
        return
    from ..errors import AccessRefused, CoordinatorError
    from ..federation import is_founded, opened_store
    from ..oversight import access
    from ..store.actions import acting_as

    if home is None:
        raise AccessRefused(f"`{command}` takes the role {role}, and names no home whose operators could be asked")
    operator = None
    if is_founded(home):
        try:
            with opened_store(home) as store:
                operator = access.require(store, _token(), role, command=command)
                for warning in access.warnings(store):
                    tell(f"! {warning}")
        except AccessRefused:
            raise
        except CoordinatorError:
            if command not in _WITHOUT_STORE:
                raise
    with acting_as(None if operator is None else operator.name):
        yield


def _guarded(command: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def called(**values: Any) -> Any:
        with admitted(command, values.get("home")):
            return function(**values)

    return called


def _require_own(home: Path) -> None:
    """Refuses a home that others made, whose database has no operators but whose `pki` is a link to real keys."""
    from ..errors import AccessRefused

    us = os.geteuid()
    real = Path(os.path.realpath(home))
    # A home may be the root of a volume, which the machine's administrator made.
    for part, owners in ((real, {0, us}), *((real / name, {us}) for name in _OWN)):
        try:
            found = part.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue  # the command says that there is no federation, or makes one
        if stat.S_ISLNK(found.st_mode):
            raise AccessRefused(f"{part} is a link; nothing was done. Put what it leads to in its place")
        if found.st_uid not in owners:
            raise AccessRefused(
                f"{part} belongs to account {found.st_uid}, and this is account {us}; nothing was done. Run "
                "`coordinator` as the account to which its home belongs"
            )


def _token() -> str | None:
    """Reads the operator's token, from the file that is named or from the environment."""
    path = click.get_current_context().obj
    if path is None:
        return os.environ.get(TOKEN_VARIABLE)
    from ...client_node.files import read_own
    from ..errors import AccessRefused

    text = read_own(
        path, remedy="It holds an operator's token", error=AccessRefused, max_bytes=_MOST_BYTES, is_secret=True
    )
    if text is None:
        raise AccessRefused(f"{path} is missing; it should hold an operator's token")
    return text.decode("utf-8", "replace").strip()


def _name(info: Any) -> str:
    return str(info.name or info.callback.__name__)
