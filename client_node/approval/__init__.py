"""What a site decides before a study runs: what it costs, whether it is approved, what is held for it."""

__all__ = [
    "assessment",
    "budget_planning",
    "catalogue",
    "confirmed_sites",
    "run_reservations",
    "site_budget",
    "study_decisions",
    "table_check",
]
