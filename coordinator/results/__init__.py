"""What comes of a run: adapters, metrics, audits, reports, statistics of routing."""

__all__ = [
    "export",
    "held_out",
    "ledger_export",
    "metrics",
    "privacy_audit",
    "reports",
    "router_page",
    "router_statistics",
]
