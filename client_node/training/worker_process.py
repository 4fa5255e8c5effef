"""The process of one worker; only `workers.Workers` starts it.

    python -m confide.client_node.training.worker_process FD FD...

The first descriptor is its link to the node; the worker ends when the node does. The others are links to other workers.
"""

import socket
import sys

from ...importing import without_collector
from ...log_lines import log_to_stderr
from ...mpc.crash import hide_values
from ...mpc.links import Channel
from ...mpc.links.frames import end_with_parent


def main() -> None:
    """Runs a worker on the sockets whose descriptors are the arguments."""
    hide_values()
    node, *links = (Channel(socket.socket(fileno=int(descriptor))) for descriptor in sys.argv[1:])
    end_with_parent(node)  # before anything that takes time: the next line imports torch
    with without_collector():
        from .worker import serve

    log_to_stderr(alone=True)  # imports have set up other handlers
    serve(node, links)


if __name__ == "__main__":
    main()
