"""An exported adapter as its files hold it, apart from any backbone: PEFT's format, the head, and where it comes from.

Routed experts and the router are stored by PEFT's `target_parameters` (peft >= 0.17). A bank's A is expert-major
[experts * rank, in], its B rank-major [out, rank * experts]; one wrapper a parameter is nested in the order of the
bank's parameters, so that gate_up_proj lies inside, under `base_layer`, and down_proj outside.

Projections whose names PEFT takes for those of routed experts, as they were before transformers 5 fused them, go by
`target_parameters` as well (`Backbone.mistaken`): it would move the adapters there.

An embedding is stored as `lora_embedding_A` [rank, words] and `lora_embedding_B` [out, rank]. Where the output matrix
is tied to it, each use keeps its own adapter as long as nobody merges them into the shared matrix; the card says so.

Legend: `E` experts, `R` rank, `I` inputs, `O` outputs.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pydantic
import torch
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...kernels.errors import KernelError
from ...kernels.experts import from_peft, peft_factors
from ..backbones.families import family_in
from ..errors import InvalidRelease
from ..heads.objectives import BinaryLabel
from ..strict import one_line
from .factors import Pair
from .lora import AdaptedModel, LoRAEmbedding, LoRAExperts
from .prototype import Prototype, read_prototype, save_prototype
from .provenance import MAX_BYTES, Provenance, described, read_provenance, write_provenance
from .routers import LoRARouter

CONFIG, WEIGHTS, HEAD = "adapter_config.json", "adapter_model.safetensors", "head.safetensors"
MAX_RANK = 65_536
_KEY = re.compile(r"(base_model\.model\.[A-Za-z0-9_.]{1,200}\.lora_)(?:(embedding_)([AB])|([AB])(\.weight))")
_HEAD_NAMES = {"center", "whiten", "weight"}
_LONGEST_MEANING = 1_000_000  # characters; 1,000 classes of 200 are written in less

Target = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_]{1,64}(\.[A-Za-z0-9_]{1,64}){0,15}$")]
Targets = Annotated[tuple[Target, ...], Field(max_length=16_384)]


@dataclass(frozen=True, slots=True)
class Released:
    """An exported adapter; each weight W becomes W + alpha / rank * B A."""

    pairs: Mapping[str, Pair]  # by PEFT's names of both factors, the letter left out as {}
    rank: int
    alpha: float
    target_modules: frozenset[str]
    target_parameters: frozenset[str]
    head: Mapping[str, Tensor] | None  # center, whiten, weight, and of documents reads
    meaning: str  # of the head's outputs, for people; "" if there is none
    provenance: Provenance
    prototype: Prototype | None = None

    @property
    def lora_scaling(self) -> float:
        """The factor of the low-rank products, alpha / rank."""
        return self.alpha / self.rank


def released(
    adapted: AdaptedModel, provenance: Provenance, prototype: Prototype | None = None, *, by_full_name: bool = False
) -> Released:
    """Takes the adapter as it stands now for an export; its tensors share memory with the model where they can.

    Args:
        by_full_name: True to name each adapted module in full, also where all modules of its last name seem adapted.
    """
    pairs: dict[str, Pair] = {}
    modules: set[str] = set()
    parameters: set[str] = set()
    mistaken = family_in(adapted.model).mistaken
    for name, module in adapted.adapters.items():
        # Where every module of a name is adapted, the last parts of it say it all; an eye has names that decoders have.
        is_short = adapted.config.layers is None and not by_full_name and not adapted.carried
        leaf, place = (".".join(name.split(".")[-n:]) if is_short else name for n in (1, 2))
        prefix = f"base_model.model.{name}"
        if isinstance(module, LoRAExperts):
            parameters |= {f"{leaf}.gate_up_proj", f"{leaf}.down_proj"}
            pairs[f"{prefix}.base_layer.lora_{{}}.weight"] = _pair(*module.gate_up_proj)
            pairs[f"{prefix}.lora_{{}}.weight"] = _pair(*module.down_proj)
        elif isinstance(module, LoRAEmbedding):
            modules.add(leaf)
            pairs[f"{prefix}.lora_embedding_{{}}"] = _pair(module.lora_A, module.lora_B)
        else:
            if isinstance(module, LoRARouter) or name.rpartition(".")[2] in mistaken:
                parameters.add(f"{place}.weight")
            else:
                modules.add(leaf)
            pairs[f"{prefix}.lora_{{}}.weight"] = _pair(module.lora_A, module.lora_B)
    head, meaning = exported_head(adapted)
    return Released(
        pairs=pairs,
        rank=adapted.config.rank,
        alpha=adapted.config.alpha,
        target_modules=frozenset(modules),
        target_parameters=frozenset(parameters),
        head=head,
        meaning=meaning,
        provenance=provenance,
        prototype=prototype,
    )


def exported_head(adapted: AdaptedModel) -> tuple[dict[str, Tensor] | None, str]:
    """Takes a model's head for an export, and what its outputs mean; (None, "") if it has none."""
    if adapted.head is None:
        return None, ""
    head = {name: _plain(tensor) for name, tensor in adapted.head.state_dict().items()}
    if adapted.head.reads is not None:
        head["reads"] = torch.tensor(adapted.head.reads, dtype=torch.float32)  # as all tensors of an export
    return head, adapted.head.objective.meaning


