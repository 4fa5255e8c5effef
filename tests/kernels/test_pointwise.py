"""Whether the place of a number shows in a function of it: the search against trying every number in every place."""

import pytest
import torch
import torch.nn.functional as F

from confide.kernels.pointwise import places_agree, pointwise_seen

FUNCTIONS = {"exp": torch.exp, "sigmoid": torch.sigmoid, "silu": F.silu, "product": lambda x: x * x, "gelu": F.gelu}
NUMBERS = (3 * torch.randn(400, generator=torch.Generator().manual_seed(2))).tolist()


def shows_its_place(function, *shapes):
    """By definition: some number has other bits in one row than in another."""
    for number in NUMBERS:
        found = [function(torch.full(shape, number)) for shape in shapes]
        if len({row.numpy().tobytes() for out in found for row in out.view(-1, shapes[0][-1])}) > 1:
            return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("shapes", [[(64, 1)], [(37, 1)], [(64, 1), (8, 1)], [(5, 12)], [(64, 64)]], ids=str)
def test_a_place_shows_exactly_where_trying_it_shows_it(name, shapes):
    function = FUNCTIONS[name]
    with pointwise_seen() as calls:
        for shape in shapes:
            function(torch.ones(shape))
    assert places_agree(calls) is not shows_its_place(function, *shapes)


def test_backward_and_what_is_written_into_a_tensor_are_seen_too():
    x = torch.ones(7, 3, requires_grad=True)
    with pointwise_seen() as calls:
        F.silu(x).sum().backward()
        torch.ops.aten.silu.out(x.detach()[:, 1:], out=torch.empty(7, 2))
    names = {str(call.function) for call in calls}
    assert {"aten.silu.default", "aten.silu_backward.default", "aten.silu.out"} <= names
    assert isinstance(places_agree(calls), bool)
