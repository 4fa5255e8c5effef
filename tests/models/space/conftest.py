import csv
import io

import numpy as np
import pytest
from PIL import Image

from confide.models.space.public import COLUMNS, build_space
from confide.models.space.training import SpaceTrainingConfig
from confide.models.structure.sounds import written

from ..tiny import save_text_backbone

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200), "black": (10, 10, 10)}
TONES = {"red": 300, "green": 700, "blue": 1500, "black": 3000}
SMALL = {"side": 32, "width": 32, "eye": 8, "ear": 8, "axes": 16, "seconds": 1}
STEPS = SpaceTrainingConfig(steps=150, batch=8, gallery=4, lr=1e-2)


def png(colour, side=32, mode="RGB"):
    """A disc of a colour, as no picture of one colour alone."""
    place = np.hypot(*np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j])
    pixels = np.where(place[..., None] < 0.7, np.array(colour), 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def wav(pitch, seconds=0.5, rate=8000):
    wave = 9000 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * rate)) / rate)
    return written(wave.astype("<i2").tobytes(), rate)


def write_public(folder, rows=None):
    """A table of four colours, each with two names, a picture, and a tone that says one of them."""
    (folder / "files").mkdir(parents=True, exist_ok=True)
    made = []
    for name, colour in COLOURS.items():
        (folder / "files" / f"{name}.png").write_bytes(png(colour))
        (folder / "files" / f"{name}.wav").write_bytes(wav(TONES[name]))
        made += [(name, f"a {name} thing", ""), (name, "", f"{name}.png"), (name, name, f"{name}.wav")]
    with (folder / "public.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *(made if rows is None else rows)])
    return folder / "public.csv"


@pytest.fixture(scope="session")
def backbone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("names") / "backbone"
    save_text_backbone(folder)
    return folder


@pytest.fixture(scope="session")
def built(tmp_path_factory, backbone):
    """A space of four colours, and what came of building it."""
    folder = tmp_path_factory.mktemp("space")
    table = write_public(folder)
    return folder / "space", build_space(table, folder / "space", backbone, config=STEPS, sizes=SMALL)
