"""Writes a deployed model's texts, a word at a time, for prompts of one length together.

What a text becomes does not depend on how long the others are: nothing is padded.

Legend: `R` rows (texts), `T` tokens, `N` of a picture, `B` bytes that one carries, `F` tables of a structure reader,
`V` words.
"""

import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ..decoding.arithmetic import Arithmetic
from ..decoding.grammar import Grammar
from ..decoding.guide import Guide
from ..structure.readers import READERS, Prefix

Integers = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
_ROWS = 64  # texts that are written together


class Steps(Protocol):
    """A model that reads token by token."""

    def next(
        self, ids_RT: Integers, places_RTF: Integers | None, cache: Any, carried_RNB: Bytes | None = None
    ) -> tuple[npt.NDArray[np.float32], Any]:
        """Returns the logits [R, V] of the word behind these tokens, and what to remember of them.

        Args:
            places_RTF: where the tokens stand, of a model that has tables of structure.
            cache: what was remembered of the tokens before; None at the beginning.
            carried_RNB: at the beginning, of a model with an eye: what the tokens of pictures carry, before these.
        """


class Text(NamedTuple):
    """A text that was written."""

    text: str
    is_ended: bool  # False if it was cut


@dataclass(frozen=True, kw_only=True)
class Writer:
    """Writes behind prompts the likeliest words, or draws them."""

    model: Steps
    tokenizer: Any  # core of `tokenizers`
    words: int
    room: int  # tokens of a prompt and its answer together, without those of a picture
    ends: Collection[int]
    structure: str | None = None
    guide: str | None = None

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        longest: int,
        *,
        pictures: Sequence[Bytes] | None = None,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[Text]:
        """Writes behind each prompt until the model ends its text, or it has `longest` tokens.

        Args:
            pictures: what stands before each prompt, of a model with an eye, see `Reader.picture`.
            temperature: by which logits are divided before a word is drawn; 0 takes the likeliest.
            seed: of what is drawn, with the prompt and the picture.
        """
        texts = [Text("", False)] * len(prompts)
        given = [list(prompt) or [min(self.ends)] for prompt in prompts]
        marks = [()] * len(prompts) if pictures is None else [(zlib.crc32(each.tobytes()),) for each in pictures]
        for places in _by_length(given):
            some = [given[place] for place in places]
            seeds = [[seed, *marks[place], *given[place]] for place in places]
            chance = [np.random.default_rng(each) for each in seeds] if temperature else None
            before = None if pictures is None else np.stack([pictures[place] for place in places])
            written = self._together(some, before, min(longest, self.room - len(some[0])), temperature, chance)
            for place, text in zip(places, written, strict=True):
                texts[place] = text
        return texts

    def _together(
        self,
        prompts: list[list[int]],
        carried_RNB: Bytes | None,
        longest: int,
        temperature: float,
        chance: list[np.random.Generator] | None,
    ) -> list[Text]:
        written: list[list[int]] = [[] for _ in prompts]
        is_ended = [False] * len(prompts)
        prefixes = self.begin(len(prompts))
        guide = self._guide
        shown = [self._joined(prompt) for prompt in prompts] if guide is not None else []
        ids_RT, cache = np.array(prompts, dtype=np.int64), None
        for _ in range(longest):
            logits_RV, cache = self.model.next(ids_RT, self.places(ids_RT, prefixes), cache, carried_RNB)
            logits_RV = logits_RV[:, : self.words].astype(np.float64)
            if guide is not None:
                for row, own in enumerate(written):
                    mask = guide.allowed(shown[row], self._joined(own))
                    if mask is not None:
                        logits_RV[row, : len(mask)][~mask] = -np.inf
            if chance is not None:
                logits_RV += temperature * np.stack([rng.gumbel(size=logits_RV.shape[1]) for rng in chance])
            next_R = logits_RV.argmax(1)
            for row, word in enumerate(next_R.tolist()):
                is_ended[row] |= word in self.ends
                if not is_ended[row]:
                    written[row].append(word)
            if all(is_ended):
                break
            ids_RT, carried_RNB = next_R[:, None], None
        texts = (self._text(*both) for both in zip(prompts, written, strict=True))
        return [Text(*both) for both in zip(texts, is_ended, strict=True)]

    @cached_property
    def _texts(self) -> tuple[str, ...]:
        """The text of each token id; "" for control words."""
        return tuple(self.tokenizer.decode([token], skip_special_tokens=True) for token in range(self.words))

    @cached_property
    def _guide(self) -> Guide | None:
        if self.guide is None:
            return None
        return Arithmetic(self._texts) if self.guide == "arithmetic" else Grammar(self._texts, self.ends)

    def _text(self, prompt: Sequence[int], written: Sequence[int]) -> str:
        """The text of words behind a prompt; some tokenizers drop a blank at the beginning of what they are given."""
        if self.guide is not None or self.structure is not None:  # of kinds whose words add up to the text
            return self._joined(written)
        before = self.tokenizer.decode(list(prompt[-8:]), skip_special_tokens=True)
        both: str = self.tokenizer.decode([*prompt[-8:], *written], skip_special_tokens=True)
        return both[len(before) :]

    def _joined(self, ids: Sequence[int]) -> str:
        return "".join(self._texts[token] for token in ids)

    def places(self, ids_RT: Integers, prefixes: list[Prefix] | None = None) -> Integers | None:
        """Says where tokens stand in their texts, [R, T, F]; None for a model that is not told.

        Args:
            prefixes: texts before them, which grow; None: these are whole texts.
        """
        prefixes = self.begin(len(ids_RT)) if prefixes is None else prefixes
        if prefixes is None:
            return None
        return np.stack([self._fed(prefix, row.tolist()) for prefix, row in zip(prefixes, ids_RT, strict=True)])

    def begin(self, rows: int) -> list[Prefix] | None:
        """Begins so many texts, whose tokens a model with tables of structure is told the places of."""
        return None if self.structure is None else [READERS[self.structure].begin() for _ in range(rows)]

    def _fed(self, prefix: Prefix, tokens: Sequence[int]) -> Integers:
        """Places [T, F] of tokens among all ids of the tables; behind the last one where a token has no text."""
        assert self.structure is not None
        sizes = [*READERS[self.structure].sizes.values()]
        starts, nowhere = np.cumsum([0, *sizes])[:-1], np.full(len(sizes), sum(sizes), dtype=np.int64)
        texts = [self._texts[token] if token < self.words else "" for token in tokens]
        return np.stack([starts + prefix.feed(text) if text else nowhere for text in texts])


def _by_length(prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    lengths: dict[int, list[int]] = {}
    for place, prompt in enumerate(prompts):
        lengths.setdefault(len(prompt), []).append(place)
    for places in lengths.values():
        yield from (places[start : start + _ROWS] for start in range(0, len(places), _ROWS))
