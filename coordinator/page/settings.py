"""Settings: the federation as it stands, who may do what here, its certificates and keys, and where it is stored."""

import datetime as dt
import shlex
import time
from dataclasses import dataclass
from typing import get_args

from starlette.responses import Response

from ...client_node import secret_files
from ...client_node.errors import ClientNodeError
from .. import ca_rotation, key_rotation
from ..errors import Conflict, CoordinatorError, NotFound
from ..federation import Pki, load_settings, serving
from ..oversight import access, operators
from ..oversight.operators import MOST_DAYS, Operator
from ..oversight.roles import Role
from .visits import Visit


@dataclass(frozen=True, slots=True)
class Keys:
    """Certificates and keys of the home, and who has heard of them."""

    gate_ends: dt.datetime
    is_given: bool  # the gate's certificate is from a CA that others keep
    ca: ca_rotation.Standing
    signing: key_rotation.Standing
    warnings: list[str]
    sealed: str  # whether the secret keys are


def show(visit: Visit) -> Response:
    """Shows the settings."""
    keys, trouble = None, ""
    try:
        keys = _keys(visit)
    except (CoordinatorError, ClientNodeError) as err:
        trouble = str(err)
    return visit.render(
        "settings.html", settings=load_settings(visit.home), serving=serving.read_serving(visit.home),
        home=visit.home, at=shlex.quote(str(visit.home)), operators=operators.operators(visit.store), now=time.time(),
        warnings=access.warnings(visit.store), keys=keys, trouble=trouble,
        database=visit.store.name, size=visit.store.size_bytes(),
    )  # fmt: skip


def ask_operator(visit: Visit) -> Response:
    """Shows the form that adds an operator."""
    return _form(visit, "add", name="", role="viewer", days="")


def add_operator(visit: Visit) -> Response:
    """Adds an operator, as `coordinator operator add` does; the token stands in this answer and nowhere else."""
    name, role, days = (visit.form.get(each, "").strip()[:80] for each in ("name", "role", "days"))
    try:
        token = operators.add(visit.store, name, _role(role), days=_days(days))
    except Conflict as err:
        return _form(visit, "add", status=409, name=name, role=role, days=days, problem=str(err))
    return _token(visit, name, token)


def ask_renewal(visit: Visit) -> Response:
    """Asks whether an operator shall get a new token."""
    return _form(visit, "renew", name=_known(visit, "renew").name, days="")


def renew_operator(visit: Visit) -> Response:
    """Gives an operator a new token, as `coordinator operator renew` does; it stands in this answer alone."""
    name, days = visit.part("operator"), visit.form.get("days", "").strip()[:80]
    try:
        token = operators.renew(visit.store, name, days=_days(days), present=visit.form.get("present"))
    except Conflict as err:
        return _form(visit, "renew", status=409, name=_known(visit).name, days=days, problem=str(err))
    return _token(visit, name, token)


def ask_revocation(visit: Visit) -> Response:
    """Asks whether an operator shall be turned out."""
    return _form(visit, "revoke", name=_known(visit, "revoke").name)


def revoke_operator(visit: Visit) -> Response:
    """Turns an operator out, as `coordinator operator revoke` does, if the name was typed."""
    name = visit.part("operator")
    if visit.form.get("typed", "").strip() != name:
        raise Conflict("the operator's name was not typed as it is, so nothing was done")
    operators.revoke(visit.store, name)
    return visit.go("settings", notice=f"{name} is revoked. The token opens nothing any more.")


def _form(
    visit: Visit, order: str, *, name: str, role: str = "", days: str = "", problem: str = "", status: int = 200
) -> Response:
    return visit.render(
        "operator.html", status=status, order=order, name=name, role=role, days=days, problem=problem,
        roles=get_args(Role), most_days=MOST_DAYS, is_self=_is_self(visit, name),
        is_first=not operators.any_operator(visit.store), present=_present(visit, name),
    )  # fmt: skip


def _token(visit: Visit, name: str, token: str) -> Response:
    shown = operators.named(visit.store, name)
    return visit.render(
        "token.html", operator=shown, token=token, is_self=_is_self(visit, name), ends_session=visit.operator is None,
        warnings=access.warnings(visit.store),
    )  # fmt: skip


def _present(visit: Visit, name: str) -> str:
    found = operators.named(visit.store, name)
    return "" if found is None else operators.token_mark(found.token_hash)


def _is_self(visit: Visit, name: str) -> bool:
    return visit.operator is not None and visit.operator.name == name


def _known(visit: Visit, order: str = "") -> Operator:
    """Finds the operator of the address. Raises `NotFound`; `Conflict` if it was revoked, so no order is left."""
    name = visit.part("operator")
    found = operators.named(visit.store, name)
    if found is None:
        raise NotFound(f"no operator is called {name[:80]!r}")
    if order and found.revoked_at is not None:
        raise Conflict(f"{name} was revoked, and names are not used again")
    return found


def _role(text: str) -> Role:
    role: Role | None = next((each for each in get_args(Role) if each == text), None)
    if role is None:
        raise Conflict("no role was chosen, so nobody was added")
    return role


def _days(text: str) -> int | None:
    """Reads after how many days a token expires; None for no end."""
    if not text:
        return None
    days = int(text) if text.isascii() and text.isdecimal() and len(text) <= len(str(MOST_DAYS)) else 0
    if not 1 <= days <= MOST_DAYS:
        raise Conflict(f"{text[:20]!r} is no number of days from 1 to {MOST_DAYS}; nothing was changed")
    return days


def _keys(visit: Visit) -> Keys:
    pki = Pki.load(visit.home)
    return Keys(
        gate_ends=pki.certificate_ends,
        is_given=pki.is_given,
        ca=ca_rotation.standing(visit.store, visit.home),
        signing=key_rotation.standing(visit.store, visit.home),
        warnings=pki.warnings(),
        sealed=secret_files.standing(visit.home),
    )
