"""Finds the Pareto front of a sweep: the trials than which no other is at once cheaper in epsilon and better."""

import math
from collections.abc import Sequence


def pareto_front(epsilons: Sequence[float | None], values: Sequence[float]) -> list[int]:
    """Finds the places of points that no other point beats, by rising epsilon.

    One point beats another if its epsilon is no larger, its value no lower, and one of both strictly so. Equal points
    stand on the front together.

    Args:
        epsilons: None has no bound.
        values: the higher the better.
    """
    costs = [math.inf if epsilon is None else epsilon for epsilon in epsilons]
    front: list[int] = []
    for place in sorted(range(len(costs)), key=lambda at: (costs[at], -values[at])):
        best = front[-1] if front else None
        if best is None or values[place] > values[best] or (costs[place], values[place]) == (costs[best], values[best]):
            front.append(place)
    return front
