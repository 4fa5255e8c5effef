"""An empty place for the ServerApp that Flower demands: the coordinator drives runs in its own processes."""

from flwr.serverapp import ServerApp

app = ServerApp()
