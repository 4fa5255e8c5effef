"""What privacy costs in quality: the thyroid study, simulated in one process with the functions that the sites run.

    python benchmarks/quality.py [--rounds N] [--seeds 1 2] [--backbone DIR] [--json]

Every site step is `privacy.steps.private_release`, every server step `coordinator.optimizer.ServerOptimizer`; only
the network and the secret sharing, which add integers exactly, are left out. A row is the mean over the seeds. Seeds
fix the rows without noise and nothing else: noise and sampling under privacy come from the operating system, so that
such a row is a mean over as many independent runs.
"""

import argparse
import json
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

from confide.client_node.draft import StudyDraft, load_draft
from confide.coordinator.optimizer import ServerOptimizer
from confide.models import backbone as backbones
from confide.models.adapters import AdaptedModel, AdapterConfig, attach
from confide.models.evaluation import auc
from confide.models.head import PooledHead, classify
from confide.models.pretraining import pretrain
from confide.models.schema import RecordSchema
from confide.privacy.accounting import Mode, Release, epsilon_pld, site_noise
from confide.privacy.sampling import SeededBytes
from confide.privacy.steps import ReleaseTerms, private_release

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "thyroid"
SCALE_BITS = 24
ROWS_AT_ONCE = 256


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


def federate(
    bench: Bench, *, mode: Mode, seed: int, targets: tuple[str, ...] | None = None
) -> tuple[np.ndarray, AdaptedModel]:
    """Runs the study in `mode`; returns the held-out records' logits and the trained model."""
    draft, privacy = bench.draft, bench.draft.privacy
    loaded = backbones.load(bench.backbone)
    settings = draft.adapter_config() | ({} if targets is None else {"targets": targets})
    adapted = attach(loaded.model, AdapterConfig(**settings), head=PooledHead(loaded.center, loaded.whiten))
    terms = ReleaseTerms(
        mode=mode,
        clip_norm=privacy.clip_norm,
        sample_rate=privacy.sample_rate,
        site_noise_int=noise_of(draft, mode),
        scale_bits=SCALE_BITS,
        max_rows_per_batch=ROWS_AT_ONCE,
        max_records_per_unit=draft.data.max_records_per_unit,
    )
    optimizer = ServerOptimizer(**draft.optimizer.model_dump())
    state, velocity = adapted.state(), np.zeros(adapted.layout.dim, dtype=np.float32)
    for round_number in range(draft.rounds.rounds):
        total = np.zeros(adapted.layout.dim, dtype=np.int64)
        for name, table in bench.sites.items():
            source = SeededBytes(f"{seed}/{round_number}/{name}".encode()) if mode == "none" else os.urandom
            units = np.arange(len(table.labels))
            total += private_release(adapted, table.ids, table.labels, units, terms=terms, source=source)
        mean_update = total / 2.0**SCALE_BITS / (draft.rounds.batch_units * privacy.clip_norm)
        state, velocity = optimizer.step(state, velocity, mean_update, adapted.layout.head_slice)
        adapted.load_state(state)
    return scores(adapted, bench.held_out), adapted


@torch.no_grad()
def scores(adapted: AdaptedModel, table: Table) -> np.ndarray:
    """Logits of the records."""
    return torch.cat([classify(adapted, part) for part in torch.from_numpy(table.ids).split(1024)]).numpy()


def noise_of(draft: StudyDraft, mode: Mode) -> int:
    """One site's noise in ring units."""
    privacy = draft.privacy
    return site_noise(
        privacy.noise_multiplier,
        privacy.clip_norm,
        len(draft.participants.sites),
        privacy.max_dropouts,
        privacy.collusion,
        SCALE_BITS,
        mode,
    )


def epsilon(draft: StudyDraft, mode: Mode, dim: int) -> float:
    """Spent on any one patient after all rounds, with the study's number of colluding sites."""
    release = Release(
        mode=mode,
        site_noise_int=noise_of(draft, mode),
        scale_bits=SCALE_BITS,
        clip_norm=draft.privacy.clip_norm,
        dim=dim,
        sample_rate=draft.privacy.sample_rate,
        sites=len(draft.participants.sites),
    )
    return epsilon_pld([release] * draft.rounds.rounds, draft.privacy.delta, draft.privacy.collusion)


