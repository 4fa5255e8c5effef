"""Teaches a cut model what the whole one computes, on public tokens: knowledge distillation.

Of records the pooled states are learned, which are all that a head sees of a backbone: a linear map of the cut model's
is brought near to the whole one's, whitened (as hints in FitNets, Romero et al. 2015, arXiv:1412.6550). Of text the
next word is learned, half from the text and half from what the whole model says of all words (Hinton, Vinyals & Dean
2015, arXiv:1503.02531). Of a head the outputs are learned (Ba & Caruana 2014, arXiv:1312.6184).

No private record or statistic is used. What has been released stays as private as it was: this is post-processing.

Legend: `R` rows, `T` tokens, `D` model width, `N` tokens that are learned, `V` words, `K` outputs of a head.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.balancing import balanced
from ..backbones.pretraining import MixedRecords
from ..backbones.text_pretraining import Row, TextPretrainingConfig, drawn, up_to_the_last
from ..errors import InvalidCompression
from ..heads import PooledHead, pooled, word_logits

_WARM_UP = 30  # steps
_LEAST_RATE = 0.03  # of the peak
_SEEN = 4096  # records from which a map or a head is computed before the first step
_RIDGE = 0.01  # added to the mean square of every input of that map, which is 1
_HEAD_RIDGE = 1e-3  # the same of a head, whose inputs have length 1


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillingConfig:
    """Settings of the distillation; equal settings give equal weights on one machine and one torch build."""

    steps: int = 1500
    batch: int = 64  # records a step
    batch_tokens: int = 1500  # of text a step, padding included
    lr: float = 3e-3  # peak of AdamW's, after 30 steps of warm-up and before linear decay
    temperature: float = 2.0  # by which both models' logits of words are divided
    of_text: float = 0.5  # share of the text's own next words in the loss; the rest is the whole model's
    bias_step: float = 0.02  # of the routers' balance biases, as in pretraining
    balance_loss: float = 0.01  # factor of the loss of routers by softmax, which have no bias
    seed: int = 2

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.batch_tokens) < 1 or not 0 < self.lr < math.inf:
            raise InvalidCompression(f"need steps, batch, batch_tokens >= 1 and a finite lr > 0, got {self}")
        if not (self.temperature > 0 and 0 <= self.of_text <= 1):
            raise InvalidCompression(f"need temperature > 0 and of_text in [0, 1], got {self}")


class Lesson(Protocol):
    """One thing to learn: public batches, and how far a model is from what it should compute of them."""

    def batch(self) -> tuple[Tensor, Tensor]:
        """Draws token ids int64 [R, T], padded on the right with 0, and bool [R, T], which of them are learned."""

    def loss(self, ids_RT: Tensor, is_learned_RT: Tensor) -> Tensor:
        """Computes the loss of a batch, with gradients."""


class PooledStates:
    """Pooled states of synthetic records, by a linear map that is learned beside the model and then thrown away."""

    def __init__(self, model: Any, teacher: Any, lens: PooledHead, source: MixedRecords, batch: int) -> None:
        """Computes the map that is best for the model as it stands.

        Args:
            lens: a head on the whole model, for its moments.
        """
        self._model, self._teacher, self._lens, self._source, self._batch = model, teacher, lens, source, batch
        given, want = self._pairs()
        self._center, self._std = given.mean(0), given.std(0).clamp_min(1e-6)
        inputs = F.pad((given - self._center) / self._std, (0, 1), value=1.0)
        found = ridge(inputs, want, _RIDGE * len(inputs))
        self.map = nn.Linear(given.shape[1], want.shape[1])
        with torch.no_grad():
            self.map.weight.copy_(found[:-1].T)
            self.map.bias.copy_(found[-1])

    def batch(self) -> tuple[Tensor, Tensor]:
        """Draws synthetic records; all of their tokens count."""
        ids_RT, _ = self._source.batch(self._batch)
        return ids_RT, ids_RT > 0

    def loss(self, ids_RT: Tensor, is_learned_RT: Tensor) -> Tensor:
        """Computes the mean squared error of the whole model's whitened states."""
        del is_learned_RT
        mapped = self.map((pooled(self._model, ids_RT) - self._center) / self._std)
        return F.mse_loss(mapped, self._wanted(ids_RT))

    @torch.no_grad()
    def lost(self) -> float:
        """Computes the share of the whole model's variance that the best linear map of the model's states misses.

        The map is found on half of some thousand new records, and judged on the others.
        """
        given, want = self._pairs()
        inputs = F.pad((given - given.mean(0)) / given.std(0).clamp_min(1e-6), (0, 1), value=1.0)
        half = len(inputs) // 2
        found = ridge(inputs[:half], want[:half], 1e-6 * half)
        missed = (want[half:] - inputs[half:] @ found).square().sum()
        return float(missed / want[half:].var(0).sum() / (len(want) - half))

    @torch.no_grad()
    def _wanted(self, ids_RT: Tensor) -> Tensor:
        return (pooled(self._teacher, ids_RT) - self._lens.center) @ self._lens.whiten

    @torch.no_grad()
    def _pairs(self) -> tuple[Tensor, Tensor]:
        given, want = [], []
        for _ in range(_SEEN // 256):
            ids_RT, _ = self._source.batch(256)
            given.append(pooled(self._model, ids_RT))
            want.append(self._wanted(ids_RT))
        return torch.cat(given), torch.cat(want)


class Words:
    """The next words of public texts."""

    def __init__(self, model: Any, teacher: Any, rows: Sequence[Row], config: DistillingConfig) -> None:
        self._model, self._teacher, self._config = model, teacher, config
        order = TextPretrainingConfig(batch_tokens=config.batch_tokens, seed=config.seed)
        self._batches = drawn(rows, order)

    def batch(self) -> tuple[Tensor, Tensor]:
        """Draws texts of similar length."""
        return next(self._batches)

    def loss(self, ids_RT: Tensor, is_learned_RT: Tensor) -> Tensor:
        """Computes cross-entropy of the texts' words, and divergence from the whole model's at a temperature."""
        config = self._config
        logits_NV, target_N = foretold(self._model, ids_RT, is_learned_RT)
        with torch.no_grad():
            wanted_NV, _ = foretold(self._teacher, ids_RT, is_learned_RT)
        told_NV, said_NV = (F.log_softmax(each / config.temperature, dim=-1) for each in (logits_NV, wanted_NV))
        apart = F.kl_div(told_NV, said_NV, log_target=True, reduction="batchmean")
        of_text = F.cross_entropy(logits_NV, target_N)
        loss: Tensor = config.of_text * of_text + (1 - config.of_text) * config.temperature**2 * apart
        return loss


class Outputs:
    """Outputs of a head for synthetic records."""

    def __init__(self, model: Any, teacher: Any, source: MixedRecords, batch: int) -> None:
        """Sets the head of `model` to the best one for the model as it stands.

        Args:
            model: an adapted model with a head.
            teacher: the same of the whole backbone.
        """
        self._model, self._teacher, self._source, self._batch = model, teacher, source, batch
        inputs, want = [], []
        with torch.no_grad():
            for _ in range(_SEEN // 256):
                ids_RT, _ = source.batch(256)
                inputs.append(model.head.inputs(pooled(model.model, ids_RT)))
                want.append(teacher.classify(ids_RT))
            given, wanted = torch.cat(inputs), torch.cat(want)
            found = ridge(given, wanted.view(len(wanted), -1), _HEAD_RIDGE * len(given) / given.shape[1])
            model.head.weight.copy_(found.T.view_as(model.head.weight))
        self._spread = wanted.std(0).clamp_min(1e-6)  # [K]: an output that hardly moves counts as much as others

    def batch(self) -> tuple[Tensor, Tensor]:
        """Draws synthetic records; all of their tokens count."""
        ids_RT, _ = self._source.batch(self._batch)
        return ids_RT, ids_RT > 0

    def loss(self, ids_RT: Tensor, is_learned_RT: Tensor) -> Tensor:
        """Computes the mean squared error of the outputs, each over its variance."""
        del is_learned_RT
        with torch.no_grad():
            wanted = self._teacher.classify(ids_RT)
        apart: Tensor = (self._model.classify(ids_RT) - wanted) / self._spread
        return apart.square().mean()


def learnable(rows: Sequence[Row], model: Any, least: int) -> list[Row]:
    """Returns the texts that have something to learn.

    Raises:
        InvalidCompression: there are fewer than `least`, or one has a word, or is of a length, that the model does not
            read.
    """
    found = [row for row in rows if any(row[1][1:])]
    if len(found) < least:
        raise InvalidCompression(
            f"{len(found)} public texts have something to learn; need {least} or more, better thousands"
        )
    largest, words = max(max(ids) for ids, _ in found), int(model.config.vocab_size)
    if largest >= words:
        raise InvalidCompression(f"a public text has token {largest}, and the model reads {words} words from 0")
    longest, most = max(len(ids) for ids, _ in found), int(model.config.max_position_embeddings)
    if longest > most:
        raise InvalidCompression(f"a public text has {longest} tokens, and the model reads {most}")
    return found


def ridge(inputs: Tensor, wanted: Tensor, penalty: float) -> Tensor:
    """Solves a linear regression with a penalty on squared weights, in float64; returns the weights [inputs, outputs].

    A regression whose inputs depend on each other is solved by the penalty alone.
    """
    given, target = inputs.double(), wanted.double()
    products = given.T @ given
    products.diagonal().add_(penalty)
    found: Tensor = torch.linalg.solve(products, given.T @ target)
    return found.float()


def foretold(model: Any, ids_RT: Tensor, is_learned_RT: Tensor) -> tuple[Tensor, Tensor]:
    """Computes logits [N, V] of the words that are learned, and these words [N]."""
    last_RTD = model.model(input_ids=ids_RT, use_cache=False).last_hidden_state
    is_foretold = is_learned_RT[:, 1:]
    return word_logits(model, last_RTD[:, :-1][is_foretold]), ids_RT[:, 1:][is_foretold]


@torch.no_grad()
def loss_of_words(model: Any, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Computes the mean loss of the learned words of texts, in nats."""
    total, words = 0.0, 0
    for ids_RT, is_learned_RT in batches:
        logits_NV, target_N = foretold(model, ids_RT, is_learned_RT)
        total += float(F.cross_entropy(logits_NV, target_N, reduction="sum"))
        words += len(target_N)
    return total / words


def learn(
    lesson: Lesson,
    parameters: Iterable[nn.Parameter],
    config: DistillingConfig,
    progress: Callable[[int, int], None],
    *,
    routed: nn.Module | None = None,
) -> None:
    """Trains parameters in place by AdamW.

    Args:
        progress: called with (steps done, steps in total) after every step.
        routed: a model whose routed experts are kept in use; None leaves the routers to the loss.

    Raises:
        InvalidCompression: what was trained is no longer finite.
    """
    trained = list(parameters)
    optimizer = torch.optim.AdamW(trained, lr=config.lr, weight_decay=0.01, betas=(0.9, 0.98))
    for step in range(config.steps):
        decay = max(_LEAST_RATE, 1 - step / config.steps)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * min(1.0, (step + 1) / _WARM_UP) * decay
        ids_RT, is_learned_RT = lesson.batch()
        keeping: AbstractContextManager[Callable[[], Tensor | None]] = nullcontext(lambda: None)
        if routed is not None:
            keeping = balanced(routed, up_to_the_last(ids_RT), config.bias_step * decay)
        with keeping as balance_loss:
            loss = lesson.loss(ids_RT, is_learned_RT)
            if (uneven := balance_loss()) is not None:
                loss = loss + config.balance_loss * uneven
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
        progress(step + 1, config.steps)
    if not all(bool(parameter.isfinite().all()) for parameter in trained):
        raise InvalidCompression(
            f"the training has diverged: numbers are no longer finite after {config.steps} steps at rate "
            f"{config.lr:g}; nothing was written"
        )
