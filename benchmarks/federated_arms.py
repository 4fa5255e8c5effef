"""Trains a study's rounds in one process: all sites together, or one of them alone, with or without privacy.

What benchmarks of examples share. A site alone has its own batches and its own whole noise, at the same epsilon.
"""

import argparse
import csv
import hashlib
import itertools
import runpy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rows import Rows

from confide.client_node.study import StudyDraft, load_draft
from confide.client_node.study.cost import releases_of_draft, ring_of, solve_noise
from confide.client_node.training.study_model import StudyModel, load_study_model
from confide.coordinator.comparison.federated import federate, made_ready
from confide.coordinator.comparison.task import Task, read_task
from confide.coordinator.studies.text_backbone import build_text_backbone
from confide.models.backbones.text_pretraining import TextPretrainingConfig
from confide.models.structure.readers import READERS
from confide.privacy.accounting import epsilon_pld


@dataclass(frozen=True, slots=True)
class Bench:
    """Things that the runs of an example share."""

    draft: StudyDraft
    backbone: Path
    task: Task
    results: Path


def prepared(example: Path, folder: Path, *, is_quick: bool, backbone_seed: int = 1) -> Bench:
    """Prepares an example's records and its backbone of public ones in a folder, or finds them prepared.

    Results are named after the study's terms: those of former terms are of no use to new ones.

    Args:
        backbone_seed: of the backbone's pretraining; each has a backbone and results of its own.
        is_quick: two rounds of few records on a backbone of little, in a folder of its own: figures mean nothing.
    """
    draft = load_draft(example / "study.toml")
    folder = folder / "quick" if is_quick else folder
    own = "" if backbone_seed == 1 else f"-{backbone_seed}"
    records, backbone = folder / "records", folder / f"backbone{own}"
    if not records.exists():
        runpy.run_path(str(example / "prepare.py"))["prepare"](records)
    if is_quick:
        draft = changed(draft, "rounds", rounds=2)
        for path in records.rglob("*.csv"):
            keep_first(path, 1000 if path.name == "public.csv" else 40)
    if not backbone.exists():
        config, kind = TextPretrainingConfig(seed=backbone_seed), draft.data.kind.name
        if is_quick:
            few = {"eye": replace(config.eye, cells=1280), "ear": replace(config.ear, sounds=256)}
            config = replace(config, tokens=20_000, **few)
        structure = kind if kind in READERS else None
        build_text_backbone(draft, records / "public.csv", backbone, structure=structure, config=config)
    terms = draft.model_dump_json(exclude_defaults=True).encode()
    results = folder / f"results{own}-{hashlib.sha256(terms).hexdigest()[:8]}.jsonl"
    return Bench(draft, backbone, read_task(draft, records), results)


def keep_first(table: Path, records: int) -> None:
    """Cuts a table to its first records."""
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(itertools.islice(csv.reader(file), records + 1))
    with table.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


@dataclass(frozen=True, slots=True)
class Arm:
    """One run: who trains, with or without noise."""

    site: str | None  # None: all together
    is_private: bool
    together: str  # what all sites are called: "three hospitals"
    targets: tuple[str, tuple[str, ...]] | None = None  # a name and modules; None: the study's

    @property
    def name(self) -> str:
        """The run as a row of the table."""
        who = self.together if self.site is None else f"{self.site} alone"
        where = f", adapters on {self.targets[0]}" if self.targets else ""
        return f"{who}{'' if self.is_private else ', no privacy'}{where}"


def arms(sites: Sequence[str], together: str, targets: Mapping[str, tuple[str, ...]]) -> Iterator[Arm]:
    """Lists the runs, those of the study itself first, then private ones of all sites on other modules."""
    for site, is_private in itertools.product((None, *sites), (True, False)):
        yield Arm(site, is_private, together)
    for named in targets.items():
        yield Arm(None, True, together, named)