def save(adapter: Released, directory: Path) -> None:
    """Writes PEFT's two files, if there is an adapter, `confide.json`, and head and prototype, if there are any."""
    write_provenance(adapter.provenance, directory)
    save_head(adapter.head, adapter.meaning, directory)
    save_prototype(adapter.prototype, directory)
    if not adapter.pairs:  # of which PEFT knows no configuration
        return
    tensors: dict[str, Tensor] = {}
    for name, pair in adapter.pairs.items():
        tensors[name.format("A")], tensors[name.format("B")] = pair if pair.lora_A.ndim == 2 else peft_factors(*pair)
    save_file({name: _plain(it) for name, it in tensors.items()}, directory / WEIGHTS, metadata={"format": "pt"})
    config = _PeftConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        target_modules=tuple(sorted(adapter.target_modules)),
        target_parameters=tuple(sorted(adapter.target_parameters)) or None,
    )
    (directory / CONFIG).write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")


def save_head(head: Mapping[str, Tensor] | None, meaning: str, directory: Path) -> None:
    """Writes a head with its public moments, if there is one."""
    if head is not None:
        tensors = {name: _plain(tensor) for name, tensor in head.items()}
        save_file(tensors, directory / HEAD, metadata={"meaning": meaning})


def read(directory: Path) -> Released:
    """Reads what `save` wrote: JSON and safetensors alone, by a schema; nothing is unpickled or run.

    Raises:
        InvalidRelease: a file is missing, broken, too large or says anything else.
    """
    provenance, prototype = read_provenance(directory), read_prototype(directory)
    head, meaning = _read_head(directory / HEAD) if (directory / HEAD).exists() else (None, "")
    if head is not None and not any((directory / name).exists() for name in (CONFIG, WEIGHTS)):
        return _head_alone(head, meaning, provenance, prototype)
    config = _read_config(directory / CONFIG)
    tensors = _read_tensors(directory / WEIGHTS)
    pairs: dict[str, Pair] = {}
    banks = {it.split(".")[-2] for it in config.target_parameters or () if it.count(".") and not it.endswith(".weight")}
    for name in tensors:
        match = _KEY.fullmatch(name)
        if match is None:
            raise InvalidRelease(f"{directory / WEIGHTS}: a tensor's name is not one of a LoRA factor")
        place = f"{match[1]}{match[2]}{{}}" if match[2] else f"{match[1]}{{}}{match[5]}"
        if place not in pairs:
            module = match[1].removesuffix(".lora_").removesuffix(".base_layer").rpartition(".")[2]
            pairs[place] = _read_pair(directory / WEIGHTS, tensors, place, config.r, is_bank=module in banks)
    return Released(
        pairs=pairs,
        rank=config.r,
        alpha=config.lora_alpha,
        target_modules=frozenset(config.target_modules),
        target_parameters=frozenset(config.target_parameters or ()),
        head=head,
        meaning=meaning,
        provenance=provenance,
        prototype=prototype,
    )


