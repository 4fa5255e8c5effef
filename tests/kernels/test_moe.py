import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Experts

from confide.kernels import cpu
from confide.kernels import moe as dispatch
from confide.kernels.collect import Collector
from confide.kernels.errors import CapturedTwice, TokensMiscounted, UnfitWeights, UnknownBackend
from confide.kernels.experts import Experts, Factors, LoRA, from_peft, peft_factors
from confide.kernels.formats import Dense, FP8Block128, Int8Row, NF4Block64, Prepacked
from confide.kernels.moe import moe
from confide.kernels.routing import route

from .allocations import LargestAllocation

MODEL, HIDDEN, EXPERTS, SCALING = 8, 12, 4, 0.5

both = pytest.mark.parametrize("backend", ["reference", "cpu"])


def bank(rank=4, dtype=torch.float64, freeze_a=False, experts=EXPERTS):
    """gate_up, down and the factors of a bank of random experts."""
    g = torch.Generator().manual_seed(0)

    def draw(*shape):
        return (torch.randn(shape, generator=g, dtype=torch.float64) * shape[-1] ** -0.5).to(dtype)

    factors = Factors(
        nn.Parameter(draw(experts, rank, MODEL), requires_grad=not freeze_a),
        nn.Parameter(draw(experts, 2 * HIDDEN, rank)),
        nn.Parameter(draw(experts, rank, HIDDEN), requires_grad=not freeze_a),
        nn.Parameter(draw(experts, MODEL, rank)),
    )
    return draw(experts, 2 * HIDDEN, MODEL), draw(experts, MODEL, HIDDEN), factors


def batch(tokens=20, dtype=torch.float64, experts=EXPERTS, top_k=2):
    g = torch.Generator().manual_seed(1)
    ids = torch.rand(tokens, experts, generator=g).topk(top_k, dim=1).indices
    weights = torch.rand(tokens, top_k, generator=g, dtype=torch.float64).to(dtype)
    x = torch.randn(tokens, MODEL, generator=g, dtype=torch.float64).to(dtype)
    return x.requires_grad_(), ids, weights.requires_grad_()


def run(x, ids, weights, gate_up, down, factors, *, backend="cpu", collector=None):
    experts = Experts(Dense(gate_up), Dense(down))
    owners = (None, 0) if collector is None else (collector.unit_of_token, collector.num_units)
    lora = None if factors is None else LoRA(Factors(*factors), SCALING)
    return moe(x, route(ids, len(gate_up), *owners), weights, experts, lora, backend=backend, collector=collector)


def merged(x, ids, weights, gate_up, down, factors):
    """The definition: W + s BA for every expert, one token and choice at a time; an expert that is not there adds 0."""
    W1, W2 = gate_up, down
    if factors is not None:
        A1, B1, A2, B2 = factors
        W1, W2 = gate_up + SCALING * B1 @ A1, down + SCALING * B2 @ A2
    rows = []
    for t in range(len(x)):
        row = torch.zeros(MODEL, dtype=x.dtype)
        for k in range(ids.shape[1]):
            if ids[t, k] < len(W1):
                gate, up = (W1[ids[t, k]] @ x[t]).chunk(2)
                row = row + weights[t, k] * (W2[ids[t, k]] @ (F.silu(gate) * up))
        rows.append(row)
    return torch.stack(rows)


def assert_same_gradients(got, want, leaves, rtol=1e-10):
    grads = [torch.autograd.grad(out.square().sum(), leaves, allow_unused=True) for out in (got, want)]
    for g, w in zip(*grads, strict=True):
        torch.testing.assert_close(g, torch.zeros_like(g) if w is None else w, rtol=rtol, atol=rtol / 10)


@both
@pytest.mark.parametrize("has_lora", [True, False])
def test_forward_and_gradients_are_those_of_merged_weights(backend, has_lora):
    gate_up, down, factors = bank()
    factors = factors if has_lora else None
    gate_up.requires_grad_()
    down.requires_grad_()
    x, ids, weights = batch()
    got = run(x, ids, weights, gate_up, down, factors, backend=backend)
    want = merged(x, ids, weights, gate_up, down, factors)
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)
    assert_same_gradients(got, want, (x, weights, gate_up, down, *(factors or ())))


