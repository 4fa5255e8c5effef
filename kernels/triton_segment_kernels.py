"""Device code of attention in segments; `triton_segments` launches it.

A tile is a window of queries, gathered by token, and one block of as many keys and values. Pairs (query, block) are
sorted by block and filled up to tiles, so all tiles are full and a block's tiles are consecutive: the first one has the
block's own queries, the second the next block's, the others read the block from far away. Every output element is
written by one program, and sums run in a fixed order: no atomics, and a repeat gives the same bits. Widths of the model
are constants of the compiled code, which lets it drop the masks of tiles that divide them.

The interpreter (TRITON_INTERPRET=1) runs all of this on the CPU, in float32 only: its bfloat16 products are wrong.

Legend: `T` tokens of all heads, `W` window, `B` blocks, `K` blocks that a query reads, `S` pairs sorted by block and
filled up to tiles, `M` tiles, `D` width of queries and keys, `V` width of values.
"""

import triton
import triton.language as tl

NEAR = tl.constexpr(2)  # choices of a query, the first ones: its own block and the one before; the others are far


@triton.jit
def _gathered(rows_TX, row, first, WIDTH: tl.constexpr, COLS: tl.constexpr):
    """[rows, COLS] of some rows, from column `first` on; past the width zeros."""
    col = first + tl.arange(0, COLS)[None, :]
    place = rows_TX + row[:, None] * WIDTH + col
    return tl.load(place) if WIDTH % COLS == 0 else tl.load(place, mask=col < WIDTH, other=0.0)


@triton.jit
def _turned(rows_TX, row, first, WIDTH: tl.constexpr, COLS: tl.constexpr):
    """[COLS, rows], the transpose of `_gathered`."""
    col = first + tl.arange(0, COLS)[:, None]
    place = rows_TX + row[None, :] * WIDTH + col
    return tl.load(place) if WIDTH % COLS == 0 else tl.load(place, mask=col < WIDTH, other=0.0)


@triton.jit
def _product(
    left_TX, left_row, right_TX, right_row, WIDTH: tl.constexpr, W: tl.constexpr, PRECISION: tl.constexpr,
    DEPTH: tl.constexpr,
):  # fmt: skip
    """[W, W]: left right^T of W rows of both, in float32."""
    total = tl.zeros((W, W), dtype=tl.float32)
    for start in range(0, WIDTH, DEPTH):
        left = _gathered(left_TX, left_row, start, WIDTH, DEPTH)
        right = _turned(right_TX, right_row, start, WIDTH, DEPTH)
        total = tl.dot(left, right, total, input_precision=PRECISION)
    return total


@triton.jit
def _store_product(
    left, right_BWX, key, out_SX, pair, WIDTH: tl.constexpr, PRECISION: tl.constexpr, COLS: tl.constexpr
):
    """Stores left times the rows of a block as rows of `out`, COLS columns after others."""
    for start in range(0, WIDTH, COLS):
        out = tl.dot(left, _gathered(right_BWX, key, start, WIDTH, COLS), input_precision=PRECISION)
        col = start + tl.arange(0, COLS)[None, :]
        place = out_SX + pair[:, None] * WIDTH + col
        tl.store(place, out.to(out_SX.dtype.element_ty), mask=col < WIDTH)


@triton.jit
def _tile(token_S, block_M, W: tl.constexpr):
    """This program's pairs, their tokens, and the rows of their block among all keys."""
    tile = tl.program_id(0).to(tl.int64)
    pair = tile * W + tl.arange(0, W)
    return pair, tl.load(token_S + pair), tl.load(block_M + tile) * W + tl.arange(0, W)


