"""How the round driver reaches nodes, whatever carries the messages."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from ...client_node.wire.messages import Packet


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeFailure:
    """Why a node that was asked gave no answer.

    `reason`: "offline" (no heartbeat), "unknown" (not registered), "timeout", "failed" (its handler raised `error`), or
    "invalid" (an answer that breaks the limits, or that another node gave). `message` is empty unless the node's error
    is one that may leave the site.
    """

    reason: Literal["offline", "unknown", "timeout", "failed", "invalid"]
    error: str = ""
    message: str = ""

    def __str__(self) -> str:
        return ": ".join(part for part in (self.reason, self.error, self.message) if part)


class Fleet(Protocol):
    """The nodes of a federation by name."""

    def trust(self, site_of: Callable[[str], str | None]) -> None:
        """Names the register that says whose transport key is whose; nobody is known before."""

    def online(self) -> set[str]:
        """Names of the nodes that were heard from lately."""

    def ask(
        self, kind: str, requests: Mapping[str, Packet], timeout: float
    ) -> Iterator[tuple[str, Packet | NodeFailure]]:
        """Sends each node its request and yields answers as they come, until `timeout` seconds are over."""
