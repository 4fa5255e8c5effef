"""Trains linear models under a study's own privacy, and makes inputs for them that need no backbone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.sparse import issparse
from scipy.special import softmax

from ...client_node.data import Records
from ...client_node.study import StudyDraft
from ...models.heads.objectives import BinaryLabel, Objective, OneClass, PointOnScale, SeveralLabels, SeveralTasks
from ...privacy.accounting import Mode, site_noise

_EOS = 1  # of every schema's vocabulary
Inputs = Any  # [rows, width], an array of numpy or a sparse one of scipy
HASHED = {"words": (2048, "word", (1, 1)), "ngrams": (8192, "char_wb", (3, 5))}  # width, analyzer, lengths


def private_linear(
    draft: StudyDraft,
    inputs: Sequence[Inputs],
    targets: Sequence[np.ndarray],
    test: Inputs,
    *,
    lr: float,
    scale_bits: int,
    rng: np.random.Generator,
    units: Sequence[np.ndarray] | None = None,
    objective: Objective | None = None,
) -> np.ndarray:
    """Scores `test` by a linear model with the study's rounds, sampling, clip_norm, noise and momentum.

    It learns what a head would: by a logistic regression, a softmax regression, a logistic one for each label, least
    squares, or one of these for each task. All weights of a unit are clipped together. The noise is a plain Gaussian:
    this is a baseline, and nothing of it is released. Adam, averaging, adaptive clipping and several local steps are
    not repeated.

    Args:
        inputs: [rows, width] of each site.
        targets: [rows] of each site, as the objective takes them.
        units: [rows] of each site, any numbers: the unit of each record. Without it each record is a unit of its own.
        objective: what is learned; None: a label.

    Returns:
        [rows] or [rows, K], what a head with this objective computes.
    """
    if units is None:
        units = [np.arange(len(own)) for own in targets]
    privacy, objective = draft.privacy, objective or BinaryLabel()
    summed = _sum_of_one if objective.outputs is None else _sum_of_several
    noise_std = 2.0**-scale_bits * noise_of(draft, privacy.mode, scale_bits) / privacy.clip_unit  # in clip units
    weight = velocity = np.zeros((test.shape[1], *filter(None, (objective.outputs,))))
    for _ in range(draft.rounds.rounds):
        total = np.zeros_like(weight)
        for x, y, unit_of_row in zip(inputs, targets, units, strict=True):
            rows, starts = _drawn(unit_of_row, privacy.sample_rate, draft.data.max_records_per_unit, rng)
            if len(rows):
                drawn = _dense(x[rows])
                total += summed(drawn, _errors(objective, drawn @ weight, y[rows]), starts, privacy.clip_norm)
            total += rng.normal(0, noise_std, weight.shape)
        velocity = draft.optimizer.momentum * velocity + total / draft.rounds.batch_units
        weight = weight - lr * velocity
    scores: np.ndarray = test @ weight
    return scores


def _errors(objective: Objective, outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Computes the slope of each record's loss in its outputs, of the same shape."""
    errors: np.ndarray
    match objective:
        case OneClass():
            errors = softmax(outputs, axis=1)
            errors[np.arange(len(targets)), targets] -= 1
        case PointOnScale():
            errors = outputs - targets
        case SeveralTasks(tasks):
            apart = objective.apart(torch.from_numpy(targets))
            own = objective.parts(torch.from_numpy(outputs))
            slopes = [
                task.weight * is_told.numpy()[:, None] * _columns(_errors(task.objective, part.numpy(), target.numpy()))
                for task, part, (target, is_told) in zip(tasks, own, apart, strict=True)
            ]
            errors = np.concatenate(slopes, axis=1)
        case SeveralLabels():
            errors = 1 / (1 + np.exp(-outputs)) - (targets[:, None] >> np.arange(objective.outputs) & 1)
        case _:
            errors = 1 / (1 + np.exp(-outputs)) - targets
    return errors


def _columns(errors: np.ndarray) -> np.ndarray:
    return errors if errors.ndim == 2 else errors[:, None]


def _sum_of_one(x: np.ndarray, errors: np.ndarray, starts: np.ndarray, clip_norm: float) -> np.ndarray:
    """Sums the clipped gradients of units, [width], in clip units; a unit's is the mean over its records."""
    sizes = np.diff(starts, append=len(x))
    gradients = np.add.reduceat(errors[:, None] * x, starts) / sizes[:, None]
    norms = np.linalg.norm(gradients, axis=1)
    total: np.ndarray = (1 / np.maximum(norms, clip_norm)) @ gradients
    return total


