"""Pretrains a small backbone that reads and writes text, from nothing, on public records of a study's own kind.

Where published checkpoints are too large, or know nothing of what a study is about, a public generator can teach a
small model what is common knowledge: the rules of mathematics, the syntax of a language. What sites alone know, they
teach it later. No private record or statistic is used.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from ..directories import new_directory
from ..errors import InvalidPretraining
from ..structure import inputs, sense
from ..structure.pictures import PublicPictures
from ..structure.readers import READERS
from ..structure.sounds import PublicSounds
from ..tokens import words_of
from . import checkpoints
from .balancing import balanced
from .ear_pretraining import EarPretrainingConfig, pretrain_ear
from .eye_pretraining import EyePretrainingConfig, pretrain_eye
from .families import named
from .family import BackboneConfig

# Token ids, and which of them are learned; of tokens that carry bytes, ids are int64 [T, 1 + C].
Row = tuple[Sequence[int] | npt.NDArray[np.int64], Sequence[bool]]
_WARM_UP = 50  # steps
_POOL = 128  # rows sorted by length at a time, so that little of a batch is padding
_LEAST_RATE = 0.03  # of the peak


@dataclass(frozen=True, kw_only=True, slots=True)
class TextPretrainingConfig:
    """Settings of the pretraining; equal settings give equal weights on one machine and one torch build."""

    tokens: int = 5_000_000  # read in all; rows come again when there are no more
    batch_tokens: int = 1500  # padding included
    lr: float = 3e-3  # peak of AdamW's, after 50 steps of warm-up and before linear decay
    bias_step: float = 0.02  # of the routers' balance biases, against every step's load; decays as lr does; 0: none
    balance_loss: float = 0.01  # factor of the loss of routers by softmax, which have no bias
    seed: int = 1  # of the order of rows
    eye: EyePretrainingConfig = field(default_factory=EyePretrainingConfig)  # of rows that begin with pictures
    ear: EarPretrainingConfig = field(default_factory=EarPretrainingConfig)  # of rows that begin with sounds

    def __post_init__(self) -> None:
        if min(self.tokens, self.batch_tokens) < 1 or not self.lr > 0:
            raise InvalidPretraining(f"need tokens, batch_tokens >= 1 and lr > 0, got {self}")
        if not (0 <= self.bias_step <= 1 and 0 <= self.balance_loss <= 1):
            raise InvalidPretraining(f"need bias_step and balance_loss in [0, 1], got {self}")


def pretrain_text(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerFast,
    directory: Path,
    *,
    structure: str | None = None,
    lessons: PublicPictures | PublicSounds | None = None,
    backbone: BackboneConfig | None = None,
    config: TextPretrainingConfig | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> str:
    """Builds, trains and writes a backbone that reads `tokenizer`; returns its hash.

    Runs in one thread, because the order of sums over threads would change the weights.

    Args:
        rows: public records, as a kind of record encodes them.
        structure: name of the reader whose tables lie beside the backbone, see `structure.readers`.
        lessons: that teach an eye or an ear, if rows begin with pictures or sounds; then its own layers stay as they
            are, and how its states become tokens is learned with the decoder.
        directory: must not exist; appears in one rename at the end.
        progress: called with (tokens read, tokens in total) after every step; of an eye or an ear, with cells or sounds
            first.

    Raises:
        InvalidPicture, InvalidSound: a file of `lessons` is none.
        InvalidPretraining: no row has anything to learn, a row is longer than the model reads, or no reader has the
            name.
    """
    config, backbone = config or TextPretrainingConfig(), backbone or BackboneConfig(hidden=96, max_tokens=512)
    rows = [row for row in rows if any(row[1][1:])]
    if not rows:
        raise InvalidPretraining("no public record has anything to learn: nothing could be trained")
    if (longest := max(len(ids) for ids, _ in rows)) > backbone.max_tokens:
        raise InvalidPretraining(f"a public record has {longest} tokens, and the model reads {backbone.max_tokens}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = build_text(tokenizer, structure, backbone)
        if lessons is not None:
            taught = _taught(lessons, backbone.hidden, config, progress)
            sense.join(model, taught)
            taught.encoder.requires_grad_(False)
        fit_text(model, rows, config, progress)
    finally:
        torch.set_num_threads(threads)
    with new_directory(directory) as partial:
        checkpoints.save_model(model, partial)
        tokenizer.save_pretrained(partial, save_jinja_files=False)
        if structure is not None:
            inputs.save(model, partial)
        if lessons is not None:
            sense.save(model, partial)
        return checkpoints.content_hash(partial)


def _taught(
    lessons: PublicPictures | PublicSounds,
    hidden: int,
    config: TextPretrainingConfig,
    progress: Callable[[int, int], None],
) -> sense.Sense:
    if isinstance(lessons, PublicSounds):
        return pretrain_ear(lessons, hidden, config.ear, progress)
    return pretrain_eye(lessons, hidden, config.eye, progress)


def build_text(tokenizer: PreTrainedTokenizerFast, structure: str | None, config: BackboneConfig) -> Any:
    """Builds an untrained model for a tokenizer's words, equal for equal arguments (torch's CPU generator)."""
    require_reader(structure)
    words = inputs.words_of(tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = named(config.family).build(len(words), config)
        if structure is not None:
            inputs.join(model, READERS[structure], words)
    return model


def require_reader(structure: str | None) -> None:
    """Raises `InvalidPretraining` unless there is a structure reader of this name, or none is wanted."""
    if structure is not None and structure not in READERS:
        raise InvalidPretraining(f"there is no structure reader {structure[:40]!r}; there are {', '.join(READERS)}")


def fit_text(
    model: Any, rows: Sequence[Row], config: TextPretrainingConfig, progress: Callable[[int, int], None]
) -> None:
    """Trains a model in place on the learned tokens of rows, by AdamW on batches of rows of similar length."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=0.02, betas=(0.9, 0.98))
    model.train()
    read = 0
    for step, (ids_RT, is_learned_RT) in enumerate(drawn(rows, config), start=1):
        is_token_RT = up_to_the_last(ids_RT)
        decay = max(_LEAST_RATE, 1 - read / config.tokens)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * min(1.0, step / _WARM_UP) * decay
        with balanced(model, is_token_RT, config.bias_step * decay) as balance_loss:
            states_RTD = model.model(input_ids=ids_RT, use_cache=False).last_hidden_state
            is_foretold = is_learned_RT[:, 1:]
            logits_NV = model.lm_head(states_RTD[:, :-1][is_foretold])
            loss = F.cross_entropy(logits_NV, words_of(ids_RT)[:, 1:][is_foretold])
            if (uneven := balance_loss()) is not None:
                loss = loss + config.balance_loss * uneven
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
        read += int(is_token_RT.sum())
        progress(min(read, config.tokens), config.tokens)
        if read >= config.tokens:
            break
    model.eval()


