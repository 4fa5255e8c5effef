import copy
import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from confide.kernels.errors import TokensMiscounted
from confide.kernels.segments import Segments
from confide.models.adapters import AdapterConfig, attach, export
from confide.models.adapters.combining import combine
from confide.models.backbones import checkpoints, loading
from confide.models.backbones.families import named
from confide.models.backbones.family import BackboneConfig
from confide.models.errors import BackboneMismatch, InvalidBackbone
from confide.models.records.vocabularies import word_tokenizer
from confide.models.structure import sense
from confide.models.structure.ear import Ear, EarConfig, mel_of, waves_of
from confide.models.structure.eye import Eye, EyeConfig
from confide.models.structure.pictures import PictureLayout
from confide.models.structure.places import EAR, EYE, FILES, TARGETS, sense_in
from confide.models.structure.sounds import SoundLayout
from confide.models.tokens import bytes_of, carrying, words_of
from confide.privacy.errors import UnitsCoupled
from confide.privacy.mechanism.batches import probed_shapes
from confide.privacy.mechanism.clipping import PerUnitClipper
from confide.privacy.mechanism.independence import kept_gap, refuse_dependence

from ..adapters.test_peft_export import CARD
from .by_loop import UNITS, assert_clipped_as_in_a_loop, away_from_start, unit_losses

HIDDEN, WORDS, TEXT = 32, 20, 5
ONE = EarConfig(rate=8000, seconds=1, width=16, depth=1, heads=2, bands=20)
SEEN, PIECE = 16, 512  # tokens of a sound, samples of each
LINEAR = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2", "to_words")
CHOSEN = ("ear.q_proj", "ear.fc1", "ear.out_proj", "ear.to_words", "o_proj")


def ear_of(config=ONE, hidden=HIDDEN, kind=Ear):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        ear = kind(config, hidden).eval()
        for module in ear.whisper.modules():  # as large as if it had learned
            if isinstance(module, torch.nn.Linear | torch.nn.Conv1d):
                torch.nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
    return ear


