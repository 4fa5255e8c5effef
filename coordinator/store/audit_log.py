"""The audit log in the database: entries that are chained as they are written, checkpoints, and what sites signed.

An entry is appended inside the transaction of its action. The one row of `AuditHead` is locked by an update first, and
stays so until the transaction ends, so that two processes never write two entries of one number, in SQLite as in any
database that locks rows.
"""

import json
import secrets
import time as clock
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, func, select, update
from sqlalchemy.orm import Session

from ...privacy.ledger import chain, log_chain
from ...privacy.ledger.chain import START, Head
from ..errors import StateDamaged
from .actions import fields_of
from .tables import ActionRow, AuditHead, CheckpointRow, CountersignatureRow

_SIGNED = CheckpointRow, CountersignatureRow
_LACKS = "the audit log in the database has no head. Restore the newest backup"


@dataclass(frozen=True, kw_only=True, slots=True)
class Action:
    """An entry of the audit log."""

    seq: int
    time: str  # UTC
    actor: str
    action: str
    fields: Mapping[str, Any]
    salt: str
    previous: str
    hash: str

    @property
    def digest(self) -> str:
        """The digest of its contents."""
        return contents(self.time, self.actor, self.action, self.fields, self.salt)

    @property
    def said(self) -> str:
        """Its fields in one line, for people, without those that are empty."""
        return " ".join(f"{name}={_plain(value)}" for name, value in self.fields.items() if value is not None)


def contents(time: str, actor: str, action: str, fields: Mapping[str, Any], salt: str) -> str:
    """Computes the digest of an entry's contents."""
    parts = {"time": time, "actor": actor, "action": action, "fields": dict(fields), "salt": salt}
    return log_chain.contents_digest(parts)


def append(session: Session, actor: str, action: str, fields: Mapping[str, Any]) -> Head:
    """Appends an entry inside `session`'s transaction, and returns the new head."""
    checked, time, salt = fields_of(action, fields), chain.now(), secrets.token_hex(16)
    before = hold(session)
    digest = contents(time, actor, action, checked, salt)
    after = log_chain.link(before, digest)
    session.add(
        ActionRow(
            seq=after.seq, time=time, actor=actor, action=action, fields=json.dumps(checked, sort_keys=True),
            salt=salt, contents=digest, previous=before.hash, hash=after.hash,
        )
    )  # fmt: skip
    session.execute(update(AuditHead).values(seq=after.seq, hash=after.hash))
    session.flush()  # the next entry of this transaction sees this one
    return after


def hold(session: Session) -> Head:
    """Locks the log until the transaction ends, and returns its head."""
    held = update(AuditHead).where(AuditHead.id == 1).values(id=1).returning(AuditHead.seq, AuditHead.hash)
    found = session.execute(held).one_or_none()
    if found is None:
        raise StateDamaged(_LACKS)
    return Head(found.seq, found.hash)


def head(session: Session) -> Head:
    """Finds the head of the log."""
    found = session.execute(select(AuditHead.seq, AuditHead.hash)).one_or_none()
    if found is None:
        raise StateDamaged(_LACKS)
    return Head(found.seq, found.hash)


def hash_at(session: Session, seq: int) -> str | None:
    """Finds the hash of entry number `seq`, that before entry 0 for -1; None if there is none."""
    return START.hash if seq == START.seq else session.scalar(select(ActionRow.hash).where(ActionRow.seq == seq))


def digests(session: Session, since: int, most: int) -> list[str]:
    """Lists the digests of at most `most` entries from number `since` on, in order."""
    wanted = select(ActionRow.contents).where(ActionRow.seq >= since).order_by(ActionRow.seq).limit(most)
    return list(session.scalars(wanted))


def entries(
    session: Session,
    *,
    since: str | None = None,
    actor: str | None = None,
    action: str | None = None,
    after: int = START.seq,
    most: int | None = None,
) -> Iterator[Action]:
    """Yields entries, oldest first.

    Args:
        since: only those of this time or later, UTC, as 2026-02-28T00:00:00Z.
        actor: only those of this actor, whole or the name behind the colon.
        action: only this action, or all of a noun, as `run`.
        after: only those behind entry number `after`.
        most: at most so many; None for all.
    """
    wanted = _chosen(since, actor, action).order_by(ActionRow.seq).limit(most)
    if after > START.seq:
        wanted = wanted.where(ActionRow.seq > after)
    for row in session.scalars(wanted.execution_options(yield_per=1000)):
        yield _action(row)


def newest(
    session: Session, most: int, *, before: int | None = None,
    since: str | None = None, actor: str | None = None, action: str | None = None,
) -> list[Action]:  # fmt: skip
    """Lists entries, newest first, at most `most`; the others are chosen as by `entries`.

    Args:
        before: only those of a smaller number; None for all.
    """
    wanted = _chosen(since, actor, action).order_by(ActionRow.seq.desc()).limit(most)
    if before is not None:
        wanted = wanted.where(ActionRow.seq < before)
    return [_action(row) for row in session.scalars(wanted)]


