"""Searches a site's own archive, a folder of pictures, sounds and texts, by the points of a space; nothing leaves it.

An index holds the point of each file. It says as much about the records as they do themselves, nearly: it is written
for its owner alone and belongs where the archive does. Whose bytes have not changed since is not embedded again.

Legend: `N` files, `D` width of the space.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ...models.errors import InvalidPicture, InvalidSound
from ...models.space.embedding import Embedder
from ...models.strict import Digest, StrictModel
from ..errors import ArchiveRefused
from ..files import write_private
from .named_files import read_below

Kind = Literal["picture", "sound", "text"]
KINDS: dict[str, Kind] = {".png": "picture", ".wav": "sound", ".txt": "text"}  # by the end of a file's name
MOST_FILES, MOST_TEXT = 100_000, 2**16  # files of an archive, bytes of a text
_MOST_INDEX = 2**29  # bytes
_AT_ONCE = 64  # files
_FACTS, _POINTS = "archive", "points"


class Entry(StrictModel):
    """A file of the archive: its name below the folder, its kind, and the SHA-256 of its bytes."""

    name: Annotated[str, Field(min_length=1, max_length=4096)]
    kind: Kind
    sha256: Digest


class _Facts(StrictModel):
    space: Digest
    entries: Annotated[tuple[Entry, ...], Field(max_length=MOST_FILES)]


@dataclass(frozen=True, slots=True)
class Index:
    """The points of an archive's files. Its repr names no file."""

    space: str  # hash of the space
    entries: tuple[Entry, ...]
    points_ND: Tensor

    def __repr__(self) -> str:
        return f"Index({len(self.entries)} files)"


@dataclass(frozen=True, slots=True)
class Indexed:
    """An index that is up to date, and what came of the folder's files."""

    index: Index
    embedded: int  # files that are new or changed
    left_out: dict[str, str]  # by name: why a file has no point


@dataclass(frozen=True, slots=True)
class Found:
    """A file that lies near a question."""

    name: str
    kind: Kind
    likeness: float  # cosine, from -1 to 1; to be compared within a kind alone


