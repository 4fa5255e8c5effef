"""Attention in segments as plain products: what `kernels.segments` computes, for graphs and for other machines.

Every score is computed and those that are not read are masked, so that a step costs as much as full attention does.

Legend: `R` rows, `H` heads, `Q` queries, `S` tokens that are remembered, `D` width of queries and keys, `N` the
unrotated part of it, `B` blocks.
"""

import math
from typing import Any

import torch
from torch import Tensor

NAME = "confide_segments_plain"  # as transformers knows it
_QUARTERS, _HAIR = 4, 2.0**-22  # see `kernels.segments`


def read_in_segments(model: Any, window: int, top: int) -> None:
    """Gives a DeepSeek-V3 of transformers this attention."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _no_mask)
    for layer in model.model.layers:
        layer.self_attn.segments_window, layer.self_attn.segments_top = window, top
    model.set_attn_implementation(NAME)


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float, *, unrotated: int, window: int, top: int) -> Tensor:
    """[R, H, Q, V]: the last Q of S tokens read their own block, the one before, and `top` that they like best.

    Near tokens are weighed with their positions, far ones by the unrotated part alone.
    """
    queries, tokens = query.shape[2], key.shape[2]
    block_Q1 = (tokens - queries + torch.arange(queries))[:, None] // window
    place_S = torch.arange(tokens)
    is_past_QS = place_S <= (tokens - queries + torch.arange(queries))[:, None]
    is_near_QS = is_past_QS & (place_S // window >= block_Q1 - 1)
    far_RHQN, far_RHSN = query[..., :unrotated], key[..., :unrotated]
    chosen_RHQB = _chosen(far_RHQN, far_RHSN, block_Q1, window, top)
    near_RHQS = query @ key.mT
    scores_RHQS = torch.where(is_near_QS, near_RHQS, far_RHQN @ far_RHSN.mT) * scale
    is_read_RHQS = is_near_QS | chosen_RHQB[..., place_S // window]
    weights_RHQS = scores_RHQS.masked_fill(~is_read_RHQS, -math.inf).softmax(-1)
    return weights_RHQS @ value


def _chosen(query: Tensor, key: Tensor, block_Q1: Tensor, window: int, top: int) -> Tensor:
    """bool [R, H, Q, B], the blocks before the previous one that each query likes best, by their quarters' means."""
    tokens, width = key.shape[2], key.shape[3]
    # As many blocks as are whole, and `top` more, which are too late for every query: so there are always enough.
    filled = torch.cat([key, key.new_zeros(*key.shape[:2], (top + 1) * window, width)], 2)
    blocks = tokens // window + top
    quarters = filled[:, :, : blocks * window].reshape(*key.shape[:2], blocks * _QUARTERS, window // _QUARTERS, width)
    means = quarters.float().mean(3) * (1 + torch.arange(blocks * _QUARTERS, dtype=torch.float32)[:, None] * _HAIR)
    liked = query.float() @ means.mT
    scores_RHQB = liked.reshape(*liked.shape[:-1], blocks, _QUARTERS).amax(-1)
    best = scores_RHQB.masked_fill(torch.arange(blocks) > block_Q1 - 2, -math.inf).topk(top, -1)
    is_there = (best.values > -math.inf).to(scores_RHQB.dtype)
    return torch.zeros_like(scores_RHQB).scatter(-1, best.indices, is_there) > 0


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    out = attend(
        query, key, value, scaling, unrotated=module.qk_nope_head_dim or query.shape[-1],
        window=module.segments_window, top=module.segments_top,
    )  # fmt: skip
    return out.transpose(1, 2).contiguous(), None


def _no_mask(**_: Any) -> None:
    """Makes no mask: rows are padded on the right, and a token reads nothing behind it."""
