"""Measures what three hospitals' private adapters add to a model that heard public synthetic voices alone.

    python benchmarks/voices.py [--dir bench-voices] [--seeds 1 2 3] [--epsilon 1 8] [--targets ear]
    python benchmarks/voices.py --strangers FOLDER        # by other readers of the same languages
    python benchmarks/voices.py --quick           # does it run? A backbone of little, two rounds, few sounds

Prepares the example's sounds and backbone in the folder, trains in one process by the study's own steps, and lets the
model write the language of all held-out patients. Beside it: the backbone as it is, each hospital alone at the same
epsilon with its own whole noise, each alone without privacy, and without any sound the passport alone, by what is most
common in training. Few readers read all that is heard, so it may tell readers and not languages: FOLDER has Debian's
packages asterisk-core-sounds-es-wav, -fr-wav and -ru-wav, unpacked by dpkg-deb, in which others read the messages of a
telephone exchange; each of one second and more is judged by its first two, without a passport. A finished run is read
from the results. Figures: docs/sounds.md.
"""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from federated_arms import (
    Arm,
    Bench,
    arms_asked,
    keep_without_training,
    parser_of,
    prepared,
    run_arms,
    run_at_epsilons,
    table_of,
)

from confide.client_node.training.study_model import StudyModel, load_study_model
from confide.coordinator.comparison.task import Task

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "voices"))
from readings import LANGUAGES, RATE, as_wav, read

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "voices"
INSIDE = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2", "to_words")
TARGETS = {"ear": tuple(f"ear.{leaf}" for leaf in INSIDE)}  # other modules than the study's
FIGURES = {"languages": "languages right", "without passport": "without a passport"}


def judge(model: StudyModel, task: Task) -> dict[str, float]:
    """Shares of held-out patients whose language is right, of all and of those who show no passport."""
    right: list[bool] = []
    shows_none: list[bool] = []
    for records in task.held_out.values():
        examples = model.examples(records)
        for start in range(0, len(examples.ids), 128):
            some = slice(start, start + 128)
            texts = model.reader.written(model.adapted.model, examples.ids[some], examples.targets[some], longest=3)
            right += [text == told for text, told in zip(texts, records.columns["language"][some], strict=True)]
        shows_none += (records.columns["passport"] == "none").tolist()
    return figures(right, shows_none)


def figures(right: Sequence[bool], shows_none: Sequence[bool]) -> dict[str, float]:
    """Both shares by name."""
    is_right, has_none = np.array(right), np.array(shows_none)
    return dict(zip(FIGURES, (float(is_right.mean()), float(is_right[has_none].mean())), strict=True))


def by_passport(task: Task) -> dict[str, float]:
    """The same figures where the commonest language of a passport's country in all training is taken, unheard."""
    known: dict[str, Counter[str]] = {}
    for records in task.train.values():
        for country, language in zip(records.columns["passport"], records.columns["language"], strict=True):
            known.setdefault(country, Counter())[language] += 1
    commonest = sum(known.values(), Counter()).most_common(1)[0][0]
    right, shows_none = [], []
    for records in task.held_out.values():
        for country, language in zip(records.columns["passport"], records.columns["language"], strict=True):
            own = known.get(country)
            right.append((own.most_common(1)[0][0] if own else commonest) == language)
            shows_none.append(country == "none")
    return figures(right, shows_none)


def of_strangers(model: StudyModel, folder: Path) -> dict[str, float]:
    """Shares of messages by other readers whose language is right, of all and of each language."""
    messages = list(_messages(folder))
    if not messages:
        raise SystemExit(f"{folder} has no messages: unpack asterisk-core-sounds-es-wav, -fr-wav and -ru-wav there")
    files, languages = zip(*messages, strict=True)
    columns = {
        "call": np.array(files, dtype=object),
        "passport": np.full(len(files), "none", dtype=object),
        "language": np.array(languages, dtype=object),
    }
    ids, is_learned = model.reader.examples(columns, None)
    reader: Any = model.reader
    texts: list[str] = []
    for start in range(0, len(ids), 128):
        some = slice(start, start + 128)
        texts += reader.written(model.adapted.model, ids[some], is_learned[some], longest=3)
    right = np.array([text == told for text, told in zip(texts, languages, strict=True)])
    apart = {name: float(right[columns["language"] == name].mean()) for name in sorted(set(languages))}
    return {"messages": float(right.mean()), **apart}


def _messages(folder: Path) -> Iterator[tuple[bytes, str]]:
    for path in sorted(folder.rglob("*.wav")):
        code = next((part[:2] for part in path.parts if re.fullmatch("(es|fr|ru)_.*", part)), None)
        if code is not None and path.parent.name != "silence" and len(wave := read(path)) >= RATE:
            yield as_wav(wave), LANGUAGES[code]


def print_strangers(bench: Bench, options: argparse.Namespace) -> None:
    """Prints what the backbone and all hospitals' adapters, with and without privacy, make of other readers."""
    untouched = load_study_model(bench.draft, bench.backbone)
    keep_without_training(bench, "the backbone", lambda: of_strangers(untouched, options.strangers))
    together = "three hospitals"
    chosen = [Arm(None, is_private, together) for is_private in (True, False)]
    judge_one = partial(of_strangers, folder=options.strangers)
    for row in run_arms(bench, chosen=chosen, seeds=options.seeds, judge=judge_one):
        print(row)


def main() -> None:
    """Prints the table; rows go to the results as they come."""
    parser = parser_of(__doc__, "bench-voices", TARGETS)
    parser.add_argument("--epsilon", type=float, nargs="*", default=[], help="all hospitals at other epsilons, too")
    parser.add_argument("--strangers", type=Path, help="folder of the messages of other readers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench = prepared(EXAMPLE, options.dir, is_quick=options.quick)
    task, sites = bench.task, bench.draft.participants.sites
    together = "three hospitals"
    untouched = load_study_model(bench.draft, bench.backbone)
    if options.strangers:
        results = bench.results.with_stem(bench.results.stem.replace("results", "strangers"))
        return print_strangers(replace(bench, results=results), options)
    keep_without_training(bench, "the backbone", lambda: judge(untouched, task))
    keep_without_training(bench, "the passport alone", lambda: by_passport(task))
    chosen, seeds = arms_asked(options, sites, together, TARGETS)
    judge_one = partial(judge, task=task)
    run_arms(bench, chosen=chosen, seeds=seeds, judge=judge_one)
    print(table_of(run_at_epsilons(bench, options.epsilon, together, seeds, judge_one), FIGURES))


if __name__ == "__main__":
    main()
