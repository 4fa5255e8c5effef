"""Measures what three organisations' private adapters add to a model of public code, beside what each has alone.

    python benchmarks/organisations.py [--dir bench-organisations] [--seeds 1 2 3] [--targets structure experts]
    python benchmarks/organisations.py --quick         # does it run? A backbone of little, two rounds, few files

Prepares the example's records and backbone in the folder, trains in one process by the study's own steps, and judges on
the held-out files of all three together and of each: what is written that does not parse, next tokens that are wrong,
and perplexity. Beside it the backbone as it is, each organisation alone at the same epsilon with its own whole noise,
and all without privacy. A finished run is read from the results. Figures: docs/code.md.
"""

import argparse
import csv
import itertools
import runpy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from federated_arms import arms, changed, is_known, keep, run_arms

from confide.client_node.study import load_draft
from confide.client_node.training.study_model import StudyModel, load_study_model
from confide.coordinator.comparison.task import Task, read_task
from confide.coordinator.results.text_backbone import build_text_backbone
from confide.models.backbones.text_pretraining import TextPretrainingConfig
from confide.models.heads import foretell

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "code"
TARGETS = {  # other modules than the study's
    "attention": ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"),
    "experts": ("o_proj", "gate_proj", "up_proj", "down_proj", "experts"),
    "structure": (
        "structure", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "gate_proj", "up_proj",
        "down_proj",
    ),
}  # fmt: skip


def judge(model: StudyModel, task: Task, count: int) -> dict:
    """Judges a model on all held-out records; at most `count` of an organisation are written on."""
    found: dict[str, dict[str, list]] = {}
    for site, records in task.held_out.items():
        examples = model.examples(records)
        own = found[site] = {"invalid": [], "boundary": [], "token": [], "loss": []}
        is_learned = np.asarray(examples.targets, dtype=np.bool_)
        some = examples.ids[:count], is_learned[:count]
        for written, *row in zip(model.reader.written(model.adapted.model, *some), *some, strict=True):
            own["invalid"].append(not model.reader.parses(written, *row))
        for ids, mask in zip(examples.ids, is_learned, strict=True):
            with torch.no_grad():
                told = foretell(model.adapted.model, torch.from_numpy(ids[None]), torch.from_numpy(mask[None]))
            wrong = (~told.is_first_choice_N).tolist()
            own["loss"] += told.losses_N.tolist()
            own["token"] += wrong
            own["boundary"] += itertools.compress(wrong, map(model.reader.is_boundary, ids[mask].tolist()))
    names = ("invalid", "boundary", "token")
    every = {name: float(np.mean([each for own in found.values() for each in own[name]])) for name in names}
    losses = [each for own in found.values() for each in own["loss"]]
    return {
        **every,
        "perplexity": float(np.exp(np.mean(losses))),
        "written": sum(len(own["invalid"]) for own in found.values()),
        "of": {
            site: {name: float(np.mean(own[name])) for name in names}
            | {"perplexity": float(np.exp(np.mean(own["loss"])))}
            for site, own in found.items()
        },
    }  # fmt: skip


def table(rows: Sequence[dict]) -> str:
    """A row for each arm: means over seeds, with half of Student's 95 % interval of the first figure."""
    from scipy.stats import t

    lines = [
        "| | ε | numbers | do not parse | wrong at boundaries | wrong tokens | perplexity | runs |",
        "|---" * 8 + "|",
    ]
    for name in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == name]
        figures = []
        for key, places in (("invalid", 3), ("boundary", 3), ("token", 3), ("perplexity", 1)):
            values = [row[key] for row in own]
            spread = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5 if values[1:] else 0
            figures.append(f"{np.mean(values):.{places}f}" + (f" ± {spread:.{places}f}" if spread else ""))
        epsilon = "" if own[0]["epsilon"] is None else f"{own[0]['epsilon']:.2f}"
        lines.append(f"| {name} | {epsilon} | {own[0]['numbers'] or ''} | " + " | ".join(figures) + f" | {len(own)} |")
    return "\n".join(lines)


def keep_first(path: Path, records: int) -> None:
    """Cuts a table to its first records."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(itertools.islice(csv.reader(file), records + 1))
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def main() -> None:
    """Prints the table; rows go to the results as they come."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path("bench-organisations"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--count", type=int, default=200, help="held-out functions of an organisation to write on")
    parser.add_argument("--targets", nargs="*", choices=TARGETS, default=[], help="the study with other modules, too")
    parser.add_argument("--arm", nargs="+", default=[""], help="only runs with one of these words in their names")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    draft = load_draft(EXAMPLE / "study.toml")
    folder = options.dir / "quick" if options.quick else options.dir  # whose figures mean nothing
    records, backbone, results = (folder / name for name in ("records", "backbone", "results.jsonl"))
    if not records.exists():
        runpy.run_path(str(EXAMPLE / "prepare.py"))["prepare"](records)
    if options.quick:
        draft, options.seeds, options.count = changed(draft, "rounds", rounds=2), options.seeds[:1], 4
        for path in records.rglob("*.csv"):
            keep_first(path, 200 if "public" in path.name else 20)
    if not backbone.exists():
        config = TextPretrainingConfig(tokens=20_000) if options.quick else TextPretrainingConfig()
        build_text_backbone(draft, records / "public.csv", backbone, structure="code", config=config)
    task, sites = read_task(draft, records), draft.participants.sites
    if not is_known("the backbone", results):
        found = judge(load_study_model(draft, backbone), task, options.count)
        keep({"arm": "the backbone", "seed": 0, "epsilon": None, "numbers": None, "seconds": 0, **found}, results)
    chosen = [
        arm
        for arm in arms(sites, "three organisations", {name: TARGETS[name] for name in options.targets})
        if any(word in arm.name for word in options.arm)
    ]
    known = run_arms(
        draft, backbone, task, chosen=chosen, seeds=options.seeds, results=results,
        judge=lambda model: judge(model, task, options.count),
    )  # fmt: skip
    print(table(known))


if __name__ == "__main__":
    main()
