"""Checkpoint directories of every family: the allowed files, their hash, weights, tokenizer and origin.

A checkpoint has the files that transformers writes: `config.json`, weights in safetensors, in one file or in shards
with an index, and tokenizer files if it reads text. `origin.json` beside them states its origin. Nothing here
unpickles, runs code from a directory, follows a file out of it or uses a network.
"""

import hashlib
import io
import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from ...kernels.formats import Pack
from ...kernels.install import install, refuse_saving
from ..errors import BackboneMismatch, InvalidBackbone
from ..structure.places import FILES, sense_in
from ..structure.readers import STRUCTURE, TARGET
from .families import family_of
from .family import Backbone
from .grouped_query import speed_up
from .packing import (
    QUANTISATION,
    SCALE,
    StoredWeights,
    fill_banks,
    fill_linear,
    is_fp8,
    require_all_left,
    unfilled,
)

CONFIG, ORIGIN, WEIGHTS, TOKENIZER = "config.json", "origin.json", "model.safetensors", "tokenizer.json"
INDEX = f"{WEIGHTS}.index.json"
_BESIDE = f".{TARGET}.weight"  # end of the name of weights that have a file of their own
CHAT_TEMPLATE = "chat_template.jinja"
_LONGEST_REASON = 300  # characters of another library's message
_LOADING_PROBLEMS = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
# A directory may hold nothing that transformers would run or follow to other weights, such as adapter_config.json.
_ALLOWED = re.compile(
    r"[A-Za-z0-9._-]+\.(json|safetensors|md)|chat_template\.jinja|(LICEN[CS]E|NOTICE|COPYING|USE_POLICY)(-[A-Z]+)?(\.txt)?"
)
_REFUSED = {"adapter_config.json"}
# Settings that make transformers read other files, or turn the weights into something else than they are.
_REFUSED_SETTINGS = ("compression_config", "transformers_weights")
_MAX_LAYERS, _MAX_EXPERTS, _MAX_SIZE = 1000, 10_000, 2**31 - 1
_MAX_JSON = 2**24  # bytes of config.json or an index; DeepSeek-V3's index of 91,991 tensors has 9 MB
# Settings of config.json that count something; whoever builds a model of it allocates and loops that often.
_SIZES = {
    "hidden_size", "intermediate_size", "moe_intermediate_size", "vocab_size", "max_position_embeddings", "head_dim",
    "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "num_experts_per_tok", "num_experts",
    "num_local_experts", "n_routed_experts", "n_shared_experts", "q_lora_rank", "kv_lora_rank", "qk_rope_head_dim",
    "qk_nope_head_dim", "v_head_dim",
}  # fmt: skip
_LIMITS = {
    "num_hidden_layers": _MAX_LAYERS,
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "n_shared_experts"), _MAX_EXPERTS),
}
# Settings that name code; transformers would fetch a kernel of that name from a network.
_CODE_SETTING = re.compile(r"_?(attn|experts)_implementation(_internal)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Origin and licence of a checkpoint: a claim of the directory's author, covered by its hash."""

    name: str
    publisher: str
    licence: str  # SPDX identifier
    url: str
    source: str  # the file that was read
    source_sha256: str
    changes: str  # what was done to it

    def to_dict(self) -> dict[str, str]:
        """Returns the fields as in `origin.json`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stated: Any) -> "Origin":
        """Reads the fields. Raises `InvalidBackbone` unless all of them are there, are text, and no others are."""
        names = {field.name for field in fields(cls)}
        if (
            not isinstance(stated, dict)
            or stated.keys() != names
            or not all(isinstance(v, str) for v in stated.values())
        ):
            raise InvalidBackbone(f"{ORIGIN} must be an object of texts with the names {', '.join(sorted(names))}")
        return cls(**stated)


@dataclass(frozen=True, kw_only=True, slots=True)
class Claims:
    """Part of an `Origin`, as somebody says it; None where nothing is said."""

    name: str | None = None
    publisher: str | None = None
    licence: str | None = None  # SPDX identifier, or the publisher's own word
    url: str | None = None

    def __post_init__(self) -> None:
        for name in ("name", "publisher", "licence", "url"):
            text = getattr(self, name)
            if text is not None and not (0 < len(text) <= 200 and text.isprintable()):
                raise InvalidBackbone(f"{name} of the origin must be 1 to 200 printable characters")

    def or_else(self, other: "Claims") -> "Claims":
        """Fills what is not said here from `other`."""
        return Claims(
            name=self.name or other.name,
            publisher=self.publisher or other.publisher,
            licence=self.licence or other.licence,
            url=self.url or other.url,
        )


@dataclass(frozen=True, slots=True)
class Size:
    """Size of a checkpoint, by the headers of its weight files.

    Embedding and output matrix count, as in DeepSeek-V3's own figure of activated parameters (its README_WEIGHTS.md).
    """

    parameters: int
    active_parameters: int  # that one token meets: all but the routed experts that it is not sent to
    weight_bytes: int


def content_hash(directory: Path, *, required: tuple[str, ...] = (CONFIG,)) -> str:
    """Computes the SHA-256, in hex, over the sorted names and SHA-256 digests of all files of a checkpoint.

    Raises:
        InvalidBackbone: the directory lacks a required file or holds anything but plain JSON, safetensors and text.
    """
    digests: dict[str, str] = {}
    for path in _entries(directory, required):
        with path.open("rb") as file:
            digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hash_of(digests)


def hash_of(digests: Mapping[str, str]) -> str:
    """Computes the `content_hash` of a checkpoint whose files have these names and SHA-256 digests, in hex."""
    total = hashlib.sha256(b"confide backbone 1\n")
    for name in sorted(digests):
        total.update(f"{name} {digests[name]}\n".encode())
    return total.hexdigest()


def load_model(
    directory: Path,
    *,
    expected_hash: str | None = None,
    dtype: torch.dtype = torch.float32,
    pack: Pack | None = None,
    pack_linear: Pack | None = None,
) -> PreTrainedModel:
    """Loads the model of a checkpoint, in evaluation mode and frozen.

    Weight files are mapped, not read: weights stored in `dtype` lie in the page cache, which processes share, until
    they are written to. Routed experts are copied: the one matrix of each expert goes into one stack of all experts.

    With `pack`, experts are packed one after another as they are read, so an unpacked stack is never in memory. With
    `pack_linear` all other linear layers of the decoder are, see `packing.linear_layers`. The model is bit for bit what
    `kernels.install.quantise` and `kernels.linear.quantise_linear` make of the whole one, and its `save_pretrained`
    raises `kernels.errors.SavedWithoutWeights`.

    Weights stored in fp8 are widened to `dtype` unless they are packed.

    Args:
        directory: as `transformers` writes it; `content_hash` defines the allowed files.
        expected_hash: refuse any other content before a single file is parsed.
        dtype: float32 or bfloat16. Routers stay in float32 where transformers keeps them so, as DeepSeek's.
        pack: format of the routed experts, such as `kernels.formats.Int8Row.quantised` or `NF4Block64.quantised`.
        pack_linear: format of all other linear layers of the decoder.

    Raises:
        BackboneMismatch: the content is not the expected one.
        InvalidBackbone: a file is missing, broken, refused or does not fit the others.
    """
    directory = Path(directory)
    require_content(directory, content_hash(directory), expected_hash)
    try:
        return read_model(directory, dtype=dtype, pack=pack, pack_linear=pack_linear)[1]
    except Exception as err:  # files that lie make parsers and transformers raise whatever they like
        raise as_invalid(directory, err) from err


def load_tokenizer(directory: Path, *, expected_hash: str | None = None) -> PreTrainedTokenizerFast:
    """Loads the tokenizer of a checkpoint that reads text; always this one class, even if its files name another.

    Args:
        directory: of the checkpoint; it must not be replaced while it is read.
        expected_hash: refuse any other content, weights included, before a single file is parsed.

    Raises:
        BackboneMismatch: the content is not the expected one.
        InvalidBackbone: the checkpoint has no tokenizer, or it is broken.
    """
    directory = Path(directory)
    required = (CONFIG, TOKENIZER)
    _entries(directory, required)
    if expected_hash is not None:
        require_content(directory, content_hash(directory, required=required), expected_hash)
    try:
        tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as err:  # the Rust library raises bare ones, and its panics are no `Exception`
        raise as_invalid(directory, err) from err
    return tokenizer


def load_origin(directory: Path) -> Origin | None:
    """Loads the claims of `origin.json`; None without the file.

    Raises:
        InvalidBackbone: the file has other contents.
    """
    path = Path(directory) / ORIGIN
    if not path.exists():
        return None
    try:
        return Origin.from_dict(read_json(path))
    except (OSError, ValueError) as err:
        raise as_invalid(directory, err) from err


def size(directory: Path) -> Size:
    """Computes the checkpoint's size; reads headers of files and no weight.

    Raises:
        InvalidBackbone: a file is missing, broken or refused.
    """
    directory = Path(directory)
    _entries(directory, (CONFIG,))
    total_count = expert_count = weight_bytes = 0
    try:
        family, config = read_config(directory)
        routed, buffers = family.experts, family.buffers
        beside = [path for name in (STRUCTURE, *FILES.values()) if (path := directory / name).exists()]
        for path in [*weight_files(directory), *beside]:
            weight_bytes += path.stat().st_size
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - no mapping
                    is_buffer = name.endswith(SCALE) or (buffers is not None and buffers.search(name))
                    count = 0 if is_buffer else math.prod(file.get_slice(name).get_shape())
                    total_count += count
                    expert_count += count if routed is not None and routed.weight.search(name) else 0
        idle = 0
        if routed is not None and expert_count:
            experts, top_k = routed_of(family, config)
            if not 1 <= top_k <= experts:
                raise InvalidBackbone(f"{directory}: {top_k} of {experts} routed experts for a token")
            idle = expert_count * (experts - top_k) // experts
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError, RuntimeError, SafetensorError) as err:
        raise as_invalid(directory, err) from err
    return Size(total_count, total_count - idle, weight_bytes)


def routed_of(family: Backbone, config: Mapping[str, Any]) -> tuple[int, int]:
    """Returns how many routed experts a layer has, and how many of them a token is sent to."""
    assert family.experts is not None
    names = (family.experts.count, family.experts.top_k)
    experts, top_k = (next((config[name] for name in either if name in config), None) for either in names)
    if experts is None or top_k is None:
        raise InvalidBackbone(f"config.json has no {names[experts is not None][0]}")
    return int(experts), int(top_k)


def save_model(model: PreTrainedModel, directory: Path) -> None:
    """Writes `config.json` and weights as transformers does, always with an index that names the weight files.

    Without an index, some loaders read every safetensors file of a directory as weights. Structure tables, an eye
    and an ear are none of transformers' and left out, see `structure.inputs.save` and `structure.sense.save`.
    """
    state = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.endswith(_BESIDE) and sense_in(name) is None
    }
    with quietly():
        model.save_pretrained(directory, state_dict=state, safe_serialization=True)
    whole = directory / WEIGHTS
    if whole.exists():
        shard = directory / "model-00001-of-00001.safetensors"
        with safe_open(whole, framework="pt") as file:
            weight_map = dict.fromkeys(file.keys(), shard.name)
        total = sum(tensor.nbytes for tensor in state.values())
        whole.rename(shard)
        write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_parts(
    directory: Path,
    config: Any,
    kind: str,
    weights: Mapping[str, torch.Tensor],
    tokenizer: PreTrainedTokenizerFast,
    origin: Origin,
    licence: str,
) -> None:
    """Writes a checkpoint of converted weights in one file; equal versions of the libraries write equal bytes.

    Args:
        config: transformers' configuration.
        kind: name of transformers' class that reads it.
        weights: float32, under published names.
        licence: its text; it must be passed on together with the weights.
    """
    stated = config.to_diff_dict() | {"architectures": [kind], "dtype": "float32"}
    del stated["transformers_version"]  # another version that writes equal files gives an equal hash
    write_json(directory / CONFIG, stated)
    save_file(dict(weights), directory / WEIGHTS, metadata={"format": "pt"})
    tokenizer.save_pretrained(directory, save_jinja_files=False)
    write_json(directory / ORIGIN, origin.to_dict())
    (directory / "LICENSE.md").write_text(licence, encoding="utf-8")


def beside_weights(directory: Path) -> list[Path]:
    """Lists the files of a checkpoint besides weights, `config.json` and `origin.json`, by name.

    Raises:
        InvalidBackbone: a file is missing, broken or refused.
    """
    entries = _entries(directory, (CONFIG,))
    own = {CONFIG, ORIGIN, INDEX, *(path.name for path in weight_files(directory))}
    return [path for path in entries if path.name not in own]


def has_chat_template(directory: Path) -> bool:
    """Returns True if the tokenizer's files hold a chat template.

    Raises:
        InvalidBackbone: `tokenizer_config.json` is broken.
    """
    settings = directory / "tokenizer_config.json"
    stated = settings.exists() and read_json(settings).get("chat_template") is not None
    return bool(stated) or (directory / CHAT_TEMPLATE).exists()


def require_content(directory: Path, digest: str, expected_hash: str | None) -> None:
    """Raises `BackboneMismatch` unless the content has the expected hash; None accepts any."""
    if expected_hash is not None and digest != expected_hash:
        raise BackboneMismatch(f"{directory} has hash {digest}, expected {expected_hash}")


def read_model(
    directory: Path,
    *,
    dtype: torch.dtype = torch.float32,
    pack: Pack | None = None,
    pack_linear: Pack | None = None,
) -> tuple[Backbone, PreTrainedModel]:
    """Finds the family and loads the model of a checked directory; untruthful files can raise any error."""
    family, config = read_config(directory)
    files = weight_files(directory)
    refuse_larger(directory, family, size(directory).parameters)
    has_fp8, model_class = is_fp8(config), family.model_class()
    stored = StoredWeights(directory, files, is_fp8=has_fp8)
    fills_banks, fills_linear = has_fp8 or pack is not None, has_fp8 or pack_linear is not None
    is_whole = not (fills_banks or fills_linear)
    kind = model_class if is_whole else unfilled(family, banks=fills_banks, linear=fills_linear)
    with quietly():
        loaded: Any = kind.from_pretrained(
            directory,
            config=settings_of(directory, family) if has_fp8 else None,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            use_kernels=False,
            disable_mmap=False,
            dtype=dtype,
            output_loading_info=True,
            attn_implementation="sdpa",
            experts_implementation=None if pack is None else install(),
        )
    model: PreTrainedModel
    model, loading = loaded
    # Transformers fills what is missing with random numbers and only logs it: every site would hold another model.
    if wrong := sorted(str(key) for problem in _LOADING_PROBLEMS for key in loading.get(problem, ())):
        raise InvalidBackbone(f"{directory}: weights do not fit config.json, first {wrong[0]}")
    model.__class__ = model_class  # again, as whole as any other of its kind
    require_all_left(model, directory, stored)
    if fills_banks:
        fill_banks(model, family, directory, stored, dtype, pack)
    if fills_linear:
        fill_linear(model, stored, dtype, pack_linear)
    if not (pack is None and pack_linear is None):
        refuse_saving(model)
    model.train(False).requires_grad_(False)
    speed_up(model)
    return family, model


def as_invalid(directory: Path, err: BaseException) -> InvalidBackbone:
    """Converts an error to `InvalidBackbone` with its first line alone, unless it is ours already."""
    if isinstance(err, InvalidBackbone):
        return err
    told = next((line.strip() for line in str(err).splitlines() if line.strip()), "") or type(err).__name__
    return InvalidBackbone(f"{directory}: {told[:_LONGEST_REASON]}")


@contextmanager
def quietly() -> Iterator[None]:
    """Silences transformers, which draws a progress bar on stderr for every file: it would fill a daemon's log.

    If DeepSpeed is installed, accelerate loads it at the first write, and it prints on stdout that there is no GPU.
    """
    was_on = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        if was_on:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes one JSON object with sorted keys, indented for people."""
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _entries(directory: Path, required: tuple[str, ...]) -> list[Path]:
    """All files of the directory by name, none of which is refused."""
    try:
        entries = sorted(Path(directory).iterdir(), key=lambda path: path.name)
    except OSError as err:
        raise InvalidBackbone(f"{directory}: cannot be listed ({err.strerror})") from err
    for path in entries:
        if path.is_symlink() or not path.is_file() or not _ALLOWED.fullmatch(path.name) or path.name in _REFUSED:
            raise InvalidBackbone(f"{directory}: {path.name} does not belong in a backbone")
    if absent := {*required} - {path.name for path in entries}:
        raise InvalidBackbone(f"{directory}: no {', '.join(sorted(absent))}")
    return entries


def read_json(path: Path, *, most: int = _MAX_JSON) -> dict[str, Any]:
    """Reads one JSON object of at most `most` bytes, in which no name stands twice: two readers could take either.

    Raises:
        InvalidBackbone: the file is larger, or something else.
    """
    if path.stat().st_size > most:
        raise InvalidBackbone(f"{path} is larger than {most:,} bytes")
    try:
        stated = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_twins)
    except InvalidBackbone as err:
        raise InvalidBackbone(f"{path}: {err}") from None
    except (ValueError, RecursionError) as err:
        raise InvalidBackbone(f"{path} is no JSON ({type(err).__name__})") from err
    if not isinstance(stated, dict):
        raise InvalidBackbone(f"{path} holds no JSON object")
    return stated


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise InvalidBackbone(f"{name[:100]!r} stands there twice")
        found[name] = value
    return found


