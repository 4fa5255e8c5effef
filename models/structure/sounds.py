"""Reads sounds from WAV files, and cuts them into the pieces that tokens carry.

A file is hostile until it is read: whoever wrote it may want to break the reader, or to hide something in it. So only
the plainest kind is read: RIFF/WAVE, PCM of 16 bits, one channel, exactly the rate that is expected. Its chunks are
walked here, each size against what is left of the file; `fmt ` and `data` alone are used. No decoder is called.

Legend: `R` rows (records), `S` samples of a sound, `N` tokens of a sound, `B` bytes that a token carries.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import InvalidSound

PIECE_MS = 64  # of a sound, which one token carries
RATES = (8000, 16_000)  # samples a second
MOST_SECONDS = 60
MOST_BYTES = 2**22  # of a file
_MOST_CHUNKS = 1000
_SAMPLE = 2  # bytes of a sample
_HEADER, _NAME = 12, 8  # bytes before the first chunk, and of the name and size of each
_PCM = 1
_FORMAT = struct.Struct("<HHIIHH")  # kind, channels, rate, bytes a second, bytes of a sample of all channels, bits


@dataclass(frozen=True, slots=True)
class SoundLayout:
    """The rate of sounds, and the longest that they are: shorter ones end in silence."""

    rate: int  # samples a second
    seconds: int

    def problems(self) -> list[str]:
        """Lists what is wrong with rate and length, in whole sentences."""
        found = []
        if self.rate not in RATES:
            found.append(f"rate is {self.rate}; it must be {' or '.join(map(str, RATES))} samples a second")
        if not 1 <= self.seconds <= MOST_SECONDS:
            found.append(f"seconds is {self.seconds}; a sound has 1 to {MOST_SECONDS} seconds")
        return found

    @property
    def sense(self) -> str:
        """Name of what reads sounds before a decoder."""
        return "ear"

    @property
    def said(self) -> str:
        """Rate and length in words."""
        return f"{self.seconds} s at {self.rate} Hz"

    @property
    def piece(self) -> int:
        """Samples that a token carries."""
        return self.rate * PIECE_MS // 1000

    @property
    def tokens(self) -> int:
        """N, the tokens that carry a sound."""
        return -(-self.longest // self.piece)

    @property
    def carried(self) -> int:
        """Numbers of 64 bits that a token carries."""
        return self.piece * _SAMPLE // 8

    @property
    def longest(self) -> int:
        """Samples that a file may have."""
        return self.rate * self.seconds

    def pieces(self, sounds_RS: npt.NDArray[np.int16]) -> npt.NDArray[np.uint8]:
        """[R, N, B], what tokens carry of sounds."""
        whole = np.ascontiguousarray(sounds_RS)
        return whole.view(np.uint8).reshape(len(whole), self.tokens, self.piece * _SAMPLE)


@dataclass(frozen=True, slots=True)
class PublicSounds:
    """Sounds that teach an ear, and what each says."""

    layout: SoundLayout
    files: Sequence[bytes]  # WAV
    shown: Sequence[str]


def decode(files: Sequence[bytes], layout: SoundLayout) -> npt.NDArray[np.int16]:
    """Reads WAV files as sounds [R, S], each with silence behind it.

    Raises:
        InvalidSound: a file is no such sound; the message says which of several it is, and nothing of it.
    """
    sounds_RS = np.zeros((len(files), layout.tokens * layout.piece), dtype=np.int16)
    for row, file in enumerate(files):
        try:
            samples = np.frombuffer(_checked(file, layout), dtype="<i2")
        except InvalidSound as err:
            raise InvalidSound(f"sound {row + 1} of {len(files)} {err}" if len(files) > 1 else str(err)) from None
        sounds_RS[row, : len(samples)] = samples
    return sounds_RS


def plain(file: bytes, layout: SoundLayout) -> bytes:
    """Returns header and samples of a WAV of this layout, and nothing else of it.

    Raises:
        InvalidSound: it is none; the message says which rule it breaks, and nothing of it.
    """
    return written(_checked(file, layout), layout.rate)


def written(samples: bytes, rate: int) -> bytes:
    """Writes a WAV of these samples, 16 bits each with the lowest byte first, and nothing else."""
    form = _FORMAT.pack(_PCM, 1, rate, rate * _SAMPLE, _SAMPLE, 8 * _SAMPLE)
    chunks = b"".join(
        name + struct.pack("<I", len(data)) + data for name, data in ((b"fmt ", form), (b"data", samples))
    )
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def _checked(file: bytes, layout: SoundLayout) -> bytes:
    """Returns the samples of a file, as they lie in it."""
    if len(file) > MOST_BYTES:
        raise InvalidSound(f"is a file of more than {MOST_BYTES >> 20} MiB")
    if len(file) < _HEADER or file[:4] != b"RIFF" or file[8:_HEADER] != b"WAVE":
        raise InvalidSound("is no WAV file")
    if (end := _NAME + int.from_bytes(file[4:8], "little")) != len(file):
        raise InvalidSound("is cut off" if end > len(file) else "goes on behind its end")
    form, samples = b"", None
    for name, data in _chunks(file):
        if name == b"fmt ":
            if form:
                raise InvalidSound("has two formats")
            form = data
            _require_format(form, layout.rate)
        elif name == b"data":
            if samples is not None:
                raise InvalidSound("has two parts of samples")
            if not form:
                raise InvalidSound("has samples before their format")
            samples = data
    if samples is None:
        raise InvalidSound("has no samples")
    if len(samples) % _SAMPLE:
        raise InvalidSound("has half a sample")
    if not 1 <= len(samples) // _SAMPLE <= layout.longest:
        raise InvalidSound(f"is not 1 sample to {layout.seconds} seconds long")
    return samples


def _chunks(file: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = _HEADER
    for _ in range(_MOST_CHUNKS):
        if place == len(file):
            return
        name, start = file[place : place + 4], place + _NAME
        if start > len(file):
            raise InvalidSound("is cut off")
        length = int.from_bytes(file[place + 4 : start], "little")
        end = start + length
        if end + length % 2 > len(file):  # a chunk of an odd length has a byte behind it that is not its own
            raise InvalidSound("is cut off")
        if not all(0x20 <= sign < 0x7F for sign in name):
            raise InvalidSound("has a chunk without a name")
        yield name, file[start:end]
        place = end + length % 2
    raise InvalidSound(f"has more than {_MOST_CHUNKS:,} chunks")


def _require_format(form: bytes, rate: int) -> None:
    if len(form) != _FORMAT.size:
        raise InvalidSound("has a format that is not read")
    kind, channels, own_rate, per_second, per_sample, bits = _FORMAT.unpack(form)
    if (kind, bits, per_sample) != (_PCM, 8 * _SAMPLE, _SAMPLE * channels) or channels != 1:
        raise InvalidSound("is not PCM of 16 bits with one channel")
    if own_rate != rate:
        raise InvalidSound(f"has not {rate} samples a second")
    if per_second != rate * _SAMPLE:
        raise InvalidSound("has a format that contradicts itself")
