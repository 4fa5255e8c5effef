import math
from types import SimpleNamespace

import pytest
import torch

from confide.models.heads import losses as losses_module
from confide.models.heads.losses import completion_losses, foretell, record_losses

from ..tiny import random_ids, tiny_deepseek


@pytest.fixture(scope="module")
def model():
    return tiny_deepseek(dtype=torch.float64)


def completions(rows, length, seed=0):
    mask = torch.rand(rows, length, generator=torch.Generator().manual_seed(seed)) < 0.4
    mask[:, 0] = False
    return mask


def loop(model, ids, is_completion):
    """[(losses, hits)] of each record by itself, one token at a time, by the definition of a softmax."""
    found = []
    for row, mask in zip(ids, is_completion, strict=True):
        losses, hits = [], []
        for place in mask.nonzero()[:, 0].tolist():
            with torch.no_grad():
                logits = model(input_ids=row[None, :place]).logits[0, -1].tolist()
            most = max(logits)
            losses.append(most + math.log(sum(math.exp(x - most) for x in logits)) - logits[row[place]])
            hits.append(logits[row[place]] == most)
        found.append((losses, hits))
    return found


@torch.no_grad()
def test_losses_are_those_of_a_loop_over_records_and_tokens(model):
    ids, mask = random_ids(5), completions(5, 12)
    mask[2] = False  # a record without a completion
    got = foretell(model, ids, mask)
    for row, (losses, hits) in enumerate(loop(model, ids, mask)):
        torch.testing.assert_close(got.losses_N[got.row_N == row], torch.tensor(losses, dtype=torch.float64))
        assert got.is_first_choice_N[got.row_N == row].tolist() == hits
        assert got.by_record()[row].item() == pytest.approx(sum(losses) / max(1, len(losses)))
    assert got.tokens_R.tolist() == mask.sum(1).tolist()


@torch.no_grad()
def test_a_record_s_loss_knows_nothing_of_longer_ones_beside_it_or_of_what_follows_its_completion(model):
    ids, mask = random_ids(3), completions(3, 12)
    mask[:, 8:] = False
    alone = foretell(model, ids[:1, :9], mask[:1, :9]).by_record()
    torch.testing.assert_close(foretell(model, ids, mask).by_record()[:1], alone)


@torch.no_grad()
def test_a_completion_is_exact_if_greedy_decoding_writes_it(model):
    prompt = random_ids(2, 6)
    written = model.generate(prompt, max_new_tokens=5, do_sample=False, eos_token_id=None, use_cache=True)
    mask = torch.zeros_like(written, dtype=torch.bool)
    mask[:, 6:] = True
    assert foretell(model, written, mask).is_exact().tolist() == [True, True]
    written[1, 8] = (written[1, 8] + 1) % 64
    assert foretell(model, written, mask).is_exact().tolist() == [True, False]
    assert foretell(model, written, torch.zeros_like(mask)).is_exact().tolist() == [False, False]


def states_of(model, hidden):
    """The model's output matrix on given last states."""
    inner = SimpleNamespace(last_hidden_state=hidden)
    return SimpleNamespace(model=lambda **_: inner, lm_head=model.lm_head, config=model.config)


@pytest.mark.parametrize("divisor", [1, 4.0])
@pytest.mark.parametrize("tile", [None, 5, 64])
def test_losses_for_training_and_their_gradients_are_those_of_plain_autograd(model, tile, divisor):
    ids, mask = random_ids(5), completions(5, 12)
    mask[2] = False
    hidden = torch.randn(5, 12, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    weights, grads = torch.tensor([1.0, -2.0, 3.0, 0.5, 2.0], dtype=torch.float64), []
    for losses in (lambda *a: foretell(*a).by_record(), lambda *a: completion_losses(*a, tile=tile)):
        leaf = hidden.clone().requires_grad_()
        stand_in = states_of(model, leaf)
        stand_in.config = SimpleNamespace(logits_scaling=divisor)
        model.lm_head.requires_grad_(False)
        by_row = losses(stand_in, ids, mask)
        (grad,) = torch.autograd.grad((by_row * weights).sum(), leaf)
        grads.append((by_row.detach(), grad))
    (want, plain), (got, fused) = grads
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(fused, plain, rtol=1e-10, atol=1e-12)
    assert plain.any()


def test_losses_of_words_that_are_all_but_certain_or_impossible_are_exact_and_finite():
    head = torch.nn.Linear(2, 3, bias=False).requires_grad_(False)
    head.weight.copy_(torch.tensor([[200.0, 0.0], [0.0, 0.0], [-200.0, 0.0]]))
    leaf = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]], requires_grad=True)
    model = SimpleNamespace(
        model=lambda **_: SimpleNamespace(last_hidden_state=leaf), lm_head=head, config=SimpleNamespace()
    )
    sure = completion_losses(model, torch.tensor([[0, 0, 0]]), torch.tensor([[False, True, False]]))
    hopeless = completion_losses(model, torch.tensor([[0, 2, 2]]), torch.tensor([[False, True, False]]))
    assert (sure.item(), hopeless.item()) == (0.0, 400.0)
    (grad,) = torch.autograd.grad(hopeless.sum(), leaf)
    torch.testing.assert_close(grad[0, 0], torch.tensor([400.0, 0.0]))


def test_an_output_matrix_that_is_trained_gets_its_gradient_by_plain_autograd(model):
    ids, mask = random_ids(3), completions(3, 12)
    hidden = torch.randn(3, 12, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    model.lm_head.requires_grad_(True)
    try:
        loss = completion_losses(states_of(model, hidden), ids, mask, tile=8).sum()
        assert torch.autograd.grad(loss, model.lm_head.weight)[0].any()
    finally:
        model.lm_head.requires_grad_(False)


def test_no_logits_are_kept_for_backward(model, monkeypatch):
    """Of [tokens, words] there is one tile at a time, whatever the number of tokens."""
    monkeypatch.setattr(losses_module, "_QUICK", 4)
    kept = []
    hidden = torch.randn(4, 12, 32, dtype=torch.float64, requires_grad=True)
    model.lm_head.requires_grad_(False)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda t: t):
        completion_losses(states_of(model, hidden), random_ids(4), completions(4, 12)).sum().backward()
    assert any(shape[-1:] == (32,) for shape in kept)
    assert not any(shape[-1:] == (64,) for shape in kept)  # words


def test_a_logit_s_loss_is_the_log_of_one_and_the_exponential_of_its_error():
    logits, labels = torch.tensor([0.0, 2.0, -3.0], dtype=torch.float64), torch.tensor([1, 0, 1])
    want = [math.log(2), math.log1p(math.exp(2)), math.log1p(math.exp(3))]
    torch.testing.assert_close(record_losses(logits, labels), torch.tensor(want, dtype=torch.float64))


def test_no_bit_of_a_record_s_gradient_depends_on_its_place_among_others():
    """A library rounds what is left over behind its vector registers in another way: some logits in a hundred."""
    logits = 3 * torch.randn(2000, generator=torch.Generator().manual_seed(0))

    def gradients(some):
        leaf = some.clone().requires_grad_()
        record_losses(leaf, torch.zeros(len(leaf))).sum().backward()
        return leaf.grad

    alone = torch.cat([gradients(logits[place : place + 1]) for place in range(len(logits))])
    for rows in (5, 8, 20, 37, 40, 2000):
        assert torch.equal(torch.cat([gradients(some) for some in logits.split(rows)]), alone)
