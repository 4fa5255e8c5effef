import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from confide.models.errors import BackboneMismatch, InvalidPicture, InvalidSound, InvalidSpace
from confide.models.space.embedding import Embedder
from confide.models.space.space import SETTINGS, WEIGHTS, Space, SpaceSizes, load_space, save_space
from confide.models.space.states import FrozenReader
from confide.models.space.training import set_axes

from .conftest import COLOURS, SMALL, TONES, png, wav

SIZES = SpaceSizes(backbone="0" * 64, reads=(0, 2), states=10, **SMALL)


def untrained(sizes=SIZES):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return Space(sizes).eval()


def unit_lengths(points):
    np.testing.assert_allclose(points.norm(dim=-1).numpy(), 1, rtol=1e-5)


def test_a_space_is_read_as_it_was_written(tmp_path):
    space = untrained()
    digest = save_space(space, tmp_path / "space")
    found, again = load_space(tmp_path / "space")
    assert (again, found.sizes) == (digest, SIZES)
    assert all(torch.equal(tensor, found.state_dict()[name]) for name, tensor in space.state_dict().items())
    assert not any(parameter.requires_grad for parameter in found.parameters())


def test_a_folder_that_exists_is_not_overwritten(tmp_path):
    save_space(untrained(), tmp_path / "space")
    with pytest.raises(FileExistsError):
        save_space(untrained(), tmp_path / "space")


def changed_settings(**changes):
    def change(folder):
        stated = json.loads((folder / SETTINGS).read_text()) | changes
        (folder / SETTINGS).write_text(json.dumps(stated))

    return change


def changed_weights(change):
    def rewrite(folder):
        weights = load_file(folder / WEIGHTS)
        change(weights)
        save_file(weights, folder / WEIGHTS)

    return rewrite


def cut(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:100])


