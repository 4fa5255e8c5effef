"""Attention in segments on NVIDIA GPUs: which kernels run, in what order, and what is in memory between them.

Forward is one launch. Backward computes the scores anew and writes, pair by pair, weights, the gradients of scores and
those of queries; keys and values then add up the pairs of their block, and queries those of their choices. All sums run
in a fixed order, so a repeat gives the same bits.

Legend: `T` tokens of all heads, `W` window, `B` blocks, `K` blocks that a query reads, `S` pairs sorted by block and
filled up to tiles, `M` tiles, `D` width of queries and keys, `V` width of values, `X` one of both.
"""

from typing import Any

import torch
from torch import Tensor

from .segment_tiles import Read, Tiles

_WINDOWS = (16, 32, 64, 128)
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def fits(dtype: torch.dtype, window: int) -> bool:
    """True if the kernels compute in this dtype with blocks of this many tokens."""
    return dtype in _DTYPES and window in _WINDOWS


def triton_shares(tiles: Tiles, read: Read) -> tuple[Tensor, Tensor]:
    """[S + 1, V] what each pair's query takes from its block, and [S + 1] the log-sum-exp of its scores there.

    The last entry is of blocks that are none: nothing, and -inf. What is said of pairs that fill tiles up is not used.
    Products of 16-bit numbers are added in float32, and float32 is computed in full float32 precision.
    """
    launch = _Launch(tiles, read)
    out_SV = read.v_BWV.new_empty(launch.pairs + 1, read.v_BWV.shape[-1])
    lse_S = out_SV.new_empty(launch.pairs + 1, dtype=torch.float32)
    out_SV[launch.pairs], lse_S[launch.pairs] = 0, -torch.inf
    with torch.cuda.device_of(out_SV):  # type: ignore[no-untyped-call]
        launch.shares(out_SV, lse_S)
    return out_SV, lse_S


def triton_slopes(
    tiles: Tiles, read: Read, grad_TV: Tensor, mean_T: Tensor, lse_T: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients [2, T, D] of `read.q_2TD`, [B, W, D] of `read.k_BWD` and [B, W, V] of `read.v_BWV`.

    Args:
        grad_TV: of the result.
        mean_T: its product with the result.
        lse_T: log-sum-exp of all scores of a query.
    """
    launch = _Launch(tiles, read)
    grad_TV = grad_TV.contiguous()
    lse_S = lse_T.new_full((launch.pairs + 1,), torch.inf)  # what fills tiles up has no share
    lse_S[tiles.plan.slot_TK] = lse_T[:, None]
    with torch.cuda.device_of(grad_TV):  # type: ignore[no-untyped-call]
        weights_SW, slopes_SW, dq_SD = launch.slopes(grad_TV, lse_S, mean_T)
        dk_BWD = launch.block_sums(slopes_SW, launch.read.q_2TD.flatten(0, 1), far=launch.tokens)
        dv_BWV = launch.block_sums(weights_SW, grad_TV, far=0)
        return launch.query_sums(dq_SD), dk_BWD, dv_BWV


class _Launch:
    """The launches of one forward or backward, with what they share."""

    def __init__(self, tiles: Tiles, read: Read) -> None:
        q_2TD, k_BWD, v_BWV, scale = read
        self.tiles, self.read = tiles, Read(q_2TD.contiguous(), k_BWD.contiguous(), v_BWV.contiguous(), scale)
        self.pairs, self.tokens = tiles.plan.num_pairs, q_2TD.shape[1]
        self.blocks, self.window, self.D = k_BWD.shape
        self.V = v_BWV.shape[-1]
        blocks_B1 = torch.arange(self.blocks + 1, device=k_BWD.device)
        self.first_B1 = torch.searchsorted(tiles.block_M, blocks_B1)  # each block's first tile, and the end

    def shares(self, out_SV: Tensor, lse_S: Tensor) -> None:
        """Fills [S, V] and [S] with each pair's part of the result and log-sum-exp."""
        self._on_tiles(_kernels().shares_kernel, self.read[:3], (out_SV, lse_S), self.V)

    def slopes(self, grad_TV: Tensor, lse_S: Tensor, mean_T: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weights [S, W], the gradients of their scores [S, W] and of each pair's query [S, D]."""
        q_2TD, k_BWD, v_BWV, _ = self.read
        weights_SW = v_BWV.new_empty(self.pairs, self.window)
        slopes_SW, dq_SD = q_2TD.new_empty(self.pairs, self.window), q_2TD.new_empty(self.pairs, self.D)
        outputs = (weights_SW, slopes_SW, dq_SD)
        self._on_tiles(_kernels().slopes_kernel, (q_2TD, k_BWD, v_BWV, grad_TV), (lse_S, mean_T, *outputs), self.D)
        return outputs

    def block_sums(self, left_SW: Tensor, right_TX: Tensor, *, far: int) -> Tensor:
        """[B, W, X]: left^T right over the pairs of each block; in far tiles, of rows of `right` `far` behind."""
        width = right_TX.shape[-1]
        out_BWX = right_TX.new_empty(self.blocks, self.window, width)
        settings = self._settings(width, width)
        del settings["DEPTH"]  # what these products add over are the pairs
        _kernels().block_sums_kernel[self.blocks, -(-width // settings["COLS"])](
            left_SW, right_TX, self.tiles.plan.token_S, self.first_B1, out_BWX, far, WIDTH=width, **settings
        )
        return out_BWX

    def query_sums(self, dq_SD: Tensor) -> Tensor:
        """[2, T, D]: adds up the rows of each query's near choices, and of its far ones."""
        out_2TD, slot_TK = torch.empty_like(self.read.q_2TD), self.tiles.plan.slot_TK
        cols = min(256, _power_of_two(self.D))
        rows = 2048 // cols
        _kernels().query_sums_kernel[-(-self.tokens // rows), -(-self.D // cols)](
            dq_SD, slot_TK, out_2TD, self.tokens, self.pairs, D=self.D, K=slot_TK.shape[1], ROWS=rows, COLS=cols
        )
        return out_2TD

    def _on_tiles(self, kernel: Any, read: tuple[Tensor, ...], rest: tuple[Tensor, ...], width: int) -> None:
        """A program a tile; `width` is that of the rows that it writes."""
        tiles = (self.tiles.plan.token_S, self.tiles.block_M, self.tiles.place_M)
        settings = {"D": self.D, "V": self.V} | self._settings(width, self.D)
        kernel[len(self.tiles.block_M),](*read, *tiles, *rest, self.tokens, self.read.scale, **settings)

    def _settings(self, width: int, depth: int) -> dict[str, Any]:
        """Sizes by what compiles without spilling: no GPU has timed them."""
        return {
            "W": self.window,
            "PRECISION": "ieee",  # of no meaning for 16 bits, which are exact
            "COLS": self._step(width),
            "DEPTH": self._step(depth),
            "num_warps": 4 if self.window <= 64 else 16,
            "num_stages": 3,
        }

    def _step(self, width: int) -> int:
        """Columns at a time; two times at least where that can be, so that loads run ahead of products."""
        most = 128 if self.window <= 64 else 64  # bytes
        return max(16, min(most // self.read.q_2TD.itemsize, _power_of_two(width) // 2))


def _kernels() -> Any:
    from . import triton_segment_kernels  # here, as Triton exists for few platforms

    return triton_segment_kernels


def _power_of_two(least: int) -> int:
    return 1 << max(least - 1, 0).bit_length()
