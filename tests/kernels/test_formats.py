import os
import subprocess
import sys

import pytest
import torch
from scipy import stats
from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight

from confide.kernels import formats
from confide.kernels.errors import UnfitWeights
from confide.kernels.formats import (
    NF4_VALUES,
    BFloat16,
    Dense,
    FP8Block128,
    Int8Both,
    Int8Row,
    NF4Block64,
    Prepacked,
    multiplies_bytes_exactly,
)
from confide.kernels.products import prepacks

from .allocations import LargestAllocation

QUANTISED = [Int8Row.quantised, NF4Block64.quantised, FP8Block128.quantised]
FORMATS = [Dense, Prepacked.of, *QUANTISED, BFloat16.quantised]
RAGGED = (3, 130, 77)  # tiles of 2 x 77 at the edge, and 10,010 weights an expert: the last block of 64 is not full
ROUNDING = {torch.float64: 1e-14, torch.float32: 1e-5, torch.bfloat16: 2**-7}

every_format = pytest.mark.parametrize("pack", FORMATS, ids=["dense", "prepacked", "int8", "nf4", "fp8", "bfloat16"])


def stack(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def assert_near(got, want, tolerance):
    assert (got.double() - want).norm() <= tolerance * want.norm()


@every_format
@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("shape", [RAGGED, (2, 256, 128), (1, 1, 1)])
def test_products_are_those_of_the_dense_matrices(pack, dtype, shape):
    experts, width_out, width_in = shape
    weights = pack(stack(*shape, dtype=dtype))
    dense, tolerance = weights.dense().double(), ROUNDING[dtype]
    assert (weights.shape, weights.dtype, weights.dense().dtype) == (shape, dtype, dtype)
    for rows in (0, 1, 5):
        x, grad = stack(rows, width_in, dtype=dtype, seed=1), stack(rows, width_out, dtype=dtype, seed=2)
        y, dx = x.new_empty(rows, width_out), x.new_empty(rows, width_in)
        for expert in reversed(range(experts)):  # a scratch of another expert must not shine through
            weights.mm(expert, x, y)
            weights.mm_t(expert, grad, dx)
            assert_near(y, x.double() @ dense[expert].T, tolerance)
            assert_near(dx, grad.double() @ dense[expert], tolerance)


@pytest.mark.parametrize("pack", QUANTISED, ids=["int8", "nf4", "fp8"])
def test_packing_what_was_packed_changes_nothing(pack):
    once = pack(stack(*RAGGED)).dense()
    torch.testing.assert_close(pack(once).dense(), once, rtol=1e-6, atol=0)


@pytest.mark.parametrize("pack", QUANTISED, ids=["int8", "nf4", "fp8"])
def test_expert_of_zeros_stays_zero(pack):
    weights = stack(*RAGGED)
    weights[1] = 0
    dense = pack(weights).dense()
    assert not dense[1].any()
    assert dense[[0, 2]].isfinite().all()


@pytest.mark.parametrize(("pack", "bits"), list(zip(QUANTISED, (8, 4, 8), strict=True)), ids=["int8", "nf4", "fp8"])
def test_memory_is_that_of_codes_and_scales(pack, bits):
    weights = pack(stack(2, 256, 512))
    codes = 2 * 256 * 512 * bits // 8
    assert codes < weights.nbytes <= codes * (1 + 1 / 8)  # nf4: 4 bytes beside 32


@every_format
def test_no_product_takes_memory_for_more_than_one_expert(pack):
    weights = pack(stack(16, 128, 256))
    with LargestAllocation() as largest:
        for expert in range(16):
            weights.mm(expert, stack(4, 256), torch.empty(4, 128))
            weights.mm_t(expert, stack(4, 128), torch.empty(4, 256))
    assert largest.nbytes <= 128 * 256 * torch.int64.itemsize  # the widest is an index of half as many numbers


def test_packed_weights_are_plain_ones_in_another_order_where_the_machine_packs_them():
    plain = stack(*RAGGED, dtype=torch.bfloat16)
    if not prepacks(torch.bfloat16, plain.device):
        assert isinstance(Prepacked.of(plain), Dense)
        pytest.skip("this machine multiplies by no packed matrices")
    packed = Prepacked.of(iter(plain))
    assert isinstance(packed, Prepacked)
    assert torch.equal(packed.dense(), plain)
    assert packed.nbytes == 2 * plain.nbytes
    assert isinstance(Prepacked.of(plain.float()), Dense)
    assert not prepacks(torch.bfloat16, torch.device("cuda"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_rounds_to_the_nearest_multiple_of_the_stored_scale(dtype):
    weights = stack(2, 5, 300, dtype=dtype)
    packed = Int8Row.quantised(weights)
    for expert in range(2):
        for row in range(5):
            scale = packed.scale_EO[expert, row].double()
            assert scale == (weights[expert, row].double().abs().max() / 127).to(dtype).double()
            codes = (weights[expert, row].double() / scale).round().clamp(-127, 127)
            assert torch.equal(packed.codes_EOI[expert, row].double(), codes)


exact_bytes = pytest.mark.skipif(
    not multiplies_bytes_exactly(), reason="this processor adds products of bytes up in 16 bits"
)


@exact_bytes
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_bytes_times_bytes_are_the_products_of_what_two_bytes_a_number_stand_for(dtype):
    """By exact arithmetic of Python's integers."""
    weights = Int8Both.quantised(stack(2, 5, 30, dtype=dtype))
    x = stack(4, 30, dtype=dtype, seed=1)
    x[1, 7], x[2] = 1000, 0
    got = x.new_empty(4, 5)
    weights.mm(1, x, got)
    wide = x.to(torch.promote_types(dtype, torch.float32))
    for row in range(4):
        step = wide[row].abs().max() / 127
        rest = wide[row] / max(step, torch.finfo(wide.dtype).tiny)
        high = rest.round()
        low = ((rest - high) * 254).round()
        assert max(high.abs().max(), low.abs().max()) <= 127
        for output in range(5):
            codes = weights.codes_EOI[1, output].tolist()
            sums = [sum(int(a) * b for a, b in zip(part.tolist(), codes, strict=True)) for part in (high, low)]
            want = float(step) * float(weights.scale_EO[1, output]) * (sums[0] + sums[1] / 254)
            assert float(got[row, output]) == pytest.approx(want, rel=ROUNDING[dtype], abs=1e-12)
    assert not got[2].any()


@pytest.mark.process
def test_a_processor_that_adds_bytes_up_inexactly_multiplies_by_what_they_stand_for():
    """oneDNN is told to use no more than AVX2, whose products of bytes leave 16 bits."""
    program = """
import torch
from confide.kernels.formats import Int8Both, multiplies_bytes_exactly
generator = torch.Generator().manual_seed(0)
weights = Int8Both.quantised(torch.randn(1, 40, 512, generator=generator))
x = torch.randn(6, 512, generator=generator)
got, want = torch.empty(6, 40), x.double() @ weights.dense()[0].double().T
weights.mm(0, x, got)
print(multiplies_bytes_exactly(), float((got - want).abs().max()) < 1e-3)
"""
    found = [
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"ONEDNN_MAX_CPU_ISA": isa}, capture_output=True, text=True, check=True,
        ).stdout.split()
        for isa in ("DEFAULT", "AVX2")
    ]  # fmt: skip
    assert found[1] == ["False", "True"]
    assert found[0][0] == str(multiplies_bytes_exactly())


def test_bytes_times_bytes_are_nearly_the_products_of_rows_that_are_not_rounded():
    weights = Int8Both.quantised(stack(1, 40, 200))
    x = stack(6, 200, seed=1)
    x[:, 3] *= 300  # of a language model's states a few are that large
    got, want = x.new_empty(6, 40), x.double() @ weights.dense()[0].double().T
    weights.mm(0, x, got)
    most = (x.double().abs().amax(1) / 127 / 254 / 2)[:, None] * weights.dense()[0].double().abs().sum(1)
    assert ((got - want).abs() <= 1.001 * most + 1e-6 * want.abs()).all()


@exact_bytes
def test_bytes_times_bytes_have_the_same_bits_whatever_rows_are_beside_them():
    weights = Int8Both.quantised(stack(1, 130, 77))
    weights.mm(0, torch.empty(0, 77), torch.empty(0, 130))
    x = stack(33, 77, seed=1) * 10 ** stack(33, 1, seed=2)
    together, alone, tiles = x.new_empty(33, 130), x.new_empty(1, 130), x.new_empty(3, 11, 130)
    weights.mm(0, x, together)
    weights.mm(0, x.view(3, 11, 77), tiles)
    assert torch.equal(tiles.flatten(0, 1), together)
    for row in range(33):
        weights.mm(0, x[row : row + 1], alone)
        assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_is_no_number_shows_in_its_row_alone(number):
    weights = Int8Both.quantised(stack(1, 5, 30))
    x = stack(3, 30, seed=1)
    x[1, 2] = number
    got = x.new_empty(3, 5)
    weights.mm(0, x, got)
    assert not got[1].isfinite().any()
    assert got[[0, 2]].isfinite().all()


def test_bytes_are_multiplied_by_bytes_where_their_sums_fit_and_on_a_processor():
    widest = (2**31 - 1) // 127**2
    Int8Both(torch.empty(1, 1, widest, dtype=torch.int8), torch.empty(1, 1))
    with pytest.raises(UnfitWeights, match="32 bits"):
        Int8Both(torch.empty(1, 1, widest + 1, dtype=torch.int8), torch.empty(1, 1))
    with pytest.raises(UnfitWeights, match="not on meta"):
        Int8Both(torch.empty(1, 5, 3, dtype=torch.int8, device="meta"), torch.empty(1, 5, device="meta"))
    extreme = Int8Both(torch.full((1, 1, widest), 127, dtype=torch.int8), torch.ones(1, 1))
    got = torch.empty(1, 1)
    extreme.mm(0, torch.ones(1, widest), got)
    assert float(got) == pytest.approx(127 * widest)


def test_nf4_values_are_quantiles_of_the_normal_distribution():
    """The recipe of bitsandbytes' `create_normal_map`: 8 positive, 7 negative quantiles and zero, scaled to [-1, 1]."""
    offset = 0.9677083
    above = stats.norm.ppf(torch.linspace(offset, 0.5, 9)[:-1].numpy())
    below = -stats.norm.ppf(torch.linspace(offset, 0.5, 8)[:-1].numpy())
    want = torch.tensor(sorted([*above, 0.0, *below]))
    torch.testing.assert_close(torch.tensor(NF4_VALUES).double(), want / want.max(), rtol=0, atol=1e-6)


def test_nf4_has_the_codes_of_bitsandbytes():
    """What `quantize_4bit(w, blocksize=64, quant_type="nf4")` of bitsandbytes 0.50.2 makes of the numbers -32 to 31."""
    want = [
        0, 0, 1, 17, 17, 17, 18, 34, 34, 51, 51, 68, 69, 85, 102, 103,
        119, 136, 153, 154, 170, 187, 188, 204, 205, 221, 222, 238, 238, 238, 255, 255,
    ]  # fmt: skip
    packed = NF4Block64.quantised(torch.arange(-32.0, 32.0).view(1, 1, 64))
    assert packed.codes_EN[0].tolist() == want
    assert packed.absmax_EB.tolist() == [[32.0]]


def test_nf4_takes_the_nearest_value_of_each_block():
    weights = stack(2, 10, 77)
    packed = NF4Block64.quantised(weights)
    values = torch.tensor(NF4_VALUES)
    for expert in range(2):
        flat = weights[expert].flatten()
        for start in range(0, len(flat), 64):
            block = flat[start : start + 64]
            largest = block.abs().max()
            nearest = values[(block[:, None] / largest - values).abs().argmin(1)]
            got = packed.dense()[expert].flatten()[start : start + 64]
            torch.testing.assert_close(got, nearest * largest, rtol=0, atol=0)


def test_nf4_has_the_first_of_two_neighbours_in_the_high_half():
    weights = torch.zeros(1, 1, 64)
    weights[0, 0, :4] = torch.tensor([1.0, -1.0, 0.0, 1.0])  # codes 15, 0, 7, 15
    assert NF4Block64.quantised(weights).codes_EN[0, :3].tolist() == [0xF0, 0x7F, 0x77]


def test_fp8_multiplies_each_tile_by_its_scale():
    packed = FP8Block128.quantised(stack(*RAGGED))
    dense, codes, scale = packed.dense(), packed.codes_EOI.float(), packed.scale_inv_EPQ
    assert scale.shape == (3, 2, 1)
    for expert in range(3):
        for row in (0, 1, 127, 128, 129):
            for column in (0, 76):
                want = codes[expert, row, column] * scale[expert, row // 128, column // 128]
                assert dense[expert, row, column] == want


@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("scale", [1.0, 2.0**-100, 2.0**-10, 127.0])
def test_fp8_widens_every_code_exactly(dtype, scale):
    codes = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(torch.float8_e4m3fn)
    codes = codes[~codes.isnan()].view(1, 2, 127)
    got = FP8Block128(codes, torch.full((1, 1, 1), scale), dtype).dense()
    assert torch.equal(got, (codes.double() * scale).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [RAGGED, (2, 256, 384)])
def test_fp8_is_what_transformers_makes_of_it(shape, dtype):
    packed = FP8Block128.quantised(stack(*shape, dtype=dtype))
    want = _dequantize_fp8_weight(packed.codes_EOI, packed.scale_inv_EPQ, [128, 128], dtype)
    torch.testing.assert_close(packed.dense(), want, rtol=0, atol=0)


def test_fp8_is_off_by_at_most_half_a_step():
    weights = stack(2, 256, 200)
    packed = FP8Block128.quantised(weights)
    scale = packed.scale_inv_EPQ.repeat_interleave(128, 1).repeat_interleave(128, 2)[:, :, :200]
    # three mantissa bits; below 2**-6 codes are 2**-9 apart
    bound = torch.maximum(weights.abs() / 16, scale * 2.0**-10)
    assert ((packed.dense() - weights).abs() <= bound * 1.001).all()


def test_scales_that_want_a_gradient_leave_the_scratch_alone():
    """Transformers stores fp8 scales as parameters; an in-place product would tie the kept scratch to their graph."""
    packed = FP8Block128.quantised(stack(2, 128, 128))
    wanting = FP8Block128(packed.codes_EOI, packed.scale_inv_EPQ.clone().requires_grad_(), torch.float32)
    assert not wanting.dense().requires_grad
    out = torch.empty(1, 128)
    packed.mm(0, stack(1, 128), out)
    assert not out.requires_grad


def test_tensors_that_are_no_stack_are_refused():
    codes = torch.zeros(2, 130, 64, dtype=torch.int8)
    for make in (
        lambda: Dense(torch.zeros(2, 3)),
        lambda: Dense(torch.zeros(2, 3, 4, dtype=torch.int32)),
        lambda: Dense(torch.zeros(2, 3, 4).to(torch.float8_e4m3fn)),
        lambda: Int8Row(codes.float(), torch.zeros(2, 130)),
        lambda: Int8Row(codes, torch.zeros(2, 64)),
        lambda: NF4Block64(torch.zeros(2, 31).byte(), torch.zeros(2, 1), torch.Size((2, 8, 8)), torch.float32),
        lambda: NF4Block64(torch.zeros(2, 32).byte(), torch.zeros(2, 2), torch.Size((2, 8, 8)), torch.float32),
        lambda: FP8Block128(codes, torch.zeros(2, 2, 1), torch.float32),
        lambda: FP8Block128(codes.to(torch.float8_e4m3fn), torch.zeros(2, 1, 1), torch.float32),
        lambda: FP8Block128(codes.to(torch.float8_e4m3fn), torch.zeros(2, 2, 1).double(), torch.float32),
        lambda: FP8Block128(codes.to(torch.float8_e4m3fn), torch.full((2, 2, 1), 128.0), torch.float32),
    ):
        with pytest.raises(UnfitWeights):
            make()


@pytest.mark.parametrize("kind", [Int8Row, FP8Block128])
def test_products_in_float16_are_refused(kind):
    with pytest.raises(UnfitWeights, match="float16"):
        kind.quantised(torch.ones(1, 4, 4, dtype=torch.float16))


@pytest.mark.parametrize("kind", [Int8Row, NF4Block64, FP8Block128])
def test_what_ran_first_in_inference_mode_trains_afterwards(kind, monkeypatch):
    monkeypatch.setattr(formats, "_kept", formats._Kept())
    formats._nf4_table.cache_clear()
    weights = kind.quantised(torch.randn(1, 8, 64))
    x, out = torch.randn(3, 64), torch.empty(3, 8)
    with torch.inference_mode():
        weights.mm(0, x.clone(), torch.empty(3, 8))
    weights.mm(0, x, out)
    torch.testing.assert_close(out, x @ weights.dense()[0].T)
