"""Trains the encoder of an eye or an ear as a classifier of public things, before a decoder learns to use it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InvalidPretraining
from ..structure.sense import Sense

_WARM_UP = 50  # steps
_MOST_WORDS = 4096


@dataclass(frozen=True, slots=True)
class Schedule:
    """Length and speed of an encoder's training."""

    total: int  # things seen in all; they come again when there are no more
    batch: int
    lr: float  # peak of AdamW's, after 50 steps of warm-up and before linear decay


def numbered(words: Sequence[str], things: str, sense: str) -> tuple[npt.NDArray[np.int64], int]:
    """Numbers what things show or say; returns the number of each, and how many there are.

    Raises:
        InvalidPretraining: all are the same, or too many different.
    """
    known = sorted(set(words))
    if not 2 <= len(known) <= _MOST_WORDS:
        raise InvalidPretraining(
            f"public {things} {len(known)} different things; an {sense} learns 2 to {_MOST_WORDS:,}"
        )
    place = {word: number for number, word in enumerate(known)}
    return np.array([place[word] for word in words], dtype=np.int64), len(known)


def fit_encoder(
    sense: Sense,
    classifier: nn.Linear,
    labels: npt.NDArray[np.int64],
    schedule: Schedule,
    read: Callable[[npt.NDArray[np.int64]], Tensor],
    rng: np.random.Generator,
    progress: Callable[[int, int], None],
) -> None:
    """Trains the encoder of a sense together with a classifier, which is thrown away then.

    Args:
        labels: of each thing.
        read: gives the states of the things of these numbers, [batch, inputs of the classifier].
        progress: called with (things seen, things in total) after every step.
    """
    parameters = [each for each in (*sense.encoder.parameters(), *classifier.parameters()) if each.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=schedule.lr, weight_decay=0.05)
    seen = 0
    sense.train()
    while seen < schedule.total:
        for group in optimizer.param_groups:
            warm = min(1.0, (seen / schedule.batch + 1) / _WARM_UP)
            group["lr"] = schedule.lr * warm * max(0.01, 1 - seen / schedule.total)
        chosen = rng.integers(0, len(labels), schedule.batch)
        loss = F.cross_entropy(classifier(read(chosen)), torch.from_numpy(labels[chosen]))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        seen += schedule.batch
        progress(min(seen, schedule.total), schedule.total)
    sense.eval()
