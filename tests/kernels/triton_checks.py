"""What the Triton backend has to do, on the CPU under Triton's interpreter or, without TRITON_INTERPRET, on a GPU.

Run by test_triton.py in a process of its own: TRITON_INTERPRET has to be set before Triton is imported, and holds for
everything in the process.
"""

import itertools
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import nn
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Experts
from triton.runtime import interpreter

from confide.kernels import segments, triton_experts, triton_kernels
from confide.kernels.collect import Collector
from confide.kernels.errors import CaptureClosed, CapturedTwice, UnfitWeights, UnknownBackend
from confide.kernels.experts import Experts, Factors, LoRA
from confide.kernels.formats import Dense, FP8Block128, Int8Row, NF4Block64
from confide.kernels.moe import moe
from confide.kernels.routing import route
from confide.kernels.segment_tiles import Read, Tiles
from confide.kernels.segments import Segments, chosen_blocks, segment_attention
from confide.kernels.tiles import by_analysis
from confide.kernels.triton_experts import check_fit, is_available, tile_table, triton_moe
from confide.kernels.triton_segments import triton_shares, triton_slopes

pytestmark = pytest.mark.process  # on a GPU: the compiler

MODEL, HIDDEN = 40, 24  # neither is a multiple of the tiles, 32 wide and deep
PRECISION = 1e-6  # float32 against float64, relative to the norm
IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if IS_INTERPRETED else "cuda"


@pytest.fixture(autouse=True)
def everything_is_on_the_device():
    with torch.device(DEVICE):
        yield


def normal(generator, *shape):
    """The same numbers on every device."""
    return torch.randn(shape, generator=generator, device="cpu").to(DEVICE)


def drawn(generator, *shape):
    return normal(generator, *shape) * shape[-1] ** -0.5


def bank(experts=4, model=MODEL, hidden=HIDDEN, stored=Dense):
    g = torch.Generator().manual_seed(0)
    return Experts(stored(drawn(g, experts, 2 * hidden, model)), stored(drawn(g, experts, model, hidden)))


def adapters(experts=4, ranks=(16, 16), freeze_a=False, model=MODEL, hidden=HIDDEN):
    g = torch.Generator().manual_seed(1)
    first, second = ranks
    shapes = (first, model), (2 * hidden, first), (second, hidden), (model, second)
    factors = [nn.Parameter(drawn(g, experts, *shape)) for shape in shapes]
    factors[0].requires_grad_(not freeze_a)
    factors[2].requires_grad_(not freeze_a)
    return LoRA(Factors(*factors), 0.5)


def batch(tokens=20, experts=4, top_k=2, model=MODEL):
    g = torch.Generator().manual_seed(2)
    ids = normal(g, tokens, experts).topk(top_k, dim=1).indices
    weights = normal(g, tokens, top_k).sigmoid().requires_grad_()
    return (3 * normal(g, tokens, model)).requires_grad_(), ids, weights


def definition(x, ids, weights, experts, lora=None):
    """One token and choice at a time, in float64, on W + s BA; an expert that does not exist adds nothing."""
    W1, W2 = experts.gate_up.dense().double(), experts.down.dense().double()
    if lora is not None:
        A1, B1, A2, B2 = (factor.double() for factor in lora.factors)
        W1, W2 = W1 + lora.scaling * B1 @ A1, W2 + lora.scaling * B2 @ A2
    rows = []
    for t in range(len(x)):
        row = torch.zeros_like(x[t], dtype=torch.float64)
        for k in range(ids.shape[1]):
            if ids[t, k] < len(W1):
                gate, up = (W1[ids[t, k]] @ x[t].double()).chunk(2)
                row = row + weights[t, k].double() * (W2[ids[t, k]] @ (F.silu(gate) * up))
        rows.append(row)
    return torch.stack(rows)


def probe(out):
    """A scalar whose gradient is different in every entry, so that no two could be swapped unseen."""
    g = torch.Generator().manual_seed(3)
    return (out * normal(g, *out.shape).to(out.dtype)).sum()


