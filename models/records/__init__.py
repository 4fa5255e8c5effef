"""Kinds of record: what a study declares of them, and how cells become model inputs."""
