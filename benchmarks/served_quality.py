"""Measures how much of an adapter's answers int8 loses: short diagnosis texts, of each the chapter in one word.

    python benchmarks/served_quality.py [--train 1500] [--dir serving]
    python benchmarks/served_quality.py --quick       # does it run? 20 texts

An adapter as in examples/diagnoses is trained here without privacy, on the first texts of each site, and exported. A
service of the backbone and that adapter then completes all held-out texts greedily, in float32 and in int8: right is a
completion that is the chapter's word and ends. Figures: docs/benchmarks/serving.md.
"""

import argparse
import csv
import math
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from serving import asked

from confide.client_node.study import load_draft
from confide.client_node.training.study_model import StudyModel, load_study_model
from confide.coordinator.comparison.task import read_task
from confide.models.adapters import ModelCard, export
from confide.models.backbones.smollm2 import import_smollm2
from confide.models.serving.engine import Engine, Order
from confide.models.serving.served import Served

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "diagnoses"
BATCH, PASSES, RATE = 32, 8, 2e-3
ROWS = 32


def fit(model: StudyModel, ids_RT: np.ndarray, targets_RT: np.ndarray) -> None:
    """Trains the adapter by Adam; what the frozen layers give is computed once."""
    adapted = model.adapted
    ids, targets = torch.from_numpy(ids_RT), torch.from_numpy(targets_RT)
    with torch.no_grad():
        states = torch.cat([adapted.entering(some) for some in ids.split(BATCH)])
    optimizer = torch.optim.Adam(adapted.trained.values(), lr=RATE)
    generator = torch.Generator().manual_seed(0)
    for _ in range(PASSES):
        for some in torch.randperm(len(ids), generator=generator).split(BATCH):
            optimizer.zero_grad()
            adapted.losses(ids[some], targets[some], states[some]).mean().backward()
            optimizer.step()


def held_out(records: Path) -> list[tuple[str, str]]:
    """(text, chapter) of every held-out record."""
    found = []
    for path in sorted(records.rglob("heldout.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            found += [(row["text"], row["chapter"]) for row in csv.DictReader(file)]
    return found


def answers(served: Served, texts: list[str], template: str) -> list[tuple[str, bool]]:
    """(what was written, whether it is ended) behind each text."""
    stated, model = served.requests, next(model for name, model in served.models.items() if name == "diagnoses")
    before, _, behind = template.partition("{text}")
    start, end = stated.stated(before), stated.stated(behind)
    turn_end = frozenset({*served.ends, *stated.stated("<|im_end|>")})
    orders = [
        Order(ids=[*start, *stated.plain(text), *end], weights=model.weights, longest=6, ends=turn_end)
        for text in texts
    ]
    engine = Engine(served.composition, words=served.requests.words, rows=ROWS, waiting=len(orders))
    _, _, ids = asked(engine, orders, len(orders))
    engine.stop()
    return [(served.text(own), len(own) < order.longest) for own, order in zip(ids, orders, strict=True)]


def main() -> None:
    """Trains, serves both and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=1500, help="texts, of all sites together")
    parser.add_argument("--backbone", type=Path, help="a folder that `coordinator backbone import` wrote")
    parser.add_argument("--dir", type=Path, default=Path("serving"))
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    folder = args.dir / ("quality-quick" if args.quick else "quality")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    backbone = args.backbone or args.dir / "smollm2"
    if not backbone.exists():
        import_smollm2(backbone)
    runpy.run_path(str(EXAMPLE / "prepare.py"))["prepare"](folder / "records")
    draft = load_draft(EXAMPLE / "study.toml")
    model, task = load_study_model(draft, backbone), read_task(draft, folder / "records")
    each = math.ceil((20 if args.quick else args.train) / len(task.train))
    tables = [model.examples(records) for records in task.train.values()]
    width = max(table.ids.shape[1] for table in tables)
    ids, targets = (
        np.concatenate([np.pad(part[:each], ((0, 0), (0, width - part.shape[1]))) for part in parts])
        for parts in ([table.ids for table in tables], [table.targets for table in tables])
    )
    fit(model, ids, targets)
    card = ModelCard(
        study="diagnoses", study_hash="ab" * 32, backbone_hash=model.backbone_hash, sites=tuple(task.train), rounds=1,
        unit="text", mode="none", epsilon=None, delta=None, collusion=1, audit="none",
    )  # fmt: skip
    export(model.adapted, backbone, folder / "adapter", card)
    asked_for = held_out(folder / "records")[: 20 if args.quick else None]
    texts, right = [text for text, _ in asked_for], [word for _, word in asked_for]
    template = draft.data.text.prompt
    found = {
        form: answers(Served(backbone, [folder / "adapter"], frozen=form), texts, template)
        for form in ("float32", "int8")
    }
    print(f"{len(ids)} texts in training, {len(texts)} held out\n")
    print("| weights | right |\n|---|---|")
    judged = {
        form: np.array([word == want and is_ended for (word, is_ended), want in zip(own, right, strict=True)])
        for form, own in found.items()
    }
    for form, are_right in judged.items():
        print(f"| {form} | {100 * are_right.mean():.2f} % |")
    lost = judged["float32"].astype(float) - judged["int8"]
    margin = 1.96 * lost.std(ddof=1) / math.sqrt(len(lost))
    print(f"\nLost: {100 * lost.mean():.2f} points, and {100 * margin:.2f} more or less (95 %, texts in pairs)")
    same = sum(one == other for one, other in zip(*found.values(), strict=True))
    print(f"\nThe same answer: {same} of {len(texts)}")


if __name__ == "__main__":
    sys.exit(main())
