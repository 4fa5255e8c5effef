import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from confide import client_node

pytestmark = pytest.mark.process

SCRIPT = Path(__file__).with_name("sharded_pass.py")
CASES = (
    "one projection", "everywhere", "head", "int8", "nf4", "fp8", "bfloat16", "text", "uneven text", "no text",
    "text behind a document", "offloaded",
)  # fmt: skip


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict]]:
    """What two processes saw. Their PATH is empty: neither compiler nor ninja is there."""
    folder = tmp_path_factory.mktemp("sharding")
    results = [folder / f"{worker_id}.json" for worker_id in range(2)]
    environment = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PATH": str(folder), "HOME": str(folder)}
    processes = [
        subprocess.Popen(
            [sys.executable, SCRIPT, str(worker_id), "2", folder / "meeting", result],
            env=environment,
            stdout=subprocess.DEVNULL,
        )
        for worker_id, result in enumerate(results)
    ]
    try:
        assert [process.wait(600) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    return [json.loads(result.read_text()) for result in results]


@pytest.mark.parametrize("case", CASES)
def test_gradients_of_a_sharded_model_are_those_of_the_whole_one(reports: list[dict[str, dict]], case: str):
    for report in reports:
        assert report[case]["size"] > 0.01 or case == "no text"
        assert report[case]["difference"] <= 1e-6


@pytest.mark.parametrize("case", CASES)
def test_each_process_keeps_half_of_every_matrix_and_none_whole_between_passes(
    reports: list[dict[str, dict]], case: str
):
    for report in (each[case] for each in reports):
        assert report["total"] >= report["frozen"]  # vectors stay
        assert report["own"] <= report["total"] / 2 + 4 * report["matrices"]  # an odd one is filled up
        assert report["whole_at_rest"] == [0, 0, 0]


def test_no_more_than_one_layer_is_whole_forward_or_backward(reports: list[dict[str, dict]]):
    for report in (each["everywhere"] for each in reports):
        inside = report["whole_inside"]
        assert len(inside) == 2 * 2 * 3  # two passes, each forward and backward through three layers
        assert 0 < min(inside) <= max(inside) <= report["largest_layer"] < report["total"] / 2


@pytest.mark.parametrize("case", CASES)
def test_what_autograd_keeps_for_backward_holds_no_gathered_matrix(reports: list[dict[str, dict]], case: str):
    assert [report[case]["kept_for_backward"] for report in reports] == [[0, 0], [0, 0]]


def test_one_module_imports_deepspeed_and_is_imported_when_a_worker_loads():
    folder = Path(client_node.__file__).resolve().parents[1]
    sources = {
        path: path.read_text()
        for name in ("coordinator", "client_node", "privacy", "mpc", "models", "kernels")
        for path in (folder / name).rglob("*.py")
    }
    importing = [path.name for path, text in sources.items() if re.search(r"^\s*(import|from) deepspeed", text, re.M)]
    assert importing == ["sharding.py"]
    users = {path.name: text for path, text in sources.items() if re.search(r"import .*\bsharding\b", text)}
    assert list(users) == ["worker.py"]
    assert not re.search(r"^(import|from) .*\bsharding\b", users["worker.py"], re.M)  # inside a function
