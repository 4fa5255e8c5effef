import pytest
import torch
from torch import nn

from confide.kernels.collect import Collector
from confide.kernels.embedding import lora_embedding
from confide.kernels.errors import CapturedTwice, TokensMiscounted

WORDS, MODEL, RANK = 9, 5, 3
IDS = torch.tensor([[1, 2, 2], [2, 0, 8], [1, 1, 1], [7, 2, 1]])


def table(dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    weight, A, B = (torch.randn(s, generator=g, dtype=dtype) for s in ((WORDS, MODEL), (RANK, WORDS), (MODEL, RANK)))
    return weight, nn.Parameter(A), nn.Parameter(B)


def merged(ids, weight, A, B):
    """The definition: rows of W + s (B A)^T."""
    return (weight + 0.5 * (B @ A).T)[ids]


def test_forward_and_gradients_are_those_of_the_merged_table():
    weight, A, B = table()
    got, want = lora_embedding(IDS, weight, A, B, 0.5), merged(IDS, weight, A, B)
    torch.testing.assert_close(got, want)
    for mine, plain in zip(
        torch.autograd.grad(got.square().sum(), (A, B)), torch.autograd.grad(want.square().sum(), (A, B)), strict=True
    ):
        torch.testing.assert_close(mine, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_collector_gets_each_units_gradient(dtype):
    weight, A, B = table(dtype)
    units = torch.tensor([1, 0, 1, 2])  # unit 1 meets word 1 in two rows, and word 2 belongs to all three
    collector = Collector(units, 3, 3)
    lora_embedding(IDS, weight, A, B, 0.5, collector).square().sum().backward()
    assert A.grad is None
    assert B.grad is None
    for unit in range(3):
        want = torch.autograd.grad(merged(IDS[units == unit], weight, A, B).square().sum(), (A, B))
        got = collector.weighted_sum(torch.eye(3)[unit])
        for parameter, grad in zip((A, B), want, strict=True):
            torch.testing.assert_close(got[parameter], grad.double(), rtol=1e-5, atol=1e-6)
        norm = sum(g.double().square().sum() for g in want)
        torch.testing.assert_close(collector.square_norms()[unit], norm, rtol=1e-5, atol=0)


def test_sums_by_group_are_those_of_each_group_alone():
    weight, A, B = table()
    collector, group = Collector(torch.arange(4), 4, 3), torch.tensor([1, 0, 1, 1])
    lora_embedding(IDS, weight, A, B, 0.5, collector).square().sum().backward()
    by_unit = torch.tensor([0.3, 0.5, 0.7, 0.2], dtype=torch.float64)
    sums = collector.weighted_sums(by_unit, group, 2, grid=2.0**-20)
    for number in range(2):
        alone = collector.weighted_sum(by_unit * (group == number), grid=2.0**-20)
        for factor in (A, B):
            assert sums[factor][number].any()
            assert torch.equal(sums[factor][number], alone[factor])


def test_forgotten_unit_leaves_no_nan_behind():
    weight, A, B = table()
    collector = Collector(torch.arange(4), 4, 3)
    scale = torch.tensor([1.0, torch.inf, 1.0, 1.0])[:, None, None]
    (lora_embedding(IDS, weight, A, B, 0.5, collector) * scale).sum().backward()
    collector.forget(torch.tensor([False, True, False, False]))
    assert all(total.isfinite().all() for total in collector.weighted_sum(torch.ones(4)).values())


def test_words_that_nobody_used_have_exactly_zero_gradient():
    weight, A, B = table()
    collector = Collector(torch.arange(4), 4, 3)
    lora_embedding(IDS, weight, A, B, 0.5, collector).sum().backward()
    total = collector.weighted_sum(torch.ones(4))[A]
    assert not total[:, [3, 4, 5, 6]].any()
    assert total[:, [0, 1, 2, 7, 8]].all()


def test_other_number_of_tokens_is_refused():
    weight, A, B = table()
    out = lora_embedding(IDS, weight, A, B, 0.5, Collector(torch.arange(4), 4, 2))
    with pytest.raises(TokensMiscounted):
        out.sum().backward()


def test_table_used_twice_is_refused():
    weight, A, B = table()
    collector = Collector(torch.arange(4), 4, 3)
    both = lora_embedding(IDS, weight, A, B, 0.5, collector) + lora_embedding(IDS, weight, A, B, 0.5, collector)
    with pytest.raises(CapturedTwice):
        both.sum().backward()


@pytest.mark.parametrize("bad", [-7, 987])
def test_word_out_of_range_is_refused_and_not_shown(bad):
    weight, A, B = table()
    with pytest.raises(IndexError) as refused:
        lora_embedding(torch.tensor([[1, bad]]), weight, A, B, 0.5)
    assert str(bad) not in str(refused.value)
