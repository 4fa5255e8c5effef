"""The JSON API of a federation, on the port of the operator's page: the same facts and orders, for programs.

`endpoints` has one short function for each address, beside the command of `coordinator` that does the same, whose role
it takes; `routes` lets nobody in without a token whose role is enough; `app` puts them together, and the page serves
them under /api/v1. `facts` are its answers and `problems` its errors. `client` is for Python programs elsewhere.

Each address belongs to a command:

>>> from confide.coordinator.api import app
>>> app.commands()["POST /runs/{run}/stop"]
'run stop'
"""

__all__ = ["app", "client", "endpoints", "facts", "problems", "routes"]
