"""An eye before a decoder: a Swin transformer (arXiv:2103.14030) reads the picture that a row begins with.

It reads cell by cell, each by itself, and gives a state for every square of 16 pixels a side: the transformer's last
states of the square side by side, projected to the decoder's width, plus a vector of the square's place. What it shares
with an ear is in `sense`. A pyramid has another number of tokens at each stage.

Legend: `R` rows (records), `N` tokens of a picture, `B` bytes that one carries, `D` decoder width, `E` width of a
square.
"""

from dataclasses import dataclass

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from ..errors import InvalidBackbone
from ..strict import StrictModel
from .pictures import SQUARE, PictureLayout
from .places import EYE
from .sense import Sense

_PATCH, _STRIDE = 4, 8  # pixels of a patch of the first stage, and of the second one
_MOST_WIDTH, _MOST_DEPTH, _MOST_WINDOW = 2048, 64, 16  # a layer holds window ** 4 numbers that no file pays for


@dataclass(frozen=True, kw_only=True, slots=True)
class EyeConfig:
    """Sizes of an eye: two stages, at patches of 4 and of 8 pixels."""

    size: tuple[int, int]  # of a picture: height and width in pixels
    cell: tuple[int, int]  # of what is read by itself
    width: int = 24  # of the first stage; the second has twice that
    depths: tuple[int, int] = (2, 2)  # layers of each stage
    heads: tuple[int, int] = (2, 4)
    window: int = 4  # patches on each side of what attends to each other

    def __post_init__(self) -> None:
        if problems := self.layout.problems():
            raise InvalidBackbone(f"an eye for pictures whose {problems[0]}")
        sizes_fit = (
            1 <= self.width <= _MOST_WIDTH
            and self.window <= _MOST_WINDOW
            and all(
                1 <= depth <= _MOST_DEPTH and heads >= 1 and (self.width << stage) % heads == 0
                for stage, (depth, heads) in enumerate(zip(self.depths, self.heads, strict=True))
            )
        )
        if not sizes_fit:
            raise InvalidBackbone("an eye of such widths, heads, depths and windows cannot be built")
        # A stage that is smaller than its window breaks transformers' Swin; one that is no multiple of it is padded.
        if not 1 <= self.window <= min(self.cell) // _STRIDE or any(
            side // _STRIDE % self.window for side in self.cell
        ):
            raise InvalidBackbone(
                f"an eye whose window of {self.window} patches does not divide the last stage of a cell, "
                f"{self.cell[0] // _STRIDE} x {self.cell[1] // _STRIDE} patches"
            )

    @property
    def layout(self) -> PictureLayout:
        """The pictures that are read, and their cells."""
        return PictureLayout(self.size, self.cell)

    @classmethod
    def from_json(cls, text: str) -> "EyeConfig":
        """Reads what an eye's file says of its sizes.

        Raises:
            InvalidBackbone: it is something else.
        """
        try:
            return cls(**_Sizes.model_validate_json(text).model_dump())
        except ValidationError:
            raise InvalidBackbone("an eye whose sizes are not stated as they must be") from None


class _Sizes(StrictModel):
    size: tuple[int, int]
    cell: tuple[int, int]
    width: int
    depths: tuple[int, int]
    heads: tuple[int, int]
    window: int


class Eye(Sense):
    """The eye of a decoder of width `hidden`."""

    name = EYE
    layout: PictureLayout

    def __init__(self, config: EyeConfig, hidden: int) -> None:
        from transformers import SwinConfig, SwinModel

        super().__init__()
        self.settings, self.layout = config, config.layout
        self.swin = SwinModel(
            SwinConfig(
                image_size=list(config.cell), patch_size=_PATCH, num_channels=1, embed_dim=config.width,
                depths=list(config.depths), num_heads=list(config.heads), window_size=config.window,
                drop_path_rate=0.0,
            ),
            add_pooling_layer=False,
        )  # fmt: skip
        self.width = config.width * 2 * (SQUARE // _STRIDE) ** 2
        self.to_words = nn.Linear(self.width, hidden)
        self.where = nn.Parameter(torch.randn(self.layout.tokens, hidden) * 0.1)

    @property
    def encoder(self) -> nn.Module:
        """The transformer."""
        return self.swin

    def features(self, bytes_RNB: Tensor) -> Tensor:
        """[R, N, E], the transformer's last states of each square."""
        return self.squares(self.cells(bytes_RNB)).view(*bytes_RNB.shape[:2], -1)

    def cells(self, bytes_RNB: Tensor) -> Tensor:
        """[R * cells, height, width] float, from 1 for white to -1 for black, of what tokens carry."""
        height, width = (side // SQUARE for side in self.layout.cell)
        apart = bytes_RNB.reshape(-1, height, width, SQUARE, SQUARE).transpose(2, 3)
        return scaled(apart.reshape(-1, height * SQUARE, width * SQUARE), self.where.dtype)

    def squares(self, cells_CHW: Tensor) -> Tensor:
        """[cells, squares of a cell, E], the transformer's last states, side by side for each square."""
        height, width = (side // _STRIDE for side in self.layout.cell)
        last = self.swin(cells_CHW[:, None]).last_hidden_state
        grid = last.transpose(1, 2).unflatten(2, (height, width))
        return nn.functional.pixel_unshuffle(grid, SQUARE // _STRIDE).flatten(2).transpose(1, 2)


def scaled(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """Scales grey as an eye sees it: from 1 for white to -1 for black."""
    return pixels.to(dtype) / 127.5 - 1
