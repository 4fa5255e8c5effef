"""The things of `examples/search`, of stamps that are drawn here; the real packages are not fetched."""

import importlib.util
import json
import random
import shutil
import sys

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image, ImageDraw, ImageFont

from confide.coordinator.demo import run_demo
from confide.coordinator.errors import DemoFailed
from confide.models.space.public import read_table
from confide.models.structure.pictures import decode_colours
from confide.models.structure.sounds import SoundLayout, decode

from ..models.tiny import save_text_backbone
from .conftest import EXAMPLES

sys.path.insert(0, str(EXAMPLES / "search"))
import things

STAMPS, LAYOUT = 16, SoundLayout(8000, 2)
WORDS = {"es": "una cosa", "fr": "une chose", "ca": "una cosa"}


def loaded(name):
    spec = importlib.util.spec_from_file_location(f"search_{name}", EXAMPLES / "search" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def prepare():
    return loaded("prepare")


def draw_stamps(folder, count=STAMPS):
    """Discs with a name and a tone each, in two folders."""
    for number in range(count):
        own = folder / ("animals" if number % 2 else "plants") / f"thing{number}"
        own.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.new("RGBA", (90, 60))
        ImageDraw.Draw(picture).ellipse((20, 5, 70, 55), fill=(15 * number, 255 - 15 * number, 90, 255))
        picture.save(own.with_suffix(".png"))
        lines = "".join(f"{code}.utf8={text} {number}.\n" for code, text in WORDS.items())
        own.with_suffix(".txt").write_text(f"A thing {number}.\nde.utf8=Ding\n{lines}", encoding="utf-8")
        for code in WORDS:
            wave = 0.5 * np.sin(2 * np.pi * (200 + 100 * number) * np.arange(8000) / 22_050)
            soundfile.write(f"{own}_desc_{code}.ogg", wave, 22_050, format="OGG", subtype="VORBIS")
    return folder


@pytest.fixture(scope="module")
def packages(tmp_path_factory, prepare):
    """Folders of packages as they are unpacked: drawn stamps, and no emoji that any font could draw."""
    root = tmp_path_factory.mktemp("packages")
    stamps, font, annotations = prepare.PACKAGES
    draw_stamps(root / prepare.PACKAGES[stamps] / stamps)
    (root / prepare.PACKAGES[font] / font).parent.mkdir(parents=True)
    (root / prepare.PACKAGES[font] / font).write_bytes(b"")
    (root / prepare.PACKAGES[annotations] / annotations).mkdir(parents=True)
    return root


@pytest.fixture
def without_emoji(prepare, monkeypatch):
    monkeypatch.setattr(prepare, "emoji", lambda font, annotations: iter(()))
    monkeypatch.setattr(prepare, "spoken", lambda text, code, rng: 0.3 * np.sin(np.arange(4000) * rng.random()))


@pytest.fixture
def prepared(prepare, packages, without_emoji, tmp_path):
    prepare.prepare(tmp_path / "things", packages, seed=1, held_out=4)
    return tmp_path / "things"


def test_stamps_have_names_in_all_languages(packages, prepare):
    found = list(things.stamps(packages / "tuxpaint-stamps-default" / next(iter(prepare.PACKAGES))))
    assert len(found) == STAMPS
    assert found[0].names == {"en": "A thing 1", "es": "una cosa 1", "fr": "une chose 1", "ca": "una cosa 1"}
    assert set(found[0].readings) == set(things.SPOKEN)


def test_emoji_are_drawn_by_the_font_and_named_in_all_languages(tmp_path, monkeypatch):
    for code in things.LANGUAGES:
        named = f'<annotation cp="A" type="tts">{code} name</annotation><annotation cp="A">other | words</annotation>'
        more = '<annotation cp="B" type="tts">half</annotation>' if code == "en" else ""
        blank = '<annotation cp=" " type="tts">blank</annotation>'
        (tmp_path / f"{code}.xml").write_text(f"<ldml><annotations>{named}{more}{blank}</annotations></ldml>")
    font = ImageFont.load_default(109)
    monkeypatch.setattr(things.ImageFont, "truetype", lambda path, size: font)
    (found,) = things.emoji(tmp_path / "font.ttf", tmp_path)
    assert found.name == "emoji-41"
    assert found.names == {code: f"{code} name" for code in things.LANGUAGES}
    assert things.shrunk(found.picture, 32).shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("name", "want"),
    [("A toucan", "toucan"), ("un tucán", "tucán"), ("L'ocell", "ocell"), ("una", "una"), ("Ants", "ants"),
     ("the Earth", "earth"), ("les abelles", "abelles"), ("unicorn", "unicorn"), ("de la terre", "terre")],
)  # fmt: skip
def test_names_are_told_apart_without_their_articles(name, want):
    assert things.bare(name) == want


