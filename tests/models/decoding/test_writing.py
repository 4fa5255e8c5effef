import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.text_pretraining import build_text
from confide.models.decoding.arithmetic import Arithmetic
from confide.models.decoding.writing import write
from confide.models.records.vocabularies import character_tokenizer
from confide.models.structure.inputs import words_of

from ..tiny import VOCABULARY, tiny_deepseek

WORDS = ["", "<end>", *(f"<{number}>" for number in range(2, VOCABULARY))]
PROMPTS = [[5, 9, 3], [7, 7], [8, 2, 40], [11, 60, 2, 9, 33]]


def tiny_llama():
    torch.manual_seed(3)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=VOCABULARY,
        initializer_range=0.3, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


class Only:
    """Allows some words alone, whatever was written."""

    def __init__(self, *allowed):
        self.mask = np.isin(np.arange(VOCABULARY), allowed)

    def allowed(self, prompt, text):
        return self.mask


@pytest.mark.parametrize("model", [tiny_deepseek, tiny_llama])
def test_what_is_written_is_what_transformers_generates(model):
    model = model()
    texts = write(model, PROMPTS, WORDS, ends=(1,), longest=12)
    for prompt, (text, is_ended, written) in zip(PROMPTS, texts, strict=True):
        ids = torch.tensor([prompt])
        found = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, eos_token_id=1, pad_token_id=0
        )[0, len(prompt) :].tolist()
        assert text == "".join(WORDS[token] for token in found[: found.index(1) if 1 in found else None])
        assert is_ended is (1 in found)
        assert list(written) == found[: found.index(1) if 1 in found else None]


def test_texts_do_not_depend_on_those_beside_them():
    model = tiny_deepseek()
    together = write(model, PROMPTS, WORDS, ends=(1,), longest=10)
    assert [write(model, [prompt], WORDS, ends=(1,), longest=10)[0] for prompt in PROMPTS] == together


def test_a_guide_has_the_last_word():
    texts = write(tiny_deepseek(), PROMPTS, WORDS, ends=(1,), longest=5, guide=Only(6))
    assert texts == [("<6>" * 5, False, (6,) * 5)] * 4


def test_a_text_ends_with_the_word_that_ends_it():
    texts = write(tiny_deepseek(), PROMPTS, WORDS, ends=(6,), longest=5, guide=Only(6))
    assert texts == [("", True, ())] * 4


def test_words_without_text_are_written_and_not_seen():
    assert write(tiny_deepseek(), PROMPTS, WORDS, ends=(1,), longest=3, guide=Only(0)) == [("", False, (0, 0, 0))] * 4


def test_nothing_is_written_behind_no_prompt():
    assert write(tiny_deepseek(), [], WORDS, ends=(1,), longest=3) == []


def test_the_engine_writes_values_into_a_joined_model():
    """Whatever an untrained model would write behind the equals sign, the value stands there."""
    tokenizer = character_tokenizer()
    model = build_text(tokenizer, "formulas", BackboneConfig(hidden=32, experts=4, max_tokens=64)).eval()
    words = words_of(tokenizer)

    class Begun(Arithmetic):
        """Makes the model begin with an expression."""

        def allowed(self, prompt, text):
            begin = "12*12="
            if len(text) < len(begin):
                return np.array([word == begin[len(text)] for word in words])
            return super().allowed(prompt, text)

    ((text, _, _),) = write(model, [tokenizer("x?")["input_ids"]], words, ends=(1,), longest=10, guide=Begun(words))
    assert text.replace(" ", "").startswith("12*12=144")


@pytest.mark.parametrize("is_fixed", [False, True])
def test_texts_are_the_same_if_the_model_runs_on_behind_them(is_fixed):
    model, passes = tiny_deepseek(), []
    model.model.register_forward_hook(lambda *_: passes.append(1))
    texts = write(model, PROMPTS[:1], WORDS, ends=range(2, 40), longest=12, is_fixed=is_fixed)
    assert texts == write(tiny_deepseek(), PROMPTS[:1], WORDS, ends=range(2, 40), longest=12)
    assert len(passes) == 12 if is_fixed else len(passes) <= 12


def test_rows_of_the_embedding_that_are_no_words_are_never_written():
    model = tiny_deepseek()
    few = WORDS[:30]
    written = write(model, [[5, 9, 3]], few, ends=(1,), longest=12)
    assert written == write(model, [[5, 9, 3]], WORDS, ends=(1,), longest=12, guide=Only(*range(30)))


def test_an_empty_prompt_stands_for_a_text_s_beginning():
    assert write(tiny_deepseek(), [[]], WORDS, ends=(1,), longest=4) == write(
        tiny_deepseek(), [[1]], WORDS, ends=(1,), longest=4
    )


@pytest.mark.slow
def test_words_are_drawn_by_their_probability():
    """Beside the softmax of the logits, over seeds."""
    model, count, temperature = tiny_deepseek(), 600, 1.5
    with torch.no_grad():
        logits = model(torch.tensor([PROMPTS[0]])).logits[0, -1].double()
    want = torch.softmax(logits / temperature, 0)[2:].numpy()
    drawn = dict.fromkeys(WORDS[2:], 0)
    for seed in range(count):
        ((text, _, _),) = write(model, PROMPTS[:1], WORDS, ends=(1,), longest=1, temperature=temperature, seed=seed)
        if text:
            drawn[text] += 1
    share = np.array(list(drawn.values())) / count
    assert np.abs(share - want).max() < 4 * (want.max() * (1 - want.max()) / count) ** 0.5


def test_what_is_drawn_does_not_depend_on_the_texts_beside_it():
    model = tiny_deepseek()
    together = write(model, PROMPTS, WORDS, ends=(1,), longest=8, temperature=1.0, seed=7)
    alone = [write(model, [prompt], WORDS, ends=(1,), longest=8, temperature=1.0, seed=7)[0] for prompt in PROMPTS]
    assert alone == together
    assert write(model, PROMPTS, WORDS, ends=(1,), longest=8, temperature=1.0, seed=8) != together
    assert write(model, PROMPTS, WORDS, ends=(1,), longest=8, temperature=1e-4) == write(
        model, PROMPTS, WORDS, ends=(1,), longest=8
    )


def test_a_guide_has_the_last_word_at_any_temperature():
    model = tiny_deepseek()
    for temperature in (1e-40, 1e-4, 1.0, 1e4):
        (found,) = write(model, PROMPTS[:1], WORDS, ends=(1,), longest=4, guide=Only(6), temperature=temperature)
        assert found == ("<6>" * 4, False, (6,) * 4)
