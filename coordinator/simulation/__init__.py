"""Simulated runs: a study with hundreds of sites on one machine, on records that must be public or synthetic.

`sweeping` simulates a study with other settings, which `axes` reads; `swept` has what came of it. `run_page` draws one
run.

>>> from confide.coordinator.simulation import Plan
>>> Plan(sites=200, split="dirichlet:0.5").faults.dropouts
0.0
"""

from typing import TYPE_CHECKING

from ...faces import lazy

if TYPE_CHECKING:
    from .engine import simulate
    from .outcome import Faults, Plan, Simulation
else:
    __getattr__ = lazy(__name__, engine="simulate", outcome="Faults Plan Simulation")

__all__ = ["Faults", "Plan", "Simulation", "axes", "engine", "outcome", "run_page", "simulate", "sweeping", "swept"]