@both
@pytest.mark.parametrize("experts", [1, 3, 9])
@pytest.mark.parametrize("top_k", [1, 2, 8])
def test_any_number_of_choices(backend, experts, top_k):
    """Top-1 to top-8 over one expert, few and many; 25 tokens leave no two experts with equally many."""
    gate_up, down, factors = bank(experts=experts)
    x, ids, weights = batch(25, experts=experts, top_k=min(top_k, experts))
    got = run(x, ids, weights, gate_up, down, factors, backend=backend)
    want = merged(x, ids, weights, gate_up, down, factors)
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)
    assert_same_gradients(got, want, (x, weights, *factors))


@pytest.mark.slow
@both
@pytest.mark.parametrize("tokens", [1, 1500])  # 1500: more than an expert may have that shares a chunk
def test_few_and_many_tokens_of_crowded_and_idle_experts(backend, tokens):
    gate_up, down, factors = bank()
    x, _, weights = batch(tokens)
    ids = torch.tensor([[2, 1]]).expand(tokens, 2)
    got = run(x, ids, weights, gate_up, down, factors, backend=backend)
    want = merged(x, ids, weights, gate_up, down, factors)
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)
    assert_same_gradients(got, want, (x, weights, *factors))


@both
def test_an_expert_may_be_chosen_twice(backend):
    gate_up, down, factors = bank()
    x, _, weights = batch(3)
    ids = torch.tensor([[2, 2], [1, 1], [0, 3]])
    got, want = (
        run(x, ids, weights, gate_up, down, factors, backend=backend),
        merged(x, ids, weights, gate_up, down, factors),
    )
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


