"""Measures what adapters on each part of a backbone earn under the study's own noise, over a head alone.

    python benchmarks/targets.py [--example NAME] [--backbone DIR] [--runs 4] [--rows WORD ...] [--no-noise] [--json]

An example's study in one process, with everything as in its study.toml but the targets: sampling, clip, noise, rates
and rounds are the same, and so is epsilon. Noise and sampling are the operating system's, so every run is independent
of every other, and AUC is on the same held-out records. The interval of a row is Student's for the mean over its runs,
that of a gain Welch's; both are over sampling and noise, not over records. With --no-noise the rows are trained without
privacy, one run each with equal draws: what the adapters could earn if nothing had to be paid.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from quality import Bench, federated, head_inputs_of, linear, prepare_bench
from scipy import stats

from confide.client_node.study import StudyDraft
from confide.coordinator.comparison.federated import untrained
from confide.coordinator.studies.learning_rates import with_rates
from confide.models.evaluation.metrics import auc

ATTENTION = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
ROWS = {
    "head alone": (),
    "head + attention": ATTENTION,
    "head + routed experts": ("experts",),
    "head + attention + routed experts": (*ATTENTION, "experts"),
    "head + all parts": (*ATTENTION, "gate_proj", "up_proj", "down_proj", "experts"),
}
HEADS_A_RUN = 5  # a head alone takes a second


def with_targets(draft: StudyDraft, targets: tuple[str, ...]) -> StudyDraft:
    """The study with adapters on these modules."""
    return draft.model_copy(update={"adapter": draft.adapter.model_copy(update={"targets": targets})})


def with_mode(draft: StudyDraft, mode: str) -> StudyDraft:
    """The study with noise of another kind."""
    return draft.model_copy(update={"privacy": draft.privacy.model_copy(update={"mode": mode})})


def run_of(bench: Bench, draft: StudyDraft, *, is_private: bool) -> Callable[[int], np.ndarray]:
    """A function of a seed: the held-out records' scores after one run."""
    mode = "distributed" if is_private else "none"
    if draft.adapter.targets:
        return lambda seed: federated(bench, draft, mode=mode, seed=seed)
    inputs, held_out = head_inputs_of(bench)
    quiet = with_mode(bench.draft, mode)
    return lambda seed: linear(bench, quiet, inputs, held_out, lr=with_rates(quiet, 0).optimizer.rates[1])


def measure(bench: Bench, name: str, draft: StudyDraft, runs: int, *, is_private: bool) -> dict:
    """One row: its runs, their mean and its interval."""
    run, started, values = run_of(bench, draft, is_private=is_private), time.perf_counter(), []
    for seed in range(runs if draft.adapter.targets else runs * HEADS_A_RUN):
        values.append(auc(run(seed), bench.held_out.labels).value)
        print(f"{name}: {values[-1]:.4f}", file=sys.stderr, flush=True)
    return {
        "row": name,
        "trained": untrained(draft, bench.backbone).layout.dim,
        "auc": float(np.mean(values)),
        "interval": list(interval(values)) if len(values) > 1 else None,
        "runs": [round(value, 4) for value in values],
        "seconds": (time.perf_counter() - started) / len(values),
    }


def interval(values: list[float]) -> tuple[float, float]:
    """95 % interval of the mean."""
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    return float(low), float(high)


def gain(of: dict, over: dict) -> dict:
    """Computes the lead of one row over another; with a 95 % interval by Welch's t if both have several runs."""
    found = {"gain": of["auc"] - over["auc"], "of": of["row"], "over": over["row"], "interval": None}
    if len(of["runs"]) > 1 < len(over["runs"]):
        test = stats.ttest_ind(of["runs"], over["runs"], equal_var=False).confidence_interval(0.95)
        found["interval"] = [float(test.low), float(test.high)]
    return found


def gains(rows: dict[str, dict]) -> list[dict]:
    """Of each row over the head alone, and of the routed experts over attention."""
    names = [(name, "head alone") for name in ROWS if name != "head alone"]
    names.append(("head + attention + routed experts", "head + attention"))
    return [gain(rows[of], rows[over]) for of, over in names if of in rows and over in rows]


def main() -> None:
    """Prints the rows as they come, then the gains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--example", default="thyroid")
    parser.add_argument("--backbone", type=Path, help="use this one instead of pretraining one")
    parser.add_argument("--runs", type=int, default=4, help=f"of every row; {HEADS_A_RUN} times as many of the head")
    parser.add_argument("--rows", nargs="+", default=[""], help="only rows with one of these words in their names")
    parser.add_argument("--no-noise", action="store_true", help="without privacy, one run a row")
    parser.add_argument("--json", action="store_true", help="one object a line")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        bench, _ = prepare_bench(Path(folder), None, options.backbone, options.example)
        rows: dict[str, dict] = {}
        for name, targets in ROWS.items():
            if any(word in name for word in options.rows):
                draft, runs = with_targets(bench.draft, targets), 1 if options.no_noise else options.runs
                rows[name] = measure(bench, name, draft, runs, is_private=not options.no_noise)
                print(json.dumps(rows[name]) if options.json else line(rows[name]), flush=True)
    for found in gains(rows):
        print(json.dumps(found) if options.json else gain_line(found))


def line(row: dict) -> str:
    """A row for people."""
    spread = f" [{row['interval'][0]:.4f}, {row['interval'][1]:.4f}]" if row["interval"] else ""
    return f"{row['row']:36} {row['trained']:6} trained  AUC {row['auc']:.4f}{spread}  {row['seconds']:.0f} s a run"


def gain_line(found: dict) -> str:
    """A gain for people."""
    spread = f" [{found['interval'][0]:+.4f}, {found['interval'][1]:+.4f}]" if found["interval"] else ""
    return f"{found['of']} over {found['over']}: {found['gain']:+.4f}{spread}"


if __name__ == "__main__":
    main()
