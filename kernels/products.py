"""Matrix products of rows, and of tiles of rows whose bits do not depend on how many tiles there are.

How a library rounds a row of a product depends on the shape of the whole: it picks its kernels and the order of
additions by that. So rows that belong to different privacy units are multiplied in tiles of one shape: several in one
product where that gives a row the same bits, which a trial of each kind of matrix finds out (`_way`), else each by
itself. `tiles_agree` tests on the machine at hand that the number of tiles does not matter, for every number that
occurs.

Legend: `I` inputs, `O` outputs.
"""

import functools
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

TILE = 32  # rows; fewer cost speed, more are filled up in vain
_TILES = 8  # of one call
_ENOUGH = 4  # tiles of a call; more are hardly faster


class Factor(NamedTuple):
    """The properties of a matrix by which a library may choose how to multiply by it."""

    shape: tuple[int, int]  # inputs, outputs
    is_transposed: bool  # in memory
    dtype: torch.dtype
    device: torch.device
    is_prepacked: bool = False

    @classmethod
    def of(cls, weight_IO: "Tensor | PrepackedMatrix") -> "Factor":
        """The properties of this matrix."""
        if isinstance(weight_IO, PrepackedMatrix):
            return cls(weight_IO.shape, False, weight_IO.dtype, torch.device("cpu"), is_prepacked=True)
        inputs, outputs = weight_IO.shape
        return cls((inputs, outputs), weight_IO.stride(0) == 1 and inputs > 1, weight_IO.dtype, weight_IO.device)


