"""Measures the cost of privacy in quality: an example's study in one process, with the functions that sites run.

    python benchmarks/quality.py [--example NAME] [--rows WORD ...] [--seeds 1 2] [--rounds N] [--backbone DIR] [--json]
    python benchmarks/quality.py --epsilons 1 2 3 8    # instead of the study's own noise
    python benchmarks/quality.py --settings            # other settings of the head alone, scored on a validation split
    python benchmarks/quality.py --by-record           # each record a unit of its own: the cost of unit-level privacy

The rounds are those of `coordinator.comparison.federated.federate`. A row is the mean over the seeds. Seeds determine
only the rows without noise: under privacy, noise and sampling come from the operating system, so such a row is a mean
over as many independent runs. Epsilon is that of the whole run, evaluation included. `options.py` compares the options
of study.toml in the same way as `--settings`.
"""

import argparse
import json
import platform
import runpy
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

from confide.client_node.study import StudyDraft, load_draft
from confide.client_node.study.cost import releases_of_draft, solve_noise, with_noise
from confide.coordinator.comparison.federated import federate, head_inputs, logits, untrained
from confide.coordinator.comparison.ladder import linear_rate
from confide.coordinator.comparison.linear import private_linear, word_inputs
from confide.coordinator.studies.learning_rates import with_rates
from confide.models.backbones import loading as backbones
from confide.models.backbones.pretraining import pretrain
from confide.models.evaluation.metrics import auc
from confide.models.records import RecordSchema
from confide.models.rounding import rounded_up
from confide.privacy.accounting import Mode, epsilon_pld

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SCALE_BITS = 24
VALIDATION = 0.2
HEAD_ROWS = ("head alone, no noise", "head alone, distributed noise")


@dataclass(frozen=True, slots=True)
class Table:
    """One part of one or more sites' records."""

    frame: pd.DataFrame
    ids: np.ndarray  # int64 [rows, length]
    labels: np.ndarray  # int64 [rows]
    units: np.ndarray  # int64 [rows], whose record it is


@dataclass(frozen=True, slots=True)
class Bench:
    """All that a row needs."""

    draft: StudyDraft
    backbone: Path
    sites: dict[str, Table]  # training parts
    held_out: Table  # of all sites together


def read_table(paths: Iterable[Path], draft: StudyDraft, schema: RecordSchema) -> Table:
    """The rows of CSV files as `prepare` writes them."""
    data = draft.data
    kinds = dict.fromkeys(data.categorical, object)
    frame = pd.concat([pd.read_csv(path, dtype=kinds) for path in paths], ignore_index=True)
    for flag in data.flags:
        frame[flag] = frame[flag] == "t"
    ids = schema.encode(schema.render({name: frame[name].to_numpy() for name in data.fields()}))
    return Table(frame, ids, frame[data.label].to_numpy(), pd.factorize(frame[f"{data.unit}_id"])[0])


def federated(bench: Bench, draft: StudyDraft, *, mode: Mode, seed: int) -> np.ndarray:
    """The held-out records' logits after the rounds of `draft` in `mode`."""
    adapted = untrained(draft, bench.backbone)
    sites = {name: (table.ids, table.labels, table.units) for name, table in bench.sites.items()}
    federate(draft, adapted, sites, mode=mode, scale_bits=SCALE_BITS, seed=seed)
    return logits(adapted, bench.held_out.ids)


def epsilon(draft: StudyDraft, mode: Mode, dim: int) -> float:
    """Spent on any one unit by a whole run, evaluation included, with the study's number of colluding sites."""
    draft = _with(draft, "privacy", mode=mode)
    return epsilon_pld(releases_of_draft(draft, dim), draft.privacy.delta, draft.privacy.collusion)


def private_logistic_regression(bench: Bench, draft: StudyDraft) -> np.ndarray:
    """The control: the same rounds, noise and momentum on a linear model of the words, without any backbone."""
    return linear(bench, draft, *words_of(bench), lr=linear_rate(draft))


def linear(bench: Bench, draft: StudyDraft, inputs: list[np.ndarray], test: np.ndarray, *, lr: float) -> np.ndarray:
    """Held-out scores of a linear model of `inputs` under the study's rounds and noise."""
    labels, units = ([getattr(table, part) for table in bench.sites.values()] for part in ("labels", "units"))
    rng = np.random.default_rng()
    return private_linear(draft, inputs, labels, test, lr=lr, scale_bits=SCALE_BITS, rng=rng, units=units)


