"""A model that reads in segments: units stay apart, clipping is exact, and writing on a cache says the same."""

import copy

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from confide.kernels import segments as kernel
from confide.kernels.segments import Segments
from confide.models.adapters import AdapterConfig, attach
from confide.models.backbones.segments import read_in_segments
from confide.models.decoding.writing import write
from confide.models.errors import BackboneMismatch
from confide.privacy.errors import UnitsCoupled
from confide.privacy.mechanism.clipping import PerUnitClipper
from confide.privacy.mechanism.independence import refuse_dependence

from ..tiny import VOCABULARY, tiny_deepseek

SIZES = Segments(window=8, top=2)
LENGTHS = (7, *(border + 2 for border in SIZES.borders))
TARGETS = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "experts", "gate")


def adapted_model(dtype=torch.float32):
    model = tiny_deepseek(dtype=dtype)
    read_in_segments(model, SIZES)
    adapted = attach(model, AdapterConfig(rank=2, alpha=3.0, targets=TARGETS, seed="x", freeze_a=False))
    adapted.load_state(0.2 * np.random.default_rng(7).normal(size=adapted.layout.dim))
    return adapted


def ids_of(rows, tokens, seed=1):
    return torch.randint(2, VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def test_units_stay_apart_also_where_blocks_are_chosen():
    refuse_dependence(adapted_model(), words=VOCABULARY, lengths=LENGTHS)


def test_probes_see_a_choice_that_rows_share(monkeypatch):
    """As if the blocks of a row were those that the row before it liked."""
    model, last = adapted_model(), []
    choose = kernel.chosen_blocks

    def chosen(q, k, sizes):
        last.append(choose(q, k, sizes))
        return last[-2] if len(last) > 1 and last[-2].shape == last[-1].shape else last[-1]

    monkeypatch.setattr(kernel, "chosen_blocks", chosen)
    refuse_dependence(model, words=VOCABULARY, lengths=LENGTHS[:1])  # all blocks are read there
    with pytest.raises(UnitsCoupled):
        refuse_dependence(model, words=VOCABULARY, lengths=LENGTHS)


def test_clipped_sum_is_that_of_one_unit_at_a_time():
    adapted = adapted_model(torch.float64)
    ids = ids_of(6, 70)
    is_completion = torch.arange(70).expand(6, -1) >= 20
    units, gradients = np.arange(6) // 2, []
    for unit in range(3):
        rows = torch.as_tensor(units == unit)
        loss = adapted.losses(ids[rows], is_completion[rows]).mean()
        gradients.append(torch.autograd.grad(loss, list(adapted.trained.values())))
    norms = [float(torch.stack([grad.norm() for grad in of_unit]).norm()) for of_unit in gradients]
    clip_norm = sorted(norms)[1]
    want = [
        sum(min(1.0, clip_norm / norm) * grad for norm, grad in zip(norms, grads, strict=True))
        for grads in zip(*gradients, strict=True)
    ]
    clipper = PerUnitClipper(adapted)
    with clipper.microbatch(units, 70):
        (adapted.losses(ids, is_completion) / 2).sum().backward()
    got, report = clipper.clipped_sum(clip_norm)
    np.testing.assert_allclose(report.norms, norms, rtol=1e-9)
    gap = torch.cat([(got[name] - grad).flatten() for name, grad in zip(adapted.trained, want, strict=True)])
    assert gap.norm() < 1e-7 * torch.cat([grad.flatten() for grad in want]).norm()


@pytest.mark.parametrize("cut", [1, 7, 8, 16, 17, 60])
@torch.no_grad()
def test_writing_on_a_cache_gives_what_a_whole_pass_gives(cut):
    model, ids = adapted_model(torch.float64).model, ids_of(2, 90)
    whole = model(ids).logits
    out = model(ids[:, :cut], use_cache=True)
    parts = [out.logits]
    for token in range(cut, 90):
        out = model(ids[:, token : token + 1], cache=out.cache, use_cache=True)
        parts.append(out.logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-5, atol=1e-5)  # rotary angles are float32
    out = model(ids[:, :cut], use_cache=True)
    torch.testing.assert_close(model(ids[:, cut:], cache=out.cache).logits, whole[:, cut:], rtol=1e-5, atol=1e-5)
    assert out.cache.get_seq_length() == 90


@torch.no_grad()
def test_model_without_an_unrotated_part_writes_what_it_reads():
    config = copy.deepcopy(tiny_deepseek().config)
    config.qk_nope_head_dim, config.q_lora_rank = 0, None
    torch.manual_seed(0)
    model = type(tiny_deepseek())(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
    full, ids = model(ids_of(2, 90)).logits, ids_of(2, 90)
    read_in_segments(model, SIZES)
    whole = model(ids).logits
    border = SIZES.borders[1]
    torch.testing.assert_close(whole[:, :border], full[:, :border], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(whole[:, border:], full[:, border:], rtol=1e-2, atol=1e-2)
    out = model(ids[:, :40], use_cache=True)
    torch.testing.assert_close(model(ids[:, 40:], cache=out.cache).logits, whole[:, 40:], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_words_that_were_guessed_are_forgotten_where_they_are_wrong():
    """As transformers writes several tokens at once, which it looks up in the prompt."""
    model, ids = adapted_model().model, ids_of(1, 40)
    model.generation_config.eos_token_id = None
    want = ids
    for _ in range(12):
        want = torch.cat([want, model(want).logits[:, -1:].argmax(-1)], 1)
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "use_cache": True}
    assert torch.equal(model.generate(ids, prompt_lookup_num_tokens=3, **settings), want)


@torch.no_grad()
def test_a_token_more_is_written_without_expanding_what_was_read():
    model, ids = adapted_model().model, ids_of(1, 200)
    expanded = []
    for layer in model.model.layers:
        layer.self_attn.kv_b_proj.register_forward_hook(lambda _layer, given, _: expanded.append(given[0].shape[-2]))
    out = model(ids, use_cache=True)
    rank = model.config.kv_lora_rank
    assert expanded == [rank, 200] * 2  # the matrix itself, then the whole text
    expanded.clear()
    model(ids[:, :1], cache=out.cache)
    assert not expanded


def test_texts_are_written_as_by_whole_passes():
    words = [chr(97 + place % 26) for place in range(VOCABULARY)]
    model, prompts = adapted_model().model, [ids_of(1, length, seed=length)[0].tolist() for length in (3, 50, 50)]
    written = write(model, prompts, words, ends={0}, longest=20, is_fixed=True)
    for prompt, text in zip(prompts, written, strict=True):
        ids = list(prompt)
        for _ in range(20):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        told = ids[len(prompt) :]
        told = told[: told.index(0)] if 0 in told else told
        assert text.text == "".join(words[token] for token in told)


@torch.no_grad()
def test_padding_stands_on_the_right():
    model, ids = adapted_model().model, ids_of(2, 90)
    mask = torch.ones(2, 90, dtype=torch.long)
    mask[0, 70:] = 0
    out = model(ids, attention_mask=mask).logits
    alone = model(ids[:1, :70]).logits
    torch.testing.assert_close(out[:1, :70], alone, rtol=1e-4, atol=1e-5)
    for wrong in (mask.flip(1), mask.roll(5, dims=1)):
        with pytest.raises(BackboneMismatch, match="on the right"):
            model(ids, attention_mask=wrong)
    cached = model(ids, attention_mask=torch.ones_like(mask), use_cache=True).cache
    with pytest.raises(BackboneMismatch, match="rows of one length"):
        model(
            ids[:, :1],
            attention_mask=torch.cat([mask.flip(1).sort(descending=True).values, mask[:, :1] * 0], 1),
            cache=cached,
        )


@torch.no_grad()
def test_a_cache_that_does_not_fit_and_masks_of_one_s_own_are_refused():
    full, model, ids = tiny_deepseek(), adapted_model().model, ids_of(2, 40)
    with pytest.raises(BackboneMismatch, match="another attention"):
        model(ids[:, :1], cache=full(ids, use_cache=True).cache)
    with pytest.raises(BackboneMismatch, match="mask"):
        model(ids, attention_mask=torch.zeros(2, 1, 40, 40))


@torch.no_grad()
def test_rows_of_a_cache_change_places():
    model, ids = adapted_model().model, ids_of(2, 60)
    whole = model(ids).logits
    cache = model(ids[:, :59], use_cache=True).cache
    cache.reorder_cache(torch.tensor([1, 0]))
    torch.testing.assert_close(
        model(ids.flip(0)[:, 59:], cache=cache).logits[:, 0], whole.flip(0)[:, 59], rtol=1e-4, atol=1e-4
    )
    cache.reset()
    assert cache.get_seq_length() == 0
    torch.testing.assert_close(model(ids[:, :30], cache=cache).logits, whole[:, :30], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_in_sixteen_bits_a_cache_chooses_as_a_whole_pass_does(monkeypatch):
    model, ids, chosen = tiny_deepseek().bfloat16(), ids_of(1, 120), []
    read_in_segments(model, SIZES)
    model.model.layers = model.model.layers[:1]  # what comes of it is rounded, and goes into the next layer
    whole = model(ids).logits
    out = model(ids[:, :60], use_cache=True)
    for token in range(60, 120):
        out = model(ids[:, token : token + 1], cache=out.cache)
        chosen.append((out.logits[:, 0] - whole[:, token]).abs().max())
    assert max(chosen) < 0.1


def test_other_families_are_refused_by_name():
    llama = LlamaForCausalLM(
        LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=8)
    )
    with pytest.raises(BackboneMismatch, match="family llama"):
        read_in_segments(llama, SIZES)
