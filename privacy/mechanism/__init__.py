"""The DP mechanism of a site: sampling, clipping by unit, noise, and the round release made of them."""

__all__ = ["adaptive_clipping", "histogram", "independence", "noise", "projection", "sampling", "site_round", "workers"]
