"""Measures models that run without confide: what 8 bits move, and how long an answer takes.

    coordinator demo thyroid --dir demo-thyroid
    python benchmarks/deployment.py tables demo-thyroid      # its run, in every form: AUC, and ms for a record
    python benchmarks/deployment.py text FOLDER --study examples/code/study.toml --tables FOLDER/data/*/heldout.csv
    python benchmarks/deployment.py pictures demo-scans      # a run of `coordinator demo scans`: forms right, and ms
    python benchmarks/deployment.py triton demo-thyroid --python PYTHON     # one that has the folder's requirements

text: FOLDER holds a backbone and an exported adapter of a study of code or text, as demos leave them. Of 1,000 prompts,
beginnings of the tables' records, the word that comes next, by a graph in 8 bits and by PyTorch in 8 bits, rounded as
confide's own (`experts = "int8"`, `frozen = "int8"`) and as the graph's, each beside float32; then how long a word
takes. --window and --top read them with attention in segments.

Figures: docs/benchmarks/deployment.md.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch

from confide.client_node.study import load_draft
from confide.client_node.training.study_model import StudyModel
from confide.coordinator.results.deployment import deploy_adapter
from confide.coordinator.results.trained import trained_model
from confide.coordinator.store import Store
from confide.kernels.segments import Segments
from confide.models.adapters import ModelCard
from confide.models.adapters.attaching import attached
from confide.models.adapters.merging import merged
from confide.models.adapters.peft_import import read
from confide.models.backbones import loading
from confide.models.deployment.asking import Answering, requests_of
from confide.models.deployment.deploying import deploy
from confide.models.deployment.description import load
from confide.models.deployment.exporting import RoundedExperts, with_banks
from confide.models.evaluation.metrics import auc

_ALONE = 200  # records and words that are timed
_RUNS = 3  # of which the best median is told


def tables(demo: Path) -> None:
    """Prints AUC, the largest move of a logit, milliseconds for one record and bytes, for each form of a demo's run."""
    rows = [row for table in sorted(demo.glob("data/*/heldout.csv")) for row in csv.DictReader(table.open())]
    labels = np.array([int(row["diagnosis"]) for row in rows])
    home = demo / "federation-1" / "coordinator"
    with closing(Store.open(home)) as store, tempfile.TemporaryDirectory() as made:
        run = store.runs()[-1].id
        whole = Whole(trained_model(store, home, run))
        for target, weights in (("torch", "float32"), ("onnx", "float32"), ("onnx", "int8")):
            folder = Path(made) / f"{target}-{weights}"
            found = deploy_adapter(store, home, run, folder, target, weights, override_audit="measured")
            answering = Answering(folder, threads=1)
            ids = [answering.reader.ids(row) for row in rows]
            if target == "torch":
                before = whole.logits(ids)
                said = milliseconds([partial(whole.logits, [own]) for own in ids[:_ALONE]])
                print(f"confide, float32: AUC {auc(before, labels).value:.4f}, {said:.2f} ms a record")
            outputs = dict(answering.outputs(dict(enumerate(ids))))
            logits = np.array([float(outputs[place][0]) for place in range(len(rows))])
            said = milliseconds([partial(answering.answer, [row]) for row in rows[:_ALONE]])
            print(
                f"{target}, {weights}: AUC {auc(logits, labels).value:.4f}, {said:.2f} ms a record, "
                f"{found.bytes / 1e6:.2f} MB, largest move of a logit {np.abs(logits - before).max():.4f} of "
                f"{np.abs(before).max():.2f}",
                flush=True,
            )


def pictures(demo: Path) -> None:
    """Prints forms right, texts that are confide's own, and milliseconds for one form, of each form of a demo's run."""
    paths = sorted(demo.glob("data/*/heldout.csv"))
    rows = [row for path in paths for row in csv.DictReader(path.open())]
    told = [f"{row['scan']} {row['check']} {row['answer']}" for row in rows]
    home = demo / "federation-1" / "coordinator"
    with closing(Store.open(home)) as store, tempfile.TemporaryDirectory() as made:
        run = store.runs()[-1].id
        before: list[str] = []
        for weights in ("float32", "int8"):
            folder = Path(made) / weights
            found = deploy_adapter(store, home, run, folder, "onnx", weights, override_audit="measured")
            answering = Answering(folder, threads=1)
            given = [each for path in paths for each in requests_at(path, folder)]
            if not before:
                before, said = texts_of_confide(trained_model(store, home, run), paths, len(told[0].split()) + 2)
                print(f"confide, float32: {right(before, told)} of {len(told)} forms right, {said:.1f} ms a form")
            texts = [answer["text"].strip() for answer in answering.answer(given)]
            said = milliseconds([partial(answering.answer, [each]) for each in given[:_ALONE]])
            print(
                f"onnx, {weights}: {right(texts, told)} of {len(told)} forms right, {right(texts, before)} as confide "
                f"has them, {said:.1f} ms a form, {found.bytes / 1e6:.2f} MB",
                flush=True,
            )


