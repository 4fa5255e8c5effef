"""One file that holds the files of a home: written once, checked whole before anything of it counts.

    confide-backup-1                                    the format
    {"kind": "node", "made": TIME, "version": VERSION}
    {"path": "keys/identity.key", "bytes": 119}         then so many bytes; and so on for each file
    {"manifest": [{"path": PATH, "bytes": N, "sha256": HASH}, ...]}
    {"sha256": HASH}                                    of all bytes before this line

The sums find accidents. Whoever can change the file can change its sums too, so it is kept where nobody can, or under a
passphrase. Then the file is the line `confide-backup-1 sealed`, a salt of 16 bytes, and all of the above in parts of
64 KiB, each sealed with ChaCha20-Poly1305 under a key that scrypt makes of the passphrase and the salt. The nonce of a
part is its number and whether it is the last one (STREAM: Hoang, Reyhanitabar, Rogaway, Vizar 2015, section 5; age cuts
its files in the same way), so parts that are changed, moved, left out or cut off at the end are refused.

Files have no owner, mode or date in it, and links cannot stand in it.
"""

import hashlib
import io
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Annotated, BinaryIO, Literal, TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from .. import __version__
from ..models.strict import Digest
from . import passphrase as passphrases
from .errors import BackupInvalid, KeysSealed
from .files import move_durably

Kind = Literal["node", "coordinator"]

_FORMAT, _SEALED = b"confide-backup-1\n", b"confide-backup-1 sealed\n"
_MAX_LINE, _MAX_MANIFEST = 4096, 1 << 26  # bytes
_PART = 64 << 10
_SALT, _TAG = passphrases.SALT_BYTES, 16
_STAGING = ".backing-up-"
_OF_THE_DISK = "lost+found"  # in a home that is a disk of its own
_PIECE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_MOST_PIECES = 6
_COPY = 1 << 20
_CUT = "it was cut short, or changed; copy it again"

T = TypeVar("T")

_STRICT = ConfigDict(extra="forbid", strict=True)


@checked(frozen=True, config=_STRICT)
class Head:
    """Says whose home it is, when the backup was made (seconds since 1970), and by which version."""

    kind: Kind
    made: Annotated[float, Field(ge=0, lt=2**40)]
    version: Annotated[str, Field(max_length=64)]


@checked(frozen=True, config=_STRICT)
class _Opening:
    path: Annotated[str, Field(max_length=512)]
    bytes: Annotated[int, Field(ge=0, lt=2**50)]


@checked(frozen=True, config=_STRICT)
class Listed:
    """A file of the archive: its path below the home, its size, its SHA-256."""

    path: Annotated[str, Field(max_length=512)]
    bytes: Annotated[int, Field(ge=0, lt=2**50)]
    sha256: Digest


@checked(frozen=True, config=_STRICT)
class _Manifest:
    manifest: tuple[Listed, ...]


@checked(frozen=True, config=_STRICT)
class _End:
    sha256: Digest


@dataclass(frozen=True)
class Contents:
    """A whole archive, as its manifest lists it."""

    head: Head
    files: tuple[Listed, ...]
    is_sealed: bool

    @property
    def bytes(self) -> int:
        """Bytes of all its files together."""
        return sum(each.bytes for each in self.files)


def read_passphrase(path: Path) -> bytes:
    """Reads the passphrase of a backup from a file that only its owner may read; a line break at the end is left out.

    Raises:
        BackupInvalid: there is none, or it is too short to protect anything.
    """
    return passphrases.read(path, of="a backup", error=BackupInvalid)


def write_archive(
    path: Path, kind: Kind, files: Iterable[tuple[str, Path]], passphrase: bytes | None = None
) -> Contents:
    """Writes files, each with its path below the home, to a new archive of mode 0600.

    Of a file that grows meanwhile as much is taken as it has when its turn comes.

    Raises:
        BackupInvalid: there is something at `path` already, or it or one of the files cannot be used; nothing is left.
    """
    _require_new(path)
    head = Head(kind=kind, made=time.time(), version=__version__)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.unlink(missing_ok=True)  # what a process of that number left when it was killed
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            if passphrase is None:
                listed = _write(out, head, files)
            else:
                with _Sealing(out, passphrase) as sealing:
                    listed = _write(sealing, head, files)
            out.flush()
            os.fsync(out.fileno())
        _require_new(path)
        beside.rename(path)
    except OSError as err:
        raise BackupInvalid(
            f"{err.filename or path} cannot be used for the backup: {err.strerror}. No backup was left"
        ) from err
    finally:
        beside.unlink(missing_ok=True)
    return Contents(head, listed, passphrase is not None)


