"""Whole federations of real processes on backbones that public records taught: formulas, code, pictures, sounds."""

import csv
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from confide.models.backbones.loading import describe
from confide.privacy.report.verify import verify_file

from .triton import Triton

pytestmark = pytest.mark.process

COORDINATOR = Path(sys.executable).parent / "coordinator"
EXAMPLES = Path(__file__).parents[2] / "examples"


@dataclass(frozen=True)
class Smoke:
    """An example's smoke run that has ended."""

    example: str
    folder: Path
    outcome: dict[str, Any]
    right: str  # what is counted as right
    column: str  # what no log may show
    beside: str  # what lies beside the backbone's weights, and takes adapters
    learns: bool  # two rounds on a backbone of little lower its perplexity


@pytest.fixture(
    scope="module",
    params=[
        ("derivations", "accuracy", "derivation", "structure", True),
        ("code", "parses", "function", "structure", True),
        ("scans", "exact_match", "scan", "eye.to_words", True),
        ("voices", "exact_match", "call", "ear.to_words", False),
    ],
    ids=lambda one: one[0],
)
def smoke(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Smoke:
    example, *of_example = request.param
    folder = tmp_path_factory.mktemp(example)
    words = [str(COORDINATOR), "demo", example, "--smoke", "--dir", str(folder), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr
    return Smoke(example, folder, json.loads(done.stdout), *of_example)


def test_the_adapter_is_trained_on_a_backbone_with_more_than_weights(smoke):
    outcome = smoke.outcome
    assert outcome["rounds"] == 2
    assert smoke.beside in describe(Path(outcome["backbone"])).targets
    assert outcome["perplexity_private"] != outcome["perplexity_before"]
    assert (outcome["perplexity_nonprivate"] < outcome["perplexity_before"]) or not smoke.learns
    low, high = outcome[f"{smoke.right}_private_interval"]
    assert 0 <= low <= outcome[f"{smoke.right}_private"] <= high <= 1


def test_every_release_is_charged_and_the_report_verifies(smoke):
    report = Path(smoke.outcome["report_json"])
    assert verify_file(report).ok
    sites = json.loads(report.read_text())["sites"]
    assert {account["releases"] for site in sites for account in site["accounts"]} == {3}


def test_the_card_says_what_a_plain_load_misses(smoke):
    card = (Path(smoke.outcome["adapter"]) / "README.md").read_text()
    assert "structure tables" in card
    assert "or an ear" in card
    assert "load_text(Path(backbone_directory))" in card


def test_no_record_stands_in_a_log_or_at_the_coordinator(smoke):
    federation, texts = Path(smoke.outcome["report_json"]).parent, set()
    for table in smoke.folder.glob("data/*/*.csv"):
        with table.open(encoding="utf-8", newline="") as file:
            texts |= {row[smoke.column] for row in csv.DictReader(file)}
    assert len(texts) > 100
    shown = {form.encode() for text in texts for form in (text, json.dumps(text)[1:-1], repr(text)[1:-1])}
    written = [path for part in ("logs", "coordinator") for path in (federation / part).rglob("*") if path.is_file()]
    assert len(written) > 10
    assert [path for path in written if any(text in path.read_bytes() for text in shown)] == []


def test_the_run_answers_where_confide_is_not_installed(smoke, tmp_path, tmp_path_factory):
    """Code by ONNX Runtime, mathematics by PyTorch, pictures by a Triton server; sounds nowhere, and that is said."""
    target = {"derivations": "torch", "code": "onnx", "scans": "triton", "voices": "onnx"}[smoke.example]
    home, folder = Path(smoke.outcome["report_json"]).parent / "coordinator", tmp_path / "deployed"
    words = ["adapter", "deploy", smoke.outcome["run"], str(folder), "--target", target, "--home", str(home)]
    words += ["--override-audit", "a smoke run, which is not audited"]
    done = subprocess.run([str(COORDINATOR), *words], capture_output=True, text=True)
    if smoke.example == "voices":
        assert done.returncode != 0
        assert "sounds are read within confide alone" in done.stderr
        assert not folder.exists()
        return
    assert done.returncode == 0, done.stderr
    table = sorted(smoke.folder.glob("data/*/heldout.csv"))[0]
    if target == "triton":
        return as_within_confide(smoke, table, Triton.of(folder, tmp_path_factory))
    few = tmp_path / "few.csv"
    with table.open(newline="") as file, few.open("w", newline="") as out:
        csv.writer(out).writerows(list(csv.reader(file))[:4])
    asked = subprocess.run(
        [sys.executable, str(folder / "ask.py"), str(few), "--longest", "20"], capture_output=True, text=True
    )
    assert asked.returncode == 0, asked.stderr
    assert len([json.loads(line)["text"] for line in asked.stdout.splitlines()]) == 3


def as_within_confide(smoke: Smoke, table: Path, triton: Triton) -> None:
    """Looks that a server's answers about pictures are those of the adapter."""
    parts = [smoke.outcome["backbone"], smoke.outcome["adapter"], "--requests", str(table)]
    how = ["--study", str(EXAMPLES / smoke.example / "study.toml"), "--by", "fixed", "--longest", "20", "--json"]
    done = subprocess.run([str(COORDINATOR), "adapter", "ask", *parts, *how], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    want = [each["answer"].split() for each in json.loads(done.stdout)["answers"]]
    with triton.served():
        answers = triton.asked(str(table))
        assert [answer["text"].split()[:20] for answer in answers] == want
        assert triton.asked(str(table), "--grpc") == answers
        assert "error" in triton.over_http({"typed": "0:1", "rule": "less [0]", "form": "/etc/hostname"})
