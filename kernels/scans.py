"""Scans of state-space layers on processors: Mamba-2 and the gated delta rule, in chunks.

A head keeps a matrix S. Each token lets it fade, writes into it and reads it, by g, x, B, C, k, v, b and q of its own:

    Mamba-2     S <- exp(g) S + x B^T;  y = S C
    delta rule  S <- diag(exp(g)) S;  S <- S + b k (v - S^T k)^T;  y = S^T q

(Dao and Gu 2024, arXiv:2405.21060, section 6; Kimi Team 2025, arXiv:2510.26692, equation 1.)

What the tokens of a chunk of 64 read of each other is a product of matrices, with exp(G_i - G_j) for tokens j up to i,
where G adds up g; what came before the chunk they read from S. The corrections of the delta rule are found at once by a
triangular system (section 3.1 of the latter). Its decays differ by channel. One exponential for every pair of tokens
and channel is what costs, so it is taken within blocks of 16 tokens alone; between blocks it is the product of two, up
to and since the first token of the later block. As g is never positive, neither is above 1, and none overflows.

Chunks go through in pieces, of as many as keep the scratch of a row in a processor's own cache, or of one: what is kept
beside inputs and outputs does not grow with the text, where no gradients are asked for. How many rows there are does
not matter for a row's pieces.

Legend: `R` rows, `T` tokens, `H` heads, `N` chunks of a piece, `C` tokens of a chunk, `B` blocks of a chunk, `L` tokens
of a block; of Mamba-2, `P` numbers of a head, `G` groups of heads, `S` numbers of a direction; of the delta rule, `K`
channels of keys, `V` of values.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64
BLOCK = 16
_PAIRS = 2**17  # numbers that the decays of a piece of Mamba-2 take in a row
_DECAYS = 2**18  # and those within blocks of one of the delta rule


def state_space_scan(
    x_RTHP: Tensor, decay_RTH: Tensor, written_RTGS: Tensor, read_RTGS: Tensor, state_RHPS: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """[R, T, H, P], what each token reads, and [R, H, P, S], the state behind the last; differentiable.

    Computed and given back in float32 or better, as a state collects rounding, also under autocast.

    Args:
        x_RTHP: multiplied by the lengths of the tokens' steps.
        decay_RTH: g, multiplied likewise; never positive.
        written_RTGS: B of each group of heads.
        read_RTGS: C of each group of heads.
        state_RHPS: that the text goes on from; None for zeros.
    """
    rows, _, heads, width = x_RTHP.shape
    wide = torch.promote_types(x_RTHP.dtype, torch.float32)
    state = x_RTHP.new_zeros(rows, heads, width, written_RTGS.shape[-1]) if state_RHPS is None else state_RHPS
    state = state.to(wide)
    length = CHUNK * max(1, _PAIRS // (heads * CHUNK**2))
    inputs = x_RTHP, decay_RTH, written_RTGS, read_RTGS
    pieces = (torch.split(part.to(wide), length, dim=1) for part in inputs)
    found = []
    with torch.autocast(x_RTHP.device.type, enabled=False):
        for x, decay, written, read in zip(*pieces, strict=True):
            out, state = _state_space_piece(x, decay, written, read, state)
            found.append(out)
    return torch.cat(found, dim=1), state


def gated_delta_rule(
    query_RTHK: Tensor,
    key_RTHK: Tensor,
    value_RTHV: Tensor,
    decay_RTHK: Tensor,
    rate_RTH: Tensor,
    state_RHKV: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """[R, T, H, V], what each token reads, and [R, H, K, V], the state behind the last; differentiable.

    Computed and given back in float32 or better, as in `state_space_scan`.

    Args:
        query_RTHK: as they read, so scaled by the caller.
        key_RTHK: of length 1.
        decay_RTHK: g, of each channel; never positive.
        rate_RTH: b, in [0, 1].
        state_RHKV: that the text goes on from; None for zeros.
    """
    rows, _, heads, width = key_RTHK.shape
    wide = torch.promote_types(key_RTHK.dtype, torch.float32)
    state = key_RTHK.new_zeros(rows, heads, width, value_RTHV.shape[-1]) if state_RHKV is None else state_RHKV
    state = state.to(wide)
    length = CHUNK * max(1, _DECAYS // (heads * CHUNK * BLOCK * width))
    inputs = query_RTHK, key_RTHK, value_RTHV, decay_RTHK, rate_RTH
    pieces = (torch.split(part.to(wide), length, dim=1) for part in inputs)
    found = []
    with torch.autocast(key_RTHK.device.type, enabled=False):
        for query, key, value, decay, rate in zip(*pieces, strict=True):
            out, state = _delta_piece(query, key, value, decay, rate, state)
            found.append(out)
    return torch.cat(found, dim=1), state


def _state_space_piece(x: Tensor, decay: Tensor, written: Tensor, read: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    tokens, heads = x.shape[1:3]
    x, written, read = (_in_chunks(part) for part in (x, written, read))
    # Differences of sums of many numbers, which in float32 would lose what makes them differ.
    total = _in_chunks(decay[..., None]).squeeze(-1).double().cumsum(-1)  # [R, H, N, C], G
    since, until = (exponent.to(x.dtype).exp() for exponent in (total, total[..., -1:] - total))
    among = (total.unsqueeze(-1) - total.unsqueeze(-2)).clamp(max=0).to(x.dtype).exp().tril()
    members = heads // written.shape[1]
    alike = (read @ written.mT).repeat_interleave(members, dim=1)  # [R, H, N, C, C]
    written, read = (part.repeat_interleave(members, dim=1) for part in (written, read))  # [R, H, N, C, S]
    added = x.mT @ (written * until.unsqueeze(-1))  # [R, H, N, P, S]
    before = []
    for chunk in range(x.shape[2]):
        before.append(state)
        state = state * since[:, :, chunk, -1, None, None] + added[:, :, chunk]
    earlier = (read * since.unsqueeze(-1)) @ torch.stack(before, dim=2).mT
    return _in_a_row((alike * among) @ x + earlier, tokens), state


def _delta_piece(
    query: Tensor, key: Tensor, value: Tensor, decay: Tensor, rate: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    tokens, width = value.shape[1], value.shape[-1]
    query, key, value, decay, rate = (_in_chunks(part) for part in (query, key, value, decay, rate[..., None]))
    total = decay.double().cumsum(-2)  # [R, H, N, C, K], G, see above
    of_corrections, of_reading = _pairs(torch.stack([key * rate, query], dim=3), key, total)
    since, until = (exponent.to(key.dtype).exp() for exponent in (total, total[..., -1:, :] - total))
    sides = torch.cat([value * rate, key * rate * since], dim=-1)
    # Ones on the diagonal, and what is above it, are not read.
    solved = torch.linalg.solve_triangular(of_corrections, sides, upper=False, unitriangular=True)
    by_value, by_state = solved[..., :width], solved[..., width:]
    asking, keeping, of_reading = query * since, (key * until).mT, of_reading.tril()
    found = []
    for chunk in range(key.shape[2]):
        added = by_value[:, :, chunk] - by_state[:, :, chunk] @ state
        found.append(asking[:, :, chunk] @ state + of_reading[:, :, chunk] @ added)
        state = state * since[:, :, chunk, -1, :, None] + keeping[:, :, chunk] @ added
    return _in_a_row(torch.stack(found, dim=2), tokens), state


def _pairs(left: Tensor, key: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Both [R, H, N, C, C]: sums over channels of left_i key_j exp(G_i - G_j), zero behind the block of i.

    Above the diagonal, within i's block, they are taken without exponentials and mean nothing.

    Args:
        left: [R, H, N, 2, C, K], what the two are taken for.
    """
    blocks = (CHUNK // BLOCK, BLOCK)
    left, key_BLK, total_BLK = (torch.unflatten(part, -2, blocks) for part in (left, key, total))
    of_block = (total_BLK - total_BLK[..., :1, :]).to(key.dtype)  # since its first token
    apart = of_block.unsqueeze(-2) - of_block.unsqueeze(-3)
    faded = key_BLK.unsqueeze(-3) * apart.clamp(max=0).exp()  # [R, H, N, B, L, L, K]
    within = left.movedim(3, -2) @ faded.mT  # [R, H, N, B, L, 2, L]
    lines = []
    for block in range(blocks[0]):
        start = block * BLOCK
        until = (total_BLK[:, :, :, block, :1] - total[..., :start, :]).to(key.dtype)
        asking = left[:, :, :, :, block] * of_block[:, :, :, block].exp().unsqueeze(3)
        asked = key[..., :start, :] * until.exp()
        earlier = asking.flatten(3, 4) @ asked.mT  # [R, H, N, 2 L, start]
        line = [torch.unflatten(earlier, 3, (2, BLOCK)), within[:, :, :, block].movedim(-2, 3)]
        lines.append(F.pad(torch.cat(line, dim=-1), (0, CHUNK - start - BLOCK)))
    of_correction, of_reading = torch.cat(lines, dim=-2).unbind(3)
    return of_correction, of_reading


def _in_chunks(part: Tensor) -> Tensor:
    """[R, H, N, C, ..] of [R, T, H, ..]; zeros behind the last token leave a state as it is."""
    short = -part.shape[1] % CHUNK
    return torch.unflatten(F.pad(part, (0, 0, 0, 0, 0, short)).transpose(1, 2), 2, (-1, CHUNK))


def _in_a_row(part: Tensor, tokens: int) -> Tensor:
    """[R, T, H, ..] of [R, H, N, C, ..]."""
    return part.flatten(2, 3)[:, :, :tokens].transpose(1, 2)
