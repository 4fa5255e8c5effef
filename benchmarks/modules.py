"""Measures what adapters of three studies are worth when they are composed for each request, beside fixed mixtures.

    python benchmarks/modules.py text [--seeds 0 1 2] [--results modules.jsonl]
    python benchmarks/modules.py tables [--seeds 0 1 2]
    python benchmarks/modules.py cost                          # of a pass, on SmolLM2 rewritten with experts
    python benchmarks/modules.py text --quick                  # does it run? Also tables and cost

text: a public backbone has learned a little of three tasks, those of benchmarks/tasks.py without the word that names
the task: a description to an expression, an expression and x to a value, an expression to a description. Three studies
train adapters on one of them each, with and without privacy, and release a prototype each. Requests are as many of each
task, of programs that nobody has seen. An answer is right as in benchmarks/tasks.py.

tables: the studies of examples/thyroid, examples/loans and examples/rand on one backbone whose schema has all their
columns, each with its own label; requests are held-out records of all three, and each arm has an AUC on each.

Arms: the backbone alone; each module alone; the mean and the sum of the three; Arrow; by prototypes; and who knows of
each request which study it belongs to. Figures: docs/benchmarks/modules.md.
"""

import argparse
import itertools
import math
import random
import runpy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tasks
import torch
from federated_arms import changed, keep_first
from rows import Rows

from confide.client_node.study import StudyDraft, load_draft
from confide.client_node.study.cost import releases_of_draft, ring_of, solve_noise
from confide.client_node.training.study_model import load_study_model
from confide.coordinator.comparison.federated import federate
from confide.coordinator.comparison.task import Task, read_task
from confide.models.adapters import AdaptedModel, AdapterConfig, ModelCard, attach, export
from confide.models.adapters.composing import FLOOR, Composition, compose
from confide.models.adapters.prototype import Prototype
from confide.models.backbones import loading
from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.moments import take_moments
from confide.models.backbones.pretraining import PretrainingConfig, pretrain
from confide.models.backbones.smollm2 import import_smollm2_moe
from confide.models.backbones.text_pretraining import TextPretrainingConfig, pretrain_text
from confide.models.decoding import writing
from confide.models.evaluation.metrics import auc
from confide.models.heads import PooledHead
from confide.models.heads.signature import signatures
from confide.privacy.accounting import epsilon_pld

NUMBER = {word: place for place, word in enumerate(tasks.WORDS)}
TEXTS = [f" {word}" for word in tasks.WORDS]
UNITS, SITES, LENGTH = 30_000, ("north", "south", "west"), 64
BASE_TOKENS = 1_600_000
TABLES = ("thyroid", "loans", "rand")
CHOSEN_BY = ((0, 15, 24, 30), (0, 6))  # states of SmolLM2's 30 layers
EXAMPLES = Path(__file__).parents[1] / "examples"
STUDY = """
name = "{name}"
[model]
backbone = "backbone"
[adapter]
rank = 8
alpha = 16.0
targets = [
  "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "experts",
]
head = "lm"
seed = "shared"
[data]
unit = "person"
max_tokens = 64
[data.text]
prompt = "{{question}}"
completion = " {{answer}} <end>"
[privacy]
mode = "distributed"
target_epsilon = {epsilon}
clip_norm = {clip}
sample_rate = {rate}
delta = 1e-5
[rounds]
rounds = {rounds}
min_sites = 3
deadline_s = 60
batch_units = {batch}
[optimizer]
kind = "adam"
lr = {lr}
averaging = "ema"
[prototype]
length = 64
noise_multiplier = 40.0
[participants]
sites = ["north", "south", "west"]
aggregators = ["a", "b", "c"]
"""


def text_draft(name: str, folder: Path, **terms: object) -> StudyDraft:
    """The draft of one study of free text; its noise is solved for epsilon 3, prototype included."""
    path = folder / f"{name}.toml"
    given = {"epsilon": 3.0, "clip": 0.5, "rate": 0.03, "rounds": 60, "lr": 0.02} | terms
    path.write_text(STUDY.format(name=name, batch=given["rate"] * UNITS, **given))
    return load_draft(path)


