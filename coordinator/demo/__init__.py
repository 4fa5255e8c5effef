"""A whole federation on this machine: real processes, real records, and what to compare them with."""

from .demo import run_demo

__all__ = ["baselines", "run_demo"]
