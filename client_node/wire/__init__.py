"""Every message between coordinator and nodes, and the chunks that large ones travel in."""

__all__ = ["chunks", "messages"]
