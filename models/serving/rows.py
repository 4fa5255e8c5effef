"""Texts that are written together, a token of each in one pass, and that begin and end at any step.

What a model remembers of the texts stands side by side in one cache, aligned at the end, so that one step serves texts
of any length; a new text is read by itself and joins, one that ends is cut out (Yu et al. 2022, Orca, OSDI). Nothing
is padded on the left of a prompt: in the cache, a place before a text's beginning is masked.

Of models that remember anything else than keys and values of all tokens, such as a state, a window or blocks, each text
keeps a cache of its own, and a step is one pass for each.

Legend: `R` rows (texts), `T` tokens, `K` adapters, `V` words.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from ..adapters.composing import Composition
from ..heads import word_logits
from ..structure.inputs import Prefixes, embedded

_NARROW, _UNLIKE = 1024, 4  # tokens that any rows share; beyond, how many times as wide one may be


@dataclass(slots=True, eq=False)
class Row:
    """A text that is being written."""

    weights: tuple[float, ...]  # of the adapters, one each
    last: int = 0  # token that was written last; the next step reads it
    length: int = 0  # tokens that the model has read
    prefixes: Prefixes = field(default_factory=list)  # where the text stands, of a model that is told


@dataclass(slots=True, eq=False)
class _Group:
    """Rows whose memory stands in one cache."""

    rows: list[Row]
    cache: Any


class Rows:
    """The texts that one model writes now."""

    def __init__(self, composition: Composition) -> None:
        self._composition = composition
        self._groups: list[_Group] = []

    def __len__(self) -> int:
        return sum(len(group.rows) for group in self._groups)

    def begin(self, row: Row, ids: Sequence[int]) -> Tensor:
        """Reads a prompt of one token or more, and returns the logits [V] of what comes next; the text joins."""
        cache, logits_RV = self._pass([row], torch.tensor([list(ids)]), None)
        row.length = len(ids)
        alone = _Group([row], cache)
        joined = next((group for group in self._groups if _fit(group, alone)), None)
        if joined is None:
            self._groups.append(alone)
        else:
            self._join(joined, alone)
        return logits_RV[0]

    def step(self) -> list[tuple[Row, Tensor]]:
        """Reads the last token of every text, and returns the logits [V] of what comes next in each."""
        found: list[tuple[Row, Tensor]] = []
        for group in self._groups:
            ids_RT = torch.tensor([[row.last] for row in group.rows])
            group.cache, logits_RV = self._pass(group.rows, ids_RT, group.cache)
            for row in group.rows:
                row.length += 1
            found += zip(group.rows, logits_RV, strict=True)
        return found

    def end(self, rows: Sequence[Row]) -> None:
        """Takes texts out, with all that is known of them."""
        gone = {id(row) for row in rows}
        for group in self._groups:
            kept = [place for place, row in enumerate(group.rows) if id(row) not in gone]
            if len(kept) < len(group.rows):
                group.rows = [group.rows[place] for place in kept]
                if group.rows:
                    self._cut(group, kept)
        self._groups = [group for group in self._groups if group.rows]

    def clear(self) -> None:
        """Takes all texts out."""
        self._groups = []

    @torch.inference_mode()
    def _pass(self, rows: Sequence[Row], ids_RT: Tensor, cache: Any) -> tuple[Any, Tensor]:
        model = self._composition.adapted.model
        ids_RT = ids_RT.to(next(model.parameters()).device)
        where: dict[str, Tensor] = {}
        if cache is not None and len(rows) > 1:
            length_R = torch.tensor([row.length for row in rows], device=ids_RT.device)
            width = cache.get_seq_length() + 1
            first_R1 = (width - 1 - length_R)[:, None]
            mask = torch.arange(width, device=ids_RT.device) >= first_R1
            where = {"attention_mask": mask.long(), "position_ids": length_R[:, None]}
        prefixes: Prefixes = [prefix for row in rows for prefix in row.prefixes]
        with self._composition.answering(torch.tensor([row.weights for row in rows])):
            states = model.model(
                inputs_embeds=embedded(model, ids_RT, prefixes), cache=cache, use_cache=True, **where
            )  # fmt: skip
            logits_RV = word_logits(model, states.last_hidden_state[:, -1])
        for row, prefix in zip(rows, prefixes, strict=False):
            row.prefixes = [prefix]
        return states.cache, logits_RV

    @staticmethod
    def _join(group: _Group, alone: _Group) -> None:
        for mine, new in zip(group.cache.layers, alone.cache.layers, strict=True):
            for part in ("keys", "values"):
                both = getattr(mine, part), getattr(new, part)
                width = max(each.shape[2] for each in both)
                filled = [F.pad(each, (0, 0, width - each.shape[2], 0)) for each in both]
                setattr(mine, part, torch.cat(filled))
        group.rows += alone.rows

    @staticmethod
    def _cut(group: _Group, kept: Sequence[int]) -> None:
        spare = group.cache.get_seq_length() - max(row.length for row in group.rows)
        for layer in group.cache.layers:
            for part in ("keys", "values"):
                setattr(layer, part, getattr(layer, part)[list(kept), :, spare:].contiguous())


def _fit(group: _Group, alone: _Group) -> bool:
    """True if two caches can stand side by side, and neither makes the other many times as wide."""
    if not (_can_share(group.cache) and _can_share(alone.cache)):
        return False
    narrow, wide = sorted((group.cache.get_seq_length(), alone.cache.get_seq_length()))
    return bool(wide <= max(_NARROW, _UNLIKE * narrow))


def _can_share(cache: Any) -> bool:
    """True if a model remembers keys and values [R, heads, T, numbers] of all tokens, and nothing else."""
    return all(type(layer) is DynamicLayer for layer in cache.layers)
