"""Reads the folder of a published checkpoint: the files that are needed, what is known of their bytes, and the origin.

Layout: what transformers and the Hugging Face Hub write, also as they lie in the Hub's cache, as links. Nothing is
loaded here: names, sizes, first bytes, and what the publisher or the download wrote beside the weights.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InvalidBackbone
from ..structure.places import FILES
from ..structure.readers import STRUCTURE
from .checkpoints import (
    CHAT_TEMPLATE,
    CONFIG,
    INDEX,
    ORIGIN,
    TOKENIZER,
    WEIGHTS,
    Claims,
    Origin,
    load_origin,
    read_json,
)

LEGACY_CHAT_TEMPLATE = "chat_template.json"  # read by transformers' processors, and not by its tokenizers
README = "README.md"
_SUMS = "SHA256SUMS"
_LFS = b"version https://git-lfs.github.com/spec/"  # the first line of a file that git-lfs has not fetched
_MAX_BYTES = {  # published ones are a tenth of that or less
    CONFIG: 2**24, INDEX: 2**24, "generation_config.json": 2**20, TOKENIZER: 2**28, "tokenizer_config.json": 2**24,
    "special_tokens_map.json": 2**20, "added_tokens.json": 2**24, CHAT_TEMPLATE: 2**20, LEGACY_CHAT_TEMPLATE: 2**20,
    README: 2**20, _SUMS: 2**20,
}  # fmt: skip
_COPIED = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_LICENCE = re.compile(r"(LICEN[CS]E|NOTICE|COPYING|USE_POLICY)(-[A-Z]+)?(\.(md|txt))?")
_SHARD = re.compile(r"[A-Za-z0-9._-]+\.safetensors")
_HEX = re.compile(r"[0-9a-f]{64}")
_ANEW = "python -c \"from transformers import {0}; {0}.from_pretrained('SOURCE').save_pretrained('NEW')\""


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """The folder of a published checkpoint, before anything in it is loaded."""

    folder: Path
    files: Mapping[str, Path]  # needed ones by name; links of a cache are followed
    weights: tuple[str, ...]  # those of them that hold weights
    left: tuple[str, ...]  # names that are not needed; folders end in a slash
    claims: Claims  # of README, download or an earlier import; nothing is guessed
    changes: str | None  # that an earlier import tells of
    revision: str | None  # commit of the Hub, where its cache names one
    stated: Mapping[str, Mapping[str, str]] = field(repr=False)  # SHA-256 by file and by who says so


def read_published(source: Path) -> Published:
    """Finds what is needed of a checkpoint's folder, and what is not.

    Raises:
        InvalidBackbone: a needed file is missing, is a link to elsewhere, was not fetched, or is of another format.
    """
    folder = Path(source)
    try:
        folder = folder.resolve(strict=True)
        present = {path.name: path for path in folder.iterdir()}
    except (OSError, RuntimeError) as err:
        reason = err.strerror if isinstance(err, OSError) else "a loop of links"
        hint = "; nothing is downloaded: name a folder of this machine" if isinstance(err, FileNotFoundError) else ""
        raise InvalidBackbone(f"{source}: cannot be listed ({reason}){hint}") from err
    _refuse_other_formats(folder, present)
    files = {name: _regular(folder, present[name]) for name in _wanted(present)}
    for name, path in files.items():
        _refuse_unfit(folder, name, path)
    weights = _weights(folder, present, files)
    for name in weights:
        files[name] = _regular(folder, present[name])
        _refuse_unfit(folder, name, files[name])
    rest = {name if name.isprintable() else ascii(name): path for name, path in present.items() if name not in files}
    left = sorted(f"{name}/" if path.is_dir() else name for name, path in rest.items())
    repository = re.fullmatch(r"models--([A-Za-z0-9._-]+?)--([A-Za-z0-9._-]+)", folder.parent.parent.name)
    is_cached = folder.parent.name == "snapshots" and repository is not None
    earlier = load_origin(folder) if (folder / ORIGIN).is_file() else None
    claims = _claims_of(earlier, files.get(README))
    if is_cached and repository is not None:
        publisher, name = repository.groups()
        url = f"https://huggingface.co/{publisher}/{name}"
        claims = claims.or_else(Claims(name=name, publisher=publisher, url=url))
    return Published(
        folder=folder,
        files=files,
        weights=weights,
        left=tuple(left),
        claims=claims,
        changes=earlier.changes if earlier is not None and earlier.changes != "none" else None,
        revision=folder.name if is_cached and re.fullmatch(r"[0-9a-f]{40}", folder.name) else None,
        stated={name: _stated(folder, name, path) for name, path in files.items()},
    )


def _refuse_other_formats(folder: Path, present: Mapping[str, Path]) -> None:
    """Refuses what would be half a checkpoint, with the way to a whole one."""
    if "adapter_config.json" in present:
        raise InvalidBackbone(
            f"{folder} holds an adapter (adapter_config.json), which transformers would put onto the weights: merge it "
            "into them first (PEFT: merge_and_unload, save_pretrained)"
        )
    if sense := next((name for name, file in FILES.items() if file in present), None):
        raise InvalidBackbone(
            f"{folder} has an {sense} ({FILES[sense]}), which an import would lose: it is a backbone as it stands; use "
            "it so"
        )
    if STRUCTURE in present:
        raise InvalidBackbone(
            f"{folder} has structure tables ({STRUCTURE}), which an import would lose: it is a backbone as it stands; "
            "name it in study.toml, or copy the folder"
        )
    if CONFIG not in present:
        raise InvalidBackbone(f"{folder} holds no {CONFIG}; name the folder of a checkpoint as transformers writes it")
    if WEIGHTS not in present and INDEX not in present:
        others = sorted(name for name in present if re.search(r"\.(bin|pt|pth|ckpt|gguf|onnx|h5|msgpack)$", name))
        has = f"{', '.join(others[:3])}, which is never read" if others else "no weights"
        raise InvalidBackbone(
            f"{folder} holds {has}: {WEIGHTS} or {INDEX} is needed; where you trust the files: "
            f"{_ANEW.format('AutoModelForCausalLM')}"
        )
    if TOKENIZER not in present:
        others = sorted(name for name in present if name.endswith((".model", ".tiktoken")) or name == "vocab.json")
        if any("tiktoken" in name for name in others):
            raise InvalidBackbone(
                f"{folder} holds its tokenizer as {', '.join(others)}, which code of its own reads: {TOKENIZER} is "
                "needed, and must make the same tokens; look for one by the publisher"
            )
        has = f"its tokenizer as {', '.join(others)} alone" if others else "no tokenizer"
        raise InvalidBackbone(
            f"{folder} holds {has}: {TOKENIZER} is needed; to make it: {_ANEW.format('AutoTokenizer')}"
        )


def _wanted(present: Mapping[str, Path]) -> list[str]:
    """Names files that are copied besides weights."""
    wanted = [CONFIG, TOKENIZER, *_COPIED, README, INDEX, CHAT_TEMPLATE]
    if CHAT_TEMPLATE not in present:
        wanted.append(LEGACY_CHAT_TEMPLATE)
    found = [name for name in wanted if name in present]
    return found + sorted(name for name in present if _LICENCE.fullmatch(name))


def _regular(folder: Path, path: Path) -> Path:
    """Follows a link inside the folder, or from a cache's snapshot to its blobs, and no other."""
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError) as err:
        raise InvalidBackbone(f"{folder}: {path.name} is a link to nothing; download it again") from err
    blobs = folder.parent.parent / "blobs" if folder.parent.name == "snapshots" else folder
    if target.parent not in (folder, blobs):
        raise InvalidBackbone(f"{folder}: {path.name} is a link to another folder; put the file itself there")
    if not target.is_file():
        raise InvalidBackbone(f"{folder}: {path.name} is no file")
    return target


