"""Attention of a token to its window and to a few earlier blocks that it chooses, in memory linear in length.

A row is cut into blocks of `window` tokens. A query reads its own block up to itself and the whole block before, so at
least the last `window` tokens, with rotated positions; and the `top` earlier blocks that it likes best, by the part of
queries and keys that is not rotated: nothing that grows with length is ever unseen there. All is weighed by one
softmax. There is no parameter: a model trained with full attention can be read and adapted this way. The choice is each
query's and head's own, hence causal, and has no gradient (mixture of block attention, MoBA, Lu et al. 2025,
arXiv:2502.13189). MoBA likes a block by its mean key; here it is the best mean key of its four quarters, in which one
token that answers is not lost among 31 others. Liking is what still grows with the square of the length, by a small
factor: an eighth of a product of a query and a key for each token before it.

Blocks take queries as experts take tokens: pairs (query, block) are sorted by block and multiplied in tiles of `window`
queries by one block. A query's shares meet by their log-sum-exp, as in flash attention (Dao et al. 2022,
arXiv:2205.14135), and backward computes the tiles anew.

Legend: `R` rows, `H` heads, `G` heads that are computed together, `T` tokens, `W` window, `B` blocks, `Q` their
quarters, `K` blocks that a query reads, `S` pairs sorted by block and filled up to tiles, `M` tiles, `D` width of
queries and keys, `N` the unrotated part of it, which comes first, `V` width of values.

>>> import torch
>>> from confide.kernels.segments import Segments, segment_attention
>>> q, k, v = torch.randn(3, 1, 2, 500, 16).unbind()
>>> segment_attention(q, k, v, 0.25, unrotated=12, segments=Segments(window=32, top=4)).shape
torch.Size([1, 2, 500, 16])
"""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from .errors import UnfitWeights, UnknownBackend
from .segment_tiles import Read, Tiles
from .triton_experts import is_available
from .triton_segments import fits, triton_shares, triton_slopes

VARIABLE = "CONFIDE_SEGMENTS_BACKEND"

_TOKENS = 2**15  # of heads that are computed together, unless one alone has more
_SCORED = 2**19  # scores that are there at a time: what a cache of the processor holds
_HAIR = 2.0**-22  # two units in the last place of float32
QUARTERS = 4  # of a block
_TILES = 1024  # that are multiplied at a time


@dataclass(frozen=True, slots=True)
class Segments:
    """Sizes of the attention."""

    window: int = 32  # tokens of a block, a multiple of 4
    top: int = 8  # earlier blocks that a query reads, beside its own and the one before

    @property
    def borders(self) -> tuple[int, int]:
        """Tokens of a row up to which no query has a block to choose, and up to which every query reads all before."""
        return 2 * self.window, (2 + self.top) * self.window


