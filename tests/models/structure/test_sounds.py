import io
import os
import random
import struct
import tracemalloc
import wave

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.models.errors import InvalidSound
from confide.models.structure.sounds import MOST_BYTES, SoundLayout, decode, plain, written

LAYOUT = SoundLayout(rate=8000, seconds=1)
LONGEST, WHOLE = 8000, 16 * 512  # samples of a file, and of a sound with its silence
SECRET = b"zq7secretzq7"
CASES = int(os.environ.get("CONFIDE_FUZZ_CASES", "2000"))


def noise(count=3000, seed=0):
    return np.random.default_rng(seed).integers(-(2**15), 2**15, count).astype("<i2")


SAMPLES = noise()
DATA = SAMPLES.tobytes()


def chunk(name, data=b""):
    return name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)


def fmt(kind=1, channels=1, rate=8000, per_second=16_000, per_sample=2, bits=16, more=b""):
    return chunk(b"fmt ", struct.pack("<HHIIHH", kind, channels, rate, per_second, per_sample, bits) + more)


def wav(*chunks, size=None):
    body = b"WAVE" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body) if size is None else size) + body


FMT, PCM = fmt(), chunk(b"data", DATA)
GOOD = wav(FMT, PCM)


def by_standard_library(samples, rate=8000, channels=1, width=2):
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(samples)
    return out.getvalue()


def refused(file, layout=LAYOUT):
    """The message of a refusal, which shows nothing of the file."""
    with pytest.raises(InvalidSound) as caught:
        decode([file], layout)
    assert SECRET.decode() not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    return str(caught.value)


@pytest.mark.parametrize("rate", [8000, 16_000])
def test_what_another_writer_wrote_is_read_and_ends_in_silence(rate):
    layout = SoundLayout(rate, 1)
    (found,) = decode([by_standard_library(DATA, rate)], layout)
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found[:3000], SAMPLES)
    assert not found[3000:].any()
    assert len(found) == 16 * rate * 64 // 1000


def test_a_file_is_written_as_another_writer_does():
    assert written(DATA, 8000) == by_standard_library(DATA) == GOOD


def test_several_sounds_are_read_in_their_order():
    sounds = [noise(count, seed=count) for count in (1, 2, 7999, 8000)]
    found = decode([wav(FMT, chunk(b"data", sound.tobytes())) for sound in sounds], LAYOUT)
    assert found.shape == (4, WHOLE)
    for row, sound in zip(found, sounds, strict=True):
        np.testing.assert_array_equal(row[: len(sound)], sound)
        assert not row[len(sound) :].any()
    assert decode([], LAYOUT).shape == (0, WHOLE)


@pytest.mark.parametrize("name", [b"LIST", b"bext", b"id3 ", b"fact", b"    ", b"FMT ", b"cue ", b"JUNK"])
@pytest.mark.parametrize("data", [b"", b"\0", SECRET, SECRET * 1001])
def test_what_a_file_says_beside_its_samples_is_passed_over_and_not_kept(name, data):
    for file in (wav(chunk(name, data), FMT, PCM), wav(FMT, chunk(name, data), PCM), wav(FMT, PCM, chunk(name, data))):
        np.testing.assert_array_equal(decode([file], LAYOUT)[0, :3000], SAMPLES)
        assert plain(file, LAYOUT) == GOOD