def read_config(directory: Path) -> tuple[Backbone, dict[str, Any]]:
    """Reads `config.json` and finds its family; refuses settings that name code or other weights, and absurd sizes.

    `auto_map` and `custom_pipelines` name code, too, and are ignored: only transformers' own class of the family is
    ever used, and no file with code can lie in the directory.

    Raises:
        InvalidBackbone: the file is broken, of no family in the table, or has such a setting.
    """
    config = read_json(directory / CONFIG)
    try:
        family = family_of(config)
    except InvalidBackbone as err:
        raise InvalidBackbone(f"{directory}: {err}") from None
    if found := [name for name in _REFUSED_SETTINGS if config.get(name) is not None]:
        raise InvalidBackbone(f"{directory}: config.json has {found[0]}, which is not supported")
    try:
        is_fp8(config)
    except InvalidBackbone as err:
        raise InvalidBackbone(f"{directory}: {err}") from None
    _refuse_code(directory, config)
    for name in sorted(_SIZES & config.keys()):
        value, most = config[name], _LIMITS.get(name, _MAX_SIZE)
        if value is not None and (type(value) is not int or not 0 <= value <= most):
            raise InvalidBackbone(
                f"{directory}: config.json has {name} {str(value)[:50]!r}; it must be an integer from 0 to {most}"
            )
    return family, config


