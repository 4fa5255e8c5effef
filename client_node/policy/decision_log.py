"""The decision log of a node's people: who decided what and when, a line each in `decisions.jsonl` under the home.

It only grows, and a line is on disk before the decision counts. Each line is an entry of a chain, as a ledger's
(`privacy.ledger.chain`), that the node's identity key signs, so that a changed or missing line shows at its place. What
was decided before the node had keys, or under a version that kept no chain, are plain lines at the beginning of the
file; the chain begins with their digest, so it covers them too. A plain line after that is a decision that nobody
signed, and reported. Where the identity key was followed by another, a line `rotate` says so with the succession, and
lines after it are signed by the later key.

A file that was cut off at its end still hangs together. `decisions.head` names the newest entry, and each
countersignature of the coordinator's audit log carries it away from this machine (`witness`).
"""

import hashlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field, TypeAdapter, ValidationError

from ...models.strict import Digest, StrictModel
from ...privacy.errors import LedgerBroken
from ...privacy.ledger import canonical, chain
from ...privacy.ledger.chain import Head
from ...privacy.ledger.succession import Succession, keys_of
from ..enrolment import NodeIdentity
from ..errors import FileDamaged, IdentityMissing, KeysSealed, PolicyInvalid
from ..files import read_json, write_private
from ..login import login_name, way
from ..succession.own_keys import OwnKeys, of_home

logger = logging.getLogger(__name__)

FILE = "decisions.jsonl"
HEAD_FILE = "decisions.head"
MOST_BYTES = 64 * 2**20  # of the whole decision log, when it is read
MOST_LETTERS = 200  # of a person's name
KIND = "decision"
ROTATE = "rotate"
_BEGIN_DOMAIN = b"confide decisions 1\n"
_HEAD_REMEDY = "It names the newest decision of this node's people: restore both files from a backup, or delete it"

_Short = Annotated[str, Field(max_length=256)]


class Entry(StrictModel):
    """A decision and who made it; `by` is what the person says, `login` what the operating system says.

    For a decision on the site's page, it said so to the command that made the page's link, and `login` ends with the
    words that say it.
    """

    at: _Short  # UTC
    by: _Short
    login: _Short
    decision: Literal["approve", "revoke", "cap", "confirm", "remove", "accept", "propose", "forget", "trust", "rotate"]
    about: _Short  # the hash of a study, a data set and its unit, a site, a CA, a key, or an entry of the audit log
    detail: Annotated[str, Field(max_length=2000)]


class _Kept(StrictModel):
    seq: Annotated[int, Field(ge=0, lt=2**48)]
    hash: Digest


_HEAD_FORM = TypeAdapter(_Kept)


@dataclass(frozen=True, slots=True)
class Verified:
    """Findings of `verify`."""

    entries: int  # that are chained and signed
    plain: int  # lines before the chain, which its beginning covers
    head: Head  # of the chain, by which a countersignature names it
    problems: tuple[str, ...]  # empty if everything holds
    unread: tuple[int, ...]  # numbers of lines that a crash has cut: nothing was decided by them


def person(by: str | None) -> str:
    """Returns who decides: the name given, or else the account that runs this process.

    Raises:
        PolicyInvalid: the name is too long, or not printable.
    """
    name = login_name() if by is None else by.strip()
    if not (name.isprintable() and 0 < len(name) <= MOST_LETTERS):
        raise PolicyInvalid("--by", (f"a name has 1 to {MOST_LETTERS} printable letters",))
    return name


def write(home: Path, decision: str, about: str, detail: str, *, by: str | None = None) -> None:
    """Appends a decision of the person `by`, or else of the account that runs this process; durable at return.

    A line that a crash has cut is left as it is, and the next one begins on a line of its own. Callers hold the lock of
    the decisions.
    """
    identity = _identity(home)
    lines = _lines(home)
    signer = None if identity is None else _signer(identity, lines)
    _write(home, lines, signer, decision, about, detail, by=by)


def _write(
    home: Path,
    lines: list[bytes],
    signer: Ed25519PrivateKey | None,
    decision: str,
    about: str,
    detail: str,
    *,
    by: str | None,
) -> None:
    named = {"by": person(by), "login": f"{login_name()}{way()}"}
    entry = Entry.model_validate({"at": chain.now(), "decision": decision, "about": about, "detail": detail} | named)
    if signer is None:
        return _append(home, entry.model_dump(mode="json"))
    body = entry.model_dump(mode="json", exclude={"at"})
    is_whole = _holds_kept(home, lines)
    chained = chain.extend(_head_of(lines), signer, entry.at, KIND, body)
    _append(home, chained.model_dump(mode="json"))
    if is_whole:  # else the file goes on naming what is missing, for `verify`
        write_private(home / HEAD_FILE, json.dumps({"seq": chained.seq, "hash": chained.hash}).encode())


