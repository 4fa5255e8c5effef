"""Simulates a study's run on one machine, round by round, with the trainer and the server step of a real one."""

import hashlib
import json
import math
import mmap
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...client_node.replay import Checkpoint
from ...client_node.replay.following import RoundStart, beginning, start_digest, start_state
from ...client_node.study import Study, StudyDraft, cost
from ...client_node.study.terms import parse_draft
from ...client_node.training.study_model import StudyModel, load_study_model
from ...client_node.training.trainer import FoundShapes, Trainer
from ...kernels.segments import Segments
from ...machine import cores
from ...models.adapters import ModelCard, export
from ...models.records.kind import SHARE
from ...mpc.sharing import Ring
from ...mpc.sharing.ring import RingVector
from ...privacy.accounting import Release, epsilon_pld
from ...privacy.mechanism.batches import thread_count
from ..comparison import federated
from ..errors import RunRefused, StudyRefused
from ..studies.learning_rates import with_rates
from .bench import Bench, Processes, Share, States, measured, processes, value_of
from .faults import Attendance, attendance, malicious
from .kept import Kept, held
from .outcome import Plan, RoundOutcome, Settings, Simulation, SiteOutcome
from .sites import Sites, Split, read_sites

Watch = Callable[[int, int, RoundOutcome | None], None]  # rounds done, rounds in all, the newest
ADAPTER = "adapter"
_AUDIT = "none: simulated on one machine, on records that must be public or synthetic"


def simulate(
    study: StudyDraft | Study,
    records: Path,
    out: Path,
    *,
    plan: Plan,
    backbone: Path,
    unit_column: str | None = None,
    known: FoundShapes | None = None,
    watch: Watch = lambda done, total, newest: None,
) -> Simulation:
    """Simulates the rounds of a study that `out` does not hold yet.

    After each round `out` holds its checkpoint, and `simulation.json`; after the last one also `adapter`, for PEFT. A
    simulation that was stopped, by KeyboardInterrupt too, goes on at the next call with the same arguments.

    Args:
        study: a draft, or a whole study, whose hash, names and seeds are then those of a real run.
        records: PUBLIC or synthetic: SITE/train.csv and SITE/heldout.csv, or both files in the folder itself.
        out: folder of one simulation.
        backbone: folder of the frozen model.
        unit_column: that names the unit; None: the study's unit and `_id`.
        known: shapes of batches that were found before; None to find them anew.

    Raises:
        Conflict: another process simulates into `out`.
        DataInvalid: a cell does not fit.
        RunFailed: a process ended.
        RunRefused: the norm check has left so many sites out that no sum may be opened.
        StateDamaged: what `out` holds cannot be read.
        StudyInvalid: the study's terms do not fit so many sites.
        StudyRefused: the plan does not fit the records or the study, or `out` holds another simulation.
    """
    with held(out), thread_count(1):
        ready = _ready(study, records, plan, backbone, unit_column, known)
        with processes(ready.bench, ready.workers) as group:
            course = _Course(ready, group, Kept.of(out, ready.digest))
            watch(course.done, course.total, None)
            if not course.is_over:
                course.fill()
            for checkpoint in federated.rounds(ready.study, course.checkpoint(), course.total_of):
                watch(checkpoint.round, course.total, course.commit(checkpoint))
            return course.end(backbone)


@dataclass(frozen=True, slots=True)
class _Ready:
    study: Study
    sites: Sites
    bench: Bench
    workers: int
    digest: str  # of all that decides the result

    @property
    def metric(self) -> str:
        judged = self.study.draft.data.judged
        return "auc" if judged == "labels" else SHARE[judged]


def _ready(
    given: StudyDraft | Study,
    records: Path,
    plan: Plan,
    backbone: Path,
    unit_column: str | None,
    known: FoundShapes | None = None,
) -> _Ready:
    """Reads records and model, divides the records, and makes the study of the simulated sites."""
    _require_plan(given, plan)
    draft = given.draft if isinstance(given, Study) else given
    model = load_study_model(draft, backbone, expected_hash=given.backbone_hash if isinstance(given, Study) else None)
    split = None if plan.divided is None else Split.parse(plan.divided)
    sites = read_sites(
        cost.provisional(draft, dim=1), model, records,
        split=split, sites=plan.sites, seed=plan.seed, unit_column=unit_column,
    )  # fmt: skip
    study = given if isinstance(given, Study) else _study(draft, sites.names, model)
    trainer = Trainer(
        study, backbone, _no_table, site=sites.names[0], site_noise=study.site_noise(study.planned_round(1)),
        max_rows=plan.max_rows, threads=1, known=known, loaded=model,
    )  # fmt: skip
    hostile = malicious(study, plan.faults, plan.seed)
    vector = np.frombuffer(mmap.mmap(-1, 4 * study.dim), dtype=np.float32)
    states = States.room_for(trainer, sites.train)
    bench = Bench(
        study, trainer, sites, plan, hostile, states, vector, repetition=0 if isinstance(given, Study) else plan.seed
    )
    decides = asdict(replace(plan, workers=None, evaluate_every=1))
    digest = hashlib.sha256(json.dumps([study.study_hash, sites.digest, unit_column, decides]).encode()).hexdigest()
    return _Ready(study, sites, bench, min(plan.workers or cores(), len(sites.names)), digest)


