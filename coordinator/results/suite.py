"""Measures a run's adapter by a suite of tasks of lm-evaluation-harness, through the served API, without a network.

A suite is a folder with a YAML file a task, and its data in files beside them. The harness runs in a process of its own
and sees what any client of the service sees: texts, and how likely they are. What it measures depends on the suite's
records alone, which are the operator's own; beside it stands what the sites have measured and charged.

Answers that are written may also be compared as mathematics: by the bounded reader of `models.evaluation.answers`, of
which nothing is run, whatever the task itself counts.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import yaml

from ...listening import Listening
from ...models.errors import AnswerRefused
from ...models.evaluation import answers, metrics
from ...models.records.kind import SHARE
from ...models.serving.served import BACKBONE, MOST_SCORED, Served
from ...models.serving.server import Address, Bounds, run
from ..errors import Conflict
from ..store import Store
from .export import copy_for_measuring
from .metrics import measurement

_ROWS = 8  # requests at a time
_SECONDS = 600.0  # for one of them
_LAST = 30  # lines of what the harness said that are told if it fails
_PROGRESS = re.compile(r"Requesting API:.*?(\d+)/(\d+)")

Progress = Callable[[int, int], None]


def evaluate_suite(
    store: Store,
    home: Path,
    run_id: str,
    suite: Path,
    *,
    limit: int | None = None,
    by_mathematics: bool = False,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Measures the run's last state by every task of a suite.

    Args:
        suite: folder of tasks; it runs with the rights of whoever measures, as a program does.
        limit: records of each task; None: all.
        by_mathematics: True to compare what is written with the task's target as formulas in x, too.
        progress: hears how many requests of the kind that is being asked are answered, of how many.

    Returns:
        By task its metrics, as the harness names them, with standard errors; and what the sites have measured, charged.

    Raises:
        Conflict: the harness is not installed or has failed, there is no task, or the run has no adapter yet.
        BackboneMismatch: the adapter reads records and no text.
    """
    if find_spec("lm_eval") is None:
        raise Conflict("it takes lm-evaluation-harness: pip install 'confide[evaluate]'; nothing was measured")
    suite = suite.resolve()
    tasks = tasks_of(suite)
    with tempfile.TemporaryDirectory(prefix="confide-suite-") as folder:
        work = Path(folder)
        backbone = copy_for_measuring(store, home, run_id, work / "adapter")
        served = Served(backbone, [work / "adapter"], reads_control_words=True)
        (name,) = (name for name in served.models if name != BACKBONE)
        with _listening(served, work / "token") as port:
            told = {
                "model": name, "base_url": f"http://127.0.0.1:{port}/v1/completions", "num_concurrent": _ROWS,
                "tokenizer_backend": "huggingface", "tokenizer": str(backbone), "tokenized_requests": False,
                "max_length": min(served.longest, MOST_SCORED), "timeout": int(_SECONDS),
            }  # fmt: skip
            _measure(suite, work, tasks, told, limit, progress)
        found: dict[str, Any] = {"tasks": _results(work / "results")}
        if by_mathematics:
            for task, by_filter in _by_mathematics(work / "results").items():
                found["tasks"].setdefault(task, {}).update(by_filter)
    evaluation = store.evaluation(run_id)
    if evaluation is not None and evaluation.problem is None:
        measured = measurement(store, run_id)
        right = measured.metrics.auc if measured.judged == "labels" else measured.metrics.prevalence
        name = "auc" if measured.judged == "labels" else SHARE[measured.judged]
        found["measured_by_sites"] = {name: None if right is None else asdict(right)}
    return found


def tasks_of(suite: Path) -> list[str]:
    """Lists the names of the tasks in a folder.

    Raises:
        Conflict: there is none, or a file is no YAML.
    """
    found = []
    for path in sorted((*suite.glob("*.yaml"), *suite.glob("*.yml"))):
        try:
            plain = yaml.load(path.read_text(encoding="utf-8"), _Names)  # noqa: S506 a safe loader that skips tags
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as err:
            raise Conflict(f"{path} is no task ({type(err).__name__}); nothing was measured") from None
        if isinstance(plain, dict) and isinstance(plain.get("task"), str):
            found.append(plain["task"])
    if not found:
        raise Conflict(f"{suite} holds no task: a YAML file with task: NAME; nothing was measured")
    return found


class _Names(yaml.SafeLoader):  # type: ignore[misc]
    """Reads plain values, and nothing where a file names a function of the harness."""


_Names.add_multi_constructor("!", lambda _loader, _tag, _node: None)


