"""Budget reports: built from ledgers, shown as a page, and verified by recomputation."""

__all__ = ["build", "plot", "schema", "templating", "verify"]