def asked(task: str, rng: random.Random, program: tasks.Program, x: int) -> tuple[list[int], list[int]]:
    """Tokens of a question without the word that names its task, and of its answer."""
    question, answer = tasks.example(task, program, x, rng)
    return [NUMBER[word] for word in question[1:]], [NUMBER[word] for word in (*answer, tasks.END)]


def padded(rows: Sequence[tuple[list[int], list[int]]]) -> tuple[np.ndarray, np.ndarray]:
    """Ids and which are learned, [rows, longest]."""
    longest = max(len(question) + len(answer) for question, answer in rows)
    ids, learned = np.zeros((len(rows), longest), np.int64), np.zeros((len(rows), longest), bool)
    for row, (question, answer) in enumerate(rows):
        end = len(question) + len(answer)
        ids[row, :end], learned[row, len(question) : end] = question + answer, True
    return ids, learned


def public_backbone(folder: Path, seed: int, tokens: int) -> Path:
    """A backbone that has read so many public tokens of all tasks, with moments of public questions."""
    rng, rows, read = random.Random(seed), [], 0
    source = {task: tasks.cases(rng, "train") for task in tasks.TASKS}
    for task in itertools.cycle(tasks.TASKS):
        if read >= tokens:
            break
        question, answer = asked(task, rng, *next(source[task]))
        rows.append((question + answer, [False] * len(question) + [True] * len(answer)))
        read += len(rows[-1][0])
    pretrain_text(
        rows, tasks.tokenizer(), folder / "plain",
        backbone=BackboneConfig(hidden=64, layers=2, max_tokens=64, seed=seed),
        config=TextPretrainingConfig(tokens=tokens, lr=1.2e-2, seed=seed),
    )  # fmt: skip
    texts = [
        " ".join(tasks.WORDS[token] for token in asked(task, rng, *next(source[task]))[0])
        for task in tasks.TASKS
        for _ in range(700)
    ]
    take_moments(folder / "plain", texts, folder / "backbone", reads=(0, 1, 2), max_tokens=64)
    return folder / "backbone"


def study_model(base: Path, draft: StudyDraft) -> AdaptedModel:
    """The backbone with the study's adapters as they start."""
    return attach(loading.load_text(base).model, AdapterConfig(**draft.adapter_config()))


def train_text(base: Path, task: str, seed: int, folder: Path, *, is_private: bool, **terms: object) -> dict:
    """Trains one study's adapters on the units of three sites, and exports them with a prototype; returns its facts."""
    draft = text_draft(task, folder, **terms)
    adapted = study_model(base, draft)
    dim = adapted.layout.dim
    draft = solve_noise(draft, dim)
    releases = releases_of_draft(draft, dim)
    rng = random.Random(f"{task} {seed}")
    rows = [asked(task, rng, *case) for case in itertools.islice(tasks.cases(rng, "train"), UNITS)]
    ids, learned = padded(rows)
    shares = np.array_split(np.arange(UNITS), len(SITES))
    arrays = {site: (ids[own], learned[own], own) for site, own in zip(SITES, shares, strict=True)}
    bits = ring_of(draft, dim).scale_bits
    federate(draft, adapted, arrays, mode="distributed" if is_private else "none", scale_bits=bits, seed=seed)
    card = ModelCard(
        study=task, study_hash=f"{seed:02x}{tasks.TASKS.index(task):02x}" * 16,
        backbone_hash=loading.load_text(base).hash, sites=SITES, rounds=draft.rounds.rounds, unit="person",
        mode="distributed" if is_private else "none",
        epsilon=epsilon_pld(releases, 1e-5, 1) if is_private else None, delta=1e-5 if is_private else None,
        collusion=1, audit="none: a benchmark",
    )  # fmt: skip
    prototype = prototype_of(base, rows, draft.prototype.noise_multiplier, seed)
    export(adapted, base, folder / f"{task}{'' if is_private else ' bare'}".replace(" ", "-"), card, prototype)
    alone = [release for release in releases if release.dim == LENGTH]
    return {"dim": dim, "epsilon": card.epsilon, "of_prototype": epsilon_pld(alone, 1e-5, 1)}


