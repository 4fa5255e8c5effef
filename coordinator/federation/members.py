"""Members of the federation: lists and invites them, lets them leave, and revokes them, for the operator."""

import datetime as dt
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from cryptography import x509

from ...client_node.enrolment import Role, join_file
from ..errors import Conflict, StateDamaged
from ..store import Store
from ..store.tables import NodeRow
from .home import load_settings
from .invites import VALID_S
from .pki import Pki
from .register import Register, why_not_invited

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


@dataclass(frozen=True, slots=True)
class Member:
    """An invited organisation, with the state of its membership."""

    name: str
    roles: str  # comma-separated: train, aggregate
    state: Literal["invited", "enrolled", "left", "revoked"]
    identity: str  # Ed25519 key in hex; empty before it enrols


@dataclass(frozen=True, slots=True)
class Invitation:
    """An invitation with its one-time code, which the operator hands over in private."""

    name: str
    roles: tuple[Role, ...]
    code: str = field(repr=False)  # shown once and stored nowhere
    voids_earlier: bool  # an earlier code for this name would still have been valid; it is void now


def members(store: Store) -> list[Member]:
    """Lists all organisations that were ever invited, by name."""
    return [
        Member(
            name=node.name,
            roles=node.roles,
            state=_state(node),
            identity=node.identity or "",
        )
        for node in store.nodes()
    ]


def parse_guests(guests: Sequence[tuple[str, Sequence[str]]]) -> list[tuple[str, tuple[Role, ...]]]:
    """Parses the names and roles of guests.

    Raises:
        Conflict: a name is invalid or given twice, or a role is none.
    """
    parsed = [(name, parse_roles(roles)) for name, roles in guests]
    names = [name for name, _ in parsed]
    if wrong := [name for name in names if not _NAME.fullmatch(name)]:
        raise Conflict(
            f"{', '.join(map(repr, wrong))} is no name for a site; use up to 63 of a-z, 0-9, _ and -, beginning with "
            "one of a-z, 0-9"
        )
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise Conflict(f"{', '.join(twice)} is named more than once; nobody was invited")
    return parsed


def invite(store: Store, home: Path, guests: Sequence[tuple[str, Sequence[str]]]) -> list[Invitation]:
    """Makes a one-time code for each guest, a name with roles, with which a site of that name can enrol.

    Raises:
        Conflict: as `parse_guests`, or a name is enrolled or was revoked; nobody is invited then.
    """
    parsed = parse_guests(guests)
    names = {name for name, _ in parsed}
    known = [node for node in store.nodes() if node.name in names]
    if refusals := [why for node in known if (why := why_not_invited(node))]:
        raise Conflict(f"{'; '.join(refusals)}. Nobody was invited")
    valid = {node.name for node in known if node.invite_digest and (node.invite_expires or 0.0) > time.time()}
    register, address = Register(store, Pki.load(home)), load_settings(home).address
    return [Invitation(name, roles, register.invite(name, roles, address), name in valid) for name, roles in parsed]


def write_invitations(invitations: Sequence[Invitation], home: Path, path: Path) -> list[Path]:
    """Writes each invitation as a join file, and returns the files.

    Args:
        path: the file to write; a folder, into which NAME.join is written, if there are several or it is one already.
    """
    is_folder = len(invitations) > 1 or path.is_dir()
    if not is_folder and path.suffix != join_file.SUFFIX:
        path = path.with_name(path.name + join_file.SUFFIX)  # by which `client-node enroll` knows it
    files = []
    for each in invitations:
        file = path / f"{each.name}{join_file.SUFFIX}" if is_folder else path
        join_file.write_join_file(file, _join_file(each, home))
        files.append(file)
    return files


def join_text(invitation: Invitation, home: Path) -> str:
    """Writes the text of an invitation's join file, as secret as the code in it."""
    return join_file.text_of(_join_file(invitation, home))


def _join_file(invitation: Invitation, home: Path) -> join_file.JoinFile:
    until = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=VALID_S)
    return join_file.make_join_file(
        invitation.name, invitation.roles, load_settings(home).federation, invitation.code, until.replace(microsecond=0)
    )


def party_certificate_ends(node: NodeRow) -> dt.datetime | None:
    """Reads when an aggregator's certificate ends, by which the other two know it; None if the node has none.

    Raises:
        StateDamaged: what the database holds is no certificate.
    """
    if not node.party_certificate:
        return None
    try:
        return x509.load_pem_x509_certificate(node.party_certificate.encode()).not_valid_after_utc
    except (ValueError, x509.InvalidVersion) as err:
        raise StateDamaged(
            f"the party certificate of {node.name} in the database is damaged. Restore the newest backup"
        ) from err


def revoke(store: Store, home: Path, name: str) -> None:
    """Revokes a site: a running server refuses its next request. Raises `NotFound`; `Conflict` if it was before."""
    Register(store, Pki.load(home)).revoke(name)


def leave(store: Store, home: Path, name: str) -> None:
    """Lets a site leave: it is refused like a revoked one, and may come back under its name with its identity key.

    Raises:
        NotFound: there is no such site.
        Conflict: it has not enrolled, has left already, or was revoked.
    """
    Register(store, Pki.load(home)).leave(name)


def _state(node: NodeRow) -> Literal["invited", "enrolled", "left", "revoked"]:
    if node.revoked_at is not None:
        return "revoked" if node.left_at is None else "left"
    return "invited" if node.enrolled_at is None else "enrolled"


def parse_roles(words: Sequence[str]) -> tuple[Role, ...]:
    """Parses the roles in `words`, each once and in one order. Raises `Conflict` for a word that is no role."""
    if unknown := sorted({*words} - {*get_args(Role)}):
        raise Conflict(f"{', '.join(unknown)} is no role; the roles are train and aggregate")
    return tuple(role for role in get_args(Role) if role in words)
