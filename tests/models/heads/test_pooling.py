import pytest
import torch

from confide.models.adapters.lora import AdapterConfig, attach
from confide.models.errors import InvalidAdapter
from confide.models.heads.objectives import OneClass, SeveralLabels
from confide.models.heads.pooling import PooledHead, pooled

from ..tiny import random_ids, tiny_deepseek


def test_pooled_is_the_mean_of_first_and_last_states():
    model, ids = tiny_deepseek(), random_ids(3).clamp_min(2)
    states = model.model(input_ids=ids, output_hidden_states=True)
    want = torch.cat([states.hidden_states[0] / 0.05, states.last_hidden_state], dim=-1).mean(1)
    torch.testing.assert_close(pooled(model, ids), want)


def test_of_a_history_the_last_visit_is_pooled_behind_all_others():
    model, ids = tiny_deepseek(), random_ids(4, 9).clamp_min(2)
    ids[0, [2, 5, 8]] = 1  # three visits, each with <eos> behind it
    ids[1, [2, 3, 4]] = 1  # the last one is empty
    ids[1, 5:] = 0
    ids[2, 0], ids[2, 1:] = 1, 0  # one visit, empty
    ids[3, 8] = 1
    lines = [slice(6, 9), slice(4, 5), slice(0, 1), slice(0, 9)]
    states = model.model(input_ids=ids, output_hidden_states=True)
    both = torch.cat([states.hidden_states[0] / 0.05, states.last_hidden_state], dim=-1)
    want = torch.stack([row[line].mean(0) for row, line in zip(both, lines, strict=True)])
    torch.testing.assert_close(pooled(model, ids), want)
    whole = torch.cat([states.hidden_states[read] for read in (0, 2)], dim=-1)[[0, 3]].mean(1)
    torch.testing.assert_close(pooled(model, ids[[0, 3]], (0, 2))[:, :32], whole[:, :32])


def test_padding_is_inert():
    model, ids = tiny_deepseek(dtype=torch.float64), random_ids(3, 8)
    padded = torch.cat([ids, torch.zeros(3, 5, dtype=torch.int64)], dim=1)
    torch.testing.assert_close(pooled(model, padded), pooled(model, ids), rtol=1e-12, atol=1e-12)


def test_row_of_padding_alone_pools_to_zero():
    ids = random_ids(2)
    ids[1] = 0
    states = pooled(tiny_deepseek(), ids)
    assert not states[1].any()
    assert states.isfinite().all()


def test_gradient_of_the_head_has_at_most_unit_length():
    head = PooledHead(torch.zeros(6), torch.eye(6))
    for scale in (1e-3, 1.0, 1e6):
        states = torch.randn(1, 6, generator=torch.Generator().manual_seed(0)) * scale
        grad = torch.autograd.grad(head(states).sum(), head.weight)[0]
        torch.testing.assert_close(grad.norm(), torch.tensor(1.0))


def test_head_reads_whitened_states_and_a_constant():
    g = torch.Generator().manual_seed(0)
    center, whiten, states = torch.randn(4, generator=g), torch.randn(4, 4, generator=g), torch.randn(3, 4, generator=g)
    head = PooledHead(center, whiten)
    with torch.no_grad():
        head.weight.copy_(torch.randn(5, generator=g))
    white = torch.cat([(states - center) @ whiten, torch.ones(3, 1)], dim=1)  # sqrt(4) / 2 = 1
    want = (white / white.norm(dim=1, keepdim=True)) @ head.weight
    torch.testing.assert_close(head(states), want)


def test_moments_that_do_not_fit_are_refused():
    with pytest.raises(InvalidAdapter, match="do not fit"):
        PooledHead(torch.zeros(6), torch.eye(5))


def test_classifying_without_a_head_is_refused():
    adapted = attach(tiny_deepseek(), AdapterConfig(rank=2, alpha=2.0, targets=("experts",), seed="s"))
    with pytest.raises(InvalidAdapter, match="no head"):
        adapted.classify(random_ids(1))


