"""The audit log for whoever checks it: verified where it is, and exported to a file that holds all it takes.

A file is lines of JSON: a head with the coordinator's key, the CA's digest and the keys of the nodes, then the entries,
the checkpoints and the countersignatures. Who wrote the file wrote the keys in it too, so a checker who knows keys
from elsewhere names them; and a node can say for itself what it countersigned (`client-node witness --json`).
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationError
from sqlalchemy.orm import Session

from ...client_node.wire.checkpoints import Checkpoint, DecisionsHead, is_countersigned
from ...models.strict import StrictModel
from ...privacy.ledger import canonical
from ...privacy.ledger.chain import Hex64, Hex128, Time
from ...privacy.ledger.succession import MOST_OF_COORDINATOR, CoordinatorSuccession, Succession, keys_of
from ..errors import Conflict, StateDamaged, TrailInvalid
from ..federation import Pki, load_settings
from ..store import Store, audit_log
from ..store.actions import ACTIONS, fields_of, plain
from ..store.audit_log import Action
from . import checkpoints

FORMAT: Final = 1
MOST_LINE = 1 << 16  # bytes
MOST_HEADER = 1 << 24  # bytes of the first line, which names every node
MOST_LINES = 10_000_000
_PROBLEMS = 20  # that are told

_Seq = Annotated[int, Field(ge=0, lt=2**48)]
_Name = Annotated[str, Field(min_length=1, max_length=63)]


class _Header(StrictModel):
    format: Literal[1]
    federation: Annotated[str, Field(max_length=2000)]
    coordinator: Hex64  # its Ed25519 key, the present one
    coordinators: Annotated[tuple[CoordinatorSuccession, ...], Field(max_length=MOST_OF_COORDINATOR)] = ()  # led to it
    ca: Hex64  # SHA-256 of the CA's certificate, which invitations pin
    nodes: Annotated[dict[_Name, Hex64], Field(max_length=10_000)]  # Ed25519 keys, the present ones
    successions: Annotated[tuple[Succession, ...], Field(max_length=20_000)] = ()  # that led to them, of each in order


class _Entry(StrictModel):
    seq: _Seq
    time: Time
    actor: Annotated[str, Field(min_length=1, max_length=80)]
    action: Annotated[str, Field(max_length=32)]
    fields: dict[str, Any]
    salt: Annotated[str, Field(max_length=32)]
    previous: Hex64
    hash: Hex64


class _Countersignature(StrictModel):
    site: _Name
    seq: _Seq
    decisions: DecisionsHead
    identity: Hex64
    signature: Hex128


class _Line(StrictModel):
    header: _Header | None = None
    entry: _Entry | None = None
    checkpoint: Checkpoint | None = None
    countersignature: _Countersignature | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Witness:
    """A node that has countersigned the log."""

    site: str
    seq: int  # the newest entry that it has countersigned
    time: str  # of that checkpoint
    decisions: int  # number of the newest decision of its people then, -1 for none


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    """Findings about an audit log."""

    federation: str
    entries: int
    checkpoints: int
    signed: int  # the newest entry that a checkpoint covers, -1 for none
    witnesses: tuple[Witness, ...]
    problems: tuple[str, ...]  # the first ones; empty if everything holds
    key_from: str  # where the coordinator's key comes from, for people

    @property
    def ok(self) -> bool:
        """True if everything holds."""
        return not self.problems

    def sentences(self) -> Iterator[str]:
        """Tells in words what was verified, without the problems."""
        signed = f"signed up to entry {self.signed}" if self.checkpoints else "not signed yet"
        yield f"{self.federation}: {self.entries} entries, {signed}; the coordinator's key is from {self.key_from}"
        for each in self.witnesses:
            decisions = f"with {each.decisions + 1} decisions"
            yield f"{each.site} has countersigned up to entry {each.seq}, on {each.time}, {decisions}"
        if not self.witnesses:
            yield "no node has countersigned yet: alone, the coordinator could still write another log"


def actions(
    store: Store,
    *,
    since: str | None = None,
    actor: str | None = None,
    action: str | None = None,
    after: int = -1,
    most: int | None = None,
) -> list[Action]:
    """Lists entries of the log, oldest first; arguments are those of `audit_log.entries`.

    Args:
        since: a day or a moment, UTC: 2026-03-01 or 2026-03-01T12:00:00Z.

    Raises:
        Conflict: `since` is neither, or there is no such action.
    """
    with store.session() as session:
        return list(audit_log.entries(session, after=after, most=most, **_filter(since, actor, action)))


def newest(
    store: Store, most: int, *, before: int | None = None,
    since: str | None = None, actor: str | None = None, action: str | None = None,
) -> list[Action]:  # fmt: skip
    """Lists entries of the log, newest first, at most `most`; the other arguments and errors are those of `actions`.

    Args:
        before: only those of a smaller number; None for all.
    """
    with store.session() as session:
        return audit_log.newest(session, most, before=before, **_filter(since, actor, action))


def nouns() -> list[str]:
    """Lists the nouns of all actions, by which entries are chosen, sorted."""
    return sorted({name.partition(".")[0] for name in ACTIONS})


def _filter(since: str | None, actor: str | None, action: str | None) -> dict[str, str | None]:
    """Checks what entries are chosen by. Raises `Conflict`."""
    if since is not None and not re.fullmatch(r"\d{4}-\d\d-\d\d(T\d\d:\d\d:\d\dZ)?", since):
        raise Conflict(f"{since!r} is no time; write 2026-03-01, or 2026-03-01T12:00:00Z, in UTC")
    if action is not None and not any(name == action or name.startswith(f"{action}.") for name in ACTIONS):
        raise Conflict(f"no action is called {action!r}; the log has those of {', '.join(nouns())}")
    return {"since": since, "actor": actor, "action": action}


def known_keys(pairs: Sequence[str]) -> dict[str, str]:
    """Parses NAME=KEY texts. Raises TrailInvalid if one is none."""
    keys = {}
    for pair in pairs:
        name, _, key = pair.partition("=")
        if not name:
            raise TrailInvalid(f"{pair!r} is not NAME=KEY")
        keys[name] = _key(key)
    return keys


def verify(store: Store, home: Path) -> Verified:
    """Verifies the federation's own log, against the keys in its home."""
    pki = Pki.load(home)
    with pki.signing.held(), store.session() as session:
        kept = list(audit_log.kept_wrongly(session))
        return _check(_lines(store, home, pki, session), "pki/signing.key of this home", problems=kept)


