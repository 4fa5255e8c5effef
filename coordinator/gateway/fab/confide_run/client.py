"""No ClientApp: nodes run only what their site installed. Flower demands the name."""

from flwr.clientapp import ClientApp

app = ClientApp()
