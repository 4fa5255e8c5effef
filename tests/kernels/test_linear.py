import copy

import pytest
import torch
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM

from confide.kernels.collect import Collector
from confide.kernels.errors import UnfitWeights
from confide.kernels.formats import BFloat16, Dense, FP8Block128, Int8Both, Int8Row, NF4Block64
from confide.kernels.install import quantise
from confide.kernels.linear import PackedMatrix, QuantisedLinear, multiply_in_integers, packed_stacks, quantise_linear
from confide.kernels.lora import lora_linear

from .allocations import LargestAllocation

FORMS = {"bfloat16": BFloat16, "fp8": FP8Block128, "int8": Int8Row, "nf4": NF4Block64}
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-6}
every_format = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
SHAPE = (130, 77)  # ragged in every format


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def layer(form, dtype=torch.float64, *, bias=True):
    """A packed layer, and the plain one of what its codes stand for."""
    plain = nn.Linear(SHAPE[1], SHAPE[0], bias=bias).to(dtype).requires_grad_(False)
    plain.weight.copy_(draw(*SHAPE, dtype=dtype))
    model = nn.Sequential(copy.deepcopy(plain))
    quantise_linear(model, ["0"], form.quantised)
    plain.weight.copy_(model[0].weight.dense())
    return model[0], plain


def assert_near(got, want, tolerance):
    assert (got.double() - want.double()).norm() <= tolerance * want.double().norm()


@every_format
@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("shape", [(5, 77), (2, 3, 77), (1, 2, 3, 77), (0, 77), (77,)])
def test_layer_and_its_gradient_are_those_of_what_the_codes_stand_for(form, dtype, shape):
    packed, plain = layer(form, dtype)
    x, other = (draw(*shape, dtype=dtype, seed=1).requires_grad_() for _ in range(2))
    got, want = packed(x), nn.functional.linear(other.double(), plain.weight.double(), plain.bias.double())
    assert (got.shape, got.dtype) == (want.shape, dtype)
    assert_near(got, want, ROUNDING[dtype])
    slope = draw(*want.shape, seed=2)
    got.backward(slope.to(dtype))
    want.backward(slope)
    assert x.grad.dtype == dtype
    assert_near(x.grad, other.grad, ROUNDING[dtype])


@every_format
@pytest.mark.parametrize("shape", [(5, 77), (2, 3, 77), (0, 77), (77,)])
def test_without_autograd_the_products_are_the_same(form, shape):
    packed, _ = layer(form, torch.float32)
    x = draw(*shape, dtype=torch.float32, seed=1)
    want = packed(x.clone().requires_grad_()).detach()
    with torch.no_grad():
        assert torch.equal(packed(x), want)
    with torch.inference_mode():
        assert torch.equal(packed(x), want)


def test_products_by_weights_in_int8_alone_go_over_to_integers():
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = MixtralForCausalLM(MixtralConfig(**sizes, num_key_value_heads=1, num_local_experts=4, vocab_size=32)).eval()
    quantise(model, Int8Row.quantised)
    layers = [f"model.layers.{place}.self_attn.{name}" for place in (0, 1) for name in ("q_proj", "o_proj")]
    quantise_linear(model, layers[:3], Int8Row.quantised)
    quantise_linear(model, layers[3:], NF4Block64.quantised)
    ids = torch.arange(12).view(2, 6)
    with torch.no_grad():
        before = model(ids).logits
        codes = [stack for module in model.modules() for stack in packed_stacks(module)]
        multiply_in_integers(model)
        multiply_in_integers(model)  # twice is no harm
        after = model(ids).logits
    found = [stack for module in model.modules() for stack in packed_stacks(module)]
    assert sorted(type(stack).__name__ for stack in found) == ["Int8Both"] * 7 + ["NF4Block64"]
    assert all(
        stack.codes_EOI is own.codes_EOI for stack, own in zip(found, codes, strict=True) if type(stack) is Int8Both
    )
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, before, rtol=1e-2, atol=1e-3)


@every_format
def test_autograd_agrees_with_finite_differences(form):
    packed, _ = layer(form)
    assert torch.autograd.gradcheck(packed, (draw(2, 3, 77, seed=1).requires_grad_(),))


