"""Measures the damage of one malicious site of five to the model, with and without the norm check.

    python benchmarks/robustness.py [--head | --quick] [--rounds N] [--backbone DIR] [--json]
    python benchmarks/robustness.py --norms loans    # lengths of honest sums, for the choice of max_norm

The thyroid study runs on its own records, distributed at random to five equal sites; the last site attacks in every
round. The sites' and the coordinator's steps are the real ones. The verdict on a vector is that of the plain rule
(`tests/mpc/plain_norm_check.py`), at the bound that the study plans. Noise and sampling are the operating system's:
runs differ by some 0.005 in AUC. `--head` trains the head alone, in a third of the time; `--quick` does that for ten
rounds.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from quality import Bench, Table, prepare_bench

from confide.client_node.replay import Checkpoint
from confide.client_node.replay.following import start_state
from confide.client_node.replay.server_optimizer import server_step
from confide.client_node.study import Study, StudyDraft
from confide.client_node.study.cost import provisional
from confide.client_node.training.trainer import release_terms
from confide.coordinator.comparison.federated import logits, untrained
from confide.coordinator.studies.learning_rates import with_rates
from confide.models.adapters import AdaptedModel
from confide.models.evaluation.metrics import auc
from confide.mpc.sharing import Ring
from confide.mpc.sharing.ring import from_integers
from confide.mpc.sharing.sketch import Sketch, limits
from confide.privacy.mechanism.batches import BatchShapes, probed_shapes
from confide.privacy.mechanism.site_round import ReleaseTerms, round_release

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "mpc"))
from plain_norm_check import exceedances

SITES = ("one", "two", "three", "four", "attacker")
Vector = np.ndarray  # int64 [dim], ring units
Attack = Callable[[Vector, float], Vector]  # of what an honest site would send, and the bound in ring units


@dataclass(frozen=True, slots=True)
class Scenario:
    """An attack by the last site, with or without the norm check."""

    name: str
    attack: Attack | None = None
    flips_labels: bool = False
    is_noiseless: bool = False  # the attacker leaves its noise out
    is_checked: bool = True
    max_norm: float | None = None  # instead of the study's


def times(factor: float) -> Attack:
    """The honest vector, so many times."""
    return lambda vector, bound: np.rint(factor * vector).astype(np.int64)


def random_of_size(factor: float) -> Attack:
    """A random direction, so many times as long as the honest vector."""

    def attack(vector: Vector, bound: float) -> Vector:
        direction = np.random.default_rng().standard_normal(vector.size)
        return np.rint(direction * (factor * np.linalg.norm(vector) / np.linalg.norm(direction))).astype(np.int64)

    return attack


def just_inside(vector: Vector, bound: float) -> Vector:
    """The honest direction turned round, as long as an honest vector may be."""
    return np.rint(vector * (-bound / np.linalg.norm(vector))).astype(np.int64)


SCENARIOS = (
    Scenario("no attack"),
    Scenario("sign flipped, x 100", times(-100), is_checked=False),
    Scenario("sign flipped, x 100", times(-100)),
    Scenario("random, 100 times as long", random_of_size(100), is_checked=False),
    Scenario("random, 100 times as long", random_of_size(100)),
    Scenario("labels flipped", flips_labels=True),
    Scenario("labels flipped, x 100", times(100), flips_labels=True, is_checked=False),
    Scenario("labels flipped, x 100", times(100), flips_labels=True),
    Scenario("sign flipped, at the bound", just_inside, is_noiseless=True),
    Scenario("no attack, max_norm 30", max_norm=30.0),
    Scenario("sign flipped, at the bound, max_norm 30", just_inside, is_noiseless=True, max_norm=30.0),
)


def five_sites(bench: Bench) -> Bench:
    """The bench's training records dealt to `SITES`, and its study for them, of which one may be left out."""
    tables = list(bench.sites.values())
    length = max(table.ids.shape[1] for table in tables)
    ids = np.concatenate([np.pad(t.ids, ((0, 0), (0, length - t.ids.shape[1]))) for t in tables])
    labels = np.concatenate([table.labels for table in tables])
    firsts = np.cumsum([0, *(table.units.max() + 1 for table in tables)])
    units = np.concatenate([table.units + first for table, first in zip(tables, firsts[:-1], strict=True)])
    frame = pd.concat([table.frame for table in tables])
    dealt = np.random.default_rng(5).permutation(firsts[-1])[units] % len(SITES)
    sites = {
        name: Table(frame[dealt == i], ids[dealt == i], labels[dealt == i], units[dealt == i])
        for i, name in enumerate(SITES)
    }
    draft = bench.draft
    parts = {
        "participants": draft.participants.model_copy(update={"sites": SITES}),
        "privacy": draft.privacy.model_copy(update={"max_dropouts": 1}),
        "rounds": draft.rounds.model_copy(update={"min_sites": len(SITES) - 1}),
    }
    return replace(bench, draft=StudyDraft.model_validate(draft.model_copy(update=parts).model_dump()), sites=sites)


