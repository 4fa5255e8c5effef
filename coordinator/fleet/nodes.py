"""The interface through which a round's driver asks nodes, independent of the transport."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from ...client_node.wire.messages import Packet


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeFailure:
    """The reason for which a node gave no answer.

    `reason`: "offline" (no heartbeat), "restarted" (connected anew since it was asked, so the question is lost),
    "unknown" (not registered), "timeout", "failed" (its handler raised `error`), or "invalid" (an answer
    that breaks the limits, or that another node gave). `message` is empty unless the text of the node's error may leave
    the site.
    """

    reason: Literal["offline", "restarted", "unknown", "timeout", "failed", "invalid"]
    error: str = ""
    message: str = ""

    def __str__(self) -> str:
        return ": ".join(part for part in (self.reason, self.error, self.message) if part)


class Fleet(Protocol):
    """The nodes of a federation by name."""

    def trust(self, names: Callable[[], Mapping[str, str]]) -> None:
        """Sets the register: transport keys' fingerprints and the names of their nodes; before, no node is known."""

    def online(self) -> set[str]:
        """Names the nodes whose heartbeat has not lapsed."""

    def ask(
        self, kind: str, requests: Mapping[str, Packet], timeout: float, *, together: bool = False
    ) -> Iterator[tuple[str, Packet | NodeFailure]]:
        """Sends each node its request and yields answers as they come, until `timeout` seconds are over.

        Args:
            together: True if the nodes do it together. One that connects anew meanwhile is then asked again at once,
                since the others wait for it.
        """