def indexed(
    folder: Path,
    embedder: Embedder,
    known: Index | None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Indexed:
    """Reads all files of an archive, and embeds those whose bytes the known index has not.

    Args:
        progress: called with files read and in all.

    Raises:
        ArchiveRefused: the folder cannot be read, or has too many files; or the index is another space's.
        BackboneMismatch: there are new texts, and no backbone is told, or another one than the space's.
    """
    if known is not None and known.space != embedder.hash:
        raise ArchiveRefused("the index was made by another space: name that space, or another file with --index")
    if known is not None and known.points_ND.shape[1] != embedder.width:
        raise ArchiveRefused("the index has points of another width than the space: remove it, and it is made anew")
    points = (
        {} if known is None else dict(zip([(e.kind, e.sha256) for e in known.entries], known.points_ND, strict=True))
    )
    names = list(islice(_names(folder), MOST_FILES + 1))
    if len(names) > MOST_FILES:
        raise ArchiveRefused(f"{folder} holds more than {MOST_FILES:,} files: search its folders one by one")
    entries, left_out, embedded = list[Entry](), dict[str, str](), 0
    for start in range(0, len(names), _AT_ONCE):
        new: dict[Kind, dict[str, bytes]] = {}
        names_of: dict[tuple[Kind, str], list[str]] = {}
        for name in names[start : start + _AT_ONCE]:
            kind = KINDS.get(Path(name).suffix.lower()) if name.isprintable() else None
            data = None if kind is None else read_below(folder, name)
            if kind is None or data is None or (kind == "text" and len(data) > MOST_TEXT):
                left_out[name] = (
                    "is no PNG, WAV or TXT by its name" if kind is None else "cannot be read, or is too large"
                )
                continue
            entry = Entry(name=name, kind=kind, sha256=hashlib.sha256(data).hexdigest())
            entries.append(entry)
            names_of.setdefault((kind, entry.sha256), []).append(name)
            if (kind, entry.sha256) not in points:
                new.setdefault(kind, {})[entry.sha256] = data
        for kind, files in new.items():
            for digest, found in _embedded(embedder, kind, files).items():
                if isinstance(found, str):
                    left_out |= dict.fromkeys(names_of[kind, digest], found)
                else:
                    points[kind, digest] = found
                    embedded += 1
        progress(min(start + _AT_ONCE, len(names)), len(names))
    entries = [entry for entry in entries if entry.name not in left_out]
    if not entries:
        raise ArchiveRefused(f"{folder} holds no file that can be searched: PNG, WAV and TXT are read")
    rows = torch.stack([points[entry.kind, entry.sha256] for entry in entries])
    return Indexed(Index(embedder.hash, tuple(entries), rows), embedded, left_out)


def nearest(index: Index, point_D: Tensor, count: int) -> list[Found]:
    """Lists the `count` files of each kind that are nearest to a point, nearest first; equal ones by name.

    Likenesses are compared within a kind alone: in such a space a text is nearer to any text than to any picture.
    """
    scores = (index.points_ND @ point_D).tolist()
    found = [Found(entry.name, entry.kind, score) for entry, score in zip(index.entries, scores, strict=True)]
    ordered = sorted(found, key=lambda each: (-each.likeness, each.name))
    return [each for kind in KINDS.values() for each in [own for own in ordered if own.kind == kind][:count]]


def write_index(index: Index, path: Path) -> None:
    """Writes an index for its owner alone; the old one stands until the new one is whole."""
    facts = _Facts(space=index.space, entries=index.entries)
    write_private(path, save({_POINTS: index.points_ND.contiguous()}, metadata={_FACTS: facts.model_dump_json()}))


def read_index(path: Path) -> Index | None:
    """Reads an index; None if there is none.

    Raises:
        ArchiveRefused: the file is no index.
    """
    try:
        if not path.exists():
            return None
        if not path.is_file() or path.stat().st_size > _MOST_INDEX:
            raise ArchiveRefused(f"{path} is no file of at most {_MOST_INDEX >> 20} MiB")
        with safe_open(path, framework="pt") as file:
            facts = _Facts.model_validate_json((file.metadata() or {}).get(_FACTS, ""))
            if list(file.keys()) != [_POINTS]:
                raise ArchiveRefused(f"{path} is no index of an archive")
            points_ND: Tensor = file.get_tensor(_POINTS)
    except (OSError, SafetensorError, ValidationError):
        raise ArchiveRefused(f"{path} is no index of an archive, or damaged: remove it, and it is made anew") from None
    if points_ND.ndim != 2 or len(points_ND) != len(facts.entries) or points_ND.dtype != torch.float32:
        raise ArchiveRefused(f"{path} has not one point for each file: remove it, and it is made anew")
    if not bool(points_ND.isfinite().all()):
        raise ArchiveRefused(f"{path} has points that are no numbers: remove it, and it is made anew")
    return Index(facts.space, facts.entries, points_ND)


def question(text: str, embedder: Embedder) -> Tensor:
    """The point [D] of a question: of the file of that name if it ends in .png or .wav, else of the text itself.

    Raises:
        ArchiveRefused: there is no such file, it cannot be read as what its name says, or the text is empty or long.
        BackboneMismatch: it is a text, and no backbone is told, or another one than the space's.
    """
    kind = KINDS.get(Path(text).suffix.lower())
    if kind in ("picture", "sound"):
        path = Path(text)
        data = read_below(path.parent, path.name)
        if data is None:
            raise ArchiveRefused(f"{text} is no file that may be read")
    else:
        kind, data = "text", text.encode(errors="replace")
        if not text.strip() or len(data) > MOST_TEXT:
            raise ArchiveRefused("a question is a text of some words, or the name of a PNG or WAV file")
    try:
        found: Tensor = embedder.of_kind(kind)([data])[0]
    except (InvalidPicture, InvalidSound) as err:
        raise ArchiveRefused(f"{text}: {err}") from None
    return found


def _names(folder: Path) -> Iterator[str]:
    """Names below the folder in their order, without links and what begins with a point."""

    def refuse(err: OSError) -> None:
        raise ArchiveRefused(f"{folder} cannot be read ({err.strerror})") from None

    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and not Path(place, name).is_symlink():
                yield Path(place, name).relative_to(folder).as_posix()


def _embedded(embedder: Embedder, kind: Kind, files: dict[str, bytes]) -> dict[str, Tensor | str]:
    """By digest: the point of a file, or why it has none."""
    embed = embedder.of_kind(kind)
    try:
        return dict(zip(files, embed(list(files.values())), strict=True))
    except (InvalidPicture, InvalidSound):  # one of them: each by itself
        found: dict[str, Tensor | str] = {}
        for digest, data in files.items():
            try:
                found[digest] = embed([data])[0]
            except (InvalidPicture, InvalidSound) as err:
                found[digest] = str(err)
        return found
