"""Kinds of record that the model's own output matrix completes: what a kind of free text shares with another.

A record is token ids and a mask of those that are learned: one run of them, or several if an assistant has several
turns. The loss is the mean over all of them, perplexity too; a record counts as exact by its last run alone, which is
what the model will be asked for.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt

from ..errors import InvalidSchema
from .kind import Examples, Judged, RecordKind

if TYPE_CHECKING:
    import torch

    from ..evaluation.metrics import Estimate

_TEXTS = 16  # records scored at a time


class Completions(RecordKind):
    """The common part of all kinds of free text: its head, its judge and its metrics."""

    head = "lm"
    reads = "text"

    def schema(self, terms: Any) -> NoReturn:
        """Raises `InvalidSchema`: a tokenizer reads free text."""
        raise InvalidSchema(
            "records of free text have no schema; import a backbone that reads text, with its tokenizer, or build one "
            "of public formulas or code: --public"
        )

    def objective(self, terms: Any) -> None:
        """Returns None: words are learned, by no head."""

    def judged(self, terms: Any) -> Judged:
        """Returns what is counted: completions that are written word for word."""
        return "completions"

    def judge(self, terms: Any, reader: Any, adapted: Any, ids: np.ndarray, target: Any) -> tuple[float, float]:
        """Returns True if greedy decoding writes the last completion, and the logit of its tokens' mean likelihood."""
        import torch

        from ..heads import foretell

        device = next(iter(adapted.trained.values())).device
        last = last_runs(np.asarray(target, dtype=np.bool_)[None])
        length = int(np.flatnonzero(last).max(initial=0)) + 1
        rows = torch.from_numpy(ids[None, :length]), torch.from_numpy(last[:, :length])
        foretold = foretell(adapted.model, *(each.to(device) for each in rows))
        loss = foretold.by_record().double()
        return float(foretold.is_exact()), float(-loss - torch.log(-torch.expm1(-loss)))

    def evaluate(self, terms: Any, reader: Any, adapted: Any, tables: Sequence[Examples]) -> dict[str, Any]:
        """Computes exact match of the last completions, and perplexity of all by unit."""
        from ..evaluation.metrics import exact_match

        scores = [text_scores(adapted, examples) for examples in tables]
        exact = np.concatenate([is_exact for is_exact, _, _ in scores]).tolist()
        by_unit = perplexity_by_unit(
            [(examples.units, *sums) for examples, (_, *sums) in zip(tables, scores, strict=True)]
        )
        return {
            "records": len(exact),
            "exact_match": asdict(exact_match(exact)),
            "perplexity": asdict(by_unit),
        }


def perplexity_by_unit(tables: Sequence[tuple[np.ndarray, ...]]) -> "Estimate":
    """Computes perplexity with an interval for other units.

    Args:
        tables: of each, (units, losses, tokens), each [rows], see `text_scores`; a unit of one is none of another.
    """
    from ..evaluation.metrics import perplexity

    by_unit: dict[tuple[int, int], np.ndarray] = {}  # loss and tokens of all texts of a unit
    for table, (units, losses, tokens) in enumerate(tables):
        for unit, *sums in zip(units, losses, tokens, strict=True):
            key = (table, int(unit))
            by_unit[key] = by_unit.get(key, np.zeros(2)) + sums
    sums_of_units = np.array(list(by_unit.values())).reshape(-1, 2)
    return perplexity(sums_of_units[:, 0], sums_of_units[:, 1])


def text_scores(
    adapted: Any, examples: Examples
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Scores texts: whether the last completion is written word for word, and loss and number of all learned tokens.

    Returns:
        (is_exact, losses, tokens), each [rows]; losses in nats, summed over the tokens of a record.
    """
    import torch

    from ..heads import foretell

    device = next(iter(adapted.trained.values())).device
    exact: list[bool] = []
    losses: list[float] = []
    tokens: list[int] = []
    for start in range(0, len(examples.ids), _TEXTS):
        here = slice(start, start + _TEXTS)
        is_learned = np.asarray(examples.targets[here], dtype=np.bool_)
        length = int(np.flatnonzero(is_learned.any(0)).max(initial=0)) + 1
        ids, learned = torch.from_numpy(examples.ids[here, :length]), torch.from_numpy(is_learned[:, :length])
        with torch.no_grad():
            found = foretell(adapted.model, ids.to(device), learned.to(device))
        last = torch.from_numpy(last_runs(is_learned[:, :length])).to(device)
        exact += _only(found, last[:, 1:][learned.to(device)[:, 1:]]).is_exact().tolist()
        losses += (found.by_record() * found.tokens_R).double().tolist()
        tokens += found.tokens_R.tolist()
    return np.array(exact, dtype=np.bool_), np.array(losses, dtype=np.float64), np.array(tokens, dtype=np.int64)


def last_runs(is_learned: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Keeps of each row [rows, tokens] the last run of learned tokens alone."""
    backward = is_learned[:, ::-1].astype(np.int64)
    ends = np.diff(backward, axis=1, prepend=0) == 1  # of runs, seen from the end of the row
    is_last = (np.cumsum(ends, axis=1) == 1) & (backward == 1)
    found: npt.NDArray[np.bool_] = is_last[:, ::-1].copy()  # torch takes no view from behind
    return found


def _only(foretold: Any, is_kept_N: "torch.Tensor") -> Any:
    """Leaves out the tokens that are not kept."""
    row_N = foretold.row_N[is_kept_N]
    return replace(
        foretold,
        row_N=row_N,
        losses_N=foretold.losses_N[is_kept_N],
        is_first_choice_N=foretold.is_first_choice_N[is_kept_N],
        tokens_R=foretold.tokens_R.new_zeros(len(foretold.tokens_R)).index_add(0, row_N, row_N.new_ones(len(row_N))),
    )
