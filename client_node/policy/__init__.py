"""A site's policy: site.toml, and the decisions that people make beside it."""

from .decisions import BudgetPolicy, load_decisions
from .site_policy import LimitPolicy, SitePolicy, StudyPolicy, load_policy

__all__ = [
    "BudgetPolicy",
    "LimitPolicy",
    "SitePolicy",
    "StudyPolicy",
    "decisions",
    "load_decisions",
    "load_policy",
    "site_policy",
]
