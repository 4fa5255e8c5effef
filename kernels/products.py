"""Matrix products of rows, and of tiles of rows whose bits do not depend on how many tiles there are.

How a library rounds a row of a product depends on the shape of the whole: it picks its kernels and the order of
additions by that. So rows that belong to different privacy units are multiplied in tiles of one shape. `tiles_agree`
tests on the machine at hand that the number of tiles in a call does not matter, for every number that occurs.

Legend: `I` inputs, `O` outputs.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

TILE = 32  # rows; fewer cost speed, more are filled up in vain
_TILES = 8  # of one call


class Factor(NamedTuple):
    """The properties of a matrix by which a library may choose how to multiply by it."""

    shape: tuple[int, int]  # inputs, outputs
    is_transposed: bool  # in memory
    dtype: torch.dtype
    device: torch.device


_seen: list[set[Factor]] = []  # that `_note` adds to


def product(x: Tensor, weight_IO: Tensor, out: Tensor) -> Tensor:
    """Writes x W for rows [S, I] or tiles of rows [tiles, S, I]."""
    if x.ndim == 2:
        return torch.mm(x, weight_IO, out=out)
    _note(weight_IO)
    for few, few_out in zip(torch.split(x, _TILES), torch.split(out, _TILES), strict=True):
        torch.bmm(few, weight_IO.expand(len(few), *weight_IO.shape), out=few_out)
    return out


def add_product(out: Tensor, x: Tensor, weight_IO: Tensor, *, scaling: float = 1.0) -> None:
    """Adds scaling x W to `out`, for rows or tiles of rows."""
    if x.ndim == 2:
        out.addmm_(x, weight_IO, alpha=scaling)
        return
    _note(weight_IO)
    for few, few_out in zip(torch.split(x, _TILES), torch.split(out, _TILES), strict=True):
        few_out.baddbmm_(few, weight_IO.expand(len(few), *weight_IO.shape), alpha=scaling)


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
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(factor.device, factor.dtype)

    weight = draw(*reversed(factor.shape)).T if factor.is_transposed else draw(*factor.shape)
    row_I, others = draw(len(weight)), draw(TILE, len(weight))
    want: list[Tensor] = []
    for tiles, is_alone in itertools.product(range(1, _TILES + 1), (True, False)):
        x = row_I.expand(tiles, TILE, -1).clone()
        if not is_alone:
            x[:, 1:-1] = others[1:-1]
        out = product(x, weight, x.new_zeros(tiles, TILE, weight.shape[1]))
        added = out.clone()
        add_product(added, x, weight, scaling=0.3)
        got = [result if is_alone else result[:, [0, -1]] for result in (out, added)]
        want = want or [result[0, 0].clone() for result in got]
        if not all(bool((result == one).all()) for result, one in zip(got, want, strict=True)):
            return False
    return True


def _note(weight_IO: Tensor) -> None:
    for seen in _seen:
        inputs, outputs = weight_IO.shape
        is_transposed = weight_IO.stride(0) == 1 and inputs > 1
        seen.add(Factor((inputs, outputs), is_transposed, weight_IO.dtype, weight_IO.device))