@both
@pytest.mark.parametrize("per_unit", [False, True])
def test_pairs_of_experts_elsewhere_add_nothing(backend, per_unit):
    gate_up, down, factors = bank()
    x, ids, weights = batch(12)
    ids = ids.clone()
    ids[3] = ids[5, 0] = ids[7, 1] = EXPERTS
    want = merged(x, ids, weights, gate_up, down, factors)
    collector = Collector(torch.arange(3), 3, 4) if per_unit else None
    got = run(x, ids, weights, gate_up, down, factors, backend=backend, collector=collector)
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)
    assert not got[3].any()
    if collector is None:
        assert_same_gradients(got, want, (x, weights, *factors))
        assert not torch.autograd.grad(run(x, ids, weights, gate_up, down, factors).sum(), weights)[0][3].any()
        return
    grads = torch.autograd.grad(want.square().sum(), (x, weights, *factors))
    got.square().sum().backward()
    torch.testing.assert_close(x.grad, grads[0], rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(weights.grad, grads[1], rtol=1e-10, atol=1e-11)
    total = collector.weighted_sum(torch.ones(3))
    for factor, grad in zip(factors, grads[2:], strict=True):
        torch.testing.assert_close(total[factor], grad, rtol=1e-10, atol=1e-11)


@both
def test_a_pair_elsewhere_adds_nothing_even_with_a_weight_that_is_none(backend):
    x, ids, weights = batch()
    gate_up, down, factors = bank()
    ids[3, 1] = EXPERTS
    weights = weights.detach()
    want = run(x, ids, weights, gate_up, down, factors, backend=backend)
    weights[3, 1] = torch.nan
    assert torch.equal(run(x, ids, weights, gate_up, down, factors, backend=backend), want)


@both
def test_all_experts_may_be_elsewhere(backend):
    gate_up, down, factors = bank()
    x, _, weights = batch(4)
    got = run(x, torch.full((4, 2), EXPERTS), weights, gate_up, down, factors, backend=backend)
    assert got.shape == (4, MODEL)
    assert not got.any()
    if backend == "cpu":
        assert not any(g.any() for g in torch.autograd.grad(got.sum(), (x, weights, *factors)))


@both
def test_no_tokens(backend):
    gate_up, down, factors = bank()
    ids = torch.empty(0, 2, dtype=torch.int64)
    x = torch.empty(0, MODEL).double().requires_grad_()
    out = run(x, ids, ids.double(), gate_up, down, factors, backend=backend)
    assert out.shape == (0, MODEL)


@pytest.mark.slow
@pytest.mark.parametrize("trains_experts", [False, True])
def test_gradcheck(trains_experts):
    gate_up, down, factors = bank(rank=2)
    x, ids, weights = batch(tokens=4)
    leaves = (x, weights, *factors)
    if trains_experts:
        leaves = (x, weights, gate_up.requires_grad_(), down.requires_grad_(), *factors)

    def f(x, w, *rest):
        stacks = rest[:2] if trains_experts else (gate_up, down)
        return run(x, ids, w, *stacks, rest[-4:])

    assert torch.autograd.gradcheck(f, leaves)


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [3, 4, 16])  # 3: rows that grouped_mm cannot take
@pytest.mark.parametrize("per_row", [1, 9, 60])  # short runs of high rank are kept as factors, long ones as products
@pytest.mark.slow
def test_collector_gets_each_units_gradient(backend, rank, per_row, dtype):
    gate_up, down, factors = bank(rank, dtype)
    units = torch.tensor([2, 0, 1, 0])
    x, ids, weights = batch(4 * per_row, dtype)
    collector = Collector(units, 3, per_row)
    run(x, ids, weights, gate_up, down, factors, backend=backend, collector=collector).square().sum().backward()
    assert all(p.grad is None for p in factors)
    for unit in range(3):
        own = collector.unit_of_token == unit
        loss = merged(x[own], ids[own], weights[own], gate_up, down, factors).square().sum()
        want = torch.autograd.grad(loss, list(factors))
        got = collector.weighted_sum(torch.eye(3)[unit])
        rtol = 1e-4 if dtype == torch.float32 else 1e-10
        for p, w in zip(factors, want, strict=True):
            torch.testing.assert_close(got[p], w.double(), rtol=rtol, atol=rtol * float(w.abs().max()))
        norm = sum(w.double().square().sum() for w in want)
        torch.testing.assert_close(collector.square_norms()[unit], norm, rtol=rtol, atol=0)


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rank", "trained"), [(4, 1), (16, 3), (16, 16)])
@pytest.mark.parametrize("per_row", [1, 60])
def test_components_that_are_not_trained_are_in_no_norm_and_no_sum(backend, rank, trained, per_row, dtype):
    gate_up, down, factors = bank(rank, dtype, freeze_a=True)
    units = torch.tensor([2, 0, 1, 0])
    x, ids, weights = batch(4 * per_row, dtype)
    both_B = factors[1], factors[3]
    collector = Collector(units, 3, per_row, dict.fromkeys(both_B, trained))
    run(x, ids, weights, gate_up, down, factors, backend=backend, collector=collector).square().sum().backward()
    rtol = 1e-4 if dtype == torch.float32 else 1e-10
    for unit in range(3):
        own = collector.unit_of_token == unit
        loss = merged(x[own], ids[own], weights[own], gate_up, down, factors).square().sum()
        want = [grad.double() for grad in torch.autograd.grad(loss, both_B)]
        got = collector.weighted_sum(torch.eye(3)[unit])
        for p, w in zip(both_B, want, strict=True):
            w[..., trained:] = 0
            assert not got[p][..., trained:].any()
            torch.testing.assert_close(got[p], w, rtol=rtol, atol=rtol * float(w.abs().max()))
        norm = sum(w.square().sum() for w in want)
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
        capture = collector.open_runs(parameter, 16, 16, dtype, runs, 1, transposed=False)
        capture.add(slice(0, 2), slice(0, len(runs.length_N)), left, right)
        total = collector.weighted_sum(torch.ones(1))[parameter]
        assert total.any()
        assert total.norm() <= collector.square_norms().sqrt()


