"""Writes a model's text word by word, under a guide: the likeliest, or one drawn at random.

Prompts of one length are written together: nothing is padded, so what a text becomes does not depend on how long the
others are.

Legend: `R` rows (texts), `T` tokens, `V` words.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..structure.inputs import Prefixes, embedded
from .guide import Guide

_ROWS = 64  # texts written together


class Written(NamedTuple):
    """A text that a model has written behind a prompt."""

    text: str
    is_ended: bool  # False if it was cut
    ids: tuple[int, ...] = ()  # its tokens; several may make one letter of the text


@torch.no_grad()
def write(
    model: Any,
    prompts: Sequence[Sequence[int]],
    words: Sequence[str],
    *,
    ends: Collection[int],
    longest: int,
    guide: Guide | None = None,
    is_fixed: bool = False,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[Written]:
    """Writes behind each prompt the likeliest words that the guide allows, without those that end a text.

    An empty prompt stands for a text that begins with the first of `ends`. What is drawn at random follows from the
    seed and the prompt, not from the prompts beside it.

    Args:
        model: a causal language model, adapted or not.
        prompts: token ids, one or more each.
        words: text of each token id; "" for control words, which are written and not seen.
        ends: the words that end a text.
        longest: tokens of a text; what is not ended by then is cut.
        is_fixed: True to run the model `longest` times whatever is written: the number of passes does not tell of it.
        temperature: by which logits are divided before a word is drawn; 0 takes the likeliest.
    """
    texts = [Written("", False)] * len(prompts)
    for places in by_length(prompts):
        given = [prompts[place] or [next(iter(ends))] for place in places]
        written = _together(model, given, words, ends, longest, guide, is_fixed, temperature, seed)
        for place, text in zip(places, written, strict=True):
            texts[place] = text
    return texts


def by_length(texts: Sequence[Sequence[int]], *, tokens: int | None = None) -> Iterator[list[int]]:
    """Yields places of texts of one length, some at a time: nothing is padded, so none depends on those beside it.

    Args:
        tokens: most of them together, but one text at least; None: any 64 texts.
    """
    lengths: dict[int, list[int]] = {}
    for place, own in enumerate(texts):
        lengths.setdefault(len(own), []).append(place)
    for length, places in lengths.items():
        size = _ROWS if tokens is None else max(1, tokens // max(1, length))
        yield from (places[start : start + size] for start in range(0, len(places), size))


def _together(
    model: Any, prompts: Sequence[Sequence[int]], words: Sequence[str], ends: Collection[int], longest: int,
    guide: Guide | None, is_fixed: bool, temperature: float, seed: int,
) -> list[Written]:  # fmt: skip
    ids_RT = torch.tensor(prompts, dtype=torch.int64, device=next(model.parameters()).device)
    texts, is_ended = [""] * len(prompts), [False] * len(prompts)
    ids: list[list[int]] = [[] for _ in prompts]
    shown = ["".join(words[token] for token in prompt) for prompt in prompts]
    chance = [np.random.default_rng([seed, *prompt]) for prompt in prompts] if temperature else []
    cache, prefixes = None, Prefixes()
    for _ in range(longest):
        states = model.model(inputs_embeds=embedded(model, ids_RT, prefixes), cache=cache, use_cache=True)
        cache = states.cache
        logits_RV = model.lm_head(states.last_hidden_state[:, -1])
        logits_RV[:, len(words) :] = -torch.inf  # some tables of embeddings have more rows than there are words
        if guide is not None:
            _refuse(logits_RV, zip(shown, texts, strict=True), guide)
        if temperature:  # the largest of logits and Gumbel noise is a word drawn by its probability
            noise_RV = np.stack([rng.gumbel(size=logits_RV.shape[1]) for rng in chance])
            logits_RV = logits_RV + temperature * torch.from_numpy(noise_RV).to(logits_RV)
        next_R = logits_RV.argmax(-1)
        for row, word in enumerate(next_R.tolist()):
            is_ended[row] |= word in ends
            if not is_ended[row]:  # with `is_fixed` others are written behind, unseen
                texts[row] += words[word]
                ids[row].append(word)
        if all(is_ended) and not is_fixed:
            break
        ids_RT = next_R[:, None]
    return [Written(text, ended, tuple(own)) for text, ended, own in zip(texts, is_ended, ids, strict=True)]


def _refuse(logits_RV: Tensor, texts: Iterable[tuple[str, str]], guide: Guide) -> None:
    """Makes the words impossible that a guide does not allow behind (prompt, text)."""
    for row, text in enumerate(texts):
        mask = guide.allowed(*text)
        if mask is not None:
            logits_RV[row, : len(mask)].masked_fill_(~torch.from_numpy(mask).to(logits_RV.device), -torch.inf)
