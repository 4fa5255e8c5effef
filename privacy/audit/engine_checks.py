"""Does a training step do what its claim says? Seen from outside, by what it releases.

An engine is anything that can stand in the place of `site_round`. Every check feeds it public records and terms, and
compares what comes out with a definition that shares no code with it: plain autograd one unit at a time, chi-square and
exact binomial laws. An audit by guessing (`canaries`) sees only large errors; these see small ones and name them.

Sums, clips and draws are looked at in rounds of one step, with the study's clipping; noise in rounds with its local
steps. How a site's copy moves between local steps is no matter of privacy and not looked at.

Where the noise is not the point, it is one ring unit at a resolution of about 2**-30 of the clip norm: the private path
runs unchanged and its result can be read. Records are random words of the public schema, and the trained numbers are
random and large, so that every unit's gradient is far above the bound in every part of the model.

All tests together raise a false alarm with probability below `FALSE_ALARM`, bounds that rest on floating point aside:
what exceeds those must do so twice, on fresh records and numbers, since a router's near tie can fall either way.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.stats import binom, chi2, norm
from torch import Tensor

from ...models.adapters import AdaptedModel
from ...models.heads.objectives import BinaryLabel, Objective, OneClass, PointOnScale, SeveralLabels, SeveralTasks
from ...models.heads.written import WRITTEN, joined
from ...models.tokens import words_of
from ..mechanism import adaptive_clipping
from ..mechanism.batches import BatchShapes, probed_shapes, states_when_asked
from ..mechanism.sampling import Integers
from ..mechanism.site_round import LocalSteps, ReleaseTerms, round_release

Reals = npt.NDArray[np.float64]
Targets = npt.NDArray[np.generic]  # as `AdaptedModel.losses` takes them

FALSE_ALARM = 1e-5  # that a true engine fails any statistical test in a whole run of the checks
_ALPHA = FALSE_ALARM / 10  # of one test; there are seven
NOISE_TOLERANCE = 0.02  # how far the std of the noise may be from the claim
_COORDINATES = 100_000  # noise samples: 2 % is nine standard errors, so a true engine passes but for 1e-18
_RESOLUTION = 30  # bits of the clip norm in checks that read sums
_FINE = 40  # the same where sums are taken apart
_LENGTH = 12  # words of a probe record
_UNITS = 24  # that the sampling check tells apart
_STEPS = 100  # it looks at; fewer for a large adapter, whose noise takes long
_FEWEST_STEPS = 20
_MOST_DRAWS = 4_000_000  # noise samples of the sampling check
_MOST_LOCAL_STEPS = 4  # that a checked round has: of four, one without noise takes 13 % of the std
_COUNT = "count below the clip"  # name of the entry that adaptive clipping adds
_MADE_UP = 2  # made-up states at which sums are taken apart
_MOVED_CLIP = math.log(2)  # how far an adaptive clip has come from its start value


class Engine(Protocol):
    """One site's computation of a round: `site_round`, or whatever is to be tried in its place."""

    def __call__(
        self,
        adapted: AdaptedModel,
        ids: npt.NDArray[np.int64],
        targets: Targets,
        unit_of_row: npt.NDArray[np.int64],
        *,
        terms: ReleaseTerms,
    ) -> Integers:
        """The noised sum, int64 [dim], in ring units of 2**-terms.scale_bits; [dim + 1] with adaptive clipping.

        The round begins at the model's own trained numbers, and the model is left as it was.
        """
        ...


def site_round(
    adapted: AdaptedModel,
    ids: npt.NDArray[np.int64],
    targets: Targets,
    unit_of_row: npt.NDArray[np.int64],
    *,
    terms: ReleaseTerms,
) -> Integers:
    """The true engine: `site_round.round_release`, as sites call it.

    Where layers lie below what is trained, a step begins at the states that enter the lowest adapted layer. An adaptive
    clip begins at twice `terms.clip_norm` and has come down to it, so that its own arithmetic takes part.
    """
    state = start = adapted.state()
    if terms.clipping == "adaptive":
        assert terms.clip_norm is not None
        terms = replace(terms, clip_norm=terms.clip_norm * math.exp(_MOVED_CLIP))
        state = np.append(start, np.float32(-_MOVED_CLIP))
    try:
        shapes = _shapes(adapted, terms.max_records_per_unit)
        entering = states_when_asked(adapted, ids, targets, shapes) if adapted.can_keep else None
        return round_release(
            adapted, state, ids, targets, unit_of_row, terms=terms, shapes=shapes, entering=entering
        )  # fmt: skip
    finally:
        adapted.load_state(start)


