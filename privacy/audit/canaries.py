"""The one-run audit of a real step: canary units, fair coins, and an auditor who sees everything else.

The auditor is the strongest that a study's guarantee is meant for: it chooses the trained numbers of every step, as a
malicious coordinator may, knows all records, all code and the noise of the colluding sites, and reads the opened sums.
Unknown to it are each canary's coin and the noise of the other sites, which they add by the code of every round.

Each canary is offered to one step, so what is claimed for it is one step's epsilon. Few canaries a step keep their
gradients apart: a sum tells each of them from the others. The steps take everybody at hand (rate 1); whether a
study's rate is kept by independent coins is for `engine_checks` to check.

The same auditor guesses about the same canaries in steps without clip and noise, too. Guesses that fail there would
show a weak auditor and nothing about the mechanism.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from ...kernels.collect import Collector
from ...models.adapters import AdaptedModel
from ..accounting import composition
from ..errors import InvalidPrivacyParameter
from ..mechanism.sampling import Integers, poisson_sample
from ..mechanism.site_round import ReleaseTerms, private_release
from . import one_run
from .engine_checks import Engine, Reals, Targets, made_up_records, unlikely_targets

_LENGTH = 16  # words of a canary; longer ones are no further apart
_SPREAD = 30.0  # of the head's weights over the clip norm: every canary's gradient is at the bound
_MOST_DRAWS = 4_000_000  # noise samples of one audit, about 15 s of a core
_MOST_ENTRIES = 100_000_000  # of the gradients that are held at once
_MOST_PARTS = 4  # sites that are run one by one; the noise of more is drawn in that many parts


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditDesign:
    """The design of an audit, fixed before anything is drawn."""

    canaries: int = 800
    canaries_per_step: int = 25
    guesses: int = 100  # of the canaries; the auditor abstains on the others
    confidence: float = 0.95

    def __post_init__(self) -> None:
        fits = 2 <= self.guesses <= self.canaries and self.guesses % 2 == 0
        if not (fits and self.canaries % self.canaries_per_step == 0 and 0 < self.confidence < 1):
            raise InvalidPrivacyParameter(
                "need an even number of guesses, at most one a canary, full steps, and confidence in (0, 1); "
                f"got {self}"
            )

    @property
    def steps(self) -> int:
        """The number of sums that are opened."""
        return self.canaries // self.canaries_per_step

    def within(self, dim: int, sites: int) -> "AuditDesign":
        """The same design, cut so that a large adapter is audited in about a minute too.

        Fewer steps make a weaker audit, which `AuditResult.reach` tells.
        """
        steps = max(1, min(self.steps, _MOST_DRAWS // (dim * min(sites, _MOST_PARTS))))
        per_step = max(2, min(math.ceil(self.canaries / steps), _MOST_ENTRIES // dim)) if steps < self.steps else None
        if per_step is None:
            return self
        canaries = per_step * steps
        guesses = max(2, 2 * (self.guesses * canaries // (2 * self.canaries)))
        return replace(self, canaries=canaries, canaries_per_step=per_step, guesses=guesses)


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditedStep:
    """The mechanism: one opened sum over some sites, seen by an observer who knows the noise of a few of them."""

    terms: ReleaseTerms  # of each site, with its own noise
    sites: int  # that the sum holds
    colluding: int  # of them, whose noise the observer knows
    delta: float

    def __post_init__(self) -> None:
        if not (0 <= self.colluding < self.sites and 0 < self.delta < 1) or self.terms.clip_norm is None:
            raise InvalidPrivacyParameter(f"need a bound, delta in (0, 1) and a site that does not collude, got {self}")

    def release(self, dim: int) -> composition.Release:
        """The step as our accountant sees it, at rate 1."""
        assert self.terms.clip_norm is not None
        return composition.Release(
            mode=self.terms.mode,
            site_noise_int=self.terms.site_noise_int,
            scale_bits=self.terms.scale_bits,
            clip_norm=self.terms.clip_norm,
            dim=dim,
            sample_rate=1.0,
            sites=self.sites,
        )

    def claim(self, dim: int) -> float:
        """Epsilon at `delta` that is claimed for a unit in one such step."""
        return composition.epsilon_pld([self.release(dim)], self.delta, self.colluding)

    def site_terms(self) -> list[ReleaseTerms]:
        """The terms of each part of the noise that the observer does not know: one a site, up to four."""
        unknown = 1 if self.terms.mode == "local" else self.sites - self.colluding
        parts = min(unknown, _MOST_PARTS)
        noise = self.terms.site_noise_int * math.sqrt(unknown / parts)
        rows = max(self.terms.max_rows_per_batch, 1)
        one = replace(
            self.terms, sample_rate=1.0, site_noise_int=round(noise), max_rows_per_batch=rows, max_records_per_unit=1
        )
        return [one] * parts


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditResult:
    """Result of an audit: the claimed epsilon, and the bound below which the guesses refute every epsilon."""

    design: AuditDesign
    claim: float  # epsilon of the audited step
    lower_bound: float  # epsilon that is refuted at design.confidence; above the claim, the claim is wrong
    reach: float  # the bound, had every guess been right: a claim above it cannot be refuted by this design
    right: int
    right_unprotected: int  # of as many guesses, had the sums neither clip nor noise
    delta: float
    noise_multiplier: float  # of the audited step, for its observer

    @property
    def holds(self) -> bool:
        """True if the guesses leave the claim standing."""
        return self.lower_bound <= self.claim


def run_audit(
    engine: Engine,
    adapted: AdaptedModel,
    words: int,
    step: AuditedStep,
    *,
    design: AuditDesign | None = None,
    rng: np.random.Generator | None = None,
) -> AuditResult:
    """Audits `engine` on a study's own model, whose trained numbers are put back afterwards.

    Coins come from the operating system; `rng` draws the canaries and the trained numbers, which the auditor knows.

    Args:
        words: size of the schema's vocabulary, padding included.
        design: None takes the standard one, cut for large adapters.
    """
    rng, dim, site_terms = rng or np.random.default_rng(), adapted.layout.dim, step.site_terms()
    design = design or AuditDesign().within(dim, len(site_terms))
    scores, bare = np.zeros(design.canaries), np.zeros(design.canaries)
    coins = np.zeros(design.canaries, dtype=np.bool_)
    kept = adapted.state()
    try:
        for start in range(0, design.canaries, design.canaries_per_step):
            here = slice(start, start + design.canaries_per_step)
            adapted.load_state(_auditors_state(adapted, step.terms, rng))
            ids = made_up_records(adapted, rng, design.canaries_per_step, words=words, least=1, length=_LENGTH)
            targets = unlikely_targets(adapted, ids)
            coins[here][poisson_sample(len(ids), 0.5)] = True
            gradients = _gradients(adapted, ids, targets)
            opened = _opened(engine, adapted, ids, targets, coins[here], site_terms)
            scores[here] = _scores(_clipped(gradients, step.terms), opened)
            plain = _opened(private_release, adapted, ids, targets, coins[here], [_unprotected(step.terms)])
            bare[here] = _scores(gradients, plain)
    finally:
        adapted.load_state(kept)
    right = one_run.count_right(scores, coins, design.guesses)

    def bound(right: int) -> float:
        return one_run.epsilon_lower_bound(
            right, design.guesses, design.canaries, delta=step.delta, confidence=design.confidence
        )

    return AuditResult(
        design=design,
        claim=step.claim(dim),
        lower_bound=bound(right),
        reach=bound(design.guesses),
        right=right,
        right_unprotected=one_run.count_right(bare, coins, design.guesses),
        delta=step.delta,
        noise_multiplier=step.release(dim).noise_multiplier(step.colluding),
    )


def _auditors_state(adapted: AdaptedModel, terms: ReleaseTerms, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Random numbers of a size at which the model is far from linear, so that canaries' gradients point apart."""
    assert terms.clip_norm is not None
    state = rng.normal(size=adapted.layout.dim)
    state[adapted.layout.head_slice] *= _SPREAD * terms.clip_norm
    return state.astype(np.float32)


