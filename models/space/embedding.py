"""Gives the points of names, pictures and sounds, by a space in a folder and the backbone that reads its names.

Files come from strangers: pictures and sounds are read as `structure.pictures` and `structure.sounds` do. Legend: `R`
rows, `D` width of the space.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import BackboneMismatch
from ..structure import pictures, sounds
from .space import load_space
from .states import FrozenReader

_ROWS = 64  # at a time
T = TypeVar("T")


class Embedder:
    """Points [R, D] of unit length. The backbone is not read before a name is.

    Args:
        space: folder of a space.
        backbone: folder of the backbone that its names are read by; None where no name is to be read.

    Raises:
        InvalidSpace: the folder holds no space.
    """

    def __init__(self, space: Path, backbone: Path | None) -> None:
        self._space, self.hash = load_space(space)
        self._backbone, self.width = backbone, self._space.sizes.width

    @cached_property
    def _reader(self) -> FrozenReader:
        sizes = self._space.sizes
        if self._backbone is None:
            raise BackboneMismatch(f"names are read by the backbone {sizes.backbone}, and no backbone is told")
        reader = FrozenReader(self._backbone, sizes.reads, expected_hash=sizes.backbone)
        if reader.width != sizes.states:
            raise BackboneMismatch(f"gives {reader.width} numbers of a name; the space takes {sizes.states}")
        return reader

    @torch.no_grad()
    def names(self, texts: Sequence[str]) -> Tensor:
        """Points of names.

        Raises:
            BackboneMismatch: there is no backbone, or it is not the one of the space.
        """
        return self._space.names(self._reader.states(texts)) if texts else self._none()

    @torch.no_grad()
    def pictures(self, files: Sequence[bytes]) -> Tensor:
        """Points of PNG files, each the mean of a picture and its mirror image.

        Raises:
            InvalidPicture: one is no picture of the space's size.
        """
        layout, found = self._space.sizes.pictures, [self._none()]
        for some in _parts(files):
            seen_RHWC = torch.from_numpy(pictures.decode_colours(some, layout.size))
            both = self._space.pictures(seen_RHWC) + self._space.pictures(seen_RHWC.flip(2))
            found.append(F.normalize(both, dim=-1))
        return torch.cat(found)

    @torch.no_grad()
    def sounds(self, files: Sequence[bytes]) -> Tensor:
        """Points of WAV files.

        Raises:
            InvalidSound: one is no sound of the space's rate and length.
        """
        layout, found = self._space.sizes.sounds, [self._none()]
        for some in _parts(files):
            found.append(self._space.sounds(torch.from_numpy(sounds.decode(some, layout))))
        return torch.cat(found)

    def of_kind(self, kind: str) -> Callable[[Sequence[bytes]], Tensor]:
        """Returns what embeds files of a kind: picture, sound, or text in UTF-8.

        What is no UTF-8 in a text is read as a sign of its own.
        """
        known: dict[str, Callable[[Sequence[bytes]], Tensor]] = {
            "picture": self.pictures,
            "sound": self.sounds,
            "text": lambda files: self.names([" ".join(file.decode(errors="replace").split()) for file in files]),
        }
        return known[kind]

    def _none(self) -> Tensor:
        return torch.zeros(0, self.width)


def _parts(files: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(files), _ROWS):
        yield files[start : start + _ROWS]