def assert_near(got, want, precision=PRECISION):
    assert got.shape == want.shape
    error = (got.double() - want.double()).norm()
    assert error <= precision * want.double().norm(), f"relative error {error / want.double().norm():.1e}"


def assert_right(experts, lora, x, ids, weights):
    """Output and every gradient are those of the definition."""
    got = triton_moe(x, route(ids, experts.num_experts), weights, experts, lora, None)
    want = definition(x, ids, weights, experts, lora)
    assert_near(got, want)
    leaves = [t for t in (x, weights, *(lora.factors if lora else ())) if t.requires_grad]
    mine, plain = torch.autograd.grad(probe(got), leaves), torch.autograd.grad(probe(want), leaves)
    for m, p in zip(mine, plain, strict=True):
        assert_near(m, p)


@pytest.mark.parametrize("ranks", [None, (16, 16), (3, 20), (130, 1)])  # padded inside the kernels to powers of two
def test_output_and_gradients_are_those_of_the_definition(ranks):
    x, ids, weights = batch()
    assert_right(bank(), adapters(ranks=ranks) if ranks else None, x, ids, weights)


def test_output_and_gradients_are_those_of_transformers_eager_experts():
    config = DeepseekV3Config(hidden_size=MODEL, moe_intermediate_size=HIDDEN, n_routed_experts=4)
    config._experts_implementation = "eager"
    eager, experts = DeepseekV3Experts(config), bank()
    eager.gate_up_proj.data, eager.down_proj.data = experts.gate_up.weight_EOI, experts.down.weight_EOI
    x, ids, weights = batch()
    grads = []
    for out in (triton_moe(x, route(ids, 4), weights, experts, None, None), eager(x, ids, weights)):
        grads.append((out, *torch.autograd.grad(probe(out), (x, weights))))
    for ours, theirs in zip(*grads, strict=True):
        assert_near(ours, theirs)


@pytest.mark.parametrize("top_k", [1, 3, 8])
def test_any_number_of_choices(top_k):
    x, ids, weights = batch(5, experts=8, top_k=top_k)
    assert_right(bank(8), adapters(8), x, ids, weights)


def test_one_expert_has_all_the_tokens():
    x, _, weights = batch(37)
    assert_right(bank(), adapters(), x, torch.tensor([[2, 2]]).expand(37, 2), weights)


def test_bank_of_one_expert():
    x, ids, weights = batch(20, experts=1, top_k=1)
    assert_right(bank(1), adapters(1), x, ids, weights)


def test_idle_expert_has_exactly_zero_gradient():
    x, _, weights = batch(6)
    lora = adapters()
    out = triton_moe(x, route(torch.tensor([[3, 1]] * 6), 4), weights, bank(), lora, None)
    for grad in torch.autograd.grad(probe(out), list(lora.factors)):
        assert not grad[[0, 2]].any()
        assert grad[[1, 3]].any()


def test_pairs_of_experts_elsewhere_add_nothing():
    x, ids, weights = batch()
    ids[3] = 4
    ids[5, 1] = ids[11, 0] = 4
    assert_right(bank(), adapters(), x, ids, weights)


def test_every_pair_may_be_elsewhere():
    x, ids, weights = batch(3)
    lora = adapters()
    out = triton_moe(x, route(torch.full_like(ids, 4), 4), weights, bank(), lora, None)
    assert not out.any()
    assert not any(grad.any() for grad in torch.autograd.grad(out.sum(), (x, weights, *lora.factors)))


def test_no_tokens():
    x, ids, weights = batch(0)
    lora = adapters()
    out = triton_moe(x, route(ids, 4), weights, bank(), lora, None)
    assert out.shape == (0, MODEL)
    assert not any(grad.any() for grad in torch.autograd.grad(out.sum(), list(lora.factors)))


