import pytest
import torch

from confide.kernels.errors import RoutingOutOfRange, TokensMiscounted
from confide.kernels.routing import route


def random_routing(tokens=50, experts=6, top_k=2):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(tokens, experts, generator=generator).topk(top_k, dim=1).indices


def test_slices_hold_the_pairs_of_each_expert_in_order():
    ids = random_routing()
    plan = route(ids, 6)
    for expert, part in plan.slices:
        assert torch.equal(plan.pair_S[part], (ids.flatten() == expert).nonzero().squeeze(1))


def test_slot_is_the_inverse_of_the_sort():
    plan = route(random_routing(), 6)
    assert torch.equal(plan.pair_S[plan.slot_TK.flatten()], torch.arange(100))


def test_runs_are_the_pairs_of_one_expert_and_one_unit():
    ids, owner = random_routing(), torch.arange(50) % 4
    plan = route(ids, 6, owner, 4)
    start = 0
    for length, expert, unit in zip(plan.runs.length_N, plan.runs.expert_N, plan.runs.unit_N, strict=True):
        token = plan.token_S[start : start + length]
        assert torch.equal(token.sort().values, ((ids == expert).any(1) & (owner == unit)).nonzero().squeeze(1))
        start += int(length)
    assert start == 100


def test_idle_experts_have_no_slice():
    assert [expert for expert, _ in route(torch.full((5, 1), 2), 4).slices] == [2]


def test_no_tokens_give_an_empty_plan():
    plan = route(torch.empty(0, 2, dtype=torch.int64), 4, torch.empty(0, dtype=torch.int64), 0)
    assert plan.slices == ()
    assert plan.runs.length_N.numel() == 0


@pytest.mark.parametrize("units", [None, 3])
def test_pairs_of_experts_elsewhere_are_left_out(units):
    """The index num_experts is expert parallelism's "not on this device"."""
    ids = random_routing()
    ids[ids == 5] = 4
    ids[ids >= 4] = 4
    plan = route(ids, 4, None if units is None else torch.arange(50) % units, units or 0)
    here = (ids < 4).flatten()
    assert plan.has_dropped
    assert plan.num_pairs == here.sum()
    assert torch.equal(plan.pair_S.sort().values, here.nonzero().squeeze(1))
    assert torch.equal(plan.pair_S[plan.slot_TK.flatten()[here]], here.nonzero().squeeze(1))
    assert (plan.slot_TK.flatten()[~here] == plan.num_pairs).all()
    assert all(expert < 4 for expert, _ in plan.slices)
    if plan.runs is not None:
        assert plan.runs.length_N.sum() == plan.num_pairs
        assert plan.runs.expert_N.max() < 4
        assert plan.runs.unit_N.max() < units


def test_padded_runs_hold_each_run_once_and_no_pair_of_another():
    plan = route(random_routing(tokens=90), 6, torch.arange(90) ** 2 % 7, 7)
    lengths = plan.runs.length_N
    for part in (slice(0, len(lengths)), slice(3, 11), slice(4, 4)):
        first, seen = int(lengths[: part.start].sum()), []
        for batch in plan.runs.padded(part):
            assert 2 * lengths[part][batch.runs_B].min() >= batch.pairs_BL.shape[1]
            for run, pairs, is_padding in zip(*batch, strict=True):
                start = int(lengths[: part.start + run].sum()) - first
                own = torch.arange(start, start + int(lengths[part][run]))
                assert torch.equal(pairs[~is_padding], own)
                assert set(pairs.tolist()) == set(own.tolist())
                seen.append(int(run))
        assert sorted(seen) == list(range(part.stop - part.start))


def test_plan_may_be_empty_though_there_are_tokens():
    plan = route(torch.full((3, 2), 4), 4, torch.zeros(3, dtype=torch.int64), 1)
    assert (plan.num_pairs, plan.slices, len(plan.runs.length_N)) == (0, (), 0)


def test_expert_ids_may_be_short_integers():
    ids = random_routing()
    wide, narrow = (route(i, 6, torch.full((50,), 99), 100) for i in (ids, ids.to(torch.int32)))
    assert torch.equal(wide.pair_S, narrow.pair_S)
    assert torch.equal(route(ids.to(torch.uint8), 6, torch.full((50,), 99), 100).pair_S, wide.pair_S)


@pytest.mark.parametrize("bad", [-1, 5])
def test_expert_out_of_range_is_refused(bad):
    with pytest.raises(RoutingOutOfRange, match="expert"):
        route(torch.tensor([[0, bad]]), 4)


def test_unit_out_of_range_is_refused():
    with pytest.raises(RoutingOutOfRange, match="unit"):
        route(torch.tensor([[0, 1]]), 4, torch.tensor([3]), 3)


def test_owners_of_other_tokens_are_refused():
    with pytest.raises(TokensMiscounted):
        route(torch.tensor([[0, 1]]), 4, torch.tensor([0, 0]), 1)
