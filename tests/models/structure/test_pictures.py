import io
import itertools
import os
import random
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from confide.models.errors import InvalidPicture
from confide.models.structure.pictures import MOST_BYTES, SQUARE, PictureLayout, decode, decode_colours
from confide.models.structure.pictures import plain as kept

SIZE = (32, 64)
SECRET = b"zq7secretzq7"
CASES = int(os.environ.get("CONFIDE_FUZZ_CASES", "2000"))
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(*channels):
    down, across = np.indices(SIZE)
    return np.stack([down * 3 + across * 2 + shift for shift in range(max(channels, default=1))], 2).astype(np.uint8)


GREY, RGB = noise(*SIZE), noise(*SIZE, 3, seed=1)


def by_pillow(pixels, form="PNG", **settings):
    out = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(out, form, **settings)
    return out.getvalue()


def chunk(name, data=b""):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def header(height=SIZE[0], width=SIZE[1], depth=8, kind=0, compression=0, filtering=0, interlace=0):
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, compression, filtering, interlace))


def png(*chunks):
    return SIGNATURE + b"".join(chunks)


def raw(pixels, filter_type=0):
    """Rows of bytes before compression, each behind the number of a filter that does nothing if it is 0."""
    return b"".join(bytes([filter_type]) + row.tobytes() for row in pixels)


def plain(pixels=GREY, *, between=b"", data=None):
    kind = 0 if pixels.ndim == 2 else 2
    data = zlib.compress(raw(pixels)) if data is None else data
    return png(header(kind=kind), between, chunk(b"IDAT", data), chunk(b"IEND"))


def chunks_of(file):
    """(name, data) of each chunk of a valid file."""
    place, found = 8, []
    while place < len(file):
        (length,) = struct.unpack(">I", file[place : place + 4])
        found.append((file[place + 4 : place + 8], file[place + 8 : place + 8 + length]))
        place += 12 + length
    return found


