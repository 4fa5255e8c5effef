import pytest
import torch
import torch.nn.functional as F
from torch import nn

from confide.kernels.collect import Collector
from confide.kernels.experts import ExpertFactors, lora_experts
from confide.kernels.routing import route

MODEL, HIDDEN, EXPERTS = 8, 12, 4


def bank(rank=4, dtype=torch.float64, freeze_a=False):
    g = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=g, dtype=dtype) * shape[-1] ** -0.5

    factors = ExpertFactors(
        nn.Parameter(draw(EXPERTS, rank, MODEL), requires_grad=not freeze_a),
        nn.Parameter(draw(EXPERTS, 2 * HIDDEN, rank)),
        nn.Parameter(draw(EXPERTS, rank, HIDDEN), requires_grad=not freeze_a),
        nn.Parameter(draw(EXPERTS, MODEL, rank)),
    )
    return draw(EXPERTS, 2 * HIDDEN, MODEL), draw(EXPERTS, MODEL, HIDDEN), factors


def batch(tokens=20, dtype=torch.float64, experts=EXPERTS):
    g = torch.Generator().manual_seed(1)
    ids = torch.rand(tokens, experts, generator=g).topk(2, dim=1).indices
    weights = torch.rand(tokens, 2, generator=g, dtype=dtype)
    return torch.randn(tokens, MODEL, generator=g, dtype=dtype).requires_grad_(), ids, weights.requires_grad_()


def merged(x, ids, weights, gate_up, down, factors, scaling):
    """The definition: W + s BA for every expert, one token and choice at a time."""
    A1, B1, A2, B2 = factors
    W1, W2 = gate_up + scaling * B1 @ A1, down + scaling * B2 @ A2
    rows = []
    for t in range(len(x)):
        row = torch.zeros(MODEL, dtype=x.dtype)
        for k in range(ids.shape[1]):
            gate, up = (W1[ids[t, k]] @ x[t]).chunk(2)
            row = row + weights[t, k] * (W2[ids[t, k]] @ (F.silu(gate) * up))
        rows.append(row)
    return torch.stack(rows)


def test_forward_and_gradients_are_those_of_merged_weights():
    gate_up, down, factors = bank()
    x, ids, weights = batch()
    got = lora_experts(x, route(ids, EXPERTS), weights, gate_up, down, factors, 0.5)
    want = merged(x, ids, weights, gate_up, down, factors, 0.5)
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)
    leaves = (x, weights, *factors)
    for g, w in zip(
        torch.autograd.grad(got.square().sum(), leaves), torch.autograd.grad(want.square().sum(), leaves), strict=True
    ):
        torch.testing.assert_close(g, w, rtol=1e-10, atol=1e-11)


def test_gradcheck():
    gate_up, down, factors = bank(rank=2)
    x, ids, weights = batch(tokens=4)
    plan = route(ids, EXPERTS)
    assert torch.autograd.gradcheck(
        lambda x, w, *f: lora_experts(x, plan, w, gate_up, down, ExpertFactors(*f), 0.5), (x, weights, *factors)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [3, 4])  # 3: rows that grouped_mm cannot take
