"""Teaches an eye from nothing to tell what cells of public pictures show, before a decoder learns to use it.

A classifier on the squares of a cell is trained with the eye and then thrown away. Cells are shifted by some pixels at
random, as no scan lies quite straight. No private picture is used.

Legend: `C` cells, `H`, `W` pixels of a cell.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from ..errors import InvalidPretraining
from ..structure.eye import Eye, EyeConfig, scaled
from ..structure.pictures import PublicPictures, decode

_WARM_UP = 50  # steps
_SHIFT = 2  # pixels
_MOST_WORDS = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class EyePretrainingConfig:
    """Settings of the eye's pretraining; equal settings give equal weights on one machine and one torch build."""

    cells: int = 160_000  # seen in all; they come again when there are no more
    batch: int = 128
    lr: float = 2e-3  # peak of AdamW's, after 50 steps of warm-up and before linear decay
    seed: int = 1  # of the initial weights, the order of cells, and their shifts

    def __post_init__(self) -> None:
        if min(self.cells, self.batch) < 1 or not self.lr > 0:
            raise InvalidPretraining(f"need cells, batch >= 1 and lr > 0, got {self}")


def pretrain_eye(
    public: PublicPictures,
    hidden: int,
    config: EyePretrainingConfig,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Eye:
    """Builds and trains an eye for decoders of width `hidden`.

    Args:
        progress: called with (cells seen, cells in total) after every step.

    Raises:
        InvalidPicture: a file is no picture of the layout's size.
        InvalidPretraining: there are no pictures, one has another number of words than cells, or all show the same.
    """
    layout, words = public.layout, [text.split() for text in public.shown]
    if not words or any(len(own) != layout.cells for own in words):
        raise InvalidPretraining(
            f"what public pictures show must be told in {layout.cells} words for each, one for a cell; one or more are "
            "told otherwise"
        )
    known = sorted({word for own in words for word in own})
    if not 2 <= len(known) <= _MOST_WORDS:
        raise InvalidPretraining(f"public cells show {len(known)} different things; an eye learns 2 to {_MOST_WORDS:,}")
    place = {word: number for number, word in enumerate(known)}
    labels = np.array([place[word] for own in words for word in own], dtype=np.int64)
    cells_CHW = layout.cut(decode(public.files, layout.size))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        eye = Eye(EyeConfig(size=layout.size, cell=layout.cell), hidden)
        _fit(eye, cells_CHW, labels, len(known), config, progress)
    return eye


def _fit(
    eye: Eye,
    cells_CHW: npt.NDArray[np.uint8],
    labels_C: npt.NDArray[np.int64],
    classes: int,
    config: EyePretrainingConfig,
    progress: Callable[[int, int], None],
) -> None:
    squares = eye.layout.tokens // eye.layout.cells
    classifier = nn.Linear(squares * eye.to_words.in_features, classes)
    parameters = [*eye.swin.parameters(), *classifier.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=0.05)
    rng, seen = np.random.default_rng(config.seed), 0
    eye.train()
    while seen < config.cells:
        for group in optimizer.param_groups:
            warm = min(1.0, (seen / config.batch + 1) / _WARM_UP)
            group["lr"] = config.lr * warm * max(0.01, 1 - seen / config.cells)
        chosen = rng.integers(0, len(cells_CHW), config.batch)
        shift = tuple(int(pixels) for pixels in rng.integers(-_SHIFT, _SHIFT + 1, 2))
        shifted = torch.from_numpy(np.roll(cells_CHW[chosen], shift, (1, 2)))
        logits = classifier(eye.squares(scaled(shifted, torch.float32)).flatten(1))
        loss = F.cross_entropy(logits, torch.from_numpy(labels_C[chosen]))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        seen += config.batch
        progress(min(seen, config.cells), config.cells)
    eye.eval()
