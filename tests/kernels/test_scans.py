import pytest
import torch
import torch.nn.functional as F

from confide.kernels import scans
from confide.kernels.scans import CHUNK, gated_delta_rule, state_space_scan

LENGTHS = (1, 15, 16, 17, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5)
STRENGTHS = (1e-3, 1.0, 100.0)  # of decay, a token: hardly any, some, and all of it


def token_by_token(step, inputs, state):
    """The recurrence itself: outputs of all tokens, and the state behind the last."""
    found = []
    for token in range(inputs[0].shape[1]):
        out, state = step(state, *(part[:, token] for part in inputs))
        found.append(out)
    return torch.stack(found, dim=1), state


def mamba2(state, x, decay, written, read):
    members = x.shape[1] // written.shape[1]
    written, read = (part.repeat_interleave(members, dim=1) for part in (written, read))
    state = state * decay[..., None, None].exp() + x[..., :, None] * written[..., None, :]
    return (state * read[..., None, :]).sum(-1), state


def delta(state, query, key, value, decay, rate):
    state = state * decay[..., None].exp()
    missing = value - (state * key[..., None]).sum(-2)
    state = state + rate[..., None, None] * key[..., None] * missing[..., None, :]
    return (state * query[..., None]).sum(-2), state


def mamba2_inputs(tokens, strength, *, rows=2, heads=6, groups=2, width=5, size=3, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    decay = -strength * torch.rand(rows, tokens, heads, generator=generator, dtype=torch.float64) ** 3
    return [normal(rows, tokens, heads, width), decay, *(normal(rows, tokens, groups, size) for _ in range(2))]


def delta_inputs(tokens, strength, *, rows=2, heads=3, width=8, values=5, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    query, key = normal(rows, tokens, heads, width), F.normalize(normal(rows, tokens, heads, width), dim=-1)
    decay = -strength * torch.rand(rows, tokens, heads, width, generator=generator, dtype=torch.float64) ** 3
    rate = torch.rand(rows, tokens, heads, generator=generator, dtype=torch.float64)
    return [query, key, normal(rows, tokens, heads, values), decay, rate]


SCANS = {
    "mamba-2": (state_space_scan, mamba2, mamba2_inputs, (2, 6, 5, 3)),
    "delta rule": (gated_delta_rule, delta, delta_inputs, (2, 3, 8, 5)),
}


@pytest.fixture(params=SCANS.values(), ids=list(SCANS))
def kind(request):
    return request.param


def state_of(shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("tokens", LENGTHS)
def test_a_scan_is_its_recurrence_and_goes_on_from_a_state(kind, tokens, strength):
    scan, step, inputs_of, shape = kind
    inputs, begun = inputs_of(tokens, strength), state_of(shape)
    for state in (None, begun):
        want, want_state = token_by_token(step, inputs, torch.zeros(shape).double() if state is None else state)
        found, found_state = scan(*inputs, state)
        torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found_state, want_state, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("tokens", [17, CHUNK + 1])
def test_gradients_are_those_of_the_recurrence(kind, tokens):
    scan, step, inputs_of, shape = kind
    weights = torch.randn(1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = []
    for run in (lambda *given: token_by_token(step, given[:-1], given[-1]), scan):
        given = [part.requires_grad_() for part in (*inputs_of(tokens, 1.0), state_of(shape))]
        out, state = run(*given)
        loss = (out * torch.arange(out.numel()).view_as(out).sin()).sum() + weights * state.square().sum()
        found.append(torch.autograd.grad(loss, given))
    for want, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, want, rtol=1e-8, atol=1e-9)


def test_gradients_are_finite_where_everything_fades_at_once(kind):
    scan, _, inputs_of, _ = kind
    given = [part.float().requires_grad_() for part in inputs_of(CHUNK + 9, 1e4)]
    out, state = scan(*given)
    for gradient in torch.autograd.grad(out.sum() + state.sum(), given):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("strength", STRENGTHS)
def test_float32_is_about_as_near_as_its_recurrence(kind, strength):
    scan, step, inputs_of, shape = kind
    inputs = inputs_of(4 * CHUNK, strength)
    want, _ = token_by_token(step, inputs, torch.zeros(shape, dtype=torch.float64))
    in_float32 = [part.float() for part in inputs]
    near = (token_by_token(step, in_float32, torch.zeros(shape))[0] - want).abs().max()
    found, state = scan(*in_float32)
    assert found.dtype == state.dtype == torch.float32
    assert (found - want).abs().max() < 4 * near + 1e-6 * max(10, strength)  # exponents of a block's decays, added up


def test_narrow_inputs_are_computed_in_float32_also_under_autocast(kind):
    scan, _, inputs_of, _ = kind
    narrow = [part.bfloat16() for part in inputs_of(CHUNK + 3, 1.0)]
    want, want_state = scan(*(part.float() for part in narrow))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, state = scan(*narrow)
    assert found.dtype == torch.float32
    assert torch.equal(found, want)
    assert torch.equal(state, want_state)


def test_no_other_row_and_no_later_token_moves_a_bit(kind):
    scan, _, inputs_of, _ = kind
    inputs = [part.float() for part in inputs_of(7 * CHUNK + 3, 1.0, rows=5)]
    want, want_state = scan(*inputs)
    others = [torch.cat([part[:2], part[2:] * 0.5]) for part in inputs]
    found, state = scan(*others)
    assert torch.equal(found[:2], want[:2])
    assert torch.equal(state[:2], want_state[:2])
    later = [torch.cat([part[:, : 5 * CHUNK + 1], part[:, 5 * CHUNK + 1 :] * 0.5], dim=1) for part in inputs]
    assert torch.equal(scan(*later)[0][:, : 5 * CHUNK + 1], want[:, : 5 * CHUNK + 1])


def test_texts_go_through_in_pieces_whose_size_changes_nothing(kind, monkeypatch):
    scan, _, inputs_of, _ = kind
    tokens, seen = 15 * CHUNK + 3, []
    inputs = inputs_of(tokens, 1.0)
    name = "_state_space_piece" if scan is state_space_scan else "_delta_piece"
    piece = getattr(scans, name)
    monkeypatch.setattr(scans, name, lambda *given: seen.append(given[0].shape[1]) or piece(*given))
    want, want_state = scan(*inputs)
    assert len(seen) > 1
    assert sum(seen) == tokens
    for size, pieces in ((1, 16), (2**40, 1)):
        monkeypatch.setattr(scans, "_PAIRS", size)
        monkeypatch.setattr(scans, "_DECAYS", size)
        seen.clear()
        found, state = scan(*inputs)
        assert len(seen) == pieces
        torch.testing.assert_close(found, want, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(state, want_state, rtol=1e-10, atol=1e-10)
