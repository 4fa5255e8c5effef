"""Measures what a backbone loses as it is made smaller, beside one of that size from scratch on the same tokens.

    python benchmarks/compression.py tables [--dir bench-compression] [--times 2 5 10] [--seeds 1 2 3]
    python benchmarks/compression.py text [--times 2 5 10]
    python benchmarks/compression.py picture docs/compression.svg    # of all results in the folder
    python benchmarks/compression.py tables --quick    # does it run? Few steps: figures mean nothing

tables: the example thyroid. A study is trained in one process by its own steps, as private as it says; then backbone
and adapter are made smaller, on synthetic records alone. Beside it a backbone of that size, pretrained from random
weights on as many records, and a private study of its own on it, which costs epsilon once more.

text: the example derivations. The backbone is made smaller on the public problems that it was trained on, and judged on
others that neither has seen. Beside it one of that size from random weights, on the same tokens. The private adapter is
carried over on answers that it gives itself to questions that no patient asks.

A finished run is read from the results. Figures: docs/compression.md.
"""

import argparse
import csv
import itertools
import json
import math
import runpy
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from federated_arms import Bench, changed, prepared, train
from rows import Rows

from confide.client_node.study import StudyDraft, load_draft
from confide.client_node.training.study_model import StudyModel, load_study_model
from confide.coordinator.comparison.task import read_task
from confide.coordinator.studies.text_backbone import public_rows
from confide.models.adapters import ModelCard, export
from confide.models.adapters.attaching import attached
from confide.models.adapters.carrying import carry
from confide.models.adapters.composing import compose
from confide.models.adapters.peft_import import read
from confide.models.backbones import loading
from confide.models.backbones.pretraining import MixedRecords, PretrainingConfig, fit, pooled_moments, pretrain
from confide.models.backbones.text_pretraining import Row, once
from confide.models.compression.compressing import compress
from confide.models.compression.cutting import planned, resized
from confide.models.compression.distilling import DistillingConfig, Words, learn, loss_of_words
from confide.models.evaluation.metrics import auc
from confide.models.records.formulas import FormulaEncoder, Formulas
from confide.models.records.kind import Column
from confide.models.structure import inputs
from confide.privacy.report.plot import Plot, linear

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
SMALLER, SCRATCH, WHOLE = "cut and taught", "from scratch", "whole"
_STEPS = {"tables": 1500, "text": 4000}  # of 64 records, or of 1,500 tokens: as many as the text backbone itself had
_CARRYING = {"tables": 600, "text": 2000}
_QUICK = 5  # steps that only show that it runs
_PUBLIC_JUDGED = 1000  # problems
COLUMNS = ("question", "derivation", "answer")
STYLE = (
    "svg{background:#fff;font:13px sans-serif}text{fill:#333}.grid{stroke:#ddd}.line{fill:none;stroke-width:2}"
    ".kind-0{stroke:#0b6e4f}.kind-1{stroke:#0b6e4f;stroke-dasharray:5 4}.kind-2{stroke:#8a3ffc}"
    ".kind-3{stroke:#8a3ffc;stroke-dasharray:5 4}.dot{fill:#fff;stroke-width:2;stroke-dasharray:none}"
    ".name{stroke:none}.tick{font-size:12px}"
)


def tables(
    folder: Path, results: Rows, times: Sequence[float], seeds: Sequence[int], steps: int, is_quick: bool
) -> None:
    """Measures AUC and loss on the held-out records of all sites."""
    bench = thyroid(folder, is_quick)
    for seed in seeds:
        adapter = folder / f"adapter-{seed}"
        if not adapter.exists():
            write_adapter(train(bench.draft, bench, bench.draft.participants.sites, seed), bench, adapter)
        judge = judge_of_records(bench)
        run(results, WHOLE, 1.0, seed, partial(judge, bench.backbone, adapter))
        for at in times:
            make = partial(smaller_table, bench, adapter, folder, judge, at, seed, steps)
            run(results, SMALLER, at, seed, make, steps)
            run(results, SCRATCH, at, seed, partial(scratch_table, bench, folder, judge, at, seed, steps), steps)


