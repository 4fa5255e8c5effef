from dataclasses import replace

import numpy as np
import pytest
import torch

from confide.models.errors import InvalidPretraining, InvalidSpace
from confide.models.space.public import build_space, read_table, things_of
from confide.models.space.space import SpaceSizes, load_space
from confide.models.space.states import FrozenReader
from confide.models.space.training import SpaceTrainingConfig, bent, train_space

from .conftest import COLOURS, SMALL, STEPS, write_public

FEW = SpaceTrainingConfig(steps=2, batch=4, gallery=4)


@pytest.fixture(scope="module")
def public(tmp_path_factory, backbone):
    table = write_public(tmp_path_factory.mktemp("public"))
    reader = FrozenReader(backbone, (0, 2))
    sizes = SpaceSizes(backbone="0" * 64, reads=reader.reads, states=reader.width, **SMALL)
    return things_of(read_table(table), table.parent / "files", sizes, reader), sizes


def weights(space):
    return torch.cat([parameter.flatten() for parameter in space.parameters()])


def test_a_table_is_read_as_it_says(public):
    things, _ = public
    assert [list(names) for names in things.names_of] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert things.shown.tolist() == [[0, 0], [1, 1], [2, 2], [3, 3]]
    assert things.said.tolist() == [[0, 1], [1, 3], [2, 5], [3, 7]]
    assert [tuple(picture[16, 16]) for picture in things.pictures_KHWC] == list(COLOURS.values())


def test_a_row_that_stands_twice_is_drawn_from_one_file(tmp_path, backbone, public):
    table = write_public(tmp_path, [("red", "red", ""), ("red", "red", "red.wav"), ("red", "red", "red.wav"),
                                    ("blue", "blue", ""), ("red", "", "red.png"), ("red", "", "red.png")])  # fmt: skip
    things = things_of(read_table(table), tmp_path / "files", public[1], FrozenReader(backbone, (0, 2)))
    assert (len(things.sounds_KS), len(things.pictures_KHWC)) == (1, 1)
    assert things.said.tolist() == [[0, 0]] * 2
    assert things.shown.tolist() == [[0, 0]] * 2


def test_equal_settings_give_equal_weights_and_nothing_outside_moves(public):
    things, sizes = public
    before = torch.get_rng_state()
    first, second, other = (train_space(things, sizes, replace(FEW, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(other))


@pytest.mark.parametrize("left_out", ["pictures", "sounds"])
def test_pictures_alone_and_sounds_alone_are_learned_from(public, left_out):
    things, sizes = public
    none = {"shown": things.shown[:0]} if left_out == "pictures" else {"said": things.said[:0]}
    space = train_space(replace(things, **none), sizes, FEW)
    assert bool(weights(space).isfinite().all())


def test_things_without_names_or_files_are_refused(public):
    things, _ = public
    for changes, told in (
        ({"states_GE": things.states_GE[:1]}, "two public names or more"),
        ({"shown": things.shown[:0], "said": things.said[:0]}, "pictures or sounds"),
        ({"names_of": [[], *things.names_of[1:]]}, "has no name"),
    ):
        with pytest.raises(InvalidPretraining, match=told):
            replace(things, **changes)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"batch": 0}, {"gallery": -1}, {"lr": 0.0}, {"lr": float("nan")}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(InvalidPretraining):
        SpaceTrainingConfig(**wrong)


def test_bent_pictures_keep_their_bounds_and_white_stays_at_the_edge():
    pictures = torch.ones(8, 3, 32, 32)
    pictures[:, :, 12:20, 12:20] = -1
    found = bent(pictures, np.random.default_rng(1))
    assert found.shape == pictures.shape
    assert -1 <= found.min() <= -0.7
    assert found.max() <= 1
    corners = found[:, :, ::31, ::31]
    assert corners.min() > 0.75  # white but for the change of colours
    assert not torch.equal(found[0], found[1])


def test_a_space_is_built_once(built, backbone):
    folder, found = built
    assert (found.names, found.pictures, found.sounds) == (8, 4, 4)
    assert load_space(folder)[1] == found.hash
    with pytest.raises(FileExistsError):
        build_space(folder.parent / "public.csv", folder, backbone, config=STEPS, sizes=SMALL)


WRONG = {
    "thing,name\na,b\n": "the first line must be",
    "thing,name,file\na,b\n": "line 2 has 2 cells",
    "thing,name,file\n,b,\n": "line 2 names no thing",
    "thing,name,file\na,,\n": "line 2 has neither",
    "thing,name,file\na,b,b.png\n": "line 2 has neither",
    "thing,name,file\na,,b.wav\n": "line 2 has neither",
    "thing,name,file\na,,b.svg\n": "line 2 has neither",
    "thing,name,file\na,,../b.png\n": "line 2 has a file that is no plain name",
    "thing,name,file\na,,.b.png\n": "line 2 has a file that is no plain name",
    "thing,name,file\na, b,\n": "line 2 has a name that is no printable text",
    f"thing,name,file\na,{'b' * 501},\n": "line 2 has a name that is no printable text",
    'thing,name,file\na,"b\n': "cannot be read as CSV",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_table_of_another_form_is_refused(tmp_path, text):
    (tmp_path / "public.csv").write_text(text)
    with pytest.raises(InvalidSpace, match=WRONG[text]):
        read_table(tmp_path / "public.csv")


@pytest.mark.parametrize("name", ["red.png", "red.wav", "gone.png"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, backbone, public, name):
    row = ("red", "", name) if name.endswith(".png") else ("red", "red", name)
    table = write_public(tmp_path, [("red", "red", ""), ("blue", "blue", ""), row])
    if not name.startswith("gone"):
        (tmp_path / "files" / name).write_bytes(b"nothing")
    with pytest.raises(InvalidSpace, match=name):
        things_of(read_table(table), tmp_path / "files", public[1], FrozenReader(backbone, (0, 2)))
