"""A whole federation of real processes that learns to work out doses, two rounds of few records."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from confide.models.backbones.loading import describe
from confide.privacy.report.verify import verify_file

pytestmark = pytest.mark.process

COORDINATOR = Path(sys.executable).parent / "coordinator"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("derivations")


@pytest.fixture(scope="module")
def outcome(folder: Path) -> dict[str, Any]:
    words = [str(COORDINATOR), "demo", "derivations", "--smoke", "--dir", str(folder), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_adapter_is_trained_on_a_backbone_with_structure(outcome):
    assert outcome["rounds"] == 2
    assert "structure" in describe(Path(outcome["backbone"])).targets
    assert outcome["perplexity_private"] != outcome["perplexity_before"]
    assert outcome["perplexity_nonprivate"] < outcome["perplexity_before"]
    assert 0 <= outcome["accuracy_private"] <= 1


def test_every_release_is_charged_and_the_report_verifies(outcome):
    assert verify_file(Path(outcome["report_json"])).ok
    report = json.loads(Path(outcome["report_json"]).read_text())
    assert {account["releases"] for site in report["sites"] for account in site["accounts"]} == {3}


def test_the_card_says_what_a_plain_load_misses(outcome):
    card = (Path(outcome["adapter"]) / "README.md").read_text()
    assert "structure tables" in card
    assert "load_text(Path(backbone_directory))" in card


def test_no_record_stands_in_a_log_or_at_the_coordinator(outcome, folder):
    federation = Path(outcome["report_json"]).parent
    tables = [table.read_text(encoding="utf-8").splitlines() for table in folder.glob("data/*/*.csv")]
    texts = {row["derivation"].encode() for table in tables for row in csv.DictReader(table)}
    assert len(texts) > 100
    written = [path for part in ("logs", "coordinator") for path in (federation / part).rglob("*") if path.is_file()]
    assert len(written) > 10
    assert [path for path in written if any(text in path.read_bytes() for text in texts)] == []