def requests_at(table: Path, folder: Path) -> list[Any]:
    """The requests of a table, as a folder's program sends them."""
    return list(requests_of(argparse.Namespace(requests=[str(table)], by=None), load(folder).request))


def right(texts: Sequence[str], told: Sequence[str]) -> int:
    """Counts texts that are what was told, word by word."""
    return sum(text == other for text, other in zip(texts, told, strict=True))


def texts_of_confide(model: StudyModel, paths: Sequence[Path], longest: int) -> tuple[list[str], float]:
    """Writes by a run's model of the pictures of tables; returns the texts, and milliseconds for one."""
    import pyarrow as pa

    kind, terms, reader = model.kind, model.terms, model.reader
    found: list[str] = []
    waits: list[Callable[[], object]] = []
    for path in paths:
        rows = list(csv.DictReader(path.open()))
        columns: dict[str, np.ndarray] = {}
        for column in kind.columns(terms):
            if column.sites == ():
                continue
            cells = [row[column.name] for row in rows]
            if column.opens is None:
                columns[column.name] = column.read(pa.array(cells)).values
            else:
                files = [column.opens((path.parent / kind.files / name).read_bytes()) for name in cells]
                columns[column.name] = np.array(files, dtype=object)
        ids, is_learned = reader.examples(columns, None)
        write = partial(reader.written, model.adapted.model, longest=longest)
        for start in range(0, len(ids), 64):
            found += write(ids[start : start + 64], is_learned[start : start + 64])
        waits += [partial(write, ids[row : row + 1], is_learned[row : row + 1]) for row in range(20)]
    return found, milliseconds(waits)


class Whole:
    """A run's model as confide itself runs it."""

    def __init__(self, model: StudyModel) -> None:
        self._model = model

    @torch.inference_mode()
    def logits(self, ids: Sequence[Sequence[int]]) -> np.ndarray:
        """[rows], logits of records."""
        return np.array([float(self._model.adapted.classify(torch.tensor([own]))[0]) for own in ids])


def text(folder: Path, study: Path, paths: Sequence[Path], prompts: int, segments: Segments | None) -> None:
    """Prints how often the next word is the same, and milliseconds a word."""
    draft = load_draft(study)
    plain, adapter = loading.load_text(folder / "backbone", segments=segments), read(folder / "adapter")
    kind, terms = draft.data.kind, draft.data.terms
    reader = kind.reader(terms, plain.tokenizer, max_tokens=draft.data.max_tokens)
    shown = beginnings(kind, terms, reader, paths, prompts)
    card = ModelCard(
        study=draft.name, study_hash="0" * 64, backbone_hash=plain.hash, sites=("a", "b", "c"), rounds=1,
        unit=draft.data.unit, mode="none", epsilon=None, delta=None, collusion=0, audit="measured", segments=segments,
    )  # fmt: skip
    adapted = attached(plain.model, adapter, None)
    want = words_of_torch(adapted.model, shown)
    packed = loading.load_text(folder / "backbone", experts="int8", frozen="int8", segments=segments)
    bytes_of_torch = words_of_torch(attached(packed.model, adapter, None).model, shown)
    print(f"{len(shown):,} prompts of {min(map(len, shown))} to {max(map(len, shown))} tokens")
    print(f"PyTorch, int8: the word of float32 for {agree(bytes_of_torch, want)}")
    with merged(adapted) as whole, with_banks(whole, RoundedExperts):
        same_bytes = words_of_torch(whole, shown)
    print(f"PyTorch, the graph's own 8 bits: the word of float32 for {agree(same_bytes, want)}")
    with tempfile.TemporaryDirectory() as made:
        request = kind.request(terms, reader)
        request = replace(request, writing=replace(request.writing, guide=None))
        for target, weights in (("torch", "float32"), ("onnx", "float32"), ("onnx", "int8")):
            own = Path(made) / f"{target}-{weights}"
            found = deploy(adapted, folder / "backbone", own, card, request, target=target, weights=weights)
            answering = Answering(own, threads=1)
            chosen = [words_of_folder(answering, prompt) for prompt in shown]
            said = (
                f"{target}, {weights}: the word of float32 for {agree(chosen, want)}, of PyTorch's int8 for "
                f"{agree(chosen, bytes_of_torch)}, of the graph's 8 bits in PyTorch for {agree(chosen, same_bytes)}, "
                f"{word_milliseconds(answering, shown):.2f} ms a word, {found.bytes / 1e6:.2f} MB"
            )
            print(said, flush=True)


def beginnings(kind: Any, terms: Any, reader: Any, paths: Sequence[Path], prompts: int) -> list[list[int]]:
    """Beginnings of the records of tables, of every length: what somebody has typed so far."""
    import pyarrow as pa

    rows = [row for path in paths for row in csv.DictReader(path.open())]
    columns = {each.name: each.read(pa.array([row[each.name] for row in rows])).values for each in kind.columns(terms)}
    ids, _ = reader.examples(columns, None)
    rng = np.random.default_rng(0)
    lengths = [int(np.flatnonzero(row).max()) for row in ids]  # without the word that ends it
    found = []
    while len(found) < prompts:
        row = int(rng.integers(len(ids)))
        found.append(ids[row, : int(rng.integers(8, max(9, lengths[row])))].tolist())
    return found


