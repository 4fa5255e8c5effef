import tomllib

import numpy as np
import pytest

from confide.client_node.data import records as records_module
from confide.client_node.data.records import check, read
from confide.client_node.data.site_draft import PolicyWishes, site_toml, sketch
from confide.client_node.errors import DataInvalid
from confide.client_node.policy.site_policy import load_policy
from confide.client_node.training.record_arrays import from_arrays, to_arrays
from confide.models.structure.sounds import written

from ..conftest import TEXT
from .test_pictures_in_tables import NOT_SO, png

SECRET = "zq7secretzq7"  # stands in every cell that must not be told
SOUND = (
    *TEXT[:3],
    (
        '[data.categorical]\nsex = ["F", "M"]',
        '[data.sound]\nfile = "call"\nrate = 8000\nseconds = 1\nprompt = "desk {desk} :"\n'
        'completion = " {language} <eos>"\nshows = "spoken"',
    ),
    *TEXT[4:],
)
FILES = ('unit_column = "patient_id"', 'unit_column = "patient_id"\nfiles = "calls"')
HEADER = "patient_id,call,desk,language\n"
EXPECTED = "expected the name of a WAV file below data.files, PCM of 16 bits, one channel, 8000 Hz, at most 1 s"


def wav(seed, samples=500, rate=8000):
    return written(np.random.default_rng(seed).integers(-99, 99, samples).astype("<i2").tobytes(), rate)


@pytest.fixture
def calls(site):
    """A folder of sounds, and a table and a policy that name it."""
    folder = site.home / "calls"
    (folder / "late").mkdir(parents=True)
    for seed, name in enumerate(("a.wav", "b.wav", "late/c.wav")):
        (folder / name).write_bytes(wav(seed))
    (site.home / "patients.csv").write_text(f"{HEADER}p1,a.wav,1,x\np2,late/c.wav,,y\np1,b.wav,4,x\np3,a.wav,6,y\n")
    site.write(*NOT_SO, FILES)
    return folder


def checked(site, *, named=None):
    policy = load_policy(site.home)
    return check(policy.data.path, policy, site.study(*SOUND), site=named)


def refused(site):
    """What is said of a table that cannot be used, by `check` and by `read` alike, without a cell of it."""
    report = checked(site)
    assert not report.is_fit
    with pytest.raises(DataInvalid) as caught:
        read(load_policy(site.home), site.study(*SOUND), site="svi")
    said = [str(problem) for problem in report.problems]
    assert SECRET not in "".join((*said, str(caught.value), repr(report)))
    return said


def test_files_come_back_as_bytes_in_the_order_of_rows_and_travel_to_workers(site, calls):
    records = read(load_policy(site.home), site.study(*SOUND), site="svi")
    assert records.columns["call"].tolist() == [wav(0), wav(2), wav(1), wav(0)]
    assert records.units.tolist() == [0, 1, 0, 2]
    assert records.columns["spoken"].tolist() == [""] * 4
    found = from_arrays(to_arrays(records))
    assert found.columns["call"].tolist() == records.columns["call"].tolist()


def test_a_good_table_is_fit_and_its_columns_are_counted(site, calls):
    report = checked(site, named="svi")
    assert report.is_fit
    assert [(column.name, column.kind) for column in report.columns] == [
        ("unit", "unit id"), ("call", "sound"), ("desk", "text"), ("language", "text to learn"),
    ]  # fmt: skip


def test_nothing_is_kept_of_a_file_but_its_samples(site, calls):
    body = wav(0)[12:] + b"LIST" + len(SECRET).to_bytes(4, "little") + SECRET.encode()
    (calls / "a.wav").write_bytes(b"RIFF" + (4 + len(body)).to_bytes(4, "little") + b"WAVE" + body)
    files = read(load_policy(site.home), site.study(*SOUND), site="svi").columns["call"]
    assert files[0] == wav(0)
    assert files[0] is files[3]


BAD_FILES = {
    "empty": (b"", "is no WAV file"),
    "text": (SECRET.encode() * 10, "is no WAV file"),
    "picture": (png(0), "is no WAV file"),
    "another rate": (wav(0, rate=16_000), "has not 8000 samples a second"),
    "too long": (wav(0, samples=8001), "is not 1 sample to 1 seconds long"),
    "cut": (wav(0)[:-2], "is cut off"),
    "more behind": (wav(0) + SECRET.encode(), "goes on behind its end"),
}


@pytest.mark.parametrize("what", BAD_FILES)
def test_a_file_of_another_kind_rate_or_length_is_a_problem(site, calls, what):
    file, broken = BAD_FILES[what]
    (calls / "b.wav").write_bytes(file)
    assert refused(site) == [f"line 4, column call: {EXPECTED}, found a file that {broken}"]


def test_a_name_of_no_file_is_a_problem_of_its_line(site, calls):
    table = site.home / "patients.csv"
    table.write_text(f"{HEADER}p1,a.wav,1,x\np2,{SECRET}.wav,1,x\np3,../calls/a.wav,1,x\n")
    assert refused(site) == [
        f"line 3, column call: {EXPECTED}, found no file that may be read",
        f"line 4, column call: {EXPECTED}, found no name of a file",
    ]


def test_what_records_take_in_memory_counts_and_not_how_short_their_files_are(site, calls, monkeypatch):
    taken = 16 * (1 + 128) * 8  # tokens, a word and what it carries in numbers, bytes of a number
    monkeypatch.setattr(records_module, "_MOST_FILE_BYTES", 4 * taken)
    assert checked(site).is_fit
    monkeypatch.setattr(records_module, "_MOST_FILE_BYTES", 4 * taken - 1)
    (said,) = refused(site)
    assert "as records take them in memory" in said


def test_without_a_folder_nothing_is_opened_and_it_is_said_how_to_name_one(site, calls):
    site.write(*NOT_SO)
    (said,) = refused(site)
    assert said == "column call: expected a folder of the files that it names: data.files in site.toml, found none"


def test_a_draft_of_site_toml_has_the_folder_and_no_column_of_the_public_table(site, calls):
    found, terms = sketch(site.home / "patients.csv"), site.study(*SOUND).draft.data
    text = site_toml(found, PolicyWishes(name="calls", unit="patient", unit_column="patient_id"), terms)
    assert tomllib.loads(text)["data"]["files"] == "sounds"
    assert "spoken" not in text
