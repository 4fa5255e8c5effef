"""Climbs the ladder of what could be done with a study's records, from a constant to private adapters.

Every rung is trained under the study's own sampling, clip, rounds and momentum, at several epsilons and without
privacy, and judged on the same held-out records. Rates are the study's; under more noise than it planned they are those
of its rule, which goes by noise alone; linear models of a number take a lower one, see `linear_rate`. Two choices are
made on held-out records, which favours what is chosen: the best constant, and the best of the sites alone.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import issparse, vstack

from ...client_node.data import Records
from ...client_node.study import StudyDraft
from ...client_node.study.cost import releases_of_draft, ring_of, solve_noise, with_noise
from ...client_node.training.study_model import load_study_model
from ...models.evaluation.metrics import Estimate
from ...models.heads.objectives import Objective, PointOnScale, SeveralTasks
from ...models.heads.written import documents
from ...models.records.kind import SHARE
from ...privacy.accounting import Mode, epsilon_pld
from ..errors import StudyRefused
from ..studies.examine import ASSUMED_DIM, EPSILONS
from ..studies.learning_rates import adapter_rate, head_rate
from .federated import Ready, federate, head_inputs, made_ready
from .linear import Inputs, hashed_inputs, private_linear, word_ids, word_inputs
from .task import Target, Task, shown_texts
from .tried import FORMAT, Cell, Tried

RUNGS = {
    "constant": "best constant",
    "site": "best site alone",
    "words": "linear on words",
    "ngrams": "linear on groups of letters",
    "head": "head on frozen states",
    "adapters": "adapters",
}
OWN, NONE = "study", "none"  # settings beside an epsilon: the study's own noise, and none
DEFAULT_EPSILONS = (OWN, *(f"{epsilon:g}" for epsilon in EPSILONS), NONE)
_METHOD = 2  # raised when a rung is computed in another way, so that nothing old is taken for new

Watch = Callable[[int, int, str], None]  # runs done, runs in all, the run that comes


@dataclass(frozen=True, slots=True)
class Setting:
    """A study at one noise."""

    asked: str  # "study", "none", or an epsilon
    draft: StudyDraft
    epsilon: float | None  # of all rounds together, by PLD at the study's delta and collusion; None: no bound

    @property
    def noise_multiplier(self) -> float:
        """Noise of the sum over the clip norm, 0 without privacy."""
        privacy = self.draft.privacy
        return 0.0 if privacy.mode == "none" else float(privacy.noise_multiplier)


@dataclass(frozen=True, slots=True)
class Job:
    """One run that a comparison needs."""

    rung: str
    site: str | None  # whose records alone are trained on
    setting: Setting
    seed: int
    inputs: str  # digest of all that decides the result but the seed


class Ladder:
    """The rungs for one task. A backbone is loaded once, and what rungs read of records is computed once."""

    def __init__(self, task: Task, backbone: Path | None) -> None:
        """Loads the backbone, if there is one.

        Raises:
            ModelError: the backbone cannot be read, or is not one for these records.
            StudyRefused: nothing can be told of such records.
        """
        self.task = task
        self.model = None if backbone is None else load_study_model(task.draft, backbone)
        self.draft = solve_noise(task.draft, self.dim)
        self._start = None if self.model is None else self.model.adapted.state()
        self._inputs: dict[str, tuple[dict[str, Inputs], Inputs]] = {}
        self._ready: dict[Mode, Ready] = {}

    @property
    def dim(self) -> int:
        """Length of the trained state, for which costs are computed; assumed without a backbone."""
        return self.task.draft.state_dim(self.model.adapted.layout.dim if self.model else ASSUMED_DIM)

    @property
    def metric(self) -> str:
        """Name of the measure of utility."""
        if self.task.target is not None:
            return self.task.target.metric
        return SHARE[self.draft.data.judged].replace("_", " ")

    @property
    def figure(self) -> str:
        """The same, as the figures of a study's model name it."""
        return self.metric.lower().replace(" ", "_")

    def left_out(self, rung: str) -> str | None:
        """Says why a rung cannot be climbed here; None if it can."""
        kind = self.task.draft.data.kind
        if rung != "adapters" and self.task.target is None:
            return "no head learns it, and there is no single column of completions with few values"
        if rung == "ngrams" and kind.reads != "text":
            return "records of fields have whole words, and no letters"
        if rung == "adapters" and not self.task.draft.adapter.targets:
            return "the study has none: the head is all that it trains"
        if rung == "head" and kind.head != "pooled":
            return "the study has no pooled head: completions are read off the model's own output matrix"
        if self.model is None and self._needs_backbone(rung):
            return "there is no backbone: make one as `coordinator study check` says, or name its folder by --backbone"
        return None

    def setting(self, asked: str) -> Setting:
        """Finds the noise of what was asked for: "study", "none", or an epsilon for all rounds together.

        A prototype and a charged evaluation are left out of it: by themselves they may cost more than a small epsilon.

        Raises:
            StudyInvalid: no noise reaches that epsilon.
            StudyRefused: it is no epsilon, or the study has no privacy to begin with.
        """
        bare = self.draft.model_copy(update={"evaluation": None, "prototype": None})
        if asked == NONE or (asked == OWN and bare.privacy.mode == "none"):
            return Setting(asked, _with_privacy(bare, mode="none"), None)
        if bare.privacy.mode == "none":
            raise StudyRefused(f'privacy.mode is "none", so no noise can be solved for epsilon {asked}; ask for none')
        if asked != OWN:
            target = _epsilon(asked)
            bare = self._calmed(solve_noise(with_noise(_with_privacy(bare, target_epsilon=target), 0.0), self.dim))
        privacy = bare.privacy
        cost = epsilon_pld(releases_of_draft(bare, self.dim), privacy.delta, privacy.collusion)
        return Setting(asked, bare, cost)

    def jobs(self, rungs: Sequence[str], settings: Sequence[Setting], seeds: Mapping[str, int]) -> list[Job]:
        """Lists the runs of these rungs, in order, each with its number of seeds; what is left out has none."""
        found = []
        for rung in rungs:
            if self.left_out(rung):
                continue
            sites = list(self.task.train) if rung == "site" else [None]
            for setting in settings if rung != "constant" else [self.setting(NONE)]:
                for site in sites:
                    inputs = self._digest(rung, setting)
                    count = 1 if rung == "constant" else seeds[rung]
                    found += [Job(rung, site, setting, seed, inputs) for seed in range(1, count + 1)]
        return found

    def run(self, job: Job) -> Estimate:
        """Trains and judges one cell."""
        if job.rung == "adapters":
            return self._adapters(job)
        target = self._target
        if job.rung == "constant":
            return target.judge(target.best_constant())
        sites = list(self.task.train) if job.site is None else [job.site]
        draft = job.setting.draft if job.site is None else _alone(job.setting.draft, job.site, self.task, target)
        reading = self._reading(job.rung)
        inputs, test = self._read(reading)
        scores = private_linear(
            draft,
            [inputs[site] for site in sites],
            [target.train[site] for site in sites],
            test,
            lr=linear_rate(draft, target.objective, is_whitened=reading == "head"),
            scale_bits=ring_of(draft, self.dim).scale_bits,
            rng=np.random.default_rng(job.seed),
            units=[self.task.train[site].units for site in sites],
            objective=target.objective,
        )
        return target.judge(scores)

    @property
    def _target(self) -> Target:
        assert self.task.target is not None, "left out"
        return self.task.target

    def _calmed(self, draft: StudyDraft) -> StudyDraft:
        """Lowers rates that were stated for another noise to those of the rule, which goes by noise alone."""
        optimizer = draft.optimizer
        if optimizer.head_lr is None:
            return draft
        head_lr = min(optimizer.head_lr, head_rate(draft, draft.data.kind.objective(draft.data.terms)))
        lr = optimizer.lr
        if lr is not None and self.model is not None:
            layout = self.model.adapted.layout
            lr = min(lr, adapter_rate(draft, head_lr, layout.dim - layout.head_slice.stop))
        return draft.model_copy(update={"optimizer": optimizer.model_copy(update={"head_lr": head_lr, "lr": lr})})

    def _needs_backbone(self, rung: str) -> bool:
        return rung == "adapters" or (rung in ("head", "site") and self.task.draft.data.kind.head == "pooled")

    def _reading(self, rung: str) -> str:
        """What a linear rung reads; a site alone reads what is best there without the others."""
        if rung != "site":
            return rung
        return "head" if self.task.draft.data.kind.head == "pooled" else "ngrams"

    def _read(self, reading: str) -> tuple[dict[str, Inputs], Inputs]:
        """Inputs of a linear model: of each site's training records, and of all held-out ones."""
        if reading not in self._inputs:
            train = {site: self._inputs_of(reading, records) for site, records in self.task.train.items()}
            held_out = [self._inputs_of(reading, records) for records in self.task.held_out.values()]
            self._inputs[reading] = train, vstack(held_out) if issparse(held_out[0]) else np.concatenate(held_out)
        return self._inputs[reading]

    def _inputs_of(self, reading: str, records: Records) -> Inputs:
        if reading == "head":
            assert self.model is not None, "left out"
            examples = self.model.examples(records)
            return head_inputs(self.model.adapted, documents(examples.ids, examples.targets))
        if self.draft.data.kind.reads == "text":
            return hashed_inputs(shown_texts(self.draft, records), reading)
        return word_inputs(self.draft, word_ids(self.draft, records))

    def _adapters(self, job: Job) -> Estimate:
        assert self.model is not None, "left out"
        assert self._start is not None
        model, draft = self.model, job.setting.draft
        model.adapted.load_state(self._start)
        mode, examples = draft.privacy.mode, {site: model.examples(own) for site, own in self.task.train.items()}
        sites = {site: (each.ids, each.targets, each.units) for site, each in examples.items()}
        if mode not in self._ready:
            self._ready[mode] = made_ready(draft, model.adapted, sites, mode=mode)
        scale_bits = ring_of(draft, self.dim).scale_bits
        federate(
            draft, model.adapted, sites, mode=mode, scale_bits=scale_bits, seed=job.seed, ready=self._ready[mode]
        )  # fmt: skip
        held_out = [model.examples(records) for records in self.task.held_out.values()]
        found = Estimate(**model.evaluate(held_out)[self.figure])
        model.adapted.load_state(self._start)
        return found

    def _digest(self, rung: str, setting: Setting) -> str:
        """SHA-256 of what decides a cell: a linear model on words does not change with the adapters' rank."""
        leave_out = {"name", "description", "model", "evaluation"} | (set() if rung == "adapters" else {"adapter"})
        terms = setting.draft.model_dump(mode="json", exclude=leave_out)
        backbone = self.model.backbone_hash if self.model and self._needs_backbone(rung) else None
        reads = setting.draft.adapter.reads if backbone else None
        parts = [_METHOD, terms, backbone, reads, self.task.train_digest, self.task.held_out_digest]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def climb(
    ladder: Ladder,
    tried: Tried,
    rungs: Sequence[str],
    settings: Sequence[Setting],
    seeds: Mapping[str, int],
    watch: Watch = lambda done, total, name: None,
) -> list[Cell]:
    """Runs what was not run before, and returns the cell of every job, in order."""
    jobs = ladder.jobs(rungs, settings, seeds)
    found = []
    for done, job in enumerate(jobs):
        watch(done, len(jobs), f"{RUNGS[job.rung]}, epsilon {_said(job.setting)}, seed {job.seed}")
        cell = tried.find(job.inputs, job.rung, job.site, job.seed)
        if cell is None:
            started = time.perf_counter()
            estimate = ladder.run(job)
            cell = cell_of(ladder, job, estimate, time.perf_counter() - started)
            tried.add(cell)
        found.append(cell)
    watch(len(jobs), len(jobs), "done")
    return found


