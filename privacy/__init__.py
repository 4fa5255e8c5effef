"""Per-unit clipping, noise, sampling, accounting, the ledger and its reports."""