def drawn(rows: Sequence[Row], config: TextPretrainingConfig) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Draws (ids, is_learned), both [rows, longest], without end: all rows in a new order again and again.

    Raises:
        InvalidPretraining: there are no rows, of which nothing could ever be drawn.
    """
    if not rows:
        raise InvalidPretraining("there are no rows to draw from")
    rng = np.random.default_rng(config.seed)
    while True:
        order = rng.permutation(len(rows))
        for start in range(0, len(order), _POOL):
            pool = sorted((rows[place] for place in order[start : start + _POOL]), key=lambda row: len(row[0]))
            batches = list(_cut(pool, config.batch_tokens))
            for place in rng.permutation(len(batches)):
                yield _padded(batches[place])


def once(rows: Sequence[Row], batch_tokens: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields (ids, is_learned), both [rows, longest], of each row once, the shortest first."""
    for batch in _cut(sorted(rows, key=lambda row: len(row[0])), batch_tokens):
        yield _padded(batch)


def _cut(pool: Sequence[Row], batch_tokens: int) -> Iterator[list[Row]]:
    batch: list[Row] = []
    for row in pool:  # by length, so that the newest is the longest
        if batch and len(row[0]) * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    yield batch


def _padded(batch: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(ids) for ids, _ in batch)
    ids_RT = torch.zeros(len(batch), longest, *np.shape(batch[0][0])[1:], dtype=torch.int64)
    is_learned_RT = torch.zeros(len(batch), longest, dtype=torch.bool)
    for place, (ids, is_learned) in enumerate(batch):
        ids_RT[place, : len(ids)] = torch.as_tensor(ids)
        is_learned_RT[place, : len(ids)] = torch.tensor(is_learned)
    return ids_RT, is_learned_RT


def up_to_the_last(ids_RT: torch.Tensor) -> torch.Tensor:
    """bool [R, T]: all but the zeros behind a row's last other token, which are padding."""
    return (words_of(ids_RT) > 0).flip(1).cummax(1).values.flip(1)
