"""A site's ledger: where every charge is written, signed and chained before anything is released."""

__all__ = ["backup", "canonical", "chain", "charges", "ledger", "tally"]