def logistic_regression(bench: Bench) -> np.ndarray:
    """All training records in one place, no privacy."""
    inputs, held_out = words_of(bench)
    labels = np.concatenate([table.labels for table in bench.sites.values()])
    return LogisticRegression(max_iter=5000).fit(np.concatenate(inputs) > 0, labels).decision_function(held_out > 0)


def words_of(bench: Bench) -> tuple[list[np.ndarray], np.ndarray]:
    """Words of every site's training records, and of the held-out ones."""
    return [word_inputs(bench.draft, table.ids) for table in bench.sites.values()], word_inputs(
        bench.draft, bench.held_out.ids
    )


def head_inputs_of(bench: Bench) -> tuple[list[np.ndarray], np.ndarray]:
    """Computes the head's inputs for every site's training records, and for the held-out ones."""
    start = untrained(_with(bench.draft, "adapter", targets=()), bench.backbone)
    return [head_inputs(start, table.ids) for table in bench.sites.values()], head_inputs(start, bench.held_out.ids)


def boosted_trees(bench: Bench) -> np.ndarray:
    """All training records in one place, raw numbers, no privacy: about what these columns hold."""
    data = bench.draft.data
    columns = [*data.numeric, *data.flags]
    train = pd.concat([table.frame for table in bench.sites.values()])
    model = HistGradientBoostingClassifier(random_state=0)
    model.fit(train[columns].astype(float), train[data.label])
    return model.decision_function(bench.held_out.frame[columns].astype(float))


def measure(name: str, run: Callable[[int], np.ndarray], bench: Bench, seeds: list[int], cost: float | None) -> dict:
    """One row of the table."""
    values, started = [], time.perf_counter()
    for seed in seeds:
        values.append(auc(run(seed), bench.held_out.labels))
        print(f"{name}: seed {seed}: {values[-1].value:.4f}", file=sys.stderr, flush=True)
    return {
        "row": name,
        "auc": float(np.mean([value.value for value in values])),
        "runs": [round(value.value, 4) for value in values],
        "interval_of_first": [round(values[0].low, 4), round(values[0].high, 4)],
        "epsilon": cost,  # None: no bound
        "seconds": (time.perf_counter() - started) / len(seeds),
    }


def all_rows(bench: Bench, seeds: list[int], words: list[str], epsilons: list[float]) -> Iterator[dict]:
    """The rows whose names hold one of `words`, top to bottom; the private ones once for each of `epsilons`."""
    adapted = untrained(bench.draft, bench.backbone)
    dim, head_dim = adapted.layout.dim, len(adapted.head.weight)
    before = logits(adapted, bench.held_out.ids)

    def row(name: str, run: Callable[[int], np.ndarray], cost: Callable[[], float | None], *, once: bool = False):
        if any(word in name for word in words):
            yield measure(name, run, bench, seeds[:1] if once else seeds, cost())

    def no_bound() -> None:
        return None

    def study(mode: Mode, draft: StudyDraft) -> Callable[[int], np.ndarray]:
        return lambda seed: federated(bench, draft, mode=mode, seed=seed)

    heads = head_inputs_of(bench) if any(word in name for word in words for name in HEAD_ROWS) else None
    quiet = _with(bench.draft, "privacy", mode="none")
    head_lr = with_rates(bench.draft, dim - head_dim).optimizer.rates[1]

    def head(draft: StudyDraft) -> Callable[[int], np.ndarray]:
        return lambda seed: linear(bench, draft, *heads, lr=head_lr)

    yield from row("before training", lambda seed: before, lambda: 0.0, once=True)
    yield from row("head + LoRA, no noise", study("none", bench.draft), no_bound)
    yield from row("head alone, no noise", head(quiet), no_bound)
    yield from row("words, no noise", lambda seed: private_logistic_regression(bench, quiet), no_bound)
    for target in epsilons or [None]:
        draft = bench.draft if target is None else at_epsilon(bench.draft, target, dim)

        def cost(mode: Mode, trained: int, draft: StudyDraft = draft) -> Callable[[], float]:
            return lambda: epsilon(draft, mode, trained)

        yield from row("head + LoRA, distributed noise", study("distributed", draft), cost("distributed", dim))
        if target is None:
            yield from row("head + LoRA, local noise", study("local", draft), cost("local", dim))
        yield from row("head alone, distributed noise", head(draft), cost("distributed", head_dim))
        yield from row(
            "words, distributed noise",
            lambda seed, draft=draft: private_logistic_regression(bench, draft),
            cost("distributed", head_dim),
        )
    yield from row("logistic regression on words, pooled", lambda seed: logistic_regression(bench), no_bound, once=True)
    yield from row("boosted trees on raw columns, pooled", lambda seed: boosted_trees(bench), no_bound, once=True)


