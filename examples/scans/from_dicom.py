"""Exports a hospital's DICOM pictures as PNG files of one size, 8 bits grey, as a study of pictures reads them.

    python examples/scans/from_dicom.py DICOMS PICTURES --size HEIGHT WIDTH

Writes PICTURES/<random number>.png for each picture below DICOMS, and PICTURES/names.csv with the PatientID and the
DICOM file of each, by which the site joins the pictures to its table. **names.csv stays at the site, as the pictures
do**: its owner alone can read it, and no other file says whose a picture is. Names are drawn from the operating system
and follow from nothing; a PNG holds pixels and no text. Nothing is overwritten.

A picture is shown as a reader sees it: rescaled to the modality's units, through the file's first VOI table or window
(without one, over the full range of the frame), MONOCHROME1 inverted, padding black. Colours become grey as in ITU-R
BT.601. Then it is scaled to fit the size in the shape that its pixels have on the patient, and black fills the rest.

Refused, each with the reason, while the others go on: what says that text is burned into its pixels, several frames
(the first slice of a volume seldom shows what the record is about), palettes, larger files and frames, and what cannot
be decoded. A file that does not say whether text is burned in is exported and counted: **look at those pictures**, and
at all of ultrasound and of secondary captures, since what a header says finds no name in pixels. Overlays are not
drawn. What does not begin as a DICOM file does, with a preamble, is counted and skipped.

Exit codes: 0, all pictures were exported; 1, some were refused, or there are none; 2, nothing was begun.
"""

import csv
import io
import json
import math
import os
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import pydicom
import typer
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.filereader import read_file_meta_info
from pydicom.misc import is_dicom
from pydicom.pixels import apply_modality_lut, apply_voi_lut, get_decoder, pixel_array
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, JPEG2000TransferSyntaxes

from confide.models.structure.pictures import PictureLayout

MOST_BYTES = 2**28  # of a DICOM file
MOST_SIDE = 8192  # pixels, of a frame
NAMES = "names.csv"
COLUMNS = ("file", "patient_id", "dicom")
_MONOCHROME, _COLOUR = ("MONOCHROME1", "MONOCHROME2"), ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_JP2 = b"\0\0\0\x0cjP  "  # the first bytes of such a file
_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green and blue, as in ITU-R BT.601
_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio")  # each: down, across
# Without typer's own tracebacks, which show variables: a dataset would stand in them.
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Shades = npt.NDArray[np.float32]  # [rows, columns] of a frame, from 0 (black) to 1 (white)


class Refused(Exception):
    """A file is not exported; the message says why, and nothing of whom it is about."""


@dataclass(kw_only=True, slots=True)
class Report:
    """Counts what became of the files of a folder. Their names may tell of patients, so it is for the site alone."""

    pictures: int = 0  # exported
    refused: list[str] = field(default_factory=list)  # "file: reason"
    not_dicom: int = 0  # files
    no_picture: int = 0  # DICOM files about something else, such as reports and DICOMDIR
    burned_in_not_said: int = 0  # pictures whose file does not say whether text is burned in
    no_patient_id: int = 0  # pictures that names.csv joins to nobody