_probed: "WeakKeyDictionary[AdaptedModel, dict[int, BatchShapes]]" = WeakKeyDictionary()


def _shapes(adapted: AdaptedModel, max_records: int) -> BatchShapes:
    """As a site probes them, once for a model."""
    by_records = _probed.setdefault(adapted, {})
    if max_records not in by_records:
        longest = adapted.carrying_tokens + _LENGTH
        by_records[max_records] = probed_shapes(adapted, max_tokens=longest, max_rows=64, max_records=max_records)
    return by_records[max_records]


@dataclass(frozen=True, slots=True)
class Finding:
    """A claim that did not hold."""

    check: str  # a name of CHECKS
    detail: str


@dataclass(frozen=True, slots=True)
class Checked:
    """Result of the checks: the claims that were checked and those that did not hold; `findings == ()` if all held."""

    findings: tuple[Finding, ...]
    checks: tuple[str, ...]  # names, in order
    blocks: int  # trained tensors, every expert counted by itself
    reached: int  # of them, in which a unit's gradient passed the bound before clipping


@dataclass(frozen=True, slots=True)
class Probe:
    """An engine with a model whose trained numbers the checks may overwrite, and words to make records of."""

    engine: Engine
    adapted: AdaptedModel
    words: int  # tokens 1 to words - 1 are words of the schema
    terms: ReleaseTerms  # the study's own
    rng: np.random.Generator = field(default_factory=np.random.default_rng, repr=False)

    @property
    def clip_norm(self) -> float:
        """The gradient norm above which a unit is clipped."""
        assert self.terms.clip_norm is not None, "a step without a bound claims nothing"
        return self.terms.clip_norm

    @property
    def is_adaptive(self) -> bool:
        """True if a release is in clip units and ends with a count."""
        return self.terms.clipping == "adaptive"

    @property
    def bound(self) -> float:
        """The most that one unit's gradient adds to a release, L2."""
        return 1.0 if self.is_adaptive else self.clip_norm

    @property
    def sensitivity(self) -> float:
        """The most that one unit moves a release, L2; above `bound` by the share of the count."""
        return adaptive_clipping.SENSITIVITY if self.is_adaptive else self.clip_norm

    @property
    def dim(self) -> int:
        """Length of a release."""
        return self.adapted.layout.dim + self.is_adaptive

    @property
    def blocks(self) -> dict[str, slice]:
        """Place of every trained tensor in a release, each expert of a bank by itself, and of the count if any."""
        found = blocks(self.adapted)
        return {**found, _COUNT: slice(self.dim - 1, self.dim)} if self.is_adaptive else found

    def limit(self, block: str) -> float:
        """The most that one unit adds to a block of a release, L2."""
        return adaptive_clipping.COUNT_WEIGHT / 2 if block == _COUNT else self.bound

    def round_terms(self) -> ReleaseTerms:
        """The study's own terms, of local steps at most four."""
        local = self.terms.local
        return replace(self.terms, local=replace(local, steps=min(local.steps, _MOST_LOCAL_STEPS)))

    def quiet(self, **changes: Any) -> ReleaseTerms:
        """The study's terms for one step, with noise of one ring unit, fine resolution, and everybody drawn."""
        bits = min(48, max(0, _RESOLUTION - round(math.log2(self.bound))))
        calm = replace(
            self.terms,
            mode="distributed",
            site_noise_int=1,
            scale_bits=bits,
            sample_rate=1.0,
            max_rows_per_batch=64,
            max_records_per_unit=1,
            local=LocalSteps(),
        )
        return replace(calm, **changes)

    def loud(self, size: float) -> None:
        """Random trained numbers: gradients about `size` times the clip norm before clipping, in every part."""
        layout = self.adapted.layout
        state = self.rng.normal(size=layout.dim)
        state[layout.head_slice] *= size * self.clip_norm
        self.adapted.load_state(state.astype(np.float32))

    def records(self, count: int) -> tuple[npt.NDArray[np.int64], Targets]:
        """Token ids [count, 12], behind any picture or sound, and targets that the model finds unlikely."""
        # The word 1 of a schema ends a visit, and a head reads the last visit alone.
        ids = made_up_records(self.adapted, self.rng, count, words=self.words, least=2)
        return ids, unlikely_targets(self.adapted, ids)

    def release(self, ids: Integers, targets: Targets, units: npt.ArrayLike, terms: ReleaseTerms) -> Reals:
        """Runs the engine and gives its release as real numbers [self.dim]."""
        found = self.engine(self.adapted, ids, targets, np.asarray(units), terms=terms)
        return found.astype(np.float64) * 2.0**-terms.scale_bits

    def slack(self, terms: ReleaseTerms) -> float:
        """The most that rounding, one ring unit of noise and float32 add to a norm of a few clip norms."""
        return 4 * math.sqrt(self.dim) * 2.0**-terms.scale_bits + 1e-4 * self.bound


