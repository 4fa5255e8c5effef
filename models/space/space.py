"""One space: a name, a picture and a sound of one thing become points that lie near each other.

Three towers, each of which gives points of unit length. Names are read by an imported model that stays as it is
(`states`); of its states, scaled by what public names have, a small network makes the point. A picture is seen by an
eye and, in colour, as a small thumbnail; a sound is heard by an ear. Both are trained with the space, or imported and
stay as they are (`encoders`). Numbers for centring and scaling are those of public things alone: a site's own mean
would say something about its records.

Each tower first makes states of what it is given, of which nothing is learned, and then points of these. A space with
an imported ear keeps the points of the public names that it was trained on, and brings pictures and sounds nearer to
those that they are most like: as a picture and a sound never met, they are compared by the names that both suggest.
At last all points are whitened a little: an axis along which the kept names differ much counts for less.

Legend: `R` rows, `E` numbers of a text's states, `A` axes kept of them, `D` width of the space, `H`, `W` pixels,
`C` colours, `S` samples, `N` tokens of a picture or a sound, `V` views of a sound, `P` numbers of an imported eye,
`G` names that are kept.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional as F

from ..directories import new_directory
from ..errors import InvalidBackbone, InvalidSpace
from ..files import read_at_most
from ..strict import Digest, StrictModel
from ..structure.ear import Ear, EarConfig
from ..structure.eye import Eye, EyeConfig, scaled
from ..structure.pictures import PictureLayout
from ..structure.sounds import SoundLayout
from .encoders import PICTURE_STATES, EfficientNetLite0, WhisperEar, WhisperSizes

SETTINGS, WEIGHTS = "space.json", "space.safetensors"
_MOST_SETTINGS, _MOST_WEIGHTS = 2**14, 2**28  # bytes of the files
_THUMBNAIL = 8  # pixels on each side
_VIEWS = 4  # of a sound, each a mean of its states by weights of its own
_IMPORTED_VIEWS = 8  # the same, of an imported ear
_DROPOUT = 0.1
_PICTURE_DROPOUT, _SOUND_DROPOUT = 0.3, 0.2  # of the states of an imported eye, and ear
_SHARPNESS = 25.0  # of the weights of names that a picture or a sound is brought nearer to
_LEAST_VARIANCE = 0.01  # of kept names along an axis, over the mean of all axes
_GREY = (0.299, 0.587, 0.114)  # of red, green and blue, as in ITU-R BT.601

_Size = Annotated[int, Field(ge=1, le=4096)]


class SpaceSizes(StrictModel):
    """Sizes of a space, and the backbone that reads its names: what `space.json` holds."""

    backbone: Digest
    reads: Annotated[tuple[Annotated[int, Field(ge=0, le=1000)], ...], Field(min_length=1, max_length=16)]
    states: Annotated[int, Field(ge=1, le=2**17)]  # E
    axes: _Size
    width: _Size = 128
    side: Annotated[int, Field(ge=32, le=256, multiple_of=32)] = 32  # of a picture, in pixels
    eye: Annotated[int, Field(ge=8, le=512)] = 32  # width of the eye
    rate: int = 8000  # samples a second
    seconds: Annotated[int, Field(ge=1, le=10)] = 2
    ear: Annotated[int, Field(ge=8, le=512)] = 64  # width of the ear
    imported_eye: Literal["efficientnet-lite0"] | None = None  # in place of an eye of our own
    imported_ear: WhisperSizes | None = None
    kept_names: Annotated[int, Field(ge=0, le=200_000)] = 0  # G
    whitening: Annotated[float, Field(ge=0, le=0.5)] = 0.0  # power of the kept names' variances; 0: none, 0.5: all

    @property
    def pictures(self) -> PictureLayout:
        """The pictures that are seen, each one cell."""
        return PictureLayout((self.side, self.side), (self.side, self.side))

    @property
    def sounds(self) -> SoundLayout:
        """The sounds that are heard."""
        return SoundLayout(self.rate, self.seconds)


class _Names(nn.Module):
    def __init__(self, sizes: SpaceSizes) -> None:
        super().__init__()
        for name, shape in (("center", (sizes.states,)), ("axes", (sizes.states, sizes.axes))):
            self.register_buffer(name, torch.zeros(shape))
        self.center: Tensor
        self.axes: Tensor
        self.first = nn.Linear(sizes.axes, sizes.width)
        self.more = _network(sizes.width, 2 * sizes.width, sizes.width)

    def coordinates(self, states_RE: Tensor) -> Tensor:
        """[R, A], along the axes; nothing of this is learned."""
        found: Tensor = F.normalize((states_RE - self.center) @ self.axes, dim=-1) * self.axes.shape[1] ** 0.5
        return found

    def forward(self, kept_RA: Tensor) -> Tensor:
        first_RD = self.first(F.dropout(kept_RA, _DROPOUT, self.training))
        return F.normalize(first_RD + self.more(first_RD), dim=-1)


class _Pictures(nn.Module):
    def __init__(self, sizes: SpaceSizes) -> None:
        super().__init__()
        layout = sizes.pictures
        self.eye = Eye(EyeConfig(size=layout.size, cell=layout.cell, width=sizes.eye), sizes.width // 2)
        self.colours = nn.Sequential(nn.Linear(3 * _THUMBNAIL**2, sizes.width), nn.GELU())
        self.last = nn.Linear(layout.tokens * (sizes.width // 2) + sizes.width, sizes.width)

    def states(self, pictures_RHWC: Tensor) -> Tensor:
        return scaled(pictures_RHWC, torch.float32).permute(0, 3, 1, 2)

    def forward(self, scaled_RCHW: Tensor) -> Tensor:
        grey_RHW = torch.einsum("rchw,c->rhw", scaled_RCHW, scaled_RCHW.new_tensor(_GREY))
        seen_RND = self.eye.to_words(self.eye.squares(grey_RHW)) + self.eye.where
        thumbnail = self.colours(F.adaptive_avg_pool2d(scaled_RCHW, _THUMBNAIL).flatten(1))
        both = torch.cat([seen_RND.flatten(1), thumbnail], dim=1)
        return F.normalize(self.last(F.dropout(both, _DROPOUT, self.training)), dim=-1)


class _Sounds(nn.Module):
    def __init__(self, sizes: SpaceSizes) -> None:
        super().__init__()
        self.ear = Ear(EarConfig(rate=sizes.rate, seconds=sizes.seconds, width=sizes.ear), sizes.width)
        self.weights = nn.Linear(sizes.width, _VIEWS)
        self.last = nn.Linear(sizes.width * (_VIEWS + 1), sizes.width)

    def states(self, sounds_RS: Tensor) -> Tensor:
        return self.ear.spectra(sounds_RS)

    def forward(self, spectra_RMF: Tensor) -> Tensor:
        heard_RND = self.ear.to_words(self.ear.pieces(spectra_RMF)) + self.ear.where
        views_RVD = self.weights(heard_RND).softmax(1).transpose(1, 2) @ heard_RND
        both = torch.cat([views_RVD.flatten(1), heard_RND.mean(1)], dim=1)
        return F.normalize(self.last(F.dropout(both, _DROPOUT, self.training)), dim=-1)


class SeenPictures(nn.Module):
    """The tower of pictures behind an imported eye."""

    def __init__(self, sizes: SpaceSizes) -> None:
        super().__init__()
        self.eye = EfficientNetLite0().requires_grad_(False).eval()
        for name in ("center", "spread"):
            self.register_buffer(name, torch.full((PICTURE_STATES,), float(name == "spread")))
        self.center: Tensor
        self.spread: Tensor
        self.last = nn.Linear(PICTURE_STATES, sizes.width)

    def train(self, mode: bool = True) -> "SeenPictures":
        """Sets the mode of all but the eye."""
        super().train(mode)
        self.eye.eval()  # its norms keep what ImageNet's photographs have
        return self

    @torch.no_grad()
    def states(self, pictures_RHWC: Tensor) -> Tensor:
        """[R, P] of pictures; nothing of this is learned."""
        found: Tensor = self.eye(pictures_RHWC)
        return found

    def forward(self, states_RP: Tensor) -> Tensor:
        """[R, D], points of unit length."""
        even_RP = (states_RP - self.center) / self.spread
        return F.normalize(self.last(F.dropout(even_RP, _PICTURE_DROPOUT, self.training)), dim=-1)


class HeardSounds(nn.Module):
    """The tower of sounds behind an imported ear."""

    def __init__(self, sizes: SpaceSizes, ear: WhisperSizes) -> None:
        super().__init__()
        self.ear = WhisperEar(ear, sizes.rate, sizes.seconds).requires_grad_(False).eval()
        self.where = nn.Parameter(torch.zeros(self.ear.moments, sizes.width))
        self.first, self.other = (nn.Linear(ear.width, sizes.width) for _ in range(2))
        self.weights = nn.Linear(sizes.width, _IMPORTED_VIEWS)
        self.last = nn.Linear(sizes.width * (_IMPORTED_VIEWS + 1), sizes.width)

    def train(self, mode: bool = True) -> "HeardSounds":
        """Sets the mode of all but the ear."""
        super().train(mode)
        self.ear.eval()
        return self

    @torch.no_grad()
    def states(self, sounds_RS: Tensor) -> Tensor:
        """[R, N, E] of sounds; nothing of this is learned."""
        found: Tensor = self.ear(sounds_RS)
        return found

    def forward(self, states_RNE: Tensor) -> Tensor:
        """[R, D], points of unit length."""
        kept_RNE = F.dropout(states_RNE, _SOUND_DROPOUT, self.training)
        weights_RNV = self.weights(F.gelu(self.first(kept_RNE) + self.where)).softmax(1)
        heard_RND = F.gelu(self.other(kept_RNE) + self.where)
        both = torch.cat([(weights_RNV.transpose(1, 2) @ heard_RND).flatten(1), heard_RND.mean(1)], dim=1)
        return F.normalize(self.last(F.dropout(both, _SOUND_DROPOUT, self.training)), dim=-1)


class Space(nn.Module):
    """The three towers; each gives points [R, D] of unit length, for each row by itself."""

    def __init__(self, sizes: SpaceSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.of_names = _Names(sizes)
        self.of_pictures = SeenPictures(sizes) if sizes.imported_eye else _Pictures(sizes)
        self.of_sounds = HeardSounds(sizes, sizes.imported_ear) if sizes.imported_ear else _Sounds(sizes)
        self.kept_names_GD: Tensor | None
        self.register_buffer("kept_names_GD", torch.zeros(sizes.kept_names, sizes.width) if sizes.kept_names else None)
        self.center_D: Tensor | None
        self.whitening_DD: Tensor | None
        is_whitened = bool(sizes.kept_names) and sizes.whitening > 0
        self.register_buffer("center_D", torch.zeros(sizes.width) if is_whitened else None)
        self.register_buffer("whitening_DD", torch.eye(sizes.width) if is_whitened else None)

    @torch.no_grad()
    def keep_names(self, states_GE: Tensor) -> None:
        """Keeps the points of public names, by their states, where the sizes say so, and whitens by them."""
        if self.kept_names_GD is None:
            return
        self.kept_names_GD.copy_(self._read(states_GE))
        if self.center_D is None or self.whitening_DD is None:
            return
        kept_GD = self.kept_names_GD.double()
        variances_D, axes_DD = torch.linalg.eigh(torch.cov(kept_GD.T, correction=0))
        least = max(_LEAST_VARIANCE * float(variances_D.mean()), 1e-12)  # of names that are all alike, too
        larger_D = variances_D.clamp_min(least) ** -self.sizes.whitening
        self.center_D.copy_(kept_GD.mean(0))
        self.whitening_DD.copy_(axes_DD * larger_D @ axes_DD.T)

    def names(self, states_RE: Tensor) -> Tensor:
        """Points of names, by their states; see `states.FrozenReader`."""
        return self._whitened(self._read(states_RE))

    def pictures(self, pictures_RHWC: Tensor) -> Tensor:
        """Points of pictures in red, green and blue, from 0 to 255."""
        return self._whitened(self._nearer_to_names(self.of_pictures(self.of_pictures.states(pictures_RHWC))))

    def sounds(self, sounds_RS: Tensor) -> Tensor:
        """Points of sounds, int16."""
        return self._whitened(self._nearer_to_names(self.of_sounds(self.of_sounds.states(sounds_RS))))

    def _read(self, states_RE: Tensor) -> Tensor:
        found: Tensor = self.of_names(self.of_names.coordinates(states_RE))
        return found

    def _nearer_to_names(self, points_RD: Tensor) -> Tensor:
        """Means of points and of what a Hopfield network of the kept names gives of them (arXiv:2008.02217, eq. 3)."""
        if self.kept_names_GD is None:
            return points_RD
        recalled_RD = (_SHARPNESS * points_RD @ self.kept_names_GD.T).softmax(-1) @ self.kept_names_GD
        return F.normalize(points_RD + F.normalize(recalled_RD, dim=-1), dim=-1)

    def _whitened(self, points_RD: Tensor) -> Tensor:
        if self.center_D is None or self.whitening_DD is None:
            return points_RD
        return F.normalize((points_RD - self.center_D) @ self.whitening_DD, dim=-1)


def save_space(space: Space, directory: Path) -> str:
    """Writes a space into a folder that must not exist; returns its hash.

    Raises:
        FileExistsError: it exists.
        InvalidSpace: its weights take more than is read again.
    """
    with new_directory(directory) as partial:
        stated = json.dumps(space.sizes.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"
        weights = save({name: tensor.detach().contiguous() for name, tensor in space.state_dict().items()})
        if len(weights) > _MOST_WEIGHTS:
            raise InvalidSpace(f"a space of more than {_MOST_WEIGHTS >> 20} MiB is not read again: take a smaller ear")
        (partial / SETTINGS).write_text(stated, encoding="utf-8")
        (partial / WEIGHTS).write_bytes(weights)
    return _hash_of(stated.encode(), weights)


def load_space(directory: Path) -> tuple[Space, str]:
    """Reads a space, in evaluation mode and frozen, and its hash.

    Raises:
        InvalidSpace: the folder holds something else.
    """
    stated = read_file(Path(directory) / SETTINGS, _MOST_SETTINGS)
    weights = read_file(Path(directory) / WEIGHTS, _MOST_WEIGHTS)
    try:
        sizes = SpaceSizes.model_validate_json(stated)
        with torch.device("meta"):
            wanted = {name: tensor.shape for name, tensor in Space(sizes).state_dict().items()}
        tensors = load(weights)
    except (ValidationError, InvalidBackbone):
        raise InvalidSpace(f"{directory}/{SETTINGS} does not state the sizes of a space") from None
    except (SafetensorError, ValueError) as err:
        raise InvalidSpace(f"{directory}/{WEIGHTS} cannot be read ({str(err)[:100]})") from None
    if {name: tensor.shape for name, tensor in tensors.items()} != wanted:
        raise InvalidSpace(f"{directory}/{WEIGHTS} has other weights than {SETTINGS} says")
    counts = {name for name in wanted if name.endswith("num_batches_tracked")}  # of norms; nothing computes with them
    if not all(
        tensor.dtype == (torch.int64 if name in counts else torch.float32) and bool(tensor.isfinite().all())
        for name, tensor in tensors.items()
    ):
        raise InvalidSpace(f"{directory}/{WEIGHTS} has weights that are no finite numbers of 32 bits")
    with torch.random.fork_rng(devices=[]):
        space = Space(sizes)
    space.load_state_dict(tensors)
    return space.requires_grad_(False).eval(), _hash_of(stated, weights)


def read_file(path: Path, most: int) -> bytes:
    """Reads a file of at most so many bytes; what is no file, such as a pipe, is refused and not waited for."""
    try:
        found = read_at_most(path, most + 1)
    except OSError as err:
        raise InvalidSpace(f"{path} cannot be read ({err.strerror})") from None
    if found is None or len(found) > most:
        raise InvalidSpace(f"{path} is no file of at most {most:,} bytes")
    return found


def _hash_of(*files: bytes) -> str:
    total = hashlib.sha256(b"confide space 1\n")
    for file in files:
        total.update(hashlib.sha256(file).digest())
    return total.hexdigest()


def _network(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(inputs), nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))