def files_of(home: Path, patterns: Iterable[str], but: Iterable[str] = ()) -> list[tuple[str, Path]]:
    """Lists the files of a home that fit one of the patterns, without those that are being written.

    Raises:
        BackupInvalid: one is no file, and would be missed.
    """
    found, left_out = {}, set(but)
    for pattern in patterns:
        for path in sorted(home.glob(pattern)):
            name = str(path.relative_to(home))
            if path.name.startswith(".") or name in left_out:
                continue
            if path.exists() and not path.is_file():
                raise BackupInvalid(f"{path} is no file, where a file belongs; no backup was left")
            found[name] = path
    return list(found.items())


def unknown_in(home: Path, taken: Iterable[tuple[str, Path]], left_out: Iterable[str]) -> tuple[str, ...]:
    """Lists the names in a home that are neither in its backup nor left out on purpose."""
    known = {name.partition("/")[0] for name, _ in taken} | {*left_out, _OF_THE_DISK}
    return tuple(sorted({each.name for each in home.iterdir() if not each.name.startswith(".")} - known))


def hold(path: Path, target: Path) -> None:
    """Holds a file as it is now, for files that are written beside their names and renamed: a link to it, or a copy.

    A file that has gone meanwhile is not held.

    Raises:
        BackupInvalid: it cannot be held.
    """
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            os.link(path, target)
        except OSError:  # a disk without links, or the file has gone, which the copy says too
            shutil.copyfile(path, target)
    except FileNotFoundError:  # what it was of has gone on
        return
    except OSError as err:
        raise BackupInvalid(f"{path} cannot be held for the backup: {err.strerror}; no backup was left") from err


def fits(name: str, patterns: Iterable[str]) -> bool:
    """True if a path of an archive fits one of the patterns, which `files_of` takes too."""
    return any(fnmatchcase(name, each) and name.count("/") == each.count("/") for each in patterns)


def read_archive(
    path: Path,
    kind: Kind,
    may_hold: Callable[[str], bool],
    *,
    into: Path | None = None,
    passphrase: bytes | None = None,
) -> Contents:
    """Reads a whole archive and compares every sum; writes its files to the new folder `into`, if one is named.

    Who calls it deletes the folder if anything is raised.

    Args:
        may_hold: tells of a path below the home whether an archive of this kind may hold it.

    Raises:
        BackupInvalid: it is no whole archive of that kind, holds a path that it may not, is not sealed though a
            passphrase is given, or cannot be read or written.
    """
    try:
        with path.open("rb") as source:
            if into is not None and shutil.disk_usage(into).free < os.fstat(source.fileno()).st_size:
                raise BackupInvalid(f"the disk of {into} has no room for what is in {path}")
            first = source.readline(len(_SEALED))
            if first == _SEALED:
                if passphrase is None:
                    raise BackupInvalid(f"{path} is sealed with a passphrase: name its file, --passphrase-file FILE")
                opened = io.BufferedReader(_Opened(source, passphrase, path), _PART)
                return _read(_Summed(opened, path), path, kind, may_hold, into, is_sealed=True)
            if passphrase is not None:  # else whoever changes a sealed backup leaves the seal away
                raise BackupInvalid(
                    f"{path} is not sealed, though a passphrase is named: it may be another file than the one that was "
                    "sealed; without --passphrase-file it is read as it is"
                )
            source.seek(0)
            return _read(_Summed(source, path), path, kind, may_hold, into, is_sealed=False)
    except OSError as err:
        raise BackupInvalid(f"{err.filename or path} cannot be used to restore {path}: {err.strerror}") from err


@contextmanager
def staging(home: Path) -> Iterator[Path]:
    """Gives a folder inside a home for copies of what changes, closed to others and gone at the end.

    It lies in the home and not beside the backup, whose disk may be one that is carried about.

    Raises:
        BackupInvalid: it cannot be made.
    """
    try:
        for old in home.glob(f"{_STAGING}*"):
            if not _lives(old.name.removeprefix(_STAGING)):  # of a backup that was killed
                shutil.rmtree(old, ignore_errors=True)
        folder = home / f"{_STAGING}{os.getpid()}"
        folder.mkdir(mode=0o700)
    except OSError as err:
        raise BackupInvalid(f"{err.filename or home} cannot be used for copies: {err.strerror}") from err
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _lives(pid: str) -> bool:
    if not pid.isdigit() or int(pid) == os.getpid():
        return False
    return Path("/proc", pid).exists()


