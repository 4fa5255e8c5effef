"""Measures one private study of a class and a text beside two studies of one each that share its budget.

    python benchmarks/headings.py [--seeds 0 1 2] [--dir headings]
    python benchmarks/headings.py --quick              # does it run? Two rounds, few records

Records are those of examples/chapters, short diagnosis texts. The class is a text's chapter, one of twenty; the text
to write is the heading of its category in ICD-10-CM, as that of A00.1 is Cholera. No category that is asked for was
trained on. The two studies are private together: their noise is solved so that both cost what the one costs. Rates are
those of examples/chapters for the head and of examples/diagnoses for adapters; none was chosen here. Figures:
docs/tasks.md.
"""

import argparse
import csv
import json
import runpy
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from federated_arms import changed, keep_first, spread
from outlook import cost_of, with_noise_for
from rows import Rows
from utility import make_backbone

from confide.client_node.study import StudyDraft, load_draft
from confide.client_node.study.cost import ring_of
from confide.client_node.training.study_model import StudyModel, load_study_model
from confide.coordinator.comparison.federated import Ready, federate, made_ready
from confide.coordinator.comparison.task import Task, read_task

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
EPSILON = 3.0  # of all rounds of the one study, by PLD
SAMPLED, ROUNDS, TEXTS = 0.06, 30, 7281
JOINT, CLASS, TEXT = "one study of both", "a study of the class", "a study of the text"
SHARED, QUIET, NOTHING = ", half of the budget", ", no privacy", "nothing trained"
ASKED, WRITTEN = "\\nHeading:", " {heading}\\n"
METRICS = {
    "chapter": ("accuracy_chapter", "accuracy"),
    "heading, word for word": ("exact_match_heading", "exact_match"),
    "perplexity of its words": ("perplexity_heading", "perplexity"),
}


def drafts(folder: Path) -> dict[str, StudyDraft]:
    """The three studies, made of that of examples/chapters."""
    plain = (EXAMPLES / "chapters" / "study.toml").read_text()
    shown = 'text = "Diagnosis: {text}"\n'
    task = f'\n[data.document.tasks.heading]\ntext = {{ prompt = "{ASKED}", completion = "{WRITTEN}", longest = 24 }}\n'
    both = shown + task + '\n[data.document.tasks.chapter]\nlabel = "chapter"\n'
    texts = {
        JOINT: plain.replace('text = "{text}"\nlabel = "chapter"\n', both)
        .replace("targets = []", 'targets = ["down_proj"]')
        .replace("head_lr = 8.0", "lr = 1.0\nhead_lr = 8.0"),
        CLASS: plain.replace('text = "{text}"\n', shown),
    }
    document = plain[plain.index("[data.document]") : plain.index("[privacy]")]
    alone = f'[data.text]\nprompt = "Diagnosis: {{text}}{ASKED}"\ncompletion = "{WRITTEN}"\n\n'
    texts[TEXT] = (
        plain.replace(document, alone)
        .replace('head = "pooled"\nreads = [0, 24]\n', 'head = "lm"\n')
        .replace("targets = []", 'targets = ["down_proj"]')
        .replace("head_lr = 8.0", "lr = 1.0")
    )
    found = {}
    for name, text in texts.items():
        path = folder / f"{name.replace(' ', '-')}.toml"
        path.write_text(text)
        draft = load_draft(path)
        where = {"targets": ("o_proj", "down_proj"), "layers": (28, 29), "alpha": 16.0}
        draft = changed(draft, "adapter", rank=4, **({} if name == CLASS else where))
        draft = changed(draft, "optimizer", lr=None if name == CLASS else 1.0)
        draft = changed(draft, "data", max_tokens=64)
        draft = changed(draft, "privacy", sample_rate=SAMPLED)
        draft = changed(draft, "rounds", rounds=ROUNDS, batch_units=round(SAMPLED * TEXTS))
        found[name] = draft.model_copy(update={"evaluation": None})
    return found


def with_headings(records: Path) -> None:
    """Adds to each table the heading of a text's category, a code's first three characters."""
    listed = runpy.run_path(str(EXAMPLES / "diagnoses" / "prepare.py"))["read_list"]()
    headings = {code: text for code, text, _ in listed if len(code) == 3}
    for path in records.rglob("*.csv"):
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, [*rows[0], "heading"], lineterminator="\n")
            writer.writeheader()
            writer.writerows(row | {"heading": headings[row["text_id"][:3]]} for row in rows)


