"""One run: its rounds from top to bottom, what it relays, the server optimizer, its driver and progress."""

__all__ = ["driver", "progress", "server_optimizer"]
