import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import DeepseekV3ForCausalLM

from confide.coordinator.store.store import Store
from confide.models.evaluation.metrics import auc
from confide.privacy.report.verify import verify_file

from .conftest import wait_for
from .triton import Triton

pytestmark = pytest.mark.process

COORDINATOR = Path(sys.executable).parent / "coordinator"
ROUNDS = 4
KEYS = {
    "epsilon", "delta", "auc_before", "auc_nonprivate", "auc_private", "seconds_per_round", "bytes_per_site_round",
    "report_json", "report_html", "adapter", "backbone", "audit", "membership",
}  # fmt: skip


def demo(folder: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(COORDINATOR), "demo", "--dir", str(folder), "--rounds", str(ROUNDS), "--json", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Ctrl-C shall reach it also where it was turned off for this process, as nohup and `&` do.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def committed(folder: Path) -> int:
    home = folder / "federation-1" / "coordinator"
    if not (home / "coordinator.db").exists():
        return 0
    store = Store.open(home)
    try:
        return sum(len(store.rounds(run.id)) for run in store.runs())
    except Exception:  # the tables are being made
        return 0
    finally:
        store.close()


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """A private demo that is stopped with Ctrl-C after its first round and then run again."""
    folder = tmp_path_factory.mktemp("demo")
    first = demo(folder)
    wait_for(lambda: committed(folder) >= 1 or first.poll() is not None, "the first round", seconds=1800)
    first.send_signal(signal.SIGINT)
    _, said = first.communicate(timeout=600)
    assert first.returncode == 130, said
    assert f"go on with: coordinator demo thyroid --dir {folder}" in said
    assert leftovers(folder) == []
    before = committed(folder)
    second = demo(folder)
    printed, said = second.communicate(timeout=3600)
    assert second.returncode == 0, said
    assert "Pretraining" not in said
    found: dict[str, object] = json.loads(printed)
    assert found["rounds"] == ROUNDS
    assert 1 <= before < ROUNDS
    return found


def leftovers(folder: Path) -> list[int]:
    """Processes of the demo that outlived it."""
    time.sleep(0.5)
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder).encode() in (entry / "cmdline").read_bytes() and int(entry.name) != os.getpid():
                found.append(int(entry.name))
        except OSError:  # ended meanwhile
            continue
    return found


def test_a_stopped_demo_goes_on_and_prints_one_object(outcome):
    assert outcome.keys() >= KEYS
    assert 0 < float(str(outcome["epsilon"])) < 3
    assert float(str(outcome["auc_private"])) > 0.8
    low, high = outcome["auc_measured_interval"]  # type: ignore[misc]
    slack = 0.05 + float(str(outcome["auc_measured_binning"]))  # after few rounds most scores share few bins
    assert low - slack < float(str(outcome["auc_private"])) < high + slack  # one in twenty misses, none by that much
    assert int(str(outcome["bytes_per_site_round"])) > 10_000


def test_the_engine_was_audited_and_both_adapters_attacked(outcome):
    report = json.loads(Path(str(outcome["report_json"])).read_text())
    (audit,) = report["audits"]
    assert audit == outcome["audit"]
    assert audit["findings"] == []
    assert float(audit["lower_bound"]) < float(audit["claimed_epsilon"])
    assert (
        f"{audit['right']} of {audit['guesses']} guesses" in (Path(str(outcome["adapter"])) / "README.md").read_text()
    )
    assert report["membership"] == outcome["membership"]
    assert [attack["is_private"] for attack in report["membership"]] == [True, False]


