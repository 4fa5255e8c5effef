import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from confide.models.backbones import checkpoints, importing, loading
from confide.models.backbones.eye_pretraining import EyePretrainingConfig, pretrain_eye
from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.text_pretraining import TextPretrainingConfig, build_text, fit_text, pretrain_text
from confide.models.errors import BackboneMismatch, InvalidBackbone, InvalidPicture, InvalidPretraining
from confide.models.records.vocabularies import word_tokenizer
from confide.models.structure import sense
from confide.models.structure.pictures import PictureLayout, PublicPictures
from confide.models.structure.places import FILES, TARGETS
from confide.models.tokens import bytes_of, carrying

LAYOUT, SEEN, HIDDEN = PictureLayout((32, 64), (32, 32)), 8, 32
FEW = EyePretrainingConfig(cells=256, batch=32)
SMALL = BackboneConfig(hidden=HIDDEN, experts=4, max_tokens=16)


def png(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def sign(name, rng):
    """A bar that lies or stands somewhere in a cell, on noise."""
    cell = rng.integers(0, 60, (32, 32), dtype=np.uint8)
    place, start = rng.integers(8, 22), rng.integers(4, 10)
    (cell if name == "lies" else cell.T)[place : place + 3, start : start + 18] = rng.integers(120, 256)
    return cell


def public(count, seed=0, names=("lies", "stands")):
    """Pictures of two signs each."""
    rng = np.random.default_rng(seed)
    shown = [[names[number] for number in rng.integers(0, len(names), 2)] for _ in range(count)]
    files = [png(np.concatenate([sign(name, rng) for name in each], axis=1)) for each in shown]
    return PublicPictures(LAYOUT, files, [" ".join(each) for each in shown])


def cells_of(pictures):
    """[C, 32, 32] from -1 to 1, and what each shows."""
    found = np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in pictures.files])
    cells = found.reshape(-1, 32, 2, 32).transpose(0, 2, 1, 3).reshape(-1, 32, 32)
    return torch.from_numpy(cells.copy()).float() / 127.5 - 1, [
        word for text in pictures.shown for word in text.split()
    ]


@torch.no_grad()
def share_told_apart(eye):
    """Of 200 new cells, those that lie nearer to the mean of their own sign's states."""
    states, means = {}, {}
    for part, pictures in (("known", public(100, seed=7)), ("new", public(100, seed=8))):
        cells, words = cells_of(pictures)
        states[part] = eye.squares(cells).flatten(1), np.array(words)
    known, words = states["known"]
    for name in ("lies", "stands"):
        means[name] = known[torch.from_numpy(words == name)].mean(0)
    new, words = states["new"]
    nearer = ((new - means["lies"]).norm(dim=1) < (new - means["stands"]).norm(dim=1)).numpy()
    return float((nearer == (words == "lies")).mean())


@pytest.mark.slow
def test_an_eye_learns_to_tell_signs_apart():
    told = []
    eye = pretrain_eye(
        public(150), HIDDEN, EyePretrainingConfig(cells=4000, batch=32), lambda done, total: told.append((done, total))
    )
    untaught = pretrain_eye(public(150), HIDDEN, EyePretrainingConfig(cells=1, batch=1))
    assert share_told_apart(eye) > 0.95
    assert share_told_apart(untaught) < 0.8
    assert told[0] == (32, 4000)
    assert told[-1] == (4000, 4000)
    assert told == sorted(told)
    assert not eye.training
    assert eye.layout == LAYOUT
    assert eye.where.shape == (SEEN, HIDDEN)


@pytest.mark.slow
def test_equal_settings_give_equal_weights():
    pictures = public(10)
    torch.manual_seed(1)
    first = pretrain_eye(pictures, HIDDEN, FEW).state_dict()
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = pretrain_eye(pictures, HIDDEN, FEW).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(second[name], weight) for name, weight in first.items())
    third = pretrain_eye(pictures, HIDDEN, EyePretrainingConfig(cells=256, batch=32, seed=2)).state_dict()
    assert not any(torch.equal(third[name], weight) for name, weight in first.items() if weight.std() > 0.001)