def test_a_picture_is_cut_centred_and_shrunk_on_white():
    drawn = Image.new("RGBA", (100, 50))
    ImageDraw.Draw(drawn).rectangle((60, 10, 99, 29), fill=(255, 0, 0, 255))
    found = things.shrunk(drawn, 32)
    assert found.shape == (32, 32, 3)
    assert found[16, 16].tolist() == [255, 0, 0]
    assert found[:7].min() == found[-7:].min() == 255


def test_all_that_is_written_is_what_a_space_reads(prepared):
    table = read_table(prepared / "public.csv")
    assert len(table.things) == STAMPS - 4
    for folder, pictures, sounds in (
        (prepared / "files", [file for _, file in table.pictures], [file for _, file in table.sounds]),
        (prepared / "archive", [f"{n:03}.png" for n in range(4)], [f"{n:03}-{c}.wav" for n in range(4) for c in WORDS]),
    ):
        assert decode_colours([(folder / file).read_bytes() for file in pictures], (32, 32)).shape[1:] == (32, 32, 3)
        assert decode([(folder / file).read_bytes() for file in sounds], LAYOUT).any(1).all()
    assert len(list((prepared / "archive").glob("*.txt"))) == 4 * len(things.LANGUAGES)


def test_no_public_thing_has_a_name_that_is_held_out(prepared):
    held_out = {things.bare(path.read_text().strip()) for path in (prepared / "archive").glob("*.txt")}
    assert len(held_out) >= 8
    assert not held_out & {things.bare(name) for name in read_table(prepared / "public.csv").names}


@pytest.fixture
def wordnet(tmp_path):
    """Nouns in WordNet's form, one for each class: `noun N`, also called `thing N`; some stand between them."""
    lines = ["  1 This is the licence", "00000001 03 n 01 entity 0 000 | all that is"]
    for number, place in enumerate((EXAMPLES / "search" / "imagenet.txt").read_text().split()):
        lines.append(f"{place} 05 n 02 noun_{number} 0 thing_{number} 0 000 | no more")
    (tmp_path / "data.noun").write_text("\n".join(lines) + "\n", encoding="latin-1")
    return tmp_path / "data.noun"


def test_classes_are_named_as_wordnet_names_their_places(wordnet):
    found = things.classes(wordnet)
    assert len(found) == 1000
    assert (found[0], found[999]) == (["noun 0", "thing 0"], ["noun 999", "thing 999"])


def test_for_an_imported_eye_pictures_are_larger_and_its_classes_are_things(
    prepare, packages, without_emoji, wordnet, tmp_path, monkeypatch
):
    found = prepare.found
    monkeypatch.setattr(prepare, "found", lambda place, at: wordnet if place in prepare.WORDNET else found(place, at))
    prepare.prepare(tmp_path / "things", packages, seed=1, held_out=4, imported=True)
    table = read_table(tmp_path / "things" / "public.csv")
    held_out = {
        path.read_text().strip().removeprefix("A ") for path in (tmp_path / "things" / "archive").glob("*-en.txt")
    }
    assert len(table.classes) == 1000
    assert len(held_out) == 4
    assert not held_out & set(table.names)  # `thing N`: the class keeps its other name
    assert {f"noun {name.removeprefix('thing ')}" for name in held_out} <= set(table.names)
    files = [(tmp_path / "things" / "files" / file).read_bytes() for _, file in table.pictures]
    assert decode_colours(files, (224, 224)).shape[1:] == (224, 224, 3)
    assert len({file for _, file in table.sounds if file.count("-") == 2}) == 4 * (STAMPS - 4)  # one voice a name