@contextmanager
def _listening(served: Served, token: Path) -> Iterator[int]:
    """Serves on a free port of this machine for as long as the block runs; `token` is the file of its token."""
    ready, listening = threading.Event(), []
    failures: list[BaseException] = []

    def announce(found: Listening) -> None:
        listening.append(found)
        ready.set()

    def serve() -> None:
        try:
            run(served, Address(port=0, token_file=token), Bounds(rows=_ROWS, seconds=_SECONDS), announce)
        except BaseException as err:
            failures.append(err)
        finally:
            ready.set()

    thread = threading.Thread(target=serve, name="confide-suite")
    thread.start()
    try:
        ready.wait()
        if failures:
            raise failures[0]
        yield listening[0].port
    finally:
        for each in listening:
            each.stop()
        thread.join()


def _measure(
    suite: Path, work: Path, tasks: Sequence[str], told: dict[str, Any], limit: int | None, progress: Progress
) -> None:
    environment = {
        **os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1",
        "HF_HOME": str(work / "cache"), "LMEVAL_LOG_LEVEL": "ERROR", "TOKENIZERS_PARALLELISM": "false",
        "OPENAI_API_KEY": (work / "token").read_text(encoding="ascii").strip(),
    }  # fmt: skip
    settings = {
        "model": "local-completions", "model_args": told, "tasks": list(tasks), "include_path": str(suite),
        "output_path": str(work / "results"), "log_samples": True,
    }  # fmt: skip
    config = work / "settings.yaml"
    config.write_text(yaml.safe_dump(settings | ({} if limit is None else {"limit": limit})), encoding="utf-8")
    command = [sys.executable, "-m", "lm_eval", "run", "--config", str(config)]
    said: deque[str] = deque(maxlen=_LAST)
    with subprocess.Popen(
        command, cwd=suite, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, bufsize=0
    ) as harness:
        assert harness.stderr is not None
        try:
            for line in _lines(harness.stderr):
                if found := _PROGRESS.search(line):
                    progress(int(found[1]), int(found[2]))
                elif line.strip():
                    said.append(line.rstrip())
        except BaseException:
            harness.terminate()
            raise
    if harness.returncode:
        raise Conflict(
            f"lm-evaluation-harness ended with code {harness.returncode}; nothing was measured. It said last:\n"
            + "\n".join(said)
        )


def _lines(stream: IO[bytes]) -> Iterator[str]:
    """Yields what a process says, by lines and by the returns with which it draws over its bars."""
    rest = b""
    while some := stream.read(1 << 16):
        *lines, rest = re.split(rb"[\r\n]", rest + some)
        yield from (line.decode(errors="replace") for line in lines)
    yield rest.decode(errors="replace")


def _results(folder: Path) -> dict[str, Any]:
    (path,) = folder.rglob("results_*.json")
    plain = json.loads(path.read_bytes())
    found: dict[str, Any] = {}
    for task, told in plain["results"].items():
        found[task] = {"records": plain["n-samples"][task]["effective"]}
        for key, value in told.items():
            metric, _, name = key.partition(",")
            if name and not metric.endswith("_stderr"):
                error = told.get(f"{metric}_stderr,{name}")
                is_number = isinstance(error, float | int)
                found[task][metric if name == "none" else f"{metric} ({name})"] = {
                    "value": value, "standard_error": error if is_number else None,
                }  # fmt: skip
    return found


def _by_mathematics(folder: Path) -> dict[str, dict[str, Any]]:
    """Compares what was written with each task's target as formulas in x; a target that is none counts as missed."""
    right: dict[str, dict[str, list[bool]]] = {}
    for path in folder.rglob("samples_*.jsonl"):
        task = path.name.removeprefix("samples_").rpartition("_")[0]
        for line in path.read_text(encoding="utf-8").split("\n")[:-1]:  # and nowhere else: answers hold other breaks
            sample = json.loads(line)
            (answer, *_), asked = sample["filtered_resps"], sample["arguments"]["gen_args_0"]["arg_1"]
            is_written = isinstance(asked, dict)  # settings of writing; a continuation that is scored is a text
            if is_written and isinstance(answer, str) and isinstance(sample["target"], str):
                own = right.setdefault(task, {}).setdefault(sample["filter"], [])
                own.append(_is_right(answer.strip(), sample["target"].strip()))
    found: dict[str, dict[str, Any]] = {}
    for task, by_filter in right.items():
        for name, own in by_filter.items():
            share = metrics.exact_match(own)
            label = "equal as mathematics" + ("" if name == "none" else f" ({name})")
            found.setdefault(task, {})[label] = asdict(share)
    return found


def _is_right(answer: str, truth: str) -> bool:
    try:
        return answers.is_equivalent(answer, truth)
    except AnswerRefused:
        return False
