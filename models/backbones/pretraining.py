"""Pretrains a backbone from public knowledge alone: on random records of a schema and random questions about them.

No private record or statistic is used. The questions are sums of thresholds, bumps and two-sided shapes over
a few fields and over pairs of fields, so that the pooled state must carry many functions of a record. Learning a real
label later then needs few and small updates, which a small epsilon can pay for.

Routed experts are kept in use (`balancing`): an expert that no token is sent to would take noise in its adapter and
give nothing for it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ..errors import InvalidPretraining
from ..heads import pooled
from ..records import RecordSchema
from ..records.fields import AnyField, NumericField, united
from .balancing import balanced
from .family import BackboneConfig
from .loading import build, save

# Share of a question's terms that are products of two shapes, mostly over two fields. What one field says alone, a
# linear head reads off its embedding; only what two say together has to be learned by the layers.
_PAIRS = 0.85
_VISITS = 8  # most visits of a synthetic record
_SETTLING = 100  # batches after the last step in which the routers' biases move alone


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainingConfig:
    """Settings of the pretraining; equal settings give equal weights on one machine and one torch build."""

    steps: int = 800
    batch: int = 64  # records a step
    questions: int = 1024
    lr: float = 3e-3  # peak of AdamW's, after 30 steps of warm-up and before linear decay
    moment_records: int = 8192  # synthetic records behind the published moments
    shrink: float = 0.1  # added to the covariance, as a share of its mean eigenvalue
    bias_step: float = 0.02  # of the routers' balance biases, against every step's load; decays as lr does; 0: none
    balance_loss: float = 0.01  # factor of the loss of routers by softmax, which have no bias
    seed: int = 1

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.questions) < 1 or self.moment_records < 2:
            raise InvalidPretraining(f"need steps, batch, questions >= 1 and moment_records >= 2, got {self}")
        if not (self.lr > 0 and self.shrink > 0):  # NaN fails too
            raise InvalidPretraining(f"need lr > 0 and shrink > 0, got {self.lr} and {self.shrink}")
        if not (0 <= self.bias_step <= 1 and 0 <= self.balance_loss <= 1):
            raise InvalidPretraining(
                f"need bias_step and balance_loss in [0, 1], got {self.bias_step} and {self.balance_loss}"
            )


def pretrain(
    schema: RecordSchema | Sequence[RecordSchema],
    directory: Path,
    *,
    backbone: BackboneConfig | None = None,
    config: PretrainingConfig | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> str:
    """Builds, trains and writes a backbone for records of a schema, or of several; returns its hash.

    Runs in one thread, because the order of sums over threads would change the weights.

    Args:
        schema: public description of the records; or one of each study, which the backbone's schema unites. Then each
            synthetic record is of one study.
        directory: must not exist; appears in one rename at the end.
        progress: called with (steps done, steps in total) after every step.

    Raises:
        InvalidSchema: the schemas cannot be united, see `records.fields.united`.
    """
    config = config or PretrainingConfig()
    parts = (schema,) if isinstance(schema, RecordSchema) else tuple(schema)
    whole = united(parts)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = build(whole, backbone or BackboneConfig())
        source = MixedRecords(parts, whole, questions=config.questions, seed=config.seed)
        fit(model, source, config, progress or (lambda done, total: None))
        center, whiten = pooled_moments(model, source, config)
    finally:
        torch.set_num_threads(threads)
    return save(model, whole, center, whiten, directory, parts)


class SyntheticRecords:
    """Random records of a schema and the answers to fixed random questions about them.

    A question scores a record by a sum over one to four terms, most of them the product of two shapes, mostly over two
    fields, the others a shape over one; its answer is yes for 10 to 50 % of the records. Of a record of several visits
    it asks about the last one, about the mean of all, or about how far the last is from that.

    Args:
        whole: schema of the backbone, of which `schema` is a part, and whose tokens are drawn. None: it is `schema`.
    """

    def __init__(self, schema: RecordSchema, whole: RecordSchema | None = None, *, questions: int, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self.questions = questions
        fields = schema.fields()
        sizes = [len(field.words()) for field in fields]
        place = {word: token for token, word in enumerate((whole or schema).words())}
        starts = [place[field.words()[0]] for field in fields]
        self._numeric = len(schema.numeric)
        # Token of every code of a field, as `encode` would give it; a flag has the codes unset (no token) and set.
        self._tokens = [
            np.array([0, start]) if size == 1 else start + np.arange(size)
            for start, size in zip(starts, sizes, strict=True)
        ]
        self._is_flag = [size == 1 for size in sizes]
        self._visits = min(schema.visits, _VISITS)
        self._shapes = self._draw_shapes(fields)
        self._draw_questions(questions)

    def batch(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Draws `size` new records: token ids int64 [size, tokens] and answers float32 [size, questions] of 0 and 1."""
        codes, visits = self._records(size)
        tokens = np.stack([table[codes[..., j]] for j, table in enumerate(self._tokens)], axis=-1)
        if self._visits > 1:
            ends = (np.arange(self._visits) < visits[:, None])[..., None]
            tokens = np.concatenate([tokens * ends, ends], axis=-1)  # 1 is <eos>
        tokens = tokens.reshape(size, -1)
        order = np.argsort(tokens == 0, axis=1, kind="stable")  # own tokens first, padding behind
        tokens = np.take_along_axis(tokens, order, axis=1)[:, : max(1, int((tokens > 0).sum(1).max()))]
        tokens[(tokens == 0).all(axis=1), 0] = 1  # an empty record is <eos>
        answers = self._answers(codes, visits) > self._thresholds
        return torch.from_numpy(tokens), torch.from_numpy(answers.astype(np.float32))

    def _draw_shapes(self, fields: tuple[AnyField, ...], per_field: int = 24) -> list[np.ndarray]:
        """Draws for every field a table [codes, per_field] of values in [0, 1]."""
        rng, tables = self._rng, []
        for field, tokens in zip(fields, self._tokens, strict=True):
            table = rng.uniform(0, 1, size=(len(tokens), per_field))
            if isinstance(field, NumericField):
                bins = len(tokens) - 1
                x = np.arange(bins)[:, None]
                middle = rng.uniform(0, bins, size=per_field)
                width = rng.uniform(0.7, max(1.0, bins / 4), size=per_field)
                above, near = x > middle, np.exp(-(((x - middle) / width) ** 2))
                outside = np.abs(x - middle) > width + bins / 8
                table[1:] = np.choose(rng.integers(3, size=per_field), [above * 1.0, near, outside * 1.0])
            tables.append(table)
        return tables

    def _draw_questions(self, questions: int) -> None:
        rng, columns = self._rng, sum(table.shape[1] for table in self._shapes)
        question = np.repeat(np.arange(questions), rng.integers(1, 5, size=questions))  # of every term
        terms = len(question)
        weight = rng.uniform(0.5, 1.5, size=terms) * rng.choice([-1, 1], size=terms)
        first, second = rng.integers(columns, size=(2, terms))
        is_pair = rng.random(terms) < _PAIRS
        self._weights = rng.uniform(0, 1e-6, size=(columns, questions))  # almost no weight: breaks ties of scores
        np.add.at(self._weights, (first[~is_pair], question[~is_pair]), weight[~is_pair])
        self._pairs = first[is_pair], second[is_pair], weight[is_pair]  # by question
        about = rng.integers(3, size=questions) if self._visits > 1 else np.zeros(questions, dtype=np.int64)
        self._of_last, self._of_mean = np.array([1, 0, 1])[about], np.array([0, 1, -1])[about]
        self._with_pairs, self._pair_starts = np.unique(question[is_pair], return_index=True)
        scores = self._answers(*self._records(4096 // self._visits))
        shares = rng.uniform(0.1, 0.5, size=questions)
        self._thresholds = np.array([np.quantile(scores[:, q], 1 - share) for q, share in enumerate(shares)])

    def _answers(self, codes: np.ndarray, visits: np.ndarray) -> np.ndarray:
        """Scores records [size, visits, fields] by every question, each of as many visits as it has."""
        if self._visits == 1:
            return self._scores(codes[:, 0])
        size, most, fields = codes.shape
        scores = self._scores(codes.reshape(-1, fields)).reshape(size, most, -1)
        last = scores[np.arange(size), visits - 1]
        scores[np.arange(most) >= visits[:, None]] = 0
        return np.asarray(self._of_last * last + self._of_mean * scores.sum(axis=1) / visits[:, None])

    def _records(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Draws records [size, visits, fields], and how many visits each has; much of a visit stays in the next."""
        if self._visits == 1:
            return self._codes(size)[:, None], np.ones(size, dtype=np.int64)
        codes = np.stack([self._codes(size) for _ in range(self._visits)], axis=1)
        stays = self._rng.random(codes.shape) < self._rng.uniform(0.2, 0.9, size=codes.shape[2])
        for visit in range(1, self._visits):
            codes[:, visit] = np.where(stays[:, visit], codes[:, visit - 1], codes[:, visit])
        return codes, self._rng.integers(1, self._visits + 1, size=size)

    def _scores(self, codes: np.ndarray) -> np.ndarray:
        shapes = np.concatenate([table[codes[:, j]] for j, table in enumerate(self._shapes)], axis=1)
        scores: np.ndarray = shapes @ self._weights
        # A question has a few of thousands of pairs, so they are added up and not multiplied by a matrix of zeros.
        first, second, weight = self._pairs
        by_column = np.ascontiguousarray(shapes.T)
        products = by_column[first] * by_column[second] * weight[:, None]
        if len(products):
            scores[:, self._with_pairs] += np.add.reduceat(products, self._pair_starts, axis=0).T
        return scores

    def _codes(self, size: int) -> np.ndarray:
        """Draws correlated numbers with uneven bins, uniform categories and rare flags, anew for every batch."""
        rng, n = self._rng, self._numeric
        codes = np.zeros((size, len(self._tokens)), dtype=np.int64)
        latent = rng.normal(size=(size, 3)) @ rng.normal(size=(3, n)) * 0.5 + rng.normal(size=(size, n))
        ranks = (latent.argsort(axis=0).argsort(axis=0) + 0.5) / size
        for j, tokens in enumerate(self._tokens):
            if self._is_flag[j]:
                codes[:, j] = rng.random(size) < rng.uniform(0.05, 0.5) ** 2
            elif j < n:
                codes[:, j] = 1 + (ranks[:, j] * (len(tokens) - 1)).astype(np.int64)
                codes[rng.random(size) < rng.uniform() ** 2, j] = 0
            else:
                codes[:, j] = rng.integers(len(tokens), size=size)
        return codes


class MixedRecords:
    """Random records of several studies, each with the words of one of them alone, and the answers to its questions.

    Args:
        parts: schemas of the studies, each of which is as likely; records of one alone are its `SyntheticRecords`.
        whole: schema of the backbone, of which each is a part, and whose tokens are drawn.
        questions: of each study.
    """

    def __init__(self, parts: Sequence[RecordSchema], whole: RecordSchema, *, questions: int, seed: int) -> None:
        self._sources = [
            SyntheticRecords(part, whole, questions=questions, seed=seed + place) for place, part in enumerate(parts)
        ]
        self._rng = np.random.default_rng(seed + len(parts))
        self.questions = len(parts) * questions

    def batch(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Draws `size` new records: token ids int64 [size, tokens] and answers float32 [size, questions].

        Answers are 0 and 1, and NaN to the questions of other studies.
        """
        # Every study draws a whole batch and keeps a part of it: few records by themselves would fill few bins.
        drawn = [source.batch(size) for source in self._sources]
        study = torch.from_numpy(self._rng.integers(len(drawn), size=size))
        ids = torch.zeros(size, max(own.shape[1] for own, _ in drawn), dtype=torch.int64)
        answers = torch.full((size, len(drawn), self.questions // len(drawn)), math.nan)
        for place, (own_ids, own_answers) in enumerate(drawn):
            rows = study == place
            ids[rows, : own_ids.shape[1]] = own_ids[rows]
            answers[rows, place] = own_answers[rows]
        return ids, answers.flatten(1)


def fit(
    model: Any,
    source: SyntheticRecords | MixedRecords,
    config: PretrainingConfig,
    progress: Callable[[int, int], None],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Trains `model` in place; returns the linear classifiers of the questions, [2D, questions] and [questions].

    They are of no use to a study. With them the loss on further records can be measured.
    """
    answer = nn.Parameter(torch.zeros(2 * model.config.hidden_size, source.questions))
    bias = nn.Parameter(torch.zeros(source.questions))
    parameters = [*model.parameters(), answer, bias]
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=0.01, betas=(0.9, 0.98))
    model.train()
    for step in range(config.steps):
        decay = max(0.03, 1 - step / config.steps)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * min(1.0, (step + 1) / 30) * decay
        ids, answers = source.batch(config.batch)
        asked = ~answers.isnan()
        with balanced(model, ids > 0, config.bias_step * decay) as balance_loss:
            logits = pooled(model, ids) @ answer + bias
            loss = F.binary_cross_entropy_with_logits(logits[asked], answers[asked])
            if (uneven := balance_loss()) is not None:
                loss = loss + config.balance_loss * uneven
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
        progress(step + 1, config.steps)
    model.eval()
    _settle(model, source, config)
    return answer.detach(), bias.detach()


@torch.no_grad()
def _settle(model: Any, source: SyntheticRecords | MixedRecords, config: PretrainingConfig) -> None:
    """Moves the routers' biases alone, by steps that fall to 0.

    Scores move fast in training and late biases slowly, so that an expert may be left behind by the last step.
    """
    for step in range(_SETTLING if config.bias_step else 0):
        ids, _ = source.batch(config.batch)
        with balanced(model, ids > 0, config.bias_step * (1 - step / _SETTLING)):
            pooled(model, ids)


def pooled_moments(model: Any, source: MixedRecords, config: PretrainingConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes centre [2D] and whitening [2D, 2D] of pooled records: (cov + shrink * mean eigenvalue)^-1/2."""
    states = []
    with torch.no_grad():
        for start in range(0, config.moment_records, 512):
            ids, _ = source.batch(min(512, config.moment_records - start))
            states.append(pooled(model, ids).double())
    all_states = torch.cat(states)
    values, vectors = torch.linalg.eigh(all_states.T.cov())
    whiten = (vectors / (values + config.shrink * values.mean()).sqrt()) @ vectors.T
    return all_states.mean(0).float(), whiten.float()
