"""Operators: people with a role and a token, of which only a hash is kept.

A token is `confide_NAME.SECRET`: 32 random bytes that are shown once. Its hash is argon2id with the second parameters
that RFC 9106 recommends (64 MiB, 3 passes, 4 lanes), with a salt of its own.
"""

import hashlib
import os
import re
import secrets
import stat
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast, get_args

from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ...privacy.ledger.chain import moment
from ..errors import Conflict, NotFound, StateDamaged
from ..store import Store, audit_log
from ..store.tables import OperatorRow
from .roles import Role

PREFIX = "confide_"
WARN_DAYS = 14.0  # before the last admin's token ends
RECOVER_FILE = "recover"
MOST_DAYS = 3660
_MOST_TOKEN = 256  # characters
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_TOKEN = re.compile(PREFIX + r"([a-z0-9][a-z0-9_-]{0,62})\.([A-Za-z0-9_-]{43})")
_DAY = 86_400.0
_ONE_HASH = threading.Lock()  # two of several lanes at once wait for each other for good (seen with OpenSSL 4.0.3)
# Of no operator: checking a token of an unknown name takes as long as one of a known name.
_NOBODY = "$argon2id$v=19$m=65536,t=3,p=4$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"


@dataclass(frozen=True, kw_only=True, slots=True)
class Operator:
    """A person who may use commands."""

    name: str
    role: Role
    created_at: float  # seconds since 1970
    expires_at: float | None  # None for no end
    revoked_at: float | None
    token_hash: str = field(repr=False)

    def is_valid(self, now: float) -> bool:
        """True if its token opens anything at that moment."""
        return self.revoked_at is None and (self.expires_at is None or self.expires_at > now)

    def state(self, now: float) -> Literal["valid", "expired", "revoked"]:
        """The state of its token."""
        return "revoked" if self.revoked_at is not None else "valid" if self.is_valid(now) else "expired"


@dataclass(frozen=True, kw_only=True, slots=True)
class OperatorStanding:
    """An operator for others to see: nothing of the token."""

    name: str
    role: Role
    state: Literal["valid", "expired", "revoked"]
    expires: float | None  # seconds since 1970; None for no end


def any_operator(store: Store) -> bool:
    """True once an operator was added, also if all are revoked: nothing opens a federation by itself."""
    with store.session() as session:
        return session.scalars(select(func.count()).select_from(OperatorRow)).one() > 0


def operators(store: Store) -> list[Operator]:
    """Lists every operator, by name."""
    with store.session() as session:
        return [_operator(row) for row in session.scalars(select(OperatorRow).order_by(OperatorRow.name))]


def standings(store: Store) -> list[OperatorStanding]:
    """Lists every operator as others may see it, by name."""
    now = time.time()
    return [
        OperatorStanding(name=each.name, role=each.role, state=each.state(now), expires=each.expires_at)
        for each in operators(store)
    ]


def add(store: Store, name: str, role: Role, *, days: float | None = None) -> str:
    """Adds an operator, and returns the token, which is kept nowhere.

    The first one must be an admin: no other could add the next.

    Args:
        days: until the token expires; None for no end.

    Raises:
        Conflict: the name is none or taken, or the first operator would be no admin.
    """
    if not _NAME.fullmatch(name):
        raise Conflict(f"{name!r} is no name; use up to 63 of a-z, 0-9, _ and -, beginning with one of a-z, 0-9")
    token, hashed = _new_token(name)
    with store.session() as session:
        audit_log.hold(session)  # of two commands at once one sees the other's operator
        if session.get(OperatorRow, name) is not None:
            raise Conflict(f"{name} is or was an operator, and names are not used again: coordinator operator renew")
        if role != "admin" and not session.scalars(select(func.count()).select_from(OperatorRow)).one():
            raise Conflict("the first operator must be an admin: nobody could add another one. Nothing was changed")
        now = time.time()
        row = OperatorRow(name=name, role=role, token=hashed, created_at=now, expires_at=_end(now, days))
        session.add(row)
        _log(store, session, "operator.add", row)
    return token


def renew(store: Store, name: str, *, days: float | None = None, present: str | None = None) -> str:
    """Gives an operator a new token, which replaces the old one at once, and returns it.

    Args:
        present: `token_mark` of the token that is to be replaced, as whoever decided saw it: one of a form that is sent
            twice, or of two people at once, replaces none that they have just been shown. None for whichever it is.

    Raises:
        NotFound: there is no such operator.
        Conflict: it was revoked, or has another token than the `present` one.
    """
    token, hashed = _new_token(name)
    with store.session() as session:
        audit_log.hold(session)
        row = _row(session, name)
        if row.revoked_at is not None:
            raise Conflict(f"{name} was revoked; add the person under another name. Nothing was changed")
        if present is not None and token_mark(row.token) != present:
            raise Conflict(f"the token of {name} was renewed meanwhile, and that one counts; nothing was changed")
        row.token, row.expires_at = hashed, _end(time.time(), days)
        _log(store, session, "operator.renew", row)
    return token


