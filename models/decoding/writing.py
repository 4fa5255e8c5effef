"""Writes a model's likeliest text word by word, under a guide.

Prompts of one length are written together: nothing is padded, so what a text becomes does not depend on how long the
others are.

Legend: `R` rows (texts), `T` tokens, `V` words.
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from ..structure.inputs import Prefixes, embedded
from .guide import Guide

_ROWS = 64  # texts written together


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
) -> list[str]:
    """Writes behind each prompt the likeliest words that the guide allows, without those that end a text.

    An empty prompt stands for a text that begins with the first of `ends`.

    Args:
        model: a causal language model, adapted or not.
        prompts: token ids, one or more each.
        words: text of each token id; "" for control words, which are written and not seen.
        ends: the words that end a text.
        longest: tokens of a text; what is not ended by then is cut.
        is_fixed: True to run the model `longest` times whatever is written: the number of passes does not tell of it.
    """
    by_length: dict[int, list[int]] = {}
    for place, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(place)
    texts = [""] * len(prompts)
    for places in by_length.values():
        for start in range(0, len(places), _ROWS):
            some = places[start : start + _ROWS]
            given = [prompts[place] or [next(iter(ends))] for place in some]
            written = _together(model, given, words, ends, longest, guide, is_fixed)
            for place, text in zip(some, written, strict=True):
                texts[place] = text
    return texts


def _together(
    model: Any, prompts: Sequence[Sequence[int]], words: Sequence[str], ends: Collection[int], longest: int,
    guide: Guide | None, is_fixed: bool,
) -> list[str]:  # fmt: skip
    ids_RT = torch.tensor(prompts, dtype=torch.int64, device=model.get_input_embeddings().weight.device)
    texts, is_ended = [""] * len(prompts), [False] * len(prompts)
    cache, prefixes = None, Prefixes()
    for _ in range(longest):
        states = model.model(inputs_embeds=embedded(model, ids_RT, prefixes), cache=cache, use_cache=True)
        cache = states.cache
        logits_RV = model.lm_head(states.last_hidden_state[:, -1])
        logits_RV[:, len(words) :] = -torch.inf  # some tables of embeddings have more rows than there are words
        next_R = _likeliest(logits_RV, texts, guide)
        for row, word in enumerate(next_R.tolist()):
            is_ended[row] |= word in ends
            texts[row] += "" if is_ended[row] else words[word]  # with `is_fixed` others are written behind, unseen
        if all(is_ended) and not is_fixed:
            break
        ids_RT = next_R[:, None]
    return texts


def _likeliest(logits_RV: Tensor, texts: Sequence[str], guide: Guide | None) -> Tensor:
    if guide is None:
        return logits_RV.argmax(-1)
    for row, text in enumerate(texts):
        mask = guide.allowed(text)
        if mask is not None:
            logits_RV[row, : len(mask)].masked_fill_(~torch.from_numpy(mask).to(logits_RV.device), -torch.inf)
    return logits_RV.argmax(-1)