def segment_attention(
    q_RHTD: Tensor,
    k_RHTD: Tensor,
    v_RHTV: Tensor,
    scale: float,
    *,
    unrotated: int,
    segments: Segments,
    backend: str | None = None,
) -> Tensor:
    """[R, H, T, V]: causal attention of every query to its window and its chosen blocks, differentiable once.

    What follows a token does not reach it, and no row another; padding must be on the right. Scores are weighed in
    float32 at least.

    Args:
        scale: by which products of queries and keys are multiplied.
        unrotated: leading components of queries and keys that hold no position; if none are, all are read far away.
        backend: "torch" or "triton"; None takes what the variable CONFIDE_SEGMENTS_BACKEND names, else what suits the
            device, the dtype and the window.

    Raises:
        UnfitWeights: the shapes do not fit, or the sizes are none.
        UnknownBackend: there is no such backend, or it does not run here.
    """
    tokens, width = q_RHTD.shape[2:]
    if k_RHTD.shape != q_RHTD.shape or v_RHTV.shape[:3] != q_RHTD.shape[:3] or not 0 <= unrotated <= width:
        raise UnfitWeights(
            f"queries {tuple(q_RHTD.shape)}, keys {tuple(k_RHTD.shape)}, values {tuple(v_RHTV.shape)}, of which "
            f"{unrotated} are unrotated"
        )
    if segments.window % QUARTERS or min(segments.window, segments.top) < 1:
        raise UnfitWeights(f"need a window that {QUARTERS} divides, and top of 1 or more, got {segments}")
    chosen = _backend(backend, q_RHTD, segments.window)
    together = max(1, _TOKENS // tokens)  # heads of one row: products of other shapes may be rounded otherwise
    return torch.stack([
        torch.cat([
            cast(Tensor, _SegmentAttention.apply(*some, scale, unrotated or width, segments, chosen))  # type: ignore[no-untyped-call]
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
    spare = segments.top + math.isqrt(blocks)  # blocks behind the last one, to fill groups up
    mean_GNQ = F.pad(quarter_means(k_GTN[:, : blocks * window], window).mT, (0, QUARTERS * spare))
    step = max(1, _SCORED // (heads * QUARTERS * (blocks + spare)))
    q_GTN = q_GTN.to(mean_GNQ.dtype)
    # Written again and again: new memory costs more to touch than all that is computed there.
    room = q_GTN.new_empty(heads * step * QUARTERS * (blocks + spare))
    for start in range(first, tokens, step):
        end = min(start + step, tokens)
        seen = (end - 1) // window - 1
        size = max(1, math.isqrt(seen // segments.top))
        line = seen + -seen % size
        scores_GTQ = room[: heads * (end - start) * QUARTERS * line].view(heads, end - start, -1)
        torch.bmm(q_GTN[:, start:end], mean_GNQ[:, :, : QUARTERS * line], out=scores_GTQ)
        scores_GTBQ = scores_GTQ.view(heads, end - start, line, QUARTERS)
        sure = start // window - 1  # blocks that all these queries may choose
        last_T1 = torch.arange(start, end, device=q_GTN.device)[:, None] // window - 2
        late_TB = torch.arange(sure, line, device=q_GTN.device) > last_T1
        scores_GTBQ[:, :, sure:].masked_fill_(late_TB[..., None], -math.inf)
        best_GTK, blocks_GTK = _largest(scores_GTBQ, segments.top, size)
        found[:, start:end, : blocks_GTK.shape[-1]] = blocks_GTK.masked_fill_(best_GTK == -math.inf, -1)
    return found


def quarter_means(k_GTN: Tensor, window: int, first: int = 0) -> Tensor:
    """[G, Q, N], in float32 at least, the mean key of each quarter of the blocks, which must be whole.

    A later one is longer by a hair, so that of equal keys, as a text that repeats itself has in the first layer, nearly
    always the same are chosen whatever follows.

    Args:
        first: quarters before these.
    """
    heads, tokens, width = k_GTN.shape
    quarter = window // QUARTERS
    kind = torch.promote_types(k_GTN.dtype, torch.float32)
    means_GQN = k_GTN.reshape(heads, tokens // quarter, quarter, width).to(kind).mean(2)
    place_Q1 = torch.arange(first, first + tokens // quarter, dtype=kind, device=k_GTN.device)[:, None]
    return means_GQN.mul_(1 + place_Q1 * _HAIR)


def _largest(scores_GTBQ: Tensor, count: int, size: int) -> tuple[Tensor, Tensor]:
    """[G, T, count] the largest of blocks' best scores and their places; all, if there are fewer.

    They are in as many groups of `size` neighbours, those with the largest maxima: two short searches, not one long.
    """
    heads, queries, line, _ = scores_GTBQ.shape
    if size == 1:
        return scores_GTBQ.amax(-1).topk(min(count, line), sorted=False)
    groups = scores_GTBQ.view(heads, queries, line // size, -1)
    group_GTK = groups.amax(-1).topk(count, sorted=False).indices
    among = groups.gather(-2, group_GTK[..., None].expand(-1, -1, -1, groups.shape[-1]))
    best = among.view(heads, queries, count * size, -1).amax(-1).topk(count, sorted=False)
    return best.values, group_GTK.gather(-1, best.indices // size) * size + best.indices % size


class _Backend(NamedTuple):
    """Computes tiles, and their gradients: see `_shares` and `_slopes`."""

    shares: Callable[[Tiles, Read], tuple[Tensor, Tensor]]
    slopes: Callable[[Tiles, Read, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def _backend(name: str | None, q_RHTD: Tensor, window: int) -> _Backend:
    is_possible = is_available(q_RHTD.device) and fits(q_RHTD.dtype, window)
    suiting = "triton" if is_possible and q_RHTD.device.type == "cuda" else "torch"
    asked = name or os.environ.get(VARIABLE) or suiting
    if asked == "torch":
        return _Backend(_shares, _slopes)
    if asked != "triton":
        raise UnknownBackend(f"backend must be torch or triton, got {asked!r}")
    if not is_possible:
        raise UnknownBackend(
            f"triton does not run on {q_RHTD.device} for {q_RHTD.dtype} and windows of {window}: it takes the package, "
            "an NVIDIA GPU from 8.0 on, float32 or 16 bits, and 16, 32, 64 or 128 tokens"
        )
    return _Backend(triton_shares, triton_slopes)


class _SegmentAttention(Function):
    """Keeps what came in, the result and each query's log-sum-exp for backward, and which blocks were chosen."""

    @staticmethod
    def forward(
        ctx: Any,
        q_GTD: Tensor,
        k_GTD: Tensor,
        v_GTV: Tensor,
        scale: float,
        unrotated: int,
        segments: Segments,
        backend: _Backend,
    ) -> Tensor:
        chosen_GTK = chosen_blocks(q_GTD[..., :unrotated], k_GTD[..., :unrotated], segments)
        tiles = Tiles.of(chosen_GTK, segments.window)
        read = Read.of(q_GTD, k_GTD, v_GTV, scale, unrotated, segments.window)
        out_SV, lse_S = backend.shares(tiles, read)
        slot_TK = tiles.plan.slot_TK
        share_TK = lse_S[slot_TK]
        lse_T = share_TK.logsumexp(-1)
        share_TK = share_TK.sub_(lse_T[:, None]).exp_().to(v_GTV.dtype)
        out_TV = out_SV[slot_TK[:, 0]].mul_(share_TK[:, :1])
        for choice in range(1, slot_TK.shape[1]):
            out_TV.addcmul_(out_SV[slot_TK[:, choice]], share_TK[:, choice, None])
        ctx.save_for_backward(q_GTD, k_GTD, v_GTV, out_TV, lse_T)
        ctx.tiles, ctx.sizes, ctx.backend = tiles, (scale, unrotated, segments.window), backend
        return out_TV.view(v_GTV.shape)

    @staticmethod
    def backward(ctx: Any, grad_GTV: Tensor) -> tuple[Tensor | None, ...]:
        q_GTD, k_GTD, v_GTV, out_TV, lse_T = ctx.saved_tensors
        scale, unrotated, window = ctx.sizes
        read = Read.of(q_GTD, k_GTD, v_GTV, scale, unrotated, window)
        grad_TV = grad_GTV.reshape(out_TV.shape)
        mean_T = (grad_TV.to(lse_T.dtype) * out_TV.to(lse_T.dtype)).sum(-1)
        dq_2TD, dk_BWD, dv_BWV = ctx.backend.slopes(ctx.tiles, read, grad_TV, mean_T, lse_T)
        near_TD, far_TD = dq_2TD
        near_TD[:, :unrotated] += far_TD[:, :unrotated]
        heads, tokens, _ = q_GTD.shape
        dk_GTD, dv_GTV = (part.view(heads, -1, part.shape[-1])[:, :tokens] for part in (dk_BWD, dv_BWV))
        return near_TD.view(q_GTD.shape), dk_GTD, dv_GTV, None, None, None, None


def _shares(tiles: Tiles, read: Read) -> tuple[Tensor, Tensor]:
    """[S + 1, V] what each pair's query takes from its block, and [S + 1] the log-sum-exp of its scores there.

    The last entry is of blocks that are none: nothing, and -inf. What is said of pairs that fill tiles up is not used.
    """
    filled, window = tiles.plan.num_pairs, read.k_BWD.shape[1]
    out_SV = read.v_BWV.new_empty(filled + 1, read.v_BWV.shape[-1])
    lse_S = out_SV.new_empty(filled + 1, dtype=torch.promote_types(out_SV.dtype, torch.float32))
    out_SV[filled], lse_S[filled] = 0, -math.inf
    for part, pairs in _parts(tiles, window):
        scores_MWW = _scores(_queries(tiles, read, part, pairs), tiles, read, part)
        lse_MW = scores_MWW.logsumexp(-1)
        weights_MWW = scores_MWW.sub_(lse_MW[..., None]).exp_().to(out_SV.dtype)
        out_SV[pairs] = (weights_MWW @ read.v_BWV[tiles.block_M[part]]).flatten(0, 1)
        lse_S[pairs] = lse_MW.flatten()
    return out_SV, lse_S


def _slopes(tiles: Tiles, read: Read, grad_TV: Tensor, mean_T: Tensor, lse_T: Tensor) -> tuple[Tensor, Tensor, Tensor]:
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
    for part, pairs in _parts(tiles, window):
        block_M, tokens_S = tiles.block_M[part], plan.token_S[pairs]
        q_MWD = _queries(tiles, read, part, pairs)
        weights_MWW = _scores(q_MWD, tiles, read, part).sub_(lse_S[pairs].view(len(block_M), -1, 1)).exp_()
        grad_MWV = grad_TV[tokens_S].view(len(block_M), window, -1)
        dv_BWV.index_add_(0, block_M, weights_MWW.mT.to(grad_MWV.dtype) @ grad_MWV)
        slope_MWW = (grad_MWV @ read.v_BWV[block_M].mT).to(lse_T.dtype)
        slope_MWW.sub_(mean_T[tokens_S].view(len(block_M), -1, 1)).mul_(weights_MWW).mul_(read.scale)
        slope_MWW = slope_MWW.to(q_MWD.dtype)
        dk_BWD.index_add_(0, block_M, slope_MWW.mT @ q_MWD)
        place_S = tokens_S + (tiles.place_M[part] > 1).repeat_interleave(window) * read.q_2TD.shape[1]
        dq_2TD.flatten(0, 1).index_add_(0, place_S, (slope_MWW @ read.k_BWD[block_M]).flatten(0, 1))
    return dq_2TD, dk_BWD, dv_BWV


def _parts(tiles: Tiles, window: int) -> Iterator[tuple[slice, slice]]:
    """Some tiles after others, and their pairs."""
    for start in range(0, len(tiles.block_M), _TILES):
        end = min(start + _TILES, len(tiles.block_M))
        yield slice(start, end), slice(start * window, end * window)


def _queries(tiles: Tiles, read: Read, part: slice, pairs: slice) -> Tensor:
    """[M, W, D] the queries of some tiles."""
    is_far_M = tiles.place_M[part] > 1
    tokens_MW = tiles.plan.token_S[pairs].view(len(is_far_M), -1)
    return read.q_2TD.flatten(0, 1)[tokens_MW + is_far_M[:, None] * read.q_2TD.shape[1]]


def _scores(q_MWD: Tensor, tiles: Tiles, read: Read, part: slice) -> Tensor:
    """[M, W, W] how well queries and keys fit, in float32 at least; -inf where a key is after the query."""
    scores_MWW = q_MWD @ read.k_BWD[tiles.block_M[part]].mT
    scores_MWW = scores_MWW.to(torch.promote_types(scores_MWW.dtype, torch.float32)) * read.scale
    after_WW = torch.ones(scores_MWW.shape[1:], dtype=torch.bool, device=q_MWD.device).triu(1)
    return scores_MWW.masked_fill_(after_WW & (tiles.place_M[part] == 0)[:, None, None], -math.inf)
