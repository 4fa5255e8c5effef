"""Trains a study's rounds in one process: all sites together, or one of them alone, with or without privacy.

What benchmarks of examples share. A site alone has its own batches and its own whole noise, at the same epsilon.
"""

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from confide.client_node.study import StudyDraft
from confide.client_node.study.cost import releases_of_draft, ring_of
from confide.client_node.training.study_model import StudyModel, load_study_model
from confide.coordinator.comparison.federated import federate, made_ready
from confide.coordinator.comparison.task import Task
from confide.privacy.accounting import epsilon_pld


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


def train(draft: StudyDraft, backbone: Path, task: Task, sites: Sequence[str], seed: int) -> StudyModel:
    """Trains a study's rounds on the records of some sites."""
    model = load_study_model(draft, backbone)
    examples = {site: model.examples(task.train[site]) for site in sites}
    arrays = {site: (each.ids, each.targets, each.units) for site, each in examples.items()}
    mode, adapted = draft.privacy.mode, model.adapted
    ready = made_ready(draft, adapted, arrays, mode=mode)
    bits = ring_of(draft, adapted.layout.dim).scale_bits
    federate(draft, adapted, arrays, mode=mode, scale_bits=bits, seed=seed, ready=ready)
    return model


def run_arms(
    draft: StudyDraft,
    backbone: Path,
    task: Task,
    *,
    chosen: Sequence[Arm],
    seeds: Sequence[int],
    results: Path,
    judge: Callable[[StudyModel], dict],
) -> list[dict]:
    """Trains and judges each arm with each seed; a finished run is read from the results, where rows go as they come.

    Returns:
        All rows: arm, seed, epsilon, numbers (that are trained), seconds, and what `judge` says.
    """
    known = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    for seed, arm in itertools.product(seeds, chosen):
        if any((row["arm"], row["seed"]) == (arm.name, seed) for row in known):
            continue
        own, started = of_arm(draft, arm, task), time.perf_counter()
        sites = draft.participants.sites if arm.site is None else (arm.site,)
        model = train(own, backbone, task, sites, seed)
        dim, privacy = model.adapted.layout.dim, own.privacy
        epsilon = None
        if arm.is_private:
            epsilon = epsilon_pld(releases_of_draft(own, dim), privacy.delta, privacy.collusion)
        seconds = round(time.perf_counter() - started)
        row = {"arm": arm.name, "seed": seed, "epsilon": epsilon, "numbers": dim, "seconds": seconds, **judge(model)}
        known.append(row)
        keep(row, results)
    return known


def is_known(arm: str, results: Path) -> bool:
    """True if the results have a row of an arm."""
    lines = results.read_text().splitlines() if results.exists() else []
    return any(json.loads(line)["arm"] == arm for line in lines)


def keep(row: dict, results: Path) -> None:
    """Adds a row to the results, and says its first figure."""
    with results.open("a") as file:
        file.write(json.dumps(row) + "\n")
    name, value = next((name, value) for name, value in list(row.items())[5:] if isinstance(value, float))
    print(f"{row['arm']}, seed {row['seed']}: {name} {value:.3f}, {row['seconds']} s", file=sys.stderr, flush=True)