def parser_of(description: str | None, folder: str, targets: Mapping[str, tuple[str, ...]]) -> argparse.ArgumentParser:
    """Makes the options that all these benchmarks have.

    Args:
        folder: where results go if nothing else is said.
        targets: names of other modules that may be adapted.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path(folder))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--targets", nargs="*", choices=targets, default=[], help="the study with other modules, too")
    parser.add_argument("--arm", nargs="+", default=[""], help="only runs with one of these words in their names")
    parser.add_argument("--quick", action="store_true")
    return parser


def arms_asked(
    options: argparse.Namespace, sites: Sequence[str], together: str, targets: Mapping[str, tuple[str, ...]]
) -> tuple[list[Arm], list[int]]:
    """Returns the runs that the options ask for, and their seeds."""
    found = arms(sites, together, {name: targets[name] for name in options.targets})
    chosen = [arm for arm in found if any(word in arm.name for word in options.arm)]
    return chosen, options.seeds[:1] if options.quick else options.seeds


def of_arm(draft: StudyDraft, arm: Arm, task: Task) -> StudyDraft:
    """The study of one run; a site alone has its own batches and its own whole noise."""
    bare = draft.model_copy(update={"evaluation": None})
    if arm.targets:
        bare = changed(bare, "adapter", targets=arm.targets[1])
    if not arm.is_private:
        bare = changed(bare, "privacy", mode="none", noise_multiplier=0.0, delta=0.0)
    if arm.site is None:
        return bare
    batch = draft.privacy.sample_rate * task.train[arm.site].num_units
    alone = changed(bare, "participants", sites=(arm.site,))
    alone = changed(alone, "privacy", collusion=0, max_dropouts=0)
    return changed(alone, "rounds", batch_units=batch, min_sites=1)


def changed(draft: StudyDraft, part: str, **terms: object) -> StudyDraft:
    """The draft with other terms in one of its tables."""
    return draft.model_copy(update={part: getattr(draft, part).model_copy(update=terms)})


def of_epsilon(draft: StudyDraft, epsilon: float, dim: int) -> StudyDraft:
    """The study without its evaluation, with the noise that costs so much."""
    bare = draft.model_copy(update={"evaluation": None})
    return solve_noise(changed(bare, "privacy", noise_multiplier=0.0, target_epsilon=epsilon), dim)


def train(draft: StudyDraft, bench: Bench, sites: Sequence[str], seed: int) -> StudyModel:
    """Trains a study's rounds on the records of some sites."""
    model = load_study_model(draft, bench.backbone)
    examples = {site: model.examples(bench.task.train[site]) for site in sites}
    arrays = {site: (each.ids, each.targets, each.units) for site, each in examples.items()}
    mode, adapted = draft.privacy.mode, model.adapted
    ready = made_ready(draft, adapted, arrays, mode=mode)
    bits = ring_of(draft, adapted.layout.dim).scale_bits
    federate(draft, adapted, arrays, mode=mode, scale_bits=bits, seed=seed, ready=ready)
    return model


def run_arms(
    bench: Bench, *, chosen: Sequence[Arm], seeds: Sequence[int], judge: Callable[[StudyModel], dict]
) -> list[dict]:
    """Trains and judges each arm with each seed; a finished run is read from the results, where rows go as they come.

    Returns:
        All rows: arm, seed, epsilon, numbers (that are trained), seconds, and what `judge` says.
    """
    draft, known = bench.draft, Rows(bench.results)
    for seed, arm in itertools.product(seeds, chosen):
        if known.of({"arm": arm.name, "seed": seed}):
            continue
        own, started = of_arm(draft, arm, bench.task), time.perf_counter()
        sites = draft.participants.sites if arm.site is None else (arm.site,)
        model = train(own, bench, sites, seed)
        dim, privacy = model.adapted.layout.dim, own.privacy
        epsilon = None
        if arm.is_private:
            epsilon = epsilon_pld(releases_of_draft(own, dim), privacy.delta, privacy.collusion)
        seconds = round(time.perf_counter() - started)
        row = {"arm": arm.name, "seed": seed, "epsilon": epsilon, "numbers": dim, "seconds": seconds, **judge(model)}
        known.add(row, first_figure(row))
    return known.of({})


def run_at_epsilons(
    bench: Bench, epsilons: Sequence[float], together: str, seeds: Sequence[int], judge: Callable[[StudyModel], dict]
) -> list[dict]:
    """Trains and judges all organisations together at other epsilons; returns all rows, as `run_arms` does."""
    dim = load_study_model(bench.draft, bench.backbone).adapted.layout.dim
    for epsilon in epsilons:
        other = replace(bench, draft=of_epsilon(bench.draft, epsilon, dim))
        run_arms(other, chosen=[Arm(None, True, f"{together}, ε {epsilon:g}")], seeds=seeds, judge=judge)
    return Rows(bench.results).of({})


def table_of(rows: Sequence[dict], figures: Mapping[str, str]) -> str:
    """A row for each arm: means over seeds, of the first figure with half of Student's 95 % interval.

    Args:
        figures: the head of the column of each figure.
    """
    heads = ["", "ε", "numbers", *figures.values(), "runs"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == name]
        means = [f"{np.mean([row[figure] for row in own]):.3f}" for figure in figures]
        if len(own) > 1:
            means[0] += f" ± {spread([row[next(iter(figures))] for row in own]):.3f}"
        epsilon = "" if own[0]["epsilon"] is None else f"{own[0]['epsilon']:.2f}"
        lines.append(f"| {name} | {epsilon} | {own[0]['numbers'] or ''} | {' | '.join(means)} | {len(own)} |")
    return "\n".join(lines)


def keep_without_training(bench: Bench, arm: str, judge: Callable[[], dict]) -> None:
    """Judges what needs no training, unless the results have it."""
    known = Rows(bench.results)
    if not known.of({"arm": arm}):
        row = {"arm": arm, "seed": 0, "epsilon": None, "numbers": None, "seconds": 0, **judge()}
        known.add(row, first_figure(row))


def spread(values: Sequence[float]) -> float:
    """Half of Student's 95 % interval of a mean; 0 of one value."""
    from scipy.stats import t

    return t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0


def first_figure(row: dict) -> str:
    """Writes the first figure that was judged."""
    name, value = next((name, value) for name, value in list(row.items())[5:] if isinstance(value, float))
    return f"{name} {value:.3f}"
