"""Reads a table of public things, of which a space is made, and builds it.

The table is a CSV file of the columns `thing`, `name` and `file`: a row with a name alone gives the thing a name; one
with a file alone, a PNG, a picture; one with a name and a file, a WAV, says that the sound says this name. Files lie in
the folder `files` beside the table. A row that stands twice is drawn twice as often. A row with `N.class` for a file,
which lies nowhere, says that the thing is what class N of an imported eye shows; other eyes pass it over.

Legend: `K` all pictures or sounds, `H`, `W` pixels, `C` colours, `S` samples.
"""

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..backbones import checkpoints
from ..errors import InvalidPicture, InvalidSound, InvalidSpace
from ..structure import pictures, sounds
from . import encoders
from .space import SpaceSizes, read_file, save_space
from .states import FrozenReader, layers_of
from .training import Encoders, PublicThings, SpaceTrainingConfig, train_space

COLUMNS = ("thing", "name", "file")
FILES = "files"
MOST_ROWS, MOST_NAME = 200_000, 500  # rows of a table, letters of a name
_STATES = 6  # of the backbone, that a name is read by: the embedding's, the last, and some between
_AXES = 512
_WHITENING = 0.25  # found on other held-out things than those of the figures in docs/search.md
_CLASS = re.compile(r"[0-9]{1,3}\.class")


@dataclass(frozen=True, slots=True)
class Built:
    """The hash of a space just built, and counts of what it was made of."""

    hash: str
    names: int
    pictures: int
    sounds: int


@dataclass(slots=True)
class PublicTable:
    """The rows of a table, as numbers and names of files."""

    names: dict[str, int] = field(default_factory=dict)  # each name, and its number
    things: dict[str, list[int]] = field(default_factory=dict)  # each thing's names
    pictures: list[tuple[str, str]] = field(default_factory=list)  # thing and file
    sounds: list[tuple[str, str]] = field(default_factory=list)  # name and file
    classes: list[tuple[int, str]] = field(default_factory=list)  # class of an imported eye, and thing


def build_space(
    table: Path,
    directory: Path,
    backbone: Path,
    *,
    config: SpaceTrainingConfig | None = None,
    sizes: dict[str, int] | None = None,
    eye: str | None = None,
    ear: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Built:
    """Trains a space on a table of public things and writes it into a folder.

    Args:
        table: every row of it must be public: nothing is charged, and nothing is noised.
        directory: must not exist.
        backbone: folder of an imported model, which reads names and stays as it is.
        config: of the training; None: its defaults.
        sizes: of `SpaceSizes`, where they are to be others.
        eye: `efficientnet-lite0`, an eye that was trained before; None trains one.
        ear: `whisper-base`, or the folder of a Whisper checkpoint; None trains an ear.
        progress: called with steps of training done and in all.

    Raises:
        FileExistsError: the folder exists.
        InvalidBackbone: the backbone is broken.
        InvalidPretraining: there is too little to train on.
        InvalidSpace: the table or a file of it cannot be read, or the folder of the ear.
        SourceMissing: the weights of an eye or an ear are not installed.
    """
    if directory.exists():
        raise FileExistsError(f"{directory} exists already")
    read = read_table(table)
    digest = checkpoints.content_hash(backbone)
    layers = layers_of(backbone)
    reads = tuple(sorted({round(part * layers / (_STATES - 1)) for part in range(_STATES)}))
    reader = FrozenReader(backbone, reads, expected_hash=digest)
    own: dict[str, Any] = {"axes": min(_AXES, reader.width)} | (sizes or {})
    wanted = SpaceSizes(backbone=digest, reads=reads, states=reader.width, **own)
    imported = Encoders()
    if eye is not None:
        imported = replace(imported, eye=encoders.read_eye(eye))
        wanted = wanted.model_copy(update={"imported_eye": eye, "side": encoders.SIDE})
    if ear is not None:
        heard, heard_by = encoders.read_ear(ear, wanted.rate, wanted.seconds)
        imported = replace(imported, ear=heard)
        compared = {"kept_names": len(read.names), "whitening": _WHITENING}
        wanted = wanted.model_copy(update={"imported_ear": heard_by} | compared)
    public = things_of(read, table.parent / FILES, wanted, reader)
    space = train_space(public, wanted, config or SpaceTrainingConfig(), progress, encoders=imported)
    found = save_space(space, directory)
    return Built(found, len(read.names), len({file for _, file in read.pictures}), len({f for _, f in read.sounds}))


def read_table(path: Path) -> PublicTable:
    """Reads the rows of a table.

    Raises:
        InvalidSpace: it is no such table.
    """
    found = PublicTable()
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, strict=True)
            if tuple(next(rows, ())) != COLUMNS:
                raise InvalidSpace(f"{path}: the first line must be {','.join(COLUMNS)}")
            for number, row in enumerate(rows, 2):
                if number > MOST_ROWS + 1:
                    raise InvalidSpace(f"{path}: more than {MOST_ROWS:,} rows")
                if problem := _added(found, row):
                    raise InvalidSpace(f"{path}: line {number} {problem}")
    except (OSError, UnicodeDecodeError, csv.Error) as err:
        raise InvalidSpace(f"{path}: cannot be read as CSV in UTF-8 ({err})") from None
    return found


