"""Measures what privacy leaves of an example's task: every rung of the ladder at several epsilons, in one table.

    python benchmarks/utility.py --task thyroid [--epsilon study 1 2 3 8 none] [--seeds N] [--rung words head ...]
    python benchmarks/utility.py --task diagnoses --rung constant site words ngrams
    python benchmarks/utility.py --task histories --rung words --head-lr 10    # not the study's rate
    python benchmarks/utility.py --quick               # does it run? An untrained backbone, two rounds, few records

Prepares the example's public records and its backbone in the folder that `--dir` names, and compares there as
`coordinator study compare` does, with the same functions: an interrupted run goes on, and what was tried on the
held-out records is counted. Examples whose answer no classifier says have a benchmark of their own. Method and
figures: docs/utility.md.
"""

import argparse
import itertools
import json
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from confide.client_node.study import StudyDraft, load_draft
from confide.coordinator.comparison import compare
from confide.coordinator.comparison.figures import CAUTION, Comparison, said, spread
from confide.coordinator.comparison.ladder import DEFAULT_EPSILONS, RUNGS
from confide.models.backbones import loading
from confide.models.backbones.moments import take_moments
from confide.models.backbones.pretraining import pretrain
from confide.models.backbones.smollm2 import import_smollm2

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
OWN_BENCHMARK = {"code", "derivations", "scans", "voices"}
TASKS = sorted({path.parent.name for path in EXAMPLES.glob("*/study.toml")} - OWN_BENCHMARK)
QUICK_ROUNDS, QUICK_RECORDS = 2, 30  # of a site


def measure(
    task: str,
    folder: Path,
    *,
    asked: Sequence[str],
    rungs: Sequence[str],
    seeds: tuple[int, int | None],
    head_lr: float | None = None,
    is_quick: bool,
) -> Comparison:
    """Prepares the example below `folder`, if that was not done, and compares.

    Args:
        head_lr: rate of the head and of linear rungs; None: the study's.
        seeds: runs of each rung, and those of the adapters if they are to be fewer.
    """
    draft = load_draft(EXAMPLES / task / "study.toml")
    if head_lr is not None:
        draft = draft.model_copy(update={"optimizer": draft.optimizer.model_copy(update={"head_lr": head_lr})})
    records, backbone = folder / "records", folder / "backbone"
    if not records.exists():
        example = runpy.run_path(str(EXAMPLES / task / "prepare.py"))
        tables = (example.get("prepare_few", example["prepare"]) if is_quick else example["prepare"])(records)
        if is_quick:
            for path in [Path(table[part]) for table in tables.values() for part in ("train", "heldout")]:
                if path.is_file():  # an export has few patients already
                    keep_first(path, QUICK_RECORDS)
    readers = {"head", "site", "adapters"} if draft.data.kind.head == "pooled" else {"adapters"}
    if not backbone.exists() and (not rungs or readers & {*rungs}):
        make_backbone(draft, backbone, is_quick=is_quick)
    if is_quick:
        draft = draft.model_copy(update={"rounds": draft.rounds.model_copy(update={"rounds": QUICK_ROUNDS})})

    def watch(done: int, total: int, name: str) -> None:
        print(f"{done} of {total}: {name}", file=sys.stderr, flush=True)

    return compare(
        draft, records, folder, backbone=backbone if backbone.exists() else None, asked=asked, rungs=rungs,
        seeds=seeds[0], adapter_seeds=seeds[1], watch=watch,
    )  # fmt: skip


def keep_first(table: Path, records: int) -> None:
    """Cuts a table to its first records, none of which has a line break in a cell."""
    with table.open(encoding="utf-8") as file:
        lines = list(itertools.islice(file, records + 1))
    table.write_text("".join(lines), encoding="utf-8")


def make_backbone(draft: StudyDraft, directory: Path, *, is_quick: bool, family: str = "deepseek_v3") -> None:
    """Makes the example's backbone as its demo does, of another family if one is named; a quick one knows nothing."""
    if draft.data.kind.reads == "text" and draft.data.kind.head == "pooled":
        import_smollm2(directory.with_name("smollm2"))
        texts = runpy.run_path(str(EXAMPLES / draft.name / "prepare.py"))["public_texts"]()
        take_moments(directory.with_name("smollm2"), texts, directory, reads=draft.adapter.reads)
    elif draft.data.kind.reads == "text":
        import_smollm2(directory)
    elif is_quick:
        schema = draft.record_schema()
        model = loading.build(schema, loading.BackboneConfig(family=family, hidden=32, experts=4))
        loading.save(model, schema, torch.zeros(64), torch.eye(64), directory)
    else:
        pretrain(draft.record_schema(), directory, backbone=loading.BackboneConfig(family=family))


def show(found: Comparison) -> None:
    """Prints the table as Markdown, and below it what was left out and what was tried."""
    print(f"\n{found.study}: {found.metric} on {found.held_out:,} held-out records\n")
    print("| rung | " + " | ".join(found.heading(asked) for asked in found.asked) + " | seeds |")
    print("|---" * (len(found.asked) + 2) + "|")
    for row in found.rows:
        if row.left_out is None:
            points = [row.at(asked) for asked in found.asked]
            cells = ["" if point is None else f"{said(point)} {spread(point)}".rstrip() for point in points]
            print(f"| {row.name} | " + " | ".join(cells) + f" | {row.points[0].seeds} |")
    for row in found.rows:
        if row.left_out is not None:
            print(f"\nLeft out, {row.name}: {row.left_out}.")
    print(f"\nTried on these held-out records so far: {found.tried}. {CAUTION}")


def main(words: Sequence[str] | None = None) -> None:
    """Prints one table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="thyroid")
    parser.add_argument("--epsilon", nargs="+", default=[*DEFAULT_EPSILONS], help="numbers, study or none")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each rung at each epsilon")
    parser.add_argument("--adapter-seeds", type=int, help="runs of the adapters, which take minutes; default --seeds")
    parser.add_argument("--rung", nargs="+", choices=RUNGS, default=[], help="instead of all")
    parser.add_argument("--head-lr", type=float, help="rate of head and linear rungs; default the study's")
    parser.add_argument("--dir", type=Path, help="where everything is kept; by default confide-utility/TASK")
    parser.add_argument("--quick", action="store_true", help="only show that it runs; its figures mean nothing")
    parser.add_argument("--json", action="store_true", help="one object instead of a table")
    options = parser.parse_args(words)
    folder = options.dir or Path("confide-utility", options.task + ("-quick" if options.quick else ""))
    asked = ["study", "none"] if options.quick else options.epsilon
    seeds = (1, 1) if options.quick else (options.seeds, options.adapter_seeds)
    found = measure(
        options.task, folder, asked=asked, rungs=options.rung, seeds=seeds, head_lr=options.head_lr,
        is_quick=options.quick,
    )  # fmt: skip
    if options.json:
        print(json.dumps(found.to_dict()))
    else:
        show(found)


if __name__ == "__main__":
    main()
