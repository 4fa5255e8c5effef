"""Trains the towers of a space on public things alone, each of which has names, and some of them pictures or sounds.

Every row, a picture or a sound, is to be nearest to its own name in a gallery of public names, drawn anew each step;
no row meets another one (`contrast`). So a picture and a sound, which never stand in one row, meet at their names. The
other names of a thing are no wrong answers, in whatever language: else sounds would push apart what pictures bring
together. What is kept is an average of the weights over the last steps.

What an imported eye sees and an imported ear hears is computed once, before the first step. The classes that such an
eye was trained on are things as well: the direction of a class stands for a picture of it. As sounds cost little then,
a picture is also to be nearest to a sound that says a name of its thing, in a gallery of public sounds.

Legend: `R` rows of a batch, `G` names of the gallery, `E` numbers of a text's states, `H`, `W` pixels, `C` colours,
`S` samples, `K` all pictures or sounds, `P` numbers of an imported eye.
"""

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InvalidPretraining
from ..structure.ear import changed
from .contrast import locked_losses
from .encoders import PICTURE_STATES, EfficientNetLite0, WhisperEar
from .space import HeardSounds, SeenPictures, Space, SpaceSizes

_WARM_UP = 100  # steps
_SCALE, _MOST_SCALE = 15.0, 60.0  # of cosines, at the start and at most
_AVERAGED = 0.998  # of the average's weights, which each step keeps
_FLATTEN = 0.3  # of the mean deviation of axes: how much what hardly differs among public names is held back
_TURNED, _MOVED, _LARGER = 0.25, 0.15, 0.12  # radians, of half the side, and times, at most, of a picture
_CONTRAST, _BRIGHTNESS = 0.1, 0.075  # of each colour, at most
_SHIFT_S = (-0.05, 0.1)  # of a sound
_CLASS = 0.7  # length of a class's direction, over that of what a picture is seen as
_SEEN_AT_ONCE = 32  # pictures or sounds
_Ints = npt.NDArray[np.int64]
_Parts = Sequence[np.ndarray]
_Gallery = tuple[_Ints, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class PublicThings:
    """Public things: their names, pictures and sounds. A row that stands twice is drawn twice as often."""

    states_GE: Tensor  # of all names, each once; see `states.FrozenReader`
    names_of: Sequence[Sequence[int]]  # by thing, which names it has
    pictures_KHWC: npt.NDArray[np.uint8]
    shown: _Ints  # [rows, 2]: a picture, and the thing that it shows
    sounds_KS: npt.NDArray[np.int16]
    said: _Ints  # [rows, 2]: a sound, and the name that it says
    classes: _Ints = field(default_factory=lambda: np.empty((0, 2), dtype=np.int64))  # of an imported eye, and things

    def __post_init__(self) -> None:
        if len(self.states_GE) < 2 or not (len(self.shown) or len(self.said)):
            raise InvalidPretraining("a space needs two public names or more, and pictures or sounds")
        if not all(self.names_of[thing] for thing in np.unique([*self.shown[:, 1], *self.classes[:, 1]])):
            raise InvalidPretraining("a thing with a picture has no name")


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoders:
    """An imported eye and an imported ear, where the sizes of a space name them."""

    eye: EfficientNetLite0 | None = None
    ear: WhisperEar | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class SpaceTrainingConfig:
    """Settings of the training; equal settings give equal weights on one machine and one torch build."""

    steps: int = 1400
    batch: int = 64  # pictures, and as many sounds
    gallery: int = 1024  # names drawn at each step, beside those of the batch; 0: these alone, as CLIP has it
    sounds: int = 384  # drawn at each step to be a gallery of pictures, if the ear is an imported one; 0: none
    lr: float = 1.5e-3  # peak of AdamW's, after 100 steps of warm-up and before a cosine
    seed: int = 1

    def __post_init__(self) -> None:
        if min(self.steps, self.batch) < 1 or min(self.gallery, self.sounds) < 0 or not self.lr > 0:
            raise InvalidPretraining(f"need steps, batch >= 1, gallery, sounds >= 0 and lr > 0, got {self}")


def train_space(
    public: PublicThings,
    sizes: SpaceSizes,
    config: SpaceTrainingConfig,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    encoders: Encoders | None = None,
) -> Space:
    """Builds and trains a space.

    Args:
        progress: called with (steps done, steps in total) after every step; what imported encoders see or hear at once
            is a step, too.
        encoders: those that `sizes` names.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if sizes.kept_names not in (0, len(public.states_GE)):
            raise InvalidPretraining(f"keeps {sizes.kept_names} names; there are {len(public.states_GE)} public ones")
        space = Space(sizes)
        set_axes(space, public.states_GE)
        _take(space, encoders or Encoders())
        lesson = _Lesson(space, public, config, progress)
        average = copy.deepcopy(space)
        scales = nn.Parameter(torch.full((3,), math.log(_SCALE)))
        parameters = [*(own for own in space.parameters() if own.requires_grad), scales]
        optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=0.05)
        space.train()
        for step in range(config.steps):
            rate = min(1.0, (step + 1) / _WARM_UP) * (0.01 + 0.5 * (1 + math.cos(math.pi * step / config.steps)))
            for group in optimizer.param_groups:
                group["lr"] = config.lr * rate
            loss = lesson.loss(scales.exp().clamp(max=_MOST_SCALE))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            _blend(average, space, min(_AVERAGED, (1 + step) / (10 + step)))
            progress(lesson.looks + step + 1, lesson.looks + config.steps)
        average.requires_grad_(False).eval()
        average.keep_names(public.states_GE)
    return average


def set_axes(space: Space, states_GE: Tensor) -> None:
    """Sets how states of names are centred and scaled, by those of public names: along their principal axes."""
    center_E, count = states_GE.double().mean(0), len(states_GE)
    spread_E = states_GE.double().std(0, correction=0)
    spread_E = torch.where(spread_E > 0, spread_E, 1.0)  # what never differs says nothing
    kept = min(space.sizes.axes, *states_GE.shape)
    even_GE = (states_GE.double() - center_E) / spread_E
    values_E, vectors_EE = torch.linalg.eigh(even_GE.T @ even_GE / count)
    deviation_A = values_E[-kept:].clamp_min(0).sqrt().flip(0)
    held_back_A = deviation_A + _FLATTEN * deviation_A.mean()
    space.of_names.center.copy_(center_E)
    space.of_names.axes.zero_()
    space.of_names.axes[:, :kept] = vectors_EE[:, -kept:].flip(1) / spread_E[:, None] / held_back_A


class _Lesson:
    """Draws batches and galleries, and gives their loss."""

    def __init__(
        self,
        space: Space,
        public: PublicThings,
        config: SpaceTrainingConfig,
        progress: Callable[[int, int], None],
    ) -> None:
        self._space, self._public, self._config = space, public, config
        eye = space.of_pictures if isinstance(space.of_pictures, SeenPictures) else None
        ear = space.of_sounds if isinstance(space.of_sounds, HeardSounds) else None
        pictures, sounds = _parts(public.pictures_KHWC) if eye else [], _parts(public.sounds_KS) if ear else []
        self.looks, done = len(pictures) + len(sounds), itertools.count(1)

        def looked(parts: _Parts, states: Callable[[Tensor], Tensor]) -> Tensor:
            found = []
            for part in parts:
                found.append(states(torch.from_numpy(part)).half())
                progress(next(done), self.looks + config.steps)
            return torch.cat(found) if found else torch.empty(0)

        self._shown = public.shown
        if eye is not None:
            seen = eye.states
            seen_K2P = looked(pictures, lambda some: torch.stack([seen(some), seen(some.flip(2))], 1))
            seen_K2P = seen_K2P.reshape(len(public.pictures_KHWC), 2, PICTURE_STATES)  # of none, too
            self._seen_K2P, self._shown = _with_classes(eye, seen_K2P, public)
        if ear is not None:
            self._heard = looked(sounds, ear.states)
        self._rng = np.random.default_rng(config.seed)
        with torch.no_grad():
            self._names_GA = space.of_names.coordinates(public.states_GE)
        self._names_of = [np.array(sorted(names), dtype=np.int64) for names in public.names_of]
        beside: dict[int, set[int]] = {}
        for names in public.names_of:
            for name in names:
                beside.setdefault(name, set()).update(names)
        self._beside = {name: np.array(sorted(others), dtype=np.int64) for name, others in beside.items()}
        saying: dict[int, set[int]] = {}
        for sound, name in public.said if ear is not None and config.sounds else ():
            saying.setdefault(name, set()).add(sound)
        sounds_of = [sorted(set().union(*(saying.get(name, ()) for name in names))) for names in public.names_of]
        self._sounds_of = [np.array(sounds, dtype=np.int64) for sounds in sounds_of]
        self._shown_and_said = self._shown[[bool(sounds_of[thing]) for _, thing in self._shown]]

    def loss(self, scales: Tensor) -> Tensor:
        """Mean loss of new pictures, plus that of new sounds, plus that of pictures among sounds."""
        parts = []
        if len(self._shown):
            chosen, things = self._drawn(self._shown)
            own = np.array([self._rng.choice(self._names_of[thing]) for thing in things])
            right = [self._names_of[thing] for thing in things]
            points_RD = self._space.of_pictures(self._pictures(chosen))
            parts.append(self._missed(points_RD, own, right, scales[0], self._names_drawn))
        if len(self._public.said):
            chosen, names = self._drawn(self._public.said)
            right = [self._beside[name] for name in names]
            points_RD = self._space.of_sounds(self._sounds(chosen))
            parts.append(self._missed(points_RD, names, right, scales[1], self._names_drawn))
        if len(self._shown_and_said):
            chosen, things = self._drawn(self._shown_and_said)
            right = [self._sounds_of[thing] for thing in things]
            own = np.array([self._rng.choice(sounds) for sounds in right])
            points_RD = self._space.of_pictures(self._pictures(chosen))
            parts.append(self._missed(points_RD, own, right, scales[2], self._sounds_drawn))
        return torch.stack(parts).sum()

    def _pictures(self, chosen: _Ints) -> Tensor:
        """States of pictures, each changed at random."""
        if self._space.sizes.imported_eye:
            return self._seen_K2P[chosen, self._rng.integers(0, 2, len(chosen))].float()
        return bent(self._space.of_pictures.states(torch.from_numpy(self._public.pictures_KHWC[chosen])), self._rng)

    def _sounds(self, chosen: _Ints) -> Tensor:
        """States of sounds, each changed at random."""
        if self._space.sizes.imported_ear:
            shifts = self._rng.integers(-1, 2, len(chosen))
            moved = [self._heard[k].roll(int(shift), 0) for k, shift in zip(chosen, shifts, strict=True)]
            return torch.stack(moved).float()
        earlier, later = (round(second * self._space.sizes.rate) for second in _SHIFT_S)
        shifts = self._rng.integers(earlier, later, len(chosen))
        sounds = self._public.sounds_KS
        rolled = np.stack([np.roll(sounds[k], shift) for k, shift in zip(chosen, shifts, strict=True)])
        return changed(self._space.of_sounds.states(torch.from_numpy(rolled)), self._rng)

    def _drawn(self, rows: _Ints) -> tuple[_Ints, _Ints]:
        drawn = rows[self._rng.integers(0, len(rows), self._config.batch)]
        return drawn[:, 0], drawn[:, 1]

    def _missed(
        self, points_RD: Tensor, own: _Ints, right: Sequence[_Ints], scale: Tensor, drawn: Callable[[_Ints], _Gallery]
    ) -> Tensor:
        """Mean loss of rows, of which each has its own in a gallery, and others that are right for it as well."""
        gallery, points_GD = drawn(own)
        twins = torch.from_numpy(np.stack([np.isin(gallery, others) for others in right]))
        places = torch.from_numpy(np.searchsorted(gallery, own))
        return locked_losses(points_RD, points_GD, places, scale=scale, twins_RG=twins).mean()

    def _names_drawn(self, own: _Ints) -> _Gallery:
        """Public names, those of the rows among them: their numbers, rising, and their points."""
        gallery = self._beside_own(own, len(self._names_GA), self._config.gallery)
        return gallery, self._space.of_names(self._names_GA[gallery])

    def _sounds_drawn(self, own: _Ints) -> _Gallery:
        """The same of public sounds, by what an imported ear has heard of each."""
        gallery = self._beside_own(own, len(self._heard), self._config.sounds)
        return gallery, self._space.of_sounds(self._heard[gallery].float())

    def _beside_own(self, own: _Ints, count: int, most: int) -> _Ints:
        return np.unique(np.concatenate([own, self._rng.choice(count, min(most, count), replace=False)]))


def bent(pictures_RCHW: Tensor, rng: np.random.Generator) -> Tensor:
    """Turns, moves, mirrors and recolours pictures at random, each in its own way; what comes in at the edge is white.

    Args:
        pictures_RCHW: from 1 for white to -1 for black.
    """
    rows = len(pictures_RCHW)

    def between(low: float, high: float, *shape: int) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (rows, *shape))).float()

    turn, size = between(-_TURNED, _TURNED), between(1 - _LARGER, 1 + _LARGER)
    mirrored = torch.from_numpy(rng.choice([-1.0, 1.0], rows)).float()
    moved = between(-_MOVED, _MOVED, 2)
    across = torch.stack([size * mirrored * turn.cos(), -size * turn.sin(), moved[:, 0]], 1)
    down = torch.stack([size * mirrored * turn.sin(), size * turn.cos(), moved[:, 1]], 1)
    grid = F.affine_grid(torch.stack([across, down], 1), list(pictures_RCHW.shape), align_corners=False)
    # What lies outside is 0: so white is made 0 meanwhile.
    drawn = 1 - F.grid_sample(1 - pictures_RCHW, grid, align_corners=False)
    contrast = 1 + between(-_CONTRAST, _CONTRAST, 3, 1, 1)
    return (drawn * contrast + between(-_BRIGHTNESS, _BRIGHTNESS, 3, 1, 1)).clamp(-1, 1)


def _take(space: Space, encoders: Encoders) -> None:
    """Puts imported encoders into a space."""
    eye, ear = encoders.eye, encoders.ear
    if (eye is None, ear is None) != (space.sizes.imported_eye is None, space.sizes.imported_ear is None):
        raise InvalidPretraining("the encoders are not those that the sizes of the space name")
    if eye is not None and isinstance(space.of_pictures, SeenPictures):
        space.of_pictures.eye.load_state_dict(eye.state_dict())
    if ear is not None and isinstance(space.of_sounds, HeardSounds):
        space.of_sounds.ear.load_state_dict(ear.state_dict())


@torch.no_grad()
def _with_classes(tower: SeenPictures, seen_K2P: Tensor, public: PublicThings) -> tuple[Tensor, _Ints]:
    """Sets how what is seen is centred and scaled, by public pictures, and adds the classes of things to these.

    Returns:
        What is seen, and rows of it with the thing of each.
    """
    if len(seen_K2P):
        all_KP = seen_K2P.float().flatten(0, 1)
        tower.center.copy_(all_KP.mean(0))
        tower.spread.copy_(all_KP.std(0, correction=0).clamp_min(1e-6))
    if not len(public.classes):
        return seen_K2P, public.shown
    directions_KP = F.normalize(tower.eye.classes[public.classes[:, 0]], dim=-1)
    as_seen_KP = tower.center + tower.spread * directions_KP * _CLASS * PICTURE_STATES**0.5
    rows = np.stack([len(seen_K2P) + np.arange(len(public.classes)), public.classes[:, 1]], 1)
    both_K2P = as_seen_KP[:, None].expand(-1, 2, -1).half()
    return torch.cat([seen_K2P, both_K2P]), np.concatenate([public.shown, rows])


def _parts(rows: np.ndarray) -> _Parts:
    return [rows[start : start + _SEEN_AT_ONCE] for start in range(0, len(rows), _SEEN_AT_ONCE)]


@torch.no_grad()
def _blend(average: Space, space: Space, kept: float) -> None:
    for mean, newest in zip(average.parameters(), space.parameters(), strict=True):
        mean.lerp_(newest, 1 - kept)