@torch.inference_mode()
def words_of_torch(model: Any, prompts: Sequence[Sequence[int]]) -> list[int]:
    """The likeliest next word of each prompt, by confide's own model."""
    return [
        int(model(input_ids=torch.tensor([list(prompt)]), use_cache=False).logits[0, -1].argmax()) for prompt in prompts
    ]


def words_of_folder(answering: Answering, prompt: Sequence[int]) -> int:
    """The likeliest next word of a prompt, by a folder's model."""
    writer = answering.writer
    ids_RT = np.array([prompt], dtype=np.int64)
    logits, _ = writer.model.next(ids_RT, writer.places(ids_RT), None)
    return int(logits[0].argmax())


def word_milliseconds(answering: Answering, prompts: Sequence[Sequence[int]]) -> float:
    """The median time of a word of an answer, behind prompts as they are."""
    writer, found = answering.writer, []
    for prompt in prompts[:20]:
        ids_RT, cache = np.array([prompt], dtype=np.int64), None
        places = writer.begin(1)
        for word in range(11):
            where = writer.places(ids_RT, places)
            started = time.perf_counter()
            logits, cache = writer.model.next(ids_RT, where, cache)
            found += [] if word == 0 else [time.perf_counter() - started]
            ids_RT = logits.argmax(1)[:, None].astype(np.int64)
    return 1000 * statistics.median(found)


def triton(demo: Path, python: Path) -> None:
    """Prints requests a second and waits of closed-loop clients over HTTP, beside one process of the same graph."""
    home = demo / "federation-1" / "coordinator"
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "it"
        with closing(Store.open(home)) as store:
            run = store.runs()[-1].id
            deploy_adapter(store, home, run, folder, "triton", "int8", override_audit="measured")
        words = [str(python), str(folder / "start.py"), "--http-port", "18000", "--grpc-port", "18001"]
        server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            address = "http://127.0.0.1:18000/v2"
            while not is_there(f"{address}/health/ready"):
                time.sleep(0.2)
            (name,) = (path.name for path in (folder / "models").iterdir())
            own = folder / "models" / name / "1"
            rows = [each for table in sorted(demo.glob("data/*/heldout.csv")) for each in requests_at(table, own)]
            for clients in (1, 8, 32):
                print(f"{clients} clients: {under_load(f'{address}/models/{name}', rows, clients)}", flush=True)
        finally:
            server.terminate()
            server.wait()


def is_there(url: str) -> bool:
    """True if the server answers."""
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


def under_load(model: str, rows: Sequence[Any], clients: int) -> str:
    """Asks for a while from so many clients, each of which waits for its answer."""
    before = httpx.get(f"{model}/stats").json()["model_stats"][0]
    waits: list[float] = []

    def ask(number: int) -> None:
        with httpx.Client() as client:
            for row in rows[number::clients][: 1600 // clients]:
                given = {"name": "REQUEST", "shape": [1, 1], "datatype": "BYTES", "data": [json.dumps(row)]}
                started = time.perf_counter()
                client.post(f"{model}/infer", json={"inputs": [given]}).raise_for_status()
                waits.append(time.perf_counter() - started)

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(ask, range(clients)))
    seconds = time.perf_counter() - started
    after = httpx.get(f"{model}/stats").json()["model_stats"][0]
    asked = after["inference_count"] - before["inference_count"]
    passes = after["execution_count"] - before["execution_count"]
    wait = 1000 * statistics.median(waits)
    return f"{len(waits) / seconds:.0f} a second, p50 {wait:.1f} ms, {asked / passes:.1f} a pass"


def agree(found: Sequence[int], want: Sequence[int]) -> str:
    """The share of equal words."""
    return f"{100 * np.mean(np.array(found) == np.array(want)):.1f} %"


def milliseconds(calls: Sequence[Callable[[], object]]) -> float:
    """The median time of some calls, of the best of three rounds."""
    rounds = []
    for _ in range(_RUNS):
        found = []
        for call in calls:
            started = time.perf_counter()
            call()
            found.append(time.perf_counter() - started)
        rounds.append(statistics.median(found))
    return 1000 * min(rounds)


def main() -> None:
    """Measures what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["tables", "text", "pictures", "triton"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--study", type=Path)
    parser.add_argument("--tables", type=Path, nargs="+")
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--window", type=int)
    parser.add_argument("--top", type=int, default=8)
    parser.add_argument("--python", type=Path, default=Path(sys.executable))
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "tables":
        tables(given.folder)
    elif given.what == "pictures":
        pictures(given.folder)
    elif given.what == "triton":
        triton(given.folder, given.python)
    else:
        segments = None if given.window is None else Segments(given.window, given.top)
        text(given.folder, given.study, given.tables, given.prompts, segments)


if __name__ == "__main__":
    main()
