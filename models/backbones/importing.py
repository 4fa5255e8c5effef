"""Imports a published checkpoint of a known family: checks it, copies what is needed, unconverted, in one rename.

What is copied is copied byte by byte and hashed on the way. A link to the source would be faster; but a backbone is
known by its hash, and whoever changed the source later would change the backbone with it.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..directories import new_directory
from ..errors import InvalidBackbone
from . import checkpoints, soundness
from .checkpoints import CHAT_TEMPLATE, INDEX, ORIGIN, Claims, Origin
from .loading import Description, describe
from .published import LEGACY_CHAT_TEMPLATE, Published, read_published
from .smollm2 import import_smollm2, import_smollm2_moe

_BLOCK = 2**23  # bytes copied at a time
_NOT_STATED = "not stated"
_SPARE = 2**28  # bytes that stay free on the disk

Progress = Callable[[int, int], None]  # bytes done, and in all


@dataclass(frozen=True, slots=True)
class Imported:
    """A checkpoint that was imported."""

    description: Description
    copied: tuple[str, ...]  # names of files
    left: tuple[str, ...]  # names in the source that are not needed; folders end in a slash


@dataclass(frozen=True, slots=True)
class Checked:
    """A checkpoint that could be imported."""

    family: str
    copied: tuple[str, ...]
    left: tuple[str, ...]
    weight_bytes: int


def import_checkpoint(
    source: Path, directory: Path, *, claims: Claims | None = None, progress: Progress | None = None
) -> Imported:
    """Writes a checkpoint that `loading.load_text` reads; all that needs no weight is checked first, within seconds.

    Weights are read three times: copied and hashed, looked at, and hashed once more as they lie in the new folder.

    Args:
        source: folder of safetensors, as transformers or the Hugging Face Hub writes it.
        directory: must not exist.
        claims: of the origin; they come before those that the source makes.

    Raises:
        InvalidBackbone: the source is none of a known family, is damaged, or its files disagree; nothing was written.
        FileExistsError: `directory` exists already.
    """
    with _told_of(source) as places:
        found = read_published(source)
        with new_directory(Path(directory)) as partial:
            places.append(partial)
            headers, digests = _prepare(found, partial)
            _refuse_full(found, partial)
            ticker = _Ticker(progress, 2 * _weight_bytes(found))
            for name in found.weights:
                digests[name] = _copy(found, name, partial / name, ticker)
            copies = {name: partial / name for name in found.weights}
            if soundness.read_headers(copies) != headers:
                raise InvalidBackbone("the source changed while it was copied; import it again")
            soundness.check_finite(copies, ticker)
            checkpoints.write_json(partial / ORIGIN, _origin(found, digests, claims or Claims()).to_dict())
            description = describe(partial)
    return Imported(description, tuple(sorted({*digests, ORIGIN})), _left(found, digests))


def import_recipe(name: str, directory: Path) -> float | None:
    """Writes a model that comes in a Python package, and reads it back.

    Args:
        name: smollm2; or smollm2-moe, the same rewritten as a DeepSeek-V3 of experts.
        directory: must not exist.

    Returns:
        The largest difference of a logit to the source's, of a model that was rewritten.

    Raises:
        InvalidBackbone: there is no such model, or what was written is not the source; nothing was written.
        SourceMissing: a package is not installed, or its file is another.
        FileExistsError: `directory` exists already.
    """
    if name == "smollm2":
        import_smollm2(directory)
        return None
    if name == "smollm2-moe":
        return import_smollm2_moe(directory).logit_difference
    raise InvalidBackbone(f"there is no model {name[:40]!r} in a package; there are smollm2 and smollm2-moe")


def check_checkpoint(source: Path, *, progress: Progress | None = None) -> Checked:
    """Does all the checks of `import_checkpoint` and writes nothing that stays.

    Raises:
        InvalidBackbone: as `import_checkpoint`.
    """
    with _told_of(source) as places, tempfile.TemporaryDirectory(prefix="confide-import-") as folder:
        partial = Path(folder)
        places.append(partial)
        found = read_published(source)
        _, digests = _prepare(found, partial)
        family, _ = checkpoints.read_config(partial)
        size = _weight_bytes(found)
        ticker = _Ticker(progress, 2 * size)
        for name in found.weights:
            digests[name] = _copy(found, name, Path(os.devnull), ticker)
        soundness.check_finite({name: found.files[name] for name in found.weights}, ticker)
    return Checked(family.name, tuple(sorted({*digests, ORIGIN})), _left(found, digests), size)


def _prepare(found: Published, folder: Path) -> tuple[dict[str, soundness.Header], dict[str, str]]:
    """Copies all but the weights and checks all that needs no weight; returns headers, and SHA-256 of the copies."""
    digests = {
        name: _copy(found, name, folder / name)
        for name in found.files
        if name not in found.weights and name != LEGACY_CHAT_TEMPLATE
    }
    if LEGACY_CHAT_TEMPLATE in found.files:
        digests |= _template_of(checkpoints.read_json(found.files[LEGACY_CHAT_TEMPLATE]), folder)
    family, config = checkpoints.read_config(folder)
    weights = {name: found.files[name] for name in found.weights}
    headers = soundness.read_headers(weights)
    if (folder / INDEX).exists():
        index = checkpoints.read_json(folder / INDEX)
        soundness.check_index(index, headers, soundness.bytes_of(headers, weights))
    words = soundness.check_tensors(folder, family, config, headers)
    soundness.check_reading(folder, words)
    return headers, digests


def _template_of(stated: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Writes the template of a processor's file to where tokenizers look for it, unless the tokenizer has its own."""
    settings = folder / "tokenizer_config.json"
    if settings.exists() and checkpoints.read_json(settings).get("chat_template") is not None:
        return {}
    template = stated.get("chat_template")
    if not isinstance(template, str):
        raise InvalidBackbone(f"{LEGACY_CHAT_TEMPLATE} has no text under chat_template")
    written = template.encode()
    (folder / CHAT_TEMPLATE).write_bytes(written)
    return {CHAT_TEMPLATE: hashlib.sha256(written).hexdigest()}


