"""What comes of a run: adapters, metrics, audits, reports, statistics of routing."""
