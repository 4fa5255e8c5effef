"""Reads pictures from PNG files, and cuts them into the squares that tokens carry.

A file is hostile until it is read: whoever wrote it may want to break the decoder, or to make it take all memory. So
only the plainest kind is read: 8 bits a channel, grey or RGB, not interlaced, of exactly the size that is expected.
Its chunks are taken apart here, each against its checksum, and the decoder (Pillow) is given a new file of the three
that hold pixels: no metadata, palette, profile, animation or text reaches it.

Legend: `R` rows (records), `H`, `W` pixels of a picture, `N` tokens of a picture, `B` pixels that a token carries.
"""

import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import InvalidPicture

SQUARE = 16  # pixels on each side of what one token carries
CELL = 2 * SQUARE  # pixels: the sides of a cell are multiples of it
MOST_PIXELS = 2**22  # of a picture
MOST_BYTES = 2**24  # of a file
_MOST_CHUNKS = 10_000  # encoders write some thousand bytes in each
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3}  # by the colour type of the header: grey, RGB
_SPARE = 4096  # bytes of packed pixels that no picture is too small for
_LAST_FILTER = 4  # of a line, which each begins with
_MODES = {0: "L", 2: "RGB"}
_GREY = np.array([299, 587, 114])  # thousandths of red, green and blue