def things_of(table: PublicTable, folder: Path, sizes: SpaceSizes, reader: FrozenReader) -> PublicThings:
    """Reads the files of a table, and its names by the backbone.

    Raises:
        InvalidSpace: a file is missing, or none that is read; the message names it.
    """
    number = {thing: place for place, thing in enumerate(table.things)}
    layout, heard = sizes.pictures, sizes.sounds
    seen = list(dict.fromkeys(file for _, file in table.pictures))
    said = list(dict.fromkeys(file for _, file in table.sounds))
    return PublicThings(
        states_GE=reader.states(list(table.names)),
        names_of=list(table.things.values()),
        pictures_KHWC=_decoded(folder, seen, lambda files: pictures.decode_colours(files, layout.size)),
        shown=_pairs(seen, [(file, number[thing]) for thing, file in table.pictures]),
        sounds_KS=_decoded(folder, said, lambda files: sounds.decode(files, heard)),
        said=_pairs(said, [(file, table.names[name]) for name, file in table.sounds]),
        classes=np.array([(own, number[thing]) for own, thing in table.classes], dtype=np.int64).reshape(-1, 2),
    )


def _decoded(folder: Path, names: Sequence[str], decode: Callable[[Sequence[bytes]], np.ndarray]) -> np.ndarray:
    """Decodes files one by one, so that the one that cannot be is named."""
    found = decode([])
    found = np.empty((len(names), *found.shape[1:]), dtype=found.dtype)
    for place, name in enumerate(names):
        try:
            found[place] = decode([read_file(folder / name, pictures.MOST_BYTES)])[0]
        except (InvalidPicture, InvalidSound) as err:
            raise InvalidSpace(f"{folder / name} {err}") from None
    return found


def _pairs(files: Sequence[str], rows: Sequence[tuple[str, int]]) -> np.ndarray:
    """int64 [rows, 2], the number of a file, and what it shows or says."""
    place = {name: number for number, name in enumerate(files)}
    return np.array([(place[file], own) for file, own in rows], dtype=np.int64).reshape(-1, 2)


def _added(found: PublicTable, row: list[str]) -> str:
    """Adds a row; returns what is wrong with it, or an empty text."""
    if len(row) != len(COLUMNS):
        return f"has {len(row)} cells instead of {len(COLUMNS)}"
    thing, name, file = row
    if not thing or not thing.isprintable():
        return "names no thing"
    if len(name) > MOST_NAME or not name.isprintable() or name != name.strip():
        return f"has a name that is no printable text of at most {MOST_NAME} letters without blanks around it"
    if file and (Path(file).name != file or file.startswith(".")):
        return "has a file that is no plain name"
    kind = Path(file).suffix.lower() if file else ""
    if (bool(name), kind) not in ((True, ""), (True, ".wav"), (False, ".png"), (False, ".class")):
        return "has neither a name alone, nor a PNG or a class alone, nor a name and a WAV"
    if kind == ".class" and not (_CLASS.fullmatch(file) and int(Path(file).stem) < encoders.CLASSES):
        return f"has a class that is no number below {encoders.CLASSES}"
    own = found.things.setdefault(thing, [])
    if name:
        number = found.names.setdefault(name, len(found.names))
        if number not in own:
            own.append(number)
    if kind == ".png":
        found.pictures.append((thing, file))
    if kind == ".wav":
        found.sounds.append((name, file))
    if kind == ".class":
        found.classes.append((int(Path(file).stem), thing))
    return ""