@dataclass(frozen=True, slots=True)
class PrepackedMatrix:
    """A frozen matrix in the order in which the processor's library reads it; others are reordered in every product."""

    opaque: Tensor  # in a layout of the library's own, of the transposed matrix

    @classmethod
    def of(cls, weight_IO: Tensor) -> "PrepackedMatrix":
        """Copies the matrix; see `prepacks`."""
        return cls(torch.ops.mkldnn._reorder_linear_weight(weight_IO.detach().T.contiguous()))

    @property
    def shape(self) -> tuple[int, int]:
        """Inputs, outputs."""
        outputs, inputs = self.opaque.shape
        return inputs, outputs

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the numbers."""
        return self.opaque.dtype

    def dense(self) -> Tensor:
        """[I, O], a copy of the numbers as they are."""
        return self.opaque.to_dense().T


def prepacks(dtype: torch.dtype, device: torch.device) -> bool:
    """True if this machine multiplies by prepacked matrices of this kind."""
    if device.type != "cpu" or dtype != torch.bfloat16 or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


_seen: list[set[Factor]] = []  # that products add to


def product(x: Tensor, weight_IO: Tensor | PrepackedMatrix, out: Tensor) -> Tensor:
    """Writes x W for rows [S, I] or tiles of rows [tiles, S, I]."""
    if x.ndim == 2:
        return _mm(x, weight_IO, out)
    way = _way_for(weight_IO, adds=False)
    if way.least <= len(x) <= way.most and not way.is_batch:
        _mm(x.flatten(0, 1), weight_IO, out.view(-1, out.shape[2]))
        return out
    for few, few_out in zip(torch.split(x, way.most), torch.split(out, way.most), strict=True):
        if way.is_batch and isinstance(weight_IO, Tensor):
            torch.bmm(few, weight_IO.expand(len(few), *weight_IO.shape), out=few_out)
        elif len(few) < way.least:
            products = _mm(_filled_up(few, way.least), weight_IO)
            few_out.copy_(products.view(way.least, *few_out.shape[1:])[: len(few)])
        else:
            _mm(few.flatten(0, 1), weight_IO, few_out.view(-1, few_out.shape[2]))
    return out


def add_product(out: Tensor, x: Tensor, weight_IO: Tensor, *, scaling: float = 1.0) -> None:
    """Adds scaling x W to `out`, for rows or tiles of rows."""
    if x.ndim == 2:
        out.addmm_(x, weight_IO, alpha=scaling)
        return
    way = _way_for(weight_IO, adds=True)
    for few, few_out in zip(torch.split(x, way.most), torch.split(out, way.most), strict=True):
        if way.is_batch:
            few_out.baddbmm_(few, weight_IO.expand(len(few), *weight_IO.shape), alpha=scaling)
        elif len(few) < way.least:
            sums = _filled_up(few_out, way.least).addmm_(_filled_up(few, way.least), weight_IO, alpha=scaling)
            few_out.copy_(sums.view(way.least, *few_out.shape[1:])[: len(few)])
        else:
            few_out.view(-1, few_out.shape[2]).addmm_(few.flatten(0, 1), weight_IO, alpha=scaling)


def _mm(x: Tensor, weight_IO: Tensor | PrepackedMatrix, out: Tensor | None = None) -> Tensor:
    if isinstance(weight_IO, Tensor):
        return torch.mm(x, weight_IO, out=out)
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight_IO.opaque, None, "none", [], "")
    return found if out is None else out.copy_(found)


class _Way(NamedTuple):
    """A way of multiplying tiles by one matrix."""

    least: int  # tiles of one call; blank ones are added
    most: int
    is_batch: bool  # a batch of products, else one product of all rows


def _way_for(weight_IO: Tensor | PrepackedMatrix, *, adds: bool) -> _Way:
    factor = Factor.of(weight_IO)
    for seen in _seen:
        seen.add(factor)
    return _way(factor, adds, torch.get_num_threads())


@functools.cache
@torch.inference_mode()
def _way(factor: Factor, adds: bool, _threads: int) -> _Way:
    """The fastest way in which every row has the same bits in any number of tiles; decided by shapes alone."""
    weight, rows = _telling(factor, TILE)
    start = _mm(rows, weight).roll(1, 1)  # of the size of what is added to it
    by_block = []
    for tiles in range(1, _TILES + 1):
        some, given = rows.repeat(tiles, 1), start.repeat(tiles, 1)
        block = torch.addmm(given, some, weight, alpha=0.3) if adds else _mm(some, weight)
        by_block.append(block.view(tiles, *start.shape))

    def most(least: int) -> int:
        """The number of tiles up to which all blocks of `least` or more agree."""
        want = by_block[least - 1][0]
        agreeing = itertools.takewhile(lambda block: bool((block == want).all()), by_block[least - 1 :])
        return least - 1 + len(list(agreeing))

    ways = (_Way(least, most(least), is_batch=False) for least in (1, 2))
    way = max(ways, key=lambda way: min(way.most, _ENOUGH))
    if way.most > way.least:
        return way
    # In 16 bits a matrix that is repeated in a batch is multiplied by slow general code.
    is_batch = factor.dtype.itemsize > 2 or factor.device.type != "cpu"  # which no prepacked matrix is
    return _Way(1, _TILES if is_batch else 1, is_batch)


def _filled_up(tiles_NSI: Tensor, least: int) -> Tensor:
    """The rows of tiles, with blank ones behind them up to so many tiles."""
    return torch.nn.functional.pad(tiles_NSI, (0, 0, 0, 0, 0, least - len(tiles_NSI))).flatten(0, 1)


@contextmanager
def tiles_seen() -> Iterator[set[Factor]]:
    """Notes by what tiles are multiplied inside."""
    seen: set[Factor] = set()
    _seen.append(seen)
    try:
        yield seen
    finally:
        _seen.remove(seen)


def tiles_agree(factor: Factor) -> bool:
    """True if a row of a product has the same bits in every place of a tile and of a call, however many tiles it has.

    Which kernel a library runs, and so the order of its additions, is decided by shapes and never by values: random
    numbers show for all numbers whether two orders are the same.
    """
    weight, rows = _telling(factor, TILE + 1)
    row_I, others = rows[0], rows[1:]
    want: list[Tensor] = []
    for tiles, is_alone in itertools.product(range(1, _TILES + 1), (True, False)):
        x = row_I.expand(tiles, TILE, -1).clone()
        if not is_alone:
            x[:, 1:-1] = others[1:-1]
        out = product(x, weight, x.new_zeros(tiles, TILE, factor.shape[1]))
        added = out.clone()
        if not factor.is_prepacked:  # products by these are never added
            add_product(added, x, weight, scaling=0.3)
        got = [result if is_alone else result[:, [0, -1]] for result in (out, added)]
        want = want or [result[0, 0].clone() for result in got]
        if not all(bool((result == one).all()) for result, one in zip(got, want, strict=True)):
            return False
    return True


def _telling(factor: Factor, rows: int) -> tuple[Any, Tensor]:
    """A matrix with these properties, and rows of whose products the order of additions decides most bits.

    The numbers would cancel if sums were exact, and what is left is rounding. Random numbers would hide it in 16 bits:
    there another order of the same sum shows in one number of ten thousand.
    """
    generator = torch.Generator().manual_seed(0)
    inputs, outputs = factor.shape
    weight, x = torch.randn(inputs, outputs, generator=generator), torch.randn(rows, inputs, generator=generator)
    place, half = torch.randperm(inputs, generator=generator), inputs // 2
    weight[place[half : 2 * half]] = weight[place[:half]]
    x[:, place[half : 2 * half]] = -x[:, place[:half]]
    x[:, place[2 * half :]] *= 1e-6
    weight, x = weight.to(factor.device, factor.dtype), x.to(factor.device, factor.dtype)
    if factor.is_prepacked:
        return PrepackedMatrix.of(weight), x
    return (weight.T.contiguous().T if factor.is_transposed else weight), x
