"""A simulated run and a sweep that nobody has computed, with everything in them that a page can show."""

import random
from dataclasses import replace

from confide.coordinator.simulation.front import pareto_front
from confide.coordinator.simulation.outcome import Faults, RoundOutcome, Settings, Simulation, SiteOutcome
from confide.coordinator.simulation.swept import LeftOut, Sweep, Trial
from confide.coordinator.simulation.trials import Count

NAMES = ("privacy.target_epsilon", "privacy.clip_norm", "adapter.rank")


def simulation(sites: int = 240, rounds: int = 40, *, done: int | None = None, epsilon: float = 3.0) -> Simulation:
    """A run with sites that were away, late, refused or malicious; without privacy if epsilon is 0."""
    source = random.Random(7)
    names = [f"site-{number:04}" for number in range(1, sites + 1)]
    outcomes = [_round(number, names, rounds, epsilon, source) for number in range(1, (done or rounds) + 1)]
    missing = [{*each.away, *each.late, *each.refused} for each in outcomes]
    is_done = len(outcomes) == rounds
    settings = Settings(
        study="readmission-within-30-days", study_hash="ab" * 32, sites=sites, split="dirichlet:0.5", seed=1,
        mode="distributed" if epsilon else "none", noise_multiplier=1.19 if epsilon else 0.0, clip_norm=1.0,
        sample_rate=0.2, delta=1e-5 if epsilon else 0.0, collusion=1, rank=4, lr=0.3, head_lr=10.0, rounds=rounds,
        trained=18_432, faults=Faults(dropouts=0.05, slow=0.02, malicious=2), secret_sharing=False,
    )  # fmt: skip
    return Simulation(
        settings=settings,
        metric="auc",
        rounds=tuple(outcomes),
        sites=tuple(
            SiteOutcome(
                name=name, units=40, records=60, held_out=20, rounds=sum(name not in each for each in missing),
                metric=None if place % 50 == 49 else min(1.0, source.gauss(0.86, 0.05)), is_malicious=place in (3, 9),
            )
            for place, name in enumerate(names)
        ) if is_done else (),
        final={"auc": {"value": 0.871, "low": 0.858, "high": 0.883, "confidence": 0.95}} if is_done else {},
        epsilon=outcomes[-1].epsilon,
        epsilon_planned=epsilon * 1.05 if epsilon else None,
        state="cd" * 32,
        workers=2,
    )  # fmt: skip


def _round(number: int, names: list[str], rounds: int, epsilon: float, source: random.Random) -> RoundOutcome:
    away = tuple(name for name in names if source.random() < 0.05)
    late = tuple(name for name in names[:5] if name not in away and source.random() < 0.5)
    refused = tuple(name for name in names[3:10:6] if name not in (*away, *late))
    return RoundOutcome(
        number=number,
        asked=len(names),
        summed=len(names) - len(away) - len(late) - len(refused),
        away=away,
        late=late,
        refused=refused,
        waited=number == 3,
        epsilon=epsilon * (number / rounds) ** 0.5 or None,
        metric=None if number % 5 else 0.88 - 0.36 / number,
        seconds=1.5,
    )


def sweep(*, seeds: int = 3) -> Sweep:
    """A grid of 36 trials, 9 of them without privacy, of which one could not be."""
    source, found = random.Random(3), []
    for epsilon in (1.0, 2.0, 8.0, "none"):
        for clip in (0.5, 1.0, 2.0):
            for rank in (4, 8, 16):
                value = (
                    0.9
                    - 0.1 / (100 if epsilon == "none" else epsilon)
                    - 0.01 * abs(clip - 1.0)
                    + source.gauss(0, 0.006)
                )
                number = len(found) + 1
                found.append(
                    Trial(
                        number=number, settings=dict(zip(NAMES, (epsilon, clip, rank), strict=True)),
                        epsilon=None if epsilon == "none" else epsilon - 0.004,
                        epsilon_planned=None if epsilon == "none" else epsilon + 0.25,
                        noise_multiplier=1.1, value=value, seeds=seeds,
                        spread=None if seeds == 1 else (value - 0.004, value + 0.004),
                        over_records=(value - 0.014, value + 0.012),
                        worst_tenth=None if number % 7 == 0 else value - 0.09, seconds=31.0,
                    )
                )  # fmt: skip
    front = pareto_front([each.epsilon for each in found], [each.value for each in found])
    return Sweep(
        study="readmission-within-30-days", unit="person", metric="auc", delta=1e-5, collusion=1, sites=240,
        split="dirichlet:0.5", held_out=4812, held_out_digest="ef" * 32, names=NAMES, planned=37,
        seeds=seeds, trials=tuple(replace(each, is_on_front=place in front) for place, each in enumerate(found)),
        left_out=(LeftOut(settings=dict(zip(NAMES, (0.01, 0.5, 4), strict=True)), why="no noise reaches 0.01"),),
        tried=Count(runs=36 * seeds, settings=36, seeds=seeds),
    )  # fmt: skip