def words_of(bench: Bench) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bags of words of all training records and of the held-out ones, and the training labels."""
    size = len(bench.draft.data.record_schema().words())

    def bag(ids: np.ndarray) -> np.ndarray:
        out = np.zeros((len(ids), size))
        np.put_along_axis(out, ids, 1.0, axis=1)
        out[:, 0] = 1.0  # padding's place serves as the constant
        return out

    train = np.concatenate([bag(table.ids) for table in bench.sites.values()])
    return train, bag(bench.held_out.ids), np.concatenate([table.labels for table in bench.sites.values()])


def private_logistic_regression(bench: Bench) -> np.ndarray:
    """The control: the same rounds, noise and momentum on a linear model of the words, without any backbone."""
    draft, privacy = bench.draft, bench.draft.privacy
    train, held_out, labels = words_of(bench)
    train, held_out = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, held_out))
    rng = np.random.default_rng()
    noise_std = math.sqrt(len(bench.sites)) * noise_of(draft, "distributed") / 2.0**SCALE_BITS
    optimizer = ServerOptimizer(**draft.optimizer.model_dump())
    weight = velocity = np.zeros(train.shape[1], dtype=np.float32)
    for _ in range(draft.rounds.rounds):
        x_BW = train[drawn := rng.random(len(train)) < privacy.sample_rate]
        error_B = 1 / (1 + np.exp(-x_BW @ weight)) - labels[drawn]  # below 1, and rows have length 1: nothing to clip
        total = error_B @ x_BW + rng.normal(size=len(weight)) * noise_std
        mean_update = total / (draft.rounds.batch_units * privacy.clip_norm)
        weight, velocity = optimizer.step(weight, velocity, mean_update, slice(0, len(weight)))
    return held_out @ weight


def logistic_regression(bench: Bench) -> np.ndarray:
    """All training records in one place, no privacy."""
    train, held_out, labels = words_of(bench)
    return LogisticRegression(max_iter=5000).fit(train, labels).decision_function(held_out)


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
    before, adapted = federate(replace(bench, draft=_with_rounds(bench.draft, 0)), mode="none", seed=0)
    dim, head_dim = adapted.layout.dim, len(adapted.head.weight)
    distributed, local = (epsilon(bench.draft, mode, dim) for mode in ("distributed", "local"))
    head_only = epsilon(bench.draft, "distributed", head_dim)

    def row(name: str, run: Callable[[int], np.ndarray], cost: float | None, *, repeats: bool = True) -> dict:
        return measure(name, run, bench, seeds if repeats else seeds[:1], cost)

    def federated(mode: Mode, targets: tuple[str, ...] | None = None) -> Callable[[int], np.ndarray]:
        return lambda seed: federate(bench, mode=mode, seed=seed, targets=targets)[0]

    rows = [
        row("before training", lambda seed: before, 0.0, repeats=False),
        row("head + LoRA, no noise", federated("none"), None),
        row("head + LoRA, distributed noise", federated("distributed"), distributed),
        row("head + LoRA, local noise", federated("local"), local),
        row("head alone, no noise", federated("none", ()), None),
        row("head alone, distributed noise", federated("distributed", ()), head_only),
        row("logistic regression on words, same noise", lambda seed: private_logistic_regression(bench), head_only),
        row("logistic regression on words, pooled", lambda seed: logistic_regression(bench), None, repeats=False),
        row("boosted trees on raw columns, pooled", lambda seed: boosted_trees(bench), None, repeats=False),
    ]
    return rows, dim


def _with_rounds(draft: StudyDraft, rounds: int) -> StudyDraft:
    return draft.model_copy(update={"rounds": draft.rounds.model_copy(update={"rounds": rounds})})


def prepare_bench(folder: Path, rounds: int | None, backbone: Path | None) -> tuple[Bench, float | None]:
    """The bench, and the seconds that pretraining took if it was needed."""
    sys.path.insert(0, str(EXAMPLE))
    from prepare import prepare

    draft = load_draft(EXAMPLE / "study.toml")
    if rounds is not None:
        draft = _with_rounds(draft, rounds)
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
