"""An aggregator party: the handle that a node holds, and the process that it starts."""

from .handle import Order, PartyConfig, PartyProcess, TotalShare

__all__ = ["Order", "PartyConfig", "PartyProcess", "TotalShare"]
