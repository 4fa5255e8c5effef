"""An aggregator party: the handle that a node holds, and the process that it starts."""