def test_each_state_that_is_named_is_read_and_the_last_one_behind_the_norm():
    model, ids = tiny_deepseek(), random_ids(3)
    states = model.model(input_ids=ids, output_hidden_states=True).hidden_states
    want = torch.cat([states[read] for read in (2, 0, 1)], dim=-1).mean(1)
    hooks = [len(layer._forward_hooks) for layer in model.model.layers]  # transformers leaves some
    torch.testing.assert_close(pooled(model, ids, (2, 0, 1)), want)
    assert [len(layer._forward_hooks) for layer in model.model.layers] == hooks


def test_layers_above_all_that_is_read_do_not_run_and_are_there_again():
    model, ids = tiny_deepseek(), random_ids(3)
    layers, want = model.model.layers, pooled(model, ids, (0, 1))
    with torch.no_grad():
        for parameter in layers[1].parameters():
            parameter.fill_(torch.nan)
    assert torch.equal(pooled(model, ids, (0, 1)), want)
    assert pooled(model, ids, (0,)).isfinite().all()
    assert pooled(model, ids, (1, 2)).isnan().any()
    assert model.model.layers is layers


def test_a_word_of_number_0_inside_a_record_is_read():
    model, ids = tiny_deepseek(dtype=torch.float64), random_ids(2, 6).clamp_min(2)
    ids[:, 2] = 0
    states = model.model(input_ids=ids, output_hidden_states=True)
    want = torch.cat([states.hidden_states[0] / 0.05, states.last_hidden_state], dim=-1).mean(1)
    torch.testing.assert_close(pooled(model, ids), want)


def random_moments(parts, width, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(parts, width, generator=g), torch.randn(parts, width, width, generator=g)


def test_states_that_are_whitened_apart_weigh_the_same_and_so_does_every_record():
    center, whiten = random_moments(2, 3)
    states = torch.randn(5, 6, generator=torch.Generator().manual_seed(1)) * torch.tensor([1e-3] * 3 + [1e3] * 3)
    head = PooledHead(center, whiten, objective=OneClass(("a", "b", "c")), reads=(0, 2))
    inputs = head.inputs(states)
    assert inputs.shape == (5, 7)
    torch.testing.assert_close(inputs.norm(dim=1), torch.ones(5))
    sizes = inputs[:, :3].norm(dim=1), inputs[:, 3:6].norm(dim=1)
    torch.testing.assert_close(*sizes)
    torch.testing.assert_close(inputs[:, 6], sizes[0] * 2**0.5 / 10)  # the constant is sqrt(2)/10 beside parts of 1


def test_a_head_of_several_outputs_is_a_loop_over_its_rows():
    center, whiten = random_moments(2, 3)
    head = PooledHead(center, whiten, objective=SeveralLabels(("a", "b")), reads=(0, 1))
    with torch.no_grad():
        head.weight.copy_(torch.randn(2, 7, generator=torch.Generator().manual_seed(2)))
    states = torch.randn(4, 6, generator=torch.Generator().manual_seed(3), requires_grad=True)
    got, inputs = head(states), head.inputs(states)
    want = torch.stack([torch.stack([(row * weights).sum() for weights in head.weight]) for row in inputs])
    torch.testing.assert_close(got, want)
    upstream = torch.randn(4, 2, generator=torch.Generator().manual_seed(4))
    grads, wanted = (
        torch.autograd.grad((outputs * upstream).sum(), (head.weight, states), retain_graph=True)
        for outputs in (got, want)
    )
    for grad, want_grad in zip(grads, wanted, strict=True):
        torch.testing.assert_close(grad, want_grad)


@pytest.mark.parametrize(
    ("center", "whiten", "reads"),
    [
        ((2, 3), (2, 3, 3), None),
        ((2, 3), (2, 3, 3), (0,)),
        ((3,), (3, 3), (0,)),
        ((2, 3), (3, 3), (0, 1)),
        ((0, 3), (0, 3, 3), ()),
    ],
)
def test_moments_that_do_not_fit_what_is_read_are_refused(center, whiten, reads):
    with pytest.raises(InvalidAdapter, match="do not fit"):
        PooledHead(torch.zeros(center), torch.zeros(whiten), reads=reads)


def test_a_head_that_no_memory_holds_is_refused():
    many = OneClass(tuple(map(str, range(1000))))
    with pytest.raises(InvalidAdapter, match="1,000 outputs on 5,000 numbers is too large: at most 4,194,304 weights"):
        PooledHead(torch.zeros(2, 2500), torch.zeros(2, 2500, 2500), objective=many, reads=(0, 1))