def test_every_layer_of_the_transformer_learns_and_nothing_behind_it():
    pictures = public(10)
    short, longer = (
        dict(pretrain_eye(pictures, HIDDEN, EyePretrainingConfig(cells=cells, batch=8)).named_parameters())
        for cells in (8, 32)
    )
    for name, weight in short.items():
        # A bias of keys moves all scores of a query alike, which the softmax does not see.
        if not name.endswith("k_proj.bias"):
            assert torch.equal(weight, longer[name]) == (not name.startswith("swin.")), name


def changed_public(shown=None, files=None):
    found = public(4)
    return PublicPictures(LAYOUT, found.files if files is None else files, found.shown if shown is None else shown)


@pytest.mark.parametrize(
    ("pictures", "said"),
    [
        (changed_public(shown=["a b", "a b", "a", "a b"]), "told in 2 words for each"),
        (changed_public(shown=["a b", "a b c", "a b", "a b"]), "told in 2 words for each"),
        (changed_public(shown=["a b", "", "a b", "a b"]), "told in 2 words for each"),
        (changed_public(shown=[], files=[]), "told in 2 words for each"),
        (changed_public(shown=["a a"] * 4), "show 1 different things"),
        (PublicPictures(LAYOUT, [], [f"{i} a{i}" for i in range(2049)]), "show 4098 different things; an eye learns 2"),
    ],
)
def test_pictures_that_teach_nothing_are_refused(pictures, said):
    with pytest.raises(InvalidPretraining, match=said):
        pretrain_eye(pictures, HIDDEN, FEW)


def test_a_file_that_is_no_picture_is_refused():
    found = public(4)
    with pytest.raises(InvalidPicture, match=r"^picture 2 of 4 is cut off$"):
        pretrain_eye(changed_public(files=[found.files[0], found.files[1][:-9], *found.files[2:]]), HIDDEN, FEW)


@pytest.mark.parametrize(
    "wrong", [{"cells": 0}, {"batch": 0}, {"lr": 0.0}, {"lr": -1.0}, {"lr": float("nan")}, {"cells": -5}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(InvalidPretraining):
        EyePretrainingConfig(**wrong)


def test_blanks_between_words_do_not_count():
    pretrain_eye(changed_public(shown=[" a  b ", "a b", "b\ta", "a b"]), HIDDEN, EyePretrainingConfig(cells=1, batch=1))


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer(["lies stands : <eos>"])


def rows_of(pictures, tokenizer):
    """Of each picture, a colon, and then what it shows, which is learned."""
    files = np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in pictures.files])
    texts = [tokenizer(f": {shown} <eos>")["input_ids"] for shown in pictures.shown]
    words = np.array([[3] * SEEN + text for text in texts])
    carried = np.zeros((*words.shape, 256), dtype=np.uint8)
    carried[:, :SEEN] = LAYOUT.squares(files)
    is_learned = [place > SEEN for place in range(words.shape[1])]
    return [(row, is_learned) for row in carrying(words, carried)]


TEXT = TextPretrainingConfig(tokens=500, batch_tokens=120, eye=FEW)


