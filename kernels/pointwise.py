"""Functions of single numbers whose last bit may depend on the place of a number in its tensor.

A library computes most of a tensor in vector registers, and what is left over at the end, or at the end of a thread's
part, one number at a time. Sums and products are the same either way; the two ways of an exponential are two
approximations, which differ for a few numbers in a hundred. So a few records tried in every place would seldom show it.
Here a number is searched for on which they do differ, and put in all places.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_TRIED = 256  # numbers of each size


class Geometry(NamedTuple):
    """A tensor's place in memory and kind of numbers, without the numbers."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True, slots=True)
class Call:
    """A function of single numbers with its arguments; tensors are `Geometry`."""

    function: Any  # of torch.ops
    args: tuple[Any, ...]
    named: tuple[tuple[str, Any], ...]

    @property
    def tensors(self) -> list[Geometry]:
        """The tensors, those that are written to included."""
        return [arg for arg in (*self.args, *(arg for _, arg in self.named)) if isinstance(arg, Geometry)]

    @property
    def kind(self) -> "Call":
        """The same on lines of numbers."""

        def line(arg: Any) -> Any:
            return arg._replace(size=(0,), stride=(1,)) if isinstance(arg, Geometry) else arg

        return Call(self.function, tuple(map(line, self.args)), tuple((name, line(arg)) for name, arg in self.named))

    def on(self, tensors: Iterable[Tensor]) -> Any:
        """Computes it on a tensor for each of `tensors`."""
        left = iter(tensors)

        def filled(arg: Any) -> Any:
            return next(left) if isinstance(arg, Geometry) else arg

        return self.function(*map(filled, self.args), **{name: filled(arg) for name, arg in self.named})


@contextmanager
def pointwise_seen() -> Iterator[set[Call]]:
    """Notes which functions of single numbers are called inside, forwards and backwards, and on what tensors."""
    mode = _Noting()
    with mode:
        yield mode.seen


def places_agree(calls: set[Call]) -> bool:
    """True if each function gives equal numbers equal bits in all rows of its tensors, and in tensors of any rows.

    A row is the last axis: a number's column is its own affair.
    """
    rows: dict[object, Tensor] = {}
    for call in calls:
        numbers = _telling(call.kind)
        if numbers is None:
            continue
        found = call.on(map(_filled, call.tensors, numbers))
        by_row = found.reshape(-1, found.shape[-1] if found.ndim > 1 else 1)
        layout = tuple(_is_contiguous(tensor) for tensor in call.tensors)
        want = rows.setdefault((call.kind, by_row.shape[1], layout), by_row[0].clone())
        if not bool((by_row == want).all()):
            return False
    return True


class _Noting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: set[Call] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if torch.Tag.pointwise in func.tags and torch.Tag.nondeterministic_seeded not in func.tags:
            tensors = [arg for arg in (*args, *named.values()) if isinstance(arg, Tensor)]
            if tensors and all(tensor.is_floating_point() and tensor.ndim and tensor.numel() for tensor in tensors):
                by_name = tuple((name, _noted(arg)) for name, arg in named.items())
                self.seen.add(Call(func, tuple(map(_noted, args)), by_name))
        return func(*args, **named)


def _noted(arg: Any) -> Any:
    if isinstance(arg, Tensor):
        return Geometry(tuple(arg.shape), arg.stride(), arg.dtype, arg.device)
    return tuple(arg) if isinstance(arg, list) else arg


def _filled(geometry: Geometry, number: float) -> Tensor:
    """A tensor with that number in all places."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(geometry.size, geometry.stride, strict=True))
    whole = torch.full((extent,), number, dtype=geometry.dtype, device=geometry.device)
    return whole.as_strided(geometry.size, geometry.stride)


def _is_contiguous(geometry: Geometry) -> bool:
    return torch.empty_strided(geometry.size, geometry.stride, device="meta").is_contiguous()


@cache
def _telling(kind: Call) -> tuple[float, ...] | None:
    """A number for each tensor on which the ways to compute a function differ; None if there are none."""
    generator = torch.Generator().manual_seed(0)
    lines = []
    for tensor in kind.tensors:
        normal = torch.randn(_TRIED, generator=generator)
        sizes = 10 ** (12 * torch.rand(_TRIED, generator=generator) - 8)
        lines.append(torch.cat([3 * normal, 40 * normal, sizes * normal]).to(tensor.device, tensor.dtype))
    together = kind.on([line.clone() for line in lines])
    if not isinstance(together, Tensor) or not together.is_floating_point():
        return None
    alone = torch.cat([kind.on(line[place : place + 1].clone() for line in lines) for place in range(len(together))])
    differing = ((alone != together) & ~alone.isnan()).nonzero().flatten().tolist()
    return tuple(float(line[differing[0]]) for line in lines) if differing else None
