"""Measures what three hospitals' private adapters add to a model of public mathematics, beside what each has alone.

    python benchmarks/derivations.py [--dir bench-derivations] [--seeds 1 2 3] [--targets attention structure]
    python benchmarks/derivations.py --backbone-seed 2 --seeds 1 --arm three   # on another backbone
    python benchmarks/derivations.py --quick           # does it run? A backbone of little, two rounds, few patients

Prepares the example's records and backbone in the folder, trains in one process by the study's own steps, and judges
on all hospitals' held-out patients together, and on those of drugs that a hospital does not give. Beside it: the
backbone as it is, each hospital alone at the same epsilon with its own whole noise, each alone without privacy, and two
ways without training: another patient's answer as it stands (the nearest question in a hospital's own records), and its
protocol's numbers with the engine behind them. A finished run is read from the results, of which each backbone has its
own. Figures: docs/mathematics.md.
"""

import itertools
import runpy
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from federated_arms import arms_asked, keep_without_training, parser_of, prepared, run_arms, spread

from confide.client_node.data import Records
from confide.client_node.training.study_model import StudyModel, load_study_model
from confide.coordinator.comparison.task import Task
from confide.models.decoding import arithmetic

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "derivations"
TARGETS = {  # other modules than the study's
    "attention": ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"),
    "dense": ("o_proj", "gate_proj", "up_proj", "down_proj"),
    "structure": ("structure", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "experts": ("o_proj", "gate_proj", "up_proj", "down_proj", "experts"),
}


def judge(model: StudyModel, task: Task, drugs: dict[str, str]) -> dict[str, dict[str, list[float]]]:
    """Shares of right answers on all held-out patients, and for each hospital on those of other drugs than its own."""
    reader, found = model.reader, []
    for records in task.held_out.values():
        examples = model.examples(records)
        texts = reader.written(model.adapted.model, examples.ids, examples.targets)
        rows = zip(texts, examples.ids, examples.targets, strict=True)
        found += [reader.is_right(text, *row) for text, *row in rows]
    return shares(found, task, drugs)


def shares(right: Sequence[bool], task: Task, drugs: dict[str, str]) -> dict:
    """Shares of right answers, in the order of the held-out records."""
    questions = np.concatenate([records.columns["question"] for records in task.held_out.values()])
    is_right = np.array(right)
    strange = {site: [question[0] not in own for question in questions] for site, own in drugs.items()}
    return {
        "right": float(is_right.mean()),
        "records": len(is_right),
        "of_other_drugs": {site: float(is_right[mask].mean()) for site, mask in strange.items() if any(mask)},
    }


def retrieved(task: Task, site: str, *, with_engine: bool) -> list[bool]:
    """Answers by the nearest of a hospital's own records: same drug and stage if it has them, and the nearest weight.

    Args:
        with_engine: True to keep its line of numbers and compute with the patient's own weight; this needs to be told
            what a protocol is, which nobody tells a model.
    """
    own = task.train[site]
    found = []
    for records in task.held_out.values():
        for question, answer in zip(records.columns["question"], records.columns["answer"], strict=True):
            near = nearest(own, question)
            given = own.columns["answer"][near]
            if with_engine:
                numbers = dict(part.split("=") for part in own.columns["derivation"][near].split(";")[0].split(","))
                mass = f"{numbers['k']}*{question.split(',')[1][2:]}*{numbers['f']}"
                given = arithmetic.owed(f"v={mass}/{numbers['c']}=")
            found.append(given == answer)
    return found


def nearest(own: Records, question: str) -> int:
    """Finds the record of the same drug and stage, if there are any, whose weight is nearest."""
    drug, weight, stage = question.split(",")

    def distance(other: str) -> tuple[bool, bool, int]:
        its_drug, its_weight, its_stage = other.split(",")
        return its_drug != drug, its_stage != stage, abs(int(its_weight[2:]) - int(weight[2:]))

    return min(range(len(own.units)), key=lambda place: distance(own.columns["question"][place]))


def table(rows: Sequence[dict]) -> str:
    """A row for each arm: mean over seeds, half of Student's 95 % interval, and drugs that a hospital does not give."""
    lines = [
        "| | ε | numbers | right, all held-out patients | runs | of drugs it does not give |",
        "|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == name]
        values = [row["right"] for row in own]
        site = name.split(" alone")[0] if " alone" in name else None
        other = [row["of_other_drugs"][site] for row in own if site in row["of_other_drugs"]]
        said = f"{np.mean(values):.3f}" + (f" ± {spread(values):.3f}" if len(values) > 1 else "")
        epsilon = "" if own[0]["epsilon"] is None else f"{own[0]['epsilon']:.2f}"
        elsewhere = f"{np.mean(other):.3f}" if other else ""
        lines.append(f"| {name} | {epsilon} | {own[0]['numbers'] or ''} | {said} | {len(values)} | {elsewhere} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the table; rows go to the results as they come."""
    parser = parser_of(__doc__, "bench-derivations", TARGETS)
    parser.add_argument("--backbone-seed", type=int, default=1, help="of its pretraining")
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench = prepared(EXAMPLE, options.dir, is_quick=options.quick, backbone_seed=options.backbone_seed)
    drugs = runpy.run_path(str(EXAMPLE / "prepare.py"))["SITES"]
    task, sites = bench.task, bench.draft.participants.sites
    keep_without_training(
        bench, "the backbone", lambda: judge(load_study_model(bench.draft, bench.backbone), task, drugs)
    )
    for site, with_engine in itertools.product(sites, (False, True)):
        name = f"{site} alone, nearest record{', its numbers and the engine' if with_engine else ''}"
        found = partial(retrieved, task, site, with_engine=with_engine)
        keep_without_training(bench, name, lambda found=found: shares(found(), task, drugs))
    chosen, seeds = arms_asked(options, sites, "three hospitals", TARGETS)
    known = run_arms(bench, chosen=chosen, seeds=seeds, judge=lambda model: judge(model, task, drugs))
    print(table(known))


if __name__ == "__main__":
    main()
