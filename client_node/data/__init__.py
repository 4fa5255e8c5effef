"""A site's records: its table, its cells, and the checks of both."""

from .records import DataReport, Records, check, read

__all__ = ["DataReport", "Records", "check", "read"]