def train(bench: Bench, scenario: Scenario) -> dict:
    """One run: the held-out AUC, and how often the attacker and an honest site were left out."""
    started = time.perf_counter()
    adapted = untrained(bench.draft, bench.backbone)
    layout = adapted.layout
    draft = with_rates(bench.draft, layout.dim - layout.head_slice.stop)
    if scenario.max_norm is not None:
        ball = draft.aggregation.model_copy(update={"max_norm": scenario.max_norm})
        draft = draft.model_copy(update={"aggregation": ball})
    study = provisional(draft, layout.dim)
    checkpoint = Checkpoint.beginning(start_state(draft, adapted.state()))
    terms_by_site = {name: terms_of(study, noiseless=scenario.is_noiseless and name == SITES[-1]) for name in SITES}
    shapes, rejected = shapes_of(study, adapted), dict.fromkeys(SITES, 0)
    for _ in range(draft.rounds.rounds):
        total = np.zeros(len(checkpoint.state), np.int64)
        for name, table in bench.sites.items():
            is_attacker = name == SITES[-1]
            labels = 1 - table.labels if scenario.flips_labels and is_attacker else table.labels
            vector = round_release(
                adapted, checkpoint.state, table.ids, labels, table.units, terms=terms_by_site[name], shapes=shapes
            )
            if is_attacker and scenario.attack is not None:
                vector = scenario.attack(vector, study.planned_round(1).bound_units)
            if scenario.is_checked and is_too_long(study, vector):
                rejected[name] += 1
            else:
                total += vector
        checkpoint = server_step(draft, checkpoint, total * 2.0**-study.scale_bits, layout.head_slice)
    adapted.load_state(checkpoint.exported[: layout.dim])
    return {
        "attack": scenario.name,
        "checked": scenario.is_checked,
        "bound": round(study.planned_round(1).norm_bound, 1),
        "auc": round(auc(logits(adapted, bench.held_out.ids), bench.held_out.labels).value, 4),
        "attacker_left_out": rejected.pop(SITES[-1]),
        "honest_left_out": sum(rejected.values()),
        "rounds": draft.rounds.rounds,
        "seconds": round(time.perf_counter() - started, 1),
    }


def terms_of(study: Study, *, noiseless: bool) -> ReleaseTerms:
    """Returns the terms of a site's release; an attacker may leave out its noise."""
    mode = "none" if noiseless else study.draft.privacy.mode
    noise = 0 if noiseless else study.site_noise(study.planned_round(1))
    return release_terms(study.draft, mode, site_noise=noise, scale_bits=study.scale_bits, max_rows=256)


def is_too_long(study: Study, vector: Vector) -> bool:
    """The verdict of the norm check, compared without masks."""
    planned = study.planned_round(1)
    rule = limits(planned.bound_units, planned.ring_bits)
    elements = from_integers(vector, Ring(planned.ring_bits, 0))
    return exceedances(Sketch(os.urandom(32), vector.size, planned.ring_bits).sketch(elements), rule) > rule.tau


def head_alone(bench: Bench) -> Bench:
    """The same without adapters."""
    return replace(
        bench, draft=bench.draft.model_copy(update={"adapter": bench.draft.adapter.model_copy(update={"targets": ()})})
    )