def write_succession(home: Path, stated: Succession, *, by: str | None = None) -> None:
    """Appends that the key which signs the log is followed by another, signed by that key.

    Nothing is written where another key signs the log already, or where it is empty and the earlier key is gone.
    Callers hold the lock of the decisions.
    """
    keys, lines = of_home(home), _lines(home)
    if _last(lines) is not None and _key_at_end(lines, keys) != stated.old:
        return
    if (signer := keys.find(stated.old)) is not None:
        _write(home, lines, signer, ROTATE, stated.new, stated.model_dump_json(), by=by)


def signing_key(home: Path, keys: OwnKeys) -> str:
    """Returns the public key, in hex, that signs the next line."""
    return _key_at_end(_lines(home), keys)


def read(home: Path) -> tuple[list[Entry], list[int]]:
    """Reads all decisions, oldest first, and the numbers of lines that cannot be read, from 1."""
    entries, unread = [], []
    for number, line in enumerate(_lines(home), 1):
        try:
            link = _chained(line)
            found = (
                Entry.model_validate_json(line) if link is None else Entry.model_validate({"at": link.time} | link.body)
            )
        except ValidationError:
            unread.append(number)
            continue
        entries.append(found)
    return entries, unread


def head(home: Path) -> Head:
    """Finds the head of the chain; before its first entry, the digest of the plain lines with number -1."""
    return _head_of(_lines(home))


def verify(home: Path, *, public: str | None = None) -> Verified:
    """Checks the chain, its signatures and its kept head.

    Args:
        public: a key of the node's signatures, hex, the present one or one before; None for those of the home.

    Raises:
        IdentityMissing: this node has no keys.
        FileDamaged: the file of the kept head is damaged.
    """
    lines = _lines(home)
    key = _key_at_start(lines, public) if public else _own_key_at_start(lines, of_home(home))
    links = [_chained(line) for line in lines]
    first = next((place for place, link in enumerate(links) if link is not None), len(lines))
    before, problems = _beginning(lines[:first]), []
    known, hashes = before, {}
    for place in range(first, len(lines)):
        link = links[place]
        if link is None:
            if _is_plain(lines[place]):
                problems.append(f"line {place + 1} is a decision outside the chain")
            continue
        try:
            known = chain.check_extension(known, [link], key)
            key = _key_after(lines[place], key)
        except LedgerBroken as err:
            problems.append(f"line {place + 1}: {err}")
            known = Head(link.seq, link.hash)  # what follows is judged by it
        hashes[link.seq] = link.hash
    kept = read_json(home / HEAD_FILE, _HEAD_FORM, remedy=_HEAD_REMEDY, max_bytes=2**16)
    if kept is not None and hashes.get(kept.seq) != kept.hash:
        problems.append(f"{HEAD_FILE} names entry {kept.seq}, which is not here: lines are missing at the end")
    unread = tuple(place + 1 for place, line in enumerate(lines) if links[place] is None and not _is_plain(line))
    plain = sum(_is_plain(line) for line in lines[:first])
    return Verified(len(hashes), plain, known, tuple(problems), unread)


def _signer(identity: NodeIdentity, lines: list[bytes]) -> Ed25519PrivateKey:
    """Finds the key that signs the next line: not the present one, where the log does not know yet that it follows."""
    keys = OwnKeys(identity)
    try:
        found = keys.find(_key_at_end(lines, keys))
    except IdentityMissing as err:
        logger.warning("the decision counts, but is signed by the present key: %s", err)
        return identity.signer
    return found or identity.signer  # by another key than the log's, which shows at its line


def _key_at_end(lines: list[bytes], keys: OwnKeys) -> str:
    """Returns the key that signs the next line: the later one of a last line `rotate`, or that of the last line."""
    link = _last(lines)
    if link is None:
        return keys.present
    if (stated := _succession_of(link)) is not None:
        return stated.new
    return next((key for key in reversed(keys.all()) if _is_signed(link, key)), keys.present)


