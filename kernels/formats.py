"""Frozen stacks of matrices, of experts or of one linear layer, in the formats that checkpoints keep them in.

A format multiplies by one expert at a time and widens the codes of that expert alone, into a scratch matrix that is
kept from call to call: a stack is never copied. What is lost by rounding was lost when the codes were made; here each
product is that of the matrix which `dense` shows, up to the rounding of its dtype. `Int8Both` alone rounds the other
factor too, to two bytes.

Each format is `quantised` from a stack, or from its matrices as they come, one expert at a time: an iterator that reads
them from a file never has two in memory. Scales of weights are made there and never again, and those of a row from
the row alone: no product depends on another row of what it multiplies.

Legend: `E` experts, `O` outputs, `I` inputs, `S` rows, `B` blocks of one expert.
"""

# ruff: noqa: D102 - what methods do is said once, by `ExpertWeights`

import functools
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from .errors import UnfitWeights
from .products import PrepackedMatrix, prepacks, product

NF4_BLOCK, FP8_BLOCK = 64, 128
_E4M3_BIAS = 2.0**120
_PARTS = 254  # of one step of a high byte: half of it to each side is 127
_MOST_BYTES = (2**31 - 1) // 127**2  # products of bytes whose sum an int32 holds

# Quantiles of N(0, 1), scaled to [-1, 1], with an exact zero (Dettmers et al. 2023, arXiv:2305.14314, appendix E).
NF4_VALUES = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


class ExpertWeights(Protocol):
    """One matrix [O, I] an expert, frozen."""

    @property
    def shape(self) -> torch.Size:
        """(E, O, I)."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the products and of what they multiply."""
        ...

    @property
    def device(self) -> torch.device:
        """Device on which the stack lies."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes that the stack takes in memory."""
        ...

    def mm(self, expert: int, x_SI: Tensor, out_SO: Tensor) -> None:
        """Writes x W^T; not differentiable. Tiles, [tiles, S, I], are multiplied each in the shape of one."""
        ...

    def mm_t(self, expert: int, grad_SO: Tensor, out_SI: Tensor) -> None:
        """Writes grad W; not differentiable. Tiles as in `mm`."""
        ...

    def dense(self) -> Tensor:
        """[E, O, I], the whole stack in `dtype`: for a reference, as it is the copy that everything else avoids."""
        ...


@dataclass(frozen=True, slots=True)
class Dense:
    """Plain weights: float64, float32 or 16 bits. The only format that may be trained, if `weight` requires grad."""

    weight_EOI: Tensor

    def __post_init__(self) -> None:
        if self.weight_EOI.ndim != 3 or not self.weight_EOI.is_floating_point() or self.weight_EOI.itemsize < 2:
            raise UnfitWeights(f"need [E, O, I] of 16 bits or more, got {_described(self.weight_EOI)}")

    @property
    def shape(self) -> torch.Size:
        return self.weight_EOI.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.weight_EOI.dtype

    @property
    def device(self) -> torch.device:
        return self.weight_EOI.device

    @property
    def nbytes(self) -> int:
        return self.weight_EOI.nbytes

    def mm(self, expert: int, x_SI: Tensor, out_SO: Tensor) -> None:
        product(x_SI, self.weight_EOI[expert].T, out_SO)

    def mm_t(self, expert: int, grad_SO: Tensor, out_SI: Tensor) -> None:
        product(grad_SO, self.weight_EOI[expert], out_SI)

    def dense(self) -> Tensor:
        return self.weight_EOI


class Pack(Protocol):
    """Packs the matrices of a stack, such as `Int8Row.quantised`."""

    def __call__(self, weights_OI: Iterable[Tensor], dtype: torch.dtype | None = None) -> ExpertWeights:
        """Packs matrices of equal shape.

        Args:
            dtype: of the products; None for that of the matrices, which are converted to it first.
        """
        ...


