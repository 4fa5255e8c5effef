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
from ..structure.ear import Ear, EarConfig
from ..structure.sounds import PublicSounds, decode
from .sense_pretraining import Schedule, fit_encoder, numbered

_SHIFT_S = 0.1
_KNOTS = 6  # of the line by which bands are made louder or softer
_LOUDER = 0.2  # deviation of that line, where 0.25 is a factor of e
_SOFTEST, _NOISE = -1.25, 0.35  # of noise behind a sound: mean and deviation, so counted
_LEFT_OUT = 6  # bands at most


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
            heard = _changed(ear.spectra(torch.from_numpy(shifted)), rng)
            return ear.pieces(heard).mean(1)

        fit_encoder(ear, classifier, labels, Schedule(config.sounds, config.batch, config.lr), read, rng, progress)
    return ear


def _changed(spectra_RMF: Tensor, rng: np.random.Generator) -> Tensor:
    """Changes spectra as rooms, telephones and noise do, each in its own way."""
    rows, bands, frames = spectra_RMF.shape
    knots = np.linspace(0, bands - 1, _KNOTS)
    louder_RM = np.stack([np.interp(np.arange(bands), knots, rng.normal(0, _LOUDER, _KNOTS)) for _ in range(rows)])
    louder = torch.from_numpy(louder_RM[:, :, None]).float()
    softest = rng.normal(_SOFTEST, _NOISE, (rows, 1, 1)) + rng.normal(0, 0.3 / 4, (rows, bands, frames))
    # The spectra are quarters of logarithms, and powers add up.
    found = torch.logaddexp(4 * (spectra_RMF + louder), 4 * torch.from_numpy(softest).float()) / 4
    first, count = int(rng.integers(0, bands)), int(rng.integers(0, _LEFT_OUT + 1))
    found[:, first : first + count] = found.mean()
    return found
