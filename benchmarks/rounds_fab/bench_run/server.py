"""An empty place for the ServerApp that Flower demands: benchmarks/rounds.py drives the rounds itself."""

from flwr.serverapp import ServerApp

app = ServerApp()