def test_the_report_verifies_and_says_what_was_printed(outcome):
    verification = verify_file(Path(str(outcome["report_json"])))
    assert verification.ok, verification.failures
    report = json.loads(Path(str(outcome["report_json"])).read_text())
    printed = {one["colluding"]: float(one["pld"]) for one in report["sites"][0]["accounts"][0]["spent"]}
    assert printed[1] == pytest.approx(float(str(outcome["epsilon"])))
    assert report["sites"][0]["accounts"][0]["releases"] == ROUNDS + 1  # and the evaluation
    html = Path(str(outcome["report_html"])).read_text()
    assert "http://" not in html.replace("http://www.w3.org", "")
    assert "<script" not in html


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT's own, while loading
def test_the_adapter_loads_in_peft_and_changes_attention(outcome):
    backbone = DeepseekV3ForCausalLM.from_pretrained(str(outcome["backbone"]))
    ids = torch.arange(2, 22)[None]
    with torch.no_grad():
        plain = backbone.model(ids).last_hidden_state.clone()
        adapted = PeftModel.from_pretrained(backbone, str(outcome["adapter"]))
        moved = (adapted.base_model.model.model(ids).last_hidden_state - plain).abs().max()
    assert moved > 1e-5
    trained = {name: p for name, p in adapted.named_parameters() if "lora_B" in name}
    assert len(trained) == 10  # five projections in each of two layers
    for name, parameter in trained.items():
        assert ".self_attn." in name
        assert parameter.abs().max() > 0


@pytest.fixture(scope="module")
def deployed(outcome, tmp_path_factory: pytest.TempPathFactory) -> Triton:
    """The demo's model as the folder of a Triton server."""
    folder = tmp_path_factory.mktemp("deployed") / "triton"
    home = Path(str(outcome["report_json"])).parent / "coordinator"
    words = ["adapter", "deploy", str(outcome["run"]), str(folder), "--target", "triton"]
    done = subprocess.run([str(COORDINATOR), *words, "--home", str(home)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Triton.of(folder, tmp_path_factory)


def rows_of(table: Path) -> list[dict[str, str]]:
    with table.open() as file:
        return list(csv.DictReader(file))


def test_a_triton_server_is_as_good_without_confide_over_http_and_grpc(outcome, deployed):
    tables = sorted(Path(str(outcome["report_json"])).parents[1].glob("data/*/heldout.csv"))
    with deployed.served():
        answers = [answer for table in tables for answer in deployed.asked(str(table))]
        chances = np.array([answer["answer"]["diagnosis"] for answer in answers])
        labels = np.array([int(row["diagnosis"]) for table in tables for row in rows_of(table)])
        found = auc(np.log(chances / (1 - chances)), labels).value
        assert abs(found - float(str(outcome["auc_private"]))) < 0.002
        by_grpc = deployed.asked(str(tables[0]), "--grpc")
        first = chances[: len(by_grpc)].tolist()
        assert [each["answer"]["diagnosis"] for each in by_grpc] == pytest.approx(first, abs=1e-4)
        before, rows = deployed.statistics(), rows_of(tables[0])[:64]
        with ThreadPoolExecutor(16) as pool:  # each alone: the server puts together what waits
            alone = list(pool.map(deployed.over_http, rows))
        assert [each["answer"]["diagnosis"] for each in alone] == pytest.approx(first[:64], abs=1e-4)
        after = deployed.statistics()
        assert after["inference_count"] - before["inference_count"] == 64
        assert after["execution_count"] - before["execution_count"] < 64
        assert all("error" in deployed.over_http(bad) for bad in ({}, [], {**rows[0], "age": "old"}))
        closed = httpx.post(deployed.url("logging"), json={"log_verbose_level": 1})
        assert closed.status_code == 403
    assert leftovers(deployed.folder) == []


def test_a_demo_that_is_done_is_kept_for_who_looks_around(outcome):
    folder = Path(str(outcome["report_json"])).parents[1]
    kept = demo(folder, "--keep")
    assert kept.stderr is not None, "it was started with pipes"
    found = (re.search(r"http://\S+/enter\?link=\S+", line) for line in kept.stderr)
    link = next(match[0] for match in found if match)
    with httpx.Client(follow_redirects=True) as client:
        assert "thyroid demo" in client.get(link).text
        assert str(outcome["run"]) in client.get(httpx.URL(link).join("/runs")).text
    kept.send_signal(signal.SIGINT)
    _, said = kept.communicate(timeout=120)
    assert kept.returncode == 0, said
    assert not (folder / "federation-2").exists()
    assert leftovers(folder) == []
