"""How a node joins a federation: its keys, and the invitation that it answers."""