@both
@pytest.mark.parametrize("per_row", [1, 30])  # kept as factors, kept as products
def test_a_sum_on_a_grid_is_that_of_the_units_each_cut_towards_zero(backend, per_row):
    gate_up, down, factors = bank(rank=16)
    x, ids, weights = batch(3 * per_row)
    collector = Collector(torch.arange(3), 3, per_row)
    run(x, ids, weights, gate_up, down, factors, backend=backend, collector=collector).square().sum().backward()
    by_unit = torch.tensor([0.3, 0.0, 0.7], dtype=torch.float64)
    total, grid = collector.weighted_sum(by_unit, grid=2.0**-20), 2.0**-20
    each = [collector.weighted_sum(one * by_unit) for one in torch.eye(3)]
    for factor in factors:
        assert torch.equal(total[factor], sum((own[factor] / grid).trunc() * grid for own in each))
        assert not torch.equal(total[factor], collector.weighted_sum(by_unit)[factor])


@both
@pytest.mark.parametrize("per_row", [1, 30])  # kept as factors, kept as products
@pytest.mark.parametrize("grid", [None, 2.0**-20])
def test_sums_by_group_are_those_of_each_group_alone(backend, per_row, grid):
    gate_up, down, factors = bank(rank=16)
    x, ids, weights = batch(4 * per_row)
    collector = Collector(torch.arange(4), 4, per_row)
    run(x, ids, weights, gate_up, down, factors, backend=backend, collector=collector).square().sum().backward()
    by_unit, group = torch.tensor([0.3, 0.5, 0.7, 0.0], dtype=torch.float64), torch.tensor([2, 0, 2, 0])
    sums = collector.weighted_sums(by_unit, group, 3, grid=grid)
    for number in range(3):
        alone = collector.weighted_sum(by_unit * (group == number), grid=grid)
        for factor in factors:
            assert torch.equal(sums[factor][number], alone[factor])


def test_a_unit_s_bits_do_not_depend_on_who_else_is_there():
    """With as many rows, and others' tokens at other experts."""
    x, ids, weights = batch(4 * 20)
    found = set()
    for seed in range(6):
        gate_up, down, factors = bank(rank=16)
        generator = torch.Generator().manual_seed(seed)
        chosen, rows = ids.clone(), x.detach().clone()
        chosen[20:] = torch.rand(60, 4, generator=generator).topk(2, dim=1).indices
        rows[20:] = 10.0**seed * torch.randn(60, x.shape[1], generator=generator)
        if seed == 5:
            chosen[20:] = chosen[20]
        collector = Collector(torch.arange(4), 4, 20)
        rows.requires_grad_()
        out = run(rows, chosen, weights, gate_up, down, factors, collector=collector)
        out.square().sum().backward()
        own = collector.weighted_sum(torch.eye(4)[0])
        bits = [out[:20], rows.grad[:20], collector.square_norms()[:1], *(own[factor] for factor in factors)]
        found.add(b"".join(part.detach().numpy().tobytes() for part in bits))
    assert len(found) == 1


def test_forgotten_unit_leaves_no_nan_behind():
    for per_row in (1, 30):  # kept as factors, kept as products
        gate_up, down, factors = bank(rank=16)
        x, ids, weights = batch(3 * per_row)
        collector = Collector(torch.arange(3), 3, per_row)
        scale = torch.ones(3 * per_row, 1, dtype=x.dtype)
        scale[collector.unit_of_token == 1] = torch.inf
        (run(x, ids, weights, gate_up, down, factors, collector=collector) * scale).sum().backward()
        collector.forget(torch.tensor([False, True, False]))
        total = collector.weighted_sum(torch.tensor([1.0, 0.0, 1.0]))
        assert all(total[p].isfinite().all() for p in factors)


@both
def test_idle_experts_have_exactly_zero_gradient(backend):
    gate_up, down, factors = bank()
    x, _, weights = batch(6)
    ids = torch.tensor([[2, 1]] * 6)
    collector = Collector(torch.arange(3), 3, 2)
    run(x, ids, weights, gate_up, down, factors, backend=backend, collector=collector).sum().backward()
    for total in collector.weighted_sum(torch.ones(3)).values():
        assert not total[[0, 3]].any()
        assert total[[1, 2]].any()


