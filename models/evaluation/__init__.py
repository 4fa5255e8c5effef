"""Metrics with intervals, from scores or from noised histograms, and statistics of routing."""

__all__ = ["binned", "metrics", "router_statistics"]