def token_mark(token_hash: str) -> str:
    """Names a token's hash, so that a form can say which token it is about without telling it."""
    return hashlib.sha256(token_hash.encode()).hexdigest()


def revoke(store: Store, name: str) -> None:
    """Revokes an operator: the token opens nothing from now on.

    Raises:
        NotFound: there is no such operator.
        Conflict: it is the last admin with a valid token, or was revoked before.
    """
    with store.session() as session:
        audit_log.hold(session)
        row, now = _row(session, name), time.time()
        if row.revoked_at is not None:
            raise Conflict(f"{name} was revoked before; nothing was changed")
        others = [each for each in _admins(session) if each.name != name and each.is_valid(now)]
        if row.role == "admin" and not others:
            raise Conflict(f"{name} is the last admin with a valid token; add another one first. Nothing was changed")
        row.revoked_at = now
        store.log_action(session, "operator.revoke", operator=name)


def recover(store: Store, home: Path, name: str, *, days: float | None = None) -> str:
    """Makes an operator an admin with a new token, revoked or not, or adds one; returns the token.

    It takes a file `recover` in the home, of the account that runs this, with the name in it and nothing else. Who may
    only run `coordinator` as that account cannot write it: no command writes such a file. It is used up.

    Raises:
        Conflict: the file is missing, holds another name, or is another account's; or the name is none.
    """
    if not _NAME.fullmatch(name):
        raise Conflict(f"{name!r} is no name of an operator")
    path = home / RECOVER_FILE
    if not _permits(path, name):
        raise Conflict(
            f"to make {name} an admin without a token, write the name into {path} as the account that the home belongs "
            "to, then repeat this command; nothing was changed"
        )
    token, hashed = _new_token(name)
    with store.session() as session:
        audit_log.hold(session)
        now = time.time()
        row = session.get(OperatorRow, name)
        if row is None:
            row = OperatorRow(name=name, role="admin", created_at=now)
            session.add(row)
        row.role, row.token, row.expires_at, row.revoked_at = "admin", hashed, _end(now, days), None
        _log(store, session, "operator.recover", row)
        path.unlink()
    return token


def find(store: Store, token: str) -> Operator | None:
    """Finds the operator whom a token names; says nothing about its secret."""
    match = _TOKEN.fullmatch(token.strip()) if len(token) <= _MOST_TOKEN else None
    return None if match is None else named(store, match[1])


def named(store: Store, name: str) -> Operator | None:
    """Finds the operator of that name."""
    with store.session() as session:
        row = session.get(OperatorRow, name)
        return None if row is None else _operator(row)


def secret_fits(operator: Operator | None, token: str) -> bool:
    """True if the token is the operator's. Takes as long for none."""
    try:
        secret = token.strip()[:_MOST_TOKEN].encode("utf-8", "replace")
        with _ONE_HASH:
            Argon2id.verify_phc_encoded(secret, _NOBODY if operator is None else operator.token_hash)
    except InvalidKey:
        return False
    return operator is not None


def lasting_admins(store: Store) -> list[Operator]:
    """Lists the admins that are not revoked; their tokens may have expired."""
    with store.session() as session:
        return [each for each in _admins(session) if each.revoked_at is None]


def _admins(session: Session) -> list[Operator]:
    return [_operator(row) for row in session.scalars(select(OperatorRow).where(OperatorRow.role == "admin"))]


def _permits(path: Path, name: str) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    with os.fdopen(descriptor, "rb") as source:
        facts = os.fstat(source.fileno())
        return (
            stat.S_ISREG(facts.st_mode) and facts.st_uid == os.geteuid() and source.read(128).strip() == name.encode()
        )


def _new_token(name: str) -> tuple[str, str]:
    token = f"{PREFIX}{name}.{secrets.token_urlsafe(32)}"
    kdf = Argon2id(salt=secrets.token_bytes(16), length=32, iterations=3, lanes=4, memory_cost=64 * 1024)
    with _ONE_HASH:
        return token, kdf.derive_phc_encoded(token.encode())


def _end(now: float, days: float | None) -> float | None:
    return None if days is None else now + days * _DAY


def _log(store: Store, session: Session, action: str, row: OperatorRow) -> None:
    ends = None if row.expires_at is None else moment(row.expires_at)
    store.log_action(session, action, operator=row.name, role=row.role, expires=ends)


def _row(session: Session, name: str) -> OperatorRow:
    row = session.get(OperatorRow, name)
    if row is None:
        raise NotFound(f"no operator is called {name!r}; `coordinator operator list` shows them")
    return row


def _operator(row: OperatorRow) -> Operator:
    if row.role not in get_args(Role):
        raise StateDamaged(f"the role of {row.name} in the database is none. Restore the newest backup")
    return Operator(
        name=row.name, role=cast(Role, row.role), created_at=row.created_at, expires_at=row.expires_at,
        revoked_at=row.revoked_at, token_hash=row.token,
    )  # fmt: skip