@pytest.fixture(scope="module")
def built(tokenizer, tmp_path_factory):
    """(folder, hash, progress told) of a backbone with an eye."""
    folder, told, pictures = tmp_path_factory.mktemp("built") / "backbone", [], public(20)
    digest = pretrain_text(
        rows_of(pictures, tokenizer), tokenizer, folder, lessons=pictures, backbone=SMALL, config=TEXT,
        progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    return folder, digest, told


@pytest.mark.slow
def test_a_folder_of_a_backbone_with_an_eye_is_read_with_the_same_states(built, tokenizer):
    folder, digest, told = built
    pictures = public(20)
    model = build_text(tokenizer, None, SMALL)
    sense.join(model, pretrain_eye(pictures, HIDDEN, FEW))
    sense.sense_of(model).swin.requires_grad_(False)
    fit_text(model, rows_of(pictures, tokenizer), TEXT, lambda done, total: None)
    found = loading.load_text(folder, expected_hash=digest)
    ids = torch.from_numpy(np.stack([row for row, _ in rows_of(pictures, tokenizer)]))
    with torch.no_grad():
        want = model.eval().model(input_ids=ids, use_cache=False).last_hidden_state
        assert torch.equal(found.model.model(input_ids=ids, use_cache=False).last_hidden_state, want)
        seen = sense.sense_of(model)(bytes_of(ids[:, :SEEN]))
        assert torch.equal(sense.sense_of(found.model)(bytes_of(ids[:, :SEEN])), seen)
    assert [total for _, total in told] == [256] * 8 + [500] * (len(told) - 8)
    assert told[7] == (256, 256)
    assert told[-1] == (500, 500)


def test_the_decoder_learns_with_the_way_into_it_while_the_transformer_stays(built, tokenizer):
    folder, *_ = built
    saved, before = load_file(folder / FILES["eye"]), pretrain_eye(public(20), HIDDEN, FEW).state_dict()
    assert saved.keys() == before.keys()
    for name, weight in before.items():
        assert torch.equal(saved[name], weight) == name.startswith("swin."), name


@pytest.mark.slow
def test_equal_rows_and_pictures_give_equal_folders(built, tokenizer, tmp_path):
    _, digest, _ = built
    pictures = public(20)
    rows = rows_of(pictures, tokenizer)

    def again(name, eye):
        config = TextPretrainingConfig(tokens=500, batch_tokens=120, eye=eye)
        return pretrain_text(rows, tokenizer, tmp_path / name, lessons=pictures, backbone=SMALL, config=config)

    assert again("same", FEW) == digest
    assert again("other", EyePretrainingConfig(cells=256, batch=32, seed=2)) != digest


def test_a_folder_with_an_eye_says_so(built):
    folder, digest, _ = built
    described, model = loading.describe(folder), loading.load_text(folder).model
    assert described.hash == digest
    assert described.targets[-len(TARGETS["eye"]) :] == TARGETS["eye"]
    assert "o_proj" in described.targets
    assert not any(name.startswith("eye.") for name in described.suggested_targets)
    assert checkpoints.size(folder).parameters == sum(parameter.numel() for parameter in model.parameters())
    weights = json.loads((folder / checkpoints.INDEX).read_text())["weight_map"]
    assert not [name for name in weights if "eye" in name]


def copied(folder, target):
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_one_weight_of_the_eye_changes_the_hash(built, tmp_path):
    folder, digest, _ = built
    copy = copied(folder, tmp_path / "copy")
    assert checkpoints.content_hash(copy) == digest
    weights, stated = load_file(copy / FILES["eye"]), metadata_of(copy / FILES["eye"])
    save_file(weights, copy / FILES["eye"], metadata=stated)
    assert loading.load_text(copy, expected_hash=checkpoints.content_hash(copy))
    before = checkpoints.content_hash(copy)
    weights["where"][0, 0] += 0.25
    save_file(weights, copy / FILES["eye"], metadata=stated)
    assert checkpoints.content_hash(copy) not in (digest, before)
    with pytest.raises(BackboneMismatch):
        loading.load_text(copy, expected_hash=digest)
    (copy / FILES["eye"]).unlink()
    assert checkpoints.content_hash(copy) not in (digest, before)


def metadata_of(path):
    length = int.from_bytes(path.read_bytes()[:8], "little")
    return json.loads(path.read_bytes()[8 : 8 + length])["__metadata__"]


def test_a_broken_eye_makes_a_broken_backbone(built, tmp_path):
    copy = copied(built[0], tmp_path / "copy")
    (copy / FILES["eye"]).write_bytes((copy / FILES["eye"]).read_bytes()[:-5])
    with pytest.raises(InvalidBackbone):
        loading.load_text(copy)


def test_an_import_of_a_folder_with_an_eye_is_refused(built, tmp_path):
    with pytest.raises(InvalidBackbone, match="it is a backbone as it stands"):
        importing.import_checkpoint(built[0], tmp_path / "imported")
    assert not (tmp_path / "imported").exists()


def test_pictures_that_teach_nothing_leave_no_folder(tokenizer, tmp_path):
    pictures = public(4)
    rows = rows_of(pictures, tokenizer)
    with pytest.raises(InvalidPretraining, match="show 1 different things"):
        pretrain_text(
            rows, tokenizer, tmp_path / "none", lessons=changed_public(shown=["a a"] * 4), backbone=SMALL, config=TEXT
        )
    assert list(tmp_path.iterdir()) == []
