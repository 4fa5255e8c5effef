"""The ClientApp of a stock SuperNode, run in a new process for each message: returns the update."""

import torch  # noqa: F401 (every real ClientApp that trains has this import)
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """An update as large as what came."""
    return Message(message.content, reply_to=message)
