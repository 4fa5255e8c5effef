import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from confide.models.backbones import checkpoints, importing, loading
from confide.models.backbones.ear_pretraining import EarPretrainingConfig, pretrain_ear
from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.text_pretraining import TextPretrainingConfig, pretrain_text
from confide.models.errors import InvalidBackbone, InvalidPretraining, InvalidSound
from confide.models.records.vocabularies import word_tokenizer
from confide.models.structure import sense
from confide.models.structure.places import FILES, TARGETS
from confide.models.structure.sounds import PublicSounds, SoundLayout, decode, written
from confide.models.tokens import carrying

LAYOUT, SEEN, HIDDEN = SoundLayout(8000, 1), 16, 32
FEW = EarPretrainingConfig(sounds=64, batch=16)
SMALL = BackboneConfig(hidden=HIDDEN, experts=4, max_tokens=24)


def call(name, rng):
    """A low or a high tone, somewhere in a second of noise."""
    pitch = rng.uniform(300, 700) if name == "hums" else rng.uniform(1500, 3000)
    sound, place = rng.normal(0, 0.02, 8000), rng.integers(0, 4000)
    sound[place : place + 4000] += np.sin(2 * np.pi * pitch * np.arange(4000) / 8000) * rng.uniform(0.2, 0.6)
    return (sound * 2**14).astype("<i2")


def public(count, seed=0, names=("hums", "whistles")):
    rng = np.random.default_rng(seed)
    shown = [names[number] for number in rng.integers(0, len(names), count)]
    return PublicSounds(LAYOUT, [written(call(name, rng).tobytes(), 8000) for name in shown], shown)


@torch.no_grad()
def share_told_apart(ear):
    """Of 100 new sounds, those that lie nearer to the mean of their own kind's states."""

    def states(seed):
        found = public(100, seed=seed)
        heard = ear.pieces(ear.spectra(torch.from_numpy(decode(found.files, LAYOUT)))).mean(1)
        return heard, np.array(found.shown)

    (known, words), (new, told) = states(7), states(8)
    hums, whistles = (known[torch.from_numpy(words == name)].mean(0) for name in ("hums", "whistles"))
    nearer = ((new - hums).norm(dim=1) < (new - whistles).norm(dim=1)).numpy()
    return float((nearer == (told == "hums")).mean())


@pytest.mark.slow
def test_an_ear_learns_to_tell_tones_apart():
    progress = []
    config = EarPretrainingConfig(sounds=1600, batch=32)
    ear = pretrain_ear(public(200), HIDDEN, config, lambda done, total: progress.append((done, total)))
    assert share_told_apart(ear) > 0.95
    assert progress[0] == (32, 1600)
    assert progress[-1] == (1600, 1600)
    assert not ear.training
    assert ear.layout == LAYOUT
    assert ear.where.shape == (SEEN, HIDDEN)


@pytest.mark.slow
def test_equal_settings_give_equal_weights():
    sounds = public(10)
    torch.manual_seed(1)
    first = pretrain_ear(sounds, HIDDEN, FEW).state_dict()
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = pretrain_ear(sounds, HIDDEN, FEW).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(second[name], weight) for name, weight in first.items())
    third = pretrain_ear(sounds, HIDDEN, EarPretrainingConfig(sounds=64, batch=16, seed=2)).state_dict()
    assert not torch.equal(third["to_words.weight"], first["to_words.weight"])


def test_every_layer_of_the_encoder_learns_and_nothing_behind_it():
    sounds = public(10)
    short, longer = (
        dict(pretrain_ear(sounds, HIDDEN, EarPretrainingConfig(sounds=count, batch=8)).named_parameters())
        for count in (8, 32)
    )
    for name, weight in short.items():
        is_fixed = not name.startswith("whisper.") or "embed_positions" in name
        assert torch.equal(weight, longer[name]) == is_fixed, name


def changed_public(shown=None, files=None):
    found = public(4)
    return PublicSounds(LAYOUT, found.files if files is None else files, found.shown if shown is None else shown)


