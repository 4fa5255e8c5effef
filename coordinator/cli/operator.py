"""The commands `coordinator operator`: add, list, renew, revoke and recover those who may use commands."""

import datetime as dt
from dataclasses import asdict
from enum import StrEnum
from typing import Annotated

import typer

from ...client_node.cli.application import JsonOption, epilog, group
from ...client_node.cli.console import agree, err, out, print_json, show_change, tell
from .options import DEFAULT_HOME, HomeOption, YesOption
from .tables import show


class RoleName(StrEnum):
    """Roles of operators."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"


ExpiresOption = Annotated[
    int | None, typer.Option(min=1, max=3660, metavar="DAYS", help="Days until the token expires; left out, never.")
]

app = group("Who may use commands, in which role.", "coordinator operator add anna --role admin")


@app.command("add", epilog=epilog("coordinator operator add anna --role admin --expires 365"))
def operator_add(
    name: Annotated[str, typer.Argument(help="Lower-case letters, digits, _ and -.")],
    role: Annotated[RoleName, typer.Option(help="viewer reads; operator runs; admin invites, revokes, adds others.")],
    expires: ExpiresOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Print a token with which NAME may use commands; it is shown once and kept nowhere.

    From the first one on, who must be an admin, every command that shows or changes a federation takes a token.
    """
    from ..federation import opened_store
    from ..oversight import access, operators

    with opened_store(home) as store:
        is_first = not operators.any_operator(store)
        token = operators.add(store, name, role.value, days=expires)
        _show_token(name, role.value, token, as_json)
        if is_first:
            tell("From now on commands take a token: set CONFIDE_TOKEN, or coordinator --token-file FILE ...")
            for warning in access.warnings(store):
                tell(f"! {warning}")


@app.command("list", epilog=epilog("coordinator operator list", "coordinator operator list --json"))
def operator_list(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Show every operator, the role, and until when the token is valid; tokens are kept nowhere."""
    from ..federation import opened_store
    from ..oversight import operators

    with opened_store(home) as store:
        rows = [asdict(each) | {"expires": _day(each.expires)} for each in operators.standings(store)]
    show("Operators", rows, as_json)


@app.command("renew", epilog=epilog("coordinator operator renew anna --expires 365"))
def operator_renew(
    name: str, expires: ExpiresOption = None, home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False
) -> None:
    """Print a new token for NAME, which replaces the old one at once."""
    from ..federation import opened_store
    from ..oversight import operators

    with opened_store(home) as store:
        token = operators.renew(store, name, days=expires)
        role = next(each.role for each in operators.operators(store) if each.name == name)
        _show_token(name, role, token, as_json)


@app.command("revoke", epilog=epilog("coordinator operator revoke anna"))
def operator_revoke(
    name: str, home: HomeOption = DEFAULT_HOME, yes: YesOption = False, as_json: JsonOption = False
) -> None:
    """Turn an operator out: the token opens nothing from now on, and the name is not used again."""
    from ..federation import opened_store
    from ..oversight import operators

    with opened_store(home) as store:
        agree(f"The token of {name} opens nothing any more, and the name is not used again. Revoke it?", yes=yes)
        operators.revoke(store, name)
    show_change({"name": name, "state": "revoked"}, as_json, f"{name} is revoked.")


@app.command("recover", epilog=epilog("coordinator operator recover anna"))
def operator_recover(
    name: str, expires: ExpiresOption = None, home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False
) -> None:
    """Make NAME an admin without a token, where the last one is lost; it stands in the audit log.

    Only the account that the home belongs to can: it first writes NAME into the file `recover` in the home.
    """
    from ..federation import opened_store
    from ..oversight import operators

    with opened_store(home) as store:
        _show_token(name, "admin", operators.recover(store, home, name, days=expires), as_json)


def _show_token(name: str, role: str, token: str, as_json: bool) -> None:
    if as_json:
        return print_json({"name": name, "role": role, "token": token})
    err.print(f"The token of {name}, who is {role}; it is shown once:", highlight=False)
    out.print(token, markup=False, highlight=False, soft_wrap=True)


def _day(moment: float | None) -> str:
    return "never" if moment is None else f"{dt.datetime.fromtimestamp(moment, dt.UTC):%Y-%m-%d %H:%M} UTC"
