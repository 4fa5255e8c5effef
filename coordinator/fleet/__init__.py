"""How nodes are asked: through Flower, by name."""

from .nodes import Fleet, NodeFailure
from .wake import WakeListener

__all__ = ["Fleet", "NodeFailure", "WakeListener", "flower", "wake"]
