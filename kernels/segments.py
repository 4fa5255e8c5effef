"""Attention of a token to its window and to a few earlier blocks that it chooses: cost and memory linear in length.

A row is cut into blocks of `window` tokens. A query reads its own block up to itself and the whole block before, so at
least the last `window` tokens, with rotated positions; and the `top` earlier blocks whose mean key it likes best, by
the part of queries and keys that is not rotated: nothing that grows with length is ever unseen there. All is weighed by
one softmax. There is no parameter: a model trained with full attention can be read and adapted this way. The choice is
each query's and head's own, hence causal, and has no gradient (mixture of block attention, MoBA, Lu et al. 2025,
arXiv:2502.13189).

Blocks take queries as experts take tokens: pairs (query, block) are sorted by block and multiplied in tiles of `window`
queries by one block. A query's shares meet by their log-sum-exp, as in flash attention (Dao et al. 2022,
arXiv:2205.14135), and backward computes the tiles anew.

Legend: `R` rows, `H` heads, `G` heads that are computed together, `T` tokens, `W` window, `B` blocks, `K` blocks that a
query reads, `S` pairs sorted by block and filled up to tiles, `M` tiles, `D` width of queries and keys, `N` the
unrotated part of it, which comes first, `V` width of values.

>>> import torch
>>> from confide.kernels.segments import Segments, segment_attention
>>> q, k, v = torch.randn(3, 1, 2, 500, 16).unbind()
>>> segment_attention(q, k, v, 0.25, unrotated=12, segments=Segments(window=32, top=4)).shape
torch.Size([1, 2, 500, 16])
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from .errors import UnfitWeights
from .routing import Plan, route

_TOKENS = 2**15  # of heads that are computed together, unless one alone has more
_SCORED = 2**22  # scores of (query, block) that are there at a time
_TILES = 1024  # that are multiplied at a time


@dataclass(frozen=True, slots=True)
class Segments:
    """Sizes of the attention."""

    window: int = 32  # tokens of a block
    top: int = 8  # earlier blocks that a query reads, beside its own and the one before

    @property
    def borders(self) -> tuple[int, int]:
        """Tokens of a row up to which no query has a block to choose, and up to which every query reads all before."""
        return 2 * self.window, (2 + self.top) * self.window


def segment_attention(
    q_RHTD: Tensor, k_RHTD: Tensor, v_RHTV: Tensor, scale: float, *, unrotated: int, segments: Segments
) -> Tensor:
    """[R, H, T, V]: causal attention of every query to its window and its chosen blocks, differentiable once.

    What follows a token does not reach it, and no row another; padding must be on the right. Scores are weighed in
    float32 at least.

    Args:
        scale: by which products of queries and keys are multiplied.
        unrotated: leading components of queries and keys that hold no position; if none are, all are read far away.

    Raises:
        UnfitWeights: the shapes do not fit.
    """
    tokens, width = q_RHTD.shape[2:]
    if k_RHTD.shape != q_RHTD.shape or v_RHTV.shape[:3] != q_RHTD.shape[:3] or not 0 <= unrotated <= width:
        raise UnfitWeights(
            f"queries {tuple(q_RHTD.shape)}, keys {tuple(k_RHTD.shape)}, values {tuple(v_RHTV.shape)}, of which "
            f"{unrotated} are unrotated"
        )
    together = max(1, _TOKENS // tokens)  # heads of one row: products of other shapes may be rounded otherwise
    return torch.stack([
        torch.cat([
            cast(Tensor, _SegmentAttention.apply(*some, scale, unrotated or width, segments))  # type: ignore[no-untyped-call]
            for some in zip(*(part.split(together) for part in row), strict=True)
        ])
        for row in zip(q_RHTD, k_RHTD, v_RHTV, strict=True)
    ])  # fmt: skip


@torch.no_grad()
def chosen_blocks(q_GTN: Tensor, k_GTN: Tensor, segments: Segments) -> Tensor:
    """[G, T, top] the blocks before the previous one that each query likes best; -1 where there are fewer."""
    heads, tokens, _ = q_GTN.shape
    window, blocks = segments.window, tokens // segments.window
    found = torch.full((heads, tokens, segments.top), -1, device=q_GTN.device)
    first = 2 * window  # the first query that has a choice
    if tokens <= first:
        return found
    spare = segments.top + math.isqrt(blocks)  # columns behind the last block, to fill groups up
    mean_GNB = F.pad(k_GTN[:, : blocks * window].view(heads, blocks, window, -1).mean(2).mT, (0, spare))
    step = max(window, _SCORED // (heads * blocks) // window * window)
    for start in range(first, tokens, step):
        end = min(start + step, tokens)
        seen = (end - 1) // window - 1
        size = max(1, math.isqrt(seen // segments.top))
        scores_GTB = q_GTN[:, start:end] @ mean_GNB[:, :, : seen + -seen % size]
        sure = start // window - 1  # blocks that all these queries may choose
        last_T1 = torch.arange(start, end, device=q_GTN.device)[:, None] // window - 2
        late_TB = torch.arange(sure, scores_GTB.shape[-1], device=q_GTN.device) > last_T1
        scores_GTB[..., sure:].masked_fill_(late_TB, -math.inf)
        best_GTK, blocks_GTK = _largest(scores_GTB, segments.top, size)
        found[:, start:end, : blocks_GTK.shape[-1]] = blocks_GTK.masked_fill_(best_GTK == -math.inf, -1)
    return found


def _largest(scores_GTB: Tensor, count: int, size: int) -> tuple[Tensor, Tensor]:
    """[G, T, count] the largest numbers of a line and their places; all, if there are fewer.

    They are in as many groups of `size` neighbours, those with the largest maxima: two short searches, not one long.
    """
    line = scores_GTB.shape[-1]
    if size == 1:
        return scores_GTB.topk(min(count, line), sorted=False)
    groups = scores_GTB.view(*scores_GTB.shape[:2], -1, size)
    group_GTK = groups.amax(-1).topk(count, sorted=False).indices
    best = groups.gather(-2, group_GTK[..., None].expand(*group_GTK.shape, size)).flatten(-2).topk(count, sorted=False)
    return best.values, group_GTK.gather(-1, best.indices // size) * size + best.indices % size


class _Tiles(NamedTuple):
    """Which queries meet which blocks, of several heads at once; tokens and blocks are counted through."""

    plan: Plan  # of G * T tokens to B blocks, tiled
    block_M: Tensor
    place_M: Tensor  # of a tile among those of its block: 0 has the block's own queries, 1 the next block's

    @classmethod
    def of(cls, q_GTD: Tensor, k_GTD: Tensor, unrotated: int, segments: Segments) -> "_Tiles":
        """Chooses blocks, and sorts the queries by them."""
        heads, tokens, _ = q_GTD.shape
        chosen_GTK = chosen_blocks(q_GTD[..., :unrotated], k_GTD[..., :unrotated], segments)
        own_T = torch.arange(tokens, device=q_GTD.device) // segments.window
        near_GTK = torch.stack([own_T, own_T - 1], -1).expand(heads, -1, -1)
        blocks_GTK = torch.cat([near_GTK, chosen_GTK], -1)
        each = -(-tokens // segments.window)
        first_G11 = torch.arange(heads, device=q_GTD.device)[:, None, None] * each
        ids_GTK = torch.where(blocks_GTK < 0, heads * each, blocks_GTK + first_G11)
        plan = route(ids_GTK.flatten(0, 1), heads * each).tiled(segments.window)
        sizes = [(part.stop - part.start) // segments.window for _, part in plan.slices]
        tiles_B = torch.tensor(sizes, device=q_GTD.device)  # every block has its own queries
        block_M = torch.repeat_interleave(torch.arange(len(sizes), device=q_GTD.device), tiles_B)
        first_B = tiles_B.cumsum(0) - tiles_B
        return cls(plan, block_M, torch.arange(len(block_M), device=q_GTD.device) - first_B[block_M])

    def parts(self, window: int) -> Iterator[tuple[slice, slice]]:
        """Some tiles after others, and their pairs."""
        for start in range(0, len(self.block_M), _TILES):
            end = min(start + _TILES, len(self.block_M))
            yield slice(start, end), slice(start * window, end * window)


class _Read(NamedTuple):
    """Queries, keys and values as tiles read them."""

    q_2TD: Tensor  # of all heads, first whole, then with nothing but the unrotated part
    k_BWD: Tensor  # filled up to whole blocks with zeros
    v_BWV: Tensor
    scale: float

    @classmethod
    def of(cls, q_GTD: Tensor, k_GTD: Tensor, v_GTV: Tensor, scale: float, unrotated: int, window: int) -> "_Read":
        """Cuts keys and values into blocks."""
        far_GTD = q_GTD.clone()
        far_GTD[..., unrotated:] = 0
        q_2TD = torch.stack([q_GTD, far_GTD]).flatten(1, 2)
        return cls(q_2TD, _in_blocks(k_GTD, window), _in_blocks(v_GTV, window), scale)

    def queries(self, tiles: _Tiles, part: slice, pairs: slice) -> Tensor:
        """[M, W, D] the queries of some tiles."""
        is_far_M = tiles.place_M[part] > 1
        tokens_MW = tiles.plan.token_S[pairs].view(len(is_far_M), -1)
        return self.q_2TD.flatten(0, 1)[tokens_MW + is_far_M[:, None] * self.q_2TD.shape[1]]

    def scores(self, q_MWD: Tensor, tiles: _Tiles, part: slice) -> Tensor:
        """[M, W, W] how well queries and keys fit, in float32 at least; -inf where a key is after the query."""
        scores_MWW = q_MWD @ self.k_BWD[tiles.block_M[part]].mT
        scores_MWW = scores_MWW.to(torch.promote_types(scores_MWW.dtype, torch.float32)) * self.scale
        after_WW = torch.ones(scores_MWW.shape[1:], dtype=torch.bool, device=q_MWD.device).triu(1)
        return scores_MWW.masked_fill_(after_WW & (tiles.place_M[part] == 0)[:, None, None], -math.inf)


def _in_blocks(part_GTX: Tensor, window: int) -> Tensor:
    """[B, W, X], of all heads."""
    return F.pad(part_GTX, (0, 0, 0, -part_GTX.shape[1] % window)).reshape(-1, window, part_GTX.shape[-1])


class _SegmentAttention(Function):
    """Keeps what came in, the result and each query's log-sum-exp for backward, and which blocks were chosen."""

    @staticmethod
    def forward(
        ctx: Any, q_GTD: Tensor, k_GTD: Tensor, v_GTV: Tensor, scale: float, unrotated: int, segments: Segments
    ) -> Tensor:
        tiles = _Tiles.of(q_GTD, k_GTD, unrotated, segments)
        read = _Read.of(q_GTD, k_GTD, v_GTV, scale, unrotated, segments.window)
        out_SV, lse_S = _shares(tiles, read)
        slot_TK = tiles.plan.slot_TK
        share_TK = lse_S[slot_TK]
        lse_T = share_TK.logsumexp(-1)
        share_TK = share_TK.sub_(lse_T[:, None]).exp_().to(v_GTV.dtype)
        out_TV = out_SV[slot_TK[:, 0]].mul_(share_TK[:, :1])
        for choice in range(1, slot_TK.shape[1]):
            out_TV.addcmul_(out_SV[slot_TK[:, choice]], share_TK[:, choice, None])
        ctx.save_for_backward(q_GTD, k_GTD, v_GTV, out_TV, lse_T)
        ctx.tiles, ctx.sizes = tiles, (scale, unrotated, segments.window)
        return out_TV.view(v_GTV.shape)

    @staticmethod
    def backward(ctx: Any, grad_GTV: Tensor) -> tuple[Tensor | None, ...]:
        q_GTD, k_GTD, v_GTV, out_TV, lse_T = ctx.saved_tensors
        scale, unrotated, window = ctx.sizes
        read = _Read.of(q_GTD, k_GTD, v_GTV, scale, unrotated, window)
        grad_TV = grad_GTV.reshape(out_TV.shape)
        mean_T = (grad_TV.to(lse_T.dtype) * out_TV.to(lse_T.dtype)).sum(-1)
        dq_2TD, dk_BWD, dv_BWV = _slopes(ctx.tiles, read, grad_TV, mean_T, lse_T)
        near_TD, far_TD = dq_2TD
        near_TD[:, :unrotated] += far_TD[:, :unrotated]
        heads, tokens, _ = q_GTD.shape
        dk_GTD, dv_GTV = (part.view(heads, -1, part.shape[-1])[:, :tokens] for part in (dk_BWD, dv_BWV))
        return near_TD.view(q_GTD.shape), dk_GTD, dv_GTV, None, None, None


