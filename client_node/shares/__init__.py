"""A site's sealed shares on their way out, and an aggregator's on their way in."""

from .aggregator import AggregatorRole
from .outbox import Files, Outbox

__all__ = ["AggregatorRole", "Files", "Outbox", "seal", "topup"]
