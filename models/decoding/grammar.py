"""Lets no word come that breaks a program: brackets and strings that match, blocks that are indented, an end that fits.

What is checked is what `structure.constructs` follows, sign by sign, so an expression may still be none of the
language. Constrained decoding of code is PICARD (Scholak et al. 2021, EMNLP) and SynCode (Ugare et al. 2024,
arXiv:2403.01632).
"""

import re
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from ..structure.code import SPLIT, parts_of
from ..structure.constructs import BREAKING, LANGUAGES, Constructs
from .guide import Guide

_KNOWN = 4096  # texts whose constructs are kept, so that a word more is read and not all before
_LETTERS = re.compile("[A-Za-z0-9_]+")


class Grammar(Guide):
    """Allows the words that may go on a program, and its end where nothing is open."""

    def __init__(self, words: Sequence[str], ends: Collection[int]) -> None:
        """Takes the text of every word of the vocabulary, and the words that end a text."""
        self._known: dict[tuple[str, str], Constructs | None] = {}
        self._longest = max(map(len, words), default=1)
        self._size, self._ends = len(words), sorted(ends)
        shapes: dict[str, list[int]] = {}  # words by what stands for all of them: letters do not matter
        for number, word in enumerate(words):
            if word and SPLIT not in word:  # control words say nothing, so they may not come
                shapes.setdefault(word if "\n" in word else _LETTERS.sub("a", word), []).append(number)
        self._alike = {shape: np.array(alike) for shape, alike in shapes.items()}
        self._breaking = {shape: alike for shape, alike in self._alike.items() if BREAKING & {*shape}}
        self._free = np.zeros(self._size, dtype=np.bool_)
        self._free[[number for shape in self._alike.keys() - self._breaking for number in shapes[shape]]] = True

    def allowed(self, prompt: str, text: str) -> npt.NDArray[np.bool_] | None:
        """Returns the words that break nothing; None if every word would, or the prompt names no language."""
        here = self._after(prompt, text)
        if here is None:
            return None
        mask = np.zeros(self._size, dtype=np.bool_) if here.is_indenting else self._free.copy()
        for shape, alike in (self._alike if here.is_indenting else self._breaking).items():
            mask[alike] = here.may_grow_by(shape)
        mask[self._ends] = self._may_end(prompt, here)
        return mask if mask.any() else None

    def _may_end(self, prompt: str, here: Constructs) -> bool:
        """True if a text may end; of a gap, if the lines behind it, which the prompt shows first, may follow."""
        whole = here.copy()
        return whole.feed(parts_of(prompt).behind) and whole.may_end()

    def _after(self, prompt: str, text: str) -> Constructs | None:
        """Follows a text from where it was a word ago, if that is known; None if the prompt names no language."""
        if len(self._known) > _KNOWN:
            self._known.clear()
        if (prompt, text) not in self._known:
            self._known[prompt, text] = self._followed(prompt, text)
        return self._known[prompt, text]

    def _followed(self, prompt: str, text: str) -> Constructs | None:
        for end in range(len(text) - 1, max(-1, len(text) - self._longest - 1), -1):
            if (prompt, text[:end]) in self._known:
                begun = self._known[prompt, text[:end]]
                here = begun and begun.copy()
                break
        else:
            language, before, _ = parts_of(prompt)
            here, end = Constructs(language) if language in LANGUAGES else None, 0
            if here is not None:
                here.feed(before)
        if here is not None:
            here.feed(text[end:])
        return here