def _refuse_code(directory: Path, stated: Any) -> None:
    """Refuses settings by which transformers would fetch a kernel, at any depth: parts of a model have their own."""
    for name, value in stated.items() if isinstance(stated, dict) else enumerate(stated):
        if _CODE_SETTING.fullmatch(str(name)) and value is not None:
            raise InvalidBackbone(f"{directory}: config.json has {name}, which is not supported")
        if isinstance(value, (dict, list)):
            _refuse_code(directory, value)


def refuse_larger(directory: Path, family: Backbone, stored: int) -> Any:
    """Returns `described_model`; raises `InvalidBackbone` if it has far more weights than the files' `stored` ones.

    Transformers fills whatever the files lack, however large, before it says that anything is missing.
    """
    model = described_model(directory, family)
    described = sum(parameter.numel() for parameter in model.parameters())
    if described > 2 * stored:  # an output matrix that is tied to the embedding is not in the files
        raise InvalidBackbone(
            f"{directory}: config.json describes {described} weights, the files hold {stored}: they are of another "
            "model, or some are missing"
        )
    return model


def described_model(directory: Path, family: Backbone) -> Any:
    """Builds the model that `config.json` describes, with shapes and no weights.

    Raises:
        InvalidBackbone: models of this configuration cannot be adapted.
    """
    settings = settings_of(directory, family)
    if reason := family.misfit(settings):
        raise InvalidBackbone(f"{directory}: config.json: {reason}")
    with torch.device("meta"):
        return family.model_class()._from_config(settings)


