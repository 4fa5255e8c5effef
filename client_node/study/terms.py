"""The draft of a study, study.toml: adapter, data, privacy, rounds, optimizer and the participants' names."""

import difflib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    AliasChoices,
    Field,
    SerializerFunctionWrapHandler,
    create_model,
    model_serializer,
    model_validator,
)

from ...models.backbones import families
from ...models.backbones.family import WeightFormat
from ...models.records import RecordSchema
from ...models.records.fields import FieldTerms
from ...models.records.kind import Judged, RecordKind
from ...models.records.kinds import INLINE, KINDS
from ...models.records.tasks import OutcomeTerms
from ...models.records.text import TextTerms
from ...models.strict import Frozen, Label, Name, StrictModel, Text, Unique, contradictions, rule
from ...mpc.sharing.hpke import KemName
from ...privacy.mechanism import adaptive_clipping
from ..errors import StudyInvalid
from .state_format import StateFormat, StateKind
from .toml import parse_table, parse_toml, read_table, read_toml

D = TypeVar("D", bound=StrictModel)
NUM_AGGREGATORS = 3
MOST_SITES = 1000
MOST_TOKENS, MOST_TOKENS_IN_FULL = 131072, 4096  # the second with full attention, whose memory is their square


def _is_even(count: int) -> int:
    if count % 2:
        raise rule("even: probability one half is the edge in the middle")
    return count


def _is_target(name: str) -> str:
    if why := families.frozen().get(name):
        raise rule(f"left out: {why}")
    known = families.targets()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise rule(f"one of {', '.join(known)}" + (f" (did you mean {near[0]}?)" if near else ""))
    return name


def _with_a_table_for_each_kind(base: type[D]) -> type[D]:
    """Adds an optional table for every kind of record that `base` has no field for."""
    fields = {**base.model_fields, INLINE: None}
    tables: dict[str, Any] = {name: (kind.terms | None, None) for name, kind in KINDS.items() if name not in fields}
    return create_model(base.__name__, __base__=base, __module__=base.__module__, **tables) if tables else base


Rank = Annotated[int, Field(ge=1)]