@contextmanager
def new_home(home: Path) -> Iterator[Path]:
    """Gives a folder inside a new home to make its files in; at the end they are moved to their places, the last last.

    If anything is raised, all that was made is deleted, and a home that was not there is not there.

    Raises:
        BackupInvalid: the home holds files already, or cannot be made.
    """
    making = home / ".restoring"
    was_there = home.exists()
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if others := sorted(each.name for each in home.iterdir() if each.name not in (making.name, _OF_THE_DISK)):
            raise BackupInvalid(f"{home} holds files already, such as {others[0]}; name a new or empty folder")
        if making.is_symlink() or (making.exists() and not making.is_dir()):
            raise BackupInvalid(f"{making} is no folder; nothing was restored")
        shutil.rmtree(making, ignore_errors=True)  # of a restoration that was killed
        making.mkdir(mode=0o700)
    except OSError as err:
        raise BackupInvalid(f"{err.filename or home} cannot be a new home: {err.strerror}") from err
    try:
        yield making
        home.chmod(0o700)
    except BaseException:
        _clear(home, making, was_there)
        raise


def still_sealed(file: Path, making: Path, err: KeysSealed) -> KeysSealed:
    """Makes the error for a backup whose keys were sealed in their home: nobody can check it without the passphrase."""
    said = str(err).replace(str(making), "this home")
    return KeysSealed(f"{file} holds keys that were sealed in their home: {said}. Nothing was restored")


def move_in(making: Path, *, last: str) -> None:
    """Moves what was made to its place in the home around it; the file `last`, without which it is no home, last.

    Raises:
        BackupInvalid: something cannot be moved.
    """
    home = making.parent
    try:
        for each in sorted(making.iterdir(), key=lambda path: path.name == last):
            move_durably(each, home / each.name)
        making.rmdir()
    except OSError as err:
        raise BackupInvalid(f"{err.filename or home} cannot be moved: {err.strerror}; nothing was restored") from err


def _clear(home: Path, making: Path, was_there: bool) -> None:
    """Deletes what a restoration has made; nothing else was in the home."""
    for each in (making, *home.iterdir()):
        if each.name == _OF_THE_DISK:
            continue
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each, ignore_errors=True)
        else:
            each.unlink(missing_ok=True)
    if not was_there:
        home.rmdir()


def _write(out: "BinaryIO | _Sealing | IO[bytes]", head: Head, files: Iterable[tuple[str, Path]]) -> tuple[Listed, ...]:
    whole, listed = hashlib.sha256(), []

    def put(data: bytes) -> None:
        whole.update(data)
        out.write(data)

    put(_FORMAT)
    put(_line(head.__dict__))
    for name, path in files:
        if not _is_path(name):
            raise BackupInvalid(f"{path} has a name that no file of a home has; no backup was left")
        with path.open("rb") as source:
            size, digest = os.fstat(source.fileno()).st_size, hashlib.sha256()
            put(_line({"path": name, "bytes": size}))
            left = size
            while left and (data := source.read(min(left, _COPY))):
                digest.update(data)
                put(data)
                left -= len(data)
            if left:
                raise BackupInvalid(
                    f"{path} became shorter while it was copied; no backup was left. Repeat the command"
                )
        listed.append(Listed(path=name, bytes=size, sha256=digest.hexdigest()))
    put(_line({"manifest": [each.__dict__ for each in listed]}))
    out.write(_line({"sha256": whole.hexdigest()}))
    return tuple(listed)


