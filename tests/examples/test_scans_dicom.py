"""The export of `examples/scans/from_dicom.py`, of files written here, against the standard's formulas by hand."""

import csv
import importlib.util
import json
import re
import stat
import warnings

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import (
    JPEG2000,
    BasicTextSRStorage,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    JPEGLosslessSV1,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)
from typer.testing import CliRunner

from confide.client_node.data import read
from confide.client_node.study.cost import provisional
from confide.client_node.study.study import load_draft
from confide.coordinator.studies.held_out import held_out_policy
from confide.models.structure.pictures import decode

from .conftest import EXAMPLES, rows

SIZE = (64, 96)
PATIENT, NAME = "MRN-7715", "Doe^Jane"
DRAFT = (EXAMPLES / "scans" / "study.toml").read_text()


@pytest.fixture(scope="module")
def module():
    spec = importlib.util.spec_from_file_location("scans_from_dicom", EXAMPLES / "scans" / "from_dicom.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "dicoms").mkdir()
    return tmp_path / "dicoms"


def dataset(stored, kind="MONOCHROME2", sop_class=CTImageStorage, **own):
    """A dataset of one frame, [rows, columns] or [rows, columns, 3], or of several with NumberOfFrames."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, sop_class
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["confide"])
    found = Dataset()
    found.file_meta = meta
    found.SOPClassUID, found.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    found.PatientID, found.PatientName = PATIENT, NAME
    if stored is not None:
        bits, is_colour = 8 * stored.dtype.itemsize, kind not in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
        found.Rows, found.Columns = stored.shape[-3:-1] if is_colour else stored.shape[-2:]
        found.SamplesPerPixel, found.PhotometricInterpretation = (3 if is_colour else 1), kind
        found.BitsAllocated = found.BitsStored = bits
        found.HighBit, found.PixelRepresentation = bits - 1, int(stored.dtype.kind == "i")
        if is_colour:
            found.PlanarConfiguration = 0
        found.PixelData = stored.tobytes() + b"\0" * (stored.nbytes % 2)
        found["PixelData"].VR = "OW" if bits > 8 else "OB"
    for name, value in own.items():
        setattr(found, name, value)
    return found


def some(shape=SIZE, dtype=np.uint8, low=0, high=256, seed=1):
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


def ct(shape=SIZE, **own):
    """A slice of 16 bits signed in Hounsfield units, with a window of soft tissue."""
    window = {"RescaleSlope": "2", "RescaleIntercept": "-1024", "WindowCenter": "40", "WindowWidth": "400"}
    return dataset(some(shape, np.int16, -50, 1200), **{**window, **own})


def through_window(values, center, width):
    """PS3.3 C.11.2.1.2.1, from 0 to 1."""
    return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1)


def save(path, found):
    path.parent.mkdir(parents=True, exist_ok=True)
    found.save_as(path, enforce_file_format=True)


def close_to(png, shades):
    """Whether a picture is the nearest to shades from 0 to 1; they were rounded to 24 bits on the way."""
    return png.shape == shades.shape and np.abs(png - 255.0 * shades).max() < 0.501


def exported(module, folder, size=SIZE, **options):
    """The pictures of an export, by the DICOM file; every one is decoded as a study does it."""
    out = folder.parent / "pictures"
    report = module.export(folder, out, size, **options)
    named = rows(out / "names.csv")
    found = decode([(out / row["file"]).read_bytes() for row in named], size)
    return report, {row["dicom"]: png for row, png in zip(named, found, strict=True)}


def shown(module, found, size=SIZE):
    return module.picture(found, size)


def scaled_by_hand(shades, size):
    """Scales with a triangle as wide as what a new pixel covers, at least two old ones, along each axis."""
    for axis, new in enumerate(size):
        old = shades.shape[axis]
        wide = max(old / new, 1)
        middles = (np.arange(new) + 0.5) * old / new
        weights = np.clip(1 - np.abs(np.arange(old) + 0.5 - middles[:, None]) / wide, 0, None)
        weights /= weights.sum(1, keepdims=True)
        shades = np.moveaxis(np.tensordot(weights, shades, (1, axis)), 0, axis)
    return shades


def test_a_ct_slice_is_rescaled_and_windowed(module, folder):
    found = ct()
    save(folder / "a.dcm", found)
    report, pngs = exported(module, folder)
    hounsfield = some(SIZE, np.int16, -50, 1200) * 2.0 - 1024
    assert close_to(pngs["a.dcm"], through_window(hounsfield, 40, 400))
    assert (report.pictures, report.refused) == (1, [])


@pytest.mark.parametrize(
    ("function", "shades"),
    [
        ("LINEAR_EXACT", lambda values: np.clip((values - 40) / 400 + 0.5, 0, 1)),
        ("SIGMOID", lambda values: 1 / (1 + np.exp(-4 * (values - 40) / 400))),
    ],
)
def test_other_functions_of_the_window_are_the_standard_s(module, function, shades):
    values = some(SIZE, np.int16, -50, 1200) * 2.0 - 1024
    assert close_to(shown(module, ct(VOILUTFunction=function)), shades(values))


def test_the_first_of_several_windows_is_used_and_a_falling_slope_turns_no_window(module):
    found = ct(RescaleSlope="-2", WindowCenter=["-1500", "40"], WindowWidth=["900", "400"])
    values = some(SIZE, np.int16, -50, 1200) * -2.0 - 1024
    assert close_to(shown(module, found), through_window(values, -1500, 900))


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_without_a_window_the_full_range_of_the_frame_counts(module, kind):
    stored = some(low=30, high=200)
    shades = (stored - 30.0) / (199 - 30)
    assert (stored.min(), stored.max()) == (30, 199)
    assert close_to(shown(module, dataset(stored, kind)), 1 - shades if kind == "MONOCHROME1" else shades)


def test_monochrome1_is_inverted_behind_its_window(module):
    stored = some()
    found = dataset(stored, "MONOCHROME1", WindowCenter="100", WindowWidth="80")
    assert close_to(shown(module, found), 1 - through_window(stored.astype(float), 100, 80))


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_does_not_count_for_the_range(module, kind):
    stored = some(SIZE, np.int16, 0, 1000)
    stored[:, :20] = -2000
    found = shown(module, dataset(stored, kind, PixelPaddingValue=-2000))
    assert not found[:, :20].any()
    shades = stored[:, 20:] / 999.0
    assert stored[:, 20:].max() == 999
    assert close_to(found[:, 20:], 1 - shades if kind == "MONOCHROME1" else shades)


def test_a_flat_frame_is_black(module):
    assert not shown(module, dataset(np.full(SIZE, 7, np.uint8))).any()


@pytest.mark.parametrize(("bits", "entries"), [(8, 1000), (12, 1000), (16, 200)])
def test_a_voi_table_comes_before_a_window(module, bits, entries):
    stored = some(SIZE, np.uint16, 0, 1500)
    table = Dataset()
    made = np.sort(some(entries, np.int64, 0, 2**bits, seed=2))
    table.LUTDescriptor, table.LUTData = [entries, 100, bits], made.tolist()
    found = dataset(stored, VOILUTSequence=[table], WindowCenter="10", WindowWidth="10")
    expected = made[np.clip(stored.astype(int) - 100, 0, entries - 1)] / (2**bits - 1)
    assert close_to(shown(module, found), expected)


def test_a_voi_table_is_read_from_a_file_and_behind_a_rescaling(module, folder):
    stored = some(SIZE, np.int16, -500, 500)
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [400, 0, 8], [entry * 255 // 399 for entry in range(400)]
    for name in ("LUTDescriptor", "LUTData"):
        table[name].VR = "US"
    save(folder / "a", dataset(stored, VOILUTSequence=[table], RescaleSlope="0.5", RescaleIntercept="100"))
    _, pngs = exported(module, folder)
    entries = np.clip(np.rint(stored * 0.5 + 100), 0, 399).astype(int)
    assert close_to(pngs["a"], (entries * 255 // 399) / 255)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_colours_become_grey_as_everywhere_else(module, dtype):
    brightest = np.iinfo(dtype).max
    stored = some((*SIZE, 3), dtype, 0, brightest + 1)
    shades = (stored / brightest) @ [0.299, 0.587, 0.114]
    assert close_to(shown(module, dataset(stored, "RGB", SecondaryCaptureImageStorage)), shades)


def test_luminance_is_the_grey_of_ybr(module):
    stored = np.full((*SIZE, 3), 128, np.uint8)
    stored[..., 0] = some()
    found = shown(module, dataset(stored, "YBR_FULL", SecondaryCaptureImageStorage))
    assert close_to(found, stored[..., 0] / 255)


def test_unused_bits_count_for_nothing(module):
    stored = some(SIZE, np.uint16, 0, 4096)
    found = dataset(stored | np.uint16(0xF000), BitsStored=12, HighBit=11)
    assert close_to(shown(module, found), (stored - stored.min()) / float(np.ptp(stored)))


@pytest.mark.parametrize(
    ("shape", "spacing", "inner"),
    [
        ((128, 128), {}, (64, 64)),
        ((100, 300), {}, (32, 96)),
        ((16, 20), {}, (64, 80)),  # made larger
        ((50, 50), {"PixelSpacing": ["1.5", "0.75"]}, (64, 32)),  # a pixel is twice as high as wide
        ((50, 50), {"PixelAspectRatio": ["1", "2"]}, (48, 96)),
        ((2, 600), {}, (1, 96)),
    ],
)
def test_a_frame_keeps_its_shape_and_black_fills_the_rest(module, shape, spacing, inner):
    stored = some(shape)
    stored[0, :2] = 0, 255
    found = shown(module, dataset(stored, **spacing))
    top, left = ((whole - part) // 2 for whole, part in zip(SIZE, inner, strict=True))
    middle = found[top : top + inner[0], left : left + inner[1]]
    assert close_to(middle, scaled_by_hand(stored / 255, inner))
    assert found.shape == SIZE
    assert found.sum(dtype=int) == middle.sum(dtype=int)


def test_run_length_encoding_is_decoded_without_plug_ins(module, folder):
    found = ct()
    found.compress(RLELossless, encoding_plugin="pydicom")
    save(folder / "a.dcm", found)
    _, pngs = exported(module, folder)
    assert (pngs["a.dcm"] == shown(module, ct())).all()


def compressed(found, syntax, frame=b"\xff\xd8 no such thing"):
    found.file_meta.TransferSyntaxUID = syntax
    found.PixelData = encapsulate([frame])
    found["PixelData"].is_undefined_length = True
    return found


def enhanced():
    return dataset(some(), sop_class=EnhancedCTImageStorage, SharedFunctionalGroupsSequence=[Dataset()])


def palette():
    return dataset(some(), "PALETTE COLOR")


def wrong(name, value):
    found = ct()
    setattr(found, name, value)
    return found


REFUSED = {
    "burned in": (lambda: ct(BurnedInAnnotation="YES"), "--allow-burned-in"),
    "several frames": (lambda: dataset(some((3, 32, 32)), NumberOfFrames=3), "has 3 frames"),
    "enhanced": (enhanced, "emf2sf"),
    "palette": (palette, "is PALETTE COLOR"),
    "too high": (lambda: wrong("Rows", 8193), "has 8193 x 96 pixels; at most 8192 x 8192"),
    "no pixels": (lambda: wrong("Rows", 0), "has 0 x 96 pixels"),
    "fewer pixels than said": (lambda: wrong("Rows", 65), "cannot be decoded (ValueError"),
    "colours that are one": (lambda: wrong("SamplesPerPixel", 3), "3 numbers for each pixel of MONOCHROME2"),
    "no window": (lambda: ct(WindowWidth="0"), "Window Width must be"),
    "JP2, whose box of no length is walked for ever": (
        lambda: compressed(ct(), JPEG2000, b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40)), "has the header of a JP2 file",
    ),
    "damaged RLE": (lambda: compressed(ct(), RLELossless), "cannot be decoded|pixels are damaged"),
    "pixels that are no numbers": (lambda: dataset(None, Rows=64, Columns=96), "has no pixels that are read"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_is_told_and_the_others_go_on(module, folder, what):
    make, reason = REFUSED[what]
    save(folder / "b" / "bad.dcm", make())
    for name in ("a.dcm", "c.dcm"):
        save(folder / name, ct())
    report, pngs = exported(module, folder)
    (said,) = report.refused
    assert said.startswith("b/bad.dcm: ")
    assert any(part in said for part in reason.split("|"))
    assert PATIENT not in said
    assert NAME not in said
    assert sorted(pngs) == ["a.dcm", "c.dcm"]
    assert len(list((folder.parent / "pictures").iterdir())) == 3


@pytest.mark.skipif(get_decoder(JPEGLosslessSV1).is_available, reason="a plug-in decodes it here")
def test_of_a_compression_without_a_plug_in_it_is_said_what_to_install(module, folder):
    save(folder / "a.dcm", compressed(ct(), JPEGLosslessSV1))
    report, pngs = exported(module, folder)
    assert pngs == {}
    (said,) = report.refused
    assert re.search(r"a\.dcm: is compressed as JPEG Lossless.*pip install.*python-gdcm.*pylibjpeg-libjpeg", said)


def test_burned_in_text_can_be_allowed_and_is_counted_where_nothing_is_said(module, folder):
    for said in ("YES", "NO", ""):
        save(folder / f"{said}.dcm", ct(BurnedInAnnotation=said))
    save(folder / "unsaid.dcm", ct())
    report, pngs = exported(module, folder, allow_burned_in=True)
    assert (len(pngs), report.burned_in_not_said, report.refused) == (4, 2, [])


@pytest.mark.parametrize("kept", [0.3, 0.9, 0.999])
def test_a_file_whose_pixels_are_cut_off_is_refused(module, folder, kept):
    save(folder / "a.dcm", ct())
    whole = (folder / "a.dcm").read_bytes()
    (folder / "a.dcm").write_bytes(whole[: int(kept * len(whole))])
    report, _ = exported(module, folder)
    (said,) = report.refused
    assert "bytes of pixel data is less than expected" in said


def test_wherever_a_file_is_cut_off_it_is_no_picture(module, folder):
    save(folder / "a.dcm", ct((8, 8)))
    whole = (folder / "a.dcm").read_bytes()
    for end in range(0, len(whole), 7):
        (folder / f"{end:04}.dcm").write_bytes(whole[:end])
    (folder / "a.dcm").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # pydicom's, of each; in a shell they are shown
        report, _ = exported(module, folder)
    assert (report.pictures, report.no_picture) == (0, 0)
    assert report.not_dicom == len(range(0, 132, 7))
    assert len(report.refused) == len(range(0, len(whole), 7)) - report.not_dicom


def test_deflated_files_and_large_ones_are_not_unpacked(module, folder, monkeypatch):
    found = ct()
    found.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    save(folder / "deflated.dcm", found)
    save(folder / "large.dcm", ct((256, 256)))
    monkeypatch.setattr(module, "MOST_BYTES", 2**16)
    report, _ = exported(module, folder)
    assert [said.split(",")[0] for said in report.refused] == [
        "deflated.dcm: is deflated as a whole", "large.dcm: is larger than 0 MiB",
    ]  # fmt: skip


def test_a_patient_id_of_no_kind_is_refused_without_it(module, folder):
    save(folder / "a.dcm", ct())
    whole = (folder / "a.dcm").read_bytes()
    (folder / "a.dcm").write_bytes(whole.replace(b"\x10\0\x20\0LO", b"\x10\0\x20\0LN"))
    report, _ = exported(module, folder)
    assert report.refused == ["a.dcm: has no PatientID that can be read (NotImplementedError)"]


def test_what_is_no_dicom_and_what_is_no_picture_is_counted(module, folder):
    (folder / "notes.txt").write_text("no picture")
    (folder / "empty").touch()
    Image.new("L", (4, 4)).save(folder / "picture.png")
    save(folder / "report.dcm", dataset(None, sop_class=BasicTextSRStorage))
    save(folder / "nobody.dcm", ct(PatientID=""))
    report, pngs = exported(module, folder)
    assert list(pngs) == ["nobody.dcm"]
    assert (report.not_dicom, report.no_picture, report.no_patient_id, report.refused) == (3, 1, 1, [])


def test_names_are_random_and_no_picture_tells_whose_it_is(module, folder):
    for number in range(3):
        save(folder / f"{NAME}-{number}.dcm", ct())
    exported(module, folder)
    out = folder.parent / "pictures"
    pngs = sorted(out.glob("*.png"))
    assert len({path.read_bytes() for path in pngs}) == 1
    assert len(pngs) == 3
    for path in pngs:
        assert re.fullmatch(r"[0-9]{39}\.png", path.name)
        with Image.open(path) as image:
            assert (image.size, image.mode, image.info) == ((96, 64), "L", {})
        assert re.findall(rb"[A-Z]{4}(?<=IHDR|IDAT|IEND|tEXt|iTXt|tIME)", path.read_bytes()) == [
            b"IHDR", b"IDAT", b"IEND",
        ]  # fmt: skip
    again = folder.parent / "again"
    module.export(folder, again, SIZE)
    assert not {path.name for path in again.glob("*.png")} & {path.name for path in pngs}


def test_names_csv_is_the_owner_s_alone_and_nothing_is_overwritten(module, folder):
    save(folder / "late" / "a.dcm", ct())
    exported(module, folder)
    out = folder.parent / "pictures"
    assert stat.S_IMODE((out / "names.csv").stat().st_mode) == 0o600
    ((row),) = rows(out / "names.csv")
    assert row == {"file": row["file"], "patient_id": PATIENT, "dicom": "late/a.dcm"}
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(FileExistsError):
        module.export(folder, out, SIZE)
    assert before == {path: path.read_bytes() for path in out.iterdir()}


@pytest.mark.parametrize("size", [(60, 96), (0, 32), (4096, 4096)])
def test_a_size_that_no_study_can_have_is_refused(module, folder, size):
    with pytest.raises(ValueError, match=r"multiples of 32|at most 4,194,304"):
        module.export(folder, folder.parent / "pictures", size)
    assert not (folder.parent / "pictures").exists()


def test_a_table_joined_by_names_is_read_for_a_study(module, folder, tmp_path):
    ids = [f"p{number}" for number in range(4)]
    for number, patient in enumerate(ids):
        save(folder / f"{number}.dcm", dataset(some(seed=number), PatientID=patient))
    _, pngs = exported(module, folder)
    draft = tmp_path / "study.toml"
    draft.write_text(
        DRAFT.replace("size = [32, 128]", f"size = {[*SIZE]}").replace("max_tokens = 40", "max_tokens = 48")
    )
    study = provisional(load_draft(draft), dim=1)
    files = {row["patient_id"]: row for row in rows(tmp_path / "pictures" / "names.csv")}
    columns = ("typed", "rule", "scan", "check", "answer")
    with (tmp_path / "table.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("patient_id", "form", *columns))
        table.writerows((patient, files[patient]["file"], *columns) for patient in reversed(ids))
    records = read(held_out_policy(tmp_path / "table.csv", study, "patient_id"), study, site="north")
    assert records.num_units == 4
    expected = [pngs[files[patient]["dicom"]] for patient in reversed(ids)]
    assert (decode(records.columns["form"].tolist(), SIZE) == np.stack(expected)).all()


def run(module, *words):
    return CliRunner().invoke(module.app, [*map(str, words)])


def test_the_command_says_what_it_did_and_exits_with_1_if_anything_is_refused(module, folder, tmp_path):
    save(folder / "a.dcm", ct())
    good = run(module, folder, tmp_path / "one", "--size", 64, 96)
    assert good.exit_code == 0
    assert json.loads(good.stdout) == {
        "pictures": 1, "refused": 0, "not_dicom": 0, "no_picture": 0, "burned_in_not_said": 1, "no_patient_id": 0,
    }  # fmt: skip
    save(folder / "b.dcm", ct(BurnedInAnnotation="YES"))
    some_refused = run(module, folder, tmp_path / "two", "--size", 64, 96)
    assert some_refused.exit_code == 1
    assert some_refused.stderr.startswith("b.dcm: says that text is burned into its pixels")
    assert json.loads(some_refused.stdout)["refused"] == 1
    assert run(module, folder, tmp_path / "three", "--size", 64, 96, "--allow-burned-in").exit_code == 0


def test_the_command_begins_nothing_where_it_could_overwrite_or_find_nothing(module, folder, tmp_path):
    assert run(module, folder, tmp_path / "none", "--size", 64, 96).exit_code == 1
    again = run(module, folder, tmp_path / "none", "--size", 64, 96)
    assert (again.exit_code, "names.csv is there already" in again.stderr) == (2, True)
    missing = run(module, tmp_path / "nowhere", tmp_path / "four", "--size", 64, 96)
    assert (missing.exit_code, "is no folder" in missing.stderr) == (2, True)
    assert run(module, folder, tmp_path / "four", "--size", 60, 96).exit_code == 2
    assert not (tmp_path / "four").exists()