@dataclass(frozen=True, slots=True)
class Prepacked:
    """Plain bfloat16 weights in the order in which the processor's library reads them, once for each direction.

    Products by them are those by `Dense` weights, without the reordering that each of these begins with; twice the
    memory.
    """

    forward: tuple[PrepackedMatrix, ...]  # [I, O] an expert
    backward: tuple[PrepackedMatrix, ...]  # [O, I]

    @classmethod
    def of(cls, weights_OI: Iterable[Tensor], dtype: torch.dtype | None = None) -> "Prepacked | Dense":
        """Reorders the matrices as they come; plain weights where the machine does not multiply by prepacked ones."""
        forward, backward, plain = [], [], []
        for weight in _converted(weights_OI, dtype):
            if prepacks(weight.dtype, weight.device):
                forward.append(PrepackedMatrix.of(weight.T))
                backward.append(PrepackedMatrix.of(weight))
            else:
                plain.append(weight.detach())
        return Dense(torch.stack(plain)) if plain else cls(tuple(forward), tuple(backward))

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.backward), *self.backward[0].shape))

    @property
    def dtype(self) -> torch.dtype:
        return self.backward[0].dtype

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def nbytes(self) -> int:
        return 2 * math.prod(self.shape) * self.dtype.itemsize

    def mm(self, expert: int, x_SI: Tensor, out_SO: Tensor) -> None:
        product(x_SI, self.forward[expert], out_SO)

    def mm_t(self, expert: int, grad_SO: Tensor, out_SI: Tensor) -> None:
        product(grad_SO, self.backward[expert], out_SI)

    def dense(self) -> Tensor:
        return torch.stack([matrix.dense() for matrix in self.backward])


@dataclass(frozen=True, slots=True)
class Int8Row:
    """Signed bytes with one scale an output row.

    A code of at most 127 is exact in bfloat16, so codes go into the product as they are and the scale goes to the
    outputs: S x O multiplications instead of O x I, and none that rounds a weight.
    """

    codes_EOI: Tensor  # int8
    scale_EO: Tensor  # in the dtype of the products

    def __post_init__(self) -> None:
        if self.codes_EOI.ndim != 3 or self.codes_EOI.dtype != torch.int8:
            raise UnfitWeights(f"need int8 codes [E, O, I], got {_described(self.codes_EOI)}")
        if self.scale_EO.shape != self.codes_EOI.shape[:2] or not self.scale_EO.is_floating_point():
            raise UnfitWeights(f"need one scale an output row, got {_described(self.scale_EO)}")
        _refuse_float16(self.dtype)
        object.__setattr__(self, "scale_EO", self.scale_EO.detach())  # or the scratch would join a graph

    @classmethod
    def quantised(cls, weights_OI: Iterable[Tensor], dtype: torch.dtype | None = None) -> "Int8Row":
        """Rounds to nearest: off by at most half a scale, which is max|row| / 127."""
        codes, scales = [], []
        for weight in _converted(weights_OI, dtype):
            scale = (weight.detach().abs().amax(1).double() / 127).to(weight.dtype)
            stored = scale.double().clamp_min(torch.finfo(scale.dtype).tiny)  # as rounded, and never 0 / 0
            codes.append((weight.detach().double() / stored[:, None]).round_().clamp_(-127, 127).to(torch.int8))
            scales.append(scale)
        return cls(torch.stack(codes), torch.stack(scales))

    @property
    def shape(self) -> torch.Size:
        return self.codes_EOI.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.scale_EO.dtype

    @property
    def device(self) -> torch.device:
        return self.codes_EOI.device

    @property
    def nbytes(self) -> int:
        return self.codes_EOI.nbytes + self.scale_EO.nbytes

    def mm(self, expert: int, x_SI: Tensor, out_SO: Tensor) -> None:
        product(x_SI, self._wide(expert).T, out_SO).mul_(self.scale_EO[expert])

    def mm_t(self, expert: int, grad_SO: Tensor, out_SI: Tensor) -> None:
        product(grad_SO * self.scale_EO[expert], self._wide(expert), out_SI)

    def dense(self) -> Tensor:
        return self.codes_EOI.to(self.dtype) * self.scale_EO.unsqueeze(-1)

    def _wide(self, expert: int) -> Tensor:
        codes = self.codes_EOI[expert]
        return _scratch(codes.numel(), self.dtype, codes.device).view_as(codes).copy_(codes)