def test_a_thing_that_shares_one_name_in_one_language_is_no_public_one():
    one = things.Thing("a", {"en": "A crab", "es": "Un cangrejo"}, Image.new("RGBA", (1, 1)))
    same = things.Thing("b", {"en": "crab", "es": "otro"}, one.picture)
    other = things.Thing("c", {"en": "A lobster", "es": "cangrejo de mar"}, one.picture)
    assert things.apart([one, same, other], [one]) == [other]


def test_other_seeds_hold_out_other_things_of_different_names(prepare, packages):
    known = list(things.stamps(packages / "tuxpaint-stamps-default" / next(iter(prepare.PACKAGES))))
    kept = [prepare.split(known, seed, 6)[0] for seed in (1, 1, 2)]
    names = [[thing.name for thing in own] for own in kept]
    assert names[0] == names[1] != names[2]
    assert len(set().union(*(thing.bare for thing in kept[0]))) == sum(len(thing.bare) for thing in kept[0])


def test_signs_and_what_is_not_read_in_all_languages_are_not_held_out(prepare):
    names, readings = {"en": "a", "es": "b"}, dict.fromkeys(things.SPOKEN, prepare.Path("a.ogg"))
    picture = Image.new("RGBA", (1, 1))
    sign, silent = things.Thing("symbols/a", names, picture, readings), things.Thing("plants/b", names, picture)
    plant = things.Thing("plants/a", names, picture, readings)
    assert prepare.split([sign, silent, plant], 1, 3) == ([plant], [sign, silent])


def test_a_package_that_is_nowhere_is_named_with_what_to_do(prepare, monkeypatch, tmp_path):
    monkeypatch.setattr(prepare.shutil, "which", lambda name: None)
    place = next(iter(prepare.PACKAGES))
    if not (prepare.Path("/") / place).exists():
        with pytest.raises(FileNotFoundError, match="install tuxpaint-stamps-default"):
            prepare.found(place, tmp_path)


def told(capsys):
    """The JSON on stdout, behind what libraries log there when they are first imported."""
    _, brace, rest = capsys.readouterr().out.partition("{\n")
    return json.loads(brace + rest)


@pytest.mark.slow
def test_the_demonstration_builds_searches_and_writes_a_page(prepared, tmp_path, capsys):
    """The packages are drawn here and the backbone is tiny, so the figures mean nothing: all parts run."""
    directory = tmp_path / "demo"
    directory.mkdir()
    shutil.copytree(prepared, directory / "things-few")
    save_text_backbone(directory / "smollm2")
    assert run_demo("search", directory, rounds=None, is_smoke=True, as_json=True) == 0
    outcome = told(capsys)
    assert outcome["held_out_things"] == 4
    assert outcome["chance_at_1"] == 0.25
    assert outcome["picture and name, recall@10"] == 1.0
    page = (directory / "search.html").read_text()
    assert page.count("<section>") == 4
    assert page.count("<img ") == 16
    assert page.count("class=own") == 4
    again = run_demo("search", directory, rounds=None, is_smoke=True, as_json=True)
    assert again == 0
    assert told(capsys)["space"] == outcome["space"]


def test_an_example_without_training_together_has_no_rounds(tmp_path):
    with pytest.raises(DemoFailed, match="has no rounds"):
        run_demo("search", tmp_path, rounds=3, is_smoke=True, as_json=True)


def test_points_of_several_languages_are_means_of_unit_length():
    script = loaded("demonstrate")
    names = [f"{n:03}{end}" for n in range(2) for end in (".png", *(f"-{c}.txt" for c in script.LANGUAGES),
                                                          *(f"-{c}.wav" for c in script.SPOKEN))]  # fmt: skip
    rng = random.Random(1)
    rng.shuffle(names)
    entries = tuple(
        script.archive.Entry(name=name, kind=script.archive.KINDS[name[-4:]], sha256="0" * 64) for name in names
    )
    points = torch.nn.functional.normalize(torch.randn(16, 4, generator=torch.Generator().manual_seed(1)), dim=-1)
    found = script.points_of(script.archive.Index("0" * 64, entries, points))
    assert torch.equal(found["picture"][1], points[names.index("001.png")])
    want = sum(points[names.index(f"000-{code}.wav")] for code in script.SPOKEN)
    torch.testing.assert_close(found["speech"][0], want / want.norm())
    assert set(script.recalls(found)) >= {"picture and name, recall@1", "picture and speech, recall@10"}