def _sum_of_several(x: np.ndarray, errors: np.ndarray, starts: np.ndarray, clip_norm: float) -> np.ndarray:
    """The same of K outputs, [width, K]; no unit's gradient is ever written down whole."""
    sizes = np.diff(starts, append=len(x))
    squares = np.einsum("ri,ri->r", x, x) * np.einsum("rk,rk->r", errors, errors)  # of units with one record
    norms = np.sqrt(squares[starts])
    for unit in np.flatnonzero(sizes > 1):
        own = slice(starts[unit], starts[unit] + sizes[unit])
        norms[unit] = np.linalg.norm(x[own].T @ errors[own]) / sizes[unit]
    share = np.repeat(1 / (sizes * np.maximum(norms, clip_norm)), sizes)
    total: np.ndarray = x.T @ (errors * share[:, None])
    return total


def _dense(x: Inputs) -> np.ndarray:
    dense: np.ndarray = x.toarray() if issparse(x) else x
    return dense


def _drawn(
    unit_of_row: np.ndarray, sample_rate: float, most: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draws a Poisson sample of units; returns their rows, at most `most` of each, and where each unit begins."""
    by_chance = rng.permutation(len(unit_of_row))
    names, of_row = np.unique(unit_of_row[by_chance], return_inverse=True)
    order = np.argsort(of_row, kind="stable")
    rows, of_row = by_chance[order], of_row[order]
    place = np.arange(len(rows)) - np.searchsorted(of_row, of_row)  # within the unit
    kept = (rng.random(len(names)) < sample_rate)[of_row] & (place < most)
    return rows[kept], np.flatnonzero(np.diff(of_row[kept], prepend=-1))


def noise_of(draft: StudyDraft, mode: Mode, scale_bits: int) -> int:
    """Computes the std of one site's integer noise in `mode`, in ring units."""
    privacy = draft.privacy
    return site_noise(
        privacy.noise_multiplier,
        privacy.sensitivity,
        len(draft.participants.sites),
        privacy.spared_sites,
        privacy.collusion,
        scale_bits,
        mode,
    )


def word_ids(draft: StudyDraft, records: Records) -> np.ndarray:
    """Encodes records of a schema as token ids, [rows, longest], without a backbone."""
    data = draft.data
    reader = data.kind.reader(data.terms, draft.record_schema(), max_tokens=data.max_tokens)
    return reader.examples(records.columns, records.labels)[0]


def word_inputs(draft: StudyDraft, ids: np.ndarray) -> np.ndarray:
    """Counts the words of each record, with a constant in padding's place: [rows, words], unit length.

    Of histories, the words of the last visit, and beside them the mean counts of all visits: [rows, 2 words].
    """
    schema = draft.record_schema()
    counts = _counts(ids, len(schema.words()))
    if schema.visits > 1:
        ends = ids == _EOS
        earlier = np.cumsum(ends[:, ::-1], axis=1)[:, ::-1] > 1  # at or before the end of the last visit but one
        mean = counts / ends.sum(axis=1, keepdims=True)
        counts = np.hstack([_counts(np.where(earlier, 0, ids), len(schema.words())), mean])
    counts[:, 0] = 1.0
    inputs: np.ndarray = counts / np.linalg.norm(counts, axis=1, keepdims=True)
    return inputs


def _counts(ids: np.ndarray, words: int) -> np.ndarray:
    """[rows, words], without padding."""
    counts = np.zeros((len(ids), words))
    np.add.at(counts, (np.arange(len(ids))[:, None], ids), 1.0)
    counts[:, 0] = 0.0
    return counts


def hashed_inputs(texts: Sequence[str], reading: str) -> Inputs:
    """Counts the words of texts, or groups of 3 to 5 letters, in hashed columns; a constant comes first.

    Returns:
        [rows, 2048] for reading "words" and [rows, 8192] for "ngrams", sparse, each row of unit length.
    """
    from scipy.sparse import csr_array, hstack
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.preprocessing import normalize

    width, analyzer, lengths = HASHED[reading]
    counter = HashingVectorizer(n_features=width - 1, analyzer=analyzer, ngram_range=lengths, norm=None)
    counts = counter.transform(texts)
    return csr_array(normalize(hstack([np.ones((len(texts), 1)), counts], format="csr")))