def settings_of(directory: Path, family: Backbone) -> Any:
    """Reads the configuration of the model that the weights make, without fp8, in which it would be quantised anew."""
    settings = family.config_class().from_json_file(directory / CONFIG)  # knows how JSON states an infinity
    if hasattr(settings, QUANTISATION):
        delattr(settings, QUANTISATION)
    return settings


def weight_files(directory: Path) -> list[Path]:
    """Lists the files that hold weights; transformers itself would follow an index to files outside the directory.

    Raises:
        InvalidBackbone: whole weights lie beside an index, or the index names other files or tensors than there are.
    """
    if not (directory / INDEX).exists():
        return [directory / WEIGHTS]
    if (directory / WEIGHTS).exists():
        raise InvalidBackbone(f"{directory}: both {WEIGHTS} and {INDEX}; which one holds is anybody's guess")
    index = read_json(directory / INDEX).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(shard, str) for shard in index.values()):
        raise InvalidBackbone(f"{directory}: {INDEX} has no weight_map of names")
    named: dict[str, set[str]] = {}
    for name, shard in index.items():
        named.setdefault(shard, set()).add(name)
    for shard, names in sorted(named.items()):
        if not (_ALLOWED.fullmatch(shard) and shard.endswith(".safetensors") and (directory / shard).is_file()):
            raise InvalidBackbone(
                f"{directory}: {INDEX} names {shard[:100]!r}, which is no weight file of the directory"
            )
        with safe_open(directory / shard, framework="pt") as file:
            if {*file.keys()} != names:
                raise InvalidBackbone(f"{directory}: {INDEX} does not say what {shard} holds")
    return [directory / shard for shard in sorted(named)]