def _last(lines: list[bytes]) -> chain.Entry | None:
    return next((link for line in reversed(lines) if (link := _chained(line)) is not None), None)


def _own_key_at_start(lines: list[bytes], keys: OwnKeys) -> str:
    """Returns the one of this node's keys that signed the first line."""
    first = next((link for line in lines if (link := _chained(line)) is not None), None)
    return next((key for key in keys.all() if first is not None and _is_signed(first, key)), keys.present)


def _key_at_start(lines: list[bytes], public: str) -> str:
    """Returns the key that signs the first line, by successions in the log that lead to or from `public`."""
    stated = [found for found in map(_succession_in, lines) if found is not None]
    try:
        keys = keys_of(stated)
    except ValueError:
        return public  # and what does not follow shows at its line
    return keys[0] if public in keys and not any(each.problem() for each in stated) else public


def _key_after(line: bytes, key: str) -> str:
    """Returns the key that signs what follows a line. Raises `LedgerBroken` for a succession that does not hold."""
    stated = _succession_in(line)
    if stated is None:
        return key
    if stated.old != key or stated.problem():
        raise LedgerBroken("its succession of keys does not hold")
    return stated.new


def _succession_in(line: bytes) -> Succession | None:
    link = _chained(line)
    return None if link is None else _succession_of(link)


def _succession_of(link: chain.Entry) -> Succession | None:
    """Reads the succession of an entry; None for any other decision."""
    if link.body.get("decision") != ROTATE:
        return None
    try:
        return Succession.model_validate_json(str(link.body.get("detail")))
    except ValidationError:
        return None


def _is_signed(link: chain.Entry, key: str) -> bool:
    return canonical.is_signed(key, chain.SIGNATURE_DOMAIN, bytes.fromhex(link.hash), link.signature)


def _head_of(lines: list[bytes]) -> Head:
    link = _last(lines)
    return _beginning(lines) if link is None else Head(link.seq, link.hash)


def _holds_kept(home: Path, lines: list[bytes]) -> bool:
    """True unless the kept head names an entry that is not among the lines, or cannot be read."""
    try:
        kept = read_json(home / HEAD_FILE, _HEAD_FORM, remedy=_HEAD_REMEDY, max_bytes=2**16)
    except FileDamaged as err:
        logger.warning("%s", err)
        return False
    links = (_chained(line) for line in reversed(lines))
    return kept is None or any(link is not None and (link.seq, link.hash) == (kept.seq, kept.hash) for link in links)


def _identity(home: Path) -> NodeIdentity | None:
    """Loads the node's keys; None if there are none that can be read: a study is revoked all the same."""
    try:
        return NodeIdentity.load(home)
    except (IdentityMissing, KeysSealed, FileDamaged) as err:
        if any((home / "keys").glob("*.key")):
            logger.warning("the decision counts, but is not signed: %s", err)
        return None


def _append(home: Path, fields: dict[str, Any]) -> None:
    descriptor = os.open(home / FILE, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    size = os.fstat(descriptor).st_size
    try:
        is_whole = size == 0 or os.pread(descriptor, 1, size - 1) == b"\n"
        line = json.dumps(fields, sort_keys=True) + "\n"
        left = (line if is_whole else "\n" + line).encode()
        while left:  # a disk that becomes full takes a part, and refuses the rest
            left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)
    except OSError as err:
        os.ftruncate(descriptor, size)  # no decision counts whose line is not whole
        raise OSError(err.errno, err.strerror, str(home / FILE)) from err
    finally:
        os.close(descriptor)


def _lines(home: Path) -> list[bytes]:
    try:
        with (home / FILE).open("rb") as source:
            return source.read(MOST_BYTES).splitlines()
    except FileNotFoundError:
        return []


def _chained(line: bytes) -> chain.Entry | None:
    """Reads a line of the chain; None for any other."""
    try:
        link = chain.Entry.parse(canonical.decode(line))
    except (LedgerBroken, ValueError):
        return None
    return link if link.kind == KIND else None


def _is_plain(line: bytes) -> bool:
    try:
        Entry.model_validate_json(line)
    except ValidationError:
        return False
    return True


def _beginning(lines: list[bytes]) -> Head:
    """Computes what the chain's first entry follows: never the beginning of a ledger, which the same key signs."""
    return Head(-1, hashlib.sha256(_BEGIN_DOMAIN + b"\n".join(lines)).hexdigest())
