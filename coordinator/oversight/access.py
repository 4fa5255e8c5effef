"""Lets an operator through whose token and role are enough: the one place that decides, for commands and for pages.

As long as no operator was ever added, whoever may read the home may do everything. From the first one on, what changes
or shows something takes a token. What this cannot stop is an account that reads the home itself: docs/operators.md says
how to keep people from it.
"""

import hmac
import math
import time

from ..errors import AccessRefused
from ..store import Store, audit_log
from ..store.actions import SELF
from .operators import WARN_DAYS, Operator, any_operator, find, lasting_admins, named, secret_fits
from .roles import Role, is_enough

MOST_REFUSALS = 20  # in the log, an hour
_TOKEN_PLACES = "set CONFIDE_TOKEN, or name a file: coordinator --token-file FILE ..."  # noqa: S105 (no token)


def require(store: Store, token: str | None, role: Role, *, command: str) -> Operator | None:
    """Returns the operator whose token it is; None as long as no operator was ever added.

    A wrong name takes as long as a wrong secret. A refusal stands in the audit log, at most 20 an hour.

    Args:
        token: as `operator add` printed it; None if there is none.
        role: the least one that is enough.
        command: what is asked for, for the audit log.

    Raises:
        AccessRefused: the token is missing, wrong, expired or revoked, or its role is not enough.
    """
    if not any_operator(store):
        return None
    if not token:
        raise _refused(store, None, "missing", command, f"`{command}` takes the token of an operator: {_TOKEN_PLACES}")
    operator = recognise(store, token, command=command)
    permit(store, operator, role, command=command)
    return operator


def recognise(store: Store, token: str, *, command: str) -> Operator:
    """Returns the operator whose valid token it is. Raises `AccessRefused`, as `require` does."""
    operator = find(store, token)
    known = None if operator is None else operator.name
    if not secret_fits(operator, token) or operator is None:
        raise _refused(store, known, "wrong", command, "this token is no operator's; nothing was done")
    _require_valid(store, operator, command)
    return operator


def still(store: Store, name: str | None, token_hash: str, *, command: str) -> Operator | None:
    """Returns an operator who was recognised before, as it is now; None for the home's account without operators.

    Args:
        name: the operator; None for whoever came as the home's account when there was no operator.
        token_hash: of the token by which it was recognised.

    Raises:
        AccessRefused: the token was renewed, has expired or was revoked, or there are operators now.
    """
    if name is None:
        if any_operator(store):
            raise _refused(store, None, "missing", command, "there are operators now; log in with the token of one")
        return None
    operator = named(store, name)
    if operator is None or not hmac.compare_digest(operator.token_hash, token_hash):
        raise _refused(store, name, "wrong", command, f"the token of {name} was renewed; log in with the new one")
    _require_valid(store, operator, command)
    return operator


def permit(store: Store, operator: Operator | None, role: Role, *, command: str) -> None:
    """Raises `AccessRefused` if the operator's role is not enough. None is the home's account, which may do all."""
    if operator is not None and not is_enough(operator.role, role):
        raise _refused(
            store, operator.name, "role", command,
            f"`{command}` takes the role {role}, and {operator.name} is {operator.role}; nothing was done",
        )  # fmt: skip


def _require_valid(store: Store, operator: Operator, command: str) -> None:
    if operator.revoked_at is not None:
        text = f"the token of {operator.name} was revoked; nothing was done"
        raise _refused(store, operator.name, "revoked", command, text)
    if operator.expires_at is not None and operator.expires_at <= time.time():
        raise _refused(
            store, operator.name, "expired", command,
            f"the token of {operator.name} has expired; an admin renews it: coordinator operator renew {operator.name}",
        )  # fmt: skip


def warnings(store: Store) -> list[str]:
    """Tells, in words for operators, if soon nobody is an admin any more."""
    if not any_operator(store):
        return []
    lasting, now = lasting_admins(store), time.time()
    last = max((math.inf if each.expires_at is None else each.expires_at for each in lasting), default=0.0)
    if last <= now:
        return ["no admin's token is valid any more: coordinator operator recover NAME (docs/operators.md)"]
    days = (last - now) / 86_400
    if days > WARN_DAYS:
        return []
    return [f"in {math.ceil(days)} days no admin's token is valid any more: coordinator operator renew NAME"]


def _refused(store: Store, operator: str | None, reason: str, command: str, text: str) -> AccessRefused:
    with store.session() as session:
        audit_log.hold(session)
        found = audit_log.count_of_hour(session, "access.refused", SELF)
        if found < MOST_REFUSALS:
            why = reason if found < MOST_REFUSALS - 1 else f"{reason}; further ones of this hour are not listed"
            store.log_action(session, "access.refused", actor=SELF, operator=operator, reason=why, command=command)
    return AccessRefused(text)
