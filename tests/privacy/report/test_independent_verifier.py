"""A second program, written from the format documents alone, comes to the same conclusions."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest

from confide.privacy.ledger import canonical
from confide.privacy.ledger.chain import Head, extend
from confide.privacy.ledger.ledger import Ledger
from confide.privacy.ledger.succession import Succession
from confide.privacy.report.build import SiteLedger, build_report
from confide.privacy.report.schema import SIGNATURE_DOMAIN
from confide.privacy.report.verify import verify

from ..ledgers import THYROID, budget, charge, eventful_report, hash_of, ledger_with, signer, study_text
from .independent_verifier import Rejected
from .independent_verifier import verify as verify_independently


@pytest.fixture(scope="module")
def sound():
    return eventful_report()


@pytest.fixture
def report(sound):
    return copy.deepcopy(sound)


def signed(report):
    contents = {name: value for name, value in report.items() if name != "signature"}
    return contents | {"signature": canonical.sign(signer(99), SIGNATURE_DOMAIN, canonical.encode(contents))}


@pytest.mark.slow
def test_both_programs_accept_a_report_with_top_up_evaluation_and_local_steps(sound):
    verify_independently(sound)
    found = verify(sound)
    assert found.failures == []
    assert len(found.opinions) == 20  # four sites; two observers for one data set, three for the other
    assert all(witnessed.opinion.bracket for witnessed in found.opinions)


@pytest.mark.parametrize("number", [4, 5])
def test_both_programs_hold_charges_against_texts_of_every_format_that_is_read(tmp_path, number):
    text = json.dumps(json.loads(study_text()) | {"format": number, "start": "ab" * 32})
    with ledger_with(tmp_path / "ledger.db", rounds=0) as ledger:
        ledger.reserve(charge(1, study=hash_of(text)))
        honest = ledger.entries()
        ledger.reserve(charge(2, study=hash_of(text), multiplier=1.3))
        entries = {"honest": honest, "lying": ledger.entries()}
        reports = {
            name: build_report("F", {"east": SiteLedger(ledger.public_key, found)}, [text], signer(99))
            for name, found in entries.items()
        }
    verify_independently(reports["honest"])
    assert verify(reports["honest"]).ok
    assert not verify(reports["lying"]).ok
    with pytest.raises(Rejected, match="site_noise_int"):
        verify_independently(reports["lying"])


def test_neither_program_reads_a_text_that_says_a_thing_twice(tmp_path):
    text = study_text().replace('"format":4', '"format":4,"format":4')
    with ledger_with(tmp_path / "ledger.db", rounds=0) as ledger:
        ledger.reserve(charge(1, study=hash_of(text)))
        report = build_report("F", {"east": SiteLedger(ledger.public_key, ledger.entries())}, [text], signer(99))
    assert "a name occurs twice" in "".join(verify(report).failures)
    with pytest.raises(Rejected, match="occurs twice"):
        verify_independently(report)


@pytest.mark.process
def test_the_second_program_needs_nothing_of_ours(sound, tmp_path):
    (tmp_path / "report.json").write_text(json.dumps(sound))
    program = Path(__file__).with_name("independent_verifier.py")
    done = subprocess.run(
        [sys.executable, "-I", program, tmp_path / "report.json"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "holds\n")
    assert "confide." not in program.read_text()


def at(report, *way):
    for name in way[:-1]:
        report = report[name]
    return report, way[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "value"),
    [
        (("sites", 0, "accounts", 1, "spent", 1, "rdp"), "1.5"),
        (("sites", 0, "accounts", 1, "course", 3, "rdp"), "0.5"),
        (("sites", 1, "accounts", 0, "budget", "epsilon"), "9.0"),
        (("sites", 2, "accounts", 0, "releases"), 3),
        (("sites", 3, "name"), "elsewhere"),
        (("sites", 0, "public_key"), "ab" * 32),
        (("sites", 0, "entries", 5, "body", "round"), 77),
        (("sites", 0, "entries", 5, "time"), "2026-01-01T00:00:00Z"),
        (("sites", 0, "entries", 5, "signature"), "00" * 64),
        (("sites", 0, "entries", 5, "previous"), "00" * 32),
        (("format",), "confide-budget-report-1"),
    ],
)
def test_both_programs_reject_what_was_tampered_with(report, way, value):
    holder, name = at(report, *way)
    holder[name] = value
    with pytest.raises(Rejected):
        verify_independently(signed(report))
    assert not verify(signed(report)).ok


@pytest.mark.parametrize(
    "changes",
    [
        {"noise_multiplier": 99.0}, {"clip_norm": 0.001}, {"rounds": 1}, {"delta": 1e-12}, {"collusion": 9},
        {"max_dropouts": 2}, {"sample_rate": 0.1}, {"min_sites": 2}, {"evaluation": None},
    ],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_both_programs_reject_a_text_with_one_term_changed(report, changes):
    study = next(study for study in report["studies"] if study["hash"] == THYROID)
    draft = json.loads(study["text"])
    for name, value in changes.items():
        part = next(
            part for part in (draft["draft"]["privacy"], draft["draft"]["rounds"], draft["draft"]) if name in part
        )
        part[name] = value
    study["text"] = json.dumps(draft, sort_keys=True, separators=(",", ":"))
    with pytest.raises(Rejected, match="study: hash of the text"):
        verify_independently(signed(report))
    assert not verify(signed(report)).ok


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"noise_multiplier": 99.0}, "site_noise_int"), ({"rounds": 1}, "purpose"), ({"sample_rate": 0.1}, "sample_rate")],
)
def test_both_programs_reject_charges_that_their_study_s_text_does_not_give(tmp_path, changes, words):
    text = study_text(**changes)
    with ledger_with(tmp_path / "ledger.db", rounds=0) as ledger:
        for number in (1, 2):
            ledger.reserve(charge(number, study=hash_of(text)))
        sites = {"east": SiteLedger(ledger.public_key, ledger.entries())}
    report = build_report("F", sites, [text], signer(99))
    with pytest.raises(Rejected, match=f"study: {words}"):
        verify_independently(report)
    assert not verify(report).ok


def test_both_programs_reject_a_ledger_with_an_entry_left_out(report):
    del report["sites"][0]["entries"][7]
    with pytest.raises(Rejected, match="entry 7: out of order"):
        verify_independently(signed(report))
    assert not verify(signed(report)).ok


def test_both_programs_reject_a_report_that_somebody_else_changed(report):
    report["federation"] = "Another"
    with pytest.raises(Rejected, match="report: signature"):
        verify_independently(report)
    assert not verify(report).ok


def rotated(path, *, studies=(1, 12)):
    """A report on the site east, whose key was followed by a second and a third one; a study names a first key each."""
    keys = [signer(seed) for seed in (1, 12, 13)]
    by_name = {canonical.public_hex(key): key for key in keys}
    texts = [with_key_of_east(signer(seed), f"study {seed}") for seed in studies]
    with Ledger.open(path, keys[0], "east", keyring=by_name.get) as ledger:
        ledger.set_budget(budget())
        for old, new, text in zip(keys, keys[1:], texts, strict=False):
            ledger.reserve(charge(1, study=hash_of(text), run=f"run of {hash_of(text)[:4]}"))
            made = Succession.make("east", "c0" * 32, old, new, "2026-03-01T09:00:00Z")
            ledger.succeed(made, new)
        site = SiteLedger(ledger.public_key, ledger.entries())
    return build_report("F", {"east": site}, texts, signer(99)), list(by_name)


def with_key_of_east(key, name):
    text = json.loads(study_text(name))
    text["sites"][0]["identity"] = canonical.public_hex(key)
    return json.dumps(text, sort_keys=True, separators=(",", ":"))


def test_both_programs_accept_a_ledger_over_two_successions_and_studies_that_name_any_of_its_keys(tmp_path):
    report, names = rotated(tmp_path / "east.db")
    verify_independently(report)
    for known in names:
        assert verify(report, site_keys={"east": known}).ok
    found = verify(report, site_keys={"east": "ab" * 32})
    assert found.failures == [f"site east: public key is {' and then '.join(names)}, not {'ab' * 32}"]


def test_the_command_verifies_it_for_an_outsider_who_knows_any_of_the_keys(tmp_path):
    from typer.testing import CliRunner

    from confide.client_node.cli.main import app

    report, names = rotated(tmp_path / "east.db")
    file = tmp_path / "report.json"
    file.write_text(json.dumps(report))
    for known in names:
        found = CliRunner().invoke(app, ["budget", "verify", str(file), "--site", f"east={known}"])
        assert found.exit_code == 0, found.output
    assert "its keys follow one another" in found.output
    assert CliRunner().invoke(app, ["budget", "verify", str(file), "--site", f"east={'ab' * 32}"]).exit_code == 3


def test_both_programs_refuse_a_study_that_names_a_key_of_nobody(tmp_path):
    report, _ = rotated(tmp_path / "east.db", studies=(66,))
    with pytest.raises(Rejected, match="another site or key"):
        verify_independently(report)
    assert any("key that its text does not name" in failure for failure in verify(report).failures)


@pytest.mark.parametrize("part", ["old_signature", "new_signature", "accepted"])
def test_both_programs_refuse_a_succession_of_which_a_signature_is_another_s(tmp_path, part):
    report, _ = rotated(tmp_path / "east.db")
    entries = report["sites"][0]["entries"]
    place = next(seq for seq, entry in enumerate(entries) if entry["kind"] == "succeed")
    body = copy.deepcopy(entries[place]["body"])
    (body if part == "accepted" else body["succession"])[part] = "00" * 64
    head = Head(place - 1, entries[place]["previous"])
    entries[place:] = [extend(head, signer(1), entries[place]["time"], "succeed", body).model_dump()]
    with pytest.raises(Rejected, match=f"entry {place}: signature"):
        verify_independently(signed(report))
    assert any(f"entry {place}" in failure for failure in verify(signed(report)).failures)
