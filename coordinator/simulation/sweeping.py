"""Sweeps over settings of a study: simulates each trial, keeps what is done, and marks the Pareto front."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean

from ...client_node.errors import StudyInvalid
from ...client_node.files import write_private
from ...client_node.study import Study, StudyDraft
from ...client_node.study.cost import provisional
from ...models.adapters import AdaptedModel
from ...models.backbones.loading import backbone_hash
from ...models.errors import MetricUndefined
from ...mpc.errors import NoRing
from ...privacy.mechanism.batches import BatchShapes
from ..comparison.figures import student
from ..comparison.task import digest_of, policies
from ..errors import RunRefused, StudyRefused
from .axes import Axis, Settings, said, trials, with_settings
from .engine import simulate
from .fairness import fairness
from .front import pareto_front
from .kept import held
from .outcome import Plan, Simulation
from .sites import sources
from .sweep_page import render_html
from .swept import LeftOut, Sweep, Trial
from .trials import FORMAT, TrialRun, Trials

PAGE, FIGURES = "sweep.html", "sweep.json"
_METHOD = 2  # raised when a trial is computed in another way, so that nothing old is taken for new

Watch = Callable[[float, int, str], None]  # runs done, a part of one included; runs that are to be done; what goes on


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    settings: Settings
    draft: StudyDraft
    inputs: str
    seed: int


def sweep(
    draft: StudyDraft,
    records: Path,
    out: Path,
    *,
    axes: Sequence[Axis],
    at_random: int | None = None,
    draw_seed: int = 0,
    seeds: int = 1,
    plan: Plan,
    backbone: Path,
    unit_column: str | None = None,
    watch: Watch = lambda done, total, name: None,
) -> Sweep:
    """Simulates the trials that `out` does not hold yet; `sweep.html` and `sweep.json` there are new after each run.

    A sweep that was stopped, by KeyboardInterrupt too, goes on at the next call, in the midst of a run.

    Args:
        records: public or synthetic, as for `simulate`.
        at_random: number of trials that are drawn from the axes; None: their whole grid.
        draw_seed: of that drawing.
        seeds: runs of each trial, with the seed of `plan` and those after it.

    Raises:
        Conflict: another process simulates into `out`.
        StateDamaged: what `out` holds cannot be read.
        StudyInvalid: the settings of a trial do not fit together, or one is unknown.
        StudyRefused: the axes make no sweep, or no trial can be simulated.
    """
    settings = trials(axes, at_random=at_random, seed=draw_seed)
    train, held_out = _record_digests(draft, records, plan, unit_column)
    decides = asdict(replace(plan, seed=0, workers=None, evaluate_every=0))
    parts = (_METHOD, decides, unit_column, backbone_hash(backbone), train, held_out)
    drafts = [with_settings(draft, each) for each in settings]  # all of them, before the first is simulated
    jobs = {  # by what decides them: 1 and 1.0 are one trial
        (inputs, plan.seed + run): _Job(settings=own, draft=trial, inputs=inputs, seed=plan.seed + run)
        for own, trial in zip(settings, drafts, strict=True)
        for inputs in [_digest(trial, parts)]
        for run in range(seeds)
    }
    known = _SharedShapes()
    with held(out):
        kept, left_out = Trials(out), dict[str, LeftOut]()
        missing = [job for job in jobs.values() if kept.find(job.inputs, job.seed) is None]
        for done, job in enumerate(missing):
            if job.inputs in left_out:
                continue
            name = f"trial {settings.index(job.settings) + 1} of {len(settings)}, seed {job.seed}: {said(job.settings)}"
            part, started = _Part(watch, done, len(missing), name), time.perf_counter()
            part(0, 1, None)
            try:
                found = simulate(
                    job.draft, records, out / "runs" / f"{job.inputs[:16]}-{job.seed}",
                    plan=replace(plan, seed=job.seed, evaluate_every=0),  # one look a run
                    backbone=backbone, unit_column=unit_column, known=known, watch=part,
                )  # fmt: skip
                kept.add(_run(job, found, held_out, time.perf_counter() - started))
            except (StudyInvalid, NoRing, RunRefused, MetricUndefined) as err:  # of these settings; others may do
                left_out[job.inputs] = LeftOut(settings=job.settings, why=str(err))
                continue
            _write(out, _sum_up(draft, plan, [*jobs.values()], kept, left_out.values()))
        watch(len(missing), len(missing), "done")
        swept = _sum_up(draft, plan, [*jobs.values()], kept, left_out.values())
        _write(out, swept)
        return swept


class _SharedShapes:
    """Shapes of batches, found once for all trials whose models and records have the same form: that takes seconds."""

    def __init__(self) -> None:
        self._found: dict[str, BatchShapes] = {}

    def find(self, study: Study, adapted: AdaptedModel, max_rows: int, probe: Callable[[], BatchShapes]) -> BatchShapes:
        draft = study.draft
        form = json.dumps([each.model_dump(mode="json") for each in (draft.model, draft.adapter, draft.data)])
        if form not in self._found:
            self._found[form] = probe()
        return self._found[form]


@dataclass(frozen=True, slots=True)
class _Part:
    """Tells whoever watches a sweep of the rounds of one run."""

    watch: Watch
    done: int
    total: int
    name: str

    def __call__(self, rounds: int, of: int, newest: object) -> None:
        self.watch(self.done + rounds / of, self.total, self.name)


def _run(job: _Job, found: Simulation, held_out: str, seconds: float) -> TrialRun:
    if found.metric not in found.final:
        raise MetricUndefined(f"{found.metric} is not defined on these held-out records")
    judged, fair = found.final[found.metric], fairness(found.sites)
    return TrialRun(
        format=FORMAT,
        held_out=held_out,
        inputs=job.inputs,
        settings=job.settings,
        seed=job.seed,
        epsilon=found.epsilon,
        epsilon_planned=found.epsilon_planned,
        noise_multiplier=found.settings.noise_multiplier,
        metric=found.metric,
        value=judged["value"],
        low=judged["low"],
        high=judged["high"],
        worst_tenth=None if fair is None else fair.worst_tenth,
        sites=found.settings.sites,
        records=sum(site.held_out for site in found.sites),
        seconds=round(seconds, 3),
    )


def _sum_up(draft: StudyDraft, plan: Plan, jobs: Sequence[_Job], kept: Trials, left_out: Iterable[LeftOut]) -> Sweep:
    """Sums up the runs of these jobs that are kept."""
    by_trial: dict[str, list[_Job]] = {}
    for job in jobs:
        by_trial.setdefault(job.inputs, []).append(job)
    found: list[Trial] = []
    for number, own in enumerate(by_trial.values(), start=1):
        runs = [run for job in own if (run := kept.find(job.inputs, job.seed)) is not None]
        if runs:
            found.append(_trial(number, own[0].settings, runs))
            first = runs[0]
    if not found:
        raise StudyRefused(f"no trial can be simulated; the first: {next(iter(left_out)).why}")
    front = pareto_front([each.epsilon for each in found], [each.value for each in found])
    return Sweep(
        study=draft.name,
        unit=draft.data.unit,
        metric=first.metric,
        delta=draft.privacy.delta,
        collusion=draft.privacy.collusion,
        sites=first.sites,
        split=plan.divided,
        held_out=first.records,
        held_out_digest=first.held_out,
        names=tuple(jobs[0].settings),
        planned=len(by_trial),
        seeds=len(jobs) // len(by_trial),
        trials=tuple(replace(each, is_on_front=place in front) for place, each in enumerate(found)),
        left_out=tuple(left_out),
        tried=kept.count(first.held_out),
    )


def _trial(number: int, settings: Settings, runs: Sequence[TrialRun]) -> Trial:
    values, epsilons = [run.value for run in runs], [run.epsilon for run in runs]
    worst = [run.worst_tenth for run in runs if run.worst_tenth is not None]
    return Trial(
        number=number,
        settings=settings,
        epsilon=None if None in epsilons else max(each for each in epsilons if each is not None),
        epsilon_planned=runs[0].epsilon_planned,
        noise_multiplier=runs[0].noise_multiplier,
        value=fmean(values),
        seeds=len(runs),
        spread=student(values),
        over_records=(fmean(run.low for run in runs), fmean(run.high for run in runs)),
        worst_tenth=fmean(worst) if worst else None,
        seconds=fmean(run.seconds for run in runs),
    )


def _write(out: Path, found: Sweep) -> None:
    write_private(out / FIGURES, json.dumps(found.to_dict(), indent=1).encode())
    write_private(out / PAGE, render_html(found).encode())


def _record_digests(draft: StudyDraft, records: Path, plan: Plan, unit_column: str | None) -> tuple[str, str]:
    """Digests the files of all sites that are trained on, and those that are held out."""
    study = provisional(draft, dim=1)  # for its columns alone
    folder, names = (records, study.site_names()) if plan.divided is None else sources(records)
    train, held_out = policies(study, folder, names, unit_column)
    return digest_of(train), digest_of(held_out)


def _digest(draft: StudyDraft, parts: Sequence[object]) -> str:
    """SHA-256 of what decides a run but the seed; names as well, since a draft's hash seeds what is random."""
    return hashlib.sha256(json.dumps([*parts, draft.model_dump(mode="json")], sort_keys=True).encode()).hexdigest()
