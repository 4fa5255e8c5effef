"""Measures what three organisations' private adapters add to a model of public code, beside what each has alone.

    python benchmarks/organisations.py [--dir bench-organisations] [--seeds 1 2 3] [--targets structure experts]
    python benchmarks/organisations.py --quick         # does it run? A backbone of little, two rounds, few files

Prepares the example's records and backbone in the folder, trains in one process by the study's own steps, and judges on
the held-out files of all three together and of each: what is written that does not parse, next tokens that are wrong,
and perplexity. Beside it the backbone as it is, each organisation alone at the same epsilon with its own whole noise,
and all without privacy. A finished run is read from the results. Figures: docs/code.md.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from federated_arms import arms_asked, keep_without_training, parser_of, prepared, run_arms, spread

from confide.client_node.training.study_model import StudyModel, load_study_model
from confide.coordinator.comparison.task import Task
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
    lines = [
        "| | ε | numbers | do not parse | wrong at boundaries | wrong tokens | perplexity | runs |",
        "|---" * 8 + "|",
    ]
    for name in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == name]
        figures = []
        for key, places in (("invalid", 3), ("boundary", 3), ("token", 3), ("perplexity", 1)):
            values = [row[key] for row in own]
            half = f" ± {spread(values):.{places}f}" if values[1:] else ""
            figures.append(f"{np.mean(values):.{places}f}{half}")
        epsilon = "" if own[0]["epsilon"] is None else f"{own[0]['epsilon']:.2f}"
        lines.append(f"| {name} | {epsilon} | {own[0]['numbers'] or ''} | " + " | ".join(figures) + f" | {len(own)} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the table; rows go to the results as they come."""
    parser = parser_of(__doc__, "bench-organisations", TARGETS)
    parser.add_argument("--count", type=int, default=200, help="held-out functions of an organisation to write on")
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench = prepared(EXAMPLE, options.dir, is_quick=options.quick)
    task, sites, count = bench.task, bench.draft.participants.sites, 4 if options.quick else options.count
    keep_without_training(
        bench, "the backbone", lambda: judge(load_study_model(bench.draft, bench.backbone), task, count)
    )
    chosen, seeds = arms_asked(options, sites, "three organisations", TARGETS)
    known = run_arms(bench, chosen=chosen, seeds=seeds, judge=lambda model: judge(model, task, count))
    print(table(known))


if __name__ == "__main__":
    main()
