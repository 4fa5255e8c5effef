"""Builds, saves, loads and describes the frozen model that every site holds, of any family.

A backbone that reads rendered records is a plain transformers checkpoint (`config.json`, `model.safetensors`) with two
more files: `schema.json`, whose vocabulary the model reads, and `pooling.safetensors`, the public moments of its pooled
states; one for several studies also has `parts.json`, the columns of each. A backbone that reads text has tokenizer
files instead. Nothing here unpickles or runs code from a directory.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ...kernels.segments import Segments
from ..directories import new_directory
from ..errors import BackboneMismatch, InvalidBackbone
from ..heads import PooledHead
from ..heads.objectives import Objective
from ..records import RecordSchema
from ..structure import inputs, sense
from ..structure.places import FILES
from ..structure.places import TARGETS as OF_SENSES
from ..structure.readers import STRUCTURE, TARGET
from . import checkpoints, soundness
from .families import named
from .family import Backbone, BackboneConfig, WeightFormat
from .moments import POOLING, Moments, read_moments, states_with_moments
from .packing import PACK_OF
from .segments import read_in_segments

EMBEDDING_STD = 0.05  # start of every embedding; pooling divides embeddings by it (`models/heads/pooling.py`)
_SCHEMA, _PARTS = "schema.json", "parts.json"
_MOST_PARTS = 1000


@dataclass(frozen=True, slots=True)
class RecordBackbone:
    """A backbone that reads rendered records, in evaluation mode and frozen."""

    family: Backbone
    model: PreTrainedModel
    schema: RecordSchema
    center: torch.Tensor  # [2 * hidden], mean of the pooled states of synthetic records
    whiten: torch.Tensor  # [2 * hidden, 2 * hidden], symmetric inverse root of their shrunk covariance
    hash: str  # `backbone_hash` of the directory
    parts: tuple[frozenset[str], ...] = ()  # the columns of each study that it was built for, if these are several

    @property
    def vocabulary(self) -> RecordSchema:
        """Vocabulary of the model, as a schema."""
        return self.schema

    def head(self, objective: Objective | None = None, reads: tuple[int, ...] | None = None) -> PooledHead:
        """Makes a new head on the pooled states; None learns a label.

        Raises:
            BackboneMismatch: `reads` names states: these were pooled before the moments were taken.
        """
        if reads is not None:
            raise BackboneMismatch("reads the states that it was built for, and no others")
        return PooledHead(self.center, self.whiten, objective=objective)


@dataclass(frozen=True, slots=True)
class TextBackbone:
    """A checkpoint that reads and writes text, in evaluation mode and frozen."""

    family: Backbone
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    moments: Moments | None  # of pooled states of public texts; without them no head can read the text
    hash: str  # `checkpoints.content_hash` of the directory

    @property
    def vocabulary(self) -> PreTrainedTokenizerFast:
        """Vocabulary of the model, as a tokenizer."""
        return self.tokenizer

    def head(self, objective: Objective | None = None, reads: tuple[int, ...] | None = None) -> PooledHead:
        """Makes a new head on the pooled states that `reads` names, or on all that there are moments of.

        Raises:
            BackboneMismatch: there are no such moments.
        """
        if self.moments is None:
            raise BackboneMismatch(
                "has no moments of its pooled states, which a head needs; take them from public texts: coordinator "
                "backbone moments"
            )
        return self.moments.head(objective, reads)


@dataclass(frozen=True, slots=True)
class Description:
    """Description of a backbone's directory, made without loading a weight."""

    hash: str  # of a backbone `backbone_hash`, which is `checkpoints.content_hash`
    reads: Literal["records", "text"]
    family: str  # for people
    layers: int
    targets: tuple[str, ...]  # of its modules those that may take an adapter
    experts: int | None  # routed ones of a layer; None if there are none
    top_k: int | None  # of them, those that a token is sent to
    suggested_targets: tuple[str, ...]  # of them, those for a first study of text
    suggested_layers: tuple[int, ...]  # for that: the last that hold one, where steps are fast
    has_chat_template: bool
    moments: tuple[int, ...]  # states of which a text backbone has moments, for the heads of documents
    size: checkpoints.Size
    origin: checkpoints.Origin | None  # None: built here, from a schema and synthetic records


