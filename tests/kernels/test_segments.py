"""Attention in segments, against its definition one query at a time, and what may not reach a token."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from confide.kernels import segments
from confide.kernels.errors import UnfitWeights
from confide.kernels.segments import Segments, chosen_blocks, segment_attention

SMALL = Segments(window=8, top=2)


def tensors(rows, heads, tokens, width, values, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shapes = (width, width, values)
    return [
        torch.randn(rows, heads, tokens, size, generator=generator, dtype=dtype).requires_grad_() for size in shapes
    ]


def by_definition(q, k, v, scale, unrotated, sizes):
    """One query after another, from the words of the module alone."""
    out = torch.zeros(*q.shape[:3], v.shape[-1], dtype=q.dtype)
    far = unrotated or q.shape[-1]
    seen_q, seen_k = q.detach()[..., :far], k.detach()[..., :far]
    for row in range(q.shape[0]):
        for head in range(q.shape[1]):
            for i in range(q.shape[2]):
                own = i // sizes.window
                near = list(range(max(0, own - 1) * sizes.window, i + 1))
                quarter = sizes.window // 4
                best = [
                    max(
                        float(seen_k[row, head, start : start + quarter].mean(0) @ seen_q[row, head, i])
                        for start in range(b * sizes.window, (b + 1) * sizes.window, quarter)
                    )
                    for b in range(max(0, own - 1))
                ]
                liked = sorted(range(len(best)), key=best.__getitem__)[-sizes.top :]
                distant = [t for b in liked for t in range(b * sizes.window, (b + 1) * sizes.window)]
                scores = [k[row, head, near] @ q[row, head, i], k[row, head, distant, :far] @ q[row, head, i, :far]]
                weights = (torch.cat(scores) * scale).softmax(0)
                out[row, head, i] = weights @ v[row, head, near + distant]
    return out


@pytest.mark.parametrize("unrotated", [0, 6, 8])
@pytest.mark.parametrize("tokens", [1, 3, 8, 9, 17, 40, 61, 90])
def test_result_and_gradients_are_those_of_the_definition(tokens, unrotated):
    parts = tensors(2, 3, tokens, 8, 5)
    got = segment_attention(*parts, 0.4, unrotated=unrotated, segments=SMALL)
    want = by_definition(*parts, 0.4, unrotated, SMALL)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(want)
    got_grads, want_grads = (torch.autograd.grad((out * weight).sum(), parts) for out in (got, want))
    for got_grad, want_grad in zip(got_grads, want_grads, strict=True):
        torch.testing.assert_close(got_grad, want_grad, rtol=1e-11, atol=1e-12)


def test_many_blocks_and_tiles_agree_with_the_definition(monkeypatch):
    """With parts so small that every loop goes round several times."""
    for name, value in (("_TOKENS", 128), ("_SCORED", 64), ("_TILES", 3)):
        monkeypatch.setattr(segments, name, value)
    sizes, parts = Segments(window=8, top=3), tensors(1, 2, 600, 8, 4, seed=3)
    got = segment_attention(*parts, 0.3, unrotated=5, segments=sizes)
    torch.testing.assert_close(got, by_definition(*parts, 0.3, 5, sizes), rtol=1e-12, atol=1e-12)


def test_short_rows_read_all_as_full_attention_does():
    tokens = SMALL.borders[1]
    q, k, v = tensors(2, 2, tokens, 8, 8)
    full = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3)
    torch.testing.assert_close(segment_attention(q, k, v, 0.3, unrotated=0, segments=SMALL), full)
    q, k, v = tensors(2, 2, tokens + 1, 8, 8)
    full = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3)
    assert not torch.allclose(segment_attention(q, k, v, 0.3, unrotated=0, segments=SMALL), full)


def test_every_query_reads_its_last_window():
    """A value that only the token `window` places back has comes through whatever is chosen."""
    q, k, v = tensors(1, 1, 60, 8, 1)
    for back in range(SMALL.window + 1):
        told = torch.zeros_like(v)
        told[0, 0, 50 - back] = 1
        assert segment_attention(q, k, told, 0.3, unrotated=6, segments=SMALL)[0, 0, 50] > 0


def test_nothing_after_a_token_and_no_other_row_moves_it():
    parts = tensors(3, 2, 100, 8, 4, dtype=torch.float32)
    out = segment_attention(*parts, 0.3, unrotated=6, segments=SMALL)
    changed = [part.detach().clone() for part in parts]
    for part in changed:
        part[:, :, 70:] = torch.randn_like(part[:, :, 70:])
    later = segment_attention(*changed, 0.3, unrotated=6, segments=SMALL)
    torch.testing.assert_close(later[:, :, :70], out[:, :, :70], rtol=1e-5, atol=1e-6)
    alone = segment_attention(*(part[1:2] for part in parts), 0.3, unrotated=6, segments=SMALL)
    assert torch.equal(alone[0], out[1])
    grads = torch.autograd.grad(out[1].square().sum(), parts)
    assert all(bool(grad[1].any()) and not grad[[0, 2]].any() for grad in grads)


def test_choice_is_of_each_query_and_of_earlier_blocks_alone():
    q, k, _ = (part[0].detach() for part in tensors(1, 2, 64, 8, 4))
    chosen = chosen_blocks(q, k, SMALL)
    own = torch.arange(64) // SMALL.window
    assert (chosen < (own - 1).clamp_min(0)[None, :, None]).all()
    counts = (chosen >= 0).sum(-1)
    assert torch.equal(counts, (own - 1).clamp(0, SMALL.top).expand(2, -1))
    assert len({tuple(sorted(line)) for line in chosen[0, 60:].tolist()}) > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_text_that_repeats_itself_is_chosen_from_alike_whatever_follows(dtype):
    """In the first layer equal tokens have equal keys."""
    q, k, _ = (part[0].detach().to(dtype) for part in tensors(1, 2, 400, 8, 4))
    k = k[:, :20].repeat(1, 20, 1)
    whole = chosen_blocks(q, k, SMALL).sort(-1).values
    for tokens in (100, 203, 311):
        part = chosen_blocks(q[:, :tokens], k[:, :tokens], SMALL).sort(-1).values
        assert torch.equal(part, whole[:, :tokens])


@given(st.integers(1, 9), st.integers(1, 80), st.integers(0, 2**32 - 1))
def test_two_short_searches_find_what_one_long_one_does(count, line, seed):
    size = max(1, math.isqrt(line // count))
    line += -line % size
    quarters = torch.randint(-5, 6, (2, 3, line, 4), generator=torch.Generator().manual_seed(seed)).double()
    values, places = segments._largest(quarters, count, size)
    scores = quarters.amax(-1)
    want = scores.topk(min(count, line)).values
    assert torch.equal(values.sort(-1, descending=True).values, want)
    assert torch.equal(scores.gather(-1, places), values)
    assert all(len(set(row)) == len(row) for row in places.flatten(0, 1).tolist())


def test_sixteen_bits_are_weighed_in_float32():
    parts = [part.detach().bfloat16() for part in tensors(1, 2, 90, 16, 8)]
    got = segment_attention(*parts, 0.25, unrotated=12, segments=SMALL)
    want = segment_attention(*(part.double() for part in parts), 0.25, unrotated=12, segments=SMALL)
    assert got.dtype == torch.bfloat16
    assert (got.double() - want).abs().mean() < 0.01


@pytest.mark.parametrize(("change", "unrotated"), [("keys", 6), ("values", 6), (None, 9), (None, -1)])
def test_shapes_that_do_not_fit_are_refused(change, unrotated):
    q, k, v = tensors(1, 2, 20, 8, 4)
    k, v = k[:, :, :19] if change == "keys" else k, v[:, :1] if change == "values" else v
    with pytest.raises(UnfitWeights, match="unrotated"):
        segment_attention(q, k, v, 0.3, unrotated=unrotated, segments=SMALL)


@pytest.mark.parametrize("sizes", [Segments(window=6), Segments(window=0), Segments(top=0)])
def test_sizes_that_are_none_are_refused(sizes):
    with pytest.raises(UnfitWeights, match="window"):
        segment_attention(*tensors(1, 1, 20, 8, 4), 0.3, unrotated=6, segments=sizes)