@pytest.fixture
def tiles_of(monkeypatch):
    """Has the interpreter use the largest tiles of a GPU, in place of its own small ones; a GPU keeps its own."""

    def use(capability):
        if IS_INTERPRETED:
            monkeypatch.setattr(triton_experts, "chosen", lambda *_: by_analysis(capability, 1000))

    return use


@pytest.mark.parametrize("capability", [80, 90])
def test_tiles_of_gpus_give_the_same(tiles_of, capability):
    tiles_of(capability)
    x, ids, weights = batch(model=72)  # more than a tile is deep
    sides = {"model": 72, "hidden": 136}  # more than a tile is wide
    assert_right(bank(**sides), adapters(**sides), x, ids, weights)


@pytest.fixture
def bfloat16_of_gpus(monkeypatch):
    """The interpreter multiplies bfloat16 as if its bits were integers, and cuts float32 off where GPUs round it."""
    if not IS_INTERPRETED:
        return
    builder = interpreter.InterpreterBuilder
    cast = builder.cast_impl

    def widened(handle):
        is_half = handle.dtype.scalar == tl.bfloat16
        return (handle.data.astype(np.uint32) << 16).view(np.float32) if is_half else handle.data

    def create_dot(self, a, b, acc, *_):
        return interpreter.TensorHandle(widened(a) @ widened(b) + acc.data, acc.dtype.scalar)

    def cast_impl(self, source, target):
        if source.dtype.scalar == tl.float32 and target.scalar == tl.bfloat16:
            rounded = torch.from_numpy(np.ascontiguousarray(source.data)).bfloat16().view(torch.uint16)
            return interpreter.TensorHandle(rounded.numpy(), tl.bfloat16)
        return cast(self, source, target)

    monkeypatch.setattr(builder, "create_dot", create_dot)
    monkeypatch.setattr(builder, "cast_impl", cast_impl)


def plain(x, ids, weights, experts, lora):
    """As one would write it, in the dtype of the experts throughout."""
    A1, B1, A2, B2 = (factor.to(x.dtype) for factor in lora.factors)
    W1, W2 = experts.gate_up.dense(), experts.down.dense()
    out = torch.zeros_like(x)
    for expert in range(len(W1)):
        token, choice = (ids == expert).nonzero(as_tuple=True)
        rows = x[token]
        gate, up = (rows @ W1[expert].T + lora.scaling * (rows @ A1[expert].T) @ B1[expert].T).chunk(2, dim=1)
        inner = F.silu(gate) * up
        y = inner @ W2[expert].T + lora.scaling * (inner @ A2[expert].T) @ B2[expert].T
        out = out.index_add(0, token, y * weights[token, choice, None].to(x.dtype))
    return out


@pytest.mark.usefixtures("bfloat16_of_gpus")
def test_bfloat16_is_no_less_precise_than_plain_torch(tiles_of):
    tiles_of(90)
    x, ids, weights = batch(40)
    x = x.detach().bfloat16().requires_grad_()
    experts, lora = bank(stored=lambda weight: Dense(weight.bfloat16())), adapters()
    leaves = (x, weights, *lora.factors)
    errors = []
    want = definition(x, ids, weights, experts, lora)
    exact = want, *torch.autograd.grad(probe(want), leaves)
    for out in (
        triton_moe(x, route(ids, 4), weights, experts, lora, None),
        plain(x, ids, weights, experts, lora),
    ):
        got = out, *torch.autograd.grad(probe(out), leaves)
        errors.append([float(((g - e).norm() / e.norm()).detach()) for g, e in zip(got, exact, strict=True)])
    for ours, theirs in zip(*errors, strict=True):
        assert ours < 0.01  # eight bits
        assert ours <= 1.1 * theirs


