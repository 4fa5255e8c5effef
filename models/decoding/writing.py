"""Writes a model's likeliest text word by word, under a guide.

Prompts of one length are written together: nothing is padded, so what a text becomes does not depend on how long the
others are.

Legend: `R` rows (texts), `T` tokens, `V` words.
"""

from collections.abc import Sequence
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
    end: int,
    longest: int,
    guide: Guide | None = None,
) -> list[str]:
    """Writes behind each prompt the likeliest words that the guide allows, without the one that ends a text.

    Args:
        model: a causal language model, adapted or not.
        prompts: token ids, one or more each.
        words: text of each token id; "" for control words, which are written and not seen.
        end: the word that ends a text.
        longest: tokens of a text; what is not ended by then is cut.
    """
    by_length: dict[int, list[int]] = {}
    for place, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(place)
    texts = [""] * len(prompts)
    for places in by_length.values():
        for start in range(0, len(places), _ROWS):
            some = places[start : start + _ROWS]
            written = _together(model, [prompts[place] for place in some], words, end, longest, guide)
            for place, text in zip(some, written, strict=True):
                texts[place] = text
    return texts


def _together(
    model: Any, prompts: Sequence[Sequence[int]], words: Sequence[str], end: int, longest: int, guide: Guide | None
) -> list[str]:
    ids_RT = torch.tensor(prompts, dtype=torch.int64, device=model.get_input_embeddings().weight.device)
    texts, is_ended = [""] * len(prompts), [False] * len(prompts)
    cache, prefixes = None, Prefixes()
    for _ in range(longest):
        states = model.model(inputs_embeds=embedded(model, ids_RT, prefixes), cache=cache, use_cache=True)
        cache = states.cache
        logits_RV = model.lm_head(states.last_hidden_state[:, -1])
        next_R = _likeliest(logits_RV, texts, guide)
        for row, word in enumerate(next_R.tolist()):
            is_ended[row] |= word == end
            texts[row] += "" if is_ended[row] else words[word]
        if all(is_ended):
            break
        ids_RT = next_R[:, None]
    return texts


def _likeliest(logits_RV: Tensor, texts: Sequence[str], guide: Guide | None) -> Tensor:
    for row, text in enumerate(texts if guide is not None else ()):
        mask = guide.allowed(text) if guide is not None else None
        if mask is not None:
            refused = torch.ones(logits_RV.shape[1], dtype=torch.bool)
            refused[: len(mask)] = ~torch.from_numpy(mask)
            logits_RV[row, refused.to(logits_RV.device)] = -torch.inf
    return logits_RV.argmax(-1)
