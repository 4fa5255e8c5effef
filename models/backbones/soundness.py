"""Checks that the files of a checkpoint agree: settings, tensors, tokenizer, chat template; and for NaN in weights.

Tensors are compared by the headers of their files and put together by transformers itself, without a number of theirs
in memory. Weights are then read once, some millions at a time.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import GenerationConfig
from transformers.utils import logging as transformers_logging

from ...kernels.formats import FP8_BLOCK
from ..errors import InvalidBackbone
from . import checkpoints
from .chat_trial import try_template
from .family import Backbone
from .packing import SCALE, is_fp8

_CHUNK = 2**22  # numbers looked at together
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_CODES = "F8_E4M3"  # of matrices in fp8


@dataclass(frozen=True, slots=True)
class Header:
    """Place, shape and type of one tensor, by the header of its file."""

    file: str
    shape: tuple[int, ...]
    dtype: str  # as safetensors spells it: F32, BF16, ...


def read_headers(files: Mapping[str, Path]) -> dict[str, Header]:
    """Reads the tensors' names, shapes and types of weight files, by tensor; no weight.

    Raises:
        InvalidBackbone: a file is cut off or no safetensors, or two files hold one tensor.
    """
    found: dict[str, Header] = {}
    for file_name, path in files.items():
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - no mapping
                    if name in found:
                        raise InvalidBackbone(f"{name} stands in {found[name].file} and in {file_name}")
                    part = file.get_slice(name)
                    found[name] = Header(file_name, tuple(part.get_shape()), part.get_dtype())
        except InvalidBackbone:
            raise
        except Exception as err:  # the Rust library raises its own
            raise InvalidBackbone(
                f"{file_name} is cut off or no safetensors file ({str(err)[:100]}): download it again"
            ) from err
    return found


def check_index(index: Mapping[str, Any], headers: Mapping[str, Header], bytes_held: int) -> None:
    """Raises `InvalidBackbone` unless an index names the tensors where they are, and their size in all."""
    weight_map = index.get("weight_map")
    assert isinstance(weight_map, dict)  # read before
    for name in sorted(weight_map.keys() | headers.keys()):
        held = headers[name].file if name in headers else None
        if weight_map.get(name) != held:
            raise InvalidBackbone(
                f"{checkpoints.INDEX} says that {name[:100]} is in {weight_map.get(name)}, and it is in {held}"
            )
    metadata = index.get("metadata")
    stated = metadata.get("total_size") if isinstance(metadata, dict) else None
    if stated is not None and stated != bytes_held:
        raise InvalidBackbone(
            f"{checkpoints.INDEX} says {stated} bytes of tensors, the files hold {bytes_held}: "
            "shards of different versions, or an index whose metadata is wrong; if the publisher's is, remove it there"
        )


def bytes_of(headers: Mapping[str, Header], files: Mapping[str, Path]) -> int:
    """Computes how many bytes of tensors the files hold: all behind the header of each."""
    total = 0
    for name in {header.file for header in headers.values()}:
        with files[name].open("rb") as file:
            total += files[name].stat().st_size - 8 - int.from_bytes(file.read(8), "little")
    return total


def check_tensors(directory: Path, family: Backbone, config: Mapping[str, Any], headers: Mapping[str, Header]) -> int:
    """Lets transformers put the tensors together by shape alone; returns the number of words that the model reads.

    Args:
        directory: of `config.json`.

    Raises:
        InvalidBackbone: the configuration describes another model than the tensors, or one of another class.
    """
    kind = family.model_class()
    named = config.get("architectures")
    if named and named != [kind.__name__]:
        raise InvalidBackbone(f"config.json names the class {str(named)[:100]}; a {family.name} is a {kind.__name__}")
    if is_fp8(config):
        headers = _without_scales(headers)
    for name, header in headers.items():
        is_buffer = family.buffers is not None and family.buffers.search(name)
        if not (header.dtype in _FLOATS or is_buffer or (header.dtype == _CODES and is_fp8(config))):
            raise InvalidBackbone(f"{name} in {header.file} holds {header.dtype}; weights are F32, BF16, F16 or F64")
    stored = sum(math.prod(header.shape) for header in headers.values())
    words = checkpoints.refuse_larger(directory, family, stored).config.vocab_size
    state = {name: torch.empty(header.shape, dtype=torch.float32, device="meta") for name, header in headers.items()}
    with checkpoints.quietly(), _unreported():
        try:
            _, found = kind.from_pretrained(
                None,
                config=checkpoints.settings_of(directory, family),
                state_dict=state,
                device_map="meta",
                dtype=torch.float32,
                attn_implementation="sdpa",
                use_kernels=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        except RuntimeError as err:
            raise InvalidBackbone(f"matrices of experts do not have the shapes that config.json says ({err})") from err
    for problem, said in (("missing_keys", "is missing"), ("unexpected_keys", "is none of the model that")):
        if names := sorted(str(name) for name in found[problem]):
            many = f", and {len(names) - 1} more" if len(names) > 1 else ""
            tail = "" if problem == "missing_keys" else " config.json describes"
            raise InvalidBackbone(f"tensor {names[0]} {said}{tail}{many}")
    for name, stored_shape, described in sorted(found["mismatched_keys"]):
        raise InvalidBackbone(f"tensor {name} is {tuple(stored_shape)}, config.json says {tuple(described)}")
    if found["error_msgs"]:
        raise InvalidBackbone(f"weights do not fit config.json: {found['error_msgs'][0]}")
    return int(words)


def _without_scales(headers: Mapping[str, Header]) -> dict[str, Header]:
    """Leaves out the scales of matrices in fp8, of which each must have one for every block, and nothing else any."""
    blocks = {
        f"{name}{SCALE}": tuple(-(-side // FP8_BLOCK) for side in header.shape)
        for name, header in headers.items()
        if header.dtype == _CODES
    }
    scales = {name: header for name, header in headers.items() if name.endswith(SCALE)}
    for name in sorted(blocks.keys() ^ scales.keys()):
        said = "is missing" if name in blocks else "scales nothing that is fp8"
        raise InvalidBackbone(f"tensor {name} {said}")
    for name, header in sorted(scales.items()):
        if header.shape != blocks[name]:
            raise InvalidBackbone(f"tensor {name} is {header.shape}, its matrix has {blocks[name]} blocks")
    return {name: header for name, header in headers.items() if name not in scales}


def check_reading(directory: Path, vocabulary: int) -> None:
    """Loads the tokenizer and tries the chat template.

    Args:
        vocabulary: rows of the embedding.

    Raises:
        InvalidBackbone: the tokenizer is broken or has words that the model does not, or the template is not fit.
    """
    tokenizer = checkpoints.load_tokenizer(directory)
    check_words(tokenizer, vocabulary)
    for template in templates_of(tokenizer)[:1]:
        try_template(template, tokenizer.special_tokens_map, "the chat template")
    path = directory / "generation_config.json"
    if path.exists():
        GenerationConfig.from_dict(checkpoints.read_json(path))


def check_words(tokenizer: Any, vocabulary: int) -> None:
    """Raises `InvalidBackbone` if a tokenizer has a word that the model does not read, or can read no text."""
    last = max(tokenizer.backend_tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if last >= vocabulary:
        raise InvalidBackbone(f"the tokenizer has a word of number {last}, the model reads {vocabulary} words")
    if not tokenizer.backend_tokenizer.encode("The first word", add_special_tokens=False).ids:
        raise InvalidBackbone("the tokenizer makes no tokens of a text")


def templates_of(tokenizer: Any) -> list[str]:
    """Lists the chat templates of a tokenizer, the default one first; [] if it has none."""
    found = tokenizer.chat_template
    if found is None:
        return []
    if isinstance(found, str):
        return [found]
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise InvalidBackbone("the chat template is no text")
    return [found[name] for name in sorted(found, key=lambda name: (name != "default", name))]


def check_finite(files: Mapping[str, Path], progress: Callable[[int], None]) -> None:
    """Reads every weight once, some millions at a time.

    Args:
        progress: called with the number of bytes read since the last call.

    Raises:
        InvalidBackbone: a weight is NaN or infinite, or a file cannot be read.
    """
    for file_name, path in files.items():
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                tensor: Tensor = file.get_tensor(name)  # mapped, not read
                if not all(map(_is_finite, torch.split(tensor.flatten(), _CHUNK))):
                    raise InvalidBackbone(f"{name} in {file_name} has NaN or infinite weights")
                progress(tensor.nbytes)


def _is_finite(numbers: Tensor) -> bool:
    if not numbers.is_floating_point() or not numbers.numel():
        return True
    if numbers.itemsize == 1:  # torch compares no eight-bit floats
        numbers = numbers.float()
    return all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(numbers))  # NaN is both


@contextmanager
def _unreported() -> Iterator[None]:
    """Silences transformers' own table of misfits; its findings come back as values."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