def run(results: Rows, arm: str, times: float, seed: int, measure: Callable[[], dict], steps: int = 0) -> None:
    """Measures one arm, unless its row is there."""
    key = {"arm": arm, "times": times, "seed": seed, "steps": steps}
    if results.of(key):
        return
    started = time.perf_counter()
    found = measure()
    results.add(key | found | {"seconds": round(time.perf_counter() - started)}, f"{times:g} times, {told(found)}")


def told(found: dict) -> str:
    """The figures of a row."""
    return ", ".join(f"{name} {value:.4g}" for name, value in found.items() if isinstance(value, float))


def thyroid(folder: Path, is_quick: bool) -> Bench:
    """Prepares records and backbone of the example, or finds them prepared."""
    draft = load_draft(EXAMPLES / "thyroid" / "study.toml").model_copy(update={"evaluation": None})
    if is_quick:
        draft = changed(draft, "rounds", rounds=2)
    records, backbone = folder / "records", folder / "backbone"
    if not records.exists():
        runpy.run_path(str(EXAMPLES / "thyroid" / "prepare.py"))["prepare"](records)
    if not backbone.exists():
        config = PretrainingConfig(steps=5) if is_quick else PretrainingConfig()
        pretrain(draft.record_schema(), backbone, config=config)
    return Bench(draft, backbone, read_task(draft, records), folder / "unused")


def write_adapter(model: StudyModel, bench: Bench, directory: Path) -> None:
    """Exports a trained adapter; its card is of no audit."""
    draft = bench.draft
    card = ModelCard(
        study=draft.name, study_hash="00" * 32, backbone_hash=model.backbone_hash,
        sites=tuple(draft.participants.sites), rounds=draft.rounds.rounds, unit=draft.data.unit, mode="none",
        epsilon=None, delta=None, collusion=draft.privacy.collusion, audit="none: a benchmark",
    )  # fmt: skip
    export(model.adapted, bench.backbone, directory, card)


def judge_of_records(bench: Bench) -> Callable[[Path, Path], dict]:
    """Returns what measures an adapter on a backbone on all held-out records."""
    model = load_study_model(bench.draft, bench.backbone)
    tables = [model.examples(records) for records in bench.task.held_out.values()]

    def judge(backbone: Path, adapter: Path) -> dict:
        composed = compose(backbone, [adapter])
        outputs = []
        for table in tables:
            for ids in torch.from_numpy(table.ids).split(256):
                outputs.append(composed.classify(ids, composed.fixed(len(ids), [1.0]))[:, 0])
        logits, labels = torch.cat(outputs), np.concatenate([table.targets for table in tables])
        truth = torch.from_numpy(labels.astype(np.float32))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth)
        found = {"auc": auc(logits.numpy(), labels).value, "loss": float(loss), "records": len(labels)}
        return found | size_of(backbone)

    return judge


def size_of(backbone: Path) -> dict:
    """Counts the weights of a backbone."""
    load = loading.load if loading.reads_records(backbone) else loading.load_text
    return {"parameters": sum(weight.numel() for weight in load(backbone).model.parameters())}


def smaller_table(
    bench: Bench, adapter: Path, folder: Path, judge: Callable, times: float, seed: int, steps: int
) -> dict:
    """Makes backbone and adapter smaller, and judges both together."""
    small, carried = (folder / f"{name}-{times:g}-{seed}-{steps}" for name in ("small", "carried"))
    config = DistillingConfig(steps=steps, seed=seed)
    if not small.exists():
        compress(bench.backbone, small, times=times, config=config)
    if not carried.exists():
        carrying = DistillingConfig(steps=min(steps, _CARRYING["tables"]), seed=seed)
        carry(adapter, bench.backbone, small, carried, config=carrying)
    return judge(small, carried)


