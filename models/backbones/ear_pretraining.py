"""Teaches an ear from nothing to tell public sounds apart by what they say, before a decoder learns to use it.

A classifier on the mean of a sound's states is trained with the ear and then thrown away. No two recordings sound
alike, so sounds are shifted at random, some bands are made louder and others softer, as rooms and telephones do, noise
is put behind, and a few bands are left out. No private sound is used.

Legend: `R` sounds of a batch, `M` bands, `F` frames.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..errors import InvalidPretraining
from ..structure.ear import Ear, EarConfig, changed
from ..structure.sounds import PublicSounds, decode
from .sense_pretraining import Schedule, fit_encoder, numbered

_SHIFT_S = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class EarPretrainingConfig:
    """Settings of the ear's pretraining; equal settings give equal weights on one machine and one torch build."""

    sounds: int = 96_000  # heard in all; they come again when there are no more
    batch: int = 64
    lr: float = 1.5e-3  # peak of AdamW's, after 50 steps of warm-up and before linear decay
    seed: int = 1  # of the initial weights, the order of sounds, and their changes

    def __post_init__(self) -> None:
        if min(self.sounds, self.batch) < 1 or not self.lr > 0:
            raise InvalidPretraining(f"need sounds, batch >= 1 and lr > 0, got {self}")


def pretrain_ear(
    public: PublicSounds,
    hidden: int,
    config: EarPretrainingConfig,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Ear:
    """Builds and trains an ear for decoders of width `hidden`.

    Args:
        progress: called with (sounds heard, sounds in total) after every step.

    Raises:
        InvalidPretraining: there are no sounds, of one it is not told what it says, or all say the same.
        InvalidSound: a file is no sound of the layout.
    """
    layout, said = public.layout, [text.strip() for text in public.shown]
    if not all(said):
        raise InvalidPretraining("what public sounds say must be told of each; of one or more it is not")
    labels, classes = numbered(said, "sounds say", "ear")
    sounds_RS = decode(public.files, layout)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        ear = Ear(EarConfig(rate=layout.rate, seconds=layout.seconds), hidden)
        classifier = nn.Linear(ear.to_words.in_features, classes)
        rng, most = np.random.default_rng(config.seed), round(_SHIFT_S * layout.rate)

        def read(chosen: npt.NDArray[np.int64]) -> Tensor:
            shifted = np.roll(sounds_RS[chosen], int(rng.integers(-most, most + 1)), 1)
            heard = changed(ear.spectra(torch.from_numpy(shifted)), rng)
            return ear.pieces(heard).mean(1)

        fit_encoder(ear, classifier, labels, Schedule(config.sounds, config.batch, config.lr), read, rng, progress)
    return ear
