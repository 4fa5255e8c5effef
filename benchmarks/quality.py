"""What privacy costs in quality: the thyroid study, simulated in one process with the functions that the sites run.

    python benchmarks/quality.py [--rounds N] [--seeds 1 2] [--backbone DIR] [--json]

The rounds are those of `coordinator.references.federate`. A row is the mean over the seeds. Seeds fix the rows without
noise and nothing else: noise and sampling under privacy come from the operating system, so that such a row is a mean
over as many independent runs.
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

from confide.client_node.draft import StudyDraft, load_draft
from confide.coordinator.references import WORDS_LR, federate, logits, noise_of, private_linear, untrained, word_inputs
from confide.models import backbone as backbones
from confide.models.evaluation import auc
from confide.models.pretraining import pretrain
from confide.models.schema import RecordSchema
from confide.privacy.accounting import Mode, Release, epsilon_pld

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "thyroid"
SCALE_BITS = 24


@dataclass(frozen=True, slots=True)
class Table:
    """One part of one or more sites' records."""

    frame: pd.DataFrame
    ids: np.ndarray  # int64 [rows, length]
    labels: np.ndarray  # int64 [rows]


@dataclass(frozen=True, slots=True)
class Bench:
    """All that a row needs."""

    draft: StudyDraft
    backbone: Path
    sites: dict[str, Table]  # training parts
    held_out: Table  # of all sites together


def read_table(paths: Iterable[Path], draft: StudyDraft, schema: RecordSchema) -> Table:
    """The rows of CSV files as `prepare` writes them."""
    frame = pd.concat([pd.read_csv(path, dtype={"sex": object}) for path in paths], ignore_index=True)
    for flag in draft.data.flags:
        frame[flag] = frame[flag] == "t"
    ids = schema.encode(schema.render({name: frame[name].to_numpy() for name in draft.data.fields()}))
    return Table(frame, ids, frame[draft.data.label].to_numpy())


def federated(bench: Bench, draft: StudyDraft, *, mode: Mode, seed: int) -> np.ndarray:
    """The held-out records' logits after the rounds of `draft` in `mode`."""
    adapted = untrained(draft, bench.backbone)
    sites = {name: (table.ids, table.labels, np.arange(len(table.labels))) for name, table in bench.sites.items()}
    federate(draft, adapted, sites, mode=mode, scale_bits=SCALE_BITS, seed=seed)
    return logits(adapted, bench.held_out.ids)


def epsilon(draft: StudyDraft, mode: Mode, dim: int) -> float:
    """Spent on any one patient after all rounds, with the study's number of colluding sites."""
    release = Release(
        mode=mode,
        site_noise_int=noise_of(draft, mode, SCALE_BITS),
        scale_bits=SCALE_BITS,
        clip_norm=draft.privacy.sensitivity,
        dim=dim,
        sample_rate=draft.privacy.sample_rate,
        sites=len(draft.participants.sites),
        steps=draft.privacy.local_steps,
    )
    return epsilon_pld([release] * draft.rounds.rounds, draft.privacy.delta, draft.privacy.collusion)


def private_logistic_regression(bench: Bench) -> np.ndarray:
    """The control: the same rounds, noise and momentum on a linear model of the words, without any backbone."""
    inputs, labels, held_out = words_of(bench)
    rng = np.random.default_rng()
    return private_linear(bench.draft, inputs, labels, held_out, lr=WORDS_LR, scale_bits=SCALE_BITS, rng=rng)


def logistic_regression(bench: Bench) -> np.ndarray:
    """All training records in one place, no privacy."""
    inputs, labels, held_out = words_of(bench)
    model = LogisticRegression(max_iter=5000).fit(np.concatenate(inputs) > 0, np.concatenate(labels))
    return model.decision_function(held_out > 0)


def words_of(bench: Bench) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Words and labels of every site's training records, and the words of the held-out ones."""
    tables = bench.sites.values()
    inputs = [word_inputs(bench.draft, table.ids) for table in tables]
    return inputs, [table.labels for table in tables], word_inputs(bench.draft, bench.held_out.ids)


def boosted_trees(bench: Bench) -> np.ndarray:
    """All training records in one place, raw numbers, no privacy: about what these columns hold."""
    data = bench.draft.data
    columns = [*data.numeric, *data.flags]
    train = pd.concat([table.frame for table in bench.sites.values()])
    model = HistGradientBoostingClassifier(random_state=0)
    model.fit(train[columns].astype(float), train[data.label])
    return model.decision_function(bench.held_out.frame[columns].astype(float))


