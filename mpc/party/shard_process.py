"""The process of one shard: `python -m confide.mpc.party.shard_process FD`, started by `shards.Shards` only.

It has no links. It hears of orders, and of what to add, from the party's process alone, and ends when that does, even
if it hangs: the thread of the party that starts it is its main one.
"""

import socket
import sys

from ...log_lines import log_to_stderr
from ...machine import die_with_parent
from ..crash import hide_values
from ..errors import RuntimeUnsound
from ..links import Channel
from ..links.frames import end_with_parent, failure


def main() -> None:
    """Runs the shard on the socket whose descriptor is the only argument."""
    hide_values()
    die_with_parent()
    log_to_stderr()
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    end_with_parent(channel)
    try:
        from .shards import serve  # imports CrypTen, and there must be somebody to tell if that fails
    except RuntimeUnsound as err:
        channel.receive()  # who it would have been
        channel.send(**failure(err))
        return
    serve(channel)


if __name__ == "__main__":
    main()
