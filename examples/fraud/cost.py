"""Computes one person's epsilon for the opened gradients, at delta 1e-5."""

from dataclasses import dataclass

from model import GRADIENT_BITS
from terms import ROLES

from confide.privacy.accounting import Release, epsilon_pld, epsilon_rdp, site_noise, solve_noise_multiplier

DELTA = 1e-5


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Epsilon for one person, by who looks."""

    outsider: float  # sees every opened vector; whether the person was trained on
    party: float  # and knows its own noise besides
    party_by_rdp: float
    other_owner: float  # which knows who is common; what the other's columns say of the person, replaced by any others


def cost(noise: int, steps: int, dim: int) -> Cost:
    """The cost of `steps` gradients of `dim` numbers, to which each party adds noise of std `noise`."""
    one = {_release(noise, dim): steps}
    replaced = {_release(noise, dim, most_moved=2.0): steps}
    return Cost(
        outsider=epsilon_pld(one, DELTA, 0),
        party=epsilon_pld(one, DELTA, 1),
        party_by_rdp=epsilon_rdp(one, DELTA, 1),
        other_owner=epsilon_pld(replaced, DELTA, 1),
    )


def noise_for(target_epsilon: float, steps: int, dim: int) -> int:
    """Std of one party's noise at which `Cost.party` is `target_epsilon` or a little less."""

    def noise(multiplier: float) -> int:
        return site_noise(multiplier, 1.0, len(ROLES), 0, 1, GRADIENT_BITS, "distributed")

    multiplier = solve_noise_multiplier(
        lambda multiplier: {_release(noise(multiplier), dim): steps}, target_epsilon, DELTA, colluding=1
    )
    return noise(multiplier)


def _release(noise: int, dim: int, *, most_moved: float = 1.0) -> Release:
    """One opened gradient: three parties' noise, everybody takes part, one person moves it by `most_moved`."""
    return Release(
        mode="distributed",
        site_noise_int=noise,
        scale_bits=GRADIENT_BITS,
        clip_norm=most_moved,
        dim=dim,
        sample_rate=1.0,
        sites=len(ROLES),
    )