def linear_rate(draft: StudyDraft, objective: Objective | None = None, *, is_whitened: bool = False) -> float:
    """Finds the rate of a linear rung: the head's where the study states it for plain descent, else by its rule.

    A squared error sets no limit to its own slope, and words that most records share give all of them one direction: on
    inputs that are not whitened, least squares take at most half the rate at which descent on it would still come back.

    Args:
        objective: what is learned; None: a label.
        is_whitened: of the inputs.
    """
    optimizer = draft.optimizer
    if optimizer.kind == "momentum" and optimizer.head_lr is not None:
        rate = optimizer.head_lr
    else:
        rate = head_rate(
            draft.model_copy(update={"optimizer": optimizer.model_copy(update={"kind": "momentum"})}), objective
        )
    if not is_whitened and (weight := _of_squared_errors(objective)):
        rate = min(rate, (1 + optimizer.momentum) * draft.privacy.clip_norm / weight)
    return rate


def _of_squared_errors(objective: Objective | None) -> float:
    """Returns the weight of squared errors in a loss; 0 if there are none."""
    if isinstance(objective, SeveralTasks):
        return max(task.weight * _of_squared_errors(task.objective) for task in objective.tasks)
    return float(isinstance(objective, PointOnScale))


def cell_of(ladder: Ladder, job: Job, found: Estimate, seconds: float) -> Cell:
    """Makes the line to keep of a run that was judged."""
    return Cell(
        format=FORMAT,
        held_out=ladder.task.held_out_digest,
        inputs=job.inputs,
        rung=job.rung,
        site=job.site,
        asked=job.setting.asked,
        epsilon=job.setting.epsilon,
        noise_multiplier=job.setting.noise_multiplier,
        seed=job.seed,
        metric=ladder.metric,
        value=found.value,
        low=found.low,
        high=found.high,
        records=ladder.task.held_out_records,
        seconds=round(seconds, 3),
    )


