"""Tiles of attention in segments, as its backends are given them: which queries meet which blocks, and read what.

Legend: `G` heads that are computed together, `T` tokens, in a name without `G` those of all heads, `W` window, `B`
blocks of all heads, `K` blocks that a query reads, `S` pairs sorted by block and filled up to tiles, `M` tiles, `D`
width of queries and keys, `V` width of values, `X` one of both.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .routing import Plan, route


class Tiles(NamedTuple):
    """Queries by the block they meet, of several heads at once; tokens and blocks are counted through.

    A query's first two choices are its own block and the one before. A block's tiles are consecutive.
    """

    plan: Plan  # of G * T tokens to B blocks, tiled
    block_M: Tensor
    place_M: Tensor  # of a tile among those of its block: 0 has the block's own queries, 1 the next block's

    @classmethod
    def of(cls, chosen_GTK: Tensor, window: int) -> "Tiles":
        """Sorts the queries by their own block, the one before and the chosen ones; -1 is none."""
        heads, tokens, _ = chosen_GTK.shape
        own_T = torch.arange(tokens, device=chosen_GTK.device) // window
        near_GTK = torch.stack([own_T, own_T - 1], -1).expand(heads, -1, -1)
        blocks_GTK = torch.cat([near_GTK, chosen_GTK], -1)
        each = -(-tokens // window)
        first_G11 = torch.arange(heads, device=chosen_GTK.device)[:, None, None] * each
        ids_GTK = torch.where(blocks_GTK < 0, heads * each, blocks_GTK + first_G11)
        plan = route(ids_GTK.flatten(0, 1), heads * each).tiled(window)
        sizes = [(part.stop - part.start) // window for _, part in plan.slices]
        tiles_B = torch.tensor(sizes, device=chosen_GTK.device)  # every block has its own queries
        block_M = torch.repeat_interleave(torch.arange(len(sizes), device=chosen_GTK.device), tiles_B)
        first_B = tiles_B.cumsum(0) - tiles_B
        return cls(plan, block_M, torch.arange(len(block_M), device=chosen_GTK.device) - first_B[block_M])


class Read(NamedTuple):
    """Queries, keys and values as tiles read them."""

    q_2TD: Tensor  # of all heads, first whole, then with nothing but the unrotated part
    k_BWD: Tensor  # filled up to whole blocks with zeros
    v_BWV: Tensor
    scale: float

    @classmethod
    def of(cls, q_GTD: Tensor, k_GTD: Tensor, v_GTV: Tensor, scale: float, unrotated: int, window: int) -> "Read":
        """Cuts keys and values into blocks."""
        far_GTD = q_GTD.clone()
        far_GTD[..., unrotated:] = 0
        q_2TD = torch.stack([q_GTD, far_GTD]).flatten(1, 2)
        return cls(q_2TD, _in_blocks(k_GTD, window), _in_blocks(v_GTV, window), scale)


def _in_blocks(part_GTX: Tensor, window: int) -> Tensor:
    """[B, W, X], of all heads."""
    return F.pad(part_GTX, (0, 0, 0, -part_GTX.shape[1] % window)).reshape(-1, window, part_GTX.shape[-1])
