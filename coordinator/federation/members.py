"""Members of the federation: lists, invites and revokes them for the operator."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ...client_node.enrolment import Role
from ..errors import Conflict
from ..store import Store
from .home import load_settings
from .pki import Pki
from .register import Register

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


@dataclass(frozen=True, slots=True)
class Member:
    """An invited organisation, with the state of its membership."""

    name: str
    roles: str  # comma-separated: train, aggregate
    state: Literal["invited", "enrolled", "revoked"]
    identity: str  # Ed25519 key in hex; empty before it enrols


@dataclass(frozen=True, slots=True)
class Invitation:
    """An invitation with its one-time code, which the operator hands over in private."""

    name: str
    roles: tuple[Role, ...]
    code: str  # shown once and stored nowhere


def members(store: Store) -> list[Member]:
    """Lists all organisations that were ever invited, by name."""
    return [
        Member(
            name=node.name,
            roles=node.roles,
            state="revoked" if node.revoked_at else "enrolled" if node.enrolled_at else "invited",
            identity=node.identity or "",
        )
        for node in store.nodes()
    ]


def invite(store: Store, home: Path, name: str, roles: Sequence[str]) -> Invitation:
    """Makes a one-time code with which a site called `name` can enrol.

    Raises:
        Conflict: the name is invalid or enrolled already, or one of `roles` is no role.
    """
    parsed = parse_roles(roles)
    if not _NAME.fullmatch(name):
        raise Conflict(
            f"{name!r} is no name for a site; use up to 63 of a-z, 0-9, _ and -, beginning with one of a-z, 0-9"
        )
    code = Register(store, Pki.load(home)).invite(name, parsed, load_settings(home).address)
    return Invitation(name, parsed, code)


def revoke(store: Store, home: Path, name: str) -> None:
    """Revokes a site: a running server refuses its next request. Raises `NotFound`."""
    Register(store, Pki.load(home)).revoke(name)


def parse_roles(words: Sequence[str]) -> tuple[Role, ...]:
    """Parses the roles in `words`, each once and in one order. Raises `Conflict` for a word that is no role."""
    if unknown := sorted({*words} - {*get_args(Role)}):
        raise Conflict(f"{', '.join(unknown)} is no role; the roles are train and aggregate")
    return tuple(role for role in get_args(Role) if role in words)