def _head_alone(
    head: Mapping[str, Tensor], meaning: str, provenance: Provenance, prototype: Prototype | None
) -> Released:
    return Released(
        pairs={},
        rank=1,
        alpha=1.0,
        target_modules=frozenset(),
        target_parameters=frozenset(),
        head=head,
        meaning=meaning,
        provenance=provenance,
        prototype=prototype,
    )


def _pair(lora_A: Tensor, lora_B: Tensor) -> Pair:
    return Pair(_plain(lora_A), _plain(lora_B))


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32).contiguous()


def _read_config(path: Path) -> "_PeftConfig":
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InvalidRelease(f"{path} is larger than {MAX_BYTES} bytes")
        return _PeftConfig.model_validate_json(path.read_bytes())
    except OSError as err:
        raise InvalidRelease(f"{path} cannot be read ({err.strerror})") from err
    except pydantic.ValidationError as err:
        raise InvalidRelease(f"{path}: {described(err)}") from None


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as err:
        raise InvalidRelease(f"{path} cannot be read; it must be a safetensors file") from err
    if not all(it.dtype == torch.float32 and it.numel() and bool(it.isfinite().all()) for it in tensors.values()):
        raise InvalidRelease(f"{path}: all tensors must be float32, finite and not empty")
    return tensors


def _read_pair(path: Path, tensors: Mapping[str, Tensor], place: str, rank: int, *, is_bank: bool) -> Pair:
    lora_A, lora_B = (tensors.get(place.format(letter)) for letter in "AB")
    if (
        lora_A is None
        or lora_B is None
        or lora_A.ndim != 2
        or len(lora_A) % rank
        or not (is_bank or len(lora_A) == rank)
    ):
        raise InvalidRelease(f"{path}: {place.format('*')} is no pair of factors of rank {rank}")
    try:
        pair = Pair(*from_peft(lora_A, lora_B, len(lora_A) // rank))
    except KernelError as err:
        raise InvalidRelease(f"{path}: {place.format('*')}: {err}") from err
    return pair if is_bank else Pair(pair.lora_A[0], pair.lora_B[0])


def _read_head(path: Path) -> tuple[dict[str, Tensor], str]:
    head = _read_tensors(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in head.items()}
    if not _is_head(shapes):
        raise InvalidRelease(f"{path} holds no head")
    reads = head.get("reads")
    if reads is not None and (len(set(reads.tolist())) < len(reads) or not all(x >= 0 and x == int(x) for x in reads)):
        raise InvalidRelease(f"{path}: a head reads states by their numbers, each once")
    with safe_open(path, framework="pt") as file:
        meaning = (file.metadata() or {}).get("meaning")
    if meaning is None and head["weight"].ndim == 1:
        meaning = BinaryLabel().meaning  # earlier exports knew no other, and did not say it
    if meaning is None or len(meaning) > _LONGEST_MEANING:
        raise InvalidRelease(f"{path}: a head says what its outputs mean, in at most {_LONGEST_MEANING:,} characters")
    return head, one_line(meaning)


def _is_head(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """True for the tensors of a head: on two states that are whitened together, or on several, each by itself."""
    center, weight = shapes.get("center", ()), shapes.get("weight", ())
    apart = {"reads"} if len(center) == 2 else set()
    return (
        shapes.keys() == _HEAD_NAMES | apart
        and len(center) in (1, 2)
        and math.prod(center) > 0
        and shapes["whiten"] == (*center, center[-1])
        and len(weight) in (1, 2)
        and weight[-1] == math.prod(center) + 1
        and (not apart or shapes["reads"] == center[:1])
    )


class _PeftConfig(BaseModel):
    """`adapter_config.json`: the fields that PEFT cannot do without or whose defaults would change the result."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)
    peft_type: Literal["LORA"] = "LORA"
    task_type: Literal["CAUSAL_LM"] = "CAUSAL_LM"
    base_model_name_or_path: None = None
    r: int = Field(ge=1, le=MAX_RANK)
    lora_alpha: float = Field(gt=0, le=1e9)
    lora_dropout: float = Field(default=0.0, ge=0, le=0)
    bias: Literal["none"] = "none"
    use_rslora: Literal[False] = False
    use_dora: Literal[False] = False
    fan_in_fan_out: Literal[False] = False
    inference_mode: Literal[True] = True
    target_modules: Targets
    target_parameters: Targets | None
