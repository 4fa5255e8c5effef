"""An ear before a decoder: Whisper's encoder (arXiv:2212.04356) hears the sound that a row begins with.

First a spectrum, by fixed numbers: of every 16 ms the logarithm of the power in bands of the mel scale, beside the mean
power of the whole sound, so that how loud it was recorded hardly counts. Then the encoder, which hears the whole sound
at once, and of every piece of 64 ms its two last states side by side, projected to the decoder's width, plus a vector
of the piece's place. What it shares with an eye is in `sense`.

Legend: `R` rows (records), `N` tokens of a sound, `B` bytes that one carries, `D` decoder width, `S` samples of a
sound, `F` frames, `M` bands, `E` width of a piece.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from ..errors import InvalidBackbone
from ..strict import StrictModel
from .places import EAR
from .sense import Sense
from .sounds import PIECE_MS, SoundLayout

_HOP_MS = 16  # from one frame to the next; a frame is twice as long
_FRAMES = PIECE_MS // _HOP_MS  # of a piece
_STRIDE = 2  # frames of a state, by the encoder's second convolution
_LOWEST = 60.0  # Hz
_FLOOR = 1e-4  # of a sound's mean power: what is softer is silence
_FULL = 2.0**15  # the loudest sample
_MOST_WIDTH, _MOST_DEPTH, _MOST_BANDS = 2048, 64, 128
_KNOTS = 6  # of the line by which bands are made louder or softer
_LOUDER = 0.2  # deviation of that line, where 0.25 is a factor of e
_SOFTEST, _NOISE = -1.25, 0.35  # of noise behind a sound: mean and deviation, so counted
_LEFT_OUT = 6  # bands at most


@dataclass(frozen=True, kw_only=True, slots=True)
class EarConfig:
    """Sizes of an ear."""

    rate: int  # of a sound, samples a second
    seconds: int  # of the longest sound
    width: int = 64
    depth: int = 3  # layers
    heads: int = 4
    bands: int = 40

    def __post_init__(self) -> None:
        if problems := self.layout.problems():
            raise InvalidBackbone(f"an ear for sounds whose {problems[0]}")
        sizes_fit = (
            2 <= self.width <= _MOST_WIDTH
            and 1 <= self.depth <= _MOST_DEPTH
            and 1 <= self.heads <= self.width
            and 1 <= self.bands <= _MOST_BANDS
            and self.width % 2 == self.width % self.heads == 0
        )
        if not sizes_fit:
            raise InvalidBackbone("an ear of such width, depth, heads and bands cannot be built")

    @property
    def layout(self) -> SoundLayout:
        """The sounds that are heard."""
        return SoundLayout(self.rate, self.seconds)

    @classmethod
    def from_json(cls, text: str) -> "EarConfig":
        """Reads what an ear's file says of its sizes.

        Raises:
            InvalidBackbone: it is something else.
        """
        try:
            return cls(**_Sizes.model_validate_json(text).model_dump())
        except ValidationError:
            raise InvalidBackbone("an ear whose sizes are not stated as they must be") from None


class _Sizes(StrictModel):
    rate: int
    seconds: int
    width: int
    depth: int
    heads: int
    bands: int


class Ear(Sense):
    """The ear of a decoder of width `hidden`."""

    name = EAR
    layout: SoundLayout

    def __init__(self, config: EarConfig, hidden: int) -> None:
        from transformers import WhisperConfig
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        super().__init__()
        self.settings, self.layout = config, config.layout
        self.whisper = WhisperEncoder(
            WhisperConfig(
                num_mel_bins=config.bands, d_model=config.width, encoder_layers=config.depth,
                encoder_attention_heads=config.heads, encoder_ffn_dim=4 * config.width,
                max_source_positions=self.layout.tokens * _FRAMES // _STRIDE, dropout=0.0, encoder_layerdrop=0.0,
            )
        )  # fmt: skip
        self.width = config.width * _FRAMES // _STRIDE
        self.to_words = nn.Linear(self.width, hidden)
        self.where = nn.Parameter(torch.randn(self.layout.tokens, hidden) * 0.1)

    @property
    def encoder(self) -> nn.Module:
        """Whisper's encoder."""
        return self.whisper

    def features(self, bytes_RNB: Tensor) -> Tensor:
        """[R, N, E], the encoder's last states of each piece."""
        return self.pieces(self.spectra(self.samples(bytes_RNB)))

    def samples(self, bytes_RNB: Tensor) -> Tensor:
        """int16 [R, S], the sounds that tokens carry."""
        return bytes_RNB.flatten(1).contiguous().view(torch.int16)

    def spectra(self, samples_RS: Tensor) -> Tensor:
        """[R, M, F], what the encoder hears of sounds, each by itself."""
        # Less than 32 bits would lose the samples, and half of what a spectrum tells.
        exact = torch.float64 if self.where.dtype == torch.float64 else torch.float32
        rate, bands = self.layout.rate, self.settings.bands
        device = samples_RS.device
        waves, mel = (torch.from_numpy(table).to(device, exact) for table in (waves_of(rate), mel_of(rate, bands)))
        hop = rate * _HOP_MS // 1000
        sounds_RS = nn.functional.pad(samples_RS.to(exact) / _FULL, (hop // 2, hop // 2))
        with torch.autocast(device.type, enabled=False):
            parts = (sounds_RS.unfold(1, 2 * hop, hop) @ waves).square()
            power_RFM = (parts[..., : hop + 1] + parts[..., hop + 1 :]) @ mel
        mean_R = power_RFM.mean((1, 2), keepdim=True)
        # A sound of silence alone has no mean to stand beside.
        relative = power_RFM / (mean_R + _FULL**-2)
        return (1 + (relative + _FLOOR).log() / 4).transpose(1, 2).to(self.where.dtype)

    def pieces(self, spectra_RMF: Tensor) -> Tensor:
        """[R, N, E], the encoder's last states, side by side for each piece."""
        last: Tensor = self.whisper(spectra_RMF).last_hidden_state
        return last.reshape(len(last), self.layout.tokens, -1)


def changed(spectra_RMF: Tensor, rng: np.random.Generator) -> Tensor:
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


@functools.cache
def waves_of(rate: int) -> npt.NDArray[np.float64]:
    """[window, 2 * (window / 2 + 1)], cosines and sines of a frame's frequencies under a Hann window."""
    window = 2 * (rate * _HOP_MS // 1000)
    place = np.arange(window)
    turns = 2 * math.pi / window * np.outer(place, np.arange(window // 2 + 1))
    hann = 0.5 - 0.5 * np.cos(2 * math.pi / window * place)
    found: npt.NDArray[np.float64] = np.hstack([np.cos(turns), np.sin(turns)]) * (hann / hann.sum())[:, None]
    return found


@functools.cache
def mel_of(rate: int, bands: int) -> npt.NDArray[np.float64]:
    """[window / 2 + 1, M], how much of each frequency's power is in each band: triangles, even on the mel scale."""
    window = 2 * (rate * _HOP_MS // 1000)
    frequencies = np.arange(window // 2 + 1) * rate / window
    first, last = (2595 * math.log10(1 + frequency / 700) for frequency in (_LOWEST, rate / 2))
    edges = 700 * (10 ** (np.linspace(first, last, bands + 2) / 2595) - 1)
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    rising = (frequencies[:, None] - low) / (middle - low)
    falling = (high - frequencies[:, None]) / (high - middle)
    # A narrow band may lie between two frequencies, and has then the nearer one's.
    found: npt.NDArray[np.float64] = np.maximum(0, np.minimum(rising, falling))
    for band in np.flatnonzero(found.sum(0) == 0):
        found[np.abs(frequencies - middle[band]).argmin(), band] = 1
    return found
