import pytest
import torch
from torch import nn

from confide.kernels.collect import Collector
from confide.kernels.errors import CaptureClosed, CapturedTwice, TokensMiscounted
from confide.kernels.lora import lora_linear, vector_head


def factors(*shape, dtype=torch.float64, rank=4):
    generator = torch.Generator().manual_seed(1)
    width_in, width_out = shape
    shapes = (rank, width_in), (width_out, rank)
    return [nn.Parameter(torch.randn(s, dtype=dtype, generator=generator) * 0.3) for s in shapes]


def inputs(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(2))


def test_forward_is_the_merged_weight():
    A, B = factors(6, 5)
    x, weight, bias = inputs(3, 7, 6), inputs(5, 6), inputs(5)
    want = x @ (weight + 0.5 * B @ A).T + bias
    torch.testing.assert_close(lora_linear(x, weight, bias, A, B, 0.5), want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_without_autograd_has_the_bits_of_the_one_with_it(dtype):
    A, B = factors(6, 5, dtype=torch.float32)
    x, weight, bias = (inputs(*shape, dtype=dtype) for shape in ((3, 7, 6), (5, 6), (5,)))
    want = lora_linear(x, weight, bias, A, B, 0.5)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            got = lora_linear(x, weight, bias, A, B, 0.5)
        assert torch.equal(got, want)
        assert not got.requires_grad
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(lora_linear(x, weight, bias, A, B, 0.5), want)


def test_gradients_are_right():
    A, B = factors(6, 5)
    x = inputs(3, 2, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, A, B: lora_linear(x, inputs(5, 6), None, A, B, 0.5), (x, A, B))


def test_head_gradients_are_right():
    weight = nn.Parameter(inputs(6))
    assert torch.autograd.gradcheck(vector_head, (inputs(3, 6).requires_grad_(), weight))


@pytest.mark.parametrize("shape", [(4, 3, 6), (4, 1, 3, 6)])  # kv_b_proj sees four axes
def test_collector_gets_each_units_gradient(shape):
    A, B = factors(6, 5)
    units = torch.tensor([1, 0, 1, 2])
    x, weight = inputs(*shape), inputs(5, 6)
    collector = Collector(units, 3, 3)
    lora_linear(x, weight, None, A, B, 0.5, collector).square().sum().backward()
    assert A.grad is None
    assert B.grad is None
    for unit in range(3):
        loss = lora_linear(x[units == unit], weight, None, A, B, 0.5).square().sum()
        want = torch.autograd.grad(loss, (A, B))
        got = collector.weighted_sum(torch.eye(3)[unit])
        torch.testing.assert_close(got[A], want[0])
        torch.testing.assert_close(got[B], want[1])
        norm = sum(g.square().sum() for g in want)
        torch.testing.assert_close(collector.square_norms()[unit], norm)


def test_a_stage_of_a_pyramid_says_itself_how_many_tokens_a_row_has():
    A, B = factors(6, 5)
    units, weight = torch.tensor([1, 0, 1]), inputs(5, 6)
    windows = inputs(3 * 4, 2, 6)  # of three rows, row by row: four windows of two tokens each, where a row has three
    collector = Collector(units, 2, 3)
    lora_linear(windows, weight, None, A, B, 0.5, collector, tokens_per_row=8).square().sum().backward()
    for unit, rows in ((0, [1]), (1, [0, 2])):
        own = windows.view(3, 8, 6)[rows]
        want = torch.autograd.grad(lora_linear(own, weight, None, A, B, 0.5).square().sum(), [A, B])
        got = collector.weighted_sum(torch.eye(2)[unit])
        for factor, grad in zip((A, B), want, strict=True):
            torch.testing.assert_close(got[factor], grad)


@pytest.mark.parametrize("told", [None, 4, 16])
def test_a_number_of_tokens_that_was_not_told_is_refused(told):
    A, B = factors(6, 5)
    collector = Collector(torch.tensor([1, 0, 1]), 2, 3)
    out = lora_linear(inputs(3 * 4, 2, 6), inputs(5, 6), None, A, B, 0.5, collector, tokens_per_row=told)
    with pytest.raises(TokensMiscounted):
        out.sum().backward()


def test_base_in_bfloat16_keeps_gradients_in_full_precision():
    A, B = factors(16, 8, dtype=torch.float32)
    x, weight = inputs(4, 3, 16).bfloat16(), inputs(8, 16).bfloat16()
    collector = Collector(torch.arange(4), 4, 3)
    lora_linear(x, weight, None, A, B, 0.5, collector).float().sum().backward()
    reference = lora_linear(x.double(), weight.double(), None, A.double(), B.double(), 0.5).sum()
    want = torch.autograd.grad(reference, B)[0]
    got = collector.weighted_sum(torch.ones(4))[B]
    assert (got - want).abs().max() < 0.02 * want.abs().max()  # bfloat16 has 8 bits


def test_frozen_factor_has_no_gradient():
    A, B = factors(6, 5)
    A.requires_grad_(False)
    collector = Collector(torch.arange(2), 2, 3)
    lora_linear(inputs(2, 3, 6), inputs(5, 6), None, A, B, 0.5, collector).sum().backward()
    assert collector.parameters == [B]


def test_other_number_of_tokens_is_refused():
    A, B = factors(6, 5)
    out = lora_linear(inputs(2, 3, 6), inputs(5, 6), None, A, B, 0.5, Collector(torch.arange(2), 2, 4))
    with pytest.raises(TokensMiscounted, match="6 tokens, expected 2 rows x 4"):
        out.sum().backward()


def test_second_use_of_a_factor_is_refused():
    A, B = factors(6, 5)
    collector = Collector(torch.arange(2), 2, 3)
    out = [lora_linear(inputs(2, 3, 6), inputs(5, 6), None, A, B, 0.5, collector).sum() for _ in range(2)]
    with pytest.raises(CapturedTwice):
        sum(out).backward()


def test_backward_after_the_microbatch_is_refused():
    A, B = factors(6, 5)
    collector = Collector(torch.arange(2), 2, 3)
    out = lora_linear(inputs(2, 3, 6), inputs(5, 6), None, A, B, 0.5, collector).sum()
    collector.close()
    with pytest.raises(CaptureClosed):
        out.backward()


def test_autocast_changes_nothing():
    x, weight = torch.randn(5, 6, requires_grad=True), torch.randn(4, 6)
    A, B = nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.randn(4, 2))
    want = lora_linear(x, weight, None, A, B, 0.5)
    want_grads = torch.autograd.grad(want.sum(), (x, A, B))
    with torch.autocast("cpu", torch.bfloat16):
        got = lora_linear(x, weight, None, A, B, 0.5)
    got_grads = torch.autograd.grad(got.sum(), (x, A, B))  # outside, as torch asks for
    assert torch.equal(got, want)
    assert all(torch.equal(a, b) for a, b in zip(got_grads, want_grads, strict=True))


def test_no_bit_of_a_row_s_logit_depends_on_how_many_rows_there_are():
    generator = torch.Generator().manual_seed(4)
    x, weight = torch.randn(640, 65, generator=generator), nn.Parameter(torch.randn(65, generator=generator))
    want = vector_head(x, weight).detach()
    for rows in (1, 4, 5, 8, 10, 20, 40, 64):
        assert torch.equal(torch.cat([vector_head(some, weight).detach() for some in x.split(rows)]), want)
