"""The command `client-node`, and the frame and console that the command `coordinator` shares with it."""

__all__ = ["application", "console", "main"]