@torch.no_grad()
def prototype_of(base: Path, rows: Sequence[tuple[list[int], list[int]]], noise: float, seed: int) -> Prototype:
    """The sum of the rows' signatures with Gaussian noise, as a study would release it."""
    backbone = loading.load_text(base)
    found = signatures_of(backbone, [question for question, _ in rows])
    noise_std = noise * math.sqrt(len(SITES) / (len(SITES) - 1))  # of three sites, one of which may collude
    drawn = torch.from_numpy(np.random.default_rng(seed).normal(0, noise_std, LENGTH))
    return Prototype((found.double().sum(0) + drawn).float(), noise_std)


def signatures_of(backbone: loading.TextBackbone, questions: Sequence[list[int]]) -> torch.Tensor:
    """[rows, LENGTH], computed by length."""
    found, lens = torch.zeros(len(questions), LENGTH), backbone.head()
    for places in by_length(questions):
        ids = torch.tensor([questions[place] for place in places])
        found[places] = signatures(backbone.model, lens, ids, LENGTH)
    return found


def by_length(questions: Sequence[list[int]], most: int = 64) -> list[list[int]]:
    """Places of questions of one length, so many at most."""
    lengths: dict[int, list[int]] = {}
    for place, question in enumerate(questions):
        lengths.setdefault(len(question), []).append(place)
    return [own[start : start + most] for own in lengths.values() for start in range(0, len(own), most)]


def solved(composition: Composition, asked_of: Sequence[tuple], weights: torch.Tensor | None) -> np.ndarray:
    """Judges the answer to each request, by these weights [requests, modules]; None: by arrow."""
    right = np.zeros(len(asked_of), bool)
    questions = [question for question, *_ in asked_of]
    for places in by_length(questions):
        with composition.answering(None if weights is None else weights[places]) as adapted:
            some = [questions[place] for place in places]
            written = writing.write(adapted.model, some, TEXTS, ends=(NUMBER[tasks.END],), longest=tasks.LONGEST)
        for place, each in zip(places, written, strict=True):
            right[place] = tasks.passes(asked_of[place][1], each.text.split(), *asked_of[place][2:])
    return right


def requests(part: str, each: int, seed: int) -> list[tuple]:
    """As many requests of every task: (question, task, program, x)."""
    rng = random.Random(f"{part} {seed}")
    source = tasks.cases(rng, part)
    return [
        (asked(task, rng, *case)[0], task, *case) for task in tasks.TASKS for case in itertools.islice(source, each)
    ]


def weights_of(composition: Composition, questions: Sequence[list[int]], floor: float) -> torch.Tensor:
    """[requests, modules] by prototypes."""
    found = torch.zeros(len(questions), len(composition.adapters))
    for places in by_length(questions):
        ids = torch.tensor([questions[place] for place in places])
        found[places] = composition.by_prototypes(ids, floor=floor)
    return found


