"""A study: the draft in study.toml, the immutable study made of it, its cost, and what is sent of its state."""

from .state_format import StateFormat
from .study import AggregatorParty, Participant, PlannedRound, Study
from .terms import StudyDraft, load_draft

__all__ = [
    "AggregatorParty",
    "Participant",
    "PlannedRound",
    "StateFormat",
    "Study",
    "StudyDraft",
    "cost",
    "load_draft",
    "terms",
    "toml",
]