REFUSED = {
    "nothing": (b"", "no WAV"),
    "signature": (b"RIFF\4\0\0\0WAVE", "no samples"),
    "half a signature": (b"RIFF\4\0\0\0WAV", "no WAV"),
    "lower case": (b"riff" + GOOD[4:], "no WAV"),
    "RIFX": (b"RIFX" + GOOD[4:], "no WAV"),
    "RF64": (b"RF64" + GOOD[4:], "no WAV"),
    "AVI": (GOOD[:8] + b"AVI " + GOOD[12:], "no WAV"),
    "OGG": (b"OggS" + GOOD, "no WAV"),
    "FLAC": (b"fLaC" + GOOD, "no WAV"),
    "MP3": (b"ID3\4" + GOOD, "no WAV"),
    "a byte behind": (GOOD + b"\0", "behind its end"),
    "a secret behind": (GOOD + SECRET, "behind its end"),
    "a file behind": (GOOD + GOOD, "behind its end"),
    "a byte less": (GOOD[:-1], "cut off"),
    "size of 0": (wav(FMT, PCM, size=0), "behind its end"),
    "size of a stream": (wav(FMT, PCM, size=2**32 - 1), "cut off"),
    "a name without a size": (wav(FMT, PCM, b"LIST"), "cut off"),
    "half a name": (wav(FMT, PCM, b"LI"), "cut off"),
    "length beyond the file": (wav(FMT, b"data" + struct.pack("<I", len(DATA) + 1) + DATA), "cut off"),
    "length of a stream": (wav(FMT, b"data" + b"\xff" * 4 + DATA), "cut off"),
    "an odd chunk without its byte": (wav(FMT, PCM, b"LIST" + struct.pack("<I", 1) + b"x"), "cut off"),
    "a chunk of zeros": (wav(FMT, PCM, bytes(12)), "without a name"),
    "a foreign name": (wav(FMT, "tä\u00dft".encode("latin-1") + bytes(4), PCM), "without a name"),
    "no format": (wav(PCM), "before their format"),
    "format behind": (wav(PCM, FMT), "before their format"),
    "no samples": (wav(FMT), "no samples"),
    "two formats": (wav(FMT, FMT, PCM), "two formats"),
    "another format behind": (wav(FMT, PCM, fmt(rate=16_000)), "two formats"),
    "two parts": (wav(FMT, PCM, PCM), "two parts"),
    "an empty part before": (wav(FMT, chunk(b"data"), PCM), "two parts"),
    "empty": (wav(FMT, chunk(b"data")), "1 sample to 1 seconds"),
    "half a sample": (wav(FMT, chunk(b"data", DATA[:-1])), "half a sample"),
    "a byte": (wav(FMT, chunk(b"data", b"x")), "half a sample"),
    "a sample too long": (wav(FMT, chunk(b"data", noise(8001).tobytes())), "1 sample to 1 seconds"),
    "float": (wav(fmt(kind=3, bits=32, per_sample=4, per_second=32_000), PCM), "not PCM"),
    "float of 16 bits": (wav(fmt(kind=3), PCM), "not PCM"),
    "A-law": (wav(fmt(kind=6, bits=8, per_sample=1, per_second=8000), PCM), "not PCM"),
    "mu-law": (wav(fmt(kind=7, bits=8, per_sample=1, per_second=8000), PCM), "not PCM"),
    "ADPCM": (wav(fmt(kind=17, bits=4), PCM), "not PCM"),
    "MP3 in WAV": (wav(fmt(kind=85), PCM), "not PCM"),
    "kind 0": (wav(fmt(kind=0), PCM), "not PCM"),
    "extensible": (wav(fmt(kind=0xFFFE, more=struct.pack("<HHI", 22, 16, 4) + bytes(16)), PCM), "format that is not"),
    "extensible without more": (wav(fmt(kind=0xFFFE), PCM), "not PCM"),
    "more of a format": (wav(fmt(more=b"\0\0"), PCM), "format that is not read"),
    "less of a format": (wav(chunk(b"fmt ", FMT[8:22]), PCM), "format that is not read"),
    "empty format": (wav(chunk(b"fmt "), PCM), "format that is not read"),
    "two channels": (wav(fmt(channels=2, per_sample=4, per_second=32_000), PCM), "not PCM"),
    "no channel": (wav(fmt(channels=0, per_sample=0), PCM), "not PCM"),
    "8 bits": (by_standard_library(DATA, width=1), "not PCM"),
    "24 bits": (by_standard_library(DATA, width=3), "not PCM"),
    "a sample of other bytes": (wav(fmt(per_sample=4), PCM), "not PCM"),
    "another rate": (by_standard_library(DATA, 16_000), "not 8000 samples"),
    "rate of 0": (wav(fmt(rate=0), PCM), "not 8000 samples"),
    "another number of bytes a second": (wav(fmt(per_second=8000), PCM), "contradicts"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_anything_else_is_refused(what):
    file, said = REFUSED[what]
    assert said in refused(file)
    with pytest.raises(InvalidSound, match=said):
        plain(file, LAYOUT)


@pytest.mark.parametrize("file", [GOOD, wav(chunk(b"LIST", b"abc"), FMT, PCM, chunk(b"LIST", b"x"))])
def test_a_file_that_was_cut_is_refused_wherever_it_was(file):
    for end in range(len(file)):
        refused(file[:end])


def test_a_refusal_says_which_of_the_files_it_was():
    with pytest.raises(InvalidSound, match=r"^sound 3 of 4 goes on behind its end$"):
        decode([GOOD, GOOD, GOOD + b"x", b""], LAYOUT)


def test_a_file_of_too_many_bytes_is_refused_before_it_is_read():
    file = wav(FMT, PCM, chunk(b"LIST", bytes(MOST_BYTES)))
    assert "more than 4 MiB" in refused(file)
    with pytest.raises(InvalidSound, match="more than 4 MiB"):
        plain(file, LAYOUT)
    assert plain(wav(FMT, PCM, chunk(b"LIST", bytes(MOST_BYTES - 7000))), LAYOUT) == GOOD
    assert MOST_BYTES > 60 * 16_000 * 2 + 44  # as long as a sound may be


def test_sizes_that_lie_take_no_memory():
    files = [wav(FMT, b"data" + b"\xff\xff\xff\x7f" + DATA), wav(FMT, PCM, size=2**31), wav(FMT, b"LIST" + b"\xff" * 4)]
    tracemalloc.start()
    for file in files:
        refused(file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200_000


@pytest.mark.slow
def test_a_file_of_many_chunks_is_refused_and_of_some_is_read():
    np.testing.assert_array_equal(decode([wav(FMT, chunk(b"LIST") * 900, PCM)], LAYOUT)[0, :3000], SAMPLES)
    with pytest.raises(InvalidSound, match="more than 1,000 chunks"):
        decode([wav(FMT, chunk(b"LIST") * ((MOST_BYTES - 7000) // 8), PCM)], LAYOUT)


@given(st.binary(max_size=60))
def test_bytes_of_any_kind_are_no_sound(tail):
    for file in (tail, wav(tail), b"RIFF" + tail, wav(FMT, tail + b"\0") if tail[:4] != b"data" else tail):
        with pytest.raises(InvalidSound):
            decode([file], LAYOUT)
        with pytest.raises(InvalidSound):
            plain(file, LAYOUT)


def test_mutated_files_are_read_or_refused_and_nothing_else():
    """Bytes and chunks are changed, left out, put in and repeated; most sizes are then made right."""
    seeds = [GOOD, by_standard_library(DATA), wav(chunk(b"LIST", SECRET), FMT, PCM, chunk(b"id3 ", b"x"))]
    rng, said, read = random.Random(7), set(), 0
    for case in range(CASES):
        file = mutated(rng.choice(seeds), rng)
        try:
            found = decode([file], LAYOUT)
        except InvalidSound as err:
            said.add(str(err))
            with pytest.raises(InvalidSound):
                plain(file, LAYOUT)
        except BaseException as err:
            raise AssertionError(f"case {case}: {type(err).__name__} for {file.hex()}") from err
        else:
            read += 1
            assert (found.shape, found.dtype) == ((1, WHOLE), np.int16)
            kept = plain(file, LAYOUT)
            assert len(kept) <= 44 + 2 * LONGEST
            assert SECRET not in kept
            np.testing.assert_array_equal(decode([kept], LAYOUT), found)
    assert read > CASES / 100  # not all are broken at the first glance
    assert 8 <= len(said) <= 16  # fixed sentences: nothing of a file is in them


def mutated(file, rng):
    if rng.random() < 0.3:
        return changed(file, rng)
    chunks, place = [], 12
    while place < len(file):
        length = int.from_bytes(file[place + 4 : place + 8], "little")
        chunks.append([file[place : place + 4], file[place + 8 : place + 8 + length]])
        place += 8 + length + length % 2
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, way = rng.randrange(len(chunks)) if chunks else 0, rng.randrange(6)
        if way == 0 and chunks:
            del chunks[at]
        elif way == 1 and chunks:
            chunks.insert(rng.randrange(len(chunks) + 1), list(chunks[at]))
        elif way == 2 and chunks:
            chunks[at][0] = changed(chunks[at][0], rng)[:4].ljust(4, b"A")
        elif way == 3:
            name = rng.choice((b"fmt ", b"data", b"LIST", b"fact", b"PEAK", rng.randbytes(4)))
            chunks.insert(at, [name, rng.randbytes(rng.randrange(20))])
        elif way == 4:
            numbers = [rng.choice((1, 1, 1, 3, 0xFFFE)), rng.choice((1, 1, 2)), rng.choice((8000, 8000, 16_000))]
            form = struct.pack("<HHIIHH", *numbers, 16_000, 2, rng.choice((16, 16, 8)))
            chunks = [[name, form if name == b"fmt " else data] for name, data in chunks]
        elif chunks:
            chunks[at][1] = changed(chunks[at][1], rng)
    whole = wav(*(chunk(bytes(name), bytes(data)) for name, data in chunks))
    return changed(whole, rng) if rng.random() < 0.1 else whole


def changed(data, rng):
    """Flips a bit, sets, leaves out, puts in or repeats bytes."""
    place, length, way = rng.randrange(len(data) + 1), rng.choice((1, 1, 2, 4, 30)), rng.randrange(5)
    before, here, behind = data[:place], data[place : place + length], data[place + length :]
    if way == 0 and here:
        return before + bytes([here[0] ^ (1 << rng.randrange(8))]) + here[1:] + behind
    if way == 1:
        return before + rng.choice((b"\0", b"\xff", b"\x7f")) * len(here) + behind
    if way == 2:
        return before + behind
    if way == 3:
        return before + rng.randbytes(length) + here + behind
    return before + here + here + behind


@pytest.mark.parametrize(
    ("layout", "tokens", "carried", "longest"),
    [
        (SoundLayout(8000, 1), 16, 128, 8000),
        (SoundLayout(8000, 2), 32, 128, 16_000),
        (SoundLayout(16_000, 2), 32, 256, 32_000),
        (SoundLayout(16_000, 8), 125, 256, 128_000),
        (SoundLayout(8000, 60), 938, 128, 480_000),
    ],
)
def test_a_token_carries_64_milliseconds(layout, tokens, carried, longest):
    assert (layout.tokens, layout.carried, layout.longest) == (tokens, carried, longest)
    sounds = noise(2 * tokens * layout.piece).astype(np.int16).reshape(2, -1)
    found = layout.pieces(sounds)
    assert found.shape == (2, tokens, 8 * carried)
    np.testing.assert_array_equal(found.reshape(2, -1).view(np.int16), sounds)
    np.testing.assert_array_equal(found[1, 3].view(np.int16), sounds[1, 3 * layout.piece : 4 * layout.piece])
    assert (tokens - 1) * layout.piece < longest <= tokens * layout.piece


@pytest.mark.parametrize(
    ("rate", "seconds", "said"),
    [
        (8000, 1, []),
        (16_000, 60, []),
        (44_100, 1, ["rate is 44100; it must be 8000 or 16000 samples a second"]),
        (8000, 0, ["seconds is 0; a sound has 1 to 60 seconds"]),
        (
            -1,
            61,
            ["rate is -1; it must be 8000 or 16000 samples a second", "seconds is 61; a sound has 1 to 60 seconds"],
        ),
    ],
)
def test_rates_and_lengths_that_are_not_read_are_said(rate, seconds, said):
    assert SoundLayout(rate, seconds).problems() == said
