"""Device code of routed experts with LoRA; `triton_experts` launches it.

Pairs are sorted by expert, and one program computes a tile of consecutive pairs of one expert. Which ones is read from
a table of a size that depends on shapes alone, so the grid does not wait for the routing; entries that are not needed
name expert -1. Every output element is written by one program, and sums run in a fixed order: no atomics, and a repeat
gives the same bits. Widths of the model are constants of the compiled code, which lets it drop the masks of tiles that
divide them. Rows past the end of an expert repeat its last row and are not stored.

Triton tells constants from arguments by `tl.constexpr`. The interpreter (TRITON_INTERPRET=1) runs all of this on the
CPU, in float32 only: its bfloat16 products are wrong.

Legend: `T` tokens, `D` model, `F` expert hidden, `G` = 2F (gate rows first), `E` experts, `K` top-k, `S` routed pairs,
`P` = T*K pairs in the order of the router, `R` rank (padded to `RANK`), `M` tiles, `N` runs of pairs. In a product
[S, depth] x [depth, width], `A` and `B` are the factors of the adapter as the forward pass knows them.
"""

import triton
import triton.language as tl

DENSE, INT8_ROW, NF4_BLOCK64, FP8_BLOCK128 = (tl.constexpr(number) for number in range(4))


@triton.jit
def _tile_of_pairs(tiles_M3, ROWS: tl.constexpr):
    """Expert of this program's tile, its rows, those rows kept inside the expert, and which of them exist."""
    entry = tiles_M3 + 3 * tl.program_id(1)
    expert, first, end = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
    row = first + tl.arange(0, ROWS)
    return expert.to(tl.int64), tl.minimum(row, tl.maximum(end - 1, 0)).to(tl.int64), row < end