def _alone(draft: StudyDraft, site: str, task: Task, target: Target) -> StudyDraft:
    """The study of one site by itself: its own batches, its own whole noise, and no higher a rate than suits these."""
    batch, stated = draft.privacy.sample_rate * task.train[site].num_units, draft.optimizer.head_lr
    own = draft.model_copy(
        update={
            "participants": draft.participants.model_copy(update={"sites": (site,)}),
            "privacy": draft.privacy.model_copy(update={"collusion": 0, "max_dropouts": 0}),
            "rounds": draft.rounds.model_copy(update={"batch_units": batch, "min_sites": 1}),
        }
    )
    if stated is None:
        return own
    return own.model_copy(
        update={
            "optimizer": own.optimizer.model_copy(update={"head_lr": min(stated, head_rate(own, target.objective))})
        }
    )


def _with_privacy(draft: StudyDraft, **terms: object) -> StudyDraft:
    return draft.model_copy(update={"privacy": draft.privacy.model_copy(update=terms)})


def _epsilon(asked: str) -> float:
    try:
        value = float(asked)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise StudyRefused(f"--epsilon takes a number above 0, study or none; got {asked!r}")
    return value


def _said(setting: Setting) -> str:
    return NONE if setting.epsilon is None else f"{setting.epsilon:.2f}"