Check = Callable[[Probe], Iterator[str]]


def check_engine(
    engine: Engine,
    adapted: AdaptedModel,
    words: int,
    terms: ReleaseTerms,
    *,
    checks: Sequence[str] | None = None,
    rng: np.random.Generator | None = None,
) -> Checked:
    """Puts `engine` to the checks on a study's own model; the trained numbers are put back afterwards.

    Args:
        words: size of the schema's vocabulary, padding included.
        terms: the study's, with a bound and noise.
        checks: names of CHECKS; None for all.
        rng: of the probes; the engine draws for itself.
    """
    probe = Probe(engine, adapted, words, terms, rng or np.random.default_rng())
    names, kept = tuple(CHECKS if checks is None else checks), adapted.state()
    try:
        findings = [
            Finding(name, detail)
            for name in names
            for detail in (CHECKS[name](probe) if name in _STATISTICAL else _twice(CHECKS[name], probe, kept))
        ]
        adapted.load_state(kept)
        reached = _reached(probe)
    finally:
        adapted.load_state(kept)
    return Checked(tuple(findings), names, len(blocks(adapted)), reached)


def made_up_records(
    adapted: AdaptedModel, rng: np.random.Generator, count: int, *, words: int, least: int, length: int = _LENGTH
) -> Integers:
    """Token ids [count, length] of nobody; of a model that reads pictures or sounds, behind one that is made up too."""
    if not adapted.carrying_tokens:
        return rng.integers(least, words, (count, length))
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    whole = adapted.carrying_tokens + length
    found: Integers = adapted.made_up_rows(generator, count, whole, words=words, least=least).numpy()
    return found


def blocks(adapted: AdaptedModel) -> dict[str, slice]:
    """Place of every trained tensor in a state, each expert of a bank by itself."""
    found: dict[str, slice] = {}
    for name, shape in adapted.layout.shapes.items():
        whole = adapted.layout.slices[name]
        if len(shape) < 3:
            found[name] = whole
            continue
        size = math.prod(shape[1:])
        for expert in range(shape[0]):
            found[f"{name}[{expert}]"] = slice(whole.start + expert * size, whole.start + (expert + 1) * size)
    return found


def unit_gradients(adapted: AdaptedModel, ids: Integers, targets: Targets) -> Reals:
    """[rows, dim] float64: each record's gradient by itself, by plain autograd in the model's own precision."""
    rows = np.zeros((len(ids), adapted.layout.dim))
    parameters = list(adapted.trained.values())
    for row, tokens, target in zip(rows, ids, targets, strict=True):
        with torch.enable_grad():
            loss = _record_loss(adapted, torch.from_numpy(tokens), torch.as_tensor(target))
            grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        for name, grad in zip(adapted.trained, grads, strict=True):
            if grad is not None:
                row[adapted.layout.slices[name]] = grad.double().flatten().cpu().numpy()
    return rows


def _record_loss(adapted: AdaptedModel, tokens_T: Tensor, target: Tensor) -> Tensor:
    if adapted.head is None:
        return _written_loss(adapted, tokens_T, target)
    if adapted.text is None:
        return _outcome_loss(adapted.head.objective, adapted.classify(tokens_T[None])[0], target)
    is_behind = torch.cat([torch.tensor([False]), target[1:] > 0])
    document = tokens_T[: int(is_behind.nonzero()[0])] if bool(is_behind.any()) else tokens_T
    told = _outcome_loss(adapted.head.objective, adapted.classify(document[None])[0], target[0])
    return told + adapted.text.weight * _written_loss(adapted, tokens_T, is_behind & (target == WRITTEN))


