"""Tests of a training step's privacy claim: checks of the engine, canaries and lower bounds, membership attacks."""
