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
from torch import Tensor, nn

from ..errors import InvalidPretraining
from ..structure.eye import Eye, EyeConfig, scaled
from ..structure.pictures import PublicPictures, decode
from .sense_pretraining import Schedule, fit_encoder, numbered

_SHIFT = 2  # pixels


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
    labels, classes = numbered([word for own in words for word in own], "cells show", "eye")
    cells_CHW = layout.cut(decode(public.files, layout.size))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        eye = Eye(EyeConfig(size=layout.size, cell=layout.cell), hidden)
        classifier = nn.Linear(layout.tokens // layout.cells * eye.to_words.in_features, classes)
        rng = np.random.default_rng(config.seed)

        def read(chosen: npt.NDArray[np.int64]) -> Tensor:
            shift = tuple(int(pixels) for pixels in rng.integers(-_SHIFT, _SHIFT + 1, 2))
            shifted = torch.from_numpy(np.roll(cells_CHW[chosen], shift, (1, 2)))
            return eye.squares(scaled(shifted, torch.float32)).flatten(1)

        fit_encoder(eye, classifier, labels, Schedule(config.cells, config.batch, config.lr), read, rng, progress)
    return eye
