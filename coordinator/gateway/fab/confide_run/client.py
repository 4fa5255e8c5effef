"""An empty place for the ClientApp that Flower demands: nodes run only code that their site installed."""

from flwr.clientapp import ClientApp

app = ClientApp()