@both
def test_frozen_a_is_not_collected(backend):
    gate_up, down, factors = bank(freeze_a=True)
    x, ids, weights = batch(6)
    collector = Collector(torch.arange(3), 3, 2)
    run(x, ids, weights, gate_up, down, factors, backend=backend, collector=collector).sum().backward()
    assert set(collector.parameters) == {factors.gate_up_B_EGR, factors.down_B_EDR}


@pytest.mark.parametrize("trained", [(), (0,), (1,), (2,), (3,), (1, 3)])
@pytest.mark.parametrize("needs_x", [True, False])
def test_any_part_may_be_frozen(trained, needs_x):
    gate_up, down, factors = bank()
    for number, factor in enumerate(factors):
        factor.requires_grad_(number in trained)
    x, ids, weights = batch()
    x.requires_grad_(needs_x)
    got, want = run(x, ids, weights, gate_up, down, factors), merged(x, ids, weights, gate_up, down, factors)
    leaves = [t for t in (x, weights, *factors) if t.requires_grad]
    assert_same_gradients(got, want, leaves)


@both
def test_bank_used_twice_in_a_microbatch_is_refused(backend):
    gate_up, down, factors = bank()
    x, ids, weights = batch(6)
    collector = Collector(torch.arange(3), 3, 2)
    out = [run(x, ids, weights, gate_up, down, factors, backend=backend, collector=collector).sum() for _ in range(2)]
    with pytest.raises(CapturedTwice):
        sum(out).backward()


def test_graph_can_be_used_twice_and_repeats_bit_for_bit():
    for dtype in (torch.float32, torch.bfloat16):
        gate_up, down, factors = bank(dtype=dtype)
        x, ids, weights = batch(dtype=dtype)
        out = run(x, ids, weights, gate_up, down, factors)
        leaves = [x, weights, *factors]
        other = run(3 * x, ids.flip(0), weights, gate_up, down, factors)  # a second graph lives beside the first
        first = torch.autograd.grad(out.sum(), leaves, retain_graph=True)
        torch.autograd.grad(other.sum(), leaves)
        second = torch.autograd.grad(out.sum(), leaves)
        again = run(x, ids, weights, gate_up, down, factors)
        assert torch.equal(out, again)
        for a, b, c in zip(first, second, torch.autograd.grad(again.sum(), leaves), strict=True):
            assert torch.equal(a, b)
            assert torch.equal(a, c)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_changes_nothing(use_reentrant):
    gate_up, down, factors = bank()
    x, ids, weights = batch()
    want = run(x, ids, weights, gate_up, down, factors)
    got = checkpoint(run, x, ids, weights, gate_up, down, factors, use_reentrant=use_reentrant)
    assert torch.equal(got, want)
    leaves = [x, weights, *factors]
    wants = torch.autograd.grad(want.square().sum(), leaves)
    got.square().sum().backward()  # the reentrant kind knows no other way
    assert all(torch.equal(leaf.grad, w) for leaf, w in zip(leaves, wants, strict=True))


def test_checkpointing_hands_over_each_units_gradient_once():
    gate_up, down, factors = bank()
    x, ids, weights = batch(6)
    plain, again = Collector(torch.arange(3), 3, 2), Collector(torch.arange(3), 3, 2)
    run(x, ids, weights, gate_up, down, factors, collector=plain).sum().backward()
    checkpoint(
        lambda x: run(x, ids, weights, gate_up, down, factors, collector=again), x, use_reentrant=False
    ).sum().backward()
    assert torch.equal(plain.square_norms(), again.square_norms())
    for factor in factors:
        assert torch.equal(plain.weighted_sum(torch.ones(3))[factor], again.weighted_sum(torch.ones(3))[factor])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pack", [Prepacked.of, Int8Row.quantised, NF4Block64.quantised, FP8Block128.quantised])
