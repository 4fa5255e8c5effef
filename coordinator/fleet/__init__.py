"""The fleet of nodes that a driver asks by name, its implementation on Flower, and the wake-up of the gate.

`Fleet` is the protocol that rounds are written against. `flower` speaks to Flower's server, whose process is
`superlink_process`; `calls` are those that gate and drivers make there besides Flower's own. With `wake` nodes need not
poll all the time. Another transport is another class with these three methods:

>>> from confide.client_node.wire.messages import Packet
>>> from confide.coordinator.fleet import Fleet, NodeFailure
>>> class Echo:
...     def trust(self, names): self.names = names
...     def online(self): return {"north"}
...     def ask(self, kind, requests, timeout, *, together=False):
...         for name, packet in requests.items():
...             yield name, packet if name in self.online() else NodeFailure(reason="offline")
>>> fleet: Fleet = Echo()
>>> {name: str(answer) for name, answer in fleet.ask("prepare", {"south": Packet(b"{}")}, timeout=1.0)}
{'south': 'offline'}
"""

from .nodes import Fleet, NodeFailure
from .wake import WakeListener

__all__ = ["Fleet", "NodeFailure", "WakeListener", "calls", "flower", "wake"]