def arms(plain: dict[str, StudyDraft], backbone: Path) -> dict[str, tuple[StudyDraft, float | None]]:
    """Each arm's study with what it and its like cost together."""
    dims = {name: load_study_model(draft, backbone).adapted.layout.dim for name, draft in plain.items()}
    quiet = {"mode": "none", "noise_multiplier": 0.0, "delta": 0.0}
    joint = with_noise_for(plain[JOINT], 1, EPSILON, dims[JOINT])
    found: dict[str, tuple[StudyDraft, float | None]] = {JOINT: (joint, cost_of(joint, dims[JOINT], 1))}
    for name in (CLASS, TEXT):
        own = with_noise_for(plain[name], 2, EPSILON, dims[name])
        found[name + SHARED] = own, cost_of(own, dims[name], 2)
    for name, draft in plain.items():
        found[name + QUIET] = changed(draft, "privacy", **quiet), None
    return found


@dataclass(slots=True)
class Bench:
    """Things that the runs of a study share: its model, and what no trained number moves, computed once."""

    backbone: Path
    task: Task
    model: StudyModel
    ready: Ready | None = None

    @classmethod
    def of(cls, draft: StudyDraft, backbone: Path, records: Path) -> "Bench":
        """Reads records and loads the model."""
        return cls(backbone, read_task(draft, records), load_study_model(draft, backbone))

    def train(self, draft: StudyDraft, seed: int) -> None:
        """Trains a study's rounds in one process, from where every run starts."""
        adapted, mode = self.model.adapted, draft.privacy.mode
        examples = {site: self.model.examples(records) for site, records in self.task.train.items()}
        arrays = {site: (each.ids, each.targets, each.units) for site, each in examples.items()}
        adapted.load_state(np.zeros(adapted.layout.dim))
        self.ready = self.ready or made_ready(draft, adapted, arrays, mode=mode)
        bits = ring_of(draft, adapted.layout.dim).scale_bits
        federate(draft, adapted, arrays, mode=mode, scale_bits=bits, seed=seed, ready=self.ready)


def judged(model: StudyModel, task: Task) -> dict[str, float]:
    """Measures a model on the held-out records of all sites."""
    found = model.evaluate([model.examples(records) for records in task.held_out.values()])
    names = {name: next((each for each in own if each in found), None) for name, own in METRICS.items()}
    return {name: found[metric]["value"] for name, metric in names.items() if metric is not None}


def table(rows: Sequence[dict]) -> str:
    """A line for each arm: means over seeds, half of Student's 95 % interval behind them."""
    lines = [f"| | epsilon of all | {' | '.join(METRICS)} | runs |", "|---|---|" + "---|" * (len(METRICS) + 1)]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == arm]
        cells = []
        for name in METRICS:
            values = [row["found"][name] for row in own if name in row["found"]]
            margin = f" ± {spread(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.3f}{margin}" if values else "")
        spent = own[0]["epsilon"]
        lines.append(f"| {arm} | {'' if spent is None else f'{spent:.2f}'} | {' | '.join(cells)} | {len(own)} |")
    return "\n".join(lines)


def main() -> None:
    """Prepares records and backbone, measures the arms and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--dir", type=Path, default=Path("headings"))
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    folder = args.dir / "quick" if args.quick else args.dir
    records, backbone = folder / "records", folder / "backbone"
    if not records.exists():
        runpy.run_path(str(EXAMPLES / "chapters" / "prepare.py"))["prepare"](records)
        with_headings(records)
        for path in records.rglob("*.csv") if args.quick else ():
            keep_first(path, 40)
    plain = drafts(folder)
    if not backbone.exists():
        make_backbone(plain[JOINT], backbone, is_quick=args.quick)
    if args.quick:
        args.seeds = [0]
        plain = {name: changed(draft, "rounds", rounds=2) for name, draft in plain.items()}
    rows = Rows(folder / "results.jsonl")
    chosen = {NOTHING: (plain[JOINT], None), **arms(plain, backbone)}
    torch.set_num_threads(1)  # which states are kept then depends on no arm's mode
    for name in plain:
        bench: Bench | None = None
        for arm, (draft, epsilon) in chosen.items():
            if arm.removesuffix(SHARED).removesuffix(QUIET) != name and (arm, name) != (NOTHING, JOINT):
                continue
            for seed in args.seeds[: 1 if arm == NOTHING else None]:
                if rows.of({"arm": arm, "seed": seed}):
                    continue
                bench, started = bench or Bench.of(plain[name], backbone, records), time.perf_counter()
                if arm != NOTHING:
                    bench.train(draft, seed)
                found = judged(bench.model, bench.task)
                row = {"arm": arm, "seed": seed, "epsilon": epsilon, "found": found}
                rows.add(row | {"seconds": round(time.perf_counter() - started)}, json.dumps(found))
    print(table([row for row in rows.of({}) if row["seed"] in args.seeds]))


if __name__ == "__main__":
    sys.exit(main())