def _written_loss(adapted: AdaptedModel, tokens_T: Tensor, is_written_T: Tensor) -> Tensor:
    logits_TV: Tensor = adapted.model(input_ids=tokens_T[None], use_cache=False).logits[0]
    completed = is_written_T.nonzero()[:, 0]
    if not len(completed):
        return logits_TV.sum() * 0
    return F.cross_entropy(logits_TV[completed - 1], words_of(tokens_T[None])[0, completed])


def _outcome_loss(objective: Objective, outputs: Tensor, target: Tensor) -> Tensor:
    """The loss of one record, by torch's own definitions and not those that training uses."""
    match objective:
        case BinaryLabel():
            return F.binary_cross_entropy_with_logits(outputs, target.to(outputs))
        case OneClass():
            return F.cross_entropy(outputs, target.long())
        case SeveralLabels(names=names):
            bits = torch.tensor([int(target) >> place & 1 for place in range(len(names))])
            return F.binary_cross_entropy_with_logits(outputs, bits.to(outputs), reduction="sum")
        case PointOnScale():
            return F.mse_loss(outputs, target.to(outputs)) / 2
        case SeveralTasks(tasks=tasks):
            loss, first, rest = outputs.sum() * 0, 0, int(target)
            for task in tasks:
                rest, digit = divmod(rest, 1 + task.objective.digits)
                own = outputs[first : first + task.width]
                first += task.width
                if digit:
                    told = task.objective.target_of(torch.tensor(digit - 1))
                    own = own[0] if task.objective.outputs is None else own
                    loss = loss + task.weight * _outcome_loss(task.objective, own, told)
            return loss
    raise TypeError(f"no loss is known for {objective}")


def unlikely_targets(adapted: AdaptedModel, ids: Integers) -> Targets:
    """For each record the label that the model finds less likely; of random words, that all but the first follow.

    Where both are learned, the words of the second half follow the first, of which the label is.
    """
    if adapted.head is None:
        targets = np.ones(ids.shape[:2], dtype=np.bool_)
        targets[:, :1] = False
        return targets
    if adapted.text is None:
        return wrong_labels(adapted, ids)
    half = ids.shape[1] // 2
    is_written = np.broadcast_to(np.arange(ids.shape[1]) >= half, ids.shape)
    return joined(wrong_labels(adapted, ids[:, :half]), np.zeros_like(is_written), is_written)


@torch.no_grad()
def wrong_labels(adapted: AdaptedModel, ids: Integers) -> Integers:
    """[rows], for each record a target that the model finds unlikely."""
    assert adapted.head is not None
    found: Integers = adapted.head.objective.unlikely(adapted.classify(torch.from_numpy(ids))).cpu().numpy()
    return found


def _twice(check: Check, probe: Probe, start: npt.NDArray[np.float32]) -> Iterator[str]:
    """Findings of a check that rests on floating point: the second run's, if there were any in the first."""
    probe.adapted.load_state(start)
    if any(check(probe)):
        probe.adapted.load_state(start)
        yield from check(probe)


def _noise_std(probe: Probe) -> Iterator[str]:
    """The noise has the claimed std within 2 %, over all coordinates and by block, with and without units.

    That of a round with n local steps is sqrt(n) times one step's.
    """
    one_step, dim = probe.terms.site_noise_int, probe.dim
    sigma = one_step * math.sqrt(probe.round_terms().local.steps)
    steps = max(2, math.ceil(_COORDINATES / dim))
    empty = np.stack([_noise(probe) for _ in range(steps)])
    ratio = float(np.sqrt(np.mean((empty / sigma) ** 2)))
    if abs(ratio - 1) > NOISE_TOLERANCE:
        yield f"an empty round's noise has {ratio:.4f} times the claimed std"
        return
    for name, part in probe.blocks.items():
        squares, size = float(((empty[:, part] / sigma) ** 2).sum()), empty[:, part].size
        tail = 2 * min(chi2.sf(squares, size), chi2.cdf(squares, size))
        if tail < _ALPHA / len(probe.blocks):
            yield f"an empty round's noise has {math.sqrt(squares / size):.4f} times the claimed std in {name}"
            return
    probe.loud(1.0)
    ids, targets = probe.records(4)
    terms = replace(probe.quiet(), site_noise_int=one_step, scale_bits=probe.terms.scale_bits)
    apart = [probe.engine(probe.adapted, ids, targets, np.arange(4), terms=terms).astype(np.float64) for _ in range(2)]
    squares = float((((apart[0] - apart[1]) / one_step) ** 2).sum() / 2)
    if 2 * min(chi2.sf(squares, dim), chi2.cdf(squares, dim)) < _ALPHA:
        yield f"with units in the step the noise has {math.sqrt(squares / dim):.4f} times the claimed std"