def _chosen(since: str | None, actor: str | None, action: str | None) -> Select[ActionRow]:
    wanted = select(ActionRow)
    if since is not None:
        wanted = wanted.where(ActionRow.time >= since)
    if actor is not None:
        wanted = wanted.where(
            ActionRow.actor.in_([actor, *(f"{kind}:{actor}" for kind in ("operator", "login", "site"))])
        )
    if action is not None and "." in action:  # a whole one, which the index finds
        wanted = wanted.where(ActionRow.action == action)
    elif action is not None:
        wanted = wanted.where((ActionRow.action == action) | ActionRow.action.startswith(f"{action}.", autoescape=True))
    return wanted


def count_of_hour(session: Session, action: str, actor: str) -> int:
    """Counts an actor's entries of an action in the last hour; those of a clock that was ahead do not count."""
    now = clock.time()
    is_meant = ActionRow.action == action, ActionRow.actor == actor
    is_recent = ActionRow.time >= chain.moment(now - 3600), ActionRow.time <= chain.moment(now)
    first = select(func.min(ActionRow.seq)).where(is_recent[0]).scalar_subquery()  # else SQLite reads all of the action
    wanted = select(func.count()).select_from(ActionRow).where(*is_meant, *is_recent, ActionRow.seq >= first)
    return session.scalars(wanted).one()


def newest_checkpoint(session: Session) -> CheckpointRow | None:
    """Finds the newest checkpoint; None before the first."""
    return session.scalars(select(CheckpointRow).order_by(CheckpointRow.seq.desc()).limit(1)).first()


def checkpoints(session: Session) -> Sequence[CheckpointRow]:
    """Lists all checkpoints, in order."""
    return session.scalars(select(CheckpointRow).order_by(CheckpointRow.seq)).all()


def countersignatures(session: Session) -> Sequence[CountersignatureRow]:
    """Lists all that nodes have countersigned, by node and in order."""
    order = CountersignatureRow.site, CountersignatureRow.seq
    return session.scalars(select(CountersignatureRow).order_by(*order)).all()


def countersigned(session: Session, site: str) -> int:
    """Finds the number of the newest entry that `site` has countersigned; -1 before the first."""
    newest = select(func.max(CountersignatureRow.seq)).where(CountersignatureRow.site == site)
    found = session.scalar(newest)
    return START.seq if found is None else found


def all_countersigned(session: Session) -> dict[str, int]:
    """Finds the number of the newest entry that each node has countersigned; without those that never did."""
    newest = select(CountersignatureRow.site, func.max(CountersignatureRow.seq)).group_by(CountersignatureRow.site)
    return {row[0]: row[1] for row in session.execute(newest)}


def work(session: Session) -> int:
    """Counts what a verification looks at: entries, checkpoints and countersignatures."""
    signatures = [session.scalars(select(func.count()).select_from(table)).one() for table in _SIGNED]
    return head(session).seq + 1 + sum(signatures)


def links_of(actions: Iterable[Action]) -> Iterator[tuple[Action, str | None]]:
    """Yields each entry with what is wrong about it: a number, a link or contents that do not fit; None if it fits."""
    before = START
    for entry in actions:
        after = log_chain.link(before, entry.digest)
        problem = None
        if entry.seq != after.seq:
            problem = f"entry {after.seq} is missing or out of order: found entry {entry.seq} in its place"
        elif entry.previous != before.hash:
            problem = f"entry {entry.seq} does not follow entry {before.seq}: its previous hash is another"
        elif entry.hash != after.hash:
            problem = f"entry {entry.seq} was changed: its contents do not give its hash"
        yield entry, problem
        before = Head(entry.seq, entry.hash)


def kept_wrongly(session: Session) -> Iterator[str]:
    """Tells where what is kept beside the entries differs from them: the digests for nodes, and the head."""
    last = session.scalar(select(func.max(ActionRow.seq)))  # before the head, which others may move meanwhile
    found = head(session)
    if found.seq < (START.seq if last is None else last) or hash_at(session, found.seq) != found.hash:
        yield f"the head of the log, entry {found.seq}, is not its last entry: the log was cut off, or its head changed"
    wanted = select(ActionRow).order_by(ActionRow.seq).execution_options(yield_per=1000)
    for row in session.scalars(wanted):
        if row.contents != _action(row).digest:
            yield f"entry {row.seq} has another digest beside it than that of its contents: nodes refuse what follows"


def _plain(value: Any) -> str:
    """Writes a field's value as JSON, or as it is if that is one plain word."""
    is_word = isinstance(value, str) and value.isascii() and value.isprintable() and not {*value} & set(' "')
    return value if is_word else json.dumps(value)


def _action(row: ActionRow) -> Action:
    try:
        fields = json.loads(row.fields)
    except ValueError as err:
        raise StateDamaged(f"entry {row.seq} of the audit log in the database is no JSON") from err
    return Action(
        seq=row.seq, time=row.time, actor=row.actor, action=row.action, fields=fields, salt=row.salt,
        previous=row.previous, hash=row.hash,
    )  # fmt: skip
