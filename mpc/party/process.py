"""The process of one MPC party: `python -m confide.mpc.party.process FD`, started by `handle.PartyProcess` only.

It has a process of its own because CrypTen keeps its state in module globals and wants them altered. It reads orders
from the inherited socket FD, and ends when its parent does. Without a sound CrypTen it takes none, and says why.
"""

import socket
import sys

from ...log_lines import log_to_stderr
from ..crash import hide_values
from ..errors import RuntimeUnsound
from ..links import Channel
from ..links.frames import end_with_parent, failure
from .child import kill_all


def main() -> None:
    """Runs the party on the socket whose descriptor is the only argument."""
    hide_values()
    log_to_stderr()
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    end_with_parent(channel, kill_all)
    try:
        from .serving import serve  # imports CrypTen, and there must be somebody to tell if that fails
    except RuntimeUnsound as err:
        channel.receive()  # the configuration, which nobody will use
        channel.send(**failure(err))
        return
    try:
        serve(channel)
    finally:
        kill_all()


if __name__ == "__main__":
    main()