def _refuse_unfit(folder: Path, name: str, path: Path) -> None:
    most = _MAX_BYTES.get(name, None if name.endswith(".safetensors") else 2**20)
    if most is not None and path.stat().st_size > most:
        raise InvalidBackbone(f"{folder}: {name} is larger than {most:,} bytes")
    with path.open("rb") as file:
        if file.read(len(_LFS)) == _LFS:
            raise InvalidBackbone(
                f"{folder}: {name} is the pointer of a download that was not finished; fetch the file: git lfs pull"
            )


def _weights(folder: Path, present: Mapping[str, Path], files: dict[str, Path]) -> tuple[str, ...]:
    """Names the weight files, in order; each lies directly in the folder."""
    if INDEX not in files:
        return (WEIGHTS,)
    if WEIGHTS in present:
        raise InvalidBackbone(f"{folder}: both {WEIGHTS} and {INDEX}; remove the one that is not the model")
    index = read_json(files[INDEX]).get("weight_map")
    if not isinstance(index, dict) or not index or not all(isinstance(shard, str) for shard in index.values()):
        raise InvalidBackbone(f"{folder}: {INDEX} has no weight_map of names")
    shards = sorted({*index.values()})
    for shard in shards:
        if not _SHARD.fullmatch(shard):
            raise InvalidBackbone(f"{folder}: {INDEX} names {shard[:100]!r}, which is no weight file of the folder")
        if shard not in present:
            absent = sum(other not in present for other in shards)
            raise InvalidBackbone(
                f"{folder}: {INDEX} names {shard}, which is not there ({absent} of {len(shards)} files are missing)"
            )
    return tuple(shards)


