"""Reads and writes the files of a home's secret keys, which may be sealed with a passphrase.

A home whose keys are sealed has the file `sealing.json`: the kind of home, a random salt, how far sealing has come, and
a check by which a wrong passphrase is told from a damaged file. One key is made of passphrase and salt (`passphrase`)
at the first use in a process, and kept in its memory. A sealed file is

    confide-sealed-key-1                      the format
    salt (16 bytes), nonce (12 bytes)         the home's, and a random one
    ChaCha20-Poly1305 of the key's file       with its tag

where the tag covers the kind of home, the salt, and the file's place without its suffix. So files that are cut,
changed, put in each other's place or brought from another home are refused. `transport.next` becomes `transport.key` by
a rename, `ca.next.key` becomes `ca.key`: both have one place.

While sealing or unsealing is under way, files are read in either form, and a second call completes it. In a home that
is sealed whole, a file that is not sealed is refused: somebody put it there.

What this does not stop: whoever can write to the home can put back an older sealed file of the same place, or delete
`sealing.json` with all that is sealed; and whoever can read the memory of a running process has its keys.
"""

import os
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass as checked

from . import passphrase as passphrases
from .errors import FileDamaged, KeysSealed
from .files import damaged, parse_json, read_json, read_own, write_private

Kind = Literal["node", "coordinator"]
State = Literal["sealing", "sealed", "unsealing"]
T = TypeVar("T")

NOT_ENCRYPTED = "not encrypted"
FILE = "sealing.json"  # in the home
PLACES: Mapping[Kind, tuple[str, ...]] = {  # of secret keys, below the home
    "node": ("keys/*.key", "keys/*.next", "party/*.key", "aggregator/run-keys/*.json"),
    "coordinator": ("pki/*.key", "pki/*.next", "runs/*/secret"),
}
NOT_SEALED = ("pki/superlink.key",)  # read by Flower's own process, by path; it is for loopback alone

_FIRST = b"confide-sealed-key-1\n"
_SALT, _NONCE, _TAG = passphrases.SALT_BYTES, 12, 16
_OVERHEAD = len(_FIRST) + _SALT + _NONCE + _TAG
_MAX_MARK = 2**12
_MOST_SECRET = 2**16  # bytes of a secret file
_REMEDY = "It says how the keys of this home are sealed: restore it from a backup, with the keys"
_NOT_OURS = (
    "Find out who put it there. If it was you, seal it: client-node keys seal, or coordinator keys seal, by what this "
    "home is"
)
_Hex = Annotated[str, Field(pattern=r"^[0-9a-f]*$", max_length=128)]


