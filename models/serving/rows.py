"""Texts that are written together, a token of each in one pass, and that begin and end at any step.

What a model remembers of the texts stands side by side in one cache, aligned at the end, so that one step serves texts
of any length; one that ends is cut out (Yu et al. 2022, Orca, OSDI). In the cache, a place before a text's beginning is
masked. Prompts of about one length are read together, padded behind their ends, which nothing before can see; a long
one is read in portions, between which the others are written on (Agrawal et al. 2024, Sarathi-Serve, OSDI).

A prefix that the service was told of, such as the instructions before each request of a tool, is read once for each
model and taken over by the prompts that begin with it. Nothing is kept of the prompts themselves: how soon an answer
comes tells nobody what others have asked.

Of models that remember anything else than keys and values of all tokens, such as a state, a window or blocks, each text
keeps a cache of its own, a step is one pass for each, and a prompt is read by itself and whole. By itself it is also
read by models that are told of a text's structure.

Legend: `R` rows (texts), `T` tokens, `D` model, `V` words.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from ..adapters.composing import Composition
from ..heads import word_logits
from ..structure.inputs import Prefixes, embedded, is_joined

PORTION = 256  # tokens of prompts that are read between two steps
_NARROW, _UNLIKE = 1024, 4  # tokens that any rows share; beyond, how many times as wide one may be
_LIKE = 8  # tokens by which prompts that are read together may differ, beside a factor of two
_WORTH = 8  # tokens of a prefix that are worth copying


@dataclass(slots=True, eq=False)
class Row:
    """A text that is being written."""

    weights: tuple[float, ...]  # of the adapters, one each
    last: int = 0  # token that was written last; the next step reads it
    length: int = 0  # tokens that the model has read
    prefixes: Prefixes = field(default_factory=list)  # where the text stands, of a model that is told


@dataclass(slots=True, eq=False)
class _Prefix:
    """A text that prompts may begin with, read by one of the models."""

    weights: tuple[float, ...]
    ids: tuple[int, ...]
    cache: Any


@dataclass(slots=True, eq=False)
class _Prompt:
    """A prompt that is being read."""

    row: Row
    ids: Sequence[int]
    begins_with: _Prefix | None
    cache: Any = None  # of the portions that were read
    is_alone: bool = False  # to be read by itself, as one that was read with it makes the model fail

    @property
    def left(self) -> int:
        """Number of tokens that are still to be read."""
        return len(self.ids) - self.row.length


@dataclass(slots=True, eq=False)
class _Group:
    """Rows whose memory stands in one cache."""

    rows: list[Row]
    cache: Any


class Rows:
    """The texts that one model writes now."""

    def __init__(self, composition: Composition) -> None:
        self._composition = composition
        self._reads_structure = is_joined(composition.adapted.model)
        self._shares: bool | None = None  # False if texts keep caches of their own; the first prompt shows it
        self._prefixes: list[_Prefix] = []
        self._prompts: list[_Prompt] = []
        self._groups: list[_Group] = []

    def __len__(self) -> int:
        return len(self._prompts) + sum(len(group.rows) for group in self._groups)

    def keep(self, weights: tuple[float, ...], ids: Sequence[int]) -> None:
        """Reads what prompts for the adapters of these weights may begin with; nothing if texts share no cache."""
        if len(ids) < _WORTH or self._reads_structure or self._shares is False:
            return
        prompt = _Prompt(Row(weights), ids, None)
        while prompt.left:
            self._read_portion(prompt)
        if self._shares:  # which the first of all prompts has shown
            self._prefixes.append(_Prefix(weights, tuple(ids), prompt.cache))

    def begin(self, row: Row, ids: Sequence[int]) -> int:
        """Takes a prompt of one token or more, which `read` reads; returns how many of them are known already."""
        known = {place: _common(each, row.weights, ids) for place, each in enumerate(self._prefixes)}
        best = max(known, key=lambda place: known[place], default=None)
        begins_with = None
        if best is not None and known[best] >= _WORTH:
            begins_with, row.length = self._prefixes[best], known[best]
        self._prompts.append(_Prompt(row, ids, begins_with))
        return row.length

    @property
    def due(self) -> list[Row]:
        """Texts whose prompts `read` reads next."""
        return [prompt.row for prompt in self._alike()]

    def read(self) -> list[tuple[Row, Tensor]]:
        """Reads a portion of what was begun; returns the logits [V] of what comes next in texts that are now whole."""
        some = self._alike()
        if not some:
            return []
        self._prompts = [each for each in self._prompts if each not in some]
        if len(some) == 1:
            (prompt,) = some
            states_RD = self._read_portion(prompt)
            if prompt.left:
                self._prompts.append(prompt)  # behind all others, so that a long one holds up none of them
                return []
            group = _Group([prompt.row], prompt.cache)
        else:
            lengths = [each.row.length for each in some]
            try:
                group, states_RD = self._read_together(some)
            except Exception:  # of one of them, which then fails by itself
                for each, length in zip(some, lengths, strict=True):
                    each.row.length, each.is_alone = length, True
                self._prompts = [*some, *self._prompts]
                return []
        logits_RV = self._logits(states_RD)
        joined = next((each for each in self._groups if _fit(each, group)), None)
        if joined is None:
            self._groups.append(group)
        else:
            self._join(joined, group)
        return list(zip((each.row for each in some), logits_RV, strict=True))

    def step(self) -> list[tuple[Row, Tensor]]:
        """Reads the last token of every text, and returns the logits [V] of what comes next in each."""
        found: list[tuple[Row, Tensor]] = []
        for group in self._groups:
            ids_RT = torch.tensor([[row.last] for row in group.rows])
            length_R = torch.tensor([row.length for row in group.rows])
            group.cache, states_RTD = self._pass(group.rows, ids_RT, group.cache, length_R)
            for row in group.rows:
                row.length += 1
            found += zip(group.rows, self._logits(states_RTD[:, -1]), strict=True)
        return found

    def end(self, rows: Sequence[Row]) -> None:
        """Takes texts out, with all that is known of them."""
        gone = {id(row) for row in rows}
        self._prompts = [each for each in self._prompts if id(each.row) not in gone]
        for group in self._groups:
            kept = [place for place, row in enumerate(group.rows) if id(row) not in gone]
            if len(kept) < len(group.rows):
                group.rows = [group.rows[place] for place in kept]
                if group.rows:
                    self._cut(group, kept)
        self._groups = [group for group in self._groups if group.rows]

    def clear(self) -> None:
        """Takes all texts out."""
        self._prompts, self._groups = [], []

    def _alike(self) -> list[_Prompt]:
        """The prompt that waits longest, and those that are read to their ends in one pass with it."""
        if not self._prompts:
            return []
        first, *others = self._prompts
        is_alone = first.is_alone or first.cache is not None or first.left > PORTION
        if not self._shares or self._reads_structure or is_alone:
            return [first]
        some, shortest, longest = [first], first.left, first.left
        for each in others:
            least, most = min(shortest, each.left), max(longest, each.left)
            is_like = most <= 2 * least + _LIKE and (len(some) + 1) * most <= PORTION
            same_start = each.begins_with is first.begins_with and each.row.length == first.row.length
            if each.cache is None and not each.is_alone and is_like and same_start:
                some.append(each)
                shortest, longest = least, most
        return some

    def _read_portion(self, prompt: _Prompt) -> Tensor:
        """Reads what is left of one prompt, or a portion of it; returns the last state [1, D]."""
        row, cache = prompt.row, prompt.cache
        if cache is None and prompt.begins_with is not None:
            cache = _beginning(prompt.begins_with.cache, row.length, 1)
        # Models with a state go on from it by one token at a time alone.
        ids = prompt.ids[row.length :][: PORTION if self._shares else None]
        prompt.cache, states_RTD = self._pass([row], torch.tensor([list(ids)]), cache)
        row.length += len(ids)
        self._shares = _can_share(prompt.cache)
        return states_RTD[:, -1]

    def _read_together(self, prompts: Sequence[_Prompt]) -> tuple[_Group, Tensor]:
        """Reads prompts of one beginning to their ends; returns them as a group, and their last states [R, D]."""
        start, begins_with = prompts[0].row.length, prompts[0].begins_with
        left, width = [each.left for each in prompts], max(each.left for each in prompts)
        ids_RT = torch.zeros(len(prompts), width, dtype=torch.long)
        for place, each in enumerate(prompts):
            ids_RT[place, : left[place]] = torch.tensor(list(each.ids[start:]))
        cache = None if begins_with is None else _beginning(begins_with.cache, start, len(prompts))
        rows = [each.row for each in prompts]
        # No mask: what stands behind a prompt's end is behind everything that is read of it.
        cache, states_RTD = self._pass(rows, ids_RT, cache)
        for each in prompts:
            each.row.length = len(each.ids)
        for layer in cache.layers:
            for part in ("keys", "values"):
                kept = getattr(layer, part)
                ended = [kept[place, :, : start + length] for place, length in enumerate(left)]
                setattr(layer, part, torch.stack([_filled(each, start + width) for each in ended]))
        last_R = torch.tensor(left, device=states_RTD.device) - 1
        return _Group(rows, cache), states_RTD[torch.arange(len(prompts)), last_R]

    @torch.inference_mode()
    def _pass(
        self, rows: Sequence[Row], ids_RT: Tensor, cache: Any, length_R: Tensor | None = None
    ) -> tuple[Any, Tensor]:
        """Reads tokens behind what a cache knows; returns the cache, and the last states [R, T, D].

        Args:
            length_R: how much the cache knows of each row, aligned at the end; None: of all rows the same.
        """
        model = self._composition.adapted.model
        ids_RT = ids_RT.to(next(model.parameters()).device)
        where: dict[str, Tensor] = {}
        if length_R is not None and len(rows) > 1:
            length_R = length_R.to(ids_RT.device)
            width = cache.get_seq_length() + 1
            first_R1 = (width - 1 - length_R)[:, None]
            mask = torch.arange(width, device=ids_RT.device) >= first_R1
            where = {"attention_mask": mask.long(), "position_ids": length_R[:, None]}
        prefixes: Prefixes = [prefix for row in rows for prefix in row.prefixes]
        with self._composition.answering(torch.tensor([row.weights for row in rows])):
            states = model.model(
                inputs_embeds=embedded(model, ids_RT, prefixes), cache=cache, use_cache=True, **where
            )  # fmt: skip
        for row, prefix in zip(rows, prefixes, strict=False):
            row.prefixes = [prefix]
        return states.cache, states.last_hidden_state

    @torch.inference_mode()
    def _logits(self, states_RD: Tensor) -> Tensor:
        return word_logits(self._composition.adapted.model, states_RD)

    @staticmethod
    @torch.inference_mode()
    def _join(group: _Group, other: _Group) -> None:
        for mine, new in zip(group.cache.layers, other.cache.layers, strict=True):
            for part in ("keys", "values"):
                both = getattr(mine, part), getattr(new, part)
                width = max(each.shape[2] for each in both)
                setattr(mine, part, torch.cat([_filled(each, width) for each in both]))
        group.rows += other.rows

    @staticmethod
    def _cut(group: _Group, kept: Sequence[int]) -> None:
        spare = group.cache.get_seq_length() - max(row.length for row in group.rows)
        for layer in group.cache.layers:
            for part in ("keys", "values"):
                setattr(layer, part, getattr(layer, part)[list(kept), :, spare:].contiguous())


def _common(prefix: _Prefix, weights: tuple[float, ...], ids: Sequence[int]) -> int:
    """How many tokens a prompt begins with that a prefix begins with, but for its last, which must be read."""
    if prefix.weights != weights:
        return 0
    most = min(len(prefix.ids), len(ids) - 1)
    return next((place for place in range(most) if prefix.ids[place] != ids[place]), most)


def _beginning(cache: Any, tokens: int, rows: int) -> Any:
    """A copy of what is known of the first tokens, for so many rows."""
    made = DynamicCache()
    for place, layer in enumerate(cache.layers):
        parts = [each[:, :, :tokens].expand(rows, -1, -1, -1) for each in (layer.keys, layer.values)]
        made.update(*parts, place)  # which copies
    return made


def _filled(kept: Tensor, width: int) -> Tensor:
    """Keys or values [.., T, numbers], filled up on the left."""
    return F.pad(kept, (0, 0, width - kept.shape[-2], 0))


def _fit(group: _Group, other: _Group) -> bool:
    """True if two caches can stand side by side, and neither makes the other many times as wide."""
    if not (_can_share(group.cache) and _can_share(other.cache)):
        return False
    narrow, wide = sorted((group.cache.get_seq_length(), other.cache.get_seq_length()))
    return bool(wide <= max(_NARROW, _UNLIKE * narrow))


def _can_share(cache: Any) -> bool:
    """True if a model remembers keys and values [R, heads, T, numbers] of all tokens, and nothing else."""
    return all(type(layer) is DynamicLayer for layer in cache.layers)