def arms_of(composition: Composition, names: Sequence[str], routed: torch.Tensor) -> dict[str, torch.Tensor | None]:
    """Weights [requests, modules] of every arm, for as many requests of each study, in the order of studies."""
    rows, count = len(routed), len(names)
    one = torch.eye(count)
    return {
        "backbone alone": torch.zeros(rows, count),
        **{f"{name} alone": one[place].expand(rows, count) for place, name in enumerate(names)},
        "mean": composition.fixed(rows),
        "sum": composition.fixed(rows, [1.0] * count),
        "arrow": None,
        "prototypes": routed,
        "known study": one.repeat_interleave(rows // count, 0),
    }


def text(rows: Rows, seed: int, *, tokens: int, each: int, part: str, terms: dict) -> None:
    """Trains the backbone and the three studies of one seed, with and without privacy, and asks every arm."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        base = public_backbone(folder, seed, tokens)
        asked_of = requests(part, each, seed)
        questions = [question for question, *_ in asked_of]
        for is_private in (True, False):
            started = time.process_time()
            paths = [folder / f"{task}{'' if is_private else '-bare'}" for task in tasks.TASKS]
            facts = [train_text(base, task, seed, folder, is_private=is_private, **terms) for task in tasks.TASKS]
            composition = compose(base, paths)
            routed = weights_of(composition, questions, FLOOR)
            right = routed.view(len(tasks.TASKS), each, -1).argmax(2).eq(torch.arange(len(tasks.TASKS))[:, None])
            for arm, weights in arms_of(composition, tasks.TASKS, routed).items():
                if not (is_private and arm == "backbone alone") or not rows.of({"seed": seed, "arm": arm}):
                    found = solved(composition, asked_of, weights).reshape(len(tasks.TASKS), each).mean(1)
                    key = {"what": "text", "arm": arm, "seed": seed, "private": is_private, "part": part}
                    row = key | {"passed": dict(zip(tasks.TASKS, found.tolist(), strict=True)), "facts": facts[0]}
                    row |= {"right study": right.float().mean().item(), "seconds": round(time.process_time() - started)}
                    rows.add(row, f"{'private' if is_private else 'no privacy'}, {found.mean():.3f}")


def prepared(folder: Path, seed: int, *, is_quick: bool) -> tuple[list[tuple[StudyDraft, Path]], Path]:
    """The three studies with their records, and the backbone of all their columns."""
    studies = []
    for name in TABLES:
        records = folder / name
        runpy.run_path(str(EXAMPLES / name / "prepare.py"))["prepare"](records)
        if is_quick:
            for path in records.rglob("*.csv"):
                keep_first(path, 60)
        draft = load_draft(EXAMPLES / name / "study.toml").model_copy(update={"evaluation": None})
        studies.append((changed(draft, "rounds", rounds=2) if is_quick else draft, records))
    config = PretrainingConfig(seed=seed, **({"steps": 2, "questions": 8} if is_quick else {}))
    pretrain(
        [draft.record_schema() for draft, _ in studies], folder / "backbone",
        backbone=BackboneConfig(seed=seed), config=config,
    )  # fmt: skip
    return studies, folder / "backbone"


def train_table(draft: StudyDraft, task: Task, backbone: Path, folder: Path, seed: int, *, is_private: bool) -> float:
    """Trains one study's adapters and head on its sites' records, and exports them; returns epsilon of its rounds."""
    model = load_study_model(draft, backbone)
    arrays = {site: model.examples(records) for site, records in task.train.items()}
    trained = {site: (own.ids, own.targets, own.units) for site, own in arrays.items()}
    dim, bits = model.adapted.layout.dim, ring_of(draft, model.adapted.layout.dim).scale_bits
    federate(draft, model.adapted, trained, mode="distributed" if is_private else "none", scale_bits=bits, seed=seed)
    lens, loaded = loading.load(backbone).head(), loading.load(backbone)
    total = torch.zeros(LENGTH, dtype=torch.float64)
    with torch.no_grad():
        for own in arrays.values():
            found = [signatures(loaded.model, lens, ids, LENGTH) for ids in torch.from_numpy(own.ids).split(256)]
            by_row = torch.cat(found).double()
            counts = np.bincount(own.units)[own.units]  # a unit adds the mean of its records
            total += (by_row / torch.from_numpy(counts)[:, None]).sum(0)
    sites = len(draft.participants.sites)
    noise_std = 40.0 * math.sqrt(sites / (sites - 1))
    noise = torch.from_numpy(np.random.default_rng(seed).normal(0, noise_std, LENGTH))
    spent = epsilon_pld(releases_of_draft(draft, dim), draft.privacy.delta, draft.privacy.collusion)
    card = ModelCard(
        study=draft.name, study_hash=f"{seed:02x}{TABLES.index(draft.name):02x}" * 16, backbone_hash=loaded.hash,
        sites=draft.participants.sites, rounds=draft.rounds.rounds, unit=draft.data.unit,
        mode="distributed" if is_private else "none", epsilon=spent if is_private else None,
        delta=draft.privacy.delta if is_private else None, collusion=1, audit="none: a benchmark",
    )  # fmt: skip
    export(model.adapted, backbone, folder, card, Prototype((total + noise).float(), noise_std))
    return spent


def tables(rows: Rows, seed: int, *, is_quick: bool) -> None:
    """Trains the three studies of tables on one backbone, and asks every arm about their held-out records."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        studies, backbone = prepared(folder, seed, is_quick=is_quick)
        read = [read_task(draft, records) for draft, records in studies]
        for is_private in (True, False):
            started = time.process_time()
            paths = [folder / f"{name}-{is_private}" for name in TABLES]
            spent = [
                train_table(draft, task, backbone, path, seed, is_private=is_private)
                for (draft, _), task, path in zip(studies, read, paths, strict=True)
            ]
            composition = compose(backbone, paths)
            asked_of = []
            for (draft, _), task in zip(studies, read, strict=True):
                model = load_study_model(draft, backbone)
                own = [model.examples(records) for records in task.held_out.values()]
                asked_of.append(
                    ([torch.from_numpy(each.ids) for each in own], np.concatenate([e.targets for e in own]))
                )
            for arm in arms_of(composition, TABLES, torch.zeros(len(TABLES), len(TABLES))):
                found, right = {}, {}
                for place, (name, (ids, labels)) in enumerate(zip(TABLES, asked_of, strict=True)):
                    logits, chosen = [], []
                    for own in (part for each in ids for part in each.split(256)):
                        routed = composition.by_prototypes(own)
                        known = torch.eye(len(TABLES))[place].expand(len(own), len(TABLES))
                        weights = {**arms_of(composition, TABLES, routed.repeat(len(TABLES), 1)[: len(own)])}
                        weights = known if arm == "known study" else routed if arm == "prototypes" else weights[arm]
                        logits.append(composition.classify(own, None if weights is None else weights[: len(own)])[:, 0])
                        chosen.append(routed.argmax(1) == place)
                    scores = torch.cat(logits)
                    loss = torch.nn.functional.binary_cross_entropy_with_logits(
                        scores, torch.from_numpy(labels).float()
                    )
                    found[name] = (auc(scores.numpy(), labels).value, loss.item())
                    right[name] = torch.cat(chosen).float().mean().item()
                row = {"what": "tables", "arm": arm, "seed": seed, "private": is_private, "found": found}
                row |= {"right study": right, "epsilon": spent, "seconds": round(time.process_time() - started)}
                mean = statistics.mean(value for value, _ in found.values())
                rows.add(row, f"{'private' if is_private else 'no privacy'}, AUC {mean:.3f}")


def lens_of(model: Any, reads: tuple[int, ...]) -> PooledHead:
    """A head on some states; what it costs to read them does not depend on its numbers."""
    states, width = len(reads), model.config.hidden_size
    return PooledHead(torch.zeros(states, width), torch.eye(width).expand(states, -1, -1).clone(), reads=reads)


def cost(*, is_quick: bool) -> None:
    """Times a pass over a batch with three adapters and weights of each request's own, beside one adapter alone."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        import_smollm2_moe(folder / "backbone")
        targets = ("q_proj", "kv_b_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "experts")
        described = loading.describe(folder / "backbone")
        targets = tuple(target for target in targets if target in described.targets)
        for number in range(3):
            model = loading.load_text(folder / "backbone").model
            adapted = attach(model, AdapterConfig(rank=8, alpha=16.0, targets=targets, seed="shared"))
            rng = np.random.default_rng(number)
            adapted.load_state(rng.normal(0, 0.01, adapted.layout.dim))
            card = ModelCard(
                study=f"s{number}", study_hash=f"{number:02x}" * 32, backbone_hash=described.hash, sites=("a",),
                rounds=1, unit="person", mode="none", epsilon=None, delta=None, collusion=0, audit="none: a benchmark",
            )  # fmt: skip
            export(adapted, folder / "backbone", folder / f"s{number}", card, None)
        print(f"{', '.join(targets)}; rank 8; {adapted.layout.dim:,} numbers an adapter", file=sys.stderr)
        composition = compose(folder / "backbone", [folder / f"s{number}" for number in range(3)])
        plain = loading.load_text(folder / "backbone").model
        rows, length, words = (4, 16, 2) if is_quick else (16, 64, 9)
        ids = torch.randint(10, 40_000, (rows, length), generator=torch.Generator().manual_seed(1))
        mixed = torch.rand(rows, 3, generator=torch.Generator().manual_seed(2))

        def one_pass(run: Callable[[], object]) -> float:
            started = time.process_time()
            with torch.no_grad():
                run()
            return time.process_time() - started

        def composed(weights: torch.Tensor | None) -> object:
            with composition.answering(weights) as model:
                return model.model(ids, use_cache=False)

        arms = {
            "one adapter": lambda: adapted.model(ids, use_cache=False),
            "backbone alone": lambda: plain(ids, use_cache=False),
            "three, weights by request": lambda: composed(mixed),
            "three, arrow": lambda: composed(None),
            **{
                f"choosing, by states {', '.join(map(str, lens.reads))}": partial(signatures, plain, lens, ids, LENGTH)
                for lens in (lens_of(plain, reads) for reads in CHOSEN_BY)
            },
        }
        seconds = {name: [] for name in arms}
        for _ in range(words):
            for name, run in arms.items():
                seconds[name].append(one_pass(run))
        unit = statistics.median(seconds["one adapter"])
        print(f"| a pass over {rows} requests of {length} tokens | CPU s | over one adapter |\n|---|---|---|")
        for name, found in seconds.items():
            print(f"| {name} | {statistics.median(found):.2f} | {statistics.median(found) / unit:.2f} |")


def report(rows: Rows, what: str) -> str:
    """The rows of one part as a table, means over seeds."""
    found = rows.of({"what": what})
    names = tasks.TASKS if what == "text" else TABLES
    lines = [f"| arm | privacy | seeds | mean | {' | '.join(names)} |", "|---|---|---|---|" + "---|" * len(names)]
    for is_private in (True, False):
        for arm in dict.fromkeys(row["arm"] for row in found):
            own = [row for row in found if (row["arm"], row["private"]) == (arm, is_private)]
            if not own:
                continue
            if what == "text":
                by_name = {name: [row["passed"][name] for row in own] for name in names}
                cells = [f"{statistics.mean(by_name[name]):.3f}" for name in names]
            else:
                by_name = {name: [row["found"][name][0] for row in own] for name in names}
                losses = {name: statistics.mean(row["found"][name][1] for row in own) for name in names}
                cells = [f"{statistics.mean(by_name[name]):.3f} ({losses[name]:.3f})" for name in names]
            means = [statistics.mean(values) for values in zip(*by_name.values(), strict=True)]
            spread = f" ± {statistics.stdev(means) / len(means) ** 0.5:.3f}" if len(means) > 1 else ""
            privacy = "private" if is_private else "none"
            lines.append(
                f"| {arm} | {privacy} | {len(own)} | {statistics.mean(means):.3f}{spread} | {' | '.join(cells)} |"
            )
    right = [row["right study"] for row in found if row["arm"] == "prototypes" and row["private"]]
    return "\n".join([*lines, "", f"the right study has the largest weight: {right}"])


def main() -> None:
    """Runs one part, or what is missing of it, and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("text", "tables", "cost"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=Path("modules.jsonl"))
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.part == "cost":
        return cost(is_quick=args.quick)
    with tempfile.TemporaryDirectory() as made:
        rows = Rows(Path(made) / "quick.jsonl" if args.quick else args.results)
        for seed in args.seeds[:1] if args.quick else args.seeds:
            if rows.of({"what": args.part, "seed": seed, "arm": "known study", "private": False}):
                continue
            if args.part == "tables":
                tables(rows, seed, is_quick=args.quick)
            elif args.quick:
                terms = {"rounds": 2, "rate": 0.001}
                text(rows, seed, tokens=20_000, each=4, part="test", terms=terms)
            else:
                text(rows, seed, tokens=BASE_TOKENS, each=200, part="test", terms={})
        print(report(rows, args.part))


if __name__ == "__main__":
    main()