@pytest.mark.parametrize("per_unit", [False, True])
def test_quantised_experts_are_their_dense_selves(pack, dtype, per_unit):
    gate_up, down, factors = bank(dtype=torch.float32)
    experts = Experts(pack(gate_up.to(dtype)), pack(down.to(dtype)))
    x, ids, weights = batch(24, dtype=torch.float32)
    collector = Collector(torch.arange(3), 3, 8) if per_unit else None
    plan = route(ids, EXPERTS, None if collector is None else collector.unit_of_token, 3)
    got = moe(x, plan, weights, experts, LoRA(factors, SCALING), collector=collector)
    dense = experts.gate_up.dense().double(), experts.down.dense().double()
    leaves = [t.detach().double().requires_grad_() for t in (x, weights, *factors)]
    want = merged(leaves[0], ids, leaves[1], *dense, leaves[2:])
    tolerance = 1e-5 if dtype == torch.float32 else 2**-6
    assert (got.double() - want).norm() <= tolerance * want.norm()
    got.square().sum().backward()
    want.square().sum().backward()
    ours = [x.grad, weights.grad]
    if collector is None:
        ours += [factor.grad for factor in factors]
    else:
        ours += [collector.weighted_sum(torch.ones(3))[factor] for factor in factors]
    for g, leaf in zip(ours, leaves, strict=True):
        assert (g.double() - leaf.grad).norm() <= 3 * tolerance * leaf.grad.norm()


def test_without_gradients_nothing_is_kept(monkeypatch):
    gate_up, down, factors = bank(experts=8)
    x, ids, weights = batch(200, experts=8)
    monkeypatch.setattr(cpu, "_CHUNK", 1)  # a chunk for each expert
    silu, seen, alive = F.silu, [], []

    def watched(gate):
        alive.append(sum(not storage.expired() for storage in seen))
        seen.append(StorageWeakRef(gate.untyped_storage()))
        return silu(gate)

    monkeypatch.setattr(cpu.F, "silu", watched)
    with torch.no_grad():
        run(x, ids, weights, gate_up, down, factors)
    assert len(alive) == 8
    assert max(alive) <= 1
    alive.clear()
    out = run(x, ids, weights, gate_up, down, factors)
    assert max(alive) == 7
    assert out.requires_grad


@pytest.mark.parametrize("pack", [Dense, Int8Row.quantised, NF4Block64.quantised, FP8Block128.quantised])
@pytest.mark.parametrize("per_unit", [False, True])
def test_no_stack_of_experts_is_ever_copied(pack, per_unit):
    """Forward and backward of 4 tokens over 64 experts: no allocation is a sixteenth of the smaller stack."""
    gate_up, down, factors = bank(rank=1, dtype=torch.float32, experts=64)
    gate_up, down = (stack.repeat_interleave(16, 1).repeat_interleave(16, 2) for stack in (gate_up, down))
    wide = Factors(
        *(nn.Parameter(f.detach().repeat_interleave(16, d)) for f, d in zip(factors, (2, 1, 2, 1), strict=True))
    )
    experts = Experts(pack(gate_up), pack(down))
    x = torch.randn(4, 16 * MODEL, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ids, weights = torch.tensor([[1, 5], [3, 5], [1, 63], [2, 4]]), torch.rand(4, 2).requires_grad_()
    collector = Collector(torch.arange(2), 2, 2) if per_unit else None
    plan = route(ids, 64, None if collector is None else collector.unit_of_token, 2)
    if collector is not None:  # how such matrices multiply tiles is tried once
        moe(x, plan, weights, experts, LoRA(wide, SCALING), collector=Collector(torch.arange(2), 2, 2)).sum().backward()
    with LargestAllocation() as largest:
        moe(x, plan, weights, experts, LoRA(wide, SCALING), collector=collector).sum().backward()
        if collector is not None:
            collector.square_norms()
    assert largest.nbytes < down.nbytes / 16


def stock_experts(dtype, *, experts=8, model=128, hidden=64):
    """transformers' own experts, run eagerly, with random weights."""
    config = DeepseekV3Config(hidden_size=model, moe_intermediate_size=hidden, n_routed_experts=experts)
    config._experts_implementation = "eager"
    module = DeepseekV3Experts(config)
    g = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=g) * parameter.shape[-1] ** -0.5
    return module.to(dtype)