@dataclass(frozen=True, slots=True)
class Int8Both(Int8Row):
    """`Int8Row` whose `mm` multiplies bytes by bytes: each row of x is held in two a number, by a scale of its own.

    A processor multiplies bytes some times as fast as float32. The high bytes are max|row| / 127 apart, as in
    vector-wise quantisation (Dettmers et al. 2022, arXiv:2208.07339, section 2.1), which a few large inputs make too
    coarse for a language model; the low bytes are what is left of them in 254 parts. Sums of integers are exact, so a
    row has the same bits whatever rows are beside it. A processor that adds them up in 16 bits would not be exact
    (`multiplies_bytes_exactly`): there, rows are not rounded, and bytes save memory alone. For inference: `mm_t` is the
    gradient of products by rows that are not rounded.
    """

    def __post_init__(self) -> None:
        Int8Row.__post_init__(self)
        if self.codes_EOI.device.type != "cpu":
            raise UnfitWeights(f"bytes are multiplied by bytes on a processor alone, not on {self.codes_EOI.device}")
        if self.codes_EOI.shape[2] > _MOST_BYTES:
            raise UnfitWeights(f"sums of {self.codes_EOI.shape[2]:,} products of bytes do not fit in 32 bits")

    def mm(self, expert: int, x_SI: Tensor, out_SO: Tensor) -> None:
        if not multiplies_bytes_exactly():
            Int8Row.mm(self, expert, x_SI, out_SO)
            return
        rows = x_SI.flatten(0, -2).to(torch.promote_types(x_SI.dtype, torch.float32))
        scale_S1 = rows.abs().amax(1, keepdim=True).div_(127)
        rest = rows / scale_S1.clamp_min(torch.finfo(rows.dtype).tiny)
        high, codes = rest.round(), torch.empty(2, *rows.shape, dtype=torch.int8)
        codes[0] = high
        codes[1] = rest.sub_(high).mul_(_PARTS).round_()
        # One product of both: a matrix of weights is read once.
        sums = torch._int_mm(codes.flatten(0, 1), self.codes_EOI[expert].T).view(2, len(rows), self.shape[1])
        products = sums[1].to(rows.dtype).div_(_PARTS).add_(sums[0])
        out_SO.copy_(products.mul_(scale_S1).mul_(self.scale_EO[expert]).view_as(out_SO))


@functools.cache
@torch.inference_mode(False)
def multiplies_bytes_exactly() -> bool:
    """True if products of bytes are exact on this processor; without VNNI, sums of two may leave 16 bits."""
    numbers = torch.Generator().manual_seed(0)
    some = (
        torch.randint(-127, 128, (33, 512), generator=numbers),
        torch.randint(-127, 128, (48, 512), generator=numbers),
    )
    extreme = torch.full((3, 512), 127), torch.full((16, 512), 127)
    return all(
        torch.equal(torch._int_mm(x.to(torch.int8), w.to(torch.int8).T).long(), x @ w.T) for x, w in (some, extreme)
    )


class _Widened(ABC):
    """A format whose products are those of the widened matrix."""

    __slots__ = ()
    shape: torch.Size

    def mm(self, expert: int, x_SI: Tensor, out_SO: Tensor) -> None:
        product(x_SI, self._wide(expert).T, out_SO)

    def mm_t(self, expert: int, grad_SO: Tensor, out_SI: Tensor) -> None:
        product(grad_SO, self._wide(expert), out_SI)

    def dense(self) -> Tensor:
        return torch.stack([self._wide(expert).clone() for expert in range(self.shape[0])])

    @abstractmethod
    def _wide(self, expert: int) -> Tensor:
        """[O, I] of one expert, valid until the next one is asked for."""


