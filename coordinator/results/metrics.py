"""Computes the metrics and the privacy cost of a run's evaluation, from the noised histogram, which is public."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ...client_node.study.cost import planned_releases
from ...models.evaluation.binned import BinnedMetrics, binned_metrics
from ...models.evaluation.metrics import Estimate
from ...models.records.kind import Judged
from ...models.records.tasks import OutcomeTerms
from ...privacy.accounting import epsilon_pld
from ..errors import Conflict
from ..store import Store
from ..studies.catalogue import load_study


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """The metrics of a run's final model on its sites' held-out records, one record for each unit."""

    run: str
    rounds: int  # training rounds before the evaluation
    sites: tuple[str, ...]  # whose records were summed
    noise_std: float  # of each count
    judged: Judged  # a completion is positive if greedy decoding writes it exactly, an answer if it is right
    metrics: BinnedMetrics
    tasks: Mapping[str, Estimate | None]  # of several: how often each is right; None where noise hides it
    unit: str
    epsilon: float | None  # of the evaluation by itself, by PLD; None in mode "none"
    epsilon_added: float | None  # by the evaluation, to the epsilon of all before it in the run
    delta: float | None
    collusion: int  # colluding sites that epsilon allows for


def measurement(store: Store, run_id: str) -> Measurement:
    """Computes the metrics of a run's final model, and the cost of measuring them.

    Raises:
        Conflict: nothing was measured; the message has the reason.
    """
    study = load_study(store.study(store.run(run_id).study))
    row, privacy = store.evaluation(run_id), study.draft.privacy
    if study.draft.evaluation is None:
        raise Conflict(f"study {study.name} has no [evaluation]; create one that has, or: coordinator adapter evaluate")
    if row is None:
        raise Conflict(f"run {run_id} is not evaluated yet; that comes after its last round")
    if row.problem is not None:
        raise Conflict(f"run {run_id}: {row.problem}")
    sites = row.summed
    *earlier, (evaluation, _) = planned_releases(study, sites=len(sites))
    release = evaluation.over(len(sites))  # with the top-ups for missing sites
    noise_std = len(sites) ** 0.5 * release.site_noise_int / 2.0**release.scale_bits
    counts = list(row.histogram)
    epsilon = added = None
    if privacy.mode != "none":
        before = [each for each, count in earlier for _ in range(count)]
        epsilon = epsilon_pld([release], privacy.delta, privacy.collusion)
        added = epsilon_pld([*before, release], privacy.delta, privacy.collusion)
        added -= epsilon_pld(before, privacy.delta, privacy.collusion)
    by_label = [counts[: len(counts) // 2], counts[len(counts) // 2 :]]
    terms = study.draft.data.terms
    names = tuple((terms.tasks or {}) if isinstance(terms, OutcomeTerms) else ())
    if names:  # a bin counts one task; those behind the last one hold noise alone
        by_label = [own[: len(names) + len(names) % 2] for own in by_label]
    metrics = binned_metrics(by_label, noise_std=noise_std)
    tasks: dict[str, Estimate | None] = dict.fromkeys(names)
    if names:
        tasks |= {name: each.positives for name, each in zip(names, metrics.reliability, strict=False)}
        # Bins are tasks, and not sizes of a score.
        metrics = replace(
            metrics, auc=None, auc_tied=None, accuracy=metrics.prevalence, calibration_error=None, reliability=()
        )
    return Measurement(
        run=run_id,
        rounds=store.last_round(run_id).number,
        sites=sites,
        noise_std=noise_std,
        judged=study.draft.data.judged,
        metrics=metrics,
        tasks=tasks,
        unit=study.draft.data.unit,
        epsilon=epsilon,
        epsilon_added=added,
        delta=privacy.delta if epsilon is not None else None,
        collusion=privacy.collusion,
    )