def scratch_table(bench: Bench, folder: Path, judge: Callable, times: float, seed: int, steps: int) -> dict:
    """Pretrains a backbone of that size on as many records, and trains a private study on it."""
    scratch, adapter = (folder / f"{name}-{times:g}-{seed}-{steps}" for name in ("scratch", "own"))
    if not scratch.exists():
        whole = loading.load(bench.backbone)
        model = fresh(whole, times, seed)
        config = PretrainingConfig(steps=steps, seed=seed)
        source = MixedRecords((whole.schema,), whole.schema, questions=config.questions, seed=seed)
        with one_thread():
            fit(model, source, config, lambda done, total: None)
            loading.save(model, whole.schema, *pooled_moments(model, source, config), scratch)
    own = Bench(bench.draft, scratch, bench.task, bench.results)
    write_adapter(train(own.draft, own, own.draft.participants.sites, seed), own, adapter)
    return judge(scratch, adapter)


def fresh(whole: loading.RecordBackbone | loading.TextBackbone, times: float, seed: int) -> torch.nn.Module:
    """Builds a model of random weights, as large as the one that is cut."""
    family, config = whole.family, whole.model.config
    sizes = planned(family, config, times)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return family.model_class()._from_config(resized(family, config, sizes, tuple(range(sizes.layers)))).float()


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs the block in one thread, as pretraining and distillation do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def text(folder: Path, results: Rows, times: Sequence[float], seeds: Sequence[int], steps: int, is_quick: bool) -> None:
    """Measures loss and right answers on public problems, and right answers on the hospitals' held-out patients."""
    bench = prepared(EXAMPLES / "derivations", folder, is_quick=is_quick)
    folder = bench.backbone.parent
    rows = public_rows(bench.draft, folder / "records" / "public.csv", bench.backbone)
    judged, problems = unseen(bench, 20 if is_quick else _PUBLIC_JUDGED)
    for seed in seeds:
        adapter = folder / f"adapter-{seed}"
        if not adapter.exists():
            bare = bench.draft.model_copy(update={"evaluation": None})
            write_adapter(train(bare, bench, bare.participants.sites, seed), bench, adapter)
        asked = asked_of_adapter(bench, adapter, folder / f"asked-{seed}.csv", is_quick)

        judge = judge_of_text(bench, judged, problems)
        run(results, WHOLE, 1.0, seed, partial(judge, bench.backbone, adapter))
        for at in times:
            make = partial(smaller_text, bench, adapter, folder, rows, asked, at, seed, steps)
            run(results, SMALLER, at, seed, partial(judged_after, judge, make), steps)
            make = partial(scratch_text, bench, rows, judged, problems, at, seed, steps)
            run(results, SCRATCH, at, seed, make, steps)


def judged_after(judge: Callable[[Path, Path], dict], make: Callable[[], tuple[Path, Path]]) -> dict:
    """Makes a backbone and an adapter, and judges both."""
    return judge(*make())


def judge_of_text(bench: Bench, judged: list[Row], problems: Sequence) -> Callable[[Path, Path], dict]:
    """Returns what measures a backbone on public problems, and with an adapter on held-out patients."""

    def judge(backbone: Path, adapter: Path) -> dict:
        model = loading.load_text(backbone).model
        found = {"loss": loss_of_words(model, once(judged, 1500)), **right_of(bench, model, problems, "right")}
        own = attached(loading.load_text(backbone).model, read(adapter), None).model
        return found | right_of(bench, own, patients(bench, len(problems[0])), "right_of_patients") | size_of(backbone)

    return judge


def unseen(bench: Bench, count: int) -> tuple[list[Row], Sequence]:
    """Draws public problems that no backbone was trained on."""
    sys.path.append(str(EXAMPLES / "derivations"))
    from chains import problems

    found = list(islice(problems(2, held_out=True), count))
    encoder = encoder_of(bench)
    columns = ([getattr(problem, name) for problem in found] for name in COLUMNS)
    ids, is_learned = encoder.encode(*columns)
    lengths = (ids > 0).sum(1)
    rows = [(row[:n].tolist(), mask[:n].tolist()) for row, mask, n in zip(ids, is_learned, lengths, strict=True)]
    return rows, (ids, is_learned)


def encoder_of(bench: Bench) -> FormulaEncoder:
    """Returns the study's own encoder."""
    draft: StudyDraft = bench.draft
    tokenizer = loading.load_text(bench.backbone).tokenizer
    return Formulas().reader(draft.data.terms, tokenizer, max_tokens=draft.data.max_tokens)


