"""The voices of `examples/voices`, of a folder of readings that are tones; the real package is not fetched here."""

import collections
import importlib.util
import random
import shutil
import sys

import numpy as np
import pytest
import soundfile

from confide.client_node.study import load_draft
from confide.models.structure.sounds import SoundLayout, decode, plain

from .conftest import EXAMPLES, are_prepared_alike, rows

sys.path.insert(0, str(EXAMPLES / "voices"))
import readings

LAYOUT = SoundLayout(8000, 2)
THINGS, PUBLIC = 24, 6
NAMES = {"fr": "le chat", "ca": "el gat", "es": "el gato", "ro": "o pisică", "ru": "кошка", "bg": "котка"}


def loaded():
    spec = importlib.util.spec_from_file_location("voices_prepare", EXAMPLES / "voices" / "prepare.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def example():
    return loaded()


def tone(pitch, seconds=0.4, rate=44_100):
    return 0.5 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * rate)) / rate)


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """The example with few readings, all of tones, and few public sounds."""
    module, folder = loaded(), tmp_path_factory.mktemp("stamps") / "stamps"
    animals = folder / module.STAMPS / "animals"
    animals.mkdir(parents=True)
    for thing in range(THINGS):
        lines = "".join(f"{code}.utf8={text}\n" for code, text in NAMES.items())
        (animals / f"cat{thing}.txt").write_text(f"A cat.\nde.utf8=Katze\n{lines}", encoding="utf-8")
        for code in NAMES:
            path = animals / f"cat{thing}_desc_{code}.ogg"
            soundfile.write(path, tone(200 + 10 * thing), 44_100, format="OGG", subtype="VORBIS")
    module.PUBLIC, find = PUBLIC, module.stamps

    def laid(directory):
        if not (directory / "stamps").exists():
            shutil.copytree(folder, directory / "stamps")
        return find(directory)

    module.stamps = laid
    return module


@pytest.fixture(scope="module")
def prepared(few, tmp_path_factory):
    directory = tmp_path_factory.mktemp("voices")
    return directory, few.prepare(directory)


def tables(directory, report):
    """(folder of sounds, rows) of all tables."""
    for site in report.values():
        for part in ("train", "heldout"):
            yield directory / site["files"], rows(site[part])
    yield directory / "sounds", rows(directory / "public.csv")


@pytest.mark.process
def test_every_sound_is_one_that_the_study_reads(prepared):
    for folder, patients in tables(*prepared):
        files = [(folder / row["call"]).read_bytes() for row in patients]
        assert all(plain(file, LAYOUT) == file for file in files)
        loudest = np.abs(decode(files, LAYOUT).astype(int)).max(1)
        assert ((loudest > 16_000) & (loudest <= 16_384)).all()


@pytest.mark.process
def test_a_thing_is_held_out_in_all_languages_and_each_reading_is_one_patient_s(few, prepared):
    things = list(few.things_of(few.stamps(prepared[0])))
    assert len(things) == THINGS
    found = few.shared_out(things)
    places = [path for parts in found.values() for own in parts.values() for _, path in own]
    assert len(places) == len(set(places)) == THINGS * len(NAMES)
    for parts in found.values():
        for part, own in parts.items():
            for _, path in own:
                thing = f"animals/{path.name.split('_desc_')[0]}"
                assert few.is_held_out(thing) == (part == "heldout")
    report = prepared[1]
    assert sum(site["units"] + site["heldout_units"] for site in report.values()) == len(places)
    units = [row["patient_id"] for _, patients in tables(*prepared) for row in patients]
    assert len(units) == len(set(units))


@pytest.mark.process
def test_public_sounds_say_their_language_and_no_site_does(prepared):
    *sites, (_, public) = tables(*prepared)
    assert len(public) == PUBLIC
    assert all(row["spoken"] == row["language"] in readings.LANGUAGES.values() for row in public)
    assert not any("spoken" in row for _, patients in sites for row in patients)


@pytest.mark.process
def test_no_public_sound_says_a_thing_that_is_held_out(few, monkeypatch, tmp_path):
    said = []
    monkeypatch.setattr(few, "spoken", lambda text, code, rng: said.append(text) or tone(300, 0.2, 8000))
    things = [(f"thing{number}", {}, {"fr": f"name {number}"}) for number in range(200)]
    few.synthetic(tmp_path, things, 400)
    held_out = {f"name {number}" for number in range(200) if few.is_held_out(f"thing{number}")}
    assert 20 < len(held_out) < 80
    assert not held_out & set(said)
    assert len(set(said)) > 100


@pytest.mark.process
def test_preparing_again_writes_the_same_bytes(few, prepared, tmp_path):
    assert are_prepared_alike(few, prepared, tmp_path)
    for name in ("public-0.wav", "public-5.wav"):
        assert (tmp_path / "sounds" / name).read_bytes() == (prepared[0] / "sounds" / name).read_bytes()


