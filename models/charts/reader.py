"""A reader of charts: a network that points at marks and reads labels. It measures nothing by itself (`reading`).

It points as CenterNet does (arXiv:1904.07850): for every square of 4 pixels and every kind of mark it says how likely
a mark is there, and where exactly. Two stages of a Swin transformer (arXiv:2103.14030) see what surrounds a square,
three convolutions see its pixels. Labels are read letter by letter in columns of 2 pixels and joined by connectionist
temporal classification (Graves et al., ICML 2006), so a letter is read alike wherever it stands, and a label of a shape
never seen is read by its letters.

Legend: `B` charts, `H`, `W` pixels, `h`, `w` squares, `K` kinds of marks, `L` labels, `S` columns of a label, `C`
letters and blank.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InvalidChart
from ..strict import StrictModel

HEIGHT, WIDTH = 192, 320  # pixels of a chart
STRIDE = 4  # pixels on each side of a square
KINDS = ("value", "y tick", "x tick", "multiplier")
WRITTEN = "0123456789.,-%"  # letters of labels
UNKNOWN = "?"  # any other letter
LETTERS = WRITTEN + UNKNOWN
CROP_HEIGHT, CROP_WIDTH = 24, 72  # pixels of a label
COLUMN = 2  # pixels of what a letter is read in
_RARE = -4.0  # logit of a mark before training: almost all squares have none
_MOST_WIDTH, _MOST_DEPTH = 256, 12
_MOST_BYTES = 1 << 26
_TYPES = ("F16", "F32")
_READER = Path(__file__).with_name("reader.safetensors")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReaderConfig:
    """Sizes of a reader."""

    width: int = 24  # of the first stage of the transformer; the second has twice that
    depths: tuple[int, int] = (2, 2)
    heads: tuple[int, int] = (2, 4)
    window: int = 4  # squares on each side of what attends to each other
    label_width: int = 48

    def __post_init__(self) -> None:
        fits = all(
            1 <= depth <= _MOST_DEPTH and heads >= 1 and (self.width << stage) % heads == 0
            for stage, (depth, heads) in enumerate(zip(self.depths, self.heads, strict=True))
        )
        if not fits or not 1 <= min(self.width, self.label_width) <= max(self.width, self.label_width) <= _MOST_WIDTH:
            raise InvalidChart("a reader of such widths, heads and depths cannot be built")
        if self.window not in (4, 8):  # which divide both stages
            raise InvalidChart("a reader's window is 4 or 8 squares")


class _Sizes(StrictModel):
    width: int
    depths: tuple[int, int]
    heads: tuple[int, int]
    window: int
    label_width: int


class ChartReader(nn.Module):
    """Points at the marks of charts, and reads the labels beside them."""

    def __init__(self, config: ReaderConfig) -> None:
        from transformers import SwinBackbone, SwinConfig

        super().__init__()
        self.config, width = config, config.width
        stages: dict[str, Any] = {"out_features": ["stage1", "stage2"]}  # which the class takes, but does not declare
        self.swin = SwinBackbone(
            SwinConfig(
                image_size=[HEIGHT, WIDTH], patch_size=2 * STRIDE, num_channels=1, embed_dim=width,
                depths=list(config.depths), num_heads=list(config.heads), window_size=config.window,
                drop_path_rate=0.0, **stages,
            )
        )  # fmt: skip
        self.near = nn.Sequential(
            nn.Conv2d(1, 24, 5, 2, 2), nn.GELU(), nn.Conv2d(24, 64, 3, 2, 1), nn.GELU(),
            nn.Conv2d(64, 64, 3, padding=1), nn.GELU(),
        )  # fmt: skip
        last = nn.Conv2d(64, 3 * len(KINDS), 1)
        self.point = nn.Sequential(
            nn.Conv2d(3 * width + 64, 64, 1), nn.GELU(), nn.Conv2d(64, 64, 3, padding=1), nn.GELU(), last
        )
        assert last.bias is not None
        with torch.no_grad():
            last.bias.view(len(KINDS), 3)[:, 0] = _RARE
        wide = config.label_width
        self.label = nn.Sequential(
            nn.Conv2d(1, wide // 2, 3, padding=1), nn.GELU(), nn.MaxPool2d(2),
            nn.Conv2d(wide // 2, wide, 3, padding=1), nn.GELU(), nn.MaxPool2d((2, 1)),
            nn.Conv2d(wide, wide, 3, padding=1), nn.GELU(),
            nn.Conv2d(wide, 2 * wide, (CROP_HEIGHT // 4, 3), padding=(0, 1)), nn.GELU(), nn.Flatten(2),
            nn.Conv1d(2 * wide, len(LETTERS) + 1, 3, padding=1),
        )  # fmt: skip

    def forward(self, charts_BHW: Tensor) -> Tensor:
        """[B, h, w, K, 3]: for each square and kind the logit of a mark, and its x and y from the middle in squares.

        Args:
            charts_BHW: uint8, grey.
        """
        ink_B1HW = 1 - charts_BHW[:, None].float() / 255
        near = self.near(ink_B1HW)
        around = [
            F.interpolate(stage, size=near.shape[-2:], mode="bilinear") for stage in self.swin(ink_B1HW).feature_maps
        ]
        found: Tensor = self.point(torch.cat([near, *around], 1))
        by_square = found.permute(0, 2, 3, 1)
        return by_square.reshape(*by_square.shape[:3], len(KINDS), 3)

    def letters(self, labels_LHW: Tensor) -> Tensor:
        """[L, S, C], the logits of letters in each column; the last one of `C` is the blank between them.

        Args:
            labels_LHW: uint8 [L, CROP_HEIGHT, CROP_WIDTH], grey.
        """
        found: Tensor = self.label(1 - labels_LHW[:, None].float() / 255)
        return found.transpose(1, 2)


def cut_label(picture_HW: npt.NDArray[np.uint8], edge: float, y: float) -> npt.NDArray[np.uint8]:
    """Cuts out the label on the left of a tick, of `edge` and `y` in pixels; white where the chart ends."""
    top = min(max(round(y), 0), HEIGHT) - CROP_HEIGHT // 2
    right = min(max(round(edge), 0), WIDTH) - 1
    padded = np.pad(picture_HW, ((CROP_HEIGHT, CROP_HEIGHT), (CROP_WIDTH, CROP_WIDTH)), constant_values=255)
    return padded[top + CROP_HEIGHT : top + 2 * CROP_HEIGHT, right : right + CROP_WIDTH]


def save(reader: ChartReader, path: Path) -> None:
    """Writes a reader as one file, in half precision."""
    weights = {name: tensor.detach().half().contiguous() for name, tensor in reader.state_dict().items()}
    save_file(weights, path, metadata={"sizes": json.dumps(asdict(reader.config))})


def load(path: Path | None = None) -> tuple[ChartReader, str]:
    """Reads a reader and returns it with the SHA-256 of its file; by default the one that comes with this package.

    Raises:
        InvalidChart: the file is missing or broken.
    """
    path = _READER if path is None else Path(path)
    try:
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:
            raise InvalidChart(f"{path}: is no reader of charts (no file, or one of more than {_MOST_BYTES >> 20} MiB)")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        with safe_open(path, framework="pt") as file:
            sizes = _Sizes.model_validate_json((file.metadata() or {}).get("sizes", ""))
            with torch.random.fork_rng(devices=[]):
                reader = ChartReader(ReaderConfig(**sizes.model_dump()))
            own = reader.state_dict()
            shapes: dict[str, Any] = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
            if shapes != {name: tuple(tensor.shape) for name, tensor in own.items()} or any(
                file.get_slice(name).get_dtype() not in _TYPES for name in shapes
            ):
                raise InvalidChart(f"{path}: its weights are of other shapes or types than a reader has")
            weights = {name: file.get_tensor(name).to(own[name].dtype) for name in shapes}
    except (OSError, SafetensorError, ValidationError) as err:
        raise InvalidChart(f"{path}: is no reader of charts ({type(err).__name__})") from None
    if not all(bool(torch.isfinite(tensor).all()) for tensor in weights.values()):
        raise InvalidChart(f"{path}: its weights are not finite numbers")
    reader.load_state_dict(weights)
    return reader.requires_grad_(False).eval(), digest
