"""Voices for examples/voices: readings from Debian's package of Tux Paint's stamps, and a synthesiser's.

Waves are float arrays at 8,000 samples a second, from -1 to 1.
"""

import ctypes
import importlib
import importlib.util
import random
import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

RATE, SECONDS = 8000, 2
LANGUAGES = {"fr": "french", "ca": "catalan", "es": "spanish", "ro": "romanian", "ru": "russian", "bg": "bulgarian"}
VARIANTS = (  # of espeak-ng's voices: men, women, old and young ones
    "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f4", "f5", "klatt", "klatt2", "klatt3",
    "klatt4", "Annie", "Andy", "Gene", "Hugo", "Lee", "Marco", "Mario", "Michael", "adam", "anika", "antonio", "aunty",
    "belinda", "benjamin", "boris", "caleb", "david", "ed", "edward", "grandma", "grandpa", "gustave", "ian", "iven",
    "john", "linda", "max", "michel", "miguel", "pablo", "paul", "pedro", "quincy", "rob", "robert", "sandro", "shelby",
    "steph", "steph2", "travis", "victor", "zac",
)  # fmt: skip
LOUDEST = 0.5
_EDGE = 0.03  # of the loudest sample: what is softer at both ends is cut
_MARGIN = RATE // 20
_SPEED, _PITCH, _RANGE = 1, 3, 4  # of espeak-ng's parameters
_SYNCHRONOUS, _UTF8 = 2, 1
_HEARD = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def require_packages() -> None:
    """Makes sure that what reads OGG and what speaks are installed, before anything is written.

    Raises:
        FileNotFoundError: one is not.
    """
    for name in ("soundfile", "espeakng_loader"):
        if importlib.util.find_spec(name) is None:
            raise FileNotFoundError(f"{name} is not installed: pip install 'confide[examples]'")


def read(path: Path, *, higher: float = 1.0) -> np.ndarray:
    """Reads a recording.

    Args:
        higher: factor by which the voice is made higher and faster.

    Raises:
        FileNotFoundError: soundfile is not installed.
    """
    samples, rate = _module("soundfile").read(path, dtype="float64", always_2d=True)
    return resampled(samples.mean(1), rate * higher)


def things_of(stamps: Path) -> Iterator[tuple[str, dict[str, Path], dict[str, str]]]:
    """Yields the stamps' things: name, recordings and texts, both by language."""
    for path in sorted(stamps.rglob("*.txt")):
        texts = {}
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, text = line.partition("=")
            code = name.removesuffix(".utf8")
            if code in LANGUAGES and name != code and text.strip():
                texts[code] = text.strip()
        readings = {code: path.with_name(f"{path.stem}_desc_{code}.ogg") for code in LANGUAGES}
        found = {code: file for code, file in readings.items() if file.is_file()}
        if found or texts:
            yield str(path.relative_to(stamps).with_suffix("")), found, texts


def spoken(text: str, code: str, rng: random.Random) -> np.ndarray | None:
    """Lets espeak-ng say a text in a language, by a voice that is drawn; None if it says nothing.

    Its noise goes on from what it said before: equal texts sound equal in equal order from a process's start.

    Raises:
        FileNotFoundError: espeakng-loader is not installed.
    """
    library, rate, parts, _ = _synthesiser()
    voice = f"{code}+{rng.choice(VARIANTS)}"
    if library.espeak_SetVoiceByName(voice.encode()):
        raise ValueError(f"espeak-ng has no voice {voice}")
    for parameter, value in (
        (_SPEED, rng.randint(110, 190)),
        (_PITCH, rng.randint(30, 70)),
        (_RANGE, rng.randint(30, 70)),
    ):
        library.espeak_SetParameter(parameter, value, 0)
    parts.clear()
    said = text.encode() + b"\0"
    library.espeak_Synth(said, len(said), 0, 0, 0, _UTF8, None, None)
    wave = np.concatenate(parts) / 2**15 if parts else np.zeros(1)
    return resampled(wave, rate) if wave.any() else None


def resampled(wave: np.ndarray, rate: float) -> np.ndarray:
    """Brings a wave to 8,000 samples a second, without what lies above half of that."""
    if not len(wave):
        return wave
    whole = 1 << max(1, (len(wave) - 1).bit_length())
    spectrum = np.fft.rfft(wave, whole)
    spectrum[int(whole * min(0.5, RATE / 2 / rate)) :] = 0
    smooth = np.fft.irfft(spectrum, whole)[: len(wave)]
    places = np.arange(int(len(wave) * RATE / rate)) * (rate / RATE)
    return np.interp(places, np.arange(len(wave)), smooth)


def as_wav(wave: np.ndarray) -> bytes:
    """Writes a wave as a WAV file of two seconds at most, from where it begins, at one loudness."""
    size = np.abs(wave)
    heard = np.flatnonzero(size > _EDGE * size.max(initial=0))
    if not len(heard):
        raise ValueError("a recording is silent")
    cut = wave[max(0, heard[0] - _MARGIN) : heard[-1] + _MARGIN][: RATE * SECONDS]
    samples = np.rint(cut * (LOUDEST * 2**15 / size.max())).astype("<i2").tobytes()
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    chunks = form + struct.pack("<4sI", b"data", len(samples)) + samples
    return struct.pack("<4sI4s", b"RIFF", 4 + len(chunks), b"WAVE") + chunks


@cache
def _synthesiser() -> tuple[Any, int, list[np.ndarray], Any]:
    """Espeak-ng's library, its rate, the parts of what it says, and what hears them, which must live as long."""
    loader, parts = _module("espeakng_loader"), list[np.ndarray]()
    library = ctypes.CDLL(str(loader.get_library_path()))
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, str(Path(loader.get_data_path()).parent).encode(), 0)
    if rate <= 0:
        raise ValueError("espeak-ng finds no voices")
    library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # of breath and noise

    def hear(samples: Any, count: int, _events: int | None) -> int:
        if samples and count > 0:
            parts.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    heard = _HEARD(hear)
    library.espeak_SetSynthCallback(heard)
    return library, rate, parts, heard


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise FileNotFoundError(f"{name} is not installed: pip install 'confide[examples]'") from None