def split(bench: Bench) -> tuple[Bench, Table]:
    """The bench with four fifths of the training records, and the other fifth of all sites together."""
    kept, left_out = {}, []
    for site, table in bench.sites.items():
        is_out = (np.random.default_rng(7).random(table.units.max() + 1) < VALIDATION)[table.units]
        kept[site] = _rows(table, ~is_out)
        left_out.append(_rows(table, is_out))
    length = max(table.ids.shape[1] for table in left_out)
    validation = Table(
        frame=pd.concat([table.frame for table in left_out]),
        ids=np.concatenate([np.pad(t.ids, ((0, 0), (0, length - t.ids.shape[1]))) for t in left_out]),
        labels=np.concatenate([table.labels for table in left_out]),
        units=np.concatenate([table.units for table in left_out]),  # nobody trains on these
    )
    rounds = bench.draft.rounds
    rounds = rounds.model_copy(update={"batch_units": rounds.batch_units * (1 - VALIDATION)})
    return replace(bench, draft=bench.draft.model_copy(update={"rounds": rounds}), sites=kept), validation


def _rows(table: Table, chosen: np.ndarray) -> Table:
    return Table(table.frame[chosen], table.ids[chosen], table.labels[chosen], table.units[chosen])


def settings_of(study: StudyDraft) -> dict[str, StudyDraft]:
    """The study and changes of it. The noise of each makes it cost what the study's rounds cost."""
    dim = len(study.record_schema().words())  # epsilon hardly depends on it
    target = epsilon(study.model_copy(update={"evaluation": None}), "distributed", dim)
    rate, batch = study.privacy.sample_rate, study.rounds.batch_units

    def changed(head_lr: float = 10.0, momentum: float = 0.9, rounds: int = 40, share: float = rate, clip: float = 1.0):
        draft = _with(study, "optimizer", head_lr=head_lr, momentum=momentum)
        draft = _with(draft, "rounds", rounds=rounds, batch_units=batch * share / rate)
        return at_epsilon(_with(draft, "privacy", sample_rate=share, clip_norm=clip), target, dim)

    return {
        "as thyroid's study says": changed(),
        "head_lr 5": changed(5.0),
        "head_lr 20": changed(20.0),
        "head_lr 40": changed(40.0),
        "clip_norm 0.5": changed(clip=0.5),
        "clip_norm 0.25": changed(clip=0.25),
        "clip_norm 2, head_lr 20": changed(20.0, clip=2.0),
        "momentum 0, head_lr 100": changed(100.0, momentum=0.0),
        "momentum 0.95, head_lr 5": changed(5.0, momentum=0.95),
        "20 rounds, head_lr 20": changed(20.0, rounds=20),
        "80 rounds": changed(rounds=80),
        "80 rounds, head_lr 5": changed(5.0, rounds=80),
        "sample_rate 0.1": changed(share=0.1),
        "sample_rate 0.5": changed(share=0.5),
        "all units in every round": changed(share=1.0),
        "all units, 20 rounds, head_lr 20": changed(20.0, share=1.0, rounds=20),
    }


def compare_settings(bench: Bench, seeds: list[int]) -> Iterator[dict]:
    """Each setting of the head alone, scored on a fifth of the training records that is not trained on."""
    own, validation = split(bench)
    own = replace(own, held_out=validation)
    heads = head_inputs_of(own)
    for name, draft in settings_of(own.draft).items():
        spent = epsilon(draft, "distributed", len(heads[1][0]))

        def run(seed: int, draft: StudyDraft = draft) -> np.ndarray:
            return linear(own, draft, *heads, lr=draft.optimizer.rates[1])

        yield measure(name, run, own, seeds, spent) | {"noise_multiplier": draft.privacy.noise_multiplier}


def at_epsilon(draft: StudyDraft, target: float, dim: int) -> StudyDraft:
    """The study with the noise that makes a whole run of it cost `target`, evaluation left out.

    An evaluation with noise of its own would by itself cost more than a small target.
    """
    bare = draft.model_copy(update={"evaluation": None})
    return solve_noise(with_noise(_with(bare, "privacy", target_epsilon=target), 0.0), dim)