def shapes_of(study: Study, adapted: AdaptedModel) -> BatchShapes:
    """As a site probes them."""
    data = study.draft.data
    return probed_shapes(adapted, max_tokens=data.max_tokens, max_rows=512, max_records=data.max_records_per_unit)


def norms(bench: Bench) -> Iterator[dict]:
    """Measures the lengths of an example's sums, per expected unit of a site, without noise or projection."""
    quiet = StudyDraft.model_validate(without_privacy(bench.draft).model_dump())
    adapted = untrained(quiet, bench.backbone)
    layout = adapted.layout
    draft = with_rates(quiet, layout.dim - layout.head_slice.stop)
    study = provisional(draft, layout.dim)
    terms = replace(terms_of(study, noiseless=True), max_norm=None)
    checkpoint = Checkpoint.beginning(start_state(draft, adapted.state()))
    shapes = shapes_of(study, adapted)
    found: dict[str, list[float]] = {name: [] for name in bench.sites}
    for _ in range(draft.rounds.rounds):
        total = np.zeros(len(checkpoint.state), np.int64)
        for name, table in bench.sites.items():
            vector = round_release(
                adapted, checkpoint.state, table.ids, table.labels, table.units, terms=terms, shapes=shapes
            )
            found[name].append(float(np.linalg.norm(vector * 2.0**-study.scale_bits)) / draft.privacy.clip_unit)
            total += vector
        checkpoint = server_step(draft, checkpoint, total * 2.0**-study.scale_bits, layout.head_slice)
    for name, table in bench.sites.items():
        units = draft.privacy.sample_rate * (table.units.max() + 1)
        longest, middle = max(found[name]), float(np.median(found[name]))
        yield {
            "site": name,
            "units_a_round": round(units),
            "longest": round(longest, 1),
            "median": round(middle, 1),
            "longest_share": round(longest / units, 3),
            "default": round(draft.max_norm, 1),
        }


def without_privacy(draft: StudyDraft) -> StudyDraft:
    """The draft with `mode = "none"`."""
    privacy = {"mode": "none", "noise_multiplier": 0.0, "delta": 0.0, "target_epsilon": None}
    return draft.model_copy(update={"privacy": draft.privacy.model_copy(update=privacy), "evaluation": None})


def all_rows(bench: Bench) -> Iterator[dict]:
    """One row a scenario."""
    for scenario in SCENARIOS:
        yield train(bench, scenario)


def main() -> None:
    """Prints the bound, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--head", action="store_true", help="train the head alone")
    parser.add_argument("--quick", action="store_true", help="ten rounds of the head alone")
    parser.add_argument("--rounds", type=int, help="instead of the study's")
    parser.add_argument("--backbone", type=Path, help="use this one instead of pretraining one")
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("--norms", metavar="EXAMPLE", help="how long its own sites' sums get instead")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.norms:
            for row in norms(prepare_bench(Path(folder), options.rounds, options.backbone, options.norms)[0]):
                print(json.dumps(row), flush=True)
            return
        rounds = 10 if options.quick else options.rounds
        bench = five_sites(prepare_bench(Path(folder), rounds, options.backbone)[0])
        if options.head or options.quick:
            bench = head_alone(bench)
        dim = untrained(bench.draft, bench.backbone).layout.dim
        planned = provisional(bench.draft, dim).planned_round(1)
        facts = {"dim": dim, "max_norm": bench.draft.max_norm, "bound": planned.norm_bound, "ring": planned.ring_bits}
        print(json.dumps(facts), flush=True)
        if not options.json:
            print(f"\n| {'attack':40} | check | AUC    | attacker left out | honest left out |")
            print(f"|{'-' * 42}|-------|--------|-------------------|-----------------|")
        for row in all_rows(bench):
            print(f"{row['attack']}: {row['seconds']} s", file=sys.stderr, flush=True)
            line = (
                f"| {row['attack']:40} | {'yes' if row['checked'] else 'no':5} | {row['auc']:.4f} | "
                f"{row['attacker_left_out']:>6} of {row['rounds']:<3}      | {row['honest_left_out']:<15} |"
            )
            print(json.dumps(row) if options.json else line, flush=True)


if __name__ == "__main__":
    main()