DAMAGES = {
    "settings cut": cut(SETTINGS),
    "weights cut": cut(WEIGHTS),
    "settings missing": lambda folder: (folder / SETTINGS).unlink(),
    "weights missing": lambda folder: (folder / WEIGHTS).unlink(),
    "settings too long": lambda folder: (folder / SETTINGS).write_text(" " * 2**15),
    "settings with an unknown key": changed_settings(code="import os"),
    "a width of another type": changed_settings(width="32"),
    "a side that no eye has": changed_settings(side=33),
    "a rate that no ear has": changed_settings(rate=9000),
    "sizes beyond all bounds": changed_settings(axes=10**9),
    "sizes of other weights": changed_settings(ear=16),
    "a weight too few": changed_weights(lambda weights: weights.pop("of_sounds.last.bias")),
    "a weight too many": changed_weights(lambda weights: weights.update(more=torch.zeros(1))),
    "a weight that is no number": changed_weights(lambda weights: weights["of_names.center"].fill_(float("nan"))),
    "a weight of other bits": changed_weights(
        lambda weights: weights.update({"of_names.center": weights["of_names.center"].double()})
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_space_is_refused(tmp_path, damage):
    save_space(untrained(), tmp_path / "space")
    DAMAGES[damage](tmp_path / "space")
    with pytest.raises(InvalidSpace):
        load_space(tmp_path / "space")


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    save_space(untrained(), tmp_path / "space")
    (tmp_path / "space" / WEIGHTS).unlink()
    os.mkfifo(tmp_path / "space" / WEIGHTS)
    with pytest.raises(InvalidSpace, match="is no file of at most"):
        load_space(tmp_path / "space")


def test_a_point_is_its_row_s_alone():
    space = untrained()
    pictures = torch.randint(0, 256, (4, 32, 32, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    sounds = torch.randint(-9000, 9000, (4, 8192), generator=torch.Generator().manual_seed(2), dtype=torch.int16)
    states = torch.randn(4, 10, generator=torch.Generator().manual_seed(3))
    set_axes(space, states)
    with torch.no_grad():
        for embed, rows in ((space.pictures, pictures), (space.sounds, sounds), (space.names, states)):
            together = embed(rows)
            unit_lengths(together)
            alone = torch.cat([embed(rows[place : place + 1]) for place in range(4)])
            torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_axes_are_the_principal_ones_of_public_names_by_a_plain_decomposition():
    """In float64, by the singular values of names that are centred and scaled."""
    sizes = SpaceSizes(backbone="0" * 64, reads=(0,), states=6, **(SMALL | {"axes": 3}))
    states = torch.randn(40, 6, generator=torch.Generator().manual_seed(1)) @ torch.diag(torch.arange(1.0, 7.0))
    states[:, 5] = 7.0  # what never differs says nothing
    space = untrained(sizes)
    set_axes(space, states)
    found = space.of_names.coordinates(states).double().numpy()
    rows = states.double().numpy()[:, :5]
    rows = (rows - rows.mean(0)) / rows.std(0)
    _, sizes_of, axes = np.linalg.svd(rows, full_matrices=False)
    deviations = (sizes_of / 40**0.5)[:3]
    want = rows @ axes[:3].T / (deviations + 0.3 * deviations.mean())
    want *= 3**0.5 / np.linalg.norm(want, axis=1, keepdims=True)
    np.testing.assert_allclose(np.abs(found), np.abs(want), atol=1e-4)


def test_states_are_the_same_alone_and_beside_longer_names(backbone):
    reader = FrozenReader(backbone, (0, 1, 2))
    texts = ["a bird", "", "a", "a bird that is much longer than all the others are", "äé"]
    together = reader.states(texts)
    assert together.shape == (5, reader.width)
    assert not together[1].any()
    alone = torch.cat([reader.states([text]) for text in texts])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_a_backbone_of_too_few_layers_is_refused(backbone):
    with pytest.raises(BackboneMismatch, match="has 2 layers"):
        FrozenReader(backbone, (0, 3))


def test_another_backbone_than_the_space_s_is_refused(built, tmp_path, backbone):
    from ..tiny import save_text_backbone

    save_text_backbone(tmp_path / "other")
    (tmp_path / "other" / "generation_config.json").write_text('{"pad_token_id": 1}')
    with pytest.raises(BackboneMismatch):
        Embedder(built[0], tmp_path / "other").names(["red"])
    with pytest.raises(BackboneMismatch, match="no backbone is told"):
        Embedder(built[0], None).names(["red"])


def test_a_mirrored_picture_has_the_same_point(built):
    pixels = png((200, 30, 30))
    embedder = Embedder(built[0], None)
    unit_lengths(embedder.pictures([pixels] * 3))
    assert embedder.pictures([]).shape == (0, SMALL["width"])


@pytest.mark.parametrize("file", [png((1, 2, 3), side=64), b"no picture", wav(300)])
def test_a_file_that_is_no_picture_of_the_space_is_refused(built, file):
    with pytest.raises(InvalidPicture, match="picture 2 of 2"):
        Embedder(built[0], None).pictures([png((1, 2, 3)), file])


@pytest.mark.parametrize("file", [wav(300, seconds=2), wav(300, rate=16_000), b"no sound"])
def test_a_file_that_is_no_sound_of_the_space_is_refused(built, file):
    with pytest.raises(InvalidSound, match="sound 2 of 2"):
        Embedder(built[0], None).sounds([wav(300), file])


def test_what_was_learned_is_found(built, backbone):
    """Four colours are told apart after a few seconds; nothing here is held out."""
    embedder = Embedder(built[0], backbone)
    names = embedder.names([f"a {name} thing" for name in COLOURS])
    pictures = embedder.pictures([png(colour) for colour in COLOURS.values()])
    assert (pictures @ names.T).argmax(1).tolist() == [0, 1, 2, 3]
    said = embedder.names(list(COLOURS))
    sounds = embedder.sounds([wav(pitch) for pitch in TONES.values()])
    assert (sounds @ said.T).argmax(1).tolist() == [0, 1, 2, 3]
