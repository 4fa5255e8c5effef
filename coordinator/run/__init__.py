"""One run: its rounds from top to bottom, relay, server optimizer, driver and progress, and how it is controlled."""

__all__ = ["control", "driver", "overview", "progress", "server_optimizer"]
