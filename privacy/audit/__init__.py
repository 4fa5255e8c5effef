"""Tests of a training step's privacy claim: checks of the engine, canaries and lower bounds, membership attacks."""

__all__ = ["canaries", "engine_checks", "membership_attack", "one_run"]