def export(dicoms: Path, pictures: Path, size: tuple[int, int], *, allow_burned_in: bool = False) -> Report:
    """Exports all pictures below the folder `dicoms` to the folder `pictures`, and says what became of the files.

    Args:
        size: height and width of every PNG, in pixels.
        allow_burned_in: True to export what says that text is burned into its pixels.

    Raises:
        ValueError: no study of pictures can have this size.
        NotADirectoryError: `dicoms` is no folder.
        FileExistsError: `pictures` has a names.csv already.
    """
    if problems := PictureLayout(size, size).problems():
        raise ValueError(problems[0])
    if not dicoms.is_dir():
        raise NotADirectoryError(f"{dicoms} is no folder")
    files, report = list(_files(dicoms)), Report()
    pictures.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(pictures / NAMES, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    # Line by line, so that pictures have their rows even if the run is broken off; names of files may be any bytes.
    with os.fdopen(descriptor, "w", 1, encoding="utf-8", errors="surrogateescape", newline="") as names:
        table = csv.writer(names, lineterminator="\n")
        table.writerow(COLUMNS)
        for path in files:
            own = path.relative_to(dicoms).as_posix()
            try:
                dataset = _read(path, report)
                if dataset is None:
                    continue
                patient = _patient(dataset)
                png = _png(picture(dataset, size, allow_burned_in=allow_burned_in))
            except Refused as err:
                report.refused.append(f"{own}: {err}")
                continue
            name = f"{secrets.randbits(128):039}.png"
            with (pictures / name).open("xb") as out:
                out.write(png)
            table.writerow((name, patient, own))
            report.pictures += 1
            report.burned_in_not_said += _burned_in(dataset) not in ("YES", "NO")
            report.no_patient_id += not patient
    return report


def picture(dataset: Dataset, size: tuple[int, int], *, allow_burned_in: bool = False) -> npt.NDArray[np.uint8]:
    """Returns the one frame of a dataset as a picture [height, width] in grey, as a reader would see it.

    Raises:
        Refused: it has not one frame that is read, or it cannot be decoded.
    """
    try:
        if not allow_burned_in and _burned_in(dataset) == "YES":
            raise Refused("says that text is burned into its pixels: clean it, or allow it with --allow-burned-in")
        _check(dataset)
        return fitted(shades(dataset), _spacing(dataset), size)
    except Refused:
        raise
    except Exception as err:  # of a decoder of any bytes; what it says is about pixels alone
        said = (str(err).splitlines() or [""])[0]
        raise Refused(f"cannot be decoded ({type(err).__name__}: {said})") from err


def shades(dataset: Dataset) -> Shades:
    """Decodes the frame of a dataset to shades of grey: rescaled, windowed, inverted where white is stored as 0."""
    stored = _stored(dataset)
    if dataset.PhotometricInterpretation in _COLOUR:
        return (stored @ _GREY / (2**dataset.BitsStored - 1)).astype(np.float32)
    is_padding = _padding(stored, dataset)
    # Wider than stored: a table's first entry is subtracted from the values.
    values = apply_modality_lut(stored.astype(np.result_type(stored, np.int32)), dataset)
    shown, low, high = _windowed(values, dataset, values[~is_padding])
    found = np.clip((shown - low) / (high - low), 0, 1) if high != low else np.zeros(shown.shape)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        found = 1 - found
    found[is_padding] = 0
    if not np.isfinite(found).all():
        raise Refused("has a rescaling or a window that makes no finite numbers")
    return found.astype(np.float32)


def fitted(frame: Shades, spacing: tuple[float, float], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Scales a frame to fit into `size`, its shape kept, in the middle of a black picture.

    Scales bilinearly, over all pixels that a smaller one covers (Pillow's filter).

    Args:
        spacing: of the frame's pixels, down and across; only their ratio counts.
        size: height and width, in pixels.
    """
    sides = [pixels * apart for pixels, apart in zip(frame.shape, spacing, strict=True)]
    scale = min(most / side for most, side in zip(size, sides, strict=True))
    height, width = (min(most, max(1, round(side * scale))) for most, side in zip(size, sides, strict=True))
    scaled = np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR))
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    whole = np.zeros(size, np.uint8)
    whole[top : top + height, left : left + width] = np.rint(scaled * 255)
    return whole


def _files(folder: Path) -> Iterator[Path]:
    """Yields the files below a folder in order; links to folders are not followed."""
    for place, folders, names in os.walk(folder):
        folders.sort()
        yield from (path for name in sorted(names) if (path := Path(place) / name).is_file())


def _read(path: Path, report: Report) -> Dataset | None:
    """Reads a file; what is no DICOM, or is about no picture, is counted and None.

    Raises:
        Refused: it is too large, cut off or damaged.
    """
    try:
        if not is_dicom(path):
            report.not_dicom += 1
            return None
        if path.stat().st_size > MOST_BYTES:
            raise Refused(f"is larger than {MOST_BYTES >> 20} MiB")
        if read_file_meta_info(path).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            raise Refused("is deflated as a whole, which unpacks without a limit: write it in another transfer syntax")
        dataset = pydicom.dcmread(path)
        kind = UID(dataset.file_meta.get("MediaStorageSOPClassUID", ""))
    except Refused:
        raise
    except Exception as err:  # of a parser of any bytes; what it says may be about a patient
        raise Refused(f"cannot be read: it is cut off or damaged ({type(err).__name__})") from err
    if "PixelData" in dataset:
        return dataset
    # pydicom returns what stands before the cut; a kind that has no name may be cut off itself.
    if "Rows" in dataset or "Image Storage" in kind.name or kind.name == kind:
        raise Refused("has no pixels that are read: it is cut off, or of a kind without whole numbers for pixels")
    report.no_picture += 1
    return None


def _patient(dataset: Dataset) -> str:
    try:
        return str(dataset.get("PatientID") or "").strip()
    except Exception as err:  # of a parser of any bytes; what it says may be about a patient
        raise Refused(f"has no PatientID that can be read ({type(err).__name__})") from err


def _burned_in(dataset: Dataset) -> str:
    return str(dataset.get("BurnedInAnnotation") or "").strip().upper()


def _check(dataset: Dataset) -> None:
    """Raises `Refused` unless a dataset states one frame of a kind and size that is read; decodes nothing."""
    if (frames := int(dataset.get("NumberOfFrames") or 1)) != 1:
        raise Refused(f"has {frames} frames: export the one that the record is about as a file of its own")
    if "SharedFunctionalGroupsSequence" in dataset or "PerFrameFunctionalGroupsSequence" in dataset:
        raise Refused("states its window by frame (an enhanced picture): convert it, such as with dcm4che's emf2sf")
    if not (0 < dataset.Rows <= MOST_SIDE and 0 < dataset.Columns <= MOST_SIDE):
        raise Refused(f"has {dataset.Rows} x {dataset.Columns} pixels; at most {MOST_SIDE} x {MOST_SIDE} are read")
    if (kind := dataset.PhotometricInterpretation) not in (*_MONOCHROME, *_COLOUR):
        raise Refused(f"is {kind}; read are {', '.join((*_MONOCHROME, *_COLOUR))}")
    if dataset.SamplesPerPixel != (3 if kind in _COLOUR else 1):
        raise Refused(f"has {dataset.SamplesPerPixel} numbers for each pixel of {kind}")


def _stored(dataset: Dataset) -> npt.NDArray[np.integer]:
    """Decodes the numbers that stand in a dataset, [rows, columns] or [rows, columns, 3].

    Raises:
        Refused: no plug-in that is installed decodes it, with what to install.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    decoder = get_decoder(syntax)
    plugins = "; ".join(decoder.missing_dependencies).replace("requires gdcm", "requires python-gdcm")
    if not decoder.is_available:
        raise Refused(f"is compressed as {syntax.name}: pip install what one of these requires: {plugins}")
    if syntax in JPEG2000TransferSyntaxes and _JP2 in dataset.PixelData:
        # Not allowed (PS3.5 A.4.4), and pydicom 3.0.2 walks its boxes for ever if one is damaged.
        raise Refused("has the header of a JP2 file before its pixels: write it in another transfer syntax")
    try:
        return pixel_array(dataset)
    except RuntimeError as err:  # all plug-ins failed
        hint = f", or need a plug-in that is not installed: {plugins}" if plugins else ""
        raise Refused(f"is compressed as {syntax.name}: its pixels are damaged{hint}") from err


def _padding(stored: npt.NDArray[np.integer], dataset: Dataset) -> npt.NDArray[np.bool_]:
    """True where there is no picture, which only fills the frame."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, np.bool_)
    limit = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((value, value if limit is None else limit))
    return (stored >= low) & (stored <= high)


def _windowed(
    values: npt.NDArray[np.number], dataset: Dataset, counted: npt.NDArray[np.number]
) -> tuple[npt.NDArray[np.number], float, float]:
    """Applies the VOI table, else the window; returns what is then black and white too, by `counted` without both."""
    if dataset.get("VOILUTSequence"):
        table = dataset.VOILUTSequence[0]
        entries, first, bits = table.LUTDescriptor
        # pydicom 3.0.2 counts entries with as many bits as they have: 300 entries of 8 bits would wrap.
        table.LUTDescriptor = [entries, first, 16]
        inside = np.clip(np.rint(values), first, first + (entries or 2**16) - 1).astype(np.int64)
        return apply_voi_lut(inside, dataset), 0, 2**bits - 1
    if dataset.get("WindowCenter") is None or dataset.get("WindowWidth") is None:
        return values, *((float(counted.min()), float(counted.max())) if counted.size else (0.0, 0.0))
    with np.errstate(over="ignore"):  # of a sigmoid's far end
        low, high = apply_voi_lut(np.array([-np.inf, np.inf]), dataset)
        return apply_voi_lut(values, dataset), float(low), float(high)


def _spacing(dataset: Dataset) -> tuple[float, float]:
    for name in _SPACINGS:
        if name in dataset and dataset[name].VM == 2:
            down, across = (float(part) for part in dataset[name].value)
            if math.isfinite(down) and math.isfinite(across) and min(down, across) > 0:
                return down, across
    return 1.0, 1.0  # square


def _png(found: npt.NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(found).save(out, "PNG")
    return out.getvalue()


@app.command()
def main(
    dicoms: Annotated[Path, typer.Argument(help="Folder of DICOM files, with the folders below it.")],
    pictures: Annotated[Path, typer.Argument(help="Folder for the pictures and names.csv: data.files of site.toml.")],
    size: Annotated[tuple[int, int], typer.Option(help="Height and width of data.picture of the study, pixels.")],
    allow_burned_in: Annotated[
        bool, typer.Option("--allow-burned-in", help="Export pictures that say that text is burned in.")
    ] = False,
) -> None:
    """Exports DICOM pictures as PNG files of one size; see the top of this file."""
    try:
        report = export(dicoms, pictures, size, allow_burned_in=allow_burned_in)
    except FileExistsError as err:
        typer.echo(f"{err.filename} is there already: name a new folder, which may lie below the old one", err=True)
        raise typer.Exit(2) from None
    except (NotADirectoryError, ValueError) as err:
        typer.echo(str(err), err=True)
        raise typer.Exit(2) from None
    for line in report.refused:
        typer.echo(line, err=True)
    typer.echo(json.dumps({**asdict(report), "refused": len(report.refused)}, indent=2))
    if report.refused or not report.pictures:
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