def _noise_fresh(probe: Probe) -> Iterator[str]:
    """Two steps' noises have nothing to do with each other, and neither have neighbouring coordinates."""
    first, second = _noise(probe), _noise(probe)
    size, limit = len(first), norm.isf(_ALPHA / 4)
    for what, one, other in (("two steps", first, second), ("neighbouring coordinates", first[1:], first[:-1])):
        scale = math.sqrt(float((one @ one) * (other @ other)))
        if scale and abs(one @ other) / scale * math.sqrt(size) > limit:
            yield f"the noise of {what} is correlated ({one @ other / scale:+.3f})"


def _noise(probe: Probe) -> Reals:
    nobody = made_up_records(probe.adapted, probe.rng, 0, words=probe.words, least=2)
    targets = probe.adapted.made_up_targets(torch.from_numpy(words_of(nobody) > 0)).numpy()
    units = np.zeros(0, dtype=np.int64)
    return probe.engine(probe.adapted, nobody, targets, units, terms=probe.round_terms()).astype(np.float64)


def _clipping(probe: Probe) -> Iterator[str]:
    """A unit with a huge gradient in every part of the model moves the sum by at most the bound, in each and in all."""
    probe.loud(1e4)
    ids, targets = probe.records(6)
    terms = probe.quiet()
    alone = np.stack([probe.release(ids[i : i + 1], targets[i : i + 1], [0], terms) for i in range(len(ids))])
    slack, worst = probe.slack(terms), _largest(alone, probe.blocks)
    over = {name: size for name, size in worst.items() if size > probe.limit(name) + slack}
    for name, size in sorted(over.items(), key=lambda item: -item[1] / probe.limit(item[0]))[:3]:
        yield f"{name}: one unit moves it by {size:.3g}, the bound is {probe.limit(name):g}"
    whole = float(np.linalg.norm(alone[:, : probe.adapted.layout.dim], axis=1).max())
    if whole > probe.bound + slack and not over:
        yield f"all parts together: one unit moves them by {whole:.3g}, the bound is {probe.bound:g}"


def _largest(rows: Reals, parts: dict[str, slice]) -> dict[str, float]:
    """The largest norm of each part over the rows."""
    return {name: float(np.linalg.norm(rows[:, part], axis=1).max()) for name, part in parts.items()}


def _sensitivity(probe: Probe) -> Iterator[str]:
    """Adding or removing one unit moves the sum of the others by at most the bound."""
    probe.loud(1e4)
    ids, targets = probe.records(6)
    terms, units = probe.quiet(), np.arange(6)
    everybody = probe.release(ids, targets, units, terms)
    for left_out in (0, 3, 5):
        others = units != left_out
        moved = float(np.linalg.norm(everybody - probe.release(ids[others], targets[others], units[others], terms)))
        if moved > probe.sensitivity + probe.slack(terms):
            yield f"one unit of six moves the sum by {moved:.3g}, the bound is {probe.sensitivity:g}"
            return


def _unit_whole(probe: Probe) -> Iterator[str]:
    """All records of a unit are clipped together, although they would fit only in part beside those before them."""
    probe.loud(1e4)
    ids, targets = probe.records(4)
    terms = probe.quiet(max_rows_per_batch=4, max_records_per_unit=4)
    first = probe.release(ids[:1], targets[:1], [0], terms)
    for record in range(1, 4):  # one alone may pass by the expert that is not clipped
        rows, units = np.array([0, *[record] * 4]), np.array([0, 1, 1, 1, 1])
        moved = float(np.linalg.norm(probe.release(ids[rows], targets[rows], units, terms) - first))
        if moved > probe.sensitivity + probe.slack(terms):
            yield f"a unit of four records moves the sum by {moved:.3g}, the bound is {probe.sensitivity:g}"
            return


