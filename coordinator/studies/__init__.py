"""Studies of a federation: made from a draft, signed, listed, and their start state."""

__all__ = ["catalogue", "create", "learning_rates", "summary"]