def verify_file(
    path: Path, *, coordinator: str | None = None, nodes: Mapping[str, str] | None = None, held: Path | None = None
) -> Verified:
    """Verifies an exported log on any machine.

    Args:
        coordinator: the coordinator's key, hex, known from elsewhere, or one before it; None takes the one in the
            file.
        nodes: keys of nodes known from elsewhere.
        held: what a node says it countersigned last, the output of `client-node witness --json`.

    Raises:
        TrailInvalid: the file is no exported audit log.
    """
    if coordinator is not None:
        _key(coordinator)
    last = None if held is None else _held(held)
    source = "the command line" if coordinator else "the file itself"
    return _check(_read(path), source, coordinator=coordinator, nodes=nodes or {}, held=last, is_whole=True)


def export(store: Store, home: Path, path: Path) -> int:
    """Writes the log to a new file, with a checkpoint of its head; returns the number of its entries.

    Raises:
        Conflict: `path` exists.
    """
    if os.path.lexists(path):
        raise Conflict(f"{path} exists already; nothing was written. Name a new file")
    pki = Pki.load(home)
    with pki.signing.held():  # head, checkpoints and key are of one moment
        with store.session() as session:
            store.log_action(session, "log.export", file=plain(path))
        checkpoints.make(store, pki)
        return _write(store, home, pki, path)


def _write(store: Store, home: Path, pki: Pki, path: Path) -> int:
    count = 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as out, store.session() as session:
            for line in _lines(store, home, pki, session):
                count += line.entry is not None
                out.write(json.dumps(line.model_dump(mode="json", exclude_none=True, exclude_unset=True)) + "\n")
    except BaseException:
        with suppress(FileNotFoundError):
            path.unlink()
        raise
    return count