@dataclass(frozen=True, slots=True)
class BFloat16(_Widened):
    """Two bytes a weight, widened to the dtype of the products.

    A checkpoint stored in bfloat16 loses nothing: its float32 products have the same numbers to multiply by.
    """

    weight_EOI: Tensor  # bfloat16
    dtype: torch.dtype
    shape: torch.Size = field(init=False)

    def __post_init__(self) -> None:
        if self.weight_EOI.ndim != 3 or self.weight_EOI.dtype != torch.bfloat16:
            raise UnfitWeights(f"need bfloat16 [E, O, I], got {_described(self.weight_EOI)}")
        object.__setattr__(self, "shape", self.weight_EOI.shape)
        object.__setattr__(self, "weight_EOI", self.weight_EOI.detach())

    @classmethod
    def quantised(cls, weights_OI: Iterable[Tensor], dtype: torch.dtype | None = None) -> "BFloat16":
        """Rounds to nearest even; a single matrix that is bfloat16 already is taken as it lies, mapped or not."""
        matrices = []
        for weight in weights_OI:
            dtype = dtype or weight.dtype
            matrices.append(weight.detach().to(torch.bfloat16))
        stack = matrices[0].unsqueeze(0) if len(matrices) == 1 else torch.stack(matrices)
        return cls(stack, dtype or stack.dtype)

    @property
    def device(self) -> torch.device:
        return self.weight_EOI.device

    @property
    def nbytes(self) -> int:
        return self.weight_EOI.nbytes

    def _wide(self, expert: int) -> Tensor:
        weight = self.weight_EOI[expert]
        if self.dtype == torch.bfloat16:
            return weight
        return _scratch(weight.numel(), self.dtype, weight.device).view_as(weight).copy_(weight)


