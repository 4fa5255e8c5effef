"""Gates on the rank components of adapters, token by token, against loops over tokens."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from confide.kernels import moe as dispatch
from confide.kernels.collect import Collector
from confide.kernels.embedding import lora_embedding
from confide.kernels.errors import GatesUntrained, TokensMiscounted, UnfitWeights, UnknownBackend
from confide.kernels.experts import Experts, Factors, LoRA
from confide.kernels.formats import BFloat16, Dense, FP8Block128, Int8Row, NF4Block64
from confide.kernels.linear import PackedMatrix
from confide.kernels.lora import lora_linear
from confide.kernels.moe import moe
from confide.kernels.routing import route

SCALING, RANK, WORDS, MODEL, HIDDEN, EXPERTS = 0.5, 4, 9, 8, 12, 4
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-6}
FORMS = {"bfloat16": BFloat16, "fp8": FP8Block128, "int8": Int8Row, "nf4": NF4Block64}

no_grad = pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
every_dtype = pytest.mark.parametrize("dtype", list(TOLERANCE))
both = pytest.mark.parametrize("backend", ["reference", "cpu"])


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def adapter(width_in, width_out, *bank, dtype=torch.float64):
    A, B = 0.3 * draw(*bank, RANK, width_in, seed=1), 0.3 * draw(*bank, width_out, RANK, seed=2)
    return nn.Parameter(A.to(dtype)), nn.Parameter(B.to(dtype))


def one_hot(tokens):
    """Gates of a stack of two adapters of two components each, of which each token has one; and its number."""
    owner = torch.arange(tokens) % 2
    return F.one_hot(owner, 2).repeat_interleave(RANK // 2, dim=1), owner


def adapted(weight, A, B, gate):
    """The definition: W + s B diag(g) A, dense and in float64."""
    return weight.double() + SCALING * B.double() @ torch.diag(gate.double()) @ A.double()


def linear_loop(x, weight, bias, A, B, gates):
    rows = zip(x.reshape(-1, x.shape[-1]).double(), gates.reshape(-1, RANK), strict=True)
    out = torch.stack([adapted(weight, A, B, gate) @ row + bias.double() for row, gate in rows])
    return out.view(*x.shape[:-1], -1)


def embedding_loop(ids, weight, A, B, gates):
    rows = zip(ids.flatten(), gates.reshape(-1, RANK), strict=True)
    return torch.stack([adapted(weight.T, A, B, gate)[:, word] for word, gate in rows]).view(*ids.shape, -1)


def assert_near(got, want, tolerance):
    assert got.shape == want.shape
    assert (got.double() - want.double()).norm() <= tolerance * want.double().norm()


@no_grad
@every_dtype
@pytest.mark.parametrize("axes", [(), (1,), (5,), (2, 3), (4, 1, 3), (0,)])
def test_linear_is_the_loop_over_tokens(mode, dtype, axes):
    A, B = adapter(6, 5, dtype=torch.promote_types(dtype, torch.float32))
    x, weight, bias = (draw(*shape, dtype=dtype, seed=3) for shape in ((*axes, 6), (5, 6), (5,)))
    gates = draw(*axes, RANK, seed=4)
    want = linear_loop(x, weight, bias, A, B, gates) if x.numel() else x.new_empty(0, 5)
    with mode():
        got = lora_linear(x, weight, bias, A, B, SCALING, gates_TR=gates)
        flat = lora_linear(x, weight, bias, A, B, SCALING, gates_TR=gates.reshape(-1, RANK))
        with torch.autocast("cpu", torch.bfloat16):
            cast = lora_linear(x, weight, bias, A, B, SCALING, gates_TR=gates)
    assert got.dtype == dtype
    assert torch.equal(got, flat)
    assert torch.equal(got, cast)
    assert_near(got, want, TOLERANCE[dtype])


@every_dtype
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_linear_on_packed_weights_is_the_loop_on_what_the_codes_stand_for(form, dtype):
    packed = PackedMatrix(form.quantised([draw(130, 77, dtype=dtype)]))
    A, B = adapter(77, 130, dtype=torch.float32)
    x, bias, gates = draw(2, 3, 77, dtype=dtype, seed=3), draw(130, dtype=dtype, seed=4), draw(6, RANK, seed=5)
    with torch.no_grad():
        got = lora_linear(x, packed, bias, A, B, SCALING, gates_TR=gates)
    assert_near(got, linear_loop(x, packed.dense(), bias, A, B, gates), TOLERANCE[dtype])


def test_products_in_float32_take_weights_stored_in_bfloat16():
    packed = PackedMatrix(BFloat16.quantised([draw(5, 6, dtype=torch.bfloat16)], torch.float32))
    A, B = adapter(6, 5, dtype=torch.float32)
    x, bias, gates = draw(3, 6, dtype=torch.float32, seed=3), torch.zeros(5), draw(3, RANK, seed=4)
    with torch.no_grad():
        got = lora_linear(x, packed, None, A, B, SCALING, gates_TR=gates)
    assert_near(got, linear_loop(x, packed.dense(), bias, A, B, gates), 1e-5)


@no_grad
@every_dtype
def test_embedding_is_the_loop_over_tokens(mode, dtype):
    A, B = adapter(WORDS, MODEL, dtype=torch.promote_types(dtype, torch.float32))
    ids, weight, gates = torch.tensor([[1, 2, 2], [8, 0, 2]]), draw(WORDS, MODEL, dtype=dtype), draw(2, 3, RANK, seed=4)
    with mode():
        got = lora_embedding(ids, weight, A, B, SCALING, gates_TR=gates)
        flat = lora_embedding(ids, weight, A, B, SCALING, gates_TR=gates.view(6, RANK))
    assert got.dtype == dtype
    assert torch.equal(got, flat)
    assert_near(got, embedding_loop(ids, weight, A, B, gates), TOLERANCE[dtype])


def ops():
    """(op, its call with factors and gates) for 20 tokens."""
    x, ids, weights, topk = draw(20, MODEL, seed=3), torch.arange(20) % WORDS, draw(20, 2).sigmoid(), topk_ids(20)
    plan, experts = route(topk, EXPERTS), Experts(*map(Dense, stacks()))

    def run_experts(backend):
        def call(factors, gates=None, collector=None):
            lora = LoRA(Factors(*factors), SCALING, gates)
            return moe(x, plan, weights, experts, lora, backend=backend, collector=collector)

        return call

    def linear(factors, gates=None, collector=None):
        return lora_linear(x, draw(5, MODEL), draw(5), *factors, SCALING, collector, gates_TR=gates)

    def embedding(factors, gates=None, collector=None):
        return lora_embedding(ids, draw(WORDS, MODEL), *factors, SCALING, collector, gates_TR=gates)

    return {
        "linear": (linear, adapter(MODEL, 5)),
        "embedding": (embedding, adapter(WORDS, MODEL)),
        "reference": (run_experts("reference"), bank_factors()),
        "cpu": (run_experts("cpu"), bank_factors()),
    }


def topk_ids(tokens):
    return torch.rand(tokens, EXPERTS, generator=torch.Generator().manual_seed(5)).topk(2, dim=1).indices


def stacks(dtype=torch.float64):
    shapes = (EXPERTS, 2 * HIDDEN, MODEL), (EXPERTS, MODEL, HIDDEN)
    return [draw(*shape, seed=6).mul(shape[-1] ** -0.5).to(dtype) for shape in shapes]


def bank_factors(dtype=torch.float64):
    return *adapter(MODEL, 2 * HIDDEN, EXPERTS, dtype=dtype), *adapter(HIDDEN, MODEL, EXPERTS, dtype=dtype)


every_op = pytest.mark.parametrize("op", ["linear", "embedding", "reference", "cpu"])


def experts_loop(x, ids, weights, gate_up, down, factors, gates):
    A1, B1, A2, B2 = factors
    rows = []
    for t in range(len(x)):
        row = torch.zeros(MODEL, dtype=torch.float64)
        for weight, e in zip(weights[t].double(), ids[t], strict=True):
            if e < EXPERTS:
                gate, up = (adapted(gate_up[e], A1[e], B1[e], gates[t]) @ x[t].double()).chunk(2)
                row = row + weight * (adapted(down[e], A2[e], B2[e], gates[t]) @ (F.silu(gate) * up))
        rows.append(row)
    return torch.stack(rows)


@both
@every_dtype
@pytest.mark.parametrize("tokens", [1, 20])
def test_experts_are_the_loop_over_tokens(backend, dtype, tokens):
    """With pairs of experts elsewhere among them."""
    (gate_up, down), factors = stacks(dtype), bank_factors(torch.promote_types(dtype, torch.float32))
    x, weights, gates = draw(tokens, MODEL, dtype=dtype), draw(tokens, 2).sigmoid(), draw(tokens, RANK, seed=4)
    ids = topk_ids(tokens)
    ids[1::3, 0] = EXPERTS
    with torch.no_grad():
        lora = LoRA(Factors(*factors), SCALING, gates)
        got = moe(x, route(ids, EXPERTS), weights, Experts(Dense(gate_up), Dense(down)), lora, backend=backend)
        want = experts_loop(x, ids, weights, gate_up, down, factors, gates)
    assert got.dtype == dtype
    assert_near(got, want, TOLERANCE[dtype])


def test_packed_experts_are_the_loop_on_what_the_codes_stand_for():
    bank = Experts(*(Int8Row.quantised(stack) for stack in stacks()))
    x, ids, weights, gates = draw(20, MODEL), topk_ids(20), draw(20, 2).sigmoid(), draw(20, RANK, seed=4)
    with torch.no_grad():
        lora = LoRA(Factors(*bank_factors()), SCALING, gates)
        got = moe(x, route(ids, EXPERTS), weights, bank, lora)
        want = experts_loop(x, ids, weights, bank.gate_up.dense(), bank.down.dense(), bank_factors(), gates)
    assert_near(got, want, 1e-12)


@every_op
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.bool, torch.int64])
def test_open_gates_change_nothing_and_closed_ones_leave_no_adapter(op, dtype):
    call, factors = ops()[op]
    with torch.no_grad():
        assert torch.equal(call(factors, torch.ones(20, RANK, dtype=dtype)), call(factors))
        none = [torch.zeros_like(factor) for factor in factors]
        assert torch.equal(call(factors, torch.zeros(20, RANK, dtype=dtype)), call(none))
        assert not torch.allclose(call(none), call(factors))


@every_op
def test_each_token_sees_its_own_adapter_of_a_stack_alone(op):
    call, factors = ops()[op]
    gates, owner = one_hot(20)
    halves = [factor.split(RANK // 2, dim=-1 if number % 2 else -2) for number, factor in enumerate(factors)]
    with torch.no_grad():
        got = call(factors, gates)
        for number, own in enumerate(zip(*halves, strict=True)):
            torch.testing.assert_close(got[owner == number], call(own)[owner == number], rtol=1e-11, atol=1e-12)


@every_op
def test_gates_are_for_inference(op):
    call, factors = ops()[op]
    frozen, gates = [factor.detach() for factor in factors], torch.ones(20, RANK, dtype=torch.float64)
    assert not call(frozen, gates).requires_grad
    for number in range(len(factors)):
        with pytest.raises(GatesUntrained, match="no_grad"):
            call([*frozen[:number], factors[number], *frozen[number + 1 :]], gates)
    with pytest.raises(GatesUntrained, match="no_grad"):
        call(frozen, gates.clone().requires_grad_())
    with torch.no_grad(), pytest.raises(GatesUntrained, match="collector"):
        call(factors, gates, Collector(torch.arange(4), 4, 5))


@every_op
@pytest.mark.parametrize(
    ("shape", "error"),
    [
        ((20, RANK + 1), UnfitWeights),
        ((20, 1), UnfitWeights),
        ((), UnfitWeights),
        ((19, RANK), TokensMiscounted),
        ((1, RANK), TokensMiscounted),
    ],
)
def test_gates_of_other_tokens_or_ranks_are_refused(op, shape, error):
    call, factors = ops()[op]
    with torch.no_grad(), pytest.raises(error):
        call(factors, torch.ones(shape))


def test_inputs_whose_gradient_would_be_wrong_are_refused():
    A, B = (factor.detach() for factor in adapter(6, 5))
    with pytest.raises(GatesUntrained):
        lora_linear(draw(3, 6).requires_grad_(), draw(5, 6), None, A, B, SCALING, gates_TR=torch.ones(3, RANK))
    lora = LoRA(Factors(*(factor.detach() for factor in bank_factors())), SCALING, torch.ones(3, RANK))
    for number in range(4):
        given = [draw(3, MODEL), draw(3, 2), *stacks()]
        given[number].requires_grad_()
        x, weights, gate_up, down = given
        with pytest.raises(GatesUntrained):
            moe(x, route(topk_ids(3), EXPERTS), weights, Experts(Dense(gate_up), Dense(down)), lora)


def test_axes_of_gates_are_those_of_the_tokens():
    A, B = adapter(6, 5)
    for shape in ((3, 2, RANK), (6, 1, RANK), (2, 1, RANK), (RANK,)):
        with torch.no_grad(), pytest.raises(TokensMiscounted):
            lora_linear(draw(2, 3, 6), draw(5, 6), None, A, B, SCALING, gates_TR=torch.ones(shape))
    lora = LoRA(Factors(*bank_factors()), SCALING, torch.ones(1, 3, RANK))
    with pytest.raises(UnfitWeights):  # a bank sees rows alone
        lora.check_fit(Experts(*map(Dense, stacks())))


def test_both_projections_have_the_rank_of_the_gates():
    A1, B1, A2, B2 = bank_factors()
    lora = LoRA(Factors(A1, B1, A2[:, :2], B2[..., :2]), SCALING, torch.ones(3, RANK))
    with pytest.raises(UnfitWeights, match="ranks 4 and 2"):
        lora.check_fit(Experts(*map(Dense, stacks())))


def test_backend_that_takes_no_gates_is_refused_and_never_chosen(monkeypatch):
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    call, factors = ops()["cpu"]
    unnamed = LoRA(Factors(*factors), SCALING, torch.ones(20, RANK))
    given = draw(20, MODEL, seed=3), route(topk_ids(20), EXPERTS), draw(20, 2).sigmoid()
    experts = Experts(*map(Dense, stacks()))
    with torch.no_grad():
        monkeypatch.setattr(dispatch, "_suiting", lambda *_: "triton")  # as on a GPU
        assert torch.equal(moe(*given, experts, unnamed), call(factors, unnamed.gates_TR))
        with pytest.raises(UnknownBackend, match="no gates"):
            moe(*given, experts, unnamed, backend="triton")
        monkeypatch.setenv(dispatch.VARIABLE, "triton")
        with pytest.raises(UnknownBackend, match="no gates"):
            moe(*given, experts, unnamed)
        assert torch.equal(moe(*given, experts, unnamed, backend="cpu"), call(factors, unnamed.gates_TR))
