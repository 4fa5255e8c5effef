"""Measures what one private study of three tasks is worth beside three studies of one task each that share its budget.

    python benchmarks/outlook.py [--seeds 0 1 2 3 4] [--dir outlook] [--adapters]
    python benchmarks/outlook.py --quick               # does it run? An untrained backbone, two rounds, few records

The example is examples/outlook. The three studies are private together: their noise is solved so that all of their
rounds cost what the one study's cost. A rate is chosen for each arm by itself, by its loss on a quarter of the persons
in training, with noise as in the arm. Figures: docs/tasks.md.
"""

import argparse
import dataclasses
import hashlib
import itertools
import json
import runpy
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from federated_arms import changed, keep_first, spread
from rows import Rows
from utility import make_backbone

from confide.client_node.study import StudyDraft, load_draft
from confide.client_node.study.cost import releases_of_draft, ring_of, solve_noise
from confide.client_node.training.study_model import StudyModel, load_study_model
from confide.coordinator.comparison.federated import Ready, federate, made_ready
from confide.coordinator.comparison.task import Task, read_task
from confide.models.records.kind import Examples
from confide.privacy.accounting import epsilon_pld

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "outlook"
JOINT = "one study of three tasks"
SHARED, WHOLE = "three studies that share the budget", "three studies with the whole budget each"
RATES = (0.3, 1.0, 3.0, 10.0)  # of the head
CHOOSING = 3  # runs by whose mean loss a rate is chosen
METRICS = {"cost": "accuracy_cost", "visits": "accuracy_visits", "stay": "auc_stay"}


def of_tasks(draft: StudyDraft, names: Sequence[str]) -> StudyDraft:
    """The study with some of its tasks."""
    tasks = {name: task for name, task in draft.data.tasks.items() if name in names}
    return changed(draft, "data", tasks=tasks)


def with_noise_for(draft: StudyDraft, runs: int, epsilon: float, dim: int) -> StudyDraft:
    """The study with the noise at which so many runs of it cost this epsilon together."""
    longer = changed(draft, "rounds", rounds=runs * draft.rounds.rounds)
    longer = changed(longer, "privacy", target_epsilon=epsilon, noise_multiplier=0.0)
    return changed(draft, "privacy", noise_multiplier=solve_noise(longer, dim).privacy.noise_multiplier)


def cost_of(draft: StudyDraft, dim: int, runs: int) -> float:
    """Epsilon of so many runs, by PLD."""
    longer = changed(draft, "rounds", rounds=runs * draft.rounds.rounds)
    return epsilon_pld(releases_of_draft(longer, dim), draft.privacy.delta, draft.privacy.collusion)


@dataclasses.dataclass(slots=True)
class Bench:
    """Things that all runs share."""

    draft: StudyDraft  # without an evaluation
    backbone: Path
    task: Task
    rows: Rows

    _models: dict[object, StudyModel] = dataclasses.field(default_factory=dict)
    _ready: dict[object, Ready] = dataclasses.field(default_factory=dict)

    def train(self, draft: StudyDraft, seed: int, kept: Mapping[str, np.ndarray] | None = None) -> StudyModel:
        """Trains a study's rounds, on the records that are kept or on all."""
        model, arrays = self._model(draft), {}
        for site, records in self.task.train.items():
            found = model.examples(records)
            rows = slice(None) if kept is None else kept[site]
            arrays[site] = found.ids[rows], found.targets[rows], found.units[rows]
        mode, adapted = draft.privacy.mode, model.adapted
        key = draft.adapter.targets, tuple(draft.data.tasks), mode, kept is None
        if key not in self._ready:  # what no trained number moves is computed once
            self._ready[key] = made_ready(draft, adapted, arrays, mode=mode)
        bits = ring_of(draft, adapted.layout.dim).scale_bits
        adapted.load_state(np.zeros(adapted.layout.dim))
        federate(draft, adapted, arrays, mode=mode, scale_bits=bits, seed=seed, ready=self._ready[key])
        return model

    def _model(self, draft: StudyDraft) -> StudyModel:
        key = draft.adapter.targets, tuple(draft.data.tasks)
        if key not in self._models:
            self._models[key] = load_study_model(draft, self.backbone)
        return self._models[key]

    def rate(self, arm: str, draft: StudyDraft, rates: Sequence[float]) -> float:
        """Chooses a study's rate by the mean loss on persons in training who are left out."""
        kept = {site: _is_kept(records.units, site) for site, records in self.task.train.items()}
        found = []
        for rate, seed in itertools.product(rates, range(CHOOSING)):
            key = {"arm": f"{arm}, rate {rate:g}", "seed": seed}
            if not self.rows.of(key):
                started = time.perf_counter()
                model = self.train(changed(draft, "optimizer", head_lr=rate, lr=0.1 * rate), seed, kept)
                loss = self._loss(model, {site: ~rows for site, rows in kept.items()})
                self.rows.add(key | {"loss": loss, "seconds": round(time.perf_counter() - started)}, f"{loss:.4f}")
            found.append((rate, self.rows.of(key)[0]["loss"]))
        return min(rates, key=lambda rate: statistics.mean(loss for each, loss in found if each == rate))

    @torch.no_grad()
    def _loss(self, model: StudyModel, chosen: Mapping[str, np.ndarray]) -> float:
        losses = []
        for site, records in self.task.train.items():
            found = model.examples(records)
            ids, targets = (torch.from_numpy(part[chosen[site]]) for part in (found.ids, found.targets))
            parts = zip(ids.split(512), targets.split(512), strict=True)
            losses += [model.adapted.losses(*part) for part in parts]
        return torch.cat(losses).mean().item()

    def judge(self, model: StudyModel) -> dict[str, float]:
        """Measures the tasks of a model on the held-out records of all sites."""
        tables: list[Examples] = [model.examples(records) for records in self.task.held_out.values()]
        found = model.evaluate(tables)
        return {task: found[metric]["value"] for task, metric in METRICS.items() if metric in found}