@triton.jit
def widen(
    codes, scales, levels, out, DEPTH_END: tl.constexpr, WIDTH: tl.constexpr, TRANSPOSED: tl.constexpr,
    FORMAT: tl.constexpr, DEPTH: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    first, start, expert = tl.program_id(0) * COLS, tl.program_id(1) * DEPTH, tl.program_id(2)
    depth, col = start + tl.arange(0, DEPTH), first + tl.arange(0, COLS)
    tile = triton_kernels._weight_tile(
        codes, scales, levels, expert, start, depth, first, col, DEPTH_END, WIDTH, TRANSPOSED, FORMAT, False,
        out.dtype.element_ty,
    )  # fmt: skip
    inside = (depth[:, None] < DEPTH_END) & (col[None, :] < WIDTH)
    tl.store(out + (expert * DEPTH_END + depth[:, None]) * WIDTH + col[None, :], tile, mask=inside)


formats = pytest.mark.parametrize("stored", [Dense, Int8Row.quantised, NF4Block64.quantised, FP8Block128.quantised])


@formats
@pytest.mark.usefixtures("bfloat16_of_gpus")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize(
    ("height", "width"),
    [(136, 192), (130, 45)],  # the latter's blocks of nf4 cross rows, and its last one is part of one
)
def test_codes_are_widened_to_the_very_numbers_of_the_format(stored, dtype, is_transposed, height, width):
    weights = stored(drawn(torch.Generator().manual_seed(5), 2, height, width).to(dtype))
    want = weights.dense() if is_transposed else weights.dense().mT
    got = torch.zeros(want.shape, dtype=dtype)
    stack = triton_experts.stored(weights)
    for depth, cols in ((64, 128), (32, 64)):
        grid = triton.cdiv(want.shape[2], cols), triton.cdiv(want.shape[1], depth), 2
        sides = {"DEPTH_END": want.shape[1], "WIDTH": want.shape[2], "DEPTH": depth, "COLS": cols}
        widen[grid](*stack.arrays, got, TRANSPOSED=is_transposed, FORMAT=stack.format, **sides)
        assert torch.equal(got, want)


@formats
def test_frozen_formats_give_the_output_and_gradients_of_what_they_stand_for(tiles_of, stored):
    tiles_of(90)
    sides = {"model": 128, "hidden": 192}
    x, ids, weights = batch(6, experts=2, model=128)
    assert_right(bank(2, **sides, stored=stored), adapters(2, **sides), x, ids, weights)


def test_every_e4m3_code_is_widened_exactly():
    @triton.jit
    def widen(codes, out):
        place = tl.arange(0, 256)
        tl.store(out + place, triton_kernels._widened_e4m3(tl.load(codes + place)))

    codes, got = torch.arange(256).to(torch.uint8), torch.empty(256)
    widen[1,](codes, got)
    torch.testing.assert_close(got, codes.view(torch.float8_e4m3fn).float(), rtol=0, atol=0, equal_nan=True)


def test_stack_that_would_have_to_be_copied_is_refused():
    x, ids, weights = batch()
    experts = bank()
    turned = Experts(Dense(experts.gate_up.weight_EOI.mT.contiguous().mT), experts.down)
    with pytest.raises(UnfitWeights, match="contiguous"):
        triton_moe(x, route(ids, 4), weights, turned, None, None)


@pytest.mark.parametrize("per_row", [2, 20])  # 20: runs longer than a tile of 16 rows
def test_collector_gets_each_units_gradient(per_row):
    units = torch.tensor([2, 0, 1, 0])
    x, ids, weights = batch(4 * per_row)
    experts, lora = bank(), adapters(ranks=(16, 5))
    collector = Collector(units, 3, per_row)
    plan = route(ids, 4, collector.unit_of_token, 3)
    out = triton_moe(x, plan, weights, experts, lora, collector)
    out.square().sum().backward()
    assert all(factor.grad is None for factor in lora.factors)
    norms = collector.square_norms()
    for unit in range(3):
        own = collector.unit_of_token == unit
        loss = definition(x[own], ids[own], weights[own], experts, lora).square().sum()
        want = torch.autograd.grad(loss, list(lora.factors))
        got = collector.weighted_sum(torch.eye(3)[unit])
        for factor, w in zip(lora.factors, want, strict=True):
            assert_near(got[factor], w)
        assert_near(norms[unit], sum(w.double().square().sum() for w in want))


@pytest.mark.parametrize("trained", [1, 5, 16])
def test_components_that_are_not_trained_are_in_no_norm_and_no_sum(trained):
    units = torch.tensor([2, 0, 1, 0])
    x, ids, weights = batch(24)
    experts, lora = bank(), adapters(ranks=(16, 16), freeze_a=True)
    both_B = lora.factors.gate_up_B_EGR, lora.factors.down_B_EDR
    collector = Collector(units, 3, 6, dict.fromkeys(both_B, trained))
    plan = route(ids, 4, collector.unit_of_token, 3)
    triton_moe(x, plan, weights, experts, lora, collector).square().sum().backward()
    for unit in range(3):
        own = collector.unit_of_token == unit
        loss = definition(x[own], ids[own], weights[own], experts, lora).square().sum()
        want = [grad.double() for grad in torch.autograd.grad(loss, both_B)]
        got = collector.weighted_sum(torch.eye(3)[unit])
        for factor, w in zip(both_B, want, strict=True):
            w[..., trained:] = 0
            assert not got[factor][..., trained:].any()
            assert_near(got[factor], w)
        assert_near(collector.square_norms()[unit], sum(w.square().sum() for w in want))


def of_three_units():
    """The adapters of a bank, and what backward has collected of three units of four tokens."""
    x, ids, weights = batch(12)
    lora = adapters()
    collector = Collector(torch.arange(3), 3, 4)
    out = triton_moe(x, route(ids, 4, collector.unit_of_token, 3), weights, bank(), lora, collector)
    out.square().sum().backward()
    return lora, collector


def test_clipped_sum_is_that_of_the_units_and_no_longer_than_their_norms():
    lora, collector = of_three_units()
    factors = torch.tensor([0.5, 0.0, 0.3], dtype=torch.float64)
    norms, each = collector.square_norms(), [collector.weighted_sum(one) for one in torch.eye(3)]
    for unit, grads in enumerate(each):
        size = sum(grad.square().sum() for grad in grads.values())
        torch.testing.assert_close(size, norms[unit], rtol=1e-13, atol=0)  # the very products: float64 throughout
    total = collector.weighted_sum(factors)
    for factor in lora.factors:
        want = sum(f * grads[factor] for f, grads in zip(factors, each, strict=True))
        torch.testing.assert_close(total[factor], want, rtol=1e-12, atol=1e-12)


def test_a_sum_on_a_grid_is_that_of_the_units_each_cut_towards_zero():
    lora, collector = of_three_units()
    by_unit, grid = torch.tensor([0.3, 0.0, 0.7], dtype=torch.float64), 2.0**-20
    each = [collector.weighted_sum(one * by_unit) for one in torch.eye(3)]
    total = collector.weighted_sum(by_unit, grid=grid)
    for factor in lora.factors:
        assert torch.equal(total[factor], sum((own[factor] / grid).trunc() * grid for own in each))


def test_sums_by_group_are_those_of_each_group_alone():
    lora, collector = of_three_units()
    by_unit, group = torch.tensor([0.3, 0.5, 0.7], dtype=torch.float64), torch.tensor([1, 0, 1])
    sums = collector.weighted_sums(by_unit, group, 2, grid=2.0**-20)
    for number in range(2):
        alone = collector.weighted_sum(by_unit * (group == number), grid=2.0**-20)
        assert all(torch.equal(sums[factor][number], alone[factor]) for factor in lora.factors)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # numpy's, which is what interprets
def test_forgotten_unit_leaves_no_nan_behind():
    x, ids, weights = batch(30)
    lora = adapters()
    collector = Collector(torch.arange(3), 3, 10)
    scale = torch.ones(30, 1)
    scale[collector.unit_of_token == 1] = torch.inf
    out = triton_moe(x, route(ids, 4, collector.unit_of_token, 3), weights, bank(), lora, collector)
    (out * scale).sum().backward()
    assert collector.square_norms().isfinite().tolist() == [True, False, True]
    collector.forget(torch.tensor([False, True, False]))
    assert collector.square_norms().isfinite().all()
    assert all(total.isfinite().all() for total in collector.weighted_sum(torch.ones(3)).values())


def test_unit_has_the_same_bits_whoever_shares_its_batch():
    x, ids, weights = batch(16)
    experts, lora = bank(), adapters()
    grads = []
    for units in ([0, 1], [0]):
        collector = Collector(torch.tensor(units), len(units), 8)
        own = slice(0, 8 * len(units))
        plan = route(ids[own], 4, collector.unit_of_token, len(units))
        triton_moe(x[own], plan, weights[own], experts, lora, collector).square().sum().backward()
        grads.append(collector.weighted_sum(torch.eye(len(units))[0]))
    for factor in lora.factors:
        assert torch.equal(grads[0][factor], grads[1][factor])


def test_frozen_factors_are_not_collected():
    x, ids, weights = batch(6)
    lora = adapters(freeze_a=True)
    collector = Collector(torch.arange(3), 3, 2)
    triton_moe(x, route(ids, 4, collector.unit_of_token, 3), weights, bank(), lora, collector).sum().backward()
    assert set(collector.parameters) == {lora.factors.gate_up_B_EGR, lora.factors.down_B_EDR}


def test_frozen_factors_have_no_gradient():
    x, ids, weights = batch(6)
    assert_right(bank(), adapters(freeze_a=True), x.detach(), ids, weights.detach())


def test_second_use_of_a_factor_is_refused():
    x, ids, weights = batch(6)
    lora, collector = adapters(), Collector(torch.arange(3), 3, 2)
    plan = route(ids, 4, collector.unit_of_token, 3)
    out = [triton_moe(x, plan, weights, bank(), lora, collector).sum() for _ in range(2)]
    with pytest.raises(CapturedTwice):
        sum(out).backward()


def test_backward_after_the_microbatch_is_refused():
    x, ids, weights = batch(6)
    collector = Collector(torch.arange(3), 3, 2)
    out = triton_moe(x, route(ids, 4, collector.unit_of_token, 3), weights, bank(), adapters(), collector)
    collector.close()
    with pytest.raises(CaptureClosed):
        out.sum().backward()


def test_graph_can_be_used_twice_and_repeats_bit_for_bit():
    x, ids, weights = batch(10)
    lora, plan = adapters(), route(ids, 4)
    leaves = (x, weights, *lora.factors)
    outs = [triton_moe(x, plan, weights, bank(), lora, None) for _ in range(2)]
    assert torch.equal(*outs)
    grads = [torch.autograd.grad(probe(out), leaves, retain_graph=True) for out in (outs[0], outs[0], outs[1])]
    for first, *others in zip(*grads, strict=True):
        assert all(torch.equal(first, other) for other in others)


def test_checkpointing_gives_the_same_gradients_and_names_the_same_factors():
    x, ids, weights = batch(6)
    lora, collectors = adapters(), [Collector(torch.arange(3), 3, 2) for _ in range(2)]
    plan = route(ids, 4, collectors[0].unit_of_token, 3)
    triton_moe(x, plan, weights, bank(), lora, collectors[0]).square().sum().backward()
    out = torch.utils.checkpoint.checkpoint(
        lambda x: triton_moe(x, plan, weights, bank(), lora, collectors[1]), x, use_reentrant=False
    )
    out.square().sum().backward()
    first, second = (collector.weighted_sum(torch.ones(3)) for collector in collectors)
    assert set(first) == set(second) == set(lora.factors)
    assert all(torch.equal(first[factor], second[factor]) for factor in lora.factors)


def test_nothing_is_kept_without_gradients():
    x, ids, weights = batch()
    with torch.no_grad():
        out = triton_moe(x, route(ids, 4), weights, bank(), adapters(), None)
    assert out.grad_fn is None
    assert_near(out, definition(x, ids, weights, bank(), adapters()))


@pytest.mark.parametrize("rows", [1, 7, 16])
def test_tiles_hold_every_pair_once_in_a_table_that_shapes_alone_size(rows):
    _, ids, _ = batch(50)
    sizes = set()
    for routing in (ids, torch.zeros_like(ids), torch.arange(100).view(50, 2) % 4):
        plan = route(routing, 4)
        tiles = tile_table(plan, rows)
        sizes.add(len(tiles))
        held = []
        for expert, first, end in tiles[tiles[:, 0] >= 0].tolist():
            pairs = range(first, min(first + rows, end))
            assert all(routing.flatten()[plan.pair_S[pair]] == expert for pair in pairs)
            held += pairs
        assert held == list(range(100))
    assert len(sizes) == 1


@pytest.mark.parametrize("capability", [0, 80, 86, 90, 100, 120])
def test_tiles_of_one_pass_agree(capability):
    for sizes in itertools.product((0, 20, 100, 5000), (2, 4), (1, 16, 32, 64, 300)):
        chosen = by_analysis(capability, *sizes)
        passes = chosen.gate_up, chosen.grouped, chosen.inner_gradient
        assert len({tiling.rows for tiling in passes}) == 1  # they share a table of tiles
        assert all(64 % tiling.depth == 0 for tiling in passes)  # a tile's depths lie in one block of codes


@pytest.mark.parametrize("capability", [80, 86, 90, 100, 120])
def test_tiles_grow_with_the_pairs_of_an_expert(capability):
    rows = [by_analysis(capability, pairs).grouped.rows for pairs in (0, 1, 20, 100, 5000)]
    assert rows == sorted(rows)
    assert rows[0] == 16


def test_dtype_without_a_kernel_is_refused():
    x, ids, weights = batch()
    experts = bank(stored=lambda weight: Dense(weight.double()))
    with pytest.raises(UnfitWeights, match="float64"):
        triton_moe(x.double(), route(ids, 4), weights, experts, None, None)


def test_format_without_a_kernel_is_refused():
    experts = bank()
    other = SimpleNamespace(shape=experts.down.shape, dtype=experts.down.dtype)
    with pytest.raises(UnfitWeights, match="no kernel for SimpleNamespace"):
        check_fit(Experts(experts.gate_up, other))


def test_training_the_experts_themselves_is_refused():
    x, ids, weights = batch()
    experts = bank()
    experts.down.weight_EOI.requires_grad_()
    with pytest.raises(UnfitWeights, match="adapters"):
        triton_moe(x, route(ids, 4), weights, experts, None, None)


def test_backend_can_be_asked_for_by_name():
    x, ids, weights = batch()
    plan, experts, lora = route(ids, 4), bank(), adapters()
    asked = moe(x.bfloat16(), plan, weights, experts, lora, backend="triton")
    assert asked.dtype == torch.bfloat16
    assert torch.equal(asked, triton_moe(x.bfloat16().float(), plan, weights, experts, lora, None).bfloat16())


@pytest.mark.skipif(not IS_INTERPRETED, reason="of the interpreter")
def test_interpreter_makes_the_cpu_available(monkeypatch):
    assert is_available(torch.device("cpu"))
    monkeypatch.delenv("TRITON_INTERPRET")
    assert not is_available(torch.device("cpu"))


def read_by(backend, parts, unrotated, sizes):
    """Attention in segments, and the gradients of queries, keys and values."""
    leaves = [part.detach().requires_grad_() for part in parts]
    out = segment_attention(*leaves, 0.2, unrotated=unrotated, segments=sizes, backend=backend)
    return out.detach(), *torch.autograd.grad(probe(out), leaves)


def heads(tokens, width=40, values=24):
    g = torch.Generator().manual_seed(tokens)
    return [normal(g, 1, 2, tokens, size) for size in (width, width, values)]


@pytest.mark.parametrize(
    ("tokens", "window", "unrotated"),
    [(1, 16, 24), (15, 16, 0), (17, 16, 40), (47, 16, 24), (80, 16, 0), (81, 16, 24), (81, 16, 40), (129, 32, 24)],
)
def test_segments_and_their_gradients_are_those_of_torch(tokens, window, unrotated):
    sizes, parts = Segments(window, top=1), heads(tokens)
    assert (tokens > sizes.borders[1]) == (tokens > 48)  # the longer rows have a choice
    wants = read_by("torch", [part.double() for part in parts], unrotated, sizes)
    for got, want in zip(read_by("triton", parts, unrotated, sizes), wants, strict=True):
        assert got.shape == want.shape
        # The one key of a row of one token has a gradient of zero, so there is no norm to compare with.
        assert (got.double() - want).norm() <= PRECISION * want.norm().clamp_min(1)


def test_segments_repeat_bit_for_bit():
    for first, second in zip(*(read_by("triton", heads(70), 24, Segments(16, top=2)) for _ in range(2)), strict=True):
        assert torch.equal(first, second)


@pytest.mark.usefixtures("bfloat16_of_gpus")
@pytest.mark.parametrize("dtype", [torch.bfloat16] if IS_INTERPRETED else [torch.bfloat16, torch.float16])
def test_segments_in_sixteen_bits_are_no_less_precise_than_plain_torch(dtype):
    sizes = Segments(16, top=2)
    q, k, v = (part[0].to(dtype) for part in heads(70))
    tiles = Tiles.of(chosen_blocks(q.float(), k.float(), sizes), sizes.window)  # the same for all
    read, grad = Read.of(q, k, v, 0.2, 24, sizes.window), v.flatten(0, 1).sin()
    exact = Read(*(part.double() for part in read[:3]), read.scale)
    lse = segments._shares(tiles, exact)[1][tiles.plan.slot_TK].logsumexp(-1)
    of_result = grad, grad.float().sum(-1), lse.float()
    used = tiles.plan.slot_TK[tiles.plan.slot_TK < tiles.plan.num_pairs]

    def computed(shares, slopes, read, of_result):
        return *(part[used] for part in shares(tiles, read)), *slopes(tiles, read, *of_result)

    wants = computed(segments._shares, segments._slopes, exact, [part.double() for part in of_result])
    errors = []
    for backend in ((triton_shares, triton_slopes), (segments._shares, segments._slopes)):
        gots = computed(*backend, read, of_result)
        assert [got.dtype for got in gots] == [dtype, torch.float32, dtype, dtype, dtype]
        errors.append([float((got - want).norm() / want.norm()) for got, want in zip(gots, wants, strict=True)])
    for ours, theirs in zip(*errors, strict=True):
        assert ours < 0.01  # eight bits
        assert ours <= 1.1 * theirs


@pytest.mark.parametrize(("dtype", "window"), [(torch.float64, 16), (torch.float32, 8)])
def test_segments_that_no_kernel_computes_are_refused_only_if_asked_for(dtype, window, monkeypatch):
    parts = [part.to(dtype) for part in heads(20)]
    call = {"unrotated": 24, "segments": Segments(window)}
    monkeypatch.delenv("CONFIDE_SEGMENTS_BACKEND", raising=False)
    assert segment_attention(*parts, 0.2, **call).dtype == dtype
    monkeypatch.setenv("CONFIDE_SEGMENTS_BACKEND", "triton")
    with pytest.raises(UnknownBackend, match=f"{dtype} and windows of {window}"):
        segment_attention(*parts, 0.2, **call)
    with pytest.raises(UnknownBackend, match="got 'cuda'"):
        segment_attention(*parts, 0.2, **call, backend="cuda")
    assert segment_attention(*parts, 0.2, **call, backend="torch").dtype == dtype
