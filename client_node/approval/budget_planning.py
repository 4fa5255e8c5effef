"""Plans a study under a site's budget: its cost, the rounds that fit, and the noise with which all rounds fit.

All figures come from the releases that a real run of it would open (`study.cost`), evaluation included. What fits goes
by the filter that keeps the cap, not by PLD: the study is chosen after what was released before.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...privacy.accounting import Release, composition, renyi
from ...privacy.errors import InvalidPrivacyParameter
from ...privacy.ledger.charges import Budget
from ..errors import StudyInvalid
from ..policy import load_policy
from ..study import Study, cost, load_draft
from .catalogue import find_study
from .charges import standing

NOTHING: Mapping[Release, int] = Counter()
ASSUMED_DIM = 100_000  # rounding to the ring costs at most 1 % of the noise multiplier at any length
MOST_ROUNDS = 100_000  # as in `RoundTerms`


@dataclass(frozen=True, slots=True)
class Cost:
    """The epsilon, at the budget's delta, for an observer who knows the noise of `colluding` sites."""

    colluding: int
    pld: float  # of the study alone, as a plan
    rdp: float
    pld_after: float  # of the study and all earlier charges, as one plan
    rdp_after: float
    guaranteed_after: float  # of the same by the filter, which the cap goes by: whatever was chosen by results


@dataclass(frozen=True, slots=True)
class BudgetPlan:
    """The worst cost of a study at one site: with the fewest sites in every sum."""

    study: str
    dim: int
    is_dim_assumed: bool
    budget: Budget
    order: int  # of the filter
    spent: float  # by PLD at the budget's delta and collusion, other runs' reservations included
    guaranteed: float  # the same by the filter
    costs: tuple[Cost, ...]
    rounds: int  # of the study
    rounds_left: int  # that fit in what is left of the budget, at most `MOST_ROUNDS`
    rounds_from_zero: int  # that fit in the whole budget
    noise_multiplier: float
    noise_multiplier_needed: float | None  # with which all rounds fit in what is left; None if no noise is enough


def plan_at(home: Path, text: str, dim: int | None = None) -> BudgetPlan:
    """Plans a study, a draft or a fetched one, under the budget of the node whose folder is `home`.

    Needs the node's site.toml. Without an enrolment, and so without a ledger, nothing is spent yet.

    Args:
        text: path of a study.toml, or name or hash of a study that the node has fetched.
        dim: length of a draft's trained vector; None for `ASSUMED_DIM`.
    """
    is_draft = text.endswith(".toml")
    study = _drafted(Path(text), dim or ASSUMED_DIM) if is_draft else find_study(home, text)
    stands = standing(home, load_policy(home))
    stands.require_open()
    return plan(
        study,
        stands.budget,
        order=stands.order,
        spent=stands.spent,
        reserved=stands.reserved,
        is_dim_assumed=is_draft and dim is None,
    )


def plan(
    study: Study,
    budget: Budget,
    *,
    order: int | None = None,
    is_dim_assumed: bool = False,
    spent: Mapping[Release, int] = NOTHING,
    reserved: Mapping[Release, int] = NOTHING,
) -> BudgetPlan:
    """Plans a run of `study`, which may be one of `cost.provisional`, under `budget`.

    Args:
        order: of the filter that keeps the budget; None for the one of a budget that was not charged yet.
        spent: releases charged on the budget's data set and unit.
        reserved: releases that other active runs will still charge.

    Raises:
        StudyInvalid: the study has no privacy.
    """
    draft = study.draft
    if draft.privacy.mode == "none":
        raise StudyInvalid(f"study {draft.name}", ("privacy.mode is 'none': it has no cost that could be counted",))
    wanted, before = cost.releases_of_run(study), Counter(spent) + Counter(reserved)
    fresh = renyi.filter_order(budget.epsilon, budget.delta)
    order = order or fresh

    def rounds_that_fit(earlier: Mapping[Release, int], order: int) -> int:
        def fits(rounds: int) -> bool:
            longer = study.model_copy(update={"draft": cost.with_rounds(draft, rounds)})
            return _guaranteed(budget, cost.releases_of_run(longer) + Counter(earlier), order) <= budget.epsilon

        return _largest(fits, draft.rounds.rounds)

    try:
        needed = composition.solve_noise_multiplier(
            lambda multiplier: cost.releases_of_draft(cost.with_noise(draft, multiplier), study.dim) + before,
            budget.epsilon,
            budget.delta,
            budget.collusion,
            order=order,
        )
    except InvalidPrivacyParameter:
        needed = None  # earlier charges, or an evaluation with its own noise, cost too much already
    return BudgetPlan(
        study=draft.name,
        dim=study.dim,
        is_dim_assumed=is_dim_assumed,
        budget=budget,
        order=order,
        spent=composition.epsilon_pld(before, budget.delta, budget.collusion),
        guaranteed=_guaranteed(budget, before, order),
        costs=tuple(_cost(budget, colluding, wanted, before, order) for colluding in sorted({0, 1, budget.collusion})),
        rounds=draft.rounds.rounds,
        rounds_left=rounds_that_fit(before, order),
        rounds_from_zero=rounds_that_fit(NOTHING, fresh),
        noise_multiplier=draft.privacy.noise_multiplier,
        noise_multiplier_needed=needed,
    )


def _drafted(path: Path, dim: int) -> Study:
    return cost.provisional(cost.solve_noise(load_draft(path), dim), dim)


def _cost(budget: Budget, colluding: int, wanted: Counter[Release], before: Counter[Release], order: int) -> Cost:
    after = wanted + before
    return Cost(
        colluding=colluding,
        pld=composition.epsilon_pld(wanted, budget.delta, colluding),
        rdp=composition.epsilon_rdp(wanted, budget.delta, colluding),
        pld_after=composition.epsilon_pld(after, budget.delta, colluding),
        rdp_after=composition.epsilon_rdp(after, budget.delta, colluding),
        guaranteed_after=composition.epsilon_guaranteed(after, budget.delta, colluding, order),
    )


def _guaranteed(budget: Budget, counted: Mapping[Release, int], order: int) -> float:
    return composition.epsilon_guaranteed(counted, budget.delta, budget.collusion, order)


def _largest(fits: Callable[[int], bool], guess: int) -> int:
    """Finds the largest number from 0 to `MOST_ROUNDS` that fits, from `guess` on; all smaller numbers fit too."""
    low, high = 0, guess
    while high <= MOST_ROUNDS and fits(high):
        low, high = high, 2 * high
    high = min(high, MOST_ROUNDS + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
