"""Measures what reading more of a person's visits earns, with privacy and without.

    python benchmarks/histories.py [--visits 1 4 16] [--epsilon study 1 8 none] [--seeds 5] [--rung words head adapters]
    python benchmarks/histories.py --visits 16 --family granitemoehybrid --rung head      # state-space layers
    python benchmarks/histories.py --visits 16 --window 16 --top 2 --rung head            # attention in segments
    python benchmarks/histories.py --quick

Each number of visits is a study of its own: a backbone built for such records from nothing but [data], and the ladder
of `coordinator study compare` on the public records of examples/histories. A record is a patient, however much is read.
Figures: docs/utility.md.
"""

import argparse
import runpy
import sys
from pathlib import Path

from utility import EXAMPLES, QUICK_RECORDS, QUICK_ROUNDS, keep_first, make_backbone

from confide.client_node.study import StudyDraft, load_draft
from confide.client_node.study.terms import SegmentTerms
from confide.coordinator.comparison import compare
from confide.coordinator.comparison.figures import Comparison, said, spread

EXAMPLE = EXAMPLES / "histories"
TARGETS = {  # of adapters, on attention and what stands in its place
    "granitemoehybrid": ("q_proj", "k_proj", "v_proj", "o_proj", "in_proj"),
    "kimi_linear": ("q_proj", "k_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"),
}


def reading(visits: int, options: argparse.Namespace) -> StudyDraft:
    """The example's study, of so many visits, with adapters where the family has layers for them."""
    draft = load_draft(EXAMPLE / "study.toml")
    history = draft.data.terms.model_copy(update={"visits": visits})
    draft = draft.model_copy(update={"data": draft.data.model_copy(update={"history": history})})
    if options.family in TARGETS:
        adapter = draft.adapter.model_copy(update={"targets": TARGETS[options.family]})
        draft = draft.model_copy(update={"adapter": adapter})
    if options.window is None:
        return draft
    segments = SegmentTerms(window=options.window, top=options.top)
    return draft.model_copy(update={"model": draft.model.model_copy(update={"segments": segments})})


def measure(visits: int, options: argparse.Namespace) -> Comparison:
    """Builds the backbone for so many visits, if that was not done, and compares."""
    draft, other = reading(visits, options), f"-{options.family}" if options.family in TARGETS else ""
    folder = options.dir / f"visits-{visits}{other}"
    results = folder if options.window is None else folder / f"window-{options.window}-{options.top}"
    if options.quick:
        draft = draft.model_copy(update={"rounds": draft.rounds.model_copy(update={"rounds": QUICK_ROUNDS})})
    if not (folder / "backbone").exists():
        folder.mkdir(parents=True, exist_ok=True)
        make_backbone(draft, folder / "backbone", is_quick=options.quick, family=options.family)
    results.mkdir(exist_ok=True)

    def watch(done: int, total: int, name: str) -> None:
        print(f"{visits} visits, {done} of {total}: {name}", file=sys.stderr, flush=True)

    return compare(
        draft, options.dir / "records", results, backbone=folder / "backbone", asked=options.epsilon,
        rungs=options.rung, seeds=options.seeds, adapter_seeds=options.adapter_seeds, watch=watch,
    )  # fmt: skip


def main() -> None:
    """Prints one table: a row for each number of visits and rung."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--visits", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--epsilon", nargs="+", default=["study", "1", "8", "none"], help="numbers, study or none")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each rung at each epsilon")
    parser.add_argument("--adapter-seeds", type=int, default=3, help="runs of the adapters, which take minutes")
    parser.add_argument("--rung", nargs="+", default=["constant", "words", "head", "adapters"])
    parser.add_argument("--family", choices=["deepseek_v3", *TARGETS], default="deepseek_v3", help="of the backbone")
    parser.add_argument("--window", type=int, help="attention in segments of so many tokens")
    parser.add_argument("--top", type=int, default=8, help="and of so many earlier ones")
    parser.add_argument("--dir", type=Path, help="where everything is kept; by default confide-utility/histories")
    parser.add_argument("--quick", action="store_true", help="only show that it runs; its figures mean nothing")
    options = parser.parse_args()
    options.dir = options.dir or Path("confide-utility", "histories" + ("-quick" if options.quick else ""))
    if options.quick:
        options.visits, options.epsilon, options.seeds, options.adapter_seeds = [1, 3], ["study"], 1, 1
    if not (options.dir / "records").exists():
        tables = runpy.run_path(str(EXAMPLE / "prepare.py"))["prepare"](options.dir / "records")
        if options.quick:
            for path in [Path(table[part]) for table in tables.values() for part in ("train", "heldout")]:
                keep_first(path, QUICK_RECORDS)
    found = {visits: measure(visits, options) for visits in options.visits}
    first = next(iter(found.values()))
    print(f"{first.metric} on {first.held_out:,} held-out patients\n")
    print("| visits | rung | " + " | ".join(first.heading(asked) for asked in first.asked) + " | seeds |")
    print("|---" * (len(first.asked) + 3) + "|")
    for visits, each in found.items():
        for row in each.rows:
            if row.left_out is None:
                points = [row.at(asked) for asked in each.asked]
                cells = ["" if point is None else f"{said(point)} {spread(point)}".rstrip() for point in points]
                print(f"| {visits} | {row.name} | " + " | ".join(cells) + f" | {row.points[0].seeds} |")


if __name__ == "__main__":
    main()