def test_hospitals_have_patients_of_their_own(example):
    assert all(sum(shares[code] for shares in example.SITES.values()) == 10 for code in readings.LANGUAGES)
    things = [(f"t{number}", {code: f"t{number}-{code}" for code in NAMES}, {}) for number in range(400)]
    for site, parts in example.shared_out(things).items():
        counts = collections.Counter(code for own in parts.values() for code, _ in own)
        assert all(abs(counts[code] / 400 - share / 10) < 0.08 for code, share in example.SITES[site].items())


def test_a_passport_hints_at_a_language_and_does_not_say_it(example):
    shown = {code: [example.passport(f"p{number}", code) for number in range(600)] for code in NAMES}
    for code, countries in shown.items():
        assert set(countries) == {"none", *example.PASSPORTS[code]}
        assert 0.25 < countries.count("none") / 600 < 0.42
    assert "spain" in shown["ca"]
    assert "spain" in shown["es"]


@pytest.mark.parametrize("rate", [8000, 22_050, 44_100])
def test_another_rate_leaves_a_tone_where_it_was_and_nothing_above(rate):
    low = readings.resampled(tone(1000, 0.5, rate), rate)
    assert abs(len(low) - 4000) <= 1
    assert np.abs(np.fft.rfft(low[:4000])).argmax() == 500
    if rate > 8000:
        assert np.abs(readings.resampled(tone(6000, 0.5, rate), rate)[500:-500]).max() < 0.01


def test_a_higher_voice_is_higher_and_shorter(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(1000, 1.0), 44_100)
    found = readings.read(tmp_path / "a.wav", higher=1.1)
    assert abs(len(found) - 8000 / 1.1) <= 1
    assert abs(np.abs(np.fft.rfft(found)).argmax() * 8000 / len(found) - 1100) < 3


def test_silence_at_both_ends_is_cut_and_two_seconds_are_kept():
    wave = np.concatenate([np.zeros(4000), tone(500, 0.5, 8000), np.zeros(9000)])
    (found,) = decode([readings.as_wav(wave)], LAYOUT)
    assert abs(int(np.flatnonzero(found)[0]) - 400) < 20
    assert not found[4000 + 2 * 400 + 20 :].any()
    assert len(readings.as_wav(tone(500, 9.0, 8000))) == 44 + 2 * 16_000
    with pytest.raises(ValueError, match="silent"):
        readings.as_wav(np.zeros(100))


def test_the_synthesiser_says_each_language_and_nothing_for_nothing():
    for code, text in NAMES.items():
        wave = readings.spoken(text, code, random.Random(1))
        assert 0.2 < len(wave) / 8000 < 3
        assert np.abs(wave).max() > 0.01
    assert readings.spoken("", "fr", random.Random(1)) is None


def test_without_the_package_it_says_what_to_install(example, monkeypatch, tmp_path):
    monkeypatch.setattr(example.shutil, "which", lambda _: None)
    monkeypatch.setattr(example, "STAMPS", example.Path("no/such/stamps"))
    with pytest.raises(FileNotFoundError, match="install tuxpaint-stamps-default"):
        example.prepare(tmp_path)


@pytest.mark.parametrize("missing", ["soundfile", "espeakng_loader"])
def test_without_a_package_of_python_it_says_so_before_it_writes(example, monkeypatch, tmp_path, missing):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    with pytest.raises(FileNotFoundError, match=missing):
        example.prepare(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.process
def test_a_synthesiser_that_fails_is_told(few, monkeypatch, tmp_path):
    monkeypatch.setattr(few.sys, "executable", shutil.which("false"))
    with pytest.raises(OSError, match="could not say the public sounds"):
        few.prepare(tmp_path, sounds=1, public=1)


def test_a_package_that_is_unpacked_half_is_no_package(example, monkeypatch, tmp_path):
    says = iter([0, 1])

    def run(command, **settings):
        if command[0] == "apt-get":
            example.Path(settings["cwd"], f"{example.PACKAGE}_1_all.deb").touch()
        else:
            reading = example.Path(command[-1], example.STAMPS, "cat_desc_bg.ogg")
            reading.parent.mkdir(parents=True)
            reading.touch()
        return example.subprocess.CompletedProcess(command, next(says))

    monkeypatch.setattr(example.subprocess, "run", run)
    assert not example.unpacked(example.PACKAGE, tmp_path / "stamps")
    assert not list(tmp_path.rglob("*.ogg"))
    says = iter([0, 0])
    assert example.unpacked(example.PACKAGE, tmp_path / "stamps")
    assert (tmp_path / "stamps" / example.STAMPS / "cat_desc_bg.ogg").exists()


def test_the_study_of_the_example_is_read():
    draft = load_draft(EXAMPLES / "voices" / "study.toml")
    assert draft.data.kind.name == "sound"
    assert draft.data.terms.layout == LAYOUT
    assert draft.data.kind.columns(draft.data.terms)[0].name == "call"
