"""The two factors of an adapted weight: where they are put, how they start, and the rows of their tokens."""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...kernels.formats import ExpertWeights
from ...kernels.linear import PackedMatrix
from ..errors import InvalidAdapter
from ..public_numbers import public_uniform
from ..structure.places import sense_in
from ..tokens import words_of

_LABEL = b"confide lora_A 1\0"
LAYER = re.compile(r"\blayers\.([0-9]+)\.")


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterConfig:
    """The places of the adapters and their start; public and equal at all sites."""

    rank: int
    alpha: float  # the low-rank product is scaled by alpha / rank
    # Last names of modules: nn.Linear, nn.Embedding, `experts` (routed bank), `gate` (router); `eye.` or `ear.` before
    # them of a sense.
    targets: tuple[str, ...]
    seed: str  # public; expands to the same A factors on every machine
    freeze_a: bool = True
    layers: tuple[int, ...] | None = None  # decoder layers that take them, from 0; None: wherever a target is

    def __post_init__(self) -> None:
        if self.rank < 1 or not (self.alpha > 0 and math.isfinite(self.alpha)):
            raise InvalidAdapter(f"need rank >= 1 and a finite alpha > 0, got rank {self.rank}, alpha {self.alpha}")
        if len(set(self.targets)) != len(self.targets):
            raise InvalidAdapter(f"targets are named twice: {self.targets}")

    def is_place(self, name: str) -> bool:
        """True if the module of this full name takes an adapter; `layers` are the decoder's alone."""
        layer = layer_of(name)
        is_layer = self.layers is None or sense_in(name) is not None or (layer is not None and layer in self.layers)
        return is_layer and target_of(name) in self.targets

    @property
    def lora_scaling(self) -> float:
        """The factor of the low-rank product, alpha / rank."""
        return self.alpha / self.rank


def target_of(name: str) -> str:
    """Returns the target that a module of this full name is a place of: its last name, behind a sense's own."""
    last = name.rpartition(".")[2]
    return last if (sense := sense_in(name)) is None else f"{sense}.{last}"


def layer_of(name: str) -> int | None:
    """Returns the decoder layer that a module of this full name lies in; None if it lies in none."""
    found = None if sense_in(name) is not None else LAYER.search(name)
    return None if found is None else int(found[1])


class Pair(NamedTuple):
    """The factors of one weight; a bank of experts has a leading expert axis on both."""

    lora_A: Tensor
    lora_B: Tensor


@dataclass(slots=True)
class Rows:
    """Holds the shape of the batch in progress, for modules that see its tokens without rows.

    A backbone flattens rows and tokens before its router and experts. Whoever attributes gradients to rows by what goes
    into a module and comes out of it, as Opacus does, needs the rows back.
    """

    shape: tuple[int, int] | None = None  # rows, tokens; None: not told

    @contextmanager
    def told(self, ids_RT: Tensor) -> Iterator[None]:
        """Tells the shape of a batch to the forward pass inside."""
        rows, length = words_of(ids_RT).shape
        self.shape = rows, length
        try:
            yield
        finally:
            self.shape = None

    def apart(self, by_token: Tensor) -> Tensor:
        """Gives tokens [rows * T, ..] their axis of rows back, [rows, T, ..]; as they are if the shape was not told."""
        return by_token if self.shape is None else by_token.view(*self.shape, *by_token.shape[1:])


@dataclass(slots=True)
class Gates:
    """Tells adapted modules how much each of several adapters, stacked along the rank, counts for each row of a batch.

    For inference: nothing is trained through gates.
    """

    rule: Callable[[nn.Module, Tensor], Tensor] | None = None  # [T, R] of a module and its input; None: all count
    rows: int | None = None  # of the batch that the rule is for; None: any
    are_closed: bool = False  # for all rows and modules, which then compute what their base does; the rule rests

    def of(self, module: nn.Module, x: Tensor) -> Tensor | None:
        """[T, R] by token, or None if every component counts."""
        return None if self.rule is None else self.rule(module, x)


def base_alone(base: nn.Module, x: Tensor, dtype: torch.dtype) -> Any:
    """Runs an adapted module without its adapter, on inputs of this type, as with one: outside autocast."""
    if not torch.is_autocast_enabled(x.device.type):
        return base(x.to(dtype))
    with torch.autocast(x.device.type, enabled=False):
        return base(x.to(dtype))


class LoRAFactors(nn.Module):
    """The pair (A, B) of one weight."""

    def __init__(
        self, weight: Tensor | PackedMatrix, config: AdapterConfig, name: str, *, start_std: float | None = None
    ) -> None:
        """A starts with `start_std`, by default inputs ** -0.5; B at zero."""
        super().__init__()
        self.lora_A, self.lora_B = start(weight, config, name, start_std)

    def named_factors(self) -> dict[str, nn.Parameter]:
        """Returns the factors by the last part of their name."""
        return {"lora_A": self.lora_A, "lora_B": self.lora_B}


def start(
    weight: Tensor | PackedMatrix | ExpertWeights, config: AdapterConfig, name: str, std: float | None = None
) -> tuple[nn.Parameter, nn.Parameter]:
    """A and B of a weight as they begin: A uniform with `std`, by default inputs ** -0.5; B zero."""
    *bank, width_out, width_in = weight.shape
    std = 1 / math.sqrt(width_in) if std is None else std
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32  # no less: updates are small
    shape_A, shape_B = (*bank, config.rank, width_in), (*bank, width_out, config.rank)
    start = torch.from_numpy(public_uniform(_LABEL + f"{config.seed}\0{name}.lora_A".encode(), shape_A, std))
    return (
        nn.Parameter(start.to(weight.device, dtype), requires_grad=not config.freeze_a),
        nn.Parameter(torch.zeros(shape_B, dtype=dtype, device=weight.device)),
    )