def filtered(pixels, filter_type):
    """Rows as the PNG specification filters them (section 9.2), from their definition, number by number."""
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    rows = pixels.reshape(len(pixels), -1).astype(int).tolist()
    out = b""
    for y, row in enumerate(rows):
        found = [filter_type]
        for x, value in enumerate(row):
            left = row[x - channels] if x >= channels else 0
            up = rows[y - 1][x] if y else 0
            corner = rows[y - 1][x - channels] if y and x >= channels else 0
            nearest = min((left, up, corner), key=lambda each: abs(left + up - corner - each))
            found.append((value - (0, left, up, (left + up) // 2, nearest)[filter_type]) % 256)
        out += bytes(found)
    return out


def refused(file):
    """The message of a refusal, which shows nothing of the file."""
    with pytest.raises(InvalidPicture) as caught:
        decode([file], SIZE)
    assert SECRET.decode() not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    return str(caught.value)


SETTINGS = [
    *({"compress_level": level} for level in (0, 1, 6, 9)),
    {"optimize": True},
    *({"compress_type": strategy} for strategy in (zlib.Z_FILTERED, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE, zlib.Z_FIXED)),
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("pixels", [GREY, smooth()[..., 0]], ids=["noise", "smooth"])
def test_grey_is_read_as_pillow_reads_its_own_files(settings, pixels):
    file = by_pillow(pixels, **settings)
    np.testing.assert_array_equal(decode([file], SIZE)[0], np.asarray(Image.open(io.BytesIO(file))))
    np.testing.assert_array_equal(decode([file], SIZE)[0], pixels)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("pixels", [RGB, smooth(3)], ids=["noise", "smooth"])
def test_colours_become_the_grey_of_bt_601(settings, pixels):
    found = decode([by_pillow(pixels, **settings)], SIZE)[0]
    want = 0.299 * pixels[..., 0] + 0.587 * pixels[..., 1] + 0.114 * pixels[..., 2]
    assert np.abs(found - want).max() <= 0.5 + 1e-9  # the nearest whole number
    by_pillow_itself = np.asarray(Image.fromarray(pixels).convert("L")).astype(int)
    assert np.abs(found - by_pillow_itself).max() <= 1


def test_colours_are_kept_where_they_are_asked_for_and_grey_is_three_times_the_same():
    found = decode_colours([by_pillow(RGB), by_pillow(GREY)], SIZE)
    np.testing.assert_array_equal(found[0], RGB)
    np.testing.assert_array_equal(found[1], np.repeat(GREY[..., None], 3, axis=2))
    with pytest.raises(InvalidPicture, match="picture 2 of 2 is no PNG file"):
        decode_colours([by_pillow(RGB), b"none"], SIZE)
    assert decode_colours([], SIZE).shape == (0, *SIZE, 3)


def test_grey_that_is_written_in_colours_comes_back_as_it_is():
    every = np.arange(2048).reshape(SIZE) % 256
    file = by_pillow(np.stack([every] * 3, axis=2).astype(np.uint8))
    np.testing.assert_array_equal(decode([file], SIZE)[0], every)


@pytest.mark.parametrize("filter_type", range(5))
@pytest.mark.parametrize(
    "pixels", [GREY, np.stack([GREY] * 3, axis=2), smooth()[..., 0]], ids=["grey", "rgb", "smooth"]
)
def test_every_filter_is_undone(pixels, filter_type):
    found = decode([plain(pixels, data=zlib.compress(filtered(pixels, filter_type)))], SIZE)[0]
    np.testing.assert_array_equal(found, pixels if pixels.ndim == 2 else pixels[..., 0])


def test_pixels_may_lie_in_any_number_of_chunks():
    data = zlib.compress(raw(GREY))
    parts = [data[:1], b"", data[1:700], *(data[place : place + 3] for place in range(700, len(data), 3))]
    file = png(header(), *(chunk(b"IDAT", part) for part in parts), chunk(b"IEND"))
    np.testing.assert_array_equal(decode([file], SIZE)[0], GREY)


def test_several_pictures_are_read_in_their_order():
    pictures = noise(4, *SIZE, seed=5)
    found = decode([by_pillow(picture) for picture in pictures], SIZE)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, pictures)
    assert decode([], SIZE).shape == (0, *SIZE)


@pytest.mark.parametrize("pixels", [GREY, RGB], ids=["grey", "rgb"])
def test_what_a_file_says_beside_its_pixels_changes_nothing(pixels):
    exif, text = Image.Exif(), PngImagePlugin.PngInfo()
    exif[0x0112] = 6  # turned by a quarter
    text.add_text("Title", "a text")
    text.add_text("Comment", "another " * 500, zip=True)
    text.add_itxt("Author", "ä")
    text.add(b"gAMA", struct.pack(">I", 10_000))
    text.add(b"tIME", bytes(7))
    text.add(b"prIV", SECRET)
    settings = {"exif": exif, "pnginfo": text, "icc_profile": b"no profile" * 50, "dpi": (1, 9999)}
    file = by_pillow(pixels, **settings)
    names = {name for name, _ in chunks_of(file)}
    assert {b"eXIf", b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"gAMA", b"tIME", b"pHYs", b"prIV"} <= names
    np.testing.assert_array_equal(decode([file], SIZE), decode([by_pillow(pixels)], SIZE))


@pytest.mark.parametrize("name", [b"gAMA", b"iCCP", b"zTXt", b"pHYs", b"acTL", b"eXIf", b"cHRM", b"sRGB"])
def test_nonsense_in_a_chunk_that_may_be_left_out_is_never_looked_at(name):
    for data in (b"", b"\0", SECRET, zlib.compress(bytes(10**6))):
        np.testing.assert_array_equal(decode([plain(between=chunk(name, data))], SIZE)[0], GREY)


def test_of_an_animation_the_still_picture_is_read():
    frames = [Image.fromarray(noise(*SIZE, seed=seed)) for seed in (1, 2)]
    first = Image.fromarray(GREY)
    file = by_pillow(first, save_all=True, append_images=frames, default_image=True)
    assert {b"acTL", b"fcTL", b"fdAT"} <= {name for name, _ in chunks_of(file)}
    np.testing.assert_array_equal(decode([file], SIZE)[0], GREY)


DATA = zlib.compress(raw(GREY))
END = chunk(b"IEND")
PIXELS = chunk(b"IDAT", DATA)


def with_pillow(mode, form="PNG", **settings):
    return by_pillow(Image.fromarray(RGB).convert(mode), form, **settings)


def damaged(place):
    """One byte of the file's only data chunk is another."""
    file = bytearray(plain())
    file[place] ^= 0x40
    return bytes(file)


REFUSED = {
    "nothing": (b"", "no PNG"),
    "signature": (SIGNATURE, "no PNG"),
    "palette": (with_pillow("P"), "not 8 bits"),
    "1 bit": (with_pillow("1"), "not 8 bits"),
    "16 bits": (by_pillow(np.zeros(SIZE, dtype=np.uint16)), "not 8 bits"),
    "grey and alpha": (with_pillow("LA"), "not 8 bits"),
    "colours and alpha": (with_pillow("RGBA"), "not 8 bits"),
    "interlaced": (png(header(interlace=1), PIXELS, END), "not 8 bits"),
    "unknown compression": (png(header(compression=1), PIXELS, END), "not 8 bits"),
    "unknown filtering": (png(header(filtering=1), PIXELS, END), "not 8 bits"),
    "unknown kind": (png(header(kind=1), PIXELS, END), "not 8 bits"),
    "2 bits": (png(header(depth=2), PIXELS, END), "not 8 bits"),
    "turned": (by_pillow(noise(64, 32)), "not 32 pixels high and 64 wide"),
    "one row more": (by_pillow(noise(33, 64)), "not 32 pixels high and 64 wide"),
    "size 0": (png(header(height=0), PIXELS, END), "not 32 pixels high"),
    "giant": (png(header(height=2**31 - 1, width=2**31 - 1), PIXELS, END), "not 32 pixels high"),
    "kind says colours": (png(header(kind=2), PIXELS, END), "more or fewer pixels"),
    "kind says grey": (png(header(), chunk(b"IDAT", zlib.compress(raw(RGB))), END), "more or fewer pixels"),
    "a byte behind": (plain() + b"\0", "cut off"),
    "a secret behind": (plain() + SECRET, "cut off"),
    "a chunk behind": (plain() + chunk(b"tEXt", SECRET), "behind its end"),
    "a file behind": (plain() + plain(), "cut off"),
    "two ends": (plain() + END, "behind its end"),
    "no end": (png(header(), PIXELS), "cut off"),
    "very many chunks": (plain(between=chunk(b"tEXt", b"") * 10_000), "more than 10,000 chunks"),
    "two headers": (png(header(), header(), PIXELS, END), "two headers"),
    "another header behind": (png(header(), PIXELS, header(height=64), END), "two headers"),
    "no header": (png(PIXELS, END), "no PNG"),
    "text before the header": (png(chunk(b"tEXt", SECRET), header(), PIXELS, END), "no PNG"),
    "long header": (png(chunk(b"IHDR", header()[8:21] + b"\0"), PIXELS, END), "no PNG"),
    "no pixels": (png(header(), END), "more or fewer pixels"),
    "empty pixels": (plain(data=b""), "more or fewer pixels"),
    "pixels of the animation alone": (png(header(), chunk(b"fdAT", bytes(4) + DATA), END), "more or fewer pixels"),
    "unknown critical chunk": (plain(between=chunk(b"SECr", SECRET)), "chunk that is not read"),
    "suggested palette": (plain(RGB, between=chunk(b"PLTE", bytes(6))), "chunk that is not read"),
    "Apple's own": (plain(between=chunk(b"CgBI", bytes(4))), "chunk that is not read"),
    "a name that is none": (plain(between=chunk(b"te\0t", SECRET)), "damaged chunk"),
    "a foreign name": (plain(between=chunk("tä\u00df".encode("latin-1") + b"t", SECRET)), "damaged chunk"),
    "wrong checksum of pixels": (damaged(60), "damaged chunk"),
    "wrong checksum of the header": (damaged(30), "damaged chunk"),
    "wrong checksum of the end": (damaged(-1), "damaged chunk"),
    "wrong checksum of a text": (plain(between=chunk(b"tEXt", SECRET)[:-1] + b"\0"), "damaged chunk"),
    "length beyond the file": (png(header(), b"\x7f\xff\xff\xffIDAT" + DATA), "cut off"),
    "length of -1": (png(header(), b"\xff\xff\xff\xffIDAT" + DATA), "cut off"),
    "not compressed": (plain(data=raw(GREY)), "cannot be unpacked"),
    "compressed without a header": (plain(data=DATA[2:-4]), "cannot be unpacked"),
    "as gzip": (plain(data=zlib.compressobj(wbits=31).compress(b"") + DATA), "cannot be unpacked"),
    "wrong sum of the pixels": (plain(data=DATA[:-1] + bytes([DATA[-1] ^ 1])), "cannot be unpacked"),
    "half the pixels": (plain(data=zlib.compress(raw(GREY)[: 65 * 16])), "more or fewer pixels"),
    "a byte less": (plain(data=zlib.compress(raw(GREY)[:-1])), "more or fewer pixels"),
    "a byte more": (plain(data=zlib.compress(raw(GREY) + b"\0")), "more or fewer pixels"),
    "stream cut": (plain(data=DATA[:-20]), "more or fewer pixels"),
    "stream cut in its sum": (plain(data=DATA[:-2]), "more or fewer pixels"),
    "something behind the stream": (plain(data=DATA + SECRET), "more or fewer pixels"),
    "two streams": (plain(data=DATA + DATA), "more or fewer pixels"),
    "filter 5": (plain(data=zlib.compress(raw(GREY, 5))), "by a filter that there is not"),
    "filter 255": (plain(data=zlib.compress(raw(GREY)[:-65] + b"\xff" + bytes(64))), "by a filter that there is not"),
    "JPEG": (with_pillow("RGB", "JPEG"), "no PNG"),
    "GIF": (with_pillow("P", "GIF"), "no PNG"),
    "BMP": (with_pillow("RGB", "BMP"), "no PNG"),
    "TIFF": (with_pillow("RGB", "TIFF"), "no PNG"),
    "WebP behind PNG's signature": (SIGNATURE + b"\0\0\0\x0dIHDR" + b"RIFF" * 9, "not 32 pixels high"),
    "MNG": (b"\x8aMNG\r\n\x1a\n" + plain()[8:], "no PNG"),
    "text mode": (plain().replace(b"\r\n", b"\n"), "no PNG"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_anything_else_is_refused(what):
    file, said = REFUSED[what]
    assert said in refused(file)


def test_a_dictionary_for_unpacking_is_refused():
    packer = zlib.compressobj(zdict=b"some words")
    assert "cannot be unpacked" in refused(plain(data=packer.compress(raw(GREY)) + packer.flush()))


@pytest.mark.parametrize("file", [plain(), plain(RGB), by_pillow(GREY)], ids=["grey", "rgb", "pillow"])
def test_a_file_that_was_cut_is_refused_wherever_it_was(file):
    for end in range(0, len(file), 7):
        refused(file[:end])
    refused(file[:-1])


def test_a_refusal_says_which_of_the_files_it_was():
    files = [plain(), plain(), plain() + b"x", b""]
    with pytest.raises(InvalidPicture, match=r"^picture 3 of 4 is cut off$"):
        decode(files, SIZE)


def test_a_bomb_is_refused_before_it_is_unpacked():
    """50 MB of zeros in a file of 50 KB, and 5 MB in one of 5 KB."""
    bombs = [plain(data=zlib.compress(bytes(size), 9)) for size in (50_000_000, 5_000_000)]
    tracemalloc.start()
    assert "far more bytes than they have" in refused(bombs[0])
    assert "more or fewer pixels" in refused(bombs[1])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


def test_transparency_is_refused():
    assert "transparency" in refused(plain(between=chunk(b"tRNS", b"\0\0")))


def test_a_file_of_too_many_bytes_is_refused_before_it_is_read():
    file = plain(between=chunk(b"tEXt", bytes(MOST_BYTES)))
    assert "more than 16 MiB" in refused(file)
    with pytest.raises(InvalidPicture, match="more than"):
        kept(file, SIZE)
    np.testing.assert_array_equal(decode([plain(between=chunk(b"tEXt", bytes(MOST_BYTES - 4000)))], SIZE)[0], GREY)


def test_a_file_of_many_chunks_is_read():
    file = plain(between=chunk(b"tEXt") * 9_990)
    np.testing.assert_array_equal(decode([file], SIZE)[0], GREY)


def test_what_is_expected_is_decoded_and_nothing_else():
    for file in (plain(), plain(RGB)):
        np.testing.assert_array_equal(decode([kept(file, SIZE)], SIZE), decode([file], SIZE))
    for broken, said in (*REFUSED.values(), (plain(data=b"no pixels"), "pixels"), (plain()[:33], "cut off")):
        with pytest.raises(InvalidPicture, match=said):
            kept(broken, SIZE)


@given(st.binary(max_size=60))
def test_bytes_of_any_kind_are_no_picture(tail):
    for file in (tail, SIGNATURE + tail, png(header()) + tail, SIGNATURE + b"\0\0\0\x0dIHDR" + tail):
        with pytest.raises(InvalidPicture):
            kept(file, SIZE)
        with pytest.raises(InvalidPicture):
            decode([file], SIZE)


def test_mutated_files_are_decoded_or_refused_and_nothing_else():
    """Bytes and chunks are changed, left out, put in and repeated; most checksums are then made right."""
    seeds = [plain(), plain(RGB), by_pillow(smooth()[..., 0]), by_pillow(smooth(3), optimize=True)]
    seeds.append(plain(data=zlib.compress(filtered(GREY, 4)), between=chunk(b"tEXt", SECRET)))
    rng, said, decoded = random.Random(7), set(), 0
    for case in range(CASES):
        file = mutated(rng.choice(seeds), rng)
        try:
            found = decode([file], SIZE)
        except InvalidPicture as err:
            said.add(str(err))
        except BaseException as err:
            raise AssertionError(f"case {case}: {type(err).__name__} for {file.hex()}") from err
        else:
            decoded += 1
            assert (found.shape, found.dtype) == ((1, *SIZE), np.uint8)
    assert decoded > CASES / 100  # not all are broken at the first glance
    assert 8 <= len(said) <= 16  # fixed sentences: nothing of a file is in them


def mutated(file, rng):
    if rng.random() < 0.3:
        return changed(file, rng)
    chunks = [list(each) for each in chunks_of(file)]
    for _ in range(rng.choice((1, 1, 2, 4))):
        place = rng.randrange(len(chunks)) if chunks else 0
        way = rng.randrange(8)
        if way == 0 and chunks:
            del chunks[place]
        elif way == 1 and chunks:
            chunks.insert(rng.randrange(len(chunks) + 1), list(chunks[place]))
        elif way == 2 and chunks:
            chunks[place][0] = changed(chunks[place][0], rng)[:4].ljust(4, b"A")
        elif way == 3:
            names = (b"PLTE", b"tRNS", b"acTL", b"fdAT", b"iCCP", b"IDAT", b"IHDR", b"IEND", rng.randbytes(4))
            chunks.insert(place, [rng.choice(names), rng.randbytes(rng.randrange(20))])
        elif way == 4:
            chunks = [repacked(name, data, rng) for name, data in chunks]
        elif chunks:
            chunks[place][1] = changed(chunks[place][1], rng)
    whole = png(*(chunk(bytes(name), bytes(data)) for name, data in chunks))
    return changed(whole, rng) if rng.random() < 0.1 else whole


def repacked(name, data, rng):
    """Changes pixels before they are compressed, filters among them."""
    if name != b"IDAT":
        return [name, data]
    try:
        rows = zlib.decompress(data)
    except zlib.error:
        return [name, data]
    rows = bytearray(changed(rows, rng) if rng.random() < 0.5 else rows)
    for place in rng.sample(range(len(rows)), min(len(rows), rng.randrange(4))):
        rows[place - place % 65] = rng.randrange(6)
    return [name, zlib.compress(bytes(rows), rng.randrange(10))]


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


LAYOUTS = [
    PictureLayout((32, 128), (32, 32)),
    PictureLayout((64, 96), (64, 96)),
    PictureLayout((64, 128), (32, 64)),
    PictureLayout((96, 64), (96, 32)),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_cells_are_cut_row_by_row(layout):
    pictures = noise(3, *layout.size)
    (height, width), want = layout.cell, []
    for picture in pictures:
        for top in range(0, layout.size[0], height):
            for left in range(0, layout.size[1], width):
                want.append([[picture[top + y, left + x] for x in range(width)] for y in range(height)])
    found = layout.cut(pictures)
    assert layout.cells * 3 == len(want) == len(found)
    np.testing.assert_array_equal(found, np.array(want))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_squares_are_cut_cell_by_cell_and_in_each_row_by_row(layout):
    pictures = noise(2, *layout.size)
    found = layout.squares(pictures)
    assert found.shape == (2, layout.tokens, SQUARE**2)
    across, down = layout.cell[1] // SQUARE, layout.cell[0] // SQUARE
    cells_across = layout.size[1] // layout.cell[1]
    for row, token in itertools.product(range(2), range(layout.tokens)):
        cell, square = divmod(token, across * down)
        top = cell // cells_across * layout.cell[0] + square // across * SQUARE
        left = cell % cells_across * layout.cell[1] + square % across * SQUARE
        for number in (0, 1, SQUARE, SQUARE**2 - 1, 100):
            want = pictures[row, top + number // SQUARE, left + number % SQUARE]
            assert found[row, token, number] == want


@pytest.mark.parametrize(
    ("size", "cell", "said"),
    [
        ((32, 128), (32, 32), []),
        ((2048, 2048), (2048, 2048), []),  # as many pixels as there may be
        ((2048, 2080), (32, 32), ["size is [2048, 2080]; a picture has at most 4,194,304 pixels"]),
        ((32, 100), (32, 32), ["size is [32, 100]; both must be multiples of 32 pixels"]),
        ((32, 64), (32, 16), ["cell is [32, 16]; both must be multiples of 32 pixels"]),
        ((0, 64), (32, 32), ["size is [0, 64]; both must be multiples of 32 pixels"]),
        ((-32, 64), (32, 32), ["size is [-32, 64]; both must be multiples of 32 pixels"]),
        ((32, 96), (32, 64), ["cell does not divide size: a picture is made of whole cells"]),
        ((32, 64), (64, 32), ["cell does not divide size: a picture is made of whole cells"]),
        (
            (16, 64),
            (0, 0),
            [
                "size is [16, 64]; both must be multiples of 32 pixels",
                "cell is [0, 0]; both must be multiples of 32 pixels",
            ],
        ),
    ],
)
def test_sizes_that_no_eye_reads_are_said(size, cell, said):
    assert PictureLayout(size, cell).problems() == said
