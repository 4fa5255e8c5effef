"""An eye before a decoder: a Swin transformer (arXiv:2103.14030) reads the picture that a row begins with.

It reads cell by cell, each by itself, and gives a state for every square of 16 pixels a side: the transformer's last
states of the square side by side, projected to the decoder's width, plus a vector of the square's place. From there on
a square is a token as any other: it writes its keys and values by the same matrices as words do, in latent attention
(DeepSeek-V3) by the same latents.

The eye lies beside a backbone's weights in a file of its own. Its linear layers take adapters, named with `eye.` before
them. A pyramid has another number of tokens at each stage, so each adapter says how many it sees of a row.

Legend: `R` rows (records), `T` tokens, `N` of them a picture's, `B` bytes that one carries, `D` decoder width, `E`
width of a square.
"""

import inspect
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .. import tokens
from ..errors import BackboneMismatch, InvalidBackbone
from ..strict import StrictModel
from .pictures import SQUARE, Layout
from .places import EYE, NAME

_PATCH, _STRIDE = 4, 8  # pixels of a patch of the first stage, and of the second one
_MOST_WIDTH, _MOST_DEPTH, _MOST_WINDOW = 2048, 64, 16  # a layer holds window ** 4 numbers that no file pays for
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


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
    def layout(self) -> Layout:
        """The pictures that are read, and their cells."""
        return Layout(self.size, self.cell)

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


class Eye(nn.Module):
    """The eye of a decoder of width `hidden`."""

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
        self.to_words = nn.Linear(config.width * 2 * (SQUARE // _STRIDE) ** 2, hidden)
        self.where = nn.Parameter(torch.randn(self.layout.tokens, hidden) * 0.1)

    @property
    def carried(self) -> int:
        """Numbers of 64 bits that a token carries."""
        return SQUARE**2 // tokens.WIDTH

    def forward(self, bytes_RNB: Tensor) -> Tensor:
        """[R, N, D], the states of the tokens that carry pictures."""
        states_RNE = self.squares(self.cells(bytes_RNB)).view(*bytes_RNB.shape[:2], -1)
        seen: Tensor = self.to_words(states_RNE) + self.where
        return seen

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


def join(model: Any, eye: Eye) -> None:
    """Puts an eye before the decoder of a causal language model: rows that carry bytes begin with a picture.

    Raises:
        InvalidBackbone: the model has one already, or is of another width.
    """
    if eye_of(model) is not None:
        raise InvalidBackbone("the model has an eye already")
    if eye.where.shape[1] != model.config.hidden_size:
        raise InvalidBackbone(f"an eye for states of {eye.where.shape[1]} numbers, not {model.config.hidden_size}")
    model.model.eye = eye
    model.model.register_forward_pre_hook(_look_first, with_kwargs=True)


def eye_of(model: Any) -> Eye | None:
    """Returns the eye of a causal language model, or of its decoder; None if it has none."""
    found: Eye | None = getattr(getattr(model, "model", model), NAME, None)
    return found


def require_layout(model: Any, layout: Layout | None) -> None:
    """Makes sure that a model reads pictures of this layout, or none.

    Raises:
        BackboneMismatch: it has no eye, or one that records would not use, or one for other pictures.
    """
    eye = eye_of(model)
    if (None if eye is None else eye.layout) == layout:
        return
    if eye is None:
        raise BackboneMismatch("has no eye, and the study's records begin with a picture")
    if layout is None:
        raise BackboneMismatch("has an eye, and the study's records have no pictures")
    raise BackboneMismatch(
        f"has an eye for pictures of {_said(eye.layout)}, and the study's are of {_said(layout)}: see data.picture"
    )


def _said(layout: Layout) -> str:
    return "{} x {} pixels in cells of {} x {}".format(*layout.size, *layout.cell)


@torch.no_grad()
def tokens_seen(eye: Eye, names: frozenset[str]) -> dict[str, int]:
    """Counts the tokens of a row that each of an eye's modules sees, by the module's name in the eye."""
    seen: dict[str, int] = {}
    device = eye.where.device

    def watch(name: str, module: nn.Module) -> Any:
        return module.register_forward_hook(
            lambda _module, inputs, _output: seen.__setitem__(name, inputs[0].numel() // inputs[0].shape[-1])
        )

    handles = [watch(name, module) for name, module in eye.named_modules() if name in names]
    try:
        eye(torch.zeros(1, eye.layout.tokens, SQUARE**2, dtype=torch.uint8, device=device))
    finally:
        for handle in handles:
            handle.remove()
    return seen


def save(model: Any, directory: Path) -> None:
    """Writes the eye of a model beside its weights."""
    eye = eye_of(model)
    assert eye is not None, "no eye to save"
    weights = {name: tensor.detach().contiguous() for name, tensor in eye.state_dict().items()}
    save_file(weights, Path(directory) / EYE, metadata={"sizes": json.dumps(asdict(eye.settings))})


def load(directory: Path, model: Any) -> None:
    """Joins a model to the eye that lies beside its weights, frozen; does nothing if there is none.

    Raises:
        InvalidBackbone: it is broken, or does not fit the model.
    """
    path = Path(directory) / EYE
    if not path.exists():
        return
    try:
        with safe_open(path, framework="pt") as file:
            config = EyeConfig.from_json((file.metadata() or {}).get("sizes", ""))
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
            with torch.device("meta"):
                eye = Eye(config, model.config.hidden_size)
            if shapes != {name: tuple(tensor.shape) for name, tensor in eye.state_dict().items()}:
                raise InvalidBackbone("an eye whose weights are of other shapes than its sizes say")
            weights = {name: file.get_tensor(name) for name in shapes}
    except (OSError, SafetensorError) as err:
        raise InvalidBackbone(f"{path}: cannot be read ({str(err)[:100]})") from err
    except InvalidBackbone as err:
        raise InvalidBackbone(f"{path}: {err}") from None
    table = model.get_input_embeddings().weight
    for name, tensor in weights.items():
        if tensor.dtype not in _FLOATS or not bool(torch.isfinite(tensor.to(table.dtype)).all()):
            raise InvalidBackbone(f"{path}: an eye whose {name} is not of finite numbers")
    with torch.random.fork_rng(devices=[]):
        eye = Eye(config, model.config.hidden_size)
    eye.load_state_dict(weights)
    join(model, eye.to(table.device, table.dtype).requires_grad_(False).eval())


def _look_first(decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Embeds the rows of a forward pass, pictures by the eye, where they carry any."""
    kwargs = dict(zip(inspect.signature(decoder.forward).parameters, args, strict=False)) | kwargs
    ids = kwargs.get("input_ids")
    if ids is None or ids.ndim != 3:
        return (), kwargs
    return (), kwargs | {"input_ids": None, "inputs_embeds": _embedded(decoder, ids)}


def _embedded(decoder: Any, ids_RTC: Tensor) -> Tensor:
    """[R, T, D]; a row that is shorter than a picture, as only probes have, sees the beginning of one."""
    words_RTD: Tensor = decoder.embed_tokens(tokens.words_of(ids_RTC))
    # Where states are given that were computed before, nobody reads what the eye would see.
    if getattr(decoder.layers[0], "is_stand_in", False):
        return words_RTD
    length, count = words_RTD.shape[1], decoder.eye.layout.tokens
    bytes_RNB = tokens.bytes_of(ids_RTC[:, :count])
    seen_RND = decoder.eye(nn.functional.pad(bytes_RNB, (0, 0, 0, max(0, count - length))))
    return torch.cat([seen_RND[:, :length].to(words_RTD.dtype), words_RTD[:, count:]], dim=1)
