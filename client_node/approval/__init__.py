"""What a site decides before a study runs: whether it is approved, what it is charged, what a run reserves."""

__all__ = [
    "admission",
    "assessment",
    "budget",
    "budget_planning",
    "catalogue",
    "confirmed_sites",
    "run_reservations",
]