@checked(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class _Mark:
    """Says how the keys of a home are sealed."""

    kind: Kind
    state: State
    salt: Annotated[_Hex, Field(min_length=2 * _SALT, max_length=2 * _SALT)]
    check: Annotated[_Hex, Field(min_length=2 * (_NONCE + _TAG), max_length=2 * (_NONCE + _TAG))]
    format: Literal[1] = 1


_MARK_FORM = TypeAdapter(_Mark)
_keys: dict[bytes, bytes] = {}  # by salt: those that a passphrase has opened in this process
_deriving = threading.Lock()


@dataclass(frozen=True, slots=True)
class Changed:
    """Names the secret files of a home after sealing or unsealing, and those of them that were changed."""

    files: tuple[str, ...]
    changed: tuple[str, ...]


def read_secret(
    path: Path, *, remedy: str, error: Callable[[str], Exception] = FileDamaged, max_bytes: int = _MOST_SECRET
) -> bytes | None:
    """Reads a file of a secret key and opens it if it is sealed; None if there is none.

    Args are those of `files.read_own`.

    Raises:
        KeysSealed: it is sealed, and no passphrase, or a wrong one, is given.
        FileDamaged: as `error`: for every reason of `files.read_own`; it was changed, or is another file; or it is not
            sealed in a home whose keys are.
    """
    data = read_own(path, remedy=remedy, error=error, max_bytes=max_bytes + _OVERHEAD, is_secret=True)
    if data is None:
        return None
    found = _home_of(path, error)
    if data.startswith(_FIRST):
        if found is None:
            raise damaged(path, f"is sealed, and there is no {FILE} that says how", remedy=_REMEDY, error=error)
        data = _open(data, path, *found, error)
    elif found is not None:
        home, mark = found
        _key(home, mark)  # vouches for the state
        if mark.state == "sealed":
            raise damaged(path, "is not sealed, in a home whose keys are", remedy=_NOT_OURS, error=error)
    if len(data) > max_bytes:
        raise damaged(path, f"has more than {max_bytes} bytes", remedy=remedy, error=error)
    return data


def read_secret_json(
    path: Path,
    kind: TypeAdapter[T],
    *,
    remedy: str,
    error: Callable[[str], Exception] = FileDamaged,
    max_bytes: int = _MOST_SECRET,
) -> T | None:
    """Reads a secret file in JSON, strictly; None if there is none. Raises as `read_secret` and `files.read_json`."""
    data = read_secret(path, remedy=remedy, error=error, max_bytes=max_bytes)
    return None if data is None else parse_json(path, data, kind, remedy=remedy, error=error)


def write_secret(path: Path, data: bytes) -> None:
    """Writes a file of a secret key as `files.write_private` does, sealed if the home's keys are.

    Raises:
        KeysSealed: the home's keys are sealed, and no passphrase, or a wrong one, is given; nothing was written.
        OSError: the disk did not take it.
    """
    found = _home_of(path, FileDamaged)
    if found is not None:
        home, mark = found
        key = _key(home, mark)
        if mark.state != "unsealing":
            data = _sealed(data, path, home, mark, key)
    write_private(path, data)


def standing(home: Path) -> str:
    """Tells in words whether the secret keys of a home are sealed. Raises FileDamaged."""
    mark = _mark_of(home)
    if mark is None:
        return NOT_ENCRYPTED
    return {"sealed": "sealed", "sealing": "sealed in part", "unsealing": "unsealed in part"}[mark.state]


def seal(home: Path, kind: Kind, passphrase: bytes) -> Changed:
    """Seals all secret keys of a home, those that are made later too; completes what was cut short.

    Whoever calls it keeps all others from the home.

    Raises:
        KeysSealed: they are sealed already, or in part, with another passphrase; nothing was changed.
        FileDamaged: one of them is damaged; nothing was changed.
        OSError: the disk did not take a file; each is whole, in one of both forms.
    """
    mark = _mark_of(home)
    if mark is None:
        salt = secrets.token_bytes(_SALT)
        key = passphrases.derive(passphrase, salt)
    else:
        salt = bytes.fromhex(mark.salt)
        key = _opening(home, mark, passphrase, "the one that is given")
    found = _all(home, kind, mark, key)
    _write_mark(home, fresh := _marked(kind, "sealing", salt, key))
    plain = [path for path, (_, was_sealed) in found.items() if not was_sealed]
    for path in plain:
        write_private(path, _sealed(found[path][0], path, home, fresh, key))
    _write_mark(home, _marked(kind, "sealed", salt, key))
    return _changed(home, found, plain)


def unseal(home: Path, kind: Kind, passphrase: bytes) -> Changed:
    """Takes the seals of all secret keys of a home away; completes what was cut short.

    Whoever calls it keeps all others from the home.

    Raises:
        KeysSealed: they are not sealed, or the passphrase is another one; nothing was changed.
        FileDamaged: one of them is damaged; nothing was changed.
        OSError: the disk did not take a file; each is whole, in one of both forms.
    """
    mark = _mark_of(home)
    if mark is None:
        raise KeysSealed(f"the keys of {home} are not sealed; nothing was changed")
    key, salt = _opening(home, mark, passphrase, "the one that is given"), bytes.fromhex(mark.salt)
    found = _all(home, kind, mark, key)
    _write_mark(home, _marked(kind, "unsealing", salt, key))
    sealed = [path for path, (_, was_sealed) in found.items() if was_sealed]
    for path in sealed:
        write_private(path, found[path][0])
    (home / FILE).unlink()
    folder = os.open(home, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return _changed(home, found, sealed)


def _all(home: Path, kind: Kind, mark: _Mark | None, key: bytes) -> dict[Path, tuple[bytes, bool]]:
    """Reads every secret file of a home, and whether it is sealed, before any is changed."""
    if mark is not None and mark.kind != kind:
        raise FileDamaged(f"{home / FILE} is of a {mark.kind}, not of a {kind}; nothing was changed")
    found = {}
    for path in sorted({path for place in PLACES[kind] for path in home.glob(place)}):
        if path.name.startswith(".") or not _is_secret(path, home, kind):
            continue
        data = read_own(path, remedy="Nothing was changed", max_bytes=_MOST_SECRET + _OVERHEAD, is_secret=True)
        if data is None:
            continue
        if is_sealed := data.startswith(_FIRST):
            if mark is None:
                raise damaged(path, f"is sealed, and there is no {FILE} that says how", remedy=_REMEDY)
            data = _opened(data, path, home, mark, key, FileDamaged)
        found[path] = data, is_sealed
    return found


def _changed(home: Path, found: Iterable[Path], changed: Iterable[Path]) -> Changed:
    def names(paths: Iterable[Path]) -> tuple[str, ...]:
        return tuple(str(path.relative_to(home)) for path in paths)

    return Changed(names(found), names(changed))


def _home_of(path: Path, error: Callable[[str], Exception]) -> tuple[Path, _Mark] | None:
    """Finds the home with sealed keys whose secret file lies, or shall lie, at `path`."""
    for home in path.parents[1:3]:
        mark = _mark_of(home, error)
        if mark is not None and _is_secret(path, home, mark.kind):
            return home, mark
    return None


def _is_secret(path: Path, home: Path, kind: Kind) -> bool:
    name = path.relative_to(home).as_posix()
    return name not in NOT_SEALED and any(
        fnmatchcase(name, place) and name.count("/") == place.count("/") for place in PLACES[kind]
    )


def _mark_of(home: Path, error: Callable[[str], Exception] = FileDamaged) -> _Mark | None:
    return read_json(home / FILE, _MARK_FORM, remedy=_REMEDY, error=error, max_bytes=_MAX_MARK)


def _marked(kind: Kind, state: State, salt: bytes, key: bytes) -> _Mark:
    nonce = secrets.token_bytes(_NONCE)
    check = nonce + ChaCha20Poly1305(key).encrypt(nonce, b"", _bound(kind, salt, b"state", state))
    return _Mark(kind=kind, state=state, salt=salt.hex(), check=check.hex())


def _write_mark(home: Path, mark: _Mark) -> None:
    write_private(home / FILE, _MARK_FORM.dump_json(mark, indent=2))


def _key(home: Path, mark: _Mark) -> bytes:
    """The key of a home, by the passphrase that this process is given; made once, and checked each time."""
    salt = bytes.fromhex(mark.salt)
    with _deriving:
        known = _keys.get(salt)
        if known is not None:
            return _checked(home, mark, known, "the one that opened it before")
        found, asked = passphrases.given(), passphrases.PASSPHRASE
        if found is None:
            raise KeysSealed(
                f"the keys of {home} are sealed: set {asked.variable} to a file with their passphrase, or give the "
                f"service the systemd credential {asked.credential} (docs/keys.md)"
            )
        return _keys.setdefault(salt, _opening(home, mark, found[0], f"the one in {found[1]}"))


def _opening(home: Path, mark: _Mark, passphrase: bytes, named: str) -> bytes:
    return _checked(home, mark, passphrases.derive(passphrase, bytes.fromhex(mark.salt)), named)


def _checked(home: Path, mark: _Mark, key: bytes, named: str) -> bytes:
    check = bytes.fromhex(mark.check)
    bound = _bound(mark.kind, bytes.fromhex(mark.salt), b"state", mark.state)
    try:
        ChaCha20Poly1305(key).decrypt(check[:_NONCE], check[_NONCE:], bound)
    except InvalidTag as err:
        raise KeysSealed(
            f"the keys of {home} are sealed with another passphrase than {named}, or {FILE} was changed"
        ) from err
    return key


def _sealed(data: bytes, path: Path, home: Path, mark: _Mark, key: bytes) -> bytes:
    salt, nonce = bytes.fromhex(mark.salt), secrets.token_bytes(_NONCE)
    bound = _bound(mark.kind, salt, b"file", _place(path, home))
    return _FIRST + salt + nonce + ChaCha20Poly1305(key).encrypt(nonce, data, bound)


def _open(data: bytes, path: Path, home: Path, mark: _Mark, error: Callable[[str], Exception]) -> bytes:
    return _opened(data, path, home, mark, _key(home, mark), error)


def _opened(data: bytes, path: Path, home: Path, mark: _Mark, key: bytes, error: Callable[[str], Exception]) -> bytes:
    salt, rest = bytes.fromhex(mark.salt), data[len(_FIRST) :]
    remedy = f"Restore it from a backup of this home, with {FILE}"
    if len(rest) < _SALT + _NONCE + _TAG:
        raise damaged(path, "is sealed and was cut short", remedy=remedy, error=error)
    if rest[:_SALT] != salt:
        raise damaged(
            path, "was sealed in another home, or before this one was sealed anew", remedy=remedy, error=error
        )
    nonce, body = rest[_SALT : _SALT + _NONCE], rest[_SALT + _NONCE :]
    try:
        return ChaCha20Poly1305(key).decrypt(nonce, body, _bound(mark.kind, salt, b"file", _place(path, home)))
    except InvalidTag as err:
        problem = "is sealed and was cut short or changed, or is another file of this home"
        raise damaged(path, problem, remedy=remedy, error=error) from err


def _place(path: Path, home: Path) -> str:
    place = path.relative_to(home).with_suffix("")
    if path.suffix == ".key":  # of a CA that comes next, as of a key
        place = place.with_name(place.name.removesuffix(".next"))
    return place.as_posix()


def _bound(kind: Kind, salt: bytes, use: bytes, name: str) -> bytes:
    """What a tag covers beside the data; no part of it holds a line break but the salt, which has one length."""
    return b"\n".join([_FIRST.strip(), salt, kind.encode(), use, name.encode()])
