"""A node that gives back what it gets: `echo_node.py HOME`, enrolled already."""

import logging
import signal
import sys
import threading
from pathlib import Path

from confide.client_node.enrolment.identity import NodeIdentity
from confide.client_node.enrolment.protocol import Enrolment
from confide.client_node.enrolment.sessions import LOCK_FILE
from confide.client_node.errors import PacketInvalid
from confide.client_node.warm_node import WarmNode
from confide.client_node.wire.messages import Packet


def handle(kind: str, packet: Packet) -> Packet:
    if kind == "linger" and not (home / "lingered").exists():
        (home / "lingered").touch()
        threading.Event().wait()
    if kind == "fail_private":
        raise ValueError("a record of ward 7")
    if kind == "fail_public":
        raise PacketInvalid("no blob called state")
    return packet


logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
logging.getLogger("httpx").setLevel(logging.WARNING)
home, stop = Path(sys.argv[1]), threading.Event()
(home / LOCK_FILE).touch()  # by which the gate knows a home; a daemon holds it
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: stop.set())
sys.exit(WarmNode(NodeIdentity.load(home), Enrolment.load(home), handle).run(stop))
