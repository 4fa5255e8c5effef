"""One run: its rounds from top to bottom, what it sends and relays, the server optimizer, its driver and progress."""

__all__ = ["broadcast", "driver", "progress", "server_optimizer"]
