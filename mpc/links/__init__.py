"""What travels between and is kept by parties: TLS links, frames, orders, certificates, the journal."""

from .frames import Channel
from .memory_map import mapped
from .orders import Order, PartyConfig, TotalShare
from .tls import Links

__all__ = [
    "Channel",
    "Links",
    "Order",
    "PartyConfig",
    "TotalShare",
    "certificates",
    "frames",
    "journal",
    "mapped",
    "tls",
]