def _line(value: dict[str, object]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _is_path(name: str) -> bool:
    """True for a path that stays below the home: plain names, no dot in front, no way up."""
    pieces = name.split("/")
    return len(pieces) <= _MOST_PIECES and all(map(_PIECE.fullmatch, pieces))


def _require_new(path: Path) -> None:
    if os.path.lexists(path):
        raise BackupInvalid(f"{path} exists already; name a new file, so that no older backup is lost")


class _Summed:
    """An archive that is read from its beginning, with the sum of what was read."""

    def __init__(self, source: "IO[bytes] | io.BufferedReader", path: Path) -> None:
        self._source, self._path, self._sum = source, path, hashlib.sha256()

    def line(self, most: int = _MAX_LINE) -> bytes:
        line = self._source.readline(most)
        if not line.endswith(b"\n"):
            raise BackupInvalid(f"{self._path} is no whole backup: {_CUT}")
        return line

    def took(self, data: bytes) -> None:
        self._sum.update(data)

    def some(self, most: int) -> bytes:
        data = self._source.read(min(most, _COPY))
        if not data:
            raise BackupInvalid(f"{self._path} is no whole backup: {_CUT}")
        self.took(data)
        return data

    def is_over(self) -> bool:
        return not self._source.read(1)

    @property
    def digest(self) -> str:
        return self._sum.hexdigest()


def _read(
    source: _Summed, path: Path, kind: Kind, may_hold: Callable[[str], bool], into: Path | None, *, is_sealed: bool
) -> Contents:
    line = source.line()
    if line != _FORMAT:
        raise BackupInvalid(f"{path} is no backup, or a later version's: it does not say {_FORMAT.decode().strip()}")
    source.took(line)
    head = _taken(source, path, Head)
    if head.kind != kind:
        raise BackupInvalid(f"{path} is the backup of a {head.kind}, not of a {kind}")
    found: list[Listed] = []
    known: set[str] = set()
    while True:
        line = source.line(_MAX_MANIFEST)
        source.took(line)
        if line.startswith(b'{"manifest"'):
            break
        opening = _parsed(path, line, _Opening)
        if not _is_path(opening.path) or not may_hold(opening.path) or opening.path in known:
            raise BackupInvalid(f"{path} holds a file that no backup of a {kind} holds; nothing was restored")
        known.add(opening.path)
        found.append(_extract(source, opening, into))
    if _parsed(path, line, _Manifest).manifest != tuple(found):
        raise BackupInvalid(f"{path} does not hold what its manifest says: {_CUT}")
    digest = source.digest
    if _parsed(path, source.line(), _End).sha256 != digest or not source.is_over():
        raise BackupInvalid(f"{path} does not have the sum that it names: {_CUT}")
    return Contents(head, tuple(found), is_sealed)


def _extract(source: _Summed, opening: _Opening, into: Path | None) -> Listed:
    digest, left = hashlib.sha256(), opening.bytes
    target = None if into is None else into / opening.path
    if into is not None and target is not None:
        _make_folders(into, target.parent)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    else:
        descriptor = os.open(os.devnull, os.O_WRONLY)
    with os.fdopen(descriptor, "wb") as out:
        while left:
            data = source.some(left)
            digest.update(data)
            out.write(data)
            left -= len(data)
        out.flush()
        if target is not None:
            os.fsync(out.fileno())
    return Listed(path=opening.path, bytes=opening.bytes, sha256=digest.hexdigest())


def _taken(source: _Summed, path: Path, form: type[T]) -> T:
    line = source.line()
    source.took(line)
    return _parsed(path, line, form)


def _make_folders(top: Path, folder: Path) -> None:
    """Makes the folders below `top` down to `folder`, each closed to others."""
    for each in [*reversed(folder.relative_to(top).parents), folder.relative_to(top)]:
        (top / each).mkdir(mode=0o700, exist_ok=True)


def _parsed(path: Path, line: bytes, form: type[T]) -> T:
    try:
        return TypeAdapter(form).validate_json(line, strict=True)
    except ValidationError as err:
        raise BackupInvalid(f"{path} has a line that no backup has: {_CUT}") from err


def _key(passphrase: bytes, salt: bytes) -> ChaCha20Poly1305:
    return ChaCha20Poly1305(passphrases.derive(passphrase, salt))


def _nonce(number: int, *, is_last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([is_last])


class _Sealing:
    """Seals what is written, part by part; the last part is marked as such when the block ends well."""

    def __init__(self, out: IO[bytes], passphrase: bytes) -> None:
        self._out, salt = out, secrets.token_bytes(_SALT)
        self._key, self._kept, self._number = _key(passphrase, salt), bytearray(), 0
        out.write(_SEALED + salt)

    def write(self, data: bytes) -> None:
        self._kept += data
        while len(self._kept) > _PART:  # a last part is kept back, however long
            self._seal(bytes(self._kept[:_PART]), is_last=False)
            del self._kept[:_PART]

    def _seal(self, part: bytes, *, is_last: bool) -> None:
        self._out.write(self._key.encrypt(_nonce(self._number, is_last=is_last), part, _SEALED))
        self._number += 1

    def __enter__(self) -> "_Sealing":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._seal(bytes(self._kept), is_last=True)


class _Opened(io.RawIOBase):
    """What was sealed, opened part by part; no byte of a part is given before its tag was compared."""

    def __init__(self, source: IO[bytes], passphrase: bytes, path: Path) -> None:
        self._source, self._path, self._number = source, path, 0
        self._key = _key(passphrase, source.read(_SALT).ljust(_SALT, b"\0"))
        self._next, self._part = source.read(_PART + _TAG), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        if not self._part:
            self._part = self._open()
        taken = self._part[: len(buffer)]
        buffer[: len(taken)] = taken
        self._part = self._part[len(taken) :]
        return len(taken)

    def _open(self) -> bytes:
        if self._number and not self._next:
            return b""
        sealed, self._next = self._next, self._source.read(_PART + _TAG)
        try:
            part = self._key.decrypt(_nonce(self._number, is_last=not self._next), sealed, _SEALED)
        except (InvalidTag, ValueError) as err:
            why = "the passphrase is another one, or the file was changed" if not self._number else _CUT
            raise BackupInvalid(f"{self._path} cannot be opened: {why}") from err
        self._number += 1
        return part