@dataclass(frozen=True, slots=True)
class NF4Block64(_Widened):
    """Four bits a weight: an index into `NF4_VALUES`, times the largest size in its block of 64.

    As in bitsandbytes without double quantisation: blocks run along the flattened matrix of one expert, the first of
    two neighbours lies in the high half of their byte. Each expert starts a block, and its last one is filled up. For
    bfloat16, values and sizes are rounded before they are multiplied.
    """

    codes_EN: Tensor  # uint8, N = 32 B bytes an expert
    absmax_EB: Tensor  # float32
    shape: torch.Size
    dtype: torch.dtype

    def __post_init__(self) -> None:
        experts, width_out, width_in = self.shape
        blocks = -(-width_out * width_in // NF4_BLOCK)
        if self.codes_EN.shape != (experts, blocks * NF4_BLOCK // 2) or self.codes_EN.dtype != torch.uint8:
            raise UnfitWeights(f"{_described(self.codes_EN)} are no codes of {tuple(self.shape)} in blocks of 64")
        if self.absmax_EB.shape != (experts, blocks) or self.absmax_EB.dtype != torch.float32:
            raise UnfitWeights(f"need a float32 size for each of {blocks} blocks, got {_described(self.absmax_EB)}")
        object.__setattr__(self, "absmax_EB", self.absmax_EB.detach())

    @classmethod
    def quantised(cls, weights_OI: Iterable[Tensor], dtype: torch.dtype | None = None) -> "NF4Block64":
        """Each weight becomes the value nearest to weight / absmax; of two equally near ones the lower."""
        values = torch.tensor(NF4_VALUES, dtype=torch.float32)
        middle = (values[1:] + values[:-1]) / 2
        codes, absmax = [], []
        for weight in _converted(weights_OI, dtype):
            shape, of_products = weight.shape, weight.dtype
            flat = weight.detach().flatten().float()
            blocks = torch.nn.functional.pad(flat, (0, -len(flat) % NF4_BLOCK)).view(-1, NF4_BLOCK)
            largest = blocks.abs().amax(1)
            unit = blocks / largest.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
            code = torch.zeros_like(unit, dtype=torch.uint8)
            for bound in middle:  # takes 7 ns a weight, `torch.bucketize` 21
                code += unit > bound
            index = code.flatten()
            codes.append(index[::2] << 4 | index[1::2])
            absmax.append(largest)
        return cls(torch.stack(codes), torch.stack(absmax), torch.Size((len(codes), *shape)), of_products)

    @property
    def device(self) -> torch.device:
        return self.codes_EN.device

    @property
    def nbytes(self) -> int:
        return self.codes_EN.nbytes + self.absmax_EB.nbytes

    def _wide(self, expert: int) -> Tensor:
        codes = self.codes_EN[expert]
        wide = _scratch(2 * len(codes), self.dtype, codes.device)
        table = _nf4_table(self.dtype, codes.device)
        index = codes if len(table) == 256 else codes.view(torch.uint16)
        torch.gather(table, 0, index.to(torch.int64), out=wide.view(table.dtype))
        # In `dtype`, as torch multiplies mixed ones twenty times as slowly.
        wide.view(-1, NF4_BLOCK).mul_(self.absmax_EB[expert, :, None].to(self.dtype))
        _, width_out, width_in = self.shape
        return wide[: width_out * width_in].view(width_out, width_in)


@dataclass(frozen=True, slots=True)
class FP8Block128(_Widened):
    """The format of DeepSeek-V3: e4m3 codes, and for each tile of 128 x 128 what they are to be multiplied by.

    Tiles at the lower and right edge may be smaller. Scales are rounded to `dtype` first, as transformers does. No code
    may be nan.
    """

    codes_EOI: Tensor  # float8_e4m3fn
    scale_inv_EPQ: Tensor  # float32, P = ceil(O / 128), Q = ceil(I / 128)
    dtype: torch.dtype
    shape: torch.Size = field(init=False)
    _factor_EPQ: Tensor = field(init=False, repr=False, compare=False)  # in `dtype`, with what widening leaves out

    def __post_init__(self) -> None:
        if self.codes_EOI.ndim != 3 or self.codes_EOI.dtype != torch.float8_e4m3fn:
            raise UnfitWeights(f"need float8_e4m3fn codes [E, O, I], got {_described(self.codes_EOI)}")
        experts, *sides = self.codes_EOI.shape
        tiles = [-(-side // FP8_BLOCK) for side in sides]
        if self.scale_inv_EPQ.shape != (experts, *tiles) or self.scale_inv_EPQ.dtype != torch.float32:
            raise UnfitWeights(f"need a float32 scale for each of {tiles} tiles, got {_described(self.scale_inv_EPQ)}")
        _refuse_float16(self.dtype)
        if bool((self.scale_inv_EPQ.detach() >= 2.0**7).any()):
            raise UnfitWeights("scales of 2**7 and more stand for weights that no model has")
        object.__setattr__(self, "shape", self.codes_EOI.shape)
        object.__setattr__(self, "codes_EOI", self.codes_EOI.detach())
        object.__setattr__(self, "scale_inv_EPQ", self.scale_inv_EPQ.detach())
        object.__setattr__(self, "_factor_EPQ", self.scale_inv_EPQ.to(self.dtype) * _E4M3_BIAS)

    @classmethod
    def quantised(cls, weights_OI: Iterable[Tensor], dtype: torch.dtype | None = None) -> "FP8Block128":
        """Scales each tile so that its largest weight is the largest code, 448."""
        codes, scales = [], []
        for weight in _converted(weights_OI, dtype):
            of_products, (rows, columns) = weight.dtype, weight.shape
            padded = torch.nn.functional.pad(weight.detach().float(), (0, -columns % FP8_BLOCK, 0, -rows % FP8_BLOCK))
            tiles = padded.view(padded.shape[0] // FP8_BLOCK, FP8_BLOCK, -1, FP8_BLOCK)
            scale = tiles.abs().amax((1, 3)) / torch.finfo(torch.float8_e4m3fn).max
            unit = tiles / scale.clamp_min(torch.finfo(torch.float32).tiny)[:, None, :, None]
            codes.append(unit.reshape(padded.shape)[:rows, :columns].clamp(-448, 448).to(torch.float8_e4m3fn))
            scales.append(scale)
        return cls(torch.stack(codes), torch.stack(scales), of_products)

    @property
    def device(self) -> torch.device:
        return self.codes_EOI.device

    @property
    def nbytes(self) -> int:
        return self.codes_EOI.nbytes + self.scale_inv_EPQ.nbytes

    def _wide(self, expert: int) -> Tensor:
        codes, factor = self.codes_EOI[expert], self._factor_EPQ[expert]
        (rows, columns), (high, wide) = codes.shape, factor.shape
        padded = _scratch(factor.numel() * FP8_BLOCK**2, self.dtype, codes.device).view(high * FP8_BLOCK, -1)
        own = padded[:rows, :columns]
        own.copy_(_e4m3_unbiased(codes))
        padded.view(high, FP8_BLOCK, wide, FP8_BLOCK).mul_(factor[:, None, :, None])
        return own


# Their products depend on nothing but the weights and a row.
FROZEN_FORMATS = (Int8Row, BFloat16, NF4Block64, FP8Block128)


def trained_stack(weights: ExpertWeights) -> Tensor | None:
    """The stack itself if autograd wants its gradient, which only the `Dense` format can have."""
    return weights.weight_EOI if isinstance(weights, Dense) and weights.weight_EOI.requires_grad else None


class _Kept(threading.local):
    """Scratch memory of this thread; it only ever holds weights, which are public."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[torch.dtype, torch.device], Tensor] = {}


_kept = _Kept()


def _scratch(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[size] of undefined content, valid until the next call on this thread."""
    buffer = _kept.buffers.get((dtype, device))
    if buffer is None or len(buffer) < size:
        with torch.inference_mode(False):  # or it could never be written to outside that mode
            buffer = _kept.buffers[dtype, device] = torch.empty(size, dtype=dtype, device=device)
    return buffer[:size]


def _converted(weights: Iterable[Tensor], dtype: torch.dtype | None) -> Iterator[Tensor]:
    """The matrices in the dtype of the products."""
    return (weight if dtype is None else weight.to(dtype) for weight in weights)


def _e4m3_unbiased(codes: Tensor) -> Tensor:
    """bfloat16: each code times 2**-120, exactly, in three passes over integers; torch's cast takes 25 times as long.

    Sign, exponent and mantissa move to the places they have in a bfloat16, whose exponent counts from 2**-127 instead
    of 2**-7. Codes below 2**-6 become subnormal. The one code for nan becomes 480 * 2**-120.
    """
    bits = codes.view(torch.int8).to(torch.int16)  # extends the sign through the high byte
    return bits.bitwise_left_shift_(4).bitwise_and_(-0x7810).view(torch.bfloat16)


@functools.cache
@torch.inference_mode(False)
def _nf4_table(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The values of two or four neighbours as one number: [256], or [65536] for bfloat16, by the bytes of their codes.

    A gather takes as long for eight bytes as for two.
    """
    values = torch.tensor(NF4_VALUES, dtype=torch.float32, device=device).to(dtype)
    byte = torch.arange(256, device=device)
    pairs = torch.stack([values[byte >> 4], values[byte & 15]], dim=1)
    if dtype.itemsize == 2:
        word = torch.arange(65536, device=device)
        return torch.cat([pairs[word & 255], pairs[word >> 8]], dim=1).view(torch.int64).squeeze(1)
    return pairs.view({4: torch.int64, 8: torch.complex128}[dtype.itemsize]).squeeze(1)


def _refuse_float16(dtype: torch.dtype) -> None:
    """Products of bare codes leave its range, as scales fall below it."""
    if dtype == torch.float16:
        raise UnfitWeights("products in float16 overflow before the scale is applied; take bfloat16")


def _described(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"
