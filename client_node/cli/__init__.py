"""The command `client-node`."""
