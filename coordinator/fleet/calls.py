"""The calls of our own at the SuperLink, as gate and driver make them; `superlink_process` answers them."""

import struct
from collections.abc import Collection

from pydantic import BaseModel, ConfigDict

SEND, COLLECT, NODES = "/confide/v1/runtime/send", "/confide/v1/runtime/collect", "/confide/v1/runtime/nodes"
BEATS = "/confide/v1/gate/beats"
MORE_HEADER = "confide-more"  # "0" if nothing more waits for a node
WAIT_HEADER = "confide-wait"  # seconds
SECRET_HEADER = "confide-gate"  # noqa: S105 (a name)
SECRET_VARIABLE = "CONFIDE_GATE_SECRET"  # noqa: S105 (a name; in the environment of the SuperLink)
_ID = 8


class Beats(BaseModel):
    """Tells the gate about nodes, once a beat, as the SuperLink sees them."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    unknown: list[int]  # of the nodes that the gate vouched for, those that do not count as online there
    waiting: list[int]  # nodes for which questions lie there

    def to_json(self) -> bytes:
        """Writes it as it travels."""
        return self.model_dump_json().encode()


def write_ids(nodes: Collection[int]) -> bytes:
    """Writes ids of nodes, eight bytes each, the highest first."""
    return struct.pack(f">{len(nodes)}Q", *nodes)


def read_ids(content: bytes) -> tuple[int, ...]:
    """Reads ids of nodes. Raises ValueError if they are none."""
    if len(content) % _ID:
        raise ValueError("ids of nodes have eight bytes")
    return struct.unpack(f">{len(content) // _ID}Q", content)
