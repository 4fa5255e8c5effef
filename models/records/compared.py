"""Completions that a study may compare as mathematics: what a model writes is right if it equals the right formula."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..errors import AnswerRefused
from .completions import Completions, last_runs
from .kind import Examples, Judged

Equality = Literal["mathematics"]
EQUALITY = "completions are right if they equal the right one as formulas in x; left out, word for word"


class Comparison:
    """Lets a model write the last completions of records, and compares them with the records'."""

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        """Keeps `tokenizer`, of transformers, whose words are made when they are asked for.

        Args:
            max_tokens: that a model may write.
        """
        self._tokenizer, self._max_tokens = tokenizer, max_tokens

    @cached_property
    def _texts(self) -> tuple[str, ...]:
        """The text of each token id."""
        from ..structure.inputs import words_of

        return words_of(self._tokenizer)

    @cached_property
    def _control(self) -> frozenset[int]:
        """The ids of words without text."""
        return frozenset(number for number, word in enumerate(self._texts) if not word)

    def are_equal(
        self, model: Any, ids: np.ndarray, is_learned: npt.NDArray[np.bool_], *, is_fixed: bool = False
    ) -> list[bool]:
        """Lets a model write the last completion of each record, and compares it with the record's as formulas in x.

        A control word ends what is written. A completion that cannot be compared is never right.

        Args:
            is_fixed: True to run the model equally often for every record, see `decoding.writing`.
        """
        from ..decoding.writing import write
        from ..evaluation.answers import is_equivalent

        words, last = self._texts, last_runs(is_learned)
        shown = [row[: int(mask.argmax())].tolist() for row, mask in zip(ids, last, strict=True)]
        told = [
            "".join(words[token] for token in row[mask].tolist()).strip() for row, mask in zip(ids, last, strict=True)
        ]
        written = write(model, shown, words, ends=self._control, longest=self._max_tokens, is_fixed=is_fixed)
        found = []
        for each, truth in zip(written, told, strict=True):
            try:
                found.append(is_equivalent(each.text.strip(), truth))
            except AnswerRefused:
                found.append(False)
        return found


class ComparedCompletions(Completions):
    """Kinds of free text whose terms say how completions are compared, in `equality`.

    Their readers have a `Comparison` as `comparison`.
    """

    def judged(self, terms: Any) -> Judged:
        """Returns what is counted: completions that are the same word for word, or answers equal as mathematics."""
        return "completions" if terms.equality is None else "answers"

    def judge(self, terms: Any, reader: Any, adapted: Any, ids: np.ndarray, target: Any) -> tuple[float, float]:
        """Returns 1 if the completion is right by the study's equality, and the logit of its mean likelihood."""
        label, score = super().judge(terms, reader, adapted, ids, target)
        if terms.equality is not None:
            is_learned = np.asarray(target, dtype=np.bool_)
            (is_right,) = reader.comparison.are_equal(adapted.model, ids[None], is_learned[None], is_fixed=True)
            label = float(is_right)
        return label, score

    def evaluate(self, terms: Any, reader: Any, adapted: Any, tables: Sequence[Examples]) -> dict[str, Any]:
        """Computes exact match and perplexity, and right answers where they are compared as mathematics."""
        from ..evaluation.metrics import exact_match

        found = super().evaluate(terms, reader, adapted, tables)
        if terms.equality is None:
            return found
        right = [
            is_right
            for examples in tables
            for is_right in reader.comparison.are_equal(
                adapted.model, examples.ids, np.asarray(examples.targets, dtype=np.bool_)
            )
        ]
        return {"records": found.pop("records"), "accuracy": asdict(exact_match(right)), **found}