def _require_plan(given: StudyDraft | Study, plan: Plan) -> None:
    faults = plan.faults
    if isinstance(given, Study) and (plan.sites is not None or plan.split is not None):
        raise StudyRefused("a whole study names its sites: for others, simulate its study.toml")
    if not (0 <= faults.dropouts < 1 and 0 <= faults.slow <= 1 and faults.slow_s > 0 and 0 < faults.length < math.inf):
        raise StudyRefused(f"need dropouts in [0, 1), slow in [0, 1], slow_s and length above 0; got {faults}")


def _study(draft: StudyDraft, names: Sequence[str], model: StudyModel) -> Study:
    """Makes the study of a draft with these sites: without keys, with the noise and rates that a real one would have.

    Raises:
        StudyInvalid: the draft's terms do not fit these sites, or no noise reaches its target.
    """
    layout = model.adapted.layout
    table = draft.model_dump(mode="json", by_alias=True)
    table["participants"]["sites"] = list(names)
    draft = parse_draft(table, f"study {draft.name} with {len(names)} simulated sites")
    draft = cost.solve_noise(draft, draft.state_dim(layout.dim))
    draft = with_rates(draft, layout.dim - layout.head_slice.stop)
    state = start_state(draft, model.adapted.state())
    return cost.provisional(
        draft,
        len(state),
        start=start_digest(state),
        head_size=layout.head_slice.stop,
        backbone_hash=model.backbone_hash,
    )


def _no_table() -> Any:
    raise AssertionError("a simulated site is given its records")