def _opened(
    engine: Engine,
    adapted: AdaptedModel,
    ids: Integers,
    targets: Targets,
    is_in: npt.NDArray[np.bool_],
    site_terms: list[ReleaseTerms],
) -> Reals:
    """[dim], the sum over the sites whose noise is unknown; every canary has its site, whatever the coins say."""
    total = np.zeros(adapted.layout.dim, dtype=np.int64)
    for site, terms in enumerate(site_terms):
        own = np.arange(site, len(is_in), len(site_terms))
        own = own[is_in[own]]
        total += engine(adapted, ids[own], targets[own], own, terms=terms)
    return total.astype(np.float64) * 2.0 ** -site_terms[0].scale_bits


def _unprotected(terms: ReleaseTerms) -> ReleaseTerms:
    return replace(
        terms, mode="none", clip_norm=None, site_noise_int=0, sample_rate=1.0, max_norm=None, max_records_per_unit=1
    )


def _gradients(adapted: AdaptedModel, ids: Integers, targets: Targets) -> Reals:
    """[canaries, dim], each canary's gradient, before clipping.

    One backward pass captures all of them; `engine_checks` compares that capture with plain autograd.
    """
    count, layout = len(ids), adapted.layout
    device = next(iter(adapted.trained.values())).device
    collector = Collector(torch.arange(count, device=device), count, ids.shape[1])
    with adapted.slot.filled(collector), torch.enable_grad():
        losses = adapted.losses(torch.from_numpy(ids).to(device), torch.from_numpy(targets).to(device))
        losses.sum().backward()  # type: ignore[no-untyped-call]
    gradients = np.zeros((count, layout.dim))
    names = {parameter: name for name, parameter in adapted.trained.items()}
    of_rows = collector.weighted_sums(torch.ones(count, device=device), collector.unit_of_row, count)
    for parameter, of_row in of_rows.items():
        gradients[:, layout.slices[names[parameter]]] = of_row.flatten(1).cpu().numpy()
    return gradients


def _clipped(gradients: Reals, terms: ReleaseTerms) -> Reals:
    """What each canary would add: clipped here, whatever the engine does."""
    assert terms.clip_norm is not None
    norms = np.linalg.norm(gradients, axis=1, keepdims=True)
    clipped: Reals = gradients * np.minimum(1, terms.clip_norm / np.maximum(norms, 1e-300))
    return clipped


def _scores(gradients: Reals, opened: Reals) -> Reals:
    """[canaries], how far each canary's inclusion is estimated from a half: the best linear estimate from one sum.

    The noise's size is read off the part of the sum that no canary explains, so an engine with less noise than claimed
    is met by an auditor who uses it. A sum larger than coins can explain widens the prior: some clip is missing.
    """
    count, dim = gradients.shape
    centred = opened - gradients.sum(0) / 2
    gram = gradients @ gradients.T
    gram[np.diag_indices(count)] *= 1 + 1e-9
    seen = gradients @ centred
    explained = float(seen @ np.linalg.solve(gram, seen))
    variance = max(0.0, float(centred @ centred) - explained) / max(1, dim - count)
    spread = (explained - count * variance) / float(gram.trace())  # of inclusion; a quarter for coins
    prior = spread if spread > 1 else 0.25
    scores: Reals = np.linalg.solve(gram + variance / prior * np.eye(count), seen)
    return scores
