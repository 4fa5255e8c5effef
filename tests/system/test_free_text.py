"""A whole federation of real processes that fine-tunes the imported SmolLM2 on free text, two rounds of few records."""

import csv
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from confide.privacy.report.verify import verify_file

pytestmark = pytest.mark.process

COORDINATOR = Path(sys.executable).parent / "coordinator"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("free-text")


@pytest.fixture(scope="module")
def outcome(folder: Path) -> dict[str, Any]:
    words = [str(COORDINATOR), "demo", "diagnoses", "--smoke", "--dir", str(folder), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_adapter_moves_what_the_model_writes(outcome):
    assert outcome["rounds"] == 2
    assert 0 <= outcome["exact_match_private"] <= 1
    assert math.isfinite(outcome["perplexity_private"])
    assert outcome["perplexity_private"] != outcome["perplexity_before"]


def test_the_study_without_noise_is_trained_too_and_both_adapters_are_attacked(outcome):
    assert outcome["perplexity_nonprivate"] not in (outcome["perplexity_before"], outcome["perplexity_private"])
    assert 0 <= outcome["exact_match_nonprivate"] <= 1
    report = json.loads(Path(outcome["report_json"]).read_text())
    assert report["membership"] == outcome["membership"]
    assert [
        (each["is_private"], each["members"], each["nonmembers"], each["shadows"]) for each in report["membership"]
    ] == [
        (True, 120, 30, 0),
        (False, 120, 30, 0),
    ]


def test_every_release_is_charged_and_the_report_verifies(outcome):
    assert verify_file(Path(outcome["report_json"])).ok
    report = json.loads(Path(outcome["report_json"]).read_text())
    assert {account["releases"] for site in report["sites"] for account in site["accounts"]} == {3}


def test_the_card_says_that_nobody_audited_it_and_the_adapter_is_in_the_last_layers(outcome):
    adapter = Path(outcome["adapter"])
    assert "smoke run" in (adapter / "README.md").read_text()
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert {name.split(".")[2] for name in config["target_modules"]} == {"28", "29"}
    assert {name.rpartition(".")[2] for name in config["target_modules"]} == {"o_proj", "down_proj"}
    assert not config.get("target_parameters")


def test_no_text_of_a_record_stands_in_a_log_or_at_the_coordinator(outcome, folder):
    federation = Path(outcome["report_json"]).parent
    tables = [table.read_text(encoding="utf-8").splitlines() for table in folder.glob("data/*/*.csv")]
    texts = {row["text"].encode() for table in tables for row in csv.DictReader(table) if len(row["text"]) > 20}
    assert len(texts) > 100
    written = [path for part in ("logs", "coordinator") for path in (federation / part).rglob("*") if path.is_file()]
    assert len(written) > 10
    assert [path for path in written if any(text in path.read_bytes() for text in texts)] == []


SUITE = {
    "topics.yaml": """task: topics
dataset_path: json
dataset_kwargs: {data_files: {test: topics.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "Topic of: {{text}}\\nIt is the"
doc_to_choice: ["heart", "lung"]
doc_to_target: "{{label}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "sums.yaml": """task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: sums.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "1, 2, 3, 4, 5, 6, 7, "
doc_to_target: "{{answer}}"
generation_kwargs: {until: [","], max_gen_toks: 4, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "topics.jsonl": '{"text": "cough", "label": 1}\n{"text": "chest pain", "label": 0}\n',
    "sums.jsonl": '{"answer": "8"}\n{"answer": "16/2"}\n',
}


def test_a_suite_of_the_harness_measures_the_adapter_over_the_api_without_a_network(outcome, tmp_path):
    for name, text in SUITE.items():
        (tmp_path / name).write_text(text)
    home = Path(outcome["report_json"]).parent / "coordinator"
    words = ["adapter", "evaluate", outcome["run"], "--suite", str(tmp_path), "--equality", "mathematics", "--json"]
    done = subprocess.run([str(COORDINATOR), *words, "--home", str(home)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["tasks"]["topics"]["records"] == 2
    assert found["tasks"]["topics"]["acc"]["value"] in (0, 0.5, 1)
    assert found["tasks"]["sums"]["exact_match"]["value"] == 0.5
    assert found["tasks"]["sums"]["equal as mathematics"]["value"] == 1
    assert "exact_match" in found["measured_by_sites"]