def _stated(folder: Path, name: str, path: Path) -> dict[str, str]:
    """Collects the SHA-256 that a file must have, by who says so: a list of sums, or what the download wrote down."""
    said: dict[str, str] = {}
    sums = folder / _SUMS
    if sums.is_file() and sums.stat().st_size <= _MAX_BYTES[_SUMS]:
        for line in sums.read_text(encoding="utf-8", errors="replace").splitlines():
            digest, _, of = line.strip().partition(" ")
            if of.strip().removeprefix("*").removeprefix("./") == name and _HEX.fullmatch(digest.lower()):
                said[_SUMS] = digest.lower()
    if path.parent != folder and _HEX.fullmatch(path.name):  # the Hub's cache names large files by their SHA-256
        said["the name of the file in the cache"] = path.name
    note = folder / ".cache" / "huggingface" / "download" / f"{name}.metadata"
    if note.is_file() and note.stat().st_size <= 4096:
        lines = note.read_text(encoding="utf-8", errors="replace").split()
        if len(lines) >= 2 and _HEX.fullmatch(lines[1].strip('"')):  # small files have git's own hash there
            said["the download's note"] = lines[1].strip('"')
    return said


def _claims_of(origin: Origin | None, readme: Path | None) -> Claims:
    """Reads what an earlier import or the front matter of the README says of the origin."""
    known = (
        Claims()
        if origin is None
        else Claims(name=origin.name, publisher=origin.publisher, licence=origin.licence, url=origin.url)
    )
    if readme is None:
        return known
    text = readme.read_text(encoding="utf-8", errors="replace")
    front = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    if front is None:
        return known
    said = dict(re.findall(r"^(license|license_name|license_link)[ ]*:[ ]*(\S.*?)[ ]*$", front[1], re.MULTILINE))
    word = said.get("license_name") if said.get("license", "").strip("'\"") == "other" else said.get("license")
    word = (word or said.get("license") or "").strip("'\"")
    return known.or_else(Claims(licence=word if re.fullmatch(r"[A-Za-z0-9.+-]{1,100}", word) else None))
