"""Summarises a new study for its operator: hash, size, learning rates, and the cost of a run."""

from dataclasses import dataclass

from ...client_node.study import Study, cost
from .expectation import Expectation, expectation


@dataclass(frozen=True, kw_only=True, slots=True)
class StudySummary:
    """The figures of a study; `noise_multiplier` is the solved one if the draft has a target epsilon."""

    name: str
    hash: str
    dim: int
    lr: float
    head_lr: float
    noise_multiplier: float
    target_epsilon: float | None
    delta: float
    collusion: int
    epsilon: float | None  # by PLD, of a whole run at a site that releases nothing else; None without privacy


def summary(study: Study) -> StudySummary:
    """Computes the figures of a study."""
    privacy = study.draft.privacy
    lr, head_lr = study.draft.optimizer.rates
    return StudySummary(
        name=study.name,
        hash=study.study_hash,
        dim=study.dim,
        lr=lr,
        head_lr=head_lr,
        noise_multiplier=privacy.noise_multiplier,
        target_epsilon=privacy.target_epsilon,
        delta=privacy.delta,
        collusion=privacy.collusion,
        epsilon=None if privacy.mode == "none" else cost.whole_cost(study),
    )


def expected(study: Study) -> Expectation | None:
    """Says from public numbers what the noise leaves to be learned; None without privacy, or without a start."""
    if study.start is None:
        return None
    return expectation(study.draft, trained=study.dim - study.draft.state_dim(0), head=study.start.head_size)