def _key(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise TrailInvalid(f"{text[:80]!r} is no key of 64 hexadecimal digits")
    return text


def _lines(store: Store, home: Path, pki: Pki, session: Session) -> Iterator[_Line]:
    """Reads the lines of an export from the store, the header first."""
    signing = pki.signing.now
    nodes = {node.name: node.identity for node in store.nodes() if node.identity is not None}
    stated = tuple(each for name, found in store.successions().items() if name in nodes for each in found)
    # In this order: what other processes append meanwhile leaves no signature without its entry.
    countersigned, signed = audit_log.countersignatures(session), audit_log.checkpoints(session)
    try:
        yield _Line(
            header=_Header(
                format=FORMAT, federation=plain(load_settings(home).federation), coordinator=signing.public,
                ca=pki.ca_digest.hex(), nodes=nodes,
                **_if_any(successions=stated, coordinators=signing.successions),
            )
        )  # fmt: skip
        for entry in audit_log.entries(session):
            yield _Line(entry=_Entry(**asdict(entry)))
        for row in signed:
            yield _Line(checkpoint=checkpoints.checkpoint_of(row))
        for each in countersigned:
            yield _Line(
                countersignature=_Countersignature(
                    site=each.site, seq=each.seq, identity=each.identity, signature=each.signature,
                    decisions=DecisionsHead(seq=each.decisions, hash=each.decisions_hash),
                )
            )  # fmt: skip
    except ValidationError as err:
        where = ".".join(str(part) for part in err.errors(include_input=False)[0]["loc"])
        raise StateDamaged(f"the audit log in the database holds what is none: {where}") from err


def _if_any(**fields: Any) -> dict[str, Any]:
    """Leaves out what is empty, so that an export without it has the form of earlier versions."""
    return {name: value for name, value in fields.items() if value}


def _read(path: Path) -> Iterator[_Line]:
    with path.open("rb") as source:
        for number in range(1, MOST_LINES + 1):
            most = MOST_HEADER if number == 1 else MOST_LINE
            line = source.readline(most + 1)
            if not line:
                return
            if len(line) > most:
                raise TrailInvalid(f"{path}: line {number} has more than {most} bytes")
            try:
                canonical.decode(line)  # no name twice
                yield _Line.model_validate_json(line)
            except ValueError as err:
                raise TrailInvalid(f"{path}: line {number} is no line of an exported audit log") from err
    raise TrailInvalid(f"{path} has more than {MOST_LINES} lines")


def _held(path: Path) -> Checkpoint | None:
    with path.open("rb") as source:
        text = source.read(MOST_LINE)
    try:
        last = canonical.decode(text)["last"]
        return None if last is None else Checkpoint.model_validate(last)
    except (ValueError, KeyError, TypeError) as err:
        raise TrailInvalid(f"{path} is not what `client-node witness --json` prints") from err


def _check(
    lines: Iterable[_Line],
    key_from: str,
    *,
    coordinator: str | None = None,
    nodes: Mapping[str, str] | None = None,
    held: Checkpoint | None = None,
    problems: Sequence[str] = (),
    is_whole: bool = False,
) -> Verified:
    """Recomputes the chain, and checks every signature against it.

    Args:
        problems: those found before.
        is_whole: True for an export, which ends with a checkpoint of the coordinator's present key.
    """
    told = list(problems)
    given = dict(nodes or {})
    rest = iter(lines)
    first = next(rest, None)
    if first is None or first.header is None:
        raise TrailInvalid("the file does not begin as an exported audit log")
    header = first.header
    keys = _keys_by_node(header)
    own, broken = _keys_of_coordinator(header)
    told += [broken] if broken else []
    told += _about_keys(own, keys, coordinator, given)
    hashes: list[str] = []
    tail: list[_Line] = []

    def entries() -> Iterator[Action]:
        for line in rest:
            if line.entry is None:
                tail.append(line)
                return
            yield Action(**line.entry.model_dump())

    followed: dict[str, int] = {}
    for entry, problem in audit_log.links_of(entries()):
        hashes.append(entry.hash)
        if entry.action == "keys.rotate":
            followed[str(entry.fields.get("new"))] = entry.seq
        if problem is not None:
            told.append(problem)
        try:
            fields_of(entry.action, entry.fields)
        except StateDamaged as err:
            told.append(f"entry {entry.seq}: {err}")
    judging = own if coordinator is None or coordinator in own else (coordinator,)
    signatures = _Signatures(judging, _judged_by(keys, given), hashes, [followed.get(key, 0) for key in judging])
    told += signatures.check((*tail, *rest))
    if is_whole and len(judging) > 1:
        told += signatures.about_newest()
    told += [
        f"{name} was named, and no countersignature of that node is here: it was never asked, or they were taken out"
        for name in given
        if name not in signatures.countersigned
    ]
    if held is not None:
        told += [f"what the node countersigned: {each}" for each in signatures.about_checkpoint(held)]
    if len(told) > _PROBLEMS:
        told = [*told[:_PROBLEMS], f"and {len(told) - _PROBLEMS} more"]
    return Verified(
        federation=header.federation,
        entries=len(hashes),
        checkpoints=len(signatures.signed),
        signed=max(signatures.signed, default=-1),
        witnesses=signatures.witnesses(),
        problems=tuple(told),
        key_from=key_from,
    )


def _keys_of_coordinator(header: _Header) -> tuple[tuple[str, ...], str]:
    """Lists the coordinator's keys, the present one last, and says what is wrong about those before it."""
    alone = (header.coordinator,)
    try:
        keys = keys_of(header.coordinators) or alone
    except ValueError:
        return alone, "the coordinator's keys in the file do not follow one another"
    if keys[-1] != header.coordinator or any(each.problem() for each in header.coordinators):
        return alone, "the coordinator's earlier keys in the file do not lead to its present one"
    return keys, ""


def _keys_by_node(header: _Header) -> dict[str, tuple[str, ...]]:
    """Lists the keys of each node by its name, the present one last: those that sound successions tie to it."""
    keys: dict[str, tuple[str, ...]] = {name: (key,) for name, key in header.nodes.items()}
    for each in reversed(header.successions):
        known = keys.get(each.site, ())
        if known and each.new == known[0] and each.old not in known and not each.problem():
            keys[each.site] = (each.old, *known)
    return keys


def _judged_by(keys: Mapping[str, tuple[str, ...]], given: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Returns the keys that may have countersigned: of a node whose key was given, that one and those tied to it."""
    return {**keys, **{name: keys[name] if key in keys.get(name, ()) else (key,) for name, key in given.items()}}


def _about_keys(
    own: tuple[str, ...], keys: Mapping[str, tuple[str, ...]], coordinator: str | None, nodes: Mapping[str, str]
) -> Iterator[str]:
    """Compares the keys of a file, the coordinator's `own` ones first, with those known from elsewhere."""
    if coordinator is not None and coordinator not in own:
        yield "the coordinator's key in the file is another than the one given"
    for name, given in nodes.items():
        if given not in keys.get(name, ()):
            yield f"the key of {name} in the file is another than the one given"


@dataclass(frozen=True, slots=True)
class _Signatures:
    """Checks the checkpoints and the countersignatures of a log against its keys and its chain."""

    own: tuple[str, ...]  # the coordinator's keys, the present one last
    nodes: Mapping[str, tuple[str, ...]]  # keys by name
    hashes: Sequence[str]  # of the entries, in order
    since: Sequence[int]  # for each of the own keys, the entry by which it took effect
    signed: dict[int, Checkpoint] = field(default_factory=dict)
    countersigned: dict[str, list[tuple[Checkpoint, DecisionsHead]]] = field(default_factory=dict)

    def check(self, lines: Iterable[_Line]) -> list[str]:
        """Returns what is wrong about `lines`, and keeps what holds."""
        found: list[str] = []
        for line in lines:
            if line.checkpoint is not None:
                self.signed[line.checkpoint.seq] = line.checkpoint
                found += self.about_checkpoint(line.checkpoint)
            elif line.countersignature is not None:
                found += self._about_witness(line.countersignature)
            else:
                found.append("entries or heads stand where signatures belong")
        found += self._about_order()
        for site in sorted(self.countersigned):
            self.countersigned[site].sort(key=lambda each: (each[0].seq, each[1].seq))
            found += _about_decisions(site, self.countersigned[site])
        return found

    def witnesses(self) -> tuple[Witness, ...]:
        """Lists the nodes that have countersigned, each with the newest entry that it has seen."""
        newest = ((site, *given[-1]) for site, given in sorted(self.countersigned.items()))
        return tuple(
            Witness(site=site, seq=checkpoint.seq, time=checkpoint.time, decisions=decisions.seq)
            for site, checkpoint, decisions in newest
        )

    def about_checkpoint(self, checkpoint: Checkpoint) -> list[str]:
        """Returns what is wrong about a checkpoint."""
        found = []
        if self._signer_of(checkpoint) is None:
            found.append(f"checkpoint {checkpoint.seq} is not signed by the coordinator's key")
        if self._hash_at(0) != checkpoint.log:
            found.append(f"checkpoint {checkpoint.seq} is of another log")
        if (there := self._hash_at(checkpoint.seq)) is None:
            found.append(f"checkpoint {checkpoint.seq} names an entry that is gone: the log was cut off")
        elif there != checkpoint.hash:
            found.append(f"checkpoint {checkpoint.seq} names another entry: the log was rewritten")
        return found

    def about_newest(self) -> list[str]:
        """Returns what is wrong about the key of the newest checkpoint, by which the one before could rewrite a log."""
        if self.signed and self.signed[max(self.signed)].is_signed_by(self.own[-1]):
            return []
        return ["the newest checkpoint is not signed by the coordinator's present key"]

    def _signer_of(self, checkpoint: Checkpoint) -> int | None:
        """Finds which of the coordinator's keys signed a checkpoint; None if none did."""
        return next((at for at, key in enumerate(self.own) if checkpoint.is_signed_by(key)), None)

    def _about_order(self) -> Iterator[str]:
        """Compares the keys of checkpoints in their order: once a later one has signed what came after it, no earlier.

        Of what came before it any later key may sign too, for a node that was away for long.
        """
        if len(self.own) == 1:
            return
        newest = 0
        for seq in sorted(self.signed):
            at = self._signer_of(self.signed[seq])
            if at is None:
                continue
            if at < newest:
                yield f"checkpoint {seq} is signed by a key of the coordinator's that another one had followed"
            elif seq >= self.since[at]:
                newest = at

    def _hash_at(self, seq: int) -> str | None:
        return self.hashes[seq] if 0 <= seq < len(self.hashes) else None

    def _about_witness(self, each: _Countersignature) -> list[str]:
        place = f"the countersignature of {each.site} at entry {each.seq}"
        checkpoint = self.signed.get(each.seq)
        if checkpoint is None:
            return [f"{place} belongs to no checkpoint"]
        if each.identity not in self.nodes.get(each.site, ()):
            return [f"{place} was given by a key that is not that node's"]
        if not is_countersigned(
            checkpoint, site=each.site, identity=each.identity, decisions=each.decisions, signature=each.signature
        ):
            return [f"{place} does not verify"]
        self.countersigned.setdefault(each.site, []).append((checkpoint, each.decisions))
        return []


def _about_decisions(site: str, given: Sequence[tuple[Checkpoint, DecisionsHead]]) -> Iterator[str]:
    """Compares the decisions that a node's countersignatures name, in their order: they only ever grow."""
    for (_, before), (checkpoint, after) in pairwise(given):
        place = f"the countersignature of {site} at entry {checkpoint.seq}"
        if after.seq < before.seq:
            yield f"{place} names fewer decisions of its people than one before: its decision log was cut off"
        elif after.seq == before.seq and after.hash != before.hash:
            yield f"{place} names other decisions of its people than one before: its decision log was rewritten"