@triton.jit
def _weight_tile(
    codes, scales, levels, expert, start, depth, first, col, DEPTH_END: tl.constexpr, WIDTH: tl.constexpr,
    TRANSPOSED: tl.constexpr, FORMAT: tl.constexpr, IS_EVEN: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """The [depth, col] tile of W^T, or with TRANSPOSED of W, widened; depths begin at `start`, columns at `first`.

    W is stored as [E, WIDTH, DEPTH_END], with TRANSPOSED as [E, DEPTH_END, WIDTH]. Outside of it the tile is zero.
    Scales are rounded to `dtype` before they multiply, as the formats say.
    """
    SIZE: tl.constexpr = WIDTH * DEPTH_END
    if FORMAT == NF4_BLOCK64:
        return _nf4_tile(codes, scales, levels, expert, start, depth, first, col, DEPTH_END, WIDTH, TRANSPOSED, dtype)
    else:
        place = depth[:, None] * WIDTH + col[None, :] if TRANSPOSED else col[None, :] * DEPTH_END + depth[:, None]
        if IS_EVEN:
            code = tl.load(codes + expert * SIZE + place)
        else:
            inside = (depth[:, None] < DEPTH_END) & (col[None, :] < WIDTH)
            code = tl.load(codes + expert * SIZE + place, mask=inside, other=0)
        if FORMAT == INT8_ROW:
            if TRANSPOSED:
                scale = tl.load(scales + expert * DEPTH_END + depth, mask=depth < DEPTH_END, other=0.0)[:, None]
            else:
                scale = tl.load(scales + expert * WIDTH + col, mask=col < WIDTH, other=0.0)[None, :]
            return (code.to(tl.float32) * scale.to(tl.float32)).to(dtype)
        elif FORMAT == FP8_BLOCK128:  # a tile's depths lie in one block: they are no more and start at a multiple
            HIGH: tl.constexpr = ((DEPTH_END if TRANSPOSED else WIDTH) + 127) // 128
            LONG: tl.constexpr = ((WIDTH if TRANSPOSED else DEPTH_END) + 127) // 128
            block = start // 128 * LONG + col // 128 if TRANSPOSED else col // 128 * LONG + start // 128
            scale = tl.load(scales + expert * (HIGH * LONG) + block, mask=col < WIDTH, other=0.0)[None, :]
            return (_widened_e4m3(code) * scale.to(dtype).to(tl.float32)).to(dtype)
        else:
            return code


@triton.jit
def _nf4_tile(
    codes, scales, levels, expert, start, depth, first, col, DEPTH_END: tl.constexpr, WIDTH: tl.constexpr,
    TRANSPOSED: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """`_weight_tile` of nf4: two codes a byte, the first one in its high half; an expert starts a block of 64.

    Where blocks do not cross rows, a byte is read once and a block's scale as often as the block has rows in the tile.
    """
    DEPTH: tl.constexpr = depth.shape[0]
    COLS: tl.constexpr = col.shape[0]
    BLOCKS: tl.constexpr = (WIDTH * DEPTH_END + 63) // 64
    LONG: tl.constexpr = WIDTH if TRANSPOSED else DEPTH_END
    codes += expert * (BLOCKS * 32)
    scales += expert * BLOCKS
    if LONG % 64 != 0 or DEPTH > 64:
        inside = (depth[:, None] < DEPTH_END) & (col[None, :] < WIDTH)
        place = depth[:, None] * WIDTH + col[None, :] if TRANSPOSED else col[None, :] * DEPTH_END + depth[:, None]
        byte = tl.load(codes + place // 2, mask=inside, other=0).to(tl.int32)
        level = tl.load(levels + ((byte >> (4 - place % 2 * 4)) & 15)).to(tl.float32)
        scale = tl.load(scales + place // 64, mask=inside, other=0.0).to(dtype).to(tl.float32)
        return (level * scale).to(dtype)
    elif TRANSPOSED:
        PARTS: tl.constexpr = (COLS + 63) // 64
        half = first // 2 + tl.arange(0, COLS // 2)
        inside = (depth[:, None] < DEPTH_END) & (half[None, :] < WIDTH // 2)
        byte = tl.load(codes + depth[:, None] * (WIDTH // 2) + half[None, :], mask=inside, other=0).to(tl.int32)
        part = first // 64 + tl.arange(0, PARTS)
        inside = (depth[:, None] < DEPTH_END) & (part[None, :] < WIDTH // 64)
        scale = tl.load(scales + depth[:, None] * (WIDTH // 64) + part[None, :], mask=inside, other=0.0)
        scale = scale.to(dtype).to(tl.float32)
        level = tl.join(tl.load(levels + (byte >> 4)), tl.load(levels + (byte & 15))).to(tl.float32)
        return (level.reshape(DEPTH, PARTS, COLS // PARTS) * scale[:, :, None]).reshape(DEPTH, COLS).to(dtype)
    else:
        half = start // 2 + tl.arange(0, DEPTH // 2)
        inside = col[:, None] < WIDTH
        byte = tl.load(codes + col[:, None] * (DEPTH_END // 2) + half[None, :], mask=inside, other=0).to(tl.int32)
        scale = tl.load(scales + col * (DEPTH_END // 64) + start // 64, mask=col < WIDTH, other=0.0)
        scale = scale.to(dtype).to(tl.float32)
        level = tl.join(tl.load(levels + (byte >> 4)), tl.load(levels + (byte & 15))).to(tl.float32)
        return tl.trans((level.reshape(COLS, DEPTH) * scale[:, None]).to(dtype))


@triton.jit
def _widened_e4m3(code):
    """The float32 of an e4m3fn byte. By hand, as GPUs before compute capability 8.9 have no instruction for it.

    Exponent and mantissa moved to their places in a float32 give the value times 2^-120, subnormal codes included.
    """
    bits = code.to(tl.int32)
    size = ((bits & 127) << 20).to(tl.float32, bitcast=True) * 1.329227995784916e36  # 2^120
    size = tl.where((bits & 127) == 127, float("nan"), size)
    return tl.where(bits >= 128, -size, size)


@triton.jit
def _inner_factor(A_ERK, expert, depth, rank, DEPTH_END: tl.constexpr, R: tl.constexpr, RANK_FIRST: tl.constexpr):
    """The [depth, rank] tile of the factor towards the rank, stored [E, R, depth] if RANK_FIRST, or [E, depth, R]."""
    if RANK_FIRST:
        place = A_ERK + (expert * R + rank[None, :]) * DEPTH_END + depth[:, None]
    else:
        place = A_ERK + (expert * DEPTH_END + depth[:, None]) * R + rank[None, :]
    return tl.load(place, mask=(depth[:, None] < DEPTH_END) & (rank[None, :] < R), other=0.0)


@triton.jit
def _outer_factor(B_ENR, expert, rank, col, WIDTH: tl.constexpr, R: tl.constexpr, RANK_FIRST: tl.constexpr):
    """The [rank, col] tile of the factor from the rank, stored [E, R, width] if RANK_FIRST, or [E, width, R]."""
    if RANK_FIRST:
        place = B_ENR + (expert * R + rank[:, None]) * WIDTH + col[None, :]
    else:
        place = B_ENR + (expert * WIDTH + col[None, :]) * R + rank[:, None]
    return tl.load(place, mask=(rank[:, None] < R) & (col[None, :] < WIDTH), other=0.0)


@triton.jit
def _store_rank_side(z_SR, z, row, exists, R: tl.constexpr, RANK: tl.constexpr):
    """Programs of one tile of rows and different columns all have the same z; the first one stores it."""
    if tl.program_id(0) == 0:
        rank = tl.arange(0, RANK)
        tl.store(z_SR + row[:, None] * R + rank[None, :], z, mask=exists[:, None] & (rank[None, :] < R))


@triton.jit
def gate_up_kernel(
    hidden_TD, token_S, codes_EGD, scales, levels, A_ERD, B_EGR, tiles_M3, inner_SF, gate_up_SG, z_SR, scaling,
    D: tl.constexpr, F: tl.constexpr, R: tl.constexpr, RANK: tl.constexpr, FORMAT: tl.constexpr,
    IS_KEPT: tl.constexpr, PARTS: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    DEPTH: tl.constexpr,
):  # fmt: skip
    """inner = silu(gate) * up of the gathered tokens, both halves adapted; keeps gate, up and z = scaling * x A^T."""
    expert, row, exists = _tile_of_pairs(tiles_M3, ROWS)
    if expert < 0:
        return
    col = tl.program_id(0) * COLS + tl.arange(0, COLS)
    rank = tl.arange(0, RANK)
    IS_EVEN: tl.constexpr = D % DEPTH == 0 and F % COLS == 0
    dtype: tl.constexpr = hidden_TD.dtype.element_ty
    token = tl.load(token_S + row)
    gate_row = tl.minimum(col, F - 1)  # past F, gate would read rows of up
    gate = tl.zeros((ROWS, COLS), dtype=tl.float32)
    up = tl.zeros((ROWS, COLS), dtype=tl.float32)
    z = tl.zeros((ROWS, RANK), dtype=tl.float32)
    for start in range(0, D, DEPTH):
        depth = start + tl.arange(0, DEPTH)
        place = hidden_TD + token[:, None] * D + depth[None, :]
        x = tl.load(place) if D % DEPTH == 0 else tl.load(place, mask=depth[None, :] < D, other=0.0)
        wg = _weight_tile(
            codes_EGD, scales, levels, expert, start, depth, 0, gate_row, D, 2 * F, False, FORMAT, IS_EVEN, dtype
        )
        wu = _weight_tile(
            codes_EGD, scales, levels, expert, start, depth, 0, gate_row + F, D, 2 * F, False, FORMAT, IS_EVEN, dtype
        )
        gate = tl.dot(x, wg, gate, input_precision=PRECISION)
        up = tl.dot(x, wu, up, input_precision=PRECISION)
        if R > 0:
            z = tl.dot(x, _inner_factor(A_ERD, expert, depth, rank, D, R, True), z, input_precision=PRECISION)
    if R > 0:
        z *= scaling
        b_gate = _outer_factor(B_EGR, expert, rank, gate_row, 2 * F, R, False)
        b_up = _outer_factor(B_EGR, expert, rank, gate_row + F, 2 * F, R, False)
        gate = tl.dot(z.to(dtype), b_gate, gate, input_precision=PRECISION)
        up = tl.dot(z.to(dtype), b_up, up, input_precision=PRECISION)
        if IS_KEPT:
            _store_rank_side(z_SR, z.to(dtype), row, exists, R, RANK)
    _store_swiglu(
        gate, up, tl.program_id(0) * COLS, row, exists, inner_SF, gate_up_SG, F, IS_KEPT, PARTS, ROWS, COLS
    )  # fmt: skip


@triton.jit
def _store_swiglu(
    gate, up, first, row, exists, inner_SF, gate_up_SG, F: tl.constexpr, IS_KEPT: tl.constexpr, PARTS: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Stores silu(gate) * up, and if kept gate and up, at the columns from `first` on, one of PARTS after another."""
    if PARTS > 1:
        HALF: tl.constexpr = COLS // 2
        gates = tl.split(gate.reshape(ROWS, 2, HALF).permute(0, 2, 1))
        ups = tl.split(up.reshape(ROWS, 2, HALF).permute(0, 2, 1))
        _store_swiglu(gates[0], ups[0], first, row, exists, inner_SF, gate_up_SG, F, IS_KEPT, PARTS // 2, ROWS, HALF)
        _store_swiglu(
            gates[1], ups[1], first + HALF, row, exists, inner_SF, gate_up_SG, F, IS_KEPT, PARTS // 2, ROWS, HALF
        )
    else:
        col = first + tl.arange(0, COLS)
        stored = exists[:, None] & (col[None, :] < F)
        dtype: tl.constexpr = inner_SF.dtype.element_ty
        if IS_KEPT:
            place = gate_up_SG + row[:, None] * (2 * F) + col[None, :]
            tl.store(place, gate.to(dtype), mask=stored)
            tl.store(place + F, up.to(dtype), mask=stored)
        inner = gate * tl.sigmoid(gate) * up
        tl.store(inner_SF + row[:, None] * F + col[None, :], inner.to(dtype), mask=stored)


@triton.jit
def _adapted_product(
    a, row, codes, scales, levels, inner_factor, expert, dtype: tl.constexpr,
    WIDTH: tl.constexpr, DEPTH_END: tl.constexpr, R: tl.constexpr, RANK: tl.constexpr, FORMAT: tl.constexpr,
    TRANSPOSED: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """a W^T and a A^T, or with TRANSPOSED a W and a B, of these rows of a [*, DEPTH_END]; this program's columns."""
    IS_EVEN: tl.constexpr = DEPTH_END % DEPTH == 0 and WIDTH % COLS == 0
    first = tl.program_id(0) * COLS
    col = first + tl.arange(0, COLS)
    rank = tl.arange(0, RANK)
    acc = tl.zeros((ROWS, COLS), dtype=tl.float32)
    z = tl.zeros((ROWS, RANK), dtype=tl.float32)
    for start in range(0, DEPTH_END, DEPTH):
        depth = start + tl.arange(0, DEPTH)
        place = a + row[:, None] * DEPTH_END + depth[None, :]
        tile = tl.load(place) if DEPTH_END % DEPTH == 0 else tl.load(place, mask=depth[None, :] < DEPTH_END, other=0.0)
        w = _weight_tile(
            codes,
            scales,
            levels,
            expert,
            start,
            depth,
            first,
            col,
            DEPTH_END,
            WIDTH,
            TRANSPOSED,
            FORMAT,
            IS_EVEN,
            dtype,
        )
        acc = tl.dot(tile, w, acc, input_precision=PRECISION)
        if R > 0:
            factor = _inner_factor(inner_factor, expert, depth, rank, DEPTH_END, R, not TRANSPOSED)
            z = tl.dot(tile, factor, z, input_precision=PRECISION)
    return acc, z


@triton.jit
def grouped_kernel(
    a_SD, codes, scales, levels, inner_factor, outer_factor, tiles_M3, pair_S, weight_P, out_PN, z_SR, scaling,
    WIDTH: tl.constexpr, DEPTH_END: tl.constexpr, R: tl.constexpr, RANK: tl.constexpr, FORMAT: tl.constexpr,
    TRANSPOSED: tl.constexpr, IS_WEIGHTED: tl.constexpr, IS_KEPT: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """out = w * (a W^T + scaling (a A^T) B^T), or with TRANSPOSED the gradient's a W + scaling (a B) A.

    Rows of `out` are scattered to the router's order. Keeps z = scaling * w * (a A^T), or scaling * w * (a B).
    """
    expert, row, exists = _tile_of_pairs(tiles_M3, ROWS)
    if expert < 0:
        return
    col = tl.program_id(0) * COLS + tl.arange(0, COLS)
    rank = tl.arange(0, RANK)
    dtype: tl.constexpr = out_PN.dtype.element_ty
    acc, z = _adapted_product(
        a_SD, row, codes, scales, levels, inner_factor, expert, dtype,
        WIDTH, DEPTH_END, R, RANK, FORMAT, TRANSPOSED, PRECISION, ROWS, COLS, DEPTH,
    )  # fmt: skip
    pair = tl.load(pair_S + row)
    if R > 0:
        z *= scaling
        factor = _outer_factor(outer_factor, expert, rank, col, WIDTH, R, TRANSPOSED)
        acc = tl.dot(z.to(dtype), factor, acc, input_precision=PRECISION)
    if IS_WEIGHTED:
        weight = tl.load(weight_P + pair).to(tl.float32)
        acc *= weight[:, None]
        z *= weight[:, None]
    if R > 0 and IS_KEPT:
        _store_rank_side(z_SR, z.to(dtype), row, exists, R, RANK)
    stored = exists[:, None] & (col[None, :] < WIDTH)
    tl.store(out_PN + pair[:, None] * WIDTH + col[None, :], acc.to(dtype), mask=stored)


@triton.jit
def combine_kernel(pairs_PD, slot_TK, out_TD, num_sorted, D: tl.constexpr, K: tl.constexpr, COLS: tl.constexpr):
    """out[t] = sum of the K rows of token t, in their order, without pairs that no sorted row computed."""
    token = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    total = tl.zeros((COLS,), dtype=tl.float32)
    for choice in tl.static_range(K):
        pair = token * K + choice
        slot = tl.load(slot_TK + pair)
        if slot < num_sorted:
            total += tl.load(pairs_PD + pair * D + col, mask=col < D, other=0.0).to(tl.float32)
    tl.store(out_TD + token * D + col, total.to(out_TD.dtype.element_ty), mask=col < D)


@triton.jit
def _through_swiglu(
    d_inner, weight, first, row, exists, gate_up_SG, d_gate_up_SG, inner_SF, F: tl.constexpr, IS_KEPT: tl.constexpr,
    PARTS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Stores the gradient of gate and up at the columns from `first` on; returns [ROWS] <d_inner, inner> over them.

    One of PARTS after another, or gate, up and what is made of them would not fit in registers beside the sums.
    """
    if PARTS > 1:
        HALF: tl.constexpr = COLS // 2
        left, right = tl.split(d_inner.reshape(ROWS, 2, HALF).permute(0, 2, 1))
        share = _through_swiglu(
            left, weight, first, row, exists, gate_up_SG, d_gate_up_SG, inner_SF, F, IS_KEPT, PARTS // 2, ROWS, HALF
        )
        return share + _through_swiglu(
            right, weight, first + HALF, row, exists, gate_up_SG, d_gate_up_SG, inner_SF, F, IS_KEPT, PARTS // 2, ROWS,
            HALF,
        )  # fmt: skip
    else:
        col = first + tl.arange(0, COLS)
        stored = exists[:, None] & (col[None, :] < F)
        place = row[:, None] * (2 * F) + col[None, :]
        dtype: tl.constexpr = gate_up_SG.dtype.element_ty
        gate = tl.load(gate_up_SG + place, mask=stored, other=0.0).to(tl.float32)
        up = tl.load(gate_up_SG + place + F, mask=stored, other=0.0).to(tl.float32)
        sigmoid = tl.sigmoid(gate)
        silu = gate * sigmoid
        inner = silu * up
        if IS_KEPT:
            tl.store(inner_SF + row[:, None] * F + col[None, :], inner.to(dtype), mask=stored)
        share = tl.sum(d_inner * inner, axis=1)
        d_inner *= weight[:, None]
        d_gate = d_inner * up * sigmoid * (1 + gate - silu)
        tl.store(d_gate_up_SG + place, d_gate.to(dtype), mask=stored)
        tl.store(d_gate_up_SG + place + F, (d_inner * silu).to(dtype), mask=stored)
        return share


@triton.jit
def inner_gradient_kernel(
    grad_TD, token_S, codes_EDF, scales, levels, A_ERF, B_EDR, tiles_M3, pair_S, weight_P, gate_up_SG,
    d_gate_up_SG, inner_SF, z_SR, d_weight_PC, scaling,
    D: tl.constexpr, F: tl.constexpr, R: tl.constexpr, RANK: tl.constexpr, FORMAT: tl.constexpr,
    IS_KEPT: tl.constexpr, NEEDS_WEIGHT: tl.constexpr, PARTS: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Gradient of gate and up from that of the output, through the down projection and SwiGLU.

    With NEEDS_WEIGHT, also this tile's share of the routing weight's gradient <dy, y>, as <dy (W + sBA), inner>, so
    that y need not be kept. With IS_KEPT, inner and z = scaling * w * (dy B), which A's gradient is made of.
    """
    expert, row, exists = _tile_of_pairs(tiles_M3, ROWS)
    if expert < 0:
        return
    col = tl.program_id(0) * COLS + tl.arange(0, COLS)
    rank = tl.arange(0, RANK)
    dtype: tl.constexpr = grad_TD.dtype.element_ty
    d_inner, z = _adapted_product(
        grad_TD, tl.load(token_S + row), codes_EDF, scales, levels, B_EDR, expert, dtype,
        F, D, R, RANK, FORMAT, True, PRECISION, ROWS, COLS, DEPTH,
    )  # fmt: skip
    if R > 0:
        z *= scaling
        factor = _outer_factor(A_ERF, expert, rank, col, F, R, True)
        d_inner = tl.dot(z.to(dtype), factor, d_inner, input_precision=PRECISION)
    pair = tl.load(pair_S + row)
    weight = tl.load(weight_P + pair).to(tl.float32)
    if R > 0 and IS_KEPT:
        _store_rank_side(z_SR, (z * weight[:, None]).to(dtype), row, exists, R, RANK)
    share = _through_swiglu(
        d_inner, weight, tl.program_id(0) * COLS, row, exists, gate_up_SG, d_gate_up_SG, inner_SF,
        F, R > 0 and IS_KEPT, PARTS, ROWS, COLS,
    )  # fmt: skip
    if NEEDS_WEIGHT:
        tl.store(d_weight_PC + pair * tl.num_programs(0) + tl.program_id(0), share, mask=exists)


@triton.jit
def _run_product(
    left_SR, right, row_of_right_S, first, end, col, R: tl.constexpr, RANK: tl.constexpr, WIDTH: tl.constexpr,
    IS_GATHERED: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """[RANK, COLS]: left^T right over the pairs [first, end), one order of sums for every caller."""
    rank = tl.arange(0, RANK)
    product = tl.zeros((RANK, COLS), dtype=tl.float32)
    for start in range(first, end, ROWS):
        row = start + tl.arange(0, ROWS).to(tl.int64)
        exists = row < end
        left = tl.load(
            left_SR + row[None, :] * R + rank[:, None], mask=exists[None, :] & (rank[:, None] < R), other=0.0
        )
        if IS_GATHERED:
            row = tl.load(row_of_right_S + row, mask=exists, other=0)
        inside = exists[:, None] & (col[None, :] < WIDTH)
        tile = tl.load(right + row[:, None] * WIDTH + col[None, :], mask=inside, other=0.0)
        product = tl.dot(left, tile, product, input_precision=PRECISION)
    return product


@triton.jit
def run_products_kernel(
    left_SR, right, row_of_right_S, first_N, out_N, R: tl.constexpr, RANK: tl.constexpr, WIDTH: tl.constexpr,
    IS_GATHERED: tl.constexpr, RANK_FIRST: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr,
    COLS: tl.constexpr,
):  # fmt: skip
    """out[n] = left^T right over the n-th run, [N, R, WIDTH] or without RANK_FIRST [N, WIDTH, R]."""
    run = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    rank = tl.arange(0, RANK)
    product = _run_product(
        left_SR, right, row_of_right_S, tl.load(first_N + run), tl.load(first_N + run + 1), col,
        R, RANK, WIDTH, IS_GATHERED, PRECISION, ROWS, COLS,
    )  # fmt: skip
    if RANK_FIRST:
        place = out_N + (run * R + rank[:, None]) * WIDTH + col[None, :]
    else:
        place = out_N + (run * WIDTH + col[None, :]) * R + rank[:, None]
    inside = (rank[:, None] < R) & (col[None, :] < WIDTH)
    tl.store(place, product.to(out_N.dtype.element_ty), mask=inside)


@triton.jit
def run_norms_kernel(
    left_SR, right, row_of_right_S, first_N, out_NC, R: tl.constexpr, RANK: tl.constexpr, WIDTH: tl.constexpr,
    IS_GATHERED: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """This tile's share of |left^T right|^2 of the n-th run, squared and added in float64."""
    run = tl.program_id(0)
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    product = _run_product(
        left_SR, right, row_of_right_S, tl.load(first_N + run), tl.load(first_N + run + 1), col,
        R, RANK, WIDTH, IS_GATHERED, PRECISION, ROWS, COLS,
    ).to(tl.float64)  # fmt: skip
    tl.store(out_NC + run * tl.num_programs(1) + tl.program_id(1), tl.sum(tl.sum(product * product, axis=1), axis=0))


@triton.jit
def run_sums_kernel(
    left_SR, right, row_of_right_S, first_N, first_run_E, factor_N, out_E, R: tl.constexpr, RANK: tl.constexpr,
    WIDTH: tl.constexpr, IS_GATHERED: tl.constexpr, RANK_FIRST: tl.constexpr, IS_WHOLE: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """out[e] = sum over the runs of expert e of factor * (left^T right), added in float64; a zero factor is skipped.

    With IS_WHOLE each number is cut towards zero to a whole one first, so that the sum is exact in any order.
    The products are bit for bit those whose norms `run_norms_kernel` gives, as the bound on a unit has to hold for
    what is summed.
    """
    expert = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    rank = tl.arange(0, RANK)
    total = tl.zeros((RANK, COLS), dtype=tl.float64)
    for run in range(tl.load(first_run_E + expert), tl.load(first_run_E + expert + 1)):
        factor = tl.load(factor_N + run)
        if factor != 0:  # what is forgotten may be nan
            product = _run_product(
                left_SR, right, row_of_right_S, tl.load(first_N + run), tl.load(first_N + run + 1), col,
                R, RANK, WIDTH, IS_GATHERED, PRECISION, ROWS, COLS,
            )  # fmt: skip
            term = factor * product.to(tl.float64)
            if IS_WHOLE:
                term = term.to(tl.int64).to(tl.float64)
            total += term
    if RANK_FIRST:
        place = out_E + (expert * R + rank[:, None]) * WIDTH + col[None, :]
    else:
        place = out_E + (expert * WIDTH + col[None, :]) * R + rank[:, None]
    tl.store(place, total, mask=(rank[:, None] < R) & (col[None, :] < WIDTH))
