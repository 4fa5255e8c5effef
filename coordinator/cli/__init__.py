"""The command `coordinator`."""

__all__ = ["main"]