def stock_batch(tokens, model=128, experts=8, top_k=4):
    g = torch.Generator().manual_seed(1)
    ids = torch.rand(tokens, experts, generator=g).topk(top_k, dim=1).indices
    return torch.randn(tokens, model, generator=g), ids, torch.rand(tokens, top_k, generator=g)


def test_equals_eager_experts_of_transformers():
    module = stock_experts(torch.float64)
    x, ids, weights = stock_batch(40)
    x, weights = x.double().requires_grad_(), weights.double().requires_grad_()
    experts = Experts(Dense(module.gate_up_proj), Dense(module.down_proj))
    got, want = moe(x, route(ids, 8), weights, experts), module(x, ids, weights)
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)
    assert_same_gradients(got, want, (x, weights, module.gate_up_proj, module.down_proj))


def test_bfloat16_is_as_near_as_eager_experts_of_transformers():
    exact, rounded = stock_experts(torch.float64), stock_experts(torch.bfloat16)
    x, ids, weights = stock_batch(300)
    experts = Experts(Dense(rounded.gate_up_proj), Dense(rounded.down_proj))

    def errors(x_of, weights_of, forward):
        x, w = x_of.clone().requires_grad_(), weights_of.clone().requires_grad_()
        out = forward(x, w)
        return out.detach(), *torch.autograd.grad(out.double().square().sum(), (x, w))

    want = errors(x.bfloat16().double(), weights.double(), lambda x, w: exact(x, ids, w))
    ours = errors(x.bfloat16(), weights, lambda x, w: moe(x, route(ids, 8), w, experts))
    eager = errors(x.bfloat16(), weights, lambda x, w: rounded(x, ids, w))
    # The weights' gradient is <dy W, inner>, with roundings over F numbers where eager's <dy, y> averages over D.
    for o, e, exactly, allowed in zip(ours, eager, want, (1.1, 1.1, 1.25), strict=True):
        assert (o.double() - exactly).norm() <= allowed * (e.double() - exactly).norm()


