"""Questions about settings of a study that are allowed and still surely wrong, unless somebody says they are meant.

Each question is a small function in `QUESTIONS`: it looks at the draft and returns a sentence, or nothing. A setting
that cannot be run is no question but a problem; `client_node.study.terms` refuses it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ...client_node.study import StudyDraft
from ...models.rounding import rounded_up

LARGE_EPSILON = 10.0  # above, one unit's presence moves the odds of what is seen by more than e^10 = 22,026
FEWEST_UNITS = 50  # of a site on average; below, the noise drowns whatever there is to learn
_FAR = 2.0  # a factor; what sites tell beforehand is never exact


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """A draft with what is known beside it: the subject of the questions."""

    draft: StudyDraft
    units: int | None  # persons at all sites together, as the sites have told their operator; None if nobody asked
    epsilon: float | None  # what a whole run is planned to cost; None if it is not known

    @property
    def implied_units(self) -> float:
        """Persons at all sites together that batch_units and sample_rate assume."""
        return self.draft.rounds.batch_units / self.draft.privacy.sample_rate

    @property
    def assumption(self) -> str:
        """The same, in words."""
        rate, batch = self.draft.privacy.sample_rate, self.draft.rounds.batch_units
        return (
            f"rounds.batch_units is {batch:g} at privacy.sample_rate {rate:g}: {self.implied_units:,.0f} units in all"
        )


def questions(facts: Facts) -> tuple[str, ...]:
    """Lists the questions that somebody must answer before the draft becomes a study."""
    return tuple(asked for question in QUESTIONS if (asked := question(facts)))


def _batch_is_far_from_what_sites_told(facts: Facts) -> str | None:
    if facts.units is None or 1 / _FAR <= facts.implied_units / facts.units <= _FAR:
        return None
    should = facts.draft.privacy.sample_rate * facts.units
    return (
        f"{facts.assumption}, and the sites told of {facts.units:,}. The sum is divided by batch_units, so every step "
        f"would be {_times(should / facts.draft.rounds.batch_units)}; {should:,.0f} fits"
    )


def _sites_are_tiny(facts: Facts) -> str | None:
    sites = len(facts.draft.participants.sites)
    average = facts.implied_units / sites
    if facts.units is not None or average >= FEWEST_UNITS:  # else the sites' own number is the better measure
        return None
    return (
        f"{facts.assumption}, {average:,.0f} at each of {sites} sites. Ask the sites how many there are: batch_units "
        "should be sample_rate times all units"
    )


def _delta_is_above_one_in_the_units(facts: Facts) -> str | None:
    told = facts.implied_units if facts.units is None else facts.units
    largest, delta = told / len(facts.draft.participants.sites), facts.draft.privacy.delta  # no site is below average
    if delta * largest <= 1:
        return None
    return (
        f"privacy.delta is {delta:g}, above 1 in {largest:,.0f} units of a site: the site with most of them refuses "
        f"it; at most {1 / told:.1g} fits every site"
    )


def _epsilon_protects_nobody(facts: Facts) -> str | None:
    target = facts.draft.privacy.target_epsilon
    epsilon = facts.epsilon if target is None else target
    if epsilon is None or epsilon <= LARGE_EPSILON:
        return None
    said = "a whole run is planned to cost epsilon" if target is None else "privacy.target_epsilon is"
    return (
        f"{said} {rounded_up(epsilon)}. Above {LARGE_EPSILON:g} it bounds nothing that a person would call private; "
        "usual are 1 to 8, and sites' caps must be higher still"
    )


def _nothing_is_protected(facts: Facts) -> str | None:
    if facts.draft.privacy.mode != "none":
        return None
    return (
        "privacy.mode is 'none': no noise at all, whoever sees the result may learn records from it. For public data "
        "only; every site must approve it with --unprotected"
    )


def _times(factor: float) -> str:
    return f"{factor:,.3g} times as long as meant" if factor >= 1 else f"{1 / factor:,.3g} times too short"


QUESTIONS: tuple[Callable[[Facts], str | None], ...] = (
    _batch_is_far_from_what_sites_told,
    _sites_are_tiny,
    _delta_is_above_one_in_the_units,
    _epsilon_protects_nobody,
    _nothing_is_protected,
)
