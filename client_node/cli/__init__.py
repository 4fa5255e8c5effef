"""The command `client-node`."""

__all__ = ["main", "tables"]
