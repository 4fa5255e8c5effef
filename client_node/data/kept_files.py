"""Keeps a study's states of records in files: the states that enter its model's lowest adapted layer.

PRIVATE: kept states are the records in another form. They lie under the node's home, readable by its user alone, in a
folder for each study, and are deleted when no run of the study is under way any more, when its approval is gone, or by
`client-node study forget`. States of records that are no longer in the table go when the table is next read. A study's
folder is made when filling begins, and never by what is added later: so nothing is added to what was deleted meanwhile.

A record is found by a keyed mark of all that its states follow from: its tokens, the backbone, the layer, and what
computes here. The key is random and lies beside the site's other keys, so that names and marks tell nothing. States
carry a keyed checksum too: what is damaged, cut short or exchanged is computed anew, and never trained on.

A file holds, behind a first line that names its format, the number of records, each one's mark and bytes, a checksum of
all that, and then each record's states with their own.
"""

import hmac
import logging
import re
import secrets
import shutil
import stat
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

from ..errors import FileDamaged, NoRoom
from ..files import locked, write_private
from ..secret_files import read_secret, write_secret

logger = logging.getLogger(__name__)

FOLDER = "kept-states"
KEY_FILE = Path("keys") / "kept-states.key"
FILE_BYTES = 2**24  # after which a file is closed, and the next begun
KEY_BYTES, MARK_BYTES, SUM_BYTES = 32, 16, 32
_FIRST = b"confide kept states 1\n"
_COUNT, _ENTRY = struct.Struct("<I"), struct.Struct(f"<{MARK_BYTES}sQ")  # records; mark and bytes of one
_SPARE = 2**28  # bytes of the disk that are left free
_REMEDY = "It is made anew, and so is what was kept under it"
_NAME = re.compile("[0-9a-f]{32}")  # of a study's folder; whatever else lies there is not ours


class StateStore(Protocol):
    """States by mark, whole or not at all."""

    @property
    def key(self) -> bytes:
        """The key that marks are made with."""
        ...

    def retain(self, wanted: Collection[bytes]) -> None:
        """Deletes whatever holds states of other marks than these."""
        ...

    def marks(self) -> Collection[bytes]:
        """The marks of which states are kept."""
        ...

    def begin(self) -> None:
        """Makes the place, if it is not there, before states are added; raises OSError if the disk does not take it."""
        ...

    def add(self, states: Mapping[bytes, bytes]) -> bool:
        """Keeps the states of new marks; False if the place was deleted after `begin`. Raises as `begin` does."""
        ...

    def read(self, mark: bytes) -> bytes | None:
        """Returns the states of a mark; None if they are not there any more, or not what was kept."""
        ...


class StatesInMemory:
    """States of an audit, which end with it."""

    def __init__(self) -> None:
        self._states: dict[bytes, bytes] = {}
        self.key = secrets.token_bytes(KEY_BYTES)

    def retain(self, wanted: Collection[bytes]) -> None:
        """See `StateStore`."""
        self._states = {mark: states for mark, states in self._states.items() if mark in wanted}

    def marks(self) -> Collection[bytes]:
        """See `StateStore`."""
        return self._states.keys()

    def begin(self) -> None:
        """See `StateStore`."""

    def add(self, states: Mapping[bytes, bytes]) -> bool:
        """See `StateStore`."""
        self._states |= states
        return True

    def read(self, mark: bytes) -> bytes | None:
        """See `StateStore`."""
        return self._states.get(mark)


@dataclass(frozen=True, slots=True)
class _Place:
    path: Path
    offset: int
    size: int


