"""A whole federation on this machine: real processes, real records, and baselines.

`run_demo` is `coordinator demo`: it prepares an example's records, founds a federation beside them, drives a run to its
end and prints the results. `baselines` trains the same study without privacy; simpler models are those of
`coordinator.comparison`. For an unknown example the error lists the known ones:

>>> from pathlib import Path
>>> from confide.coordinator.demo import run_demo
>>> run_demo("flowers", Path("flowers"), rounds=None, is_smoke=True, as_json=True)
Traceback (most recent call last):
confide.coordinator.errors.DemoFailed: there is no example 'flowers' (...voices)
"""

from .demo import run_demo

__all__ = ["baselines", "run_demo"]