def build(schema: RecordSchema, config: BackboneConfig) -> PreTrainedModel:
    """Builds an untrained backbone for the words of `schema`, equal for equal arguments (torch's CPU generator)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model: PreTrainedModel = named(config.family).build(len(schema.words()), config)
        _start_embeddings(model, schema)
    return model


def save(
    model: PreTrainedModel,
    schema: RecordSchema,
    center: torch.Tensor,
    whiten: torch.Tensor,
    directory: Path,
    parts: Sequence[RecordSchema] = (),
) -> str:
    """Writes a backbone directory in one rename and returns its hash.

    Args:
        parts: what each study reads that it was built for; one alone is the whole.

    Raises:
        InvalidBackbone: the parts do not fit together.
        FileExistsError: `directory` exists already.
    """
    with new_directory(directory) as partial:
        write(model, schema, center, whiten, partial, parts)
        return backbone_hash(partial)


def write(
    model: PreTrainedModel,
    schema: RecordSchema,
    center: torch.Tensor,
    whiten: torch.Tensor,
    directory: Path,
    parts: Sequence[RecordSchema] = (),
) -> None:
    """Writes the files of a backbone into a folder that is being made; arguments and errors are those of `save`."""
    _check_fit(model, schema, center, whiten)
    with checkpoints.quietly():
        model.save_pretrained(directory, safe_serialization=True)
    save_file({"center": center.float().contiguous(), "whiten": whiten.float().contiguous()}, directory / POOLING)
    (directory / _SCHEMA).write_text(json.dumps(schema.to_dict(), indent=1) + "\n", encoding="utf-8")
    if len(parts) > 1:
        names = [[field.name for field in part.fields()] for part in parts]
        (directory / _PARTS).write_text(json.dumps(names) + "\n", encoding="utf-8")


def load(
    directory: Path,
    *,
    expected_hash: str | None = None,
    experts: WeightFormat = "float32",
    frozen: WeightFormat = "float32",
    segments: Segments | None = None,
) -> RecordBackbone:
    """Reads a backbone from files alone: safetensors weights, no pickle, no remote code, no network.

    Args:
        directory: what `save` wrote.
        expected_hash: refuse any other content before a single file is parsed.
        experts: format in which routed experts are held and computed with, see `checkpoints.load_model`.
        frozen: the same of all other linear layers of the decoder.
        segments: read records by a window and chosen blocks of these sizes, see `read_in_segments`.

    Raises:
        BackboneMismatch: the content is not the expected one, or its family does not read in segments.
        InvalidBackbone: a file is missing, broken, refused or does not fit the others.
    """
    directory = Path(directory)
    digest = backbone_hash(directory)
    checkpoints.require_content(directory, digest, expected_hash)
    try:
        schema = read_schema(directory)
        parts = _parts(directory, schema)
        pooling = load_file(directory / POOLING)
        center, whiten = pooling["center"], pooling["whiten"]
        family, model = checkpoints.read_model(directory, pack=PACK_OF[experts], pack_linear=PACK_OF[frozen])
    except Exception as err:  # files that lie make parsers and transformers raise whatever they like
        raise checkpoints.as_invalid(directory, err) from err
    _check_fit(model, schema, center, whiten)
    _attend(model, directory, segments)
    return RecordBackbone(family, model, schema, center, whiten, digest, parts)


def reads_records(directory: Path) -> bool:
    """True if a backbone reads records of a schema, False if it reads text; looks at no more than that."""
    return (Path(directory) / _SCHEMA).exists()


def read_schema(directory: Path) -> RecordSchema:
    """Reads the schema of a backbone that reads records; its words are the backbone's vocabulary.

    Raises:
        InvalidBackbone: the file is missing or broken.
    """
    try:
        return RecordSchema.from_dict(json.loads((Path(directory) / _SCHEMA).read_text(encoding="utf-8")))
    except Exception as err:  # a file that lies makes parsers raise whatever they like
        raise checkpoints.as_invalid(directory, err) from err


def _parts(directory: Path, schema: RecordSchema) -> tuple[frozenset[str], ...]:
    path = directory / _PARTS
    if not path.exists():
        return ()
    found, known = json.loads(path.read_text(encoding="utf-8")), {field.name for field in schema.fields()}
    if not (isinstance(found, list) and 2 <= len(found) <= _MOST_PARTS):
        raise InvalidBackbone(f"{path}: must list the columns of two studies or more")
    for names in found:
        if not (isinstance(names, list) and names and all(isinstance(name, str) and name in known for name in names)):
            raise InvalidBackbone(f"{path}: a list of columns names some that the schema does not have")
    return tuple(map(frozenset, found))


def load_text(
    directory: Path,
    *,
    expected_hash: str | None = None,
    experts: WeightFormat = "float32",
    frozen: WeightFormat = "float32",
    segments: Segments | None = None,
) -> TextBackbone:
    """Reads a checkpoint with its tokenizer, as `load` reads a backbone.

    Raises:
        BackboneMismatch: the content is not the expected one, or its family does not read in segments.
        InvalidBackbone: a file is missing, broken, refused or does not fit the others, or the tokenizer has words that
            the model does not read.
    """
    directory = Path(directory)
    digest = checkpoints.content_hash(directory)
    checkpoints.require_content(directory, digest, expected_hash)
    tokenizer = checkpoints.load_tokenizer(directory)
    try:
        family, model = checkpoints.read_model(directory, pack=PACK_OF[experts], pack_linear=PACK_OF[frozen])
    except Exception as err:  # files that lie make parsers and transformers raise whatever they like
        raise checkpoints.as_invalid(directory, err) from err
    try:
        soundness.check_words(tokenizer, model.config.vocab_size)
    except InvalidBackbone as err:
        raise InvalidBackbone(f"{directory}: {err}") from None
    inputs.load(directory, model, tokenizer)
    _attend(model, directory, segments)  # before the sense, whose own attention stays as it is
    sense.load(directory, model)
    return TextBackbone(family, model, tokenizer, read_moments(directory, model), digest)


def _attend(model: PreTrainedModel, directory: Path, segments: Segments | None) -> None:
    if segments is None:
        return
    try:
        read_in_segments(model, segments)
    except BackboneMismatch as err:
        raise BackboneMismatch(f"the backbone in {directory} {err}") from None


def describe(directory: Path) -> Description:
    """Describes a backbone or an imported checkpoint: hash, kind, size and origin.

    Raises:
        InvalidBackbone: the directory is neither, or a file of it is missing, broken or refused.
    """
    directory = Path(directory)
    is_backbone = reads_records(directory)
    digest = backbone_hash(directory) if is_backbone else checkpoints.content_hash(directory)
    reads: Literal["records", "text"] = "records" if is_backbone else "text"
    size, origin = checkpoints.size(directory), checkpoints.load_origin(directory)
    try:
        family, config = checkpoints.read_config(directory)
        model = checkpoints.described_model(directory, family)
        experts, top_k = checkpoints.routed_of(family, config) if family.banks(model) else (None, None)
        layers = int(model.config.num_hidden_layers)
    except Exception as err:  # transformers raises whatever it likes
        raise checkpoints.as_invalid(directory, err) from err
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    targets = tuple(name for name in family.targets if name in names)
    if (directory / STRUCTURE).exists():
        targets = (*targets, TARGET)
    for name, file in FILES.items():
        if (directory / file).exists():
            targets = (*targets, *OF_SENSES[name])
    suggested_targets, suggested_layers = _suggested(model, tuple(name for name in targets if name in names))
    return Description(
        hash=digest,
        reads=reads,
        family=family.name,
        layers=layers,
        targets=targets,
        suggested_targets=suggested_targets,
        suggested_layers=suggested_layers,
        experts=experts,
        top_k=top_k,
        has_chat_template=checkpoints.has_chat_template(directory),
        moments=() if is_backbone else states_with_moments(directory),
        size=size,
        origin=origin,
    )


def _suggested(model: Any, targets: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Chooses targets for a first study of text, and the last two layers that hold one of them."""
    wanted = tuple(name for name in targets if name in ("o_proj", "down_proj")) or targets[:2]
    held: dict[int, set[str]] = {}
    for layer, module in enumerate(model.model.layers):
        names = {name.rpartition(".")[2] for name, _ in module.named_modules()}
        if not names.isdisjoint(wanted):
            held[layer] = names
    last = tuple(held)[-2:]
    return tuple(name for name in wanted if any(name in held[layer] for layer in last)), last


