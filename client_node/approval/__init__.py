"""Decisions of a site before a study runs: its approval, its charges, the budget that a run reserves."""

__all__ = [
    "admission",
    "assessment",
    "budget_planning",
    "catalogue",
    "charges",
    "confirmed_sites",
    "run_reservations",
]