class StatesOnDisk:
    """The kept states of one study's records, in files under the node's home."""

    def __init__(self, home: Path, study_hash: str) -> None:
        """Reads the files; deletes those that are damaged or were not finished.

        All is read, so that what is damaged is found now: found at a step, it would tell that a record was drawn.

        Raises:
            OSError: the key cannot be written.
        """
        self.key, self._home = _key(home), home
        self._folder = home / FOLDER / _name(self.key, study_hash)
        self._places: dict[bytes, _Place] = {}
        for path in sorted(self._folder.iterdir()) if self._folder.exists() else ():
            places = self._listed(path)
            if places is None:
                logger.warning("a file of kept states was damaged or not finished; its states are computed anew")
                path.unlink(missing_ok=True)
            self._places |= places or {}

    def retain(self, wanted: Collection[bytes]) -> None:
        """See `StateStore`; a file goes as a whole, as nothing is cut out of it."""
        stale = {place.path for mark, place in self._places.items() if mark not in wanted}
        for path in stale:
            path.unlink(missing_ok=True)
        self._places = {mark: place for mark, place in self._places.items() if place.path not in stale}

    def marks(self) -> Collection[bytes]:
        """See `StateStore`; not those of files that somebody has deleted meanwhile."""
        gone = {path for path in {place.path for place in self._places.values()} if not path.exists()}
        self._places = {mark: place for mark, place in self._places.items() if place.path not in gone}
        return self._places.keys()

    def begin(self) -> None:
        """See `StateStore`."""
        with locked(self._home / KEY_FILE):
            for folder in (self._folder.parent, self._folder):
                folder.mkdir(exist_ok=True, mode=0o700)

    def add(self, states: Mapping[bytes, bytes]) -> bool:
        """See `StateStore`; one file takes them all."""
        if not states:
            return True
        head = _FIRST + _COUNT.pack(len(states)) + b"".join(_ENTRY.pack(mark, len(s)) for mark, s in states.items())
        parts = [head, self._sum(b"", head)]
        for mark, data in states.items():
            parts += [data, self._sum(mark, data)]
        path = self._folder / secrets.token_hex(8)
        with locked(self._home / KEY_FILE):  # that a deletion, also by another process, comes before or after
            if not self._folder.is_dir():
                return False
            write_private(path, b"".join(parts))
        self._places |= self._listed(path) or {}
        return True

    def read(self, mark: bytes) -> bytes | None:
        """See `StateStore`."""
        place = self._places.get(mark)
        if place is None:
            return None
        try:
            with place.path.open("rb") as file:
                file.seek(place.offset)
                data = file.read(place.size + SUM_BYTES)
        except OSError:
            data = b""
        if self._is_kept(mark, memoryview(data), 0, place.size):
            return data[: place.size]
        return None

    def _listed(self, path: Path) -> dict[bytes, _Place] | None:
        """Reads which states a file holds, and where; None if it is damaged."""
        try:
            data = memoryview(path.read_bytes())
        except OSError:
            return None
        entries = len(_FIRST) + _COUNT.size
        if len(data) < entries or data[: len(_FIRST)] != _FIRST:
            return None
        (count,) = _COUNT.unpack(data[len(_FIRST) : entries])
        end = entries + count * _ENTRY.size
        if not self._is_kept(b"", data, 0, end):
            return None
        places, offset = {}, end + SUM_BYTES
        for mark, size in _ENTRY.iter_unpack(data[entries:end]):
            if not self._is_kept(mark, data, offset, size):
                return None
            places[mark] = _Place(path, offset, size)
            offset += size + SUM_BYTES
        return places if offset == len(data) else None

    def _is_kept(self, mark: bytes, data: memoryview, offset: int, size: int) -> bool:
        stated = data[offset + size : offset + size + SUM_BYTES]
        return hmac.compare_digest(stated, self._sum(mark, data[offset : offset + size]))

    def _sum(self, mark: bytes, data: bytes | memoryview) -> bytes:
        digest = blake2b(mark, key=self.key, digest_size=SUM_BYTES, person=b"states" if mark else b"file")
        digest.update(data)
        return digest.digest()


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptStates:
    """The place for the kept states of one study, and how much they may take."""

    home: Path | None  # the node's; None keeps them in memory
    study_hash: str
    most_bytes: int

    def store(self) -> StateStore:
        """Opens the place; raises as `StatesOnDisk` does."""
        return StatesInMemory() if self.home is None else StatesOnDisk(self.home, self.study_hash)

    def require_room(self, num_bytes: int, *, has_all: bool) -> None:
        """Checks that states of so many bytes may be kept.

        Args:
            has_all: True if they are there already.

        Raises:
            NoRoom: they take more than the limit, or would leave the disk too little.
        """
        if num_bytes > self.most_bytes:
            raise NoRoom(f"they take more than limits.kept_states_bytes = {self.most_bytes} of site.toml")
        if self.home is not None and not has_all and num_bytes + _SPARE > shutil.disk_usage(self.home).free:
            raise NoRoom(f"with them the disk would have less than {_SPARE >> 20} MiB left")


def forget(home: Path, study_hash: str) -> int:
    """Deletes the kept states of a study; returns how many bytes they took.

    Raises:
        FileDamaged: some of them could not be deleted.
    """
    if not (home / FOLDER).exists():
        return 0
    place = home / FOLDER / _name(_key(home), study_hash)
    with locked(home / KEY_FILE):
        size = _remove(place)
    if _is_there(place):
        raise FileDamaged(f"{place} could not be deleted whole: it holds states of records. Delete it by hand")
    return size


def keep_only(home: Path, studies: Collection[str]) -> None:
    """Deletes the kept states of all other studies than these, by hash; the log names what could not be deleted."""
    if not (home / FOLDER).exists():
        return
    key = _key(home)
    names = {_name(key, study) for study in studies}
    with locked(home / KEY_FILE):
        _remove_all(home / FOLDER, but=names)


def _remove_all(folder: Path, *, but: Collection[str] = ()) -> None:
    """Deletes the folders of studies; `folder` may be a link to another disk, where other things lie too."""
    for place in folder.iterdir() if folder.is_dir() else ():
        if _NAME.fullmatch(place.name) and place.name not in but:
            _remove(place)


def _remove(place: Path) -> int:
    """Deletes a folder with all in it, a file, or a link but not what it leads to; returns bytes of deleted files.

    What cannot be deleted is logged.
    """
    size = 0
    try:
        found = place.lstat()
        if stat.S_ISDIR(found.st_mode):
            size = sum(_remove(inner) for inner in place.iterdir())
            place.rmdir()
        else:
            place.unlink()
            size = found.st_size
    except FileNotFoundError:
        pass
    except OSError as err:
        logger.error("kept states could not be deleted, delete them by hand: %s", err)
    return size


def _is_there(place: Path) -> bool:
    return place.exists() or place.is_symlink()


def _key(home: Path) -> bytes:
    """Reads the key. If it is missing or damaged, it is made anew: what was kept is never found again, and deleted."""
    path = home / KEY_FILE
    with locked(path):
        try:
            key = read_secret(path, remedy=_REMEDY, max_bytes=KEY_BYTES)
        except FileDamaged as err:
            logger.warning("%s", err)
            key = None
        if key is None or len(key) != KEY_BYTES:
            _remove_all(home / FOLDER)
            key = secrets.token_bytes(KEY_BYTES)
            write_secret(path, key)
    return key


def _name(key: bytes, study_hash: str) -> str:
    return blake2b(study_hash.encode(), key=key, digest_size=16, person=b"study").hexdigest()