def measure(name: str, run: Callable[[int], np.ndarray], bench: Bench, seeds: list[int], cost: float | None) -> dict:
    """One row of the table."""
    values, started = [], time.perf_counter()
    for seed in seeds:
        values.append(auc(run(seed), bench.held_out.labels))
        print(f"{name}: seed {seed}: {values[-1].value:.4f}", file=sys.stderr, flush=True)
    return {
        "row": name,
        "auc": float(np.mean([value.value for value in values])),
        "runs": [round(value.value, 4) for value in values],
        "interval_of_first": [round(values[0].low, 4), round(values[0].high, 4)],
        "epsilon": cost,  # None: no bound
        "seconds": (time.perf_counter() - started) / len(seeds),
    }


def all_rows(bench: Bench, seeds: list[int]) -> tuple[list[dict], int]:
    """The table, top to bottom, and how many numbers head and LoRA have."""
    head_alone = _with(bench.draft, "adapter", targets=())
    adapted = untrained(bench.draft, bench.backbone)
    before = logits(adapted, bench.held_out.ids)
    dim, head_dim = adapted.layout.dim, len(adapted.head.weight)
    distributed, local = (epsilon(bench.draft, mode, dim) for mode in ("distributed", "local"))
    head_only = epsilon(bench.draft, "distributed", head_dim)

    def row(name: str, run: Callable[[int], np.ndarray], cost: float | None, *, repeats: bool = True) -> dict:
        return measure(name, run, bench, seeds if repeats else seeds[:1], cost)

    def study(mode: Mode, draft: StudyDraft = bench.draft) -> Callable[[int], np.ndarray]:
        return lambda seed: federated(bench, draft, mode=mode, seed=seed)

    rows = [
        row("before training", lambda seed: before, 0.0, repeats=False),
        row("head + LoRA, no noise", study("none"), None),
        row("head + LoRA, distributed noise", study("distributed"), distributed),
        row("head + LoRA, local noise", study("local"), local),
        row("head alone, no noise", study("none", head_alone), None),
        row("head alone, distributed noise", study("distributed", head_alone), head_only),
        row("logistic regression on words, same noise", lambda seed: private_logistic_regression(bench), head_only),
        row("logistic regression on words, pooled", lambda seed: logistic_regression(bench), None, repeats=False),
        row("boosted trees on raw columns, pooled", lambda seed: boosted_trees(bench), None, repeats=False),
    ]
    return rows, dim


def _with(draft: StudyDraft, part: str, **terms: object) -> StudyDraft:
    return draft.model_copy(update={part: getattr(draft, part).model_copy(update=terms)})


def prepare_bench(folder: Path, rounds: int | None, backbone: Path | None) -> tuple[Bench, float | None]:
    """The bench, and the seconds that pretraining took if it was needed."""
    sys.path.insert(0, str(EXAMPLE))
    from prepare import prepare

    draft = load_draft(EXAMPLE / "study.toml")
    if rounds is not None:
        draft = _with(draft, "rounds", rounds=rounds)
    schema = draft.record_schema()
    parts = prepare(folder / "data")
    seconds = None
    if backbone is None:
        backbone, started = folder / "backbone", time.perf_counter()
        pretrain(schema, backbone)
        seconds = time.perf_counter() - started
    sites = {site: read_table([Path(part["train"])], draft, schema) for site, part in parts.items()}
    held_out = read_table([Path(part["heldout"]) for part in parts.values()], draft, schema)
    return Bench(draft, backbone, sites, held_out), seconds


def main() -> None:
    """Prints the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="instead of the study's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2], help="one run a seed and row")
    parser.add_argument("--backbone", type=Path, help="use this one instead of pretraining one")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench, pretraining_s = prepare_bench(Path(folder), options.rounds, options.backbone)
        model = backbones.load(bench.backbone).model
        facts = {
            "machine": platform.platform(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "rounds": bench.draft.rounds.rounds,
            "delta": bench.draft.privacy.delta,
            "colluding": bench.draft.privacy.collusion,
            "records": {site: len(table.labels) for site, table in bench.sites.items()},
            "held_out": len(bench.held_out.labels),
            "backbone_parameters": sum(p.numel() for p in model.parameters()),
            "pretraining_seconds": pretraining_s,
        }
        rows, trained = all_rows(bench, options.seeds)
        facts["trained_parameters"] = trained
    if options.json:
        print(json.dumps({**facts, "rows": rows}, indent=2))
        return
    print(json.dumps(facts))
    print(f"\n| {'trained':40} | AUC    | epsilon  | s a run |\n|{'-' * 42}|--------|----------|---------|")
    for row in rows:
        spent = "no bound" if row["epsilon"] is None else f"{row['epsilon']:.3f}"
        print(f"| {row['row']:40} | {row['auc']:.4f} | {spent:>8} | {row['seconds']:7.1f} |")


if __name__ == "__main__":
    main()
