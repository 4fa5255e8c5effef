"""Measures the effect of study.toml's options on quality: the thyroid study with one option changed at a time.

    python benchmarks/options.py [--rows WORD ...] [--seeds N] [--backbone DIR] [--json]

Runs are simulated in one process by `coordinator.comparison.federated.federate`, as in `quality.py`, and train on four
fifths of the training records. Each run is scored twice: on the other fifth, for choosing settings, and on the held-out
records. A row is the mean over N independent runs: noise and sampling come from the operating system.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from quality import SCALE_BITS, Bench, Table, epsilon, prepare_bench, split

from confide.client_node.study import StudyDraft
from confide.coordinator.comparison.federated import federate, logits, untrained
from confide.models.adapters import AdaptedModel
from confide.models.backbones.pretraining import PretrainingConfig, pretrain
from confide.models.evaluation.metrics import auc
from confide.models.heads import pooled
from confide.models.rounding import rounded_up
from confide.privacy.accounting import Mode

RULE = {"lr": None, "head_lr": None}  # rates left to the rule


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """The study with these terms instead of its own."""

    name: str
    privacy: dict[str, object] = field(default_factory=dict)
    optimizer: dict[str, object] = field(default_factory=dict)
    rounds: int = 40
    mode: Mode = "distributed"
    with_lora: bool = False
    is_pretrained: bool = True

    def draft(self, study: StudyDraft) -> StudyDraft:
        """The whole draft."""
        changes: dict[str, dict[str, object]] = {
            "privacy": {**self.privacy, "mode": self.mode},
            "optimizer": self.optimizer,
            "rounds": {"rounds": self.rounds},
            "adapter": {} if self.with_lora else {"targets": ()},
        }
        parts = {part: getattr(study, part).model_copy(update=terms) for part, terms in changes.items()}
        return study.model_copy(update=parts)


ADAPTIVE = {"clipping": "adaptive"}
AVERAGED = {"averaging": "ema", "ema_decay": 0.9}
ROWS = (
    Row(name="head: as the study says"),
    Row(name="head: rates by the rule", optimizer=RULE),
    Row(name="head: rates by the rule, averaged", optimizer={**RULE, **AVERAGED}),
    Row(name="head: as the study says, averaged", optimizer=AVERAGED),
    Row(name="head: rate 24, averaged", optimizer={"head_lr": 24.0, **AVERAGED}),
    Row(name="head: Adam, rates by the rule", optimizer={**RULE, "kind": "adam"}),
    Row(name="head: Adam, noise-corrected", optimizer={**RULE, "kind": "adam", "noise_correction": True}),
    Row(name="head: Adam, averaged", optimizer={**RULE, **AVERAGED, "kind": "adam"}),
    Row(name="head: adaptive clip from 1", privacy=ADAPTIVE),
    Row(name="head: adaptive clip from 1, quantile 0.9", privacy={**ADAPTIVE, "target_quantile": 0.9}),
    Row(name="head: clip 20", privacy={"clip_norm": 20.0}),
    Row(name="head: adaptive clip from 20", privacy={**ADAPTIVE, "clip_norm": 20.0, "clip_learning_rate": 0.5}),
    Row(name="head: local noise", mode="local"),
    Row(
        name="head: local noise, 4 local steps, 10 rounds",
        mode="local",
        rounds=10,
        privacy={"local_steps": 4},
        optimizer={"lr": 1.2, "head_lr": 40.0, "local_lr": 0.3},
    ),
    Row(name="head: backbone not pretrained", is_pretrained=False),
    Row(name="LoRA: as the study says", with_lora=True),
    Row(name="LoRA: rates by the rule", with_lora=True, optimizer=RULE),
    Row(name="LoRA: adaptive clip from 1", with_lora=True, privacy=ADAPTIVE),
    Row(name="LoRA: averaged", with_lora=True, optimizer=AVERAGED),
    Row(name="LoRA: Adam, rates by the rule", with_lora=True, optimizer={**RULE, "kind": "adam"}),
    Row(name="LoRA: backbone not pretrained", with_lora=True, is_pretrained=False),
)


def known_states(adapted: AdaptedModel, tables: Iterable[Table]) -> dict[bytes, torch.Tensor]:
    """The pooled state of every record: without adapters it never changes, so it need not be computed every round."""
    states = {}
    for ids in [table.ids for table in tables]:
        for part in np.array_split(ids, 1 + len(ids) // 1024):
            with torch.no_grad():
                found = pooled(adapted.model, torch.from_numpy(part))
            states.update((row[row > 0].tobytes(), state) for row, state in zip(part, found, strict=True))
    return states


def trained(bench: Bench, row: Row, draft: StudyDraft, seed: int, states: dict[bytes, torch.Tensor]) -> AdaptedModel:
    """The model after the rounds of `draft`; `states` are those of a frozen backbone, or none."""
    adapted = untrained(draft, bench.backbone)
    if states:

        def classify(ids: torch.Tensor) -> torch.Tensor:
            return adapted.head(torch.stack([states[row[row > 0].tobytes()] for row in ids.numpy()]))

        adapted.classify = classify
    sites = {name: (table.ids, table.labels, table.units) for name, table in bench.sites.items()}
    federate(draft, adapted, sites, mode=row.mode, scale_bits=SCALE_BITS, seed=seed)
    return adapted


def measure(bench: Bench, plain_backbone: Path, rows: tuple[Row, ...], seeds: int) -> Iterator[dict[str, object]]:
    """One result for each row."""
    bench, validation = split(bench)
    parts = {"validation": validation, "held_out": bench.held_out}
    known: dict[Path, dict[bytes, torch.Tensor]] = {}
    for row in rows:
        own = bench if row.is_pretrained else replace(bench, backbone=plain_backbone)
        draft, started = row.draft(bench.draft), time.perf_counter()
        start, states = untrained(draft, own.backbone), {}
        if not row.with_lora:
            if own.backbone not in known:
                known[own.backbone] = known_states(start, [*bench.sites.values(), *parts.values()])
            states = known[own.backbone]
        runs: dict[str, list[float]] = {part: [] for part in parts}
        for seed in range(seeds):
            adapted = trained(own, row, draft, seed, states)
            for part, table in parts.items():
                runs[part].append(auc(logits(adapted, table.ids), table.labels).value)
        yield {
            "row": row.name,
            **{part: float(np.mean(values)) for part, values in runs.items()},
            "runs": {part: [round(value, 4) for value in values] for part, values in runs.items()},
            "epsilon": epsilon(draft, row.mode, draft.state_dim(start.layout.dim)),
            "seconds": (time.perf_counter() - started) / seeds,
        }


def main() -> None:
    """Prints the table, or JSON, row by row as they come."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=[""], help="only rows with one of these words in their names")
    parser.add_argument("--seeds", type=int, default=3, help="runs a row")
    parser.add_argument("--backbone", type=Path, help="use this one instead of pretraining one")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = tuple(row for row in ROWS if any(word in row.name for word in options.rows))
    with tempfile.TemporaryDirectory() as folder:
        bench, _ = prepare_bench(Path(folder), None, options.backbone)
        plain = Path(folder) / "plain"
        if not all(row.is_pretrained for row in rows):  # its published moments are those of untrained states
            pretrain(bench.draft.record_schema(), plain, config=PretrainingConfig(steps=1, lr=1e-12))
        for found in measure(bench, plain, rows, options.seeds):
            if options.json:
                print(json.dumps(found), flush=True)
                continue
            both = " | ".join(f"{found[part]:.4f} ({found['runs'][part]})" for part in ("validation", "held_out"))
            print(f"| {found['row']:44} | {both} | {rounded_up(found['epsilon'])} |", flush=True)


if __name__ == "__main__":
    main()