class AdapterTerms(StrictModel):
    """Settings of the LoRA weights that are trained."""

    rank: int = Field(default=4, ge=1, le=256, description="components of every LoRA product")
    alpha: float = Field(default=4.0, gt=0, le=4096, description="LoRA's output is scaled by alpha / rank")
    freeze_a: bool = Field(default=True, description="train B only, which noise harms less")
    targets: Annotated[tuple[Annotated[str, AfterValidator(_is_target)], ...], Unique] = Field(
        max_length=1000,
        examples=['["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]'],
        description="modules that take an adapter, by the last part of their name; docs/backbones.md has each "
        "family's; [] trains a pooled head alone",
    )
    layers: Annotated[tuple[Annotated[int, Field(ge=0, lt=1000)], ...], Unique] | None = Field(
        default=None, min_length=1, max_length=1000, examples=["[26, 27, 28, 29]"],
        description="decoder layers that take adapters, from 0; left out, all that have a target",
    )  # fmt: skip
    ranks: Annotated[Mapping[Name, Rank], *Frozen] = Field(
        default_factory=dict, validate_default=True, max_length=1000, examples=["{ svi = 2 }"],
        description="sites that train fewer than rank components, the leading ones; left out, all train all",
    )  # fmt: skip
    head: Literal["pooled", "lm"] = Field(
        default="pooled",
        description='what reads a record: a classifier of it; "lm", of free text: the model\'s own output matrix',
    )
    reads: Annotated[tuple[Annotated[int, Field(ge=0, le=1000)], ...], Unique] | None = Field(
        default=None, min_length=1, max_length=64, examples=["[0, 30]"],
        description="of documents: the states that the head reads, 0 is the embedding's, n that behind layer n, "
        "counted from 1; left out, all of which the backbone's folder has moments",
    )  # fmt: skip
    seed: Label = Field(examples=['"thyroid-1"'], description="any text; public: every site draws the same A from it")

    @model_serializer(mode="wrap")
    def _without_later_terms(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves `reads` out where it says nothing: format 4 began without it."""
        plain: dict[str, Any] = serialize(self)
        return {name: value for name, value in plain.items() if (name, value) != ("reads", None)}

    def rank_of(self, site: str) -> int | None:
        """Rank of a site's adapter by `ranks`; None if the study names none: the whole rank."""
        return self.ranks.get(site)


@_with_a_table_for_each_kind
class DataTerms(FieldTerms):
    """Description of a record: the keys of fields stand here, another kind of record has a table of its own."""

    unit: Name = Field(
        examples=['"patient"'], description="the word for whom privacy protects; sites' policies must use the same"
    )
    max_records_per_unit: int = Field(default=1, ge=1, le=1024, description="most records of one unit at a site")
    max_tokens: int = Field(
        ge=2, le=MOST_TOKENS, examples=["64"], description="words of a record, padding not counted; longer text is cut"
    )
    text: TextTerms | None = None

    @property
    def kind(self) -> RecordKind:
        """The kind of record of this study."""
        return KINDS[next(iter(self.tables()), INLINE)]

    @property
    def terms(self) -> StrictModel:
        """The terms of that kind of record: its table, or these keys themselves."""
        return next(iter(self.tables().values()), self)

    @property
    def judged(self) -> Judged:
        """Kind of what a charged evaluation counts."""
        return self.kind.judged(self.terms)

    def tables(self) -> dict[str, StrictModel]:
        """The study's tables of kinds of record; at most one in a checked study."""
        tables = {name: getattr(self, name) for name in KINDS if name != INLINE}
        return {name: table for name, table in tables.items() if table is not None}

    @model_serializer(mode="wrap")
    def _without_tables_of_later_kinds(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out tables of later kinds that are not set; the keys that format 4 began with are always written."""
        plain: dict[str, Any] = serialize(self)
        return {name: value for name, value in plain.items() if value is not None or name in ("label", "text")}


class PrivacyTerms(StrictModel):
    """Privacy mode, noise and clipping. Neighbouring data sets differ by one unit with all its records."""

    mode: Literal["distributed", "local", "none"] = Field(
        examples=['"distributed"'],
        description='whose noise protects: of all sites together; "local": of each by itself; "none": nobody\'s',
    )
    noise_multiplier: float = Field(
        default=0.0, ge=0, le=1000, examples=["1.19"],
        description="noise std / sensitivity in the opened sum, for who knows the noise of `collusion` sites",
    )  # fmt: skip
    target_epsilon: float | None = Field(
        default=None, gt=0, le=1000, examples=["3.0"],
        description="instead of noise_multiplier: what a whole run may cost; the noise is solved for it",
    )  # fmt: skip
    clip_norm: float = Field(ge=1e-6, le=1e6, examples=["1.0"], description="largest L2 norm of one unit's update")
    clipping: Literal["fixed", "adaptive"] = Field(
        default="fixed", description='"adaptive": the clip starts at clip_norm and follows ...'
    )
    target_quantile: float = Field(
        default=0.5, ge=0, le=1, description="... this quantile of the units' gradient norms, ..."
    )
    clip_learning_rate: float = Field(
        default=0.2, gt=0, le=10, description="... its logarithm by this times what is missing, each round"
    )
    sample_rate: float = Field(gt=0, le=1, examples=["0.2"], description="chance that a unit enters a round")
    delta: float = Field(
        default=0.0, ge=0, le=1e-3, examples=["1e-5"], description="at most 1 / units at every site, too"
    )
    max_dropouts: int = Field(default=0, ge=0, le=1000, description="sites that may fail in a round")
    dropouts: Literal["over-provision", "top-up"] = Field(
        default="over-provision", description='noise for them in advance; "top-up": once they are gone'
    )
    collusion: int = Field(default=1, ge=0, le=1000, description="sites whose own noise an observer may know")
    local_steps: int = Field(
        default=1, ge=1, le=1000,
        description='noised steps of a site in a round, each charged; above 1 with "local" or "none" only',
    )  # fmt: skip

    @property
    def sensitivity(self) -> float:
        """L2 sensitivity of a site's sum of one step to one unit; in clip units if the clip is adaptive."""
        return self.clip_norm if self.clipping == "fixed" else adaptive_clipping.SENSITIVITY

    @property
    def clip_unit(self) -> float:
        """Length in a site's sum of a gradient that was clipped to clip_norm."""
        return self.clip_norm if self.clipping == "fixed" else 1.0

    @property
    def spared_sites(self) -> int:
        """Number of sites that may fail without a top-up of the noise."""
        return 0 if self.dropouts == "top-up" else self.max_dropouts


class RoundTerms(StrictModel):
    """Number, size and deadlines of a run's rounds."""

    rounds: int = Field(ge=1, le=100_000, examples=["40"], description="how many updates are summed and applied")
    min_sites: int = Field(ge=2, le=1000, examples=["3"], description="fewest sites that a sum may hold")
    deadline_s: float = Field(ge=1, le=86_400, examples=["60"], description="seconds that a round waits for its sites")
    batch_units: float = Field(
        gt=0, le=1e9, examples=["1374"],
        description="units expected in a round over all sites; public: it divides the sum and is never counted",
    )  # fmt: skip
    state: StateKind = Field(
        default="float32",
        description='"int8": rounds start from a state rounded to a byte a number; it saves no bytes on the way',
    )


class OptimizerTerms(StrictModel):
    """The coordinator's step on the opened sum."""

    kind: Literal["momentum", "adam"] = Field(default="momentum", description="heavy-ball descent, or Adam")
    lr: float | None = Field(
        default=None, gt=0, le=1000, examples=["0.3"],
        description="of the adapters; left out, a rule chooses for the study",
    )  # fmt: skip
    head_lr: float | None = Field(
        default=None, gt=0, le=1000, examples=["10.0"], description="of the head; left out, the rule chooses"
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="of the velocity; Adam's beta1")
    beta2: float = Field(default=0.99, ge=0, lt=1, description="Adam's, of the mean square")
    # Studies of this format spell it `epsilon`; both spellings are read.
    eps: float = Field(
        default=1e-3, gt=0, le=1, validation_alias=AliasChoices("eps", "epsilon"), serialization_alias="epsilon",
        description="Adam's, added to the root, in units of the mean update",
    )  # fmt: skip
    noise_correction: bool = Field(default=False, description="take the known noise off Adam's mean square")
    averaging: Literal["none", "ema"] = Field(
        default="none", description='"ema": the exported adapter is a mean of the states of all rounds, ...'
    )
    ema_decay: float = Field(
        default=0.9, gt=0, lt=1, description="... each weighted by this to the power of its age in rounds"
    )
    local_lr: float | None = Field(
        default=None, gt=0, le=1000, examples=["0.3"],
        description="of the adapters in a site's local steps; needed with local_steps above 1, and only then",
    )  # fmt: skip

    @property
    def rates(self) -> tuple[float, float]:
        """(lr, head_lr) of a study, which has both even if its draft left them out; without a head, lr twice."""
        assert self.lr is not None, "a draft whose rates were never chosen"
        return self.lr, self.lr if self.head_lr is None else self.head_lr


class EvaluationTerms(StrictModel):
    """One noised histogram of the final model's scores on records that sites hold out, after the last round."""

    bins: Annotated[int, AfterValidator(_is_even)] = Field(
        default=20, ge=2, le=200, description="of the score, for each label; even"
    )
    noise_multiplier: float = Field(
        default=0.0, ge=0, le=1000, examples=["4.0"],
        description="noise std of a count, for who knows the noise of `collusion` sites",
    )  # fmt: skip


class PrototypeTerms(StrictModel):
    """One noised mean of how the backbone reads the records, by which the adapter is found for a request."""

    length: int = Field(
        default=64, ge=8, le=4096,
        description="numbers of it; at most as many as a head reads of a record; adapters that shall be chosen from "
        "have the same",
    )  # fmt: skip
    noise_multiplier: float = Field(
        default=0.0, ge=0, le=100_000, examples=["40.0"],
        description="noise std of the sum of vectors of length 1, one a unit, for who knows the noise of `collusion` "
        "sites",
    )  # fmt: skip


class AggregationTerms(StrictModel):
    """Settings for sealing and summing the sites' updates."""

    kem: KemName = Field(
        default="x25519",
        description='HPKE suite that updates are sealed with; "mlkem768-x25519" withstands a quantum computer, too',
    )
    norm_check: bool = Field(
        default=True, description="leave out a site whose vector is longer than an honest one's, its length unseen"
    )
    max_norm: float | None = Field(
        default=None, gt=0, le=1e6, examples=["150"],
        description="longest sum of one site in a step, in clip_norms; left out, it follows from batch_units",
    )  # fmt: skip
    verify_total: bool = Field(
        default=False, description="the coordinator notices an aggregator that changes the total"
    )
    weights: Annotated[Mapping[Name, Annotated[float, Field(gt=0, le=1)]], *Frozen] = Field(
        default_factory=dict, validate_default=True, max_length=1000, examples=["{ svi = 0.5 }"],
        description="what a site's clipped sum counts, above 0 and at most 1; left out, 1",
    )  # fmt: skip

    def weight_of(self, site: str) -> float:
        """Factor on a site's clipped sum before its noise; 1 unless the study sets a smaller one."""
        return self.weights.get(site, 1.0)


class SegmentTerms(StrictModel):
    """Attention to a window of tokens and to a few earlier blocks, for records of many thousand tokens."""

    window: Literal[16, 32, 64, 128] = Field(default=32, description="tokens of a block")
    top: int = Field(
        default=8, ge=1, le=64, description="blocks that a token reads beside its own and the one before, its choice"
    )


class ModelTerms(StrictModel):
    """The frozen model."""

    backbone: Label = Field(
        examples=['"backbones/thyroid"'],
        description="folder of the frozen model; a study keeps its last part and its hash",
    )
    frozen: WeightFormat = Field(
        default="float32", description="how every site holds the linear layers of the decoder in memory, adapted or not"
    )
    experts: WeightFormat = Field(
        default_factory=lambda terms: terms.get("frozen", "float32"),
        description="the same of the routed experts; left out, as `frozen`",
    )
    segments: SegmentTerms | None = Field(
        default=None, description="attention for long records, of a DeepSeek-V3 alone; left out, full attention"
    )

    @model_serializer(mode="wrap")
    def _without_later_terms(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out what says nothing: format 4 began without it."""
        plain: dict[str, Any] = serialize(self)
        unsaid = {"frozen": "float32", "segments": None}
        return {name: value for name, value in plain.items() if name not in unsaid or value != unsaid[name]}


class Participants(StrictModel):
    """Participants by their names in the federation's register; the study adds their keys."""

    sites: Annotated[tuple[Name, ...], Unique] = Field(
        min_length=2, max_length=MOST_SITES, examples=['["other", "svi", "svhc", "rest"]'], description="that train"
    )
    aggregators: Annotated[tuple[Name, ...], Unique] = Field(
        min_length=NUM_AGGREGATORS,
        max_length=NUM_AGGREGATORS,
        examples=['["agg-a", "agg-b", "agg-c"]'],
        description="exactly three; a site may be one of them, too",
    )


class StudyDraft(StrictModel):
    """The draft of a study: the contents of study.toml."""

    name: Name = Field(examples=['"thyroid"'], description="a-z, 0-9, '.', '_', '-'")
    description: Text = Field(
        default="", examples=['"Any thyroid diagnosis from routine laboratory values"'], description="for people"
    )
    model: ModelTerms = Field(examples=["a table [model]"])
    adapter: AdapterTerms = Field(examples=["a table [adapter]"])
    data: DataTerms = Field(examples=["a table [data]"])
    privacy: PrivacyTerms = Field(examples=["a table [privacy]"])
    rounds: RoundTerms = Field(examples=["a table [rounds]"])
    optimizer: OptimizerTerms = Field(examples=["a table [optimizer]"])
    prototype: PrototypeTerms | None = None
    evaluation: EvaluationTerms | None = None
    aggregation: AggregationTerms = Field(default_factory=AggregationTerms)
    participants: Participants = Field(examples=["a table [participants]"])

    @model_serializer(mode="wrap")
    def _without_later_tables(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out a prototype that is not asked for: format 4 began without it."""
        plain: dict[str, Any] = serialize(self)
        return {name: value for name, value in plain.items() if (name, value) != ("prototype", None)}

    @property
    def closing(self) -> tuple[Literal["prototype", "evaluation"], ...]:
        """Purposes of the rounds after the last update, in their order."""
        asked: dict[Literal["prototype", "evaluation"], object] = {
            "prototype": self.prototype,
            "evaluation": self.evaluation,
        }
        return tuple(purpose for purpose, terms in asked.items() if terms is not None)

    @property
    def quorum(self) -> int:
        """Fewest sites whose sum may be opened.

        With distributed noise it is never below sites - max_dropouts, even if min_sites is: each site's noise is sized,
        or topped up, for that many sites, and a smaller sum would reveal more than was charged.
        """
        if self.privacy.mode == "none":  # two runs over different sets would differ by one site's exact update
            return len(self.participants.sites)
        if self.privacy.mode != "distributed":
            return self.rounds.min_sites
        return max(self.rounds.min_sites, len(self.participants.sites) - self.privacy.max_dropouts)

    @property
    def fewest_told(self) -> int:
        """Fewest sites that every number of an opened sum tells of: `quorum`, or fewer where sites lack a task."""
        terms = self.data.terms
        tasks = terms.tasks if isinstance(terms, OutcomeTerms) else None
        named = [len(task.sites) for task in (tasks or {}).values() if task.sites is not None]
        return self.quorum - len(self.participants.sites) + min([*named, len(self.participants.sites)])

    @property
    def min_untopped(self) -> int:
        """Fewest sites whose sum may be opened without a top-up; with top-ups, a smaller sum first gets more noise."""
        return len(self.participants.sites) if self.privacy.dropouts == "top-up" else self.quorum

    @property
    def largest_total(self) -> float:
        """Bound on every entry of an opened sum, exceeded with probability below 1e-13: a ring that holds it is safe.

        For each step it allows four times the expected batch and 30 units more, each with its whole clipped gradient in
        one coordinate, or the radius to which sites project their sums (`max_norm`) if that is less; and in all, ten
        standard deviations of the noise. A Poisson sample of mean at most m > 0 has x = 4 m + 30 units or more with
        probability at most exp(x - m) (m / x)**x (Chernoff), below 1e-30 for every m. The noise is a sum of discrete
        Gaussians and so sub-Gaussian (Canonne, Kamath & Steinke 2020, arXiv:2004.00010): an entry is past ten standard
        deviations with probability at most 2 exp(-50) = 3.9e-22, one of 2**27 entries with 5.2e-14.
        """
        largest = (4 * self.rounds.batch_units + 30) * self.privacy.clip_unit
        if self.max_norm is not None:
            largest = min(largest, self.max_norm * len(self.participants.sites))
        return largest * self.privacy.local_steps + 10 * self._noise_std(self.privacy.max_dropouts)

    @property
    def noise_std(self) -> float:
        """Std of the noise in an entry of the opened sum over all sites."""
        return self._noise_std(self.privacy.spared_sites)

    def _noise_std(self, spared: int) -> float:
        """Std of the sum over all sites if `spared` of them could fail; with `max_dropouts`, no sum has more noise."""
        privacy, sites = self.privacy, len(self.participants.sites)
        if privacy.mode == "none":
            return 0.0
        honest = sites - spared - privacy.collusion if privacy.mode == "distributed" else 1
        by_step = privacy.noise_multiplier * privacy.sensitivity * math.sqrt(sites / max(honest, 1))
        return by_step * math.sqrt(privacy.local_steps)

    @property
    def max_norm(self) -> float | None:
        """Radius of the ball onto which a site projects its sum of a step before noise; None without a norm check.

        In the units of the sum. If the study sets none, it is the length of n / 2 + 5 sqrt(n) clipped gradients of one
        direction, where n is the number of units that an average site draws. On thyroid no site's sum was ever longer
        than 0.21 n such gradients, and n gradients of independent directions have a sum of about sqrt(n). Projection
        keeps the direction of the sum.
        """
        if not self.aggregation.norm_check:
            return None
        if self.aggregation.max_norm is not None:
            return self.aggregation.max_norm * self.privacy.clip_unit
        units = self.rounds.batch_units / len(self.participants.sites)
        return (units / 2 + 5 * math.sqrt(units)) * self.privacy.clip_unit

    @property
    def update_divisor(self) -> float:
        """Divisor of the opened sum: the mean update is per expected unit and local step, in clip units."""
        return self.rounds.batch_units * self.privacy.clip_unit * self.privacy.local_steps

    def state_dim(self, trained: int) -> int:
        """Length of the state that rounds exchange: the `trained` numbers, and the clip's logarithm if it adapts."""
        return trained + (self.privacy.clipping == "adaptive")

    def state_format(self, dim: int) -> StateFormat:
        """Format in which sites receive a state of `dim` numbers; an adaptive clip's logarithm is never rounded."""
        return StateFormat(kind=self.rounds.state, dim=dim, exact=self.state_dim(0))

    def record_schema(self) -> RecordSchema:
        """The public description of a record."""
        return self.data.kind.schema(self.data.terms)

    def adapter_config(self) -> dict[str, Any]:
        """Arguments for `models.adapters.AdapterConfig`."""
        adapter = self.adapter
        return {
            "rank": adapter.rank,
            "alpha": adapter.alpha,
            "freeze_a": adapter.freeze_a,
            "targets": adapter.targets,
            "layers": adapter.layers,
            "seed": adapter.seed,
        }

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if problems := [
            *_data_problems(self.data, self.adapter),
            *_prototype_problems(self),
            *_task_problems(self),
            *_length_problems(self),
            *_rate_problems(self),
            *_privacy_problems(self),
            *_rank_problems(self),
            *_aggregation_problems(self),
        ]:
            raise contradictions(problems)
        return self


def load_draft(path: Path, *, sites: Sequence[str] | None = None) -> StudyDraft:
    """Reads the draft in the study.toml at `path`.

    Args:
        sites: in place of those that it names, for a simulation; its other terms must fit these.

    Raises:
        StudyInvalid: every problem of the file, each with its key, value and remedy.
    """
    if sites is not None:
        table = read_table(path, StudyInvalid)
        named = table.get("participants")
        table["participants"] = (named if isinstance(named, dict) else {}) | {"sites": list(sites)}
        return parse_draft(table, str(path))
    return _of_one_noise(read_toml(path, StudyDraft, error=StudyInvalid), str(path))


def parse_draft(draft: str | Mapping[str, Any], source: str) -> StudyDraft:
    """Parses the text of a study.toml, or the table that it would hold; raises as `load_draft`."""
    if isinstance(draft, str):
        return _of_one_noise(parse_toml(draft, StudyDraft, error=StudyInvalid, source=source), source)
    return _of_one_noise(parse_table(draft, StudyDraft, error=StudyInvalid, source=source), source)


def _of_one_noise(draft: StudyDraft, source: str) -> StudyDraft:
    """Returns a draft that states its noise or a target for it; a study has both, the noise solved for the target."""
    if draft.privacy.target_epsilon is not None and draft.privacy.noise_multiplier:
        raise StudyInvalid(
            source,
            (
                f"privacy.noise_multiplier is {draft.privacy.noise_multiplier:g} and privacy.target_epsilon is "
                f"{draft.privacy.target_epsilon:g}; keep one: the noise is solved for a target",
            ),
        )
    return draft


def _data_problems(data: DataTerms, adapter: AdapterTerms) -> list[str]:
    problems, tables = [], data.tables()
    if len(tables) > 1:
        return [f"data has the tables {', '.join(tables)}; keep one: all records of a study are of one kind"]
    kind = data.kind
    if tables:
        problems += [
            f"data.{name} with a table [data.{kind.name}]; remove it: {kind.whole}"
            for name in ("label", "classes", "labels", "number", "tasks", "numeric", "categorical", "flags")
            if getattr(data, name)
        ]
    problems += kind.problems(data.terms, max_tokens=data.max_tokens)
    if kind.name == "history" and data.max_records_per_unit != 1:
        problems.append("data.max_records_per_unit with a table [data.history]; remove it: a unit is one record")
    if adapter.head != kind.head:
        why = f"with a table [data.{kind.name}]" if tables else "without a table [data.text]"
        problems.append(f"adapter.head is {adapter.head!r} {why}; it must be {kind.head!r}")
    if not adapter.targets and kind.head == "lm":
        problems.append("adapter.targets is []; name a module: without a head, adapters are all that is trained")
    text_task = data.terms.text_task if isinstance(data.terms, OutcomeTerms) else None
    if text_task is not None and not adapter.targets:
        problems.append(
            f"adapter.targets is []; name a module: adapters alone learn to write the text of tasks.{text_task}"
        )
    if adapter.reads is not None and kind.name != "document":
        problems.append(f"adapter.reads with records of kind {kind.name}; remove it: only a document's head chooses")
    return problems


def _prototype_problems(draft: StudyDraft) -> list[str]:
    unread = {
        "code": "nothing of a program is shown before it is learned",
        "history": "requests of several visits are not composed yet",
        "picture": "pictures have no signatures yet",
        "sound": "sounds have no signatures yet",
    }
    if draft.prototype is None or draft.data.kind.name not in unread:
        return []
    name = draft.data.kind.name
    return [f"prototype with a table [data.{name}]; remove it: {unread[name]}"]


def _length_problems(draft: StudyDraft) -> list[str]:
    if draft.data.max_tokens <= MOST_TOKENS_IN_FULL or draft.model.segments is not None:
        return []
    return [
        f"data.max_tokens is {draft.data.max_tokens}; at most {MOST_TOKENS_IN_FULL} with full attention, whose memory "
        "is their square: add a table [model.segments], which a backbone of DeepSeek-V3 takes"
    ]


def _task_problems(draft: StudyDraft) -> list[str]:
    """Lists sites of tasks that take no part, tasks of so few sites that a sum would tell of one, and too few bins."""
    terms, sites = draft.data.terms, draft.participants.sites
    if not isinstance(terms, OutcomeTerms) or terms.tasks is None:
        return []
    named = {name: task.sites for name, task in terms.tasks.items() if task.sites is not None}
    problems = [
        f"tasks.{name}.sites names {site!r}, which is none of participants.sites"
        for name, own in named.items()
        for site in own
        if site not in sites
    ]
    if len(named) == len(terms.tasks):
        told = {site for own in named.values() for site in own}
        problems += [
            f"tasks: {site} has none of them; name it in the sites of one" for site in sites if site not in told
        ]
    fewest = 3 if draft.privacy.mode == "distributed" else 2
    missing = len(sites) - draft.quorum
    problems += [
        f"tasks.{name}.sites names {len(own)} sites, of which {missing} may be missing in a sum; {fewest} must be "
        "left, or what one of them sent for the task could be told from the sum"
        for name, own in named.items()
        if len(own) - missing < fewest
    ]
    place = "data" if draft.data.kind.name == INLINE else f"data.{draft.data.kind.name}"
    problems = [f"{place}.{problem}" for problem in problems]
    if draft.evaluation is not None and draft.evaluation.bins < len(terms.tasks):
        problems.append(f"evaluation.bins is {draft.evaluation.bins}; of {len(terms.tasks)} tasks each needs one")
    return problems


def _rate_problems(draft: StudyDraft) -> list[str]:
    if draft.adapter.head == "pooled":
        return []
    problems = []
    if draft.optimizer.lr is None:
        problems.append(
            "optimizer.lr is missing with adapter.head 'lm'; add it: the rule that chooses is for classifiers"
        )
    if draft.optimizer.head_lr is not None:
        problems.append("optimizer.head_lr with adapter.head 'lm'; remove it: no head is trained")
    return problems


def _privacy_problems(draft: StudyDraft) -> list[str]:
    privacy, rounds, sites = draft.privacy, draft.rounds, len(draft.participants.sites)
    closing: dict[str, float] = {purpose: getattr(draft, purpose).noise_multiplier for purpose in draft.closing}
    sure = sites - privacy.max_dropouts
    problems = []
    if rounds.min_sites > sure:
        problems.append(
            f"rounds.min_sites is {rounds.min_sites}; it must be at most {sure}, the {sites} sites less "
            f"privacy.max_dropouts ({privacy.max_dropouts})"
        )
    if privacy.collusion >= sure:
        problems.append(
            f"privacy.collusion is {privacy.collusion}; it must be less than {sure}, the {sites} sites less "
            f"privacy.max_dropouts ({privacy.max_dropouts}), or nobody's noise would remain"
        )
    if privacy.dropouts == "top-up" and privacy.mode != "distributed":
        problems.append(
            f"privacy.dropouts is 'top-up' with privacy.mode '{privacy.mode}'; remove it: only with 'distributed' do "
            "sites share the noise"
        )
    problems += _local_problems(draft)
    if privacy.mode == "none":
        problems += [
            f"privacy.{name} is {getattr(privacy, name):g}; remove it: with privacy.mode 'none' nothing is protected"
            for name in ("noise_multiplier", "target_epsilon", "delta")
            if getattr(privacy, name)
        ]
        problems += [
            f"{name}.noise_multiplier must go with privacy.mode 'none': nothing is protected"
            for name, noise in closing.items()
            if noise
        ]
        return problems
    problems += [
        f"{name}.noise_multiplier must be greater than 0 with privacy.mode '{privacy.mode}', e.g. "
        f"{'10.0' if name == 'evaluation' else '40.0'}"
        for name, noise in closing.items()
        if not noise
    ]
    if not privacy.noise_multiplier and privacy.target_epsilon is None:
        problems.append(
            f"privacy.noise_multiplier must be greater than 0 with privacy.mode '{privacy.mode}'; or say what the "
            "whole study may cost, and it is solved: target_epsilon = 3.0"
        )
    if not privacy.delta:
        problems.append(f"privacy.delta must be greater than 0 with privacy.mode '{privacy.mode}', e.g. 1e-5")
    if privacy.mode == "distributed" and sites < 3:
        problems.append(
            f"privacy.mode is 'distributed' with {sites} sites; it needs at least 3: of two, each would find the "
            "other's update by taking its own from the sum. Use 'local'"
        )
    if privacy.mode == "distributed" and privacy.collusion < 1:
        problems.append("privacy.collusion is 0; it must be at least 1 with distributed noise: a site knows its own")
    return problems


def _local_problems(draft: StudyDraft) -> list[str]:
    steps, local_lr = draft.privacy.local_steps, draft.optimizer.local_lr
    problems = []
    if steps > 1 and draft.privacy.mode == "distributed":
        problems.append(
            f"privacy.local_steps is {steps} with privacy.mode 'distributed'; it must be 1: a site would train its own "
            "copy on noise that protects only the sum over all sites. Use 'local'"
        )
    if steps > 1 and local_lr is None:
        problems.append(f"optimizer.local_lr is missing with privacy.local_steps {steps}; add it: local_lr = 0.3")
    if steps == 1 and local_lr is not None:
        problems.append(f"optimizer.local_lr is {local_lr:g}; remove it, or set privacy.local_steps above 1")
    return problems


def _rank_problems(draft: StudyDraft) -> list[str]:
    adapter = draft.adapter
    problems = []
    if strangers := sorted({*adapter.ranks} - {*draft.participants.sites}):
        problems.append(f"adapter.ranks names {', '.join(strangers)}; it must name sites of the study")
    problems += [
        f"adapter.ranks.{site} is {rank}; it must be at most {adapter.rank}, adapter.rank"
        for site, rank in adapter.ranks.items()
        if rank > adapter.rank
    ]
    if adapter.ranks and not adapter.freeze_a:
        problems.append(
            "adapter.ranks with adapter.freeze_a false; remove it, or freeze A: only with the A that all share is the "
            "sum of what sites train the sum of their products"
        )
    return problems


def _aggregation_problems(draft: StudyDraft) -> list[str]:
    terms, parties = draft.aggregation, draft.participants
    problems = []
    if strangers := sorted({*terms.weights} - {*parties.sites}):
        problems.append(f"aggregation.weights names {', '.join(strangers)}; it must name sites of the study")
    if terms.weights and draft.privacy.local_steps > 1:
        problems.append(
            f"aggregation.weights with privacy.local_steps {draft.privacy.local_steps}; remove it, or take one step: a "
            "site's own copy would move by less than its gradients say"
        )
    if terms.max_norm is not None and not terms.norm_check:
        problems.append(
            f"aggregation.max_norm is {terms.max_norm:g} with aggregation.norm_check false; remove it: nothing would "
            "hold a site to it"
        )
    if terms.verify_total and (both := sorted({*parties.sites} & {*parties.aggregators})):
        problems.append(
            f"aggregation.verify_total is true and {', '.join(both)} is both site and aggregator; take another "
            "aggregator: the sites' key would tell it how to change the total unseen"
        )
    return problems