@triton.jit
def _scores(
    q_2TD, k_BWD, place_M, token, key, tokens, scale,
    D: tl.constexpr, W: tl.constexpr, PRECISION: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """[W, W] how well queries and keys of this program's tile fit; -inf where a key is after the query."""
    place = tl.load(place_M + tl.program_id(0))
    query = token + tl.where(place > 1, tokens, 0)  # the rows behind all queries have their unrotated part alone
    scores = _product(q_2TD, query, k_BWD, key, D, W, PRECISION, DEPTH) * scale
    step = tl.arange(0, W)
    return tl.where((place == 0) & (step[None, :] > step[:, None]), -float("inf"), scores)


@triton.jit
def shares_kernel(
    q_2TD, k_BWD, v_BWV, token_S, block_M, place_M, out_SV, lse_S, tokens, scale,
    D: tl.constexpr, V: tl.constexpr, W: tl.constexpr, PRECISION: tl.constexpr, COLS: tl.constexpr,
    DEPTH: tl.constexpr,
):  # fmt: skip
    """Writes what each query of a tile takes from its block, and the log-sum-exp of its scores there."""
    pair, token, key = _tile(token_S, block_M, W)
    scores = _scores(q_2TD, k_BWD, place_M, token, key, tokens, scale, D, W, PRECISION, DEPTH)
    largest = tl.max(scores, axis=1)  # a query reads at least itself, so it is finite
    weights = tl.exp(scores - largest[:, None])
    total = tl.sum(weights, axis=1)
    tl.store(lse_S + pair, largest + tl.log(total))
    weights = (weights / total[:, None]).to(v_BWV.dtype.element_ty)
    _store_product(weights, v_BWV, key, out_SV, pair, V, PRECISION, COLS)


@triton.jit
def slopes_kernel(
    q_2TD, k_BWD, v_BWV, grad_TV, token_S, block_M, place_M, lse_S, mean_T, weights_SW, slopes_SW, dq_SD, tokens, scale,
    D: tl.constexpr, V: tl.constexpr, W: tl.constexpr, PRECISION: tl.constexpr, COLS: tl.constexpr,
    DEPTH: tl.constexpr,
):  # fmt: skip
    """Writes a tile's weights, the gradients of its scores, and those of each pair's query, from the result's."""
    pair, token, key = _tile(token_S, block_M, W)
    scores = _scores(q_2TD, k_BWD, place_M, token, key, tokens, scale, D, W, PRECISION, DEPTH)
    weights = tl.exp(scores - tl.load(lse_S + pair)[:, None])
    square = pair[:, None] * W + tl.arange(0, W)[None, :]
    tl.store(weights_SW + square, weights.to(weights_SW.dtype.element_ty))
    slopes = _product(grad_TV, token, v_BWV, key, V, W, PRECISION, DEPTH)
    slopes = (slopes - tl.load(mean_T + token)[:, None]) * weights * scale
    slopes = slopes.to(slopes_SW.dtype.element_ty)
    tl.store(slopes_SW + square, slopes)
    _store_product(slopes, k_BWD, key, dq_SD, pair, D, PRECISION, COLS)


@triton.jit
def block_sums_kernel(
    left_SW, right_TX, token_S, first_B1, out_BWX, far,
    WIDTH: tl.constexpr, W: tl.constexpr, PRECISION: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """out[b] = left^T right over the pairs of block b, tile after tile; rows of `right` are gathered by token.

    A far tile's rows lie `far` behind: those of queries without their rotated part.
    """
    block = tl.program_id(0).to(tl.int64)
    start = tl.program_id(1) * COLS
    step = tl.arange(0, W)
    first, end = tl.load(first_B1 + block), tl.load(first_B1 + block + 1)
    total = tl.zeros((W, COLS), dtype=tl.float32)
    for tile in range(first, end):
        pair = tile * W + step
        row = tl.load(token_S + pair) + tl.where(tile > first + 1, far, 0)
        left = _turned(left_SW, pair, 0, W, W)
        total = tl.dot(left, _gathered(right_TX, row, start, WIDTH, COLS), total, input_precision=PRECISION)
    col = start + tl.arange(0, COLS)[None, :]
    place = out_BWX + (block * W + step[:, None]) * WIDTH + col
    tl.store(place, total.to(out_BWX.dtype.element_ty), mask=col < WIDTH)


@triton.jit
def _sum_of_choices(
    dq_SD, slot_TK, token, exists, col, num_pairs, FIRST: tl.constexpr, END: tl.constexpr, D: tl.constexpr,
    K: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """[ROWS, COLS]: the rows of some choices of each token added up, without those that chose no block."""
    total = tl.zeros((ROWS, COLS), dtype=tl.float32)
    for choice in range(FIRST, END):
        slot = tl.load(slot_TK + token * K + choice, mask=exists, other=num_pairs)[:, None]
        inside = (slot < num_pairs) & (col[None, :] < D)
        total += tl.load(dq_SD + slot * D + col[None, :], mask=inside, other=0.0).to(tl.float32)
    return total


@triton.jit
def query_sums_kernel(
    dq_SD, slot_TK, dq_2TD, tokens, num_pairs, D: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr
):
    """dq[0, t] = sum of the rows of token t's near choices, and dq[1, t] of its far ones, in their order."""
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    exists = token < tokens
    stored = exists[:, None] & (col[None, :] < D)
    dtype: tl.constexpr = dq_2TD.dtype.element_ty
    near = _sum_of_choices(dq_SD, slot_TK, token, exists, col, num_pairs, 0, NEAR, D, K, ROWS, COLS)
    tl.store(dq_2TD + token[:, None] * D + col[None, :], near.to(dtype), mask=stored)
    far = _sum_of_choices(dq_SD, slot_TK, token, exists, col, num_pairs, NEAR, K, D, K, ROWS, COLS)
    tl.store(dq_2TD + (tokens + token[:, None]) * D + col[None, :], far.to(dtype), mask=stored)
