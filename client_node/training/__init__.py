"""Training at a site: the study's model, one round of it, and the worker processes that share it."""

__all__ = ["study_model", "trainer", "warm_model", "workers"]