class _Course:
    """The rounds of a simulation."""

    def __init__(self, ready: _Ready, group: Processes, kept: Kept) -> None:
        self._ready, self._group, self._kept = ready, group, kept
        self._study, self._bench = ready.study, ready.bench
        self._began = time.monotonic()
        self._there = Attendance(())
        self._refused: tuple[int, ...] = ()

    @property
    def total(self) -> int:
        """Number of rounds in all."""
        return self._study.draft.rounds.rounds

    @property
    def done(self) -> int:
        """Number of rounds that are done."""
        return len(self._kept.rounds)

    @property
    def is_over(self) -> bool:
        """True if no round is left."""
        return self.done == self.total

    def checkpoint(self) -> Checkpoint:
        """The checkpoint that the next round follows."""
        return self._kept.checkpoint() or beginning(self._study, self._bench.trainer.start)

    def fill(self) -> None:
        """Computes the states of all records from which steps start, once."""
        if self._bench.states is None:
            return
        parts = self._group.chunks(range(len(self._bench.states.used)))
        for _ in self._group.each(Bench.fill, [(np.array(rows),) for rows in parts]):
            pass

    def total_of(self, start: RoundStart) -> tuple[bytes, int]:
        """Adds the vectors of the sites that are there, less those that the norm check refuses."""
        self._began, planned = time.monotonic(), start.planned
        there = self._there = attendance(self._study, self._bench.plan.faults, self._bench.plan.seed, planned.number)
        self._bench.vector[:] = start.vector
        tasks = [(planned.number, start.digest, own) for own in self._group.chunks(there.summed)]
        total = np.zeros(planned.dim, Ring(planned.ring_bits, planned.scale_bits).unsigned)
        self._refused = self._add(total, Bench.share, tasks)
        summed = [site for site in there.summed if site not in self._refused]
        kept = len(summed)
        if kept < self._study.quorum:
            raise RunRefused(
                f"round {planned.number}: the norm check leaves {kept} sites, and a sum needs {self._study.quorum}; a "
                "real run stops here. Rounds before it are kept"
            )
        if kept < self._study.draft.min_untopped:  # for whoever is missing, those that were refused too
            topped = [(planned.number, start.digest, own, kept) for own in self._group.chunks(summed)]
            self._add(total, Bench.topups, topped)
        return total.tobytes(), kept

    def _add(
        self, total: RingVector, call: Callable[..., Share], tasks: Sequence[tuple[object, ...]]
    ) -> tuple[int, ...]:
        """Adds what processes compute to the total; returns the sites that were refused."""
        refused: list[int] = []
        for _, share in self._group.each(call, tasks):
            for part in share.sums:
                total += part
            refused += share.refused
        return tuple(sorted(refused))

    def commit(self, checkpoint: Checkpoint) -> RoundOutcome:
        """Keeps a round: its checkpoint, and what is told of it."""
        there, names = self._there, self._ready.sites.names
        done = RoundOutcome(
            number=checkpoint.round,
            asked=len(names),
            summed=len(there.summed) - len(self._refused),
            away=tuple(names[site] for site in there.away),
            late=tuple(names[site] for site in there.late),
            refused=tuple(names[site] for site in self._refused),
            waited=there.waited,
            epsilon=None,
            seconds=time.monotonic() - self._began,
        )
        metric = value_of(self._metrics(checkpoint), self._ready.metric) if self._is_seen(done) else None
        done = replace(done, epsilon=self._epsilon([*self._kept.rounds, done]), metric=metric)
        self._kept.add(done, checkpoint)
        self._kept.tell(self._outcome())
        return done

    def end(self, backbone: Path) -> Simulation:
        """Measures the last state at every site, and exports it."""
        if not self.is_over:
            return self._outcome()
        checkpoint = self.checkpoint()
        final = self._metrics(checkpoint)
        self._bench.vector[:] = checkpoint.exported
        names, metric = self._ready.sites.names, self._ready.metric
        tasks = [(site, metric) for site in range(len(names))]
        found = dict(self._group.each(Bench.measure, tasks))
        sites = tuple(self._site(number, found[number]) for number in range(len(names)))
        outcome = replace(self._outcome(), final=final, sites=sites)
        self._export(checkpoint, backbone)
        self._kept.tell(outcome)
        return outcome

    def _site(self, number: int, metric: float | None) -> SiteOutcome:
        sites, name = self._ready.sites, self._ready.sites.names[number]
        return SiteOutcome(
            name=name,
            units=sites.train.units(number),
            records=len(sites.train.rows_of_site[number]),
            held_out=len(sites.held_out.rows_of_site[number]),
            rounds=sum(name not in (*each.away, *each.late, *each.refused) for each in self._kept.rounds),
            metric=metric,
            is_malicious=number in self._bench.malicious,
        )

    def _is_seen(self, done: RoundOutcome) -> bool:
        every = self._bench.plan.evaluate_every
        return done.number == self.total or (every > 0 and done.number % every == 0)

    def _metrics(self, checkpoint: Checkpoint) -> dict[str, Any]:
        with thread_count(self._ready.workers):
            return measured(self._bench.trainer, checkpoint.exported, self._ready.sites.held_out.examples)

    def _epsilon(self, rounds: Sequence[RoundOutcome]) -> float | None:
        """Computes epsilon as a budget report does, for a unit whose site was in every sum."""
        releases: Counter[Release] = Counter()
        for each in rounds:
            planned = self._study.planned_round(each.number)
            releases[cost.release(self._study, planned, sites=each.summed).over(each.summed)] += 1
        return self._bound(releases)

    def _bound(self, releases: Counter[Release]) -> float | None:
        privacy = self._study.draft.privacy
        if privacy.mode == "none":
            return None
        found = epsilon_pld(releases, privacy.delta, privacy.collusion)
        return found if found < math.inf else None

    def _outcome(self) -> Simulation:
        draft, plan, rounds = self._study.draft, self._bench.plan, tuple(self._kept.rounds)
        settings = Settings(
            study=draft.name,
            study_hash=self._study.study_hash,
            sites=len(self._ready.sites.names),
            split=plan.divided,
            seed=plan.seed,
            mode=draft.privacy.mode,
            noise_multiplier=draft.privacy.noise_multiplier,
            clip_norm=draft.privacy.clip_norm,
            sample_rate=draft.privacy.sample_rate,
            delta=draft.privacy.delta,
            collusion=draft.privacy.collusion,
            rank=draft.adapter.rank,
            lr=draft.optimizer.rates[0],
            head_lr=draft.optimizer.head_lr,
            rounds=self.total,
            trained=self._bench.trainer.adapted.layout.dim,
            faults=plan.faults,
            secret_sharing=plan.secret_sharing,
        )
        return Simulation(
            settings=settings,
            metric=self._ready.metric,
            rounds=rounds,
            sites=(),
            final={},
            epsilon=rounds[-1].epsilon if rounds else None,
            epsilon_planned=self._bound(cost.releases_of_run(self._study)),
            state=self._kept.state,
            workers=self._ready.workers,
        )

    def _export(self, checkpoint: Checkpoint, backbone: Path) -> None:
        """Writes the adapter for PEFT, as a run's is exported."""
        folder = self._kept.folder / ADAPTER
        if folder.exists():
            return
        study = self._study
        draft, has_guarantee = study.draft, study.draft.privacy.mode != "none"
        adapted = load_study_model(draft, backbone, expected_hash=study.backbone_hash, unpacked=True).adapted
        adapted.load_state(checkpoint.exported[: adapted.layout.dim])
        epsilon = self._kept.rounds[-1].epsilon
        card = ModelCard(
            study=study.name,
            study_hash=study.study_hash,
            backbone_hash=study.backbone_hash,
            sites=self._ready.sites.names,
            rounds=checkpoint.round,
            unit=draft.data.unit,
            mode=draft.privacy.mode,
            epsilon=(math.inf if epsilon is None else epsilon) if has_guarantee else None,
            delta=draft.privacy.delta if has_guarantee else None,
            collusion=draft.privacy.collusion,
            audit=_AUDIT,
            experts=draft.model.experts,
            frozen=draft.model.frozen,
            segments=None if draft.model.segments is None else Segments(**draft.model.segments.model_dump()),
        )
        export(adapted, backbone, folder, card)
