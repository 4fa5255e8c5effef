"""Draws forms of four handwritten digits, what a clerk typed of them, and a question about both with its answer.

A digit is an array of 32x32 unsigned bytes that tell how much ink there is, 0 for bare paper. Public digits are
scikit-learn's, 1,797 of 13 writers in 8x8 points, and those of the one typeface that Pillow carries, each written once
more by an unsteady hand. A pen changes all digits of a hospital alike. Slips are the two of any clerk: another digit,
or two neighbours in the wrong order. Handwriting is real; forms, slips and questions are drawn.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from sklearn.datasets import load_digits

SIDE = 32  # of a digit's box, in points
BOXES = 4  # of a form
SLIPS = {"typed==scan": 0.5, "first-slip": 0.8, "less": 1.0}  # share of a rule's forms that have one
TRANSPOSED = 0.4  # of the slips where they may be anywhere
PRINTED = 0.25  # of the public digits
TURN, SLANT = 0.14, 0.2  # standard deviations, radians and points across for each point up
SIZES = (0.7, 1.05)  # along each axis
BENT = 1.6  # standard deviation of a knot of the elastic bend, points
STROKES = (-0.4, 0.4)  # see `stroked`
_WRITTEN_SIDE, _PRINTED_SIDES = 24, (22, 30)  # points
_KNOTS = 5

_MIDDLE = (SIDE - 1) / 2
_GRID = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij")) - _MIDDLE  # rows, columns
_NEAR = np.exp(-0.5 * ((np.arange(SIDE)[:, None] - np.linspace(0, SIDE - 1, _KNOTS)) / (SIDE / _KNOTS)) ** 2)
_NEAR /= _NEAR.sum(1, keepdims=True)  # weights of a bend's knots at each point
Digits = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a form: the digits typed and written, the rule, and the right answer."""

    typed: Digits
    scan: Digits
    rule: str
    answer: str

    @property
    def check(self) -> tuple[str, ...]:
        """Says of each box whether what was typed is what is written."""
        return tuple("same" if one == other else "slip" for one, other in zip(self.typed, self.scan, strict=True))


def ask(scan: Digits, rng: random.Random) -> Question:
    """Draws a rule for the digits `scan` of a form, and what a clerk typed of them."""
    kind, at = rng.choice(tuple(SLIPS)), rng.randrange(BOXES)
    typed, rule = scan, kind
    if kind == "less":
        rule, typed = f"less [{at}]", substituted(scan, at, rng)
    elif rng.random() < SLIPS[kind]:
        apart = [left for left in range(BOXES - 1) if scan[left] != scan[left + 1]]
        is_transposed = rng.random() < TRANSPOSED and apart
        typed = transposed(scan, rng.choice(apart)) if is_transposed else substituted(scan, at, rng)
    return Question(typed, scan, rule, answer(rule, typed, scan))


def substituted(scan: Digits, at: int, rng: random.Random) -> Digits:
    """Puts any other digit into box `at`."""
    return (*scan[:at], (scan[at] + rng.randint(1, 9)) % 10, *scan[at + 1 :])


def transposed(scan: Digits, left: int) -> Digits:
    """Swaps the digits of box `left` and the next."""
    return (*scan[:left], scan[left + 1], scan[left], *scan[left + 2 :])


def answer(rule: str, typed: Digits, scan: Digits) -> str:
    """Returns the right answer to `typed==scan`, `first-slip` or `less [i]`, where i is a box from 0."""
    if rule == "typed==scan":
        return "yes" if typed == scan else "no"
    if rule == "first-slip":
        return next((f"at{at}" for at in range(BOXES) if typed[at] != scan[at]), "none")
    at = int(rule.removeprefix("less [").removesuffix("]"))
    return "yes" if typed[at] < scan[at] else "no"


def form(digits: np.ndarray) -> Image.Image:
    """Lays digits [4, 32, 32] side by side as dark ink on white paper."""
    return Image.fromarray(255 - np.concatenate(list(digits), axis=1))


def public_digits(seed: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yields public digits without end, each with what it says; equal for equal seeds."""
    rng = np.random.default_rng(seed)
    written, says = _written()
    while True:
        if rng.random() < PRINTED:
            said = int(rng.integers(10))
            ink = _printed(said, int(rng.integers(*_PRINTED_SIDES)))
        else:
            chosen = rng.integers(len(says))
            ink, said = written[chosen], int(says[chosen])
        yield rewritten(ink, rng), said


def rewritten(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Writes a digit once more by an unsteady hand: turned, slanted, stretched, bent, and with another stroke."""
    turn, slant, sizes = rng.normal(0, TURN), rng.normal(0, SLANT), rng.uniform(*SIZES, 2)
    bend = [_NEAR @ rng.normal(0, BENT, (_KNOTS, _KNOTS)) @ _NEAR.T for _ in range(2)]
    cosine, sine = np.cos(turn), np.sin(turn)
    back = np.array([[cosine, -sine], [sine, cosine]]) @ np.array([[1, 0], [slant, 1]]) / sizes[:, None]
    moved = ndimage.map_coordinates(ink, np.tensordot(back, _GRID, 1) + _MIDDLE + bend, order=1, output=np.float64)
    return stroked(np.rint(moved).astype(np.uint8), rng.uniform(*STROKES))


def stroked(ink: np.ndarray, amount: float) -> np.ndarray:
    """Thickens the strokes of a digit, or thins them.

    Args:
        amount: 1 puts the strongest of the 3x3 points around into each point, -1 the weakest; between, a part of it.
    """
    widest = (ndimage.grey_dilation if amount > 0 else ndimage.grey_erosion)(ink, (3, 3))
    return np.rint(ink + abs(amount) * (widest.astype(np.float64) - ink)).astype(np.uint8)


def slanted(ink: np.ndarray, amount: float) -> np.ndarray:
    """Slants a digit to the right by `amount` points across for each point up."""
    places = _GRID + _MIDDLE
    places[1] += amount * _GRID[0]
    return np.rint(ndimage.map_coordinates(ink, places, order=1, output=np.float64)).astype(np.uint8)


PENS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "thick": lambda ink: stroked(ink, 0.6),
    "thin": lambda ink: stroked(ink, -0.5),
    "slanted": lambda ink: slanted(ink, 0.25),
}  # mild, and the same for all digits of a hospital


@cache
def _written() -> tuple[np.ndarray, np.ndarray]:
    found = load_digits()
    margin = (SIDE - _WRITTEN_SIDE) // 2
    times = _WRITTEN_SIDE / found.images.shape[1]
    smooth = ndimage.zoom(found.images / 16, (1, times, times), order=3, grid_mode=True, mode="nearest")
    sharp = np.rint(np.clip(2 * smooth - 0.5, 0, 1) * 255).astype(np.uint8)  # as a pen writes: without the blur of 8x8
    return np.pad(sharp, ((0, 0), (margin, margin), (margin, margin))), found.target


def _printed(said: int, side: int) -> np.ndarray:
    sheet = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(sheet).text((SIDE / 2, SIDE / 2), str(said), 255, ImageFont.load_default(side), anchor="mm")
    return np.asarray(sheet)