def backbones_in(folder: Path) -> dict[str, Description | InvalidBackbone]:
    """Describes every directory directly in a folder that has a `config.json`, by name, or says why it is no backbone.

    Names that begin with a dot are left out: an import that was killed leaves such a one.

    Reads all files of these directories to compute the hashes.

    Raises:
        InvalidBackbone: the folder cannot be listed.
    """
    try:
        directories = sorted(
            path
            for path in Path(folder).iterdir()
            if (path / checkpoints.CONFIG).exists() and not path.name.startswith(".")
        )
    except OSError as err:
        raise InvalidBackbone(f"{folder}: cannot be listed ({err.strerror})") from err
    found: dict[str, Description | InvalidBackbone] = {}
    for directory in directories:
        try:
            found[directory.name] = describe(directory)
        except (InvalidBackbone, OSError) as err:
            found[directory.name] = checkpoints.as_invalid(directory, err)
    return found


def backbone_hash(directory: Path) -> str:
    """Computes `checkpoints.content_hash` of a directory that is a whole backbone.

    Raises:
        InvalidBackbone: the directory is missing a part or holds anything but plain JSON, safetensors and text files.
    """
    return checkpoints.content_hash(directory, required=(checkpoints.CONFIG, _SCHEMA, POOLING))


def _start_embeddings(model: PreTrainedModel, schema: RecordSchema) -> None:
    """Sets a bin's initial embedding to its field's vector + a smooth code of the bin; the order of bins is public.

    Without it a head would have to learn the order of the bins from the noisy sums, one word at a time.
    """
    embedding: Any = model.get_input_embeddings()
    table: torch.Tensor = embedding.weight
    position = {word: i for i, word in enumerate(schema.words())}
    with torch.no_grad():
        for field in schema.numeric:
            na, *bins = field.words()
            mix, offset = torch.randn(7, table.shape[1]), torch.randn(table.shape[1])
            code = torch.tensor([_bin_code((i + 0.5) / len(bins)) for i in range(len(bins))])
            table[position[bins[0]] : position[bins[-1]] + 1] = EMBEDDING_STD * (offset + code @ mix)
            table[position[na]] = EMBEDDING_STD * (offset + torch.randn(table.shape[1]))


def _bin_code(u: float) -> list[float]:
    """Encodes a point of [0, 1] as its value and three sine and cosine pairs."""
    return [2 * u - 1, *(wave(math.pi * k * u) for k in (1, 2, 3) for wave in (math.sin, math.cos))]


def _check_fit(model: PreTrainedModel, schema: RecordSchema, center: torch.Tensor, whiten: torch.Tensor) -> None:
    words, pooled = len(schema.words()), 2 * model.config.hidden_size
    if model.config.vocab_size != words:
        raise InvalidBackbone(f"the model reads {model.config.vocab_size} words, the schema has {words}")
    if tuple(center.shape) != (pooled,) or tuple(whiten.shape) != (pooled, pooled):
        raise InvalidBackbone(f"center must be [{pooled}] and whiten [{pooled}, {pooled}]")
    if not (torch.isfinite(center).all() and torch.isfinite(whiten).all()):
        raise InvalidBackbone("center or whiten is not finite")