def _poisson(probe: Probe) -> Iterator[str]:
    """Every unit enters every step by a coin of its own: sizes, shares, pairs, repeats follow their binomial laws."""
    study = probe.terms.sample_rate
    rate = study if 0.05 <= study <= 0.5 else 0.25  # a rarer coin would need more steps to tell
    present = _who_was_drawn(probe, rate)
    if present is None:
        present = _who_was_drawn(probe, rate)  # a router's near tie can spoil one reading, hardly two
    if present is None:
        yield "a release is not a sum of whole contributions of units"
    else:
        yield from _binomial_problems(present, rate)


def _who_was_drawn(probe: Probe, rate: float) -> npt.NDArray[np.bool_] | None:
    """[steps, units], read off the sums; None if some sum does not consist of whole contributions."""
    probe.loud(1.0)
    ids, targets = probe.records(_UNITS)
    units = np.arange(_UNITS)
    terms = probe.quiet()
    alone = np.stack([probe.release(ids[i : i + 1], targets[i : i + 1], [0], terms) for i in units])
    sampled = probe.quiet(sample_rate=rate)
    steps = min(_STEPS, max(_FEWEST_STEPS, _MOST_DRAWS // probe.dim))
    sums = np.stack([probe.release(ids, targets, units, sampled) for _ in range(steps)])
    weights = np.linalg.lstsq(alone.T, sums.T, rcond=None)[0].T
    present: npt.NDArray[np.bool_] = weights > 0.5
    return present if np.abs(weights - present).max() <= 0.25 else None


def _binomial_problems(present: npt.NDArray[np.bool_], rate: float) -> Iterator[str]:
    """Names what in [steps, units] does not look like independent coins of that rate.

    Every count that is looked at is binomial exactly, and Bonferroni's bound covers those of one test: a false alarm of
    a test has probability at most _ALPHA for any number of steps, and of all four at most 4 * _ALPHA.
    """
    steps, units = present.shape
    sizes = present.sum(1)
    edges = binom.ppf(np.linspace(0, 1, 7)[1:-1], units, rate)  # of six cells of batch sizes, about equally likely
    cells = np.bincount(np.searchsorted(edges, sizes), minlength=len(edges) + 1)
    shares = np.diff(np.concatenate([[0.0], binom.cdf(edges, units, rate), [1.0]]))
    if _tails(cells, steps, shares).min() * len(cells) < _ALPHA:
        yield f"batch sizes from {sizes.min()} to {sizes.max()} are not those of independent coins of rate {rate:g}"
    tests = (
        ("a unit is drawn in {} of {} steps", present.sum(0), steps, rate),
        ("two units are drawn together in {} of {} steps", _pairs(present), steps, rate * rate),
    )
    for text, counts, trials, chance in tests:
        tails = _tails(counts, trials, chance)
        if tails.min() * len(counts) < _ALPHA:
            yield f"{text.format(counts[tails.argmin()], trials)} at rate {rate:g}"
    for first in (0, 1):  # pairs of steps that share none: overlapping ones would make no binomial count
        before, after = present[first:-1:2], present[first + 1 :: 2]
        repeats, trials = int((before & after).sum()), before.size
        if 2 * _tails(repeats, trials, rate * rate) < _ALPHA:
            expected = trials * rate * rate
            yield f"{repeats} of {trials} times a unit is in two steps running, {expected:.0f} expected"
            return


def _tails(counts: npt.ArrayLike, trials: int, chance: npt.ArrayLike) -> Reals:
    """Two-sided p-values of binomial counts: below any x with probability at most x, whatever the trials."""
    seen = np.asarray(counts)
    tails: Reals = 2 * np.minimum(binom.cdf(seen, trials, chance), binom.sf(seen - 1, trials, chance))
    return tails


def _pairs(present: npt.NDArray[np.bool_]) -> Integers:
    together = present.T.astype(np.int64) @ present.astype(np.int64)
    pairs: Integers = together[np.triu_indices(len(together), 1)]
    return pairs


def _loop(probe: Probe) -> Iterator[str]:
    """The sum is that of a loop: one unit's gradient at a time, clipped and added in float64."""
    as_it_stands = probe.adapted.state()
    for size in (None, 1.0):
        if size is None:
            probe.adapted.load_state(as_it_stands)
        else:
            probe.loud(size)
        ids, targets = probe.records(6)
        if size is None and probe.adapted.head is not None:
            labels = np.array([0, 1, 0, 1, 0, 1])
            targets = labels if targets.ndim == 1 else np.column_stack([labels, targets[:, 1:]])
        units = np.array([0, 1, 2, 3, 3, 4])
        each = unit_gradients(probe.adapted, ids, targets)
        means = np.stack([each[units == unit].mean(0) for unit in range(5)])
        sizes = np.linalg.norm(means, axis=1, keepdims=True)
        want = (means * (probe.bound / np.maximum(sizes, probe.clip_norm))).sum(0)
        if probe.is_adaptive:
            want = np.append(want, adaptive_clipping.COUNT_WEIGHT / 2 * np.where(sizes <= probe.clip_norm, 1, -1).sum())
        for rows in (2, 64):
            terms = probe.quiet(max_rows_per_batch=rows, max_records_per_unit=2)
            gap = float(np.linalg.norm(probe.release(ids, targets, units, terms) - want))
            if gap > 1e-3 * probe.bound + probe.slack(terms):
                yield f"the sum over five units is off by {gap:.3g}, where one unit adds at most {probe.bound:g}"
                return


def _batch(probe: Probe) -> Iterator[str]:
    """What a unit adds to a sum is what it adds alone, also at made-up numbers, where rounding decides gradients.

    Sums are read so finely that one rounding of another unit's gradient shows, which is far below the bound by itself:
    at some state it would decide a whole gradient.
    """
    for state in (None, *(made_up_state(probe.adapted, probe.rng) for _ in range(_MADE_UP))):
        if state is None:
            probe.loud(1.0)
        else:
            probe.adapted.load_state(state)
        ids, targets = probe.records(12)
        longest = ids.shape[1]
        tokens = probe.rng.integers(longest - _LENGTH + 2, longest, len(ids))
        tokens[0] = longest  # one is longer than all others
        ids[np.arange(longest) >= tokens[:, None]] = 0
        targets = np.where(words_of(ids) > 0, targets, 0).astype(targets.dtype) if targets.ndim == 2 else targets
        bits = min(48, max(0, _FINE - round(math.log2(probe.bound))))
        terms, units = replace(probe.quiet(), scale_bits=bits, max_norm=None, weight=1.0), np.arange(len(ids))
        everybody = probe.release(ids, targets, units, terms)
        if float(np.linalg.norm(everybody)) > 2 * len(ids) * probe.bound:
            continue  # nothing is clipped, which other checks say, and the ring may have cut it
        for unit in (0, 7):
            others = units != unit
            without = probe.release(ids[others], targets[others], units[others], terms)
            alone = probe.release(ids[~others], targets[~others], units[~others], terms)
            moved = float(np.linalg.norm(everybody - without - alone))
            if moved > 8 * math.sqrt(probe.dim) * 2.0**-terms.scale_bits:
                yield (
                    f"taking one unit of {len(ids)} out moves the parts of the others by {moved:.3g}, the bound is for "
                    f"its own part, {probe.bound:g}"
                )
                return


def made_up_state(adapted: AdaptedModel, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Trained numbers as nobody would come to by training: large and small, dense, of rank one or zero, by tensor."""
    parts, layout = [], adapted.layout
    for name, shape in layout.shapes.items():
        exponent = rng.uniform(-1, 10) if layout.slices[name] == layout.head_slice else rng.uniform(-3, 7)
        part = rng.normal(size=shape)
        if len(shape) > 1 and rng.random() < 0.5:
            part = rng.normal(size=(*shape[:-1], 1)) * rng.normal(size=shape[-1])
        parts.append(part.ravel() * (10**exponent if rng.random() > 0.3 else 0.0))
    return np.concatenate(parts).astype(np.float32)


def _reached(probe: Probe) -> int:
    probe.loud(1e4)
    ids, targets = probe.records(6)
    gradients = unit_gradients(probe.adapted, ids, targets)
    norms = _largest(gradients, blocks(probe.adapted)).values()
    return sum(size > probe.clip_norm for size in norms)


CHECKS: dict[str, Check] = {
    "noise-std": _noise_std,
    "noise-fresh": _noise_fresh,
    "clipping": _clipping,
    "sensitivity": _sensitivity,
    "unit-whole": _unit_whole,
    "poisson-sampling": _poisson,
    "float64-loop": _loop,
    "batch-independence": _batch,
}
_STATISTICAL = {"noise-std", "noise-fresh", "poisson-sampling"}