@every_format
@pytest.mark.parametrize("trains_A", [False, True])
def test_adapter_on_packed_weights_is_that_on_what_the_codes_stand_for(form, trains_A):
    packed, plain = layer(form)
    A, B = (nn.Parameter(0.3 * draw(*shape, seed=3)) for shape in ((4, 77), (130, 4)))
    A.requires_grad_(trains_A)
    units, results = torch.tensor([1, 0, 1]), []
    for weight in (packed.weight, plain.weight):
        x, collector = draw(3, 2, 77, seed=1).requires_grad_(), Collector(units, 2, 2)
        out = lora_linear(x, weight, plain.bias, A, B, 0.5, collector)
        out.square().sum().backward()
        sums = collector.weighted_sum(torch.tensor([0.5, 2.0]))
        results.append((out, x.grad, collector.square_norms(), *(sums[factor] for factor in collector.parameters)))
    assert len(results[0]) == 4 + trains_A
    for got, want in zip(*results, strict=True):
        assert_near(got, want, 1e-12)


def test_weights_stored_in_bfloat16_give_the_bits_of_float32():
    """Widened they are the same numbers, in a matrix of the same shape and order."""
    weight, x = draw(*SHAPE, dtype=torch.bfloat16), draw(9, 77, dtype=torch.float32, seed=1)
    matrix = PackedMatrix(BFloat16.quantised([weight], torch.float32))
    assert matrix.stack.weight_EOI.data_ptr() == weight.data_ptr()  # no copy, so a mapped one stays mapped
    assert torch.equal(matrix.linear(x), nn.functional.linear(x, weight.float()))
    slope = draw(9, 130, dtype=torch.float32, seed=2)
    assert torch.equal(matrix.linear_back(slope), slope @ weight.float())


def test_bfloat16_rounds_to_the_nearest():
    weight = draw(*SHAPE, dtype=torch.float32)
    assert torch.equal(BFloat16.quantised([weight, weight]).dense()[1], weight.bfloat16().float())


@every_format
def test_packing_in_another_dtype_is_packing_what_was_converted(form):
    stored = [draw(*SHAPE, dtype=torch.bfloat16)]
    got, want = form.quantised(stored, torch.float32), form.quantised([stored[0].float()])
    assert got.dtype == want.dtype == torch.float32
    assert torch.equal(got.dense(), want.dense())


@every_format
def test_no_pass_widens_more_than_one_matrix(form):
    packed, _ = layer(form, torch.float32)
    wide = SHAPE[0] * SHAPE[1] * 4
    with LargestAllocation() as largest:
        for _ in range(3):
            packed(draw(4, 77, dtype=torch.float32).requires_grad_()).sum().backward()
    assert largest.nbytes <= 4 * wide  # fp8 fills tiles of 128 up: 2 x 128 x 128 numbers for 130 x 77
    kept = [draw(4, 77, dtype=torch.float32).requires_grad_()]
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: kept.append(saved) or saved, lambda saved: saved):
        packed(kept[0])
    assert len(kept) == 1  # autograd holds no weight


@every_format
def test_computes_in_the_dtype_of_the_products_under_autocast(form):
    packed, _ = layer(form, torch.float32)
    x = draw(4, 77, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(packed(x), packed(x.float()))
        assert packed(x).dtype == torch.float32


def test_layer_is_frozen_and_no_part_of_the_state():
    packed, _ = layer(Int8Row, torch.float32)
    assert not any(parameter.requires_grad for parameter in packed.parameters())
    assert list(packed.state_dict()) == ["bias"]
    assert "Int8Row" in repr(packed)
    assert "no weights yet" in repr(QuantisedLinear(77, 130))


def test_code_that_reads_past_the_layer_fails():
    packed, _ = layer(NF4Block64, torch.float32)
    with pytest.raises(TypeError):
        nn.functional.linear(draw(4, 77, dtype=torch.float32), packed.weight)


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_what_is_no_plain_linear_layer_is_not_packed():
    model = nn.Sequential(nn.Linear(3, 3), Scaled(3, 3))
    with pytest.raises(UnfitWeights, match="1 is a Scaled"):
        quantise_linear(model, ["0", "1"], Int8Row.quantised)
    assert type(model[0]) is nn.Linear


def test_weights_of_other_sizes_are_refused():
    with pytest.raises(UnfitWeights, match=r"no matrix \[130, 77\]"):
        QuantisedLinear(77, 130).fill(Int8Row.quantised([draw(77, 130)]))
    with pytest.raises(UnfitWeights, match="not a stack"):
        PackedMatrix(Dense(draw(2, 130, 77)))