def _shares(tiles: _Tiles, read: _Read) -> tuple[Tensor, Tensor]:
    """[S + 1, V] what each pair's query takes from its block, and [S + 1] the log-sum-exp of its scores there.

    The last entry is of blocks that are none: nothing, and -inf. What is said of pairs that fill tiles up is not used.
    """
    filled, window = tiles.plan.num_pairs, read.k_BWD.shape[1]
    out_SV = read.v_BWV.new_empty(filled + 1, read.v_BWV.shape[-1])
    lse_S = out_SV.new_empty(filled + 1, dtype=torch.promote_types(out_SV.dtype, torch.float32))
    out_SV[filled], lse_S[filled] = 0, -math.inf
    for part, pairs in tiles.parts(window):
        scores_MWW = read.scores(read.queries(tiles, part, pairs), tiles, part)
        lse_MW = scores_MWW.logsumexp(-1)
        weights_MWW = scores_MWW.sub_(lse_MW[..., None]).exp_().to(out_SV.dtype)
        out_SV[pairs] = (weights_MWW @ read.v_BWV[tiles.block_M[part]]).flatten(0, 1)
        lse_S[pairs] = lse_MW.flatten()
    return out_SV, lse_S


def _slopes(
    tiles: _Tiles, read: _Read, grad_TV: Tensor, mean_T: Tensor, lse_T: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `read.q_2TD`, `read.k_BWD` and `read.v_BWV`.

    Args:
        grad_TV: of the result.
        mean_T: its product with the result.
        lse_T: log-sum-exp of all scores of a query.
    """
    plan, window = tiles.plan, read.k_BWD.shape[1]
    lse_S = lse_T.new_full((plan.num_pairs + 1,), math.inf)  # what fills tiles up has no share
    lse_S[plan.slot_TK] = lse_T[:, None]
    dq_2TD, dk_BWD, dv_BWV = (torch.zeros_like(part) for part in (read.q_2TD, read.k_BWD, read.v_BWV))
    for part, pairs in tiles.parts(window):
        block_M, tokens_S = tiles.block_M[part], plan.token_S[pairs]
        q_MWD = read.queries(tiles, part, pairs)
        weights_MWW = read.scores(q_MWD, tiles, part).sub_(lse_S[pairs].view(len(block_M), -1, 1)).exp_()
        grad_MWV = grad_TV[tokens_S].view(len(block_M), window, -1)
        dv_BWV.index_add_(0, block_M, weights_MWW.mT.to(grad_MWV.dtype) @ grad_MWV)
        slope_MWW = (grad_MWV @ read.v_BWV[block_M].mT).to(lse_T.dtype)
        slope_MWW.sub_(mean_T[tokens_S].view(len(block_M), -1, 1)).mul_(weights_MWW).mul_(read.scale)
        slope_MWW = slope_MWW.to(q_MWD.dtype)
        dk_BWD.index_add_(0, block_M, slope_MWW.mT @ q_MWD)
        place_S = tokens_S + (tiles.place_M[part] > 1).repeat_interleave(window) * read.q_2TD.shape[1]
        dq_2TD.flatten(0, 1).index_add_(0, place_S, (slope_MWW @ read.k_BWD[block_M]).flatten(0, 1))
    return dq_2TD, dk_BWD, dv_BWV