def _copy(found: Published, name: str, to: Path, ticker: "_Ticker | None" = None) -> str:
    """Copies a file and returns the SHA-256 of what was copied. Raises `InvalidBackbone` if it must have another."""
    hashed = hashlib.sha256()
    with found.files[name].open("rb") as file, to.open("wb") as copy:
        while block := file.read(_BLOCK):
            hashed.update(block)
            copy.write(block)
            if ticker is not None:
                ticker(len(block))
    digest = hashed.hexdigest()
    for who, stated in found.stated[name].items():
        if digest != stated:
            raise InvalidBackbone(f"{name} has SHA-256 {digest}, {who} says {stated}: download it again")
    return digest


def _origin(found: Published, digests: Mapping[str, str], claims: Claims) -> Origin:
    said = claims.or_else(found.claims)
    is_written = CHAT_TEMPLATE in digests and CHAT_TEMPLATE not in found.files
    written = [f"{LEGACY_CHAT_TEMPLATE} written as {CHAT_TEMPLATE}"] if is_written else []
    at = f", revision {found.revision}" if found.revision else ""
    return Origin(
        name=said.name or _NOT_STATED,
        publisher=said.publisher or _NOT_STATED,
        licence=said.licence or _NOT_STATED,
        url=said.url or _NOT_STATED,
        source=f"{len(digests)} published files{at}; their hash is that of this folder without {ORIGIN}",
        source_sha256=checkpoints.hash_of(digests),
        changes="; ".join([*([found.changes] if found.changes else []), *written]) or "none",
    )


def _left(found: Published, digests: Mapping[str, str]) -> tuple[str, ...]:
    used = {*digests} | ({LEGACY_CHAT_TEMPLATE} if CHAT_TEMPLATE in digests else set())
    return tuple(sorted({*found.left, *found.files} - used))


def _weight_bytes(found: Published) -> int:
    return sum(found.files[name].stat().st_size for name in found.weights)


def _refuse_full(found: Published, partial: Path) -> None:
    free, needed = shutil.disk_usage(partial).free, _weight_bytes(found) + _SPARE
    if free < needed:
        raise InvalidBackbone(f"the copy needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free")


class _Ticker:
    """Adds up bytes for a progress bar."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._total)


@contextmanager
def _told_of(source: Path) -> Iterator[list[Path]]:
    """Turns whatever a lying file makes a parser raise into one sentence that names the source.

    Yields:
        A list of folders that will be gone; the source is named in their place.
    """
    places: list[Path] = []
    try:
        yield places
    except FileExistsError:
        raise
    except Exception as err:
        text = str(checkpoints.as_invalid(source, err))
        for place in places:
            text = text.replace(str(place), str(source))
        known = any(str(name) in text for name in (source, Path(source).resolve()))
        told = text if known else f"{source}: {text}"
        raise InvalidBackbone("".join(sign if sign.isprintable() else "?" for sign in told)) from err