@dataclass(frozen=True, slots=True)
class PictureLayout:
    """The size of pictures, and of the cells that are read apart: the boxes of a form, or the whole picture."""

    size: tuple[int, int]  # height and width, in pixels
    cell: tuple[int, int]

    def problems(self) -> list[str]:
        """Lists what is wrong with the sizes, in whole sentences."""
        found = []
        for name, (height, width) in (("size", self.size), ("cell", self.cell)):
            if min(height, width) < CELL or height % CELL or width % CELL:
                found.append(f"{name} is [{height}, {width}]; both must be multiples of {CELL} pixels")
        if self.size[0] * self.size[1] > MOST_PIXELS:
            found.append(f"size is [{self.size[0]}, {self.size[1]}]; a picture has at most {MOST_PIXELS:,} pixels")
        if not found and (self.size[0] % self.cell[0] or self.size[1] % self.cell[1]):
            found.append("cell does not divide size: a picture is made of whole cells")
        return found

    @property
    def sense(self) -> str:
        """Name of what reads pictures before a decoder."""
        return "eye"

    @property
    def said(self) -> str:
        """The sizes in words."""
        return "{} x {} pixels in cells of {} x {}".format(*self.size, *self.cell)

    @property
    def carried(self) -> int:
        """Numbers of 64 bits that a token carries."""
        return SQUARE**2 // 8

    @property
    def cells(self) -> int:
        """Number of cells of a picture."""
        return (self.size[0] // self.cell[0]) * (self.size[1] // self.cell[1])

    @property
    def tokens(self) -> int:
        """N, the tokens that carry a picture: cell by cell, each row by row."""
        return self.size[0] * self.size[1] // SQUARE**2

    def cut(self, pictures_RHW: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """[R * cells, height, width], the cells of pictures."""
        (height, width), rows = self.cell, len(pictures_RHW)
        down, across = self.size[0] // height, self.size[1] // width
        apart = pictures_RHW.reshape(rows, down, height, across, width)
        return apart.transpose(0, 1, 3, 2, 4).reshape(rows * down * across, height, width)

    def squares(self, pictures_RHW: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """[R, N, B], what tokens carry of pictures."""
        (height, width), cells = self.cell, self.cut(pictures_RHW)
        apart = cells.reshape(-1, height // SQUARE, SQUARE, width // SQUARE, SQUARE)
        return apart.transpose(0, 1, 3, 2, 4).reshape(len(pictures_RHW), self.tokens, SQUARE**2)


@dataclass(frozen=True, slots=True)
class PublicPictures:
    """Pictures that teach an eye, and what each shows."""

    layout: PictureLayout
    files: Sequence[bytes]  # PNG
    shown: Sequence[str]  # of each, a word for every cell, in their order


def decode(files: Sequence[bytes], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Decodes PNG files to pictures [R, H, W] in grey.

    Args:
        size: height and width that every picture has.

    Raises:
        InvalidPicture: a file is no such picture; the message says which of several it is, and nothing of it.
    """
    pictures_RHW = np.empty((len(files), *size), dtype=np.uint8)
    for row, file in enumerate(files):
        with _told_of(row, len(files)):
            found = _decoded(file, size)
            pictures_RHW[row] = found if found.ndim == 2 else grey(found)
    return pictures_RHW


def decode_colours(files: Sequence[bytes], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Decodes PNG files to pictures [R, H, W, 3] in red, green and blue; of a grey one all three are the same.

    Raises:
        InvalidPicture: as `decode` does.
    """
    pictures_RHWC = np.empty((len(files), *size, 3), dtype=np.uint8)
    for row, file in enumerate(files):
        with _told_of(row, len(files)):
            found = _decoded(file, size)
            pictures_RHWC[row] = found if found.ndim == 3 else found[..., None]
    return pictures_RHWC


def grey(colours_HWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Makes red, green and blue [..., 3] grey, as in ITU-R BT.601."""
    found: npt.NDArray[np.uint8] = ((colours_HWC @ _GREY + 500) // 1000).astype(np.uint8)
    return found


def plain(file: bytes, size: tuple[int, int]) -> bytes:
    """Returns header, pixels and end of a PNG of this size, and nothing else of it.

    The pixels are unpacked to be counted, and not decoded.

    Raises:
        InvalidPicture: it cannot be decoded; the message says which rule it breaks, and nothing of it.
    """
    return _plain(file, _checked(file, size)[1])


@contextmanager
def _told_of(row: int, rows: int) -> Iterator[None]:
    try:
        yield
    except InvalidPicture as err:
        raise InvalidPicture(f"picture {row + 1} of {rows} {err}" if rows > 1 else str(err)) from None


def _decoded(file: bytes, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """[H, W] of a grey picture, [H, W, 3] of one in colours."""
    from PIL import Image

    kind, pixels = _checked(file, size)
    try:
        with Image.open(io.BytesIO(_plain(file, pixels)), formats=("PNG",)) as image:
            image.load()
            found = np.asarray(image)
            has_mode = image.mode == _MODES[kind]
    except Exception as err:  # of a decoder of hostile bytes
        raise InvalidPicture(f"cannot be decoded ({type(err).__name__})") from None
    if not has_mode or found.shape[:2] != size or found.dtype != np.uint8:
        raise InvalidPicture("is decoded to something else than its header says")
    return found


def _header(file: bytes, size: tuple[int, int]) -> int:
    """Returns the colour type that a file's header states, which must be of a picture that is read."""
    if len(file) > MOST_BYTES:
        raise InvalidPicture(f"is a file of more than {MOST_BYTES >> 20} MiB")
    if file[:8] != _SIGNATURE or file[8:16] != b"\0\0\0\x0dIHDR" or len(file) < 33:
        raise InvalidPicture("is no PNG file")
    width, height, depth, kind, *rest = struct.unpack(">IIBBBBB", file[16:29])
    if (height, width) != size:
        raise InvalidPicture(f"is not {size[0]} pixels high and {size[1]} wide")
    if depth != 8 or kind not in _CHANNELS or any(rest):
        raise InvalidPicture("is not 8 bits grey or RGB without transparency, palette or interlacing")
    return int(kind)


def _checked(file: bytes, size: tuple[int, int]) -> tuple[int, bytes]:
    """Returns the colour type and the compressed pixels, which unpack to just as many bytes as the picture needs."""
    kind = _header(file, size)
    parts, has_ended = [], False
    for name, data in _chunks(file):
        if has_ended:
            raise InvalidPicture("goes on behind its end")
        if name == b"IDAT":
            parts.append(data)
        if name == b"tRNS":
            raise InvalidPicture("has transparency")
        has_ended = name == b"IEND"
        if name[0] & 0x20 == 0 and name not in (b"IHDR", b"IDAT", b"IEND"):  # a reader must know it, says its name
            raise InvalidPicture("has a chunk that is not read")
    if not has_ended:
        raise InvalidPicture("is cut off")
    pixels, line = b"".join(parts), 1 + size[1] * _CHANNELS[kind]
    if len(pixels) > 2 * size[0] * line + _SPARE:  # no encoder needs more: they can be stored as they are
        raise InvalidPicture("has pixels that were packed into far more bytes than they have")
    unpacker = zlib.decompressobj()
    try:
        lines = unpacker.decompress(pixels, size[0] * line + 1)
    except zlib.error:
        raise InvalidPicture("has pixels that cannot be unpacked") from None
    if len(lines) != size[0] * line or not unpacker.eof or unpacker.unused_data:
        raise InvalidPicture("has more or fewer pixels than its header says")
    if max(lines[::line]) > _LAST_FILTER:
        raise InvalidPicture("has lines by a filter that there is not")
    return kind, pixels


def _chunks(file: bytes) -> Iterator[tuple[bytes, bytes]]:
    place, headers, chunks = 8, 0, 0
    while place < len(file):
        chunks += 1
        if chunks > _MOST_CHUNKS:
            raise InvalidPicture(f"has more than {_MOST_CHUNKS:,} chunks")
        length = int.from_bytes(file[place : place + 4], "big")
        name, end = file[place + 4 : place + 8], place + 8 + length
        if len(name) < 4 or end + 4 > len(file):
            raise InvalidPicture("is cut off")
        if not name.isalpha() or zlib.crc32(file[place + 4 : end]) != int.from_bytes(file[end : end + 4], "big"):
            raise InvalidPicture("has a damaged chunk")
        headers += name == b"IHDR"
        if headers > 1:
            raise InvalidPicture("has two headers")
        yield name, file[place + 8 : end]
        place = end + 4


def _plain(file: bytes, pixels: bytes) -> bytes:
    """Writes a PNG of a header and pixels alone."""
    chunks = [(b"IHDR", file[16:29]), (b"IDAT", pixels), (b"IEND", b"")]
    return _SIGNATURE + b"".join(
        len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big") for name, data in chunks
    )
