"""Studies of a federation: made from a draft, signed, listed, and their start state."""