def _with(draft: StudyDraft, part: str, **terms: object) -> StudyDraft:
    return draft.model_copy(update={part: getattr(draft, part).model_copy(update=terms)})


def prepare_bench(
    folder: Path, rounds: int | None, backbone: Path | None, example: str = "thyroid", *, by_record: bool = False
) -> tuple[Bench, float | None]:
    """The bench, and the seconds that pretraining took if it was needed."""
    prepare = runpy.run_path(str(EXAMPLES / example / "prepare.py"))["prepare"]
    draft = load_draft(EXAMPLES / example / "study.toml")
    if rounds is not None:
        draft = _with(draft, "rounds", rounds=rounds)
    schema = draft.record_schema()
    parts = prepare(folder / "data")
    seconds = None
    if backbone is None:
        backbone, started = folder / "backbone", time.perf_counter()
        pretrain(schema, backbone)
        seconds = time.perf_counter() - started
    sites = {site: read_table([Path(part["train"])], draft, schema) for site, part in parts.items()}
    held_out = read_table([Path(part["heldout"]) for part in parts.values()], draft, schema)
    bench = Bench(draft, backbone, sites, held_out)
    return (record_by_record(bench) if by_record else bench), seconds


def record_by_record(bench: Bench) -> Bench:
    """The same records with each one a unit of its own, and so more units in a round."""
    sites = {name: replace(table, units=np.arange(len(table.labels))) for name, table in bench.sites.items()}
    more = sum(len(t.labels) for t in sites.values()) / sum(t.units.max() + 1 for t in bench.sites.values())
    draft = _with(bench.draft, "data", max_records_per_unit=1)
    draft = _with(draft, "rounds", batch_units=draft.rounds.batch_units * more)
    return replace(bench, draft=draft, sites=sites)


def main() -> None:
    """Prints the table row by row as it comes, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    examples = sorted(path.parent.name for path in EXAMPLES.glob("*/prepare.py"))
    parser.add_argument("--example", choices=examples, default="thyroid")
    parser.add_argument("--rows", nargs="+", default=[""], help="only rows with one of these words in their names")
    parser.add_argument(
        "--epsilons", type=float, nargs="+", default=[], help="solve the noise for these, no evaluation"
    )
    parser.add_argument("--by-record", action="store_true", help="protect a record, not a unit with all its records")
    parser.add_argument("--settings", action="store_true", help="compare settings on a validation split instead")
    parser.add_argument("--setting", help="take this one of the settings for the study; scored on the held-out records")
    parser.add_argument("--rounds", type=int, help="instead of the study's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2], help="one run a seed and row")
    parser.add_argument("--backbone", type=Path, help="use this one instead of pretraining one")
    parser.add_argument("--json", action="store_true", help="one object a line: the facts, then the rows")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench, pretraining_s = prepare_bench(
            Path(folder), options.rounds, options.backbone, options.example, by_record=options.by_record
        )
        if options.setting:
            bench = replace(bench, draft=settings_of(bench.draft)[options.setting])
        facts = {
            "example": options.example,
            "unit": "record" if options.by_record else bench.draft.data.unit,
            "machine": platform.platform(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "rounds": bench.draft.rounds.rounds,
            "delta": bench.draft.privacy.delta,
            "colluding": bench.draft.privacy.collusion,
            "records": {site: len(table.labels) for site, table in bench.sites.items()},
            "held_out": len(bench.held_out.labels),
            "backbone_parameters": sum(p.numel() for p in backbones.load(bench.backbone).model.parameters()),
            "trained_parameters": untrained(bench.draft, bench.backbone).layout.dim,
            "pretraining_seconds": pretraining_s,
        }
        print(json.dumps(facts), flush=True)
        if not options.json:
            print(f"\n| {'trained':40} | AUC    | epsilon  | s a run |\n|{'-' * 42}|--------|----------|---------|")
        rows = all_rows(bench, options.seeds, options.rows, options.epsilons)
        for row in compare_settings(bench, options.seeds) if options.settings else rows:
            spent = "no bound" if row["epsilon"] is None else rounded_up(row["epsilon"], 3)
            line = f"| {row['row']:40} | {row['auc']:.4f} | {spent:>8} | {row['seconds']:7.1f} |"
            print(json.dumps(row) if options.json else line, flush=True)


if __name__ == "__main__":
    main()