@pytest.mark.parametrize("per_row", [2, 30])  # short runs are kept as factors, long ones as products
def test_collector_gets_each_units_gradient(rank, per_row, dtype):
    gate_up, down, factors = bank(rank, dtype)
    units = torch.tensor([2, 0, 1, 0])
    x, ids, weights = batch(4 * per_row, dtype)
    collector = Collector(units, 3, per_row)
    plan = route(ids, EXPERTS, collector.unit_of_token, 3)
    lora_experts(x, plan, weights, gate_up, down, factors, 0.5, collector).square().sum().backward()
    assert all(p.grad is None for p in factors)
    for unit in range(3):
        own = collector.unit_of_token == unit
        plan = route(ids[own], EXPERTS)
        loss = lora_experts(x[own], plan, weights[own], gate_up, down, factors, 0.5).square().sum()
        want = torch.autograd.grad(loss, list(factors))
        got = collector.weighted_sum(torch.eye(3)[unit])
        rtol = 1e-4 if dtype == torch.float32 else 1e-10
        for p, w in zip(factors, want, strict=True):
            torch.testing.assert_close(got[p], w.double(), rtol=rtol, atol=rtol * float(w.abs().max()))
        norm = sum(w.double().square().sum() for w in want)
        torch.testing.assert_close(collector.square_norms()[unit], norm, rtol=rtol, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_norm_of_terms_that_cancel_is_never_understated(dtype):
    """Two pairs of one unit whose products are all but opposite: rounding is larger than what remains of them."""
    g = torch.Generator().manual_seed(4)
    parameter = nn.Parameter(torch.zeros(1, 16, 16, dtype=dtype))
    for _ in range(50):
        left, right = (torch.randn(16, generator=g, dtype=dtype).expand(2, -1).clone() for _ in range(2))
        right[1] *= -(1 + 2 * torch.finfo(dtype).eps)
        collector = Collector(torch.zeros(1, dtype=torch.int64), 1, 2)
        runs = route(torch.zeros(2, 1, dtype=torch.int64), 1, collector.unit_of_token, 1).runs
        collector.capture_runs(parameter, left, right, runs, 1, transposed=False)
        total = collector.weighted_sum(torch.ones(1))[parameter]
        assert total.any()
        assert total.norm() <= collector.square_norms().sqrt()


def test_forgotten_unit_leaves_no_nan_behind():
    for per_row in (2, 30):  # kept as factors, kept as products
        gate_up, down, factors = bank()
        x, ids, weights = batch(3 * per_row)
        collector = Collector(torch.arange(3), 3, per_row)
        plan = route(ids, EXPERTS, collector.unit_of_token, 3)
        scale = torch.ones(3 * per_row, 1, dtype=x.dtype)
        scale[collector.unit_of_token == 1] = torch.inf
        (lora_experts(x, plan, weights, gate_up, down, factors, 0.5, collector) * scale).sum().backward()
        collector.forget(torch.tensor([False, True, False]))
        total = collector.weighted_sum(torch.tensor([1.0, 0.0, 1.0]))
        assert all(total[p].isfinite().all() for p in factors)


def test_idle_experts_have_exactly_zero_gradient():
    gate_up, down, factors = bank()
    x, _, weights = batch(6)
    ids = torch.tensor([[2, 1]] * 6)
    collector = Collector(torch.arange(3), 3, 2)
    plan = route(ids, EXPERTS, collector.unit_of_token, 3)
    lora_experts(x, plan, weights, gate_up, down, factors, 0.5, collector).sum().backward()
    for total in collector.weighted_sum(torch.ones(3)).values():
        assert not total[[0, 3]].any()
        assert total[[1, 2]].any()


def test_frozen_a_is_not_collected():
    gate_up, down, factors = bank(freeze_a=True)
    x, ids, weights = batch(6)
    collector = Collector(torch.arange(3), 3, 2)
    plan = route(ids, EXPERTS, collector.unit_of_token, 3)
    lora_experts(x, plan, weights, gate_up, down, factors, 0.5, collector).sum().backward()
    assert set(collector.parameters) == {factors.gate_up_B_EGR, factors.down_B_EDR}


def test_no_tokens():
    gate_up, down, factors = bank()
    ids = torch.empty(0, 2, dtype=torch.int64)
    out = lora_experts(torch.empty(0, MODEL).double(), route(ids, EXPERTS), ids.double(), gate_up, down, factors, 0.5)
    assert out.shape == (0, MODEL)


def test_graph_can_be_used_twice_and_repeats_bit_for_bit():
    gate_up, down, factors = bank(dtype=torch.float32)
    x, ids, weights = batch(dtype=torch.float32)
    out = lora_experts(x, route(ids, EXPERTS), weights, gate_up, down, factors, 0.5).sum()
    first = torch.autograd.grad(out, list(factors), retain_graph=True)
    second = torch.autograd.grad(out, list(factors))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