def _is_kept(units: np.ndarray, site: str) -> np.ndarray:
    """[rows], about three units in four, with all of their records."""
    kept = [hashlib.sha256(f"{site} {unit}".encode()).digest()[0] >= 64 for unit in range(int(units.max()) + 1)]
    return np.array(kept)[units]


def measure(bench: Bench, part: str, seeds: Sequence[int], rates: Sequence[float]) -> None:
    """Trains and judges all arms of a part, "head alone" or "adapters", that no row is there of."""
    draft = bench.draft if part == "adapters" else changed(bench.draft, "adapter", targets=())
    names = tuple(draft.data.tasks)
    dims = {names: load_study_model(draft, bench.backbone).adapted.layout.dim}
    dims |= {(name,): load_study_model(of_tasks(draft, (name,)), bench.backbone).adapted.layout.dim for name in names}
    epsilon = cost_of(draft, dims[names], 1)
    arms = {(JOINT, names): draft}
    for name in names:
        own = of_tasks(draft, (name,))
        arms[SHARED, (name,)] = with_noise_for(own, len(names), epsilon, dims[name,])
        arms[WHOLE, (name,)] = own
    quiet = {"mode": "none", "noise_multiplier": 0.0, "delta": 0.0}
    for name in (names, *((name,) for name in names)):
        what = JOINT if name == names else "three studies"
        arms[f"{what}, no privacy", name] = changed(of_tasks(draft, name), "privacy", **quiet)
    for (arm, tasks), own in arms.items():
        key = f"{part}: {arm}: {', '.join(tasks)}"
        rate = bench.rate(key, own, rates)
        runs = len(names) if arm in (SHARED, WHOLE) else 1
        spent = None if own.privacy.mode == "none" else cost_of(own, dims[tasks], runs)
        for seed in seeds:
            if bench.rows.of({"arm": key, "seed": seed}):
                continue
            started = time.perf_counter()
            model = bench.train(changed(own, "optimizer", head_lr=rate, lr=0.1 * rate), seed)
            row = {"arm": key, "seed": seed, "part": part, "what": arm, "rate": rate, "epsilon": spent}
            row |= {"found": bench.judge(model), "seconds": round(time.perf_counter() - started)}
            bench.rows.add(row, json.dumps(row["found"]))


def table(rows: Sequence[dict]) -> str:
    """A line for each part and arm: means over seeds, half of Student's 95 % interval behind them."""
    lines = [f"| | epsilon of all | {' | '.join(METRICS)} |", "|---|---|" + "---|" * len(METRICS)]
    for part, what in dict.fromkeys((row["part"], row["what"]) for row in rows):
        own = [row for row in rows if (row["part"], row["what"]) == (part, what)]
        cells = []
        for task in METRICS:
            values = [row["found"][task] for row in own if task in row["found"]]
            cells.append(f"{statistics.mean(values):.3f} ± {spread(values):.3f}")
        spent = own[0]["epsilon"]
        lines.append(f"| {part}, {what} | {'none' if spent is None else f'{spent:.2f}'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Prepares the example, measures its arms and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--dir", type=Path, default=Path("outlook"))
    parser.add_argument("--adapters", action="store_true", help="adapters on attention too, not the head alone")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    draft = load_draft(EXAMPLE / "study.toml").model_copy(update={"evaluation": None})
    folder, rates = (args.dir / "quick", RATES[:1]) if args.quick else (args.dir, RATES)
    records, backbone = folder / "records", folder / "backbone"
    if not records.exists():
        runpy.run_path(str(EXAMPLE / "prepare.py"))["prepare"](records)
        for path in records.rglob("*.csv") if args.quick else ():
            keep_first(path, 60)
    if args.quick:
        draft, args.seeds = changed(draft, "rounds", rounds=2), [0]
    if not backbone.exists():
        make_backbone(draft, backbone, is_quick=args.quick)
    bench = Bench(draft, backbone, read_task(draft, records), Rows(folder / "results.jsonl"))
    parts = ["head alone", *(["adapters"] if args.adapters else [])]
    for part in parts:
        measure(bench, part, args.seeds, rates)
    found = [row for row in bench.rows.of({}) if row["seed"] in args.seeds and row.get("part") in parts]
    print(table(found))


if __name__ == "__main__":
    sys.exit(main())
