import pytest
import torch

from confide.models.adapters.lora import AdapterConfig, attach
from confide.models.errors import InvalidAdapter
from confide.models.heads.pooling import PooledHead, pooled

from ..tiny import random_ids, tiny_deepseek


def test_pooled_is_the_mean_of_first_and_last_states():
    model, ids = tiny_deepseek(), random_ids(3)
    states = model.model(input_ids=ids, output_hidden_states=True)
    want = torch.cat([states.hidden_states[0] / 0.05, states.last_hidden_state], dim=-1).mean(1)
    torch.testing.assert_close(pooled(model, ids), want)


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
