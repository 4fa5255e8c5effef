"""What stands around the gate in its tests: a clock, a SuperLink, a register, and the headers of a node."""

import base64
import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, field

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.node_pb2 import Node

from confide.client_node.enrolment.identity import NodeIdentity, wire_form


@dataclass
class Clock:
    """Seconds that the test moves."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class PlayedSuperLink:
    """Notes what reaches it and answers as told."""

    seen: list[tuple[str, bytes]] = field(default_factory=list)
    headers: list[list[tuple[bytes, bytes]]] = field(default_factory=list)
    status: int = 200
    answer: Callable[[str, bytes], bytes] = lambda path, body: b"from the SuperLink"

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "lifespan":
            for _ in range(2):
                await send({"type": (await receive())["type"] + ".complete"})
            return
        body, more = b"", True
        while more:
            event = await receive()
            body, more = body + event.get("body", b""), event.get("more_body", False)
        self.seen.append((scope["path"], body))
        self.headers.append(list(scope["headers"]))
        answer = self.answer(scope["path"], body)
        headers = [(b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


@dataclass
class PlayedRegister:
    known: dict[str, str] = field(default_factory=dict)
    revoked: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    identities: dict[str, str] = field(default_factory=dict)

    def site_of(self, fingerprint: str) -> str | None:
        return self.known.get(fingerprint)

    def revoked_site(self, fingerprint: str) -> str | None:
        return self.revoked.get(fingerprint)

    def left_site(self, fingerprint: str) -> str | None:
        return self.left.get(fingerprint)

    def site_with_identity(self, identity: str) -> str | None:
        return self.identities.get(identity)


def signed(who: NodeIdentity, at: dt.datetime | None = None) -> dict[str, str]:
    """The three headers of a Flower node, made without Flower."""
    stamp = (at or dt.datetime.now(dt.UTC)).isoformat()
    signature = who.transport_key.sign(stamp.encode(), ec.ECDSA(hashes.SHA256()))
    return {
        "flwr-public-key": base64.b64encode(wire_form(who.transport_public)).decode(),
        "flwr-timestamp": stamp,
        "flwr-signature": base64.b64encode(signature).decode(),
    }


def pull(node_id: int) -> bytes:
    return PullMessagesRequest(node=Node(node_id=node_id)).SerializeToString()
