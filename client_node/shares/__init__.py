"""A site's sealed shares on their way out, and an aggregator's on their way in."""

from .aggregator import AggregatorRole
from .outbox import Files, Outbox, described

__all__ = ["AggregatorRole", "Files", "Outbox", "described", "seal", "topup"]
