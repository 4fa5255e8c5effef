import hashlib
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from confide.models.charts.drawing import Style, draw
from confide.models.charts.reader import (
    CROP_HEIGHT,
    CROP_WIDTH,
    HEIGHT,
    KINDS,
    LETTERS,
    STRIDE,
    WIDTH,
    ChartReader,
    ReaderConfig,
    cut_label,
    load,
    save,
)
from confide.models.errors import InvalidChart

SMALL = ReaderConfig(width=8, heads=(1, 2), depths=(1, 1), label_width=8)


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return ChartReader(SMALL).eval()


@pytest.fixture
def saved(small, tmp_path):
    save(small, tmp_path / "reader.safetensors")
    return tmp_path / "reader.safetensors"


def test_it_says_of_every_square_and_kind_whether_and_where_a_mark_is(small):
    charts = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.uint8)
    assert small(charts).shape == (2, HEIGHT // STRIDE, WIDTH // STRIDE, len(KINDS), 3)
    assert small.letters(torch.zeros(5, CROP_HEIGHT, CROP_WIDTH, dtype=torch.uint8)).shape == (5, 36, len(LETTERS) + 1)


def test_a_letter_is_read_alike_wherever_it_stands(small):
    label = np.full((1, CROP_HEIGHT, CROP_WIDTH), 255, np.uint8)
    label[0, 8:16, 30:34] = 0
    with torch.no_grad():
        here, there = (small.letters(torch.from_numpy(np.roll(label, shift, 2)))[0] for shift in (0, 8))
    assert torch.allclose(here[10:25], there[14:29], atol=1e-5)


def test_marks_are_rare_before_training(small):
    assert ChartReader(SMALL)(torch.full((1, HEIGHT, WIDTH), 255, dtype=torch.uint8))[..., 0].sigmoid().mean() < 0.1


def test_a_label_is_cut_at_its_tick_and_white_where_the_chart_ends():
    picture = np.zeros((HEIGHT, WIDTH), np.uint8)
    label = cut_label(picture, edge=50.0, y=5.0)
    assert label.shape == (CROP_HEIGHT, CROP_WIDTH)
    assert (label[:7] == 255).all()  # above the chart
    assert (label[7:, : CROP_WIDTH - 49] == 255).all()  # on its left
    assert (label[7:, CROP_WIDTH - 49 :] == 0).all()


def test_a_saved_reader_is_loaded_as_it_was_in_half_precision(small, saved):
    loaded, digest = load(saved)
    assert digest == hashlib.sha256(saved.read_bytes()).hexdigest()
    assert loaded.config == SMALL
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    for name, tensor in small.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.half().to(tensor.dtype)), name


def test_loading_leaves_the_callers_generator_alone(saved):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    load(saved)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("sizes", "weights"),
    [
        ({"width": 16}, {}),
        ({"more": 1}, {}),
        ({"width": 10_000}, {}),
        ({"width": 9}, {}),
        ({"window": 5}, {}),
        (None, {}),
        ({}, {"extra": torch.zeros(1)}),
        ({}, {"label.0.bias": None}),
        ({}, {"label.0.bias": torch.full((4,), float("nan"), dtype=torch.float16)}),
        ({}, {"label.0.bias": torch.full((4,), float("inf"), dtype=torch.float16)}),
    ],
)
def test_a_broken_reader_is_refused(saved, tmp_path, sizes, weights):
    own = {"width": 8, "depths": [1, 1], "heads": [1, 2], "window": 4, "label_width": 8}
    tensors = {name: tensor for name, tensor in (load_file(saved) | weights).items() if tensor is not None}
    metadata = None if sizes is None else {"sizes": json.dumps(own | sizes)}
    save_file(tensors, tmp_path / "broken.safetensors", metadata=metadata)
    with pytest.raises(InvalidChart):
        load(tmp_path / "broken.safetensors")


@pytest.mark.parametrize("content", [None, b"", b"no reader", b"\xff" * 64])
def test_a_file_that_is_no_reader_is_refused(tmp_path, content):
    path = tmp_path / "reader.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidChart, match="is no reader of charts"):
        load(path)


def test_the_reader_that_comes_with_confide_is_small_and_loads():
    reader, digest = load()
    assert reader.config == ReaderConfig()
    assert len(digest) == 64
    chart = draw([3.0, 8.5, 6.25], Style(is_bar=False))
    found = reader(torch.from_numpy(chart.picture[None]))
    assert int((found[0, ..., KINDS.index("x tick"), 0] > 0).sum()) >= 3