@pytest.mark.parametrize(
    ("sounds", "said"),
    [
        (changed_public(shown=["a", "b", "", "b"]), "must be told of each"),
        (changed_public(shown=["a", "b", "  ", "b"]), "must be told of each"),
        (changed_public(shown=[], files=[]), "public sounds say 0 different things"),
        (changed_public(shown=["a", "a ", "a", " a"]), "public sounds say 1 different things"),
        (
            PublicSounds(LAYOUT, [], [f"{i}" for i in range(4097)]),
            "say 4097 different things; an ear learns 2 to 4,096",
        ),
    ],
)
def test_sounds_that_teach_nothing_are_refused(sounds, said):
    with pytest.raises(InvalidPretraining, match=said):
        pretrain_ear(sounds, HIDDEN, FEW)


def test_a_file_that_is_no_sound_is_refused():
    found = public(4)
    with pytest.raises(InvalidSound, match=r"^sound 2 of 4 is cut off$"):
        pretrain_ear(changed_public(files=[found.files[0], found.files[1][:-8], *found.files[2:]]), HIDDEN, FEW)


@pytest.mark.parametrize("wrong", [{"sounds": 0}, {"batch": 0}, {"lr": 0.0}, {"lr": float("nan")}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(InvalidPretraining):
        EarPretrainingConfig(**wrong)


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer(["hums whistles : <eos>"])


def rows_of(sounds, tokenizer):
    """Of each sound, a colon, and then what it says, which is learned."""
    words = np.array([[3] * SEEN + tokenizer(f": {shown} <eos>")["input_ids"] for shown in sounds.shown])
    carried = np.zeros((*words.shape, 1024), dtype=np.uint8)
    carried[:, :SEEN] = LAYOUT.pieces(decode(sounds.files, LAYOUT))
    is_learned = [place > SEEN for place in range(words.shape[1])]
    return [(row, is_learned) for row in carrying(words, carried)]


TEXT = TextPretrainingConfig(tokens=500, batch_tokens=120, ear=FEW)


@pytest.fixture(scope="module")
def built(tokenizer, tmp_path_factory):
    """(folder, hash, progress told) of a backbone with an ear."""
    folder, told, sounds = tmp_path_factory.mktemp("built") / "backbone", [], public(20)
    digest = pretrain_text(
        rows_of(sounds, tokenizer), tokenizer, folder, lessons=sounds, backbone=SMALL, config=TEXT,
        progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    return folder, digest, told


def test_the_decoder_learns_with_the_way_into_it_while_the_encoder_stays(built):
    folder, digest, told = built
    saved, before = load_file(folder / FILES["ear"]), pretrain_ear(public(20), HIDDEN, FEW).state_dict()
    assert saved.keys() == before.keys()
    for name, weight in before.items():
        assert torch.equal(saved[name], weight) == name.startswith("whisper."), name
    assert told[3] == (64, 64)
    assert told[-1] == (500, 500)
    assert loading.load_text(folder, expected_hash=digest)


def test_a_folder_with_an_ear_says_so(built):
    folder, digest, _ = built
    described, model = loading.describe(folder), loading.load_text(folder).model
    assert described.hash == digest
    assert described.targets[-len(TARGETS["ear"]) :] == TARGETS["ear"]
    assert not any(name.startswith("ear.") for name in described.suggested_targets)
    assert checkpoints.size(folder).parameters == sum(parameter.numel() for parameter in model.parameters())
    weights = json.loads((folder / checkpoints.INDEX).read_text())["weight_map"]
    assert not [name for name in weights if ".ear." in name]
    assert sense.sense_of(model).name == "ear"


@pytest.mark.slow
def test_equal_rows_and_sounds_give_equal_folders(built, tokenizer, tmp_path):
    sounds = public(20)
    again = pretrain_text(
        rows_of(sounds, tokenizer), tokenizer, tmp_path / "same", lessons=sounds, backbone=SMALL, config=TEXT
    )
    assert again == built[1]


def test_an_import_of_a_folder_with_an_ear_is_refused(built, tmp_path):
    with pytest.raises(InvalidBackbone, match=r"has an ear \(ear.safetensors\), which an import would lose"):
        importing.import_checkpoint(built[0], tmp_path / "imported")
    assert not (tmp_path / "imported").exists()