def patients(bench: Bench, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Encodes held-out patients of all hospitals."""
    records = bench.task.held_out.values()
    columns = [np.concatenate([each.columns[name] for each in records])[:most].tolist() for name in COLUMNS]
    return encoder_of(bench).encode(*columns)


def right_of(bench: Bench, model: torch.nn.Module, encoded: Sequence, name: str) -> dict:
    """Measures the share of right answers that a model writes."""
    encoder, (ids, is_learned) = encoder_of(bench), encoded
    texts = encoder.written(model, ids, is_learned)
    return {name: float(np.mean([encoder.is_right(*each) for each in zip(texts, ids, is_learned, strict=True)]))}


def asked_of_adapter(bench: Bench, adapter: Path, path: Path, is_quick: bool) -> list[Row]:
    """Lets the adapter answer questions that no held-out patient asks; keeps what a table of the study may hold."""
    sys.path.append(str(EXAMPLES / "derivations"))
    from chains import PROTOCOLS, by_protocol, is_held_out

    if not path.exists():
        every = itertools.product(sorted(PROTOCOLS), range(3, 121), range(1, 5))
        asked = [question for each in every if not is_held_out(question := by_protocol(*each).question)]
        questions = asked[: 40 if is_quick else None]
        encoder, model = encoder_of(bench), attached(loading.load_text(bench.backbone).model, read(adapter), None).model
        texts = encoder.written(model, *encoder.encode(questions, ["1=1"] * len(questions), ["1"] * len(questions)))
        columns = Formulas().columns(bench.draft.data.terms)
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(("patient_id", *(column.name for column in columns)))
            for number, (question, text) in enumerate(zip(questions, texts, strict=True)):
                lines, _, answer = text.rpartition("#")
                cells = (question, lines.removesuffix(";"), answer)
                if is_quick:  # nothing that was hardly trained writes derivations
                    cells = (question, "1=1", "1")
                if all(fits(column, cell) for column, cell in zip(columns, cells, strict=True)):
                    table.writerow((number, *cells))
    return public_rows(bench.draft, path, bench.backbone)


def fits(column: Column, cell: str) -> bool:
    """True if a study would read the cell."""
    return bool(cell) and not column.read(pa.array([cell])).misfit.any()


def smaller_text(
    bench: Bench, adapter: Path, folder: Path, rows: list[Row], asked: list[Row], times: float, seed: int, steps: int
) -> tuple[Path, Path]:
    """Makes backbone and adapter smaller."""
    small, carried = (folder / f"{name}-{times:g}-{seed}-{steps}" for name in ("small", "carried"))
    if not small.exists():
        compress(bench.backbone, small, times=times, rows=rows, config=DistillingConfig(steps=steps, seed=seed))
    if not carried.exists():
        carrying = DistillingConfig(steps=min(steps, _CARRYING["text"]), seed=seed)
        carry(adapter, bench.backbone, small, carried, rows=asked, config=carrying)
    return small, carried


def scratch_text(
    bench: Bench, rows: list[Row], judged: list[Row], problems: Sequence, times: float, seed: int, steps: int
) -> dict:
    """Trains a model of that size from random weights on the texts alone, and judges it."""
    whole = loading.load_text(bench.backbone)
    model = fresh(whole, times, seed)
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inputs.join(model, whole.model.model.structure_ids.reader, inputs.words_of(whole.tokenizer))
        config = DistillingConfig(steps=steps, of_text=1.0, seed=seed)
        lesson = Words(model, whole.model, rows, config)
        learn(lesson, model.parameters(), config, lambda done, total: None, routed=model)
    model.eval()
    counts = {"parameters": sum(weight.numel() for weight in model.parameters())}
    return {"loss": loss_of_words(model, once(judged, 1500)), **right_of(bench, model, problems, "right"), **counts}


def table(rows: Sequence[dict]) -> str:
    """Makes a Markdown table: mean over seeds of every figure, by arm, size and steps."""
    names = [name for name in ("auc", "loss", "right", "right_of_patients") if any(name in row for row in rows)]
    lines = ["| | parameters | steps | " + " | ".join(names) + " | runs |", "|---" * (len(names) + 4) + "|"]
    for kind in dict.fromkeys((row["arm"], row["times"], row["steps"]) for row in rows):
        own = [row for row in rows if (row["arm"], row["times"], row["steps"]) == kind]
        cells = [spread([row[name] for row in own if name in row]) for name in names]
        lines.append(f"| {kind[0]} | {own[0]['parameters']:,} | {kind[2]} | {' | '.join(cells)} | {len(own)} |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """A mean, and of several the standard deviation."""
    if not values:
        return ""
    mean = f"{statistics.fmean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.4f}"


def picture(folder: Path, path: Path) -> None:
    """Draws quality against size: AUC of tables, and the share of right answers of text, over those of the whole."""
    plot = Plot(width=760, height=360, left=56, right=190, top=28, bottom=44)
    drawn: dict[str, list[tuple[float, float]]] = {}
    for part, measure in (("tables", "auc"), ("text", "right")):
        every = [json.loads(line) for line in (folder / part / "results.jsonl").read_text().splitlines()]
        rows = [row for row in every if row["steps"] in (0, _STEPS[part])]  # who learned for longer is no other size
        (whole,) = {row["parameters"] for row in rows if row["arm"] == WHOLE}
        best = mean_of(rows, WHOLE, whole, measure)
        for arm in (SMALLER, SCRATCH):
            sizes = sorted({row["parameters"] for row in rows if row["arm"] == arm}, reverse=True)
            points = [(1.0, 1.0)] if arm == SMALLER else []
            drawn[f"{part}, {arm}"] = points + [(whole / n, mean_of(rows, arm, n, measure) / best) for n in sizes]
    largest = max(at for points in drawn.values() for at, _ in points)
    least = math.floor(10 * min(value for points in drawn.values() for _, value in points)) / 10
    x, y = linear(0, math.log(largest), *plot.x_range), linear(least, 1.0, *plot.y_range)
    sizes = [(at, f"{at:g}") for at in (1, 2, 3, 5, 10, 20) if at <= largest]
    plot.x_axis("times fewer parameters", lambda at: x(math.log(at)), sizes)
    ticks = [least + step * (1 - least) / 4 for step in range(5)]
    plot.y_axis("share of the whole backbone’s AUC, or right answers", y, [(tick, f"{tick:.2f}") for tick in ticks])
    for number, (name, points) in enumerate(drawn.items()):
        plot.curve(f"line kind-{number}", [(x(math.log(at)), y(value)) for at, value in points])
        for at, value in points:
            plot.dot(f"dot kind-{number}", x(math.log(at)), y(value))
        plot.name(f"name kind-{number}", y(points[-1][1]), name)
    story = ". ".join(
        f"{name}: " + ", ".join(f"{value:.3f} at {at:.1f} times" for at, value in points)
        for name, points in drawn.items()
    )
    drawing = str(plot.svg("compression", "Quality against size", story))
    path.write_text(drawing.replace("<title>", f"<style>{STYLE}</style><title>", 1) + "\n", encoding="utf-8")


def mean_of(rows: Sequence[dict], arm: str, parameters: int, measure: str) -> float:
    """Computes the mean over seeds of a figure of one arm at one size."""
    return statistics.fmean(row[measure] for row in rows if (row["arm"], row["parameters"]) == (arm, parameters))


def main() -> None:
    """Runs what the command line asks for, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("tables", "text", "picture"))
    parser.add_argument("path", type=Path, nargs="?", help="of the picture")
    parser.add_argument("--dir", type=Path, default=Path("bench-compression"))
    parser.add_argument("--times", type=float, nargs="+", default=[2, 5, 10])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--steps", type=int, help="that a smaller model learns for")
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args()
    if asked.part == "picture":
        return picture(asked.dir, asked.path or Path("compression.svg"))
    steps = _QUICK if asked.quick else asked.steps or _STEPS[asked.part]
    folder = asked.dir / (f"quick-{asked.part}" if asked.quick else asked.part)
    folder.mkdir(parents=True, exist_ok=True)
    results = Rows(folder / "results.jsonl")
    {"tables": tables, "text": text}[asked.part](folder, results, asked.times, asked.seeds, steps, asked.quick)
    print(table([json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]))


if __name__ == "__main__":
    main()
