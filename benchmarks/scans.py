"""Measures what three hospitals' private adapters add to a model that reads public handwriting, beside what each has.

    python benchmarks/scans.py [--dir bench-scans] [--seeds 1 2 3] [--epsilon 1 8] [--targets stages]
    python benchmarks/scans.py --quick           # does it run? A backbone of little, two rounds, few forms

Prepares the example's forms and backbone in the folder, trains in one process by the study's own steps, and lets the
model write behind all held-out forms. A form is right if every word is: what is written in the four boxes, which of
them differ from what was typed, and the answer. Beside it: the backbone as it is, each hospital alone at the same
epsilon with its own whole noise, each alone without privacy, and without training what was typed taken for what is
written. A finished run is read from the results. Figures: docs/pictures.md.
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from federated_arms import arms_asked, keep_without_training, parser_of, prepared, run_arms, run_at_epsilons, table_of

from confide.client_node.training.study_model import StudyModel, load_study_model
from confide.coordinator.comparison.task import Task

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "scans"
STAGES = ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2", "reduction")
TARGETS = {  # other modules than the study's
    "stages": (*(f"eye.{leaf}" for leaf in STAGES), "eye.to_words"),
}
FIGURES = {"forms": "forms right", "boxes": "boxes read right", "answers": "answers right"}


def judge(model: StudyModel, task: Task) -> dict[str, float]:
    """Shares of held-out forms that are right as a whole, of boxes that are read right, and of answers."""
    right: list[tuple[bool, float, bool]] = []
    for records in task.held_out.values():
        examples, told = model.examples(records), [records.columns[name] for name in ("scan", "check", "answer")]
        written = []
        for start in range(0, len(examples.ids), 128):
            some = slice(start, start + 128)
            written += model.reader.written(model.adapted.model, examples.ids[some], examples.targets[some], longest=12)
        right += [figures(text, *cells) for text, *cells in zip(written, *told, strict=True)]
    return dict(zip(FIGURES, np.mean(np.array(right, dtype=float), axis=0).tolist(), strict=True))


def figures(text: str, scan: str, check: str, answer: str) -> tuple[bool, float, bool]:
    """Compares what was written of a form with what its table says."""
    words, boxes = text.split(), scan.split()
    read = sum(one == other for one, other in zip(words, boxes, strict=False)) / len(boxes)
    return text == f"{scan} {check} {answer}", read, words[-1:] == [answer]


def typed_taken(task: Task) -> dict[str, float]:
    """The same figures where what was typed is taken for what is written, so that no box is a slip."""
    right = []
    for records in task.held_out.values():
        cells = zip(*(records.columns[name] for name in ("typed", "rule", "scan", "check", "answer")), strict=True)
        for typed, rule, scan, check, answer in cells:
            said = {"typed==scan": "yes", "first-slip": "none"}.get(rule, "no")
            same = " ".join(f"{box}:same" for box in range(4))
            right.append(figures(f"{typed} {same} {said}", scan, check, answer))
    return dict(zip(FIGURES, np.mean(np.array(right, dtype=float), axis=0).tolist(), strict=True))


def main() -> None:
    """Prints the table; rows go to the results as they come."""
    parser = parser_of(__doc__, "bench-scans", TARGETS)
    parser.add_argument("--epsilon", type=float, nargs="*", default=[], help="all hospitals at other epsilons, too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench = prepared(EXAMPLE, options.dir, is_quick=options.quick)
    task, sites = bench.task, bench.draft.participants.sites
    together = "three hospitals"
    untouched = load_study_model(bench.draft, bench.backbone)
    keep_without_training(bench, "the backbone", lambda: judge(untouched, task))
    keep_without_training(bench, "typed taken for written", lambda: typed_taken(task))
    chosen, seeds = arms_asked(options, sites, together, TARGETS)
    judge_one = partial(judge, task=task)
    run_arms(bench, chosen=chosen, seeds=seeds, judge=judge_one)
    print(table_of(run_at_epsilons(bench, options.epsilon, together, seeds, judge_one), FIGURES))


if __name__ == "__main__":
    main()