@both
def test_autocast_leaves_precision_to_the_experts(backend):
    gate_up, down, factors = bank(dtype=torch.float32)
    x, ids, weights = batch(dtype=torch.float32)
    want = run(x, ids, weights, gate_up, down, factors, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        got = run(x, ids, weights, gate_up, down, factors, backend=backend)
    assert torch.equal(got, want)
    wants = torch.autograd.grad(want.sum(), [x, weights, *factors])
    with torch.autocast("cpu", torch.bfloat16):  # backward inside is advised against, but must not be wrong
        gots = torch.autograd.grad(got.sum(), [x, weights, *factors])
    if backend == "cpu":
        assert all(torch.equal(a, b) for a, b in zip(gots, wants, strict=True))


@both
def test_experts_in_bfloat16_under_full_precision_states_and_factors(backend):
    gate_up, down, factors = bank(dtype=torch.float32)
    x, ids, weights = batch(dtype=torch.float32)
    gate_up, down = gate_up.bfloat16(), down.bfloat16()
    got = run(x, ids, weights, gate_up, down, factors, backend=backend)
    leaves = [t.detach().double().requires_grad_() for t in (x, weights, *factors)]
    want = merged(leaves[0], ids, leaves[1], gate_up.double(), down.double(), leaves[2:])
    assert got.dtype == torch.float32
    assert (got.double() - want).norm() < 2**-6 * want.norm()
    wants = torch.autograd.grad(want.square().sum(), leaves)
    for g, w in zip(torch.autograd.grad(got.square().sum(), [x, weights, *factors]), wants, strict=True):
        assert g.dtype == torch.float32
        assert (g.double() - w).norm() < 2**-5 * w.norm()


def test_peft_layout_is_expert_major_and_rank_major():
    A, B = torch.arange(24.0).view(2, 3, 4), torch.arange(30.0).view(2, 5, 3)
    weight_A, weight_B = peft_factors(A, B)
    assert torch.equal(weight_A[1 * 3 + 2], A[1, 2])
    assert torch.equal(weight_B[:, 2 * 2 + 1], B[1, :, 2])
    for got, want in zip(from_peft(weight_A, weight_B, 2), (A, B), strict=True):
        assert torch.equal(got, want)
    for bad in ((weight_A, weight_B, 4), (weight_A, weight_A, 2), (A, B, 2)):
        with pytest.raises(UnfitWeights):
            from_peft(*bad)


def test_variable_chooses_the_backend(monkeypatch):
    gate_up, down, factors = bank()
    seen = []
    monkeypatch.setattr(dispatch, "reference_moe", lambda x, *_: seen.append("reference") or x)
    monkeypatch.setattr(dispatch, "cpu_moe", lambda x, *_: seen.append("cpu") or x)
    monkeypatch.delenv("CONFIDE_MOE_BACKEND", raising=False)
    run(*batch(), gate_up, down, factors, backend=None)
    monkeypatch.setenv("CONFIDE_MOE_BACKEND", "reference")
    run(*batch(), gate_up, down, factors, backend=None)
    run(*batch(), gate_up, down, factors, backend="cpu")
    assert seen == ["cpu", "reference", "cpu"]


@pytest.mark.parametrize("name", ["cuda", "Triton"])
def test_unknown_backend_is_refused(name, monkeypatch):
    gate_up, down, factors = bank()
    with pytest.raises(UnknownBackend, match=name):
        run(*batch(), gate_up, down, factors, backend=name)
    monkeypatch.setenv("CONFIDE_MOE_BACKEND", name)
    with pytest.raises(UnknownBackend, match=name):
        run(*batch(), gate_up, down, factors, backend=None)


def test_backend_that_cannot_run_here_is_refused_when_asked_for():
    gate_up, down, factors = bank()
    with pytest.raises(UnknownBackend, match="triton"):
        run(*batch(), gate_up, down, factors, backend="triton")


def test_fallback_says_so_once():
    gate_up, down, _ = bank()
    experts = Experts(Dense(gate_up), Dense(down))
    dispatch._say_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="single matrix products"):
        assert dispatch._suiting(torch.device("cuda"), experts) == "cpu"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dispatch._suiting(torch.device("cuda"), experts) == "cpu"
        assert dispatch._suiting(torch.device("cpu"), experts) == "cpu"


def test_what_does_not_fit_is_refused():
    gate_up, down, factors = bank()
    x, ids, weights = batch()
    experts, lora, plan = Experts(Dense(gate_up), Dense(down)), LoRA(factors, SCALING), route(ids, EXPERTS)
    for make, error in (
        (lambda: Experts(Dense(gate_up), Dense(gate_up)), UnfitWeights),
        (lambda: Experts(Dense(gate_up), Dense(down.float())), UnfitWeights),
        (lambda: moe(x[:, :5], plan, weights, experts), UnfitWeights),
        (lambda: moe(x, route(ids, EXPERTS + 1), weights, experts), UnfitWeights),
        (lambda: moe(x, plan, weights, experts, LoRA(Factors(*reversed(factors)), 1.0)), UnfitWeights),
        (lambda: moe(x[1:], plan, weights, experts, lora), TokensMiscounted),
        (lambda: moe(x, plan, weights[:, :1], experts, lora), TokensMiscounted),
        (lambda: moe(x, plan, weights, experts, lora, collector=Collector(torch.arange(4), 4, 5)), TokensMiscounted),
    ):
        with pytest.raises(error):
            make()


def test_collector_leaves_no_way_around_it():
    """Experts that are trained themselves would get the gradient of all units together."""
    gate_up, down, factors = bank()
    x, ids, weights = batch()
    with pytest.raises(UnfitWeights, match="frozen"):
        run(x, ids, weights, gate_up.requires_grad_(), down, factors, collector=Collector(torch.arange(4), 4, 5))