def decoder(words=WORDS):
    config = BackboneConfig(hidden=HIDDEN, experts=4, max_tokens=64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return named("deepseek_v3").build(words, config).eval()


def listener():
    model = decoder()
    sense.join(model, ear_of())
    return model


def sounds(rows, seed=0):
    """Tones of random pitch on noise, each of its own loudness."""
    rng = np.random.default_rng(seed)
    time = np.arange(SEEN * PIECE) / 8000
    tones = np.sin(2 * np.pi * rng.uniform(200, 3000, (rows, 1)) * time) + 0.3 * rng.normal(size=(rows, len(time)))
    return (tones * rng.uniform(200, 9000, (rows, 1))).clip(-(2**15), 2**15 - 1).astype(np.int16)


def rows_of(count, *, text=TEXT, seed=0):
    """[R, T, 129] with a sound at the beginning of each."""
    words = np.random.default_rng(seed).integers(1, WORDS, (count, SEEN + text))
    carried = np.zeros((*words.shape, 2 * PIECE), dtype=np.uint8)
    carried[:, :SEEN] = ONE.layout.pieces(sounds(count, seed))
    return torch.from_numpy(carrying(words, carried))


def states(model, ids):
    return model.model(input_ids=ids, use_cache=False).last_hidden_state


def spectra(ear, samples):
    return ear.spectra(torch.from_numpy(np.asarray(samples, dtype=np.int16)))


def test_samples_are_put_together_again_from_what_tokens_carry():
    ids, want = rows_of(3), sounds(3)
    np.testing.assert_array_equal(ear_of().samples(bytes_of(ids[:, :SEEN])).numpy(), want)


@pytest.mark.parametrize("rate", [8000, 16_000])
def test_a_spectrum_is_what_a_plain_fourier_transform_says(rate):
    """By numpy's transform, frame by frame, in float64."""
    config = EarConfig(rate=rate, seconds=1, width=16, depth=1, heads=2, bands=24)
    samples = np.random.default_rng(1).integers(-(2**15), 2**15, (2, 16 * rate * 64 // 1000)).astype(np.int16)
    found = spectra(ear_of(config).double(), samples).numpy()
    hop = rate * 16 // 1000
    hann = np.hanning(2 * hop + 1)[:-1]
    for row, sound in enumerate(np.pad(samples / 2**15, ((0, 0), (hop // 2, hop // 2)))):
        frames = [sound[start : start + 2 * hop] for start in range(0, len(sound) - hop, hop)]
        power = np.array([np.abs(np.fft.rfft(frame * hann / hann.sum())) ** 2 for frame in frames]) @ mel_of(rate, 24)
        want = 1 + np.log(power / (power.mean() + 2.0**-30) + 1e-4) / 4
        np.testing.assert_allclose(found[row], want.T, atol=1e-9)
    assert found.shape == (2, 24, 64)


def test_a_tone_stands_in_the_band_and_the_frames_where_it_sounds():
    ear, time = ear_of(EarConfig(rate=8000, seconds=1)), np.arange(SEEN * PIECE) / 8000
    peaks = []
    for pitch in (200, 500, 1000, 2000, 3500):
        sound = 8000 * np.sin(2 * np.pi * pitch * time) * ((time > 0.256) & (time < 0.512))
        (found,) = spectra(ear, sound[None])
        peaks.append(int(found[:, 24].argmax()))
        is_loud = found[peaks[-1]] > 1
        assert is_loud[17:31].all()
        assert not is_loud[:15].any()
        assert not is_loud[33:].any()
    assert peaks == sorted(set(peaks))


def test_every_band_hears_something():
    for rate in (8000, 16_000):
        assert (mel_of(rate, 128).sum(0) > 0).all()
        assert waves_of(rate).shape == (rate * 32 // 1000, 2 * (rate * 16 // 1000 + 1))


def test_how_loud_a_sound_is_does_not_count_and_silence_is_a_number():
    ear, loud = ear_of(), sounds(1) // 4
    torch.testing.assert_close(spectra(ear, loud * 2), spectra(ear, loud * 4), atol=2e-3, rtol=0)
    silence = spectra(ear, np.zeros_like(loud))
    assert bool(torch.isfinite(silence).all())
    assert len(silence.unique()) == 1


def test_a_sound_is_heard_by_itself_and_as_a_whole():
    ear, drawn = ear_of(), sounds(2)
    other = drawn.copy()
    other[0, -PIECE:] = 0
    with torch.no_grad():
        before, after = (ear(torch.from_numpy(ONE.layout.pieces(each))) for each in (drawn, other))
    assert before.shape == (2, SEEN, HIDDEN)
    has_moved = (before != after).any(2)
    assert has_moved[0].all()
    assert not has_moved[1].any()


@torch.no_grad()
def test_states_lie_in_the_order_of_pieces():
    """Without attention, a state follows from frames around its own piece."""
    ear = ear_of()
    for name, parameter in ear.whisper.named_parameters():
        if "out_proj" in name or "fc2" in name:
            parameter.zero_()
    quiet = spectra(ear, sounds(1))
    for piece in (0, 5, 15):
        heard = quiet.clone()
        heard[:, :, 4 * piece + 1 : 4 * piece + 3] += 1
        has_moved = (ear.pieces(heard) != ear.pieces(quiet)).any(2)[0]
        assert has_moved[piece]
        assert not has_moved[[place for place in range(SEEN) if abs(place - piece) > 1]].any()


@torch.no_grad()
def test_a_row_is_what_the_ear_hears_and_then_its_words():
    model, ids, found = listener(), rows_of(3), []
    model.model.layers[0].register_forward_pre_hook(lambda _layer, args: found.append(args[0]))
    states(model, ids)
    torch.testing.assert_close(found[0][:, :SEEN], sense.sense_of(model)(bytes_of(ids[:, :SEEN])))
    assert torch.equal(found[0][:, SEEN:], model.model.embed_tokens(words_of(ids)[:, SEEN:]))


@torch.no_grad()
def test_plain_words_are_read_as_without_an_ear():
    model, words = listener(), words_of(rows_of(3))
    assert torch.equal(states(model, words), states(decoder(), words))


@torch.no_grad()
def test_equal_sounds_give_equal_states_again_and_in_a_copy():
    model, ids = listener(), rows_of(2)
    before, other = states(model, ids), copy.deepcopy(model)
    assert torch.equal(states(model, ids), before)
    assert torch.equal(states(other, ids), before)
    other.model.ear.where.zero_()
    assert torch.equal(states(model, ids), before)
    assert not torch.allclose(states(other, ids), before)


def test_a_model_has_one_sense_of_its_own_width():
    with pytest.raises(InvalidBackbone, match="has an ear already"):
        sense.join(listener(), ear_of())
    with pytest.raises(InvalidBackbone, match="has an ear already"):
        sense.join(listener(), Eye(EyeConfig(size=(32, 32), cell=(32, 32)), HIDDEN))
    with pytest.raises(InvalidBackbone, match="an ear for states of 64 numbers, not 32"):
        sense.join(decoder(), ear_of(hidden=64))


def test_an_ear_hears_sounds_of_one_layout():
    sense.require_layout(listener(), ONE.layout)
    sense.require_layout(decoder(), None)
    for model, layout, said in (
        (decoder(), ONE.layout, "has no ear, and the study's records begin with a sound"),
        (listener(), None, "has an ear, and the study's records have no sounds"),
        (listener(), PictureLayout((32, 32), (32, 32)), "has no eye, and the study's records begin with a picture"),
        (
            listener(),
            SoundLayout(16_000, 1),
            "an ear for sounds of 1 s at 8000 Hz, and the study's are of 1 s at 16000",
        ),
    ):
        with pytest.raises(BackboneMismatch, match=said):
            sense.require_layout(model, layout)


def test_names_say_which_sense_a_module_is_of():
    assert sense_in("model.ear.whisper.layers.0.fc1") == EAR
    assert sense_in("eye.swin.layers.0.fc1") == EYE
    assert sense_in("model.layers.0.year.heart.fc1") is None
    assert TARGETS[EAR] == tuple(f"ear.{leaf}" for leaf in LINEAR)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder, model = tmp_path_factory.mktemp("backbone"), listener()
    checkpoints.save_model(model, folder)
    tokenizer = word_tokenizer([" ".join(f"w{number}" for number in range(WORDS - 3))])
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    sense.save(model, folder)
    return folder


@torch.no_grad()
def test_an_ear_is_saved_beside_the_weights_and_found_again(saved):
    found, ids = loading.load_text(saved), rows_of(3)
    assert torch.equal(states(found.model, ids), states(listener(), ids))
    assert not any(parameter.requires_grad for parameter in sense.sense_of(found.model).parameters())
    weights = json.loads((saved / checkpoints.INDEX).read_text())["weight_map"]
    assert not [name for name in weights if "ear" in name]
    assert loading.describe(saved).targets[-len(LINEAR) :] == TARGETS[EAR]
    assert not any("waves" in name or "mel" in name for name in load_file(saved / FILES[EAR]))


def test_one_weight_of_the_ear_changes_the_hash(saved, tmp_path):
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    before = checkpoints.content_hash(tmp_path)
    weights = load_file(tmp_path / FILES[EAR])
    weights["where"][0, 0] += 0.25
    save_file(weights, tmp_path / FILES[EAR], metadata={"sizes": json.dumps(asdict(ONE))})
    assert checkpoints.content_hash(tmp_path) != before == checkpoints.content_hash(saved)


@torch.no_grad()
def test_a_decoder_that_reads_in_segments_has_an_ear_that_does_not(saved):
    whole, parts = loading.load_text(saved), loading.load_text(saved, segments=Segments(window=64, top=2))
    attach(parts.model, AdapterConfig(rank=2, alpha=2.0, targets=CHOSEN, seed="s"))
    ids = rows_of(3)  # shorter than a segment, so that it reads all of them
    assert torch.allclose(states(parts.model, ids), states(whole.model, ids), atol=1e-5)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_the_card_of_combined_adapters_says_what_a_plain_load_misses(saved, tmp_path):
    for seed in ("one", "two"):
        model = loading.load_text(saved).model
        config = AdapterConfig(rank=2, alpha=2.0, targets=("ear.to_words",), seed=seed)
        export(attach(model, config), saved, tmp_path / seed, CARD)
    combine([tmp_path / "one", tmp_path / "two"], tmp_path / "both")
    for name in ("one", "both"):
        assert "ear.safetensors" in (tmp_path / name / "README.md").read_text()


def test_a_backbone_with_an_eye_and_an_ear_is_refused(saved, tmp_path):
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    other = decoder()
    sense.join(other, Eye(EyeConfig(size=(32, 32), cell=(32, 32)), HIDDEN))
    sense.save(other, tmp_path)
    with pytest.raises(InvalidBackbone, match=r"eye\.safetensors and ear\.safetensors; a backbone has one of them"):
        loading.load_text(tmp_path)


def sizes(**changes):
    stated = {**asdict(ONE), **changes}
    return {"sizes": json.dumps({name: value for name, value in stated.items() if value != "left out"})}


WRONG_SIZES = {
    "nothing is stated": None,
    "no JSON": {"sizes": "width: 8"},
    "a list": {"sizes": "[]"},
    "left out": sizes(bands="left out"),
    "one more": sizes(window=3),
    "text": sizes(width="16"),
    "a fraction": sizes(width=16.5),
    "a flag": sizes(depth=True),
    "another rate": sizes(rate=44_100),
    "no second": sizes(seconds=0),
    "an hour": sizes(seconds=3600),
    "odd width": sizes(width=15, heads=3),
    "no width": sizes(width=0),
    "monstrous width": sizes(width=2**40),
    "heads that leave a rest": sizes(heads=3),
    "no heads": sizes(heads=0),
    "less than no heads": sizes(heads=-2),
    "no layers": sizes(depth=0),
    "more layers than any": sizes(depth=65),
    "no bands": sizes(bands=0),
    "more bands than any": sizes(bands=129),
    "another width": sizes(width=32),
    "another depth": sizes(depth=2),
    "other bands": sizes(bands=21),
    "another length": sizes(seconds=2),
}


@pytest.mark.parametrize("what", WRONG_SIZES)
def test_an_ear_of_other_sizes_is_refused(saved, tmp_path, what):
    save_file(load_file(saved / FILES[EAR]), tmp_path / FILES[EAR], metadata=WRONG_SIZES[what])
    refuse(tmp_path)


def refuse(folder, said=FILES[EAR]):
    model = decoder()
    with pytest.raises(InvalidBackbone, match=said):
        sense.load(folder, model)
    assert sense.sense_of(model) is None


WRONG_WEIGHTS = {
    "nan": lambda found: found["where"].view(-1)[5:6].fill_(torch.nan),
    "infinity": lambda found: found["to_words.weight"].view(-1)[5:6].fill_(-torch.inf),
    "whole numbers": lambda found: found.update(where=found["where"].to(torch.int32)),
    "one less": lambda found: found.pop("where"),
    "one more": lambda found: found.update(more=torch.zeros(1)),
    "another shape": lambda found: found.update(where=found["where"].T.contiguous()),
    "none": lambda found: found.clear(),
}


@pytest.mark.parametrize("what", WRONG_WEIGHTS)
def test_an_ear_of_other_weights_is_refused(saved, tmp_path, what):
    weights = load_file(saved / FILES[EAR])
    WRONG_WEIGHTS[what](weights)
    save_file(weights, tmp_path / FILES[EAR], metadata=sizes())
    refuse(tmp_path)


def test_a_file_that_is_no_ear_is_refused(saved, tmp_path):
    whole = (saved / FILES[EAR]).read_bytes()
    for file in (b"", b"no safetensors", whole[:7], whole[:900], whole[:-1], whole + b"\0"):
        (tmp_path / FILES[EAR]).write_bytes(file)
        refuse(tmp_path)


def adapted_listener(targets=CHOSEN, *, dtype=torch.float64, freeze_a=True, layers=None):
    return away_from_start(listener(), targets, dtype=dtype, freeze_a=freeze_a, layers=layers)


@pytest.mark.slow
@pytest.mark.parametrize("freeze_a", [True, False])
@pytest.mark.parametrize("targets", [CHOSEN, TARGETS[EAR]], ids=["both", "ear alone"])
def test_clipping_by_unit_through_an_ear_is_that_of_a_loop(freeze_a, targets):
    """Four rows of three units; every unit's gradient by itself, clipped, and summed."""
    adapted, ids = adapted_listener(targets, freeze_a=freeze_a), rows_of(4)
    assert {name.split(".")[-2] for name in adapted.trained} == {target.split(".")[-1] for target in targets}
    assert_clipped_as_in_a_loop(adapted, ids, SEEN)


def test_every_adapter_of_an_ear_is_told_its_own_number_of_tokens():
    adapted = adapted_listener(TARGETS[EAR], dtype=torch.float32)
    for name, adapter in adapted.adapters.items():
        assert adapter.tokens_per_row == (SEEN if name.endswith("to_words") else 2 * SEEN), name
    other = adapted_listener(("o_proj",), dtype=torch.float32)
    assert {adapter.tokens_per_row for adapter in other.adapters.values()} == {None}


@pytest.mark.parametrize("leaf", LINEAR)
def test_an_adapter_of_an_ear_that_is_not_told_is_refused(leaf):
    adapted, ids = adapted_listener((f"ear.{leaf}", "o_proj"), dtype=torch.float32), rows_of(4)
    (name, *_) = [name for name in adapted.adapters if ".ear." in name]
    adapted.adapters[name].tokens_per_row = None
    clipper = PerUnitClipper(adapted)
    with pytest.raises(TokensMiscounted), clipper.microbatch(UNITS, ids.shape[1]), adapted.rows.told(ids):
        sum(unit_losses(adapted, ids, np.arange(4), SEEN)).backward()


@pytest.mark.slow
def test_gradients_from_kept_states_are_those_of_the_whole():
    adapted = adapted_listener(("o_proj", "kv_b_proj"), layers=(1,), dtype=torch.float32)
    assert kept_gap(adapted, words=WORDS, tokens=SEEN + TEXT) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [(SEEN + TEXT,), (7, SEEN + 2)], ids=["one", "shorter than a sound"])
def test_units_stay_apart_in_a_model_with_an_ear(lengths):
    refuse_dependence(adapted_listener(dtype=torch.float32), words=WORDS, lengths=lengths)


@pytest.mark.slow
def test_rows_are_computed_apart_in_batches_of_more_than_one():
    found = probed_shapes(adapted_listener(dtype=torch.float32), max_tokens=SEEN + 8, max_rows=8, max_records=1)
    assert max(size for sizes in found.rows_of_length.values() for size in sizes) > 1


class Averaging(Ear):
    """Takes the batch's mean away from what it hears."""

    def forward(self, bytes_RNB):
        heard = super().forward(bytes_RNB)
        return heard - heard.mean(0, keepdim=True)


class Levelling(Ear):
    """Counts how loud a sound is beside the others of a batch."""

    def spectra(self, samples_RS):
        return super().spectra(samples_RS) + samples_RS.abs().double().mean().log() / 4


class Filtering(Ear):
    """Takes the mean of a batch's spectra from each, as a room's sound is taken away."""

    def pieces(self, spectra_RMF):
        return super().pieces(spectra_RMF - spectra_RMF.mean((0, 2), keepdim=True))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Averaging, Levelling, Filtering])
def test_an_ear_that_ties_rows_together_is_refused(kind):
    model = decoder()
    sense.join(model, ear_of(kind=kind))
    adapted = attach(model, AdapterConfig(rank=2, alpha=2.0, targets=CHOSEN, seed="x"))
    with pytest.raises(UnitsCoupled):
        refuse_dependence(adapted, words=WORDS, lengths=(SEEN + TEXT,))
