"""The gate: the federation's only public port.

Flower serves sites, operators and running apps on one port, the last two without a password: whoever reaches it can
enrol a key or start code. So the SuperLink listens on loopback, and this ASGI app passes on only the requests that a
node needs. It checks, for every request, that

- the path is one of the ten that a node uses (all others are 404, Flower's own enrolment included);
- the key shown is enrolled and not revoked *now*, and the caller holds its private half (`credentials`);
- the node id in it is the caller's own: Flower would accept site B's reply in site A's name;
- the daemon is the one that speaks for the key just now (`daemons`), and speaks a protocol that this version speaks;
- the body is small enough, and a reply has a bounded number of parts.

The gate has paths of its own for the CA certificate, enrolment, new keys, the list of studies, the CAs to trust, and
what nodes tell of their decisions.
Refused requests leave lines in the log `confide.gate` (`refusals`); secrets and bodies are never logged. Connections
are kept in bounds by `admission`, to which the gate says when a caller has proven an enrolled key.

Out of scope: a node that sends a flood of well-formed messages fills the SuperLink's cache; revoke it.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import ValidationError

from ... import versions
from ...client_node.enrolment import protocol
from ...client_node.enrolment.identity import fingerprint, load_transport_public
from ...client_node.enrolment.protocol import (
    AuthorityQuery,
    EnrolAnswer,
    EnrolRequest,
    RotateRequest,
    SignedQuery,
    StudiesQuery,
)
from ...client_node.enrolment.sessions import Hello
from ...client_node.succession.rotation import FOLLOW_PATH, FollowRequest
from ...client_node.wire import decisions as told_decisions
from ...client_node.wire import one_body
from ...client_node.wire.decisions import DecisionsWord
from ...mpc.crash import spot
from ...versions import OWN, Speaks
from ..errors import EnrolmentInvalid, InviteRefused, StoreUnavailable
from ..federation.serving import ONLINE_S, SeenNode
from ..fleet import WakeListener, flower
from ..fleet.calls import MORE_HEADER
from .admission import Visit
from .announcing import Announcer
from .credentials import Credentials
from .daemons import Daemons
from .listener import Message, Receive, Send, serve_gate
from .refusals import RefusalLog
from .upstream import Upstream, UpstreamAway
from .vouching import Held, Vouching

__all__ = ["FleetGate", "Registry", "serve_gate"]

FLEET = "/v1/fleet/"
REFUSED_HEADER = b"confide-refused"  # tells a node that a 401 is the gate's own and final
MAX_OBJECT = 6 << 20  # bytes; Flower cuts arrays at 5 MiB
MAX_PARTS = one_body.MOST  # objects in one message: 1.2 GB
HOLD_S = {"pull-messages": 25.0, one_body.TAKE: 50.0}  # how long a poll is held; nodes wait 30 and 75 s
CONNECT_S = 2.5  # how long an activation waits for a SuperLink that starts
_FLEET_CAPS = {
    "activate-node": 4 << 10,
    "deactivate-node": 1 << 10,
    "send-node-heartbeat": 1 << 10,
    "pull-messages": 1 << 10,
    "push-messages": 256 << 10,
    "pull-object": 4 << 10,
    "push-object": MAX_OBJECT,
    "confirm-message-received": 4 << 10,
    one_body.TAKE: 1 << 10,
    one_body.GIVE: one_body.MAX_BODY,
}
_OWN_CALLS = (one_body.TAKE, one_body.GIVE)
_CALLS = {(one_body.CALLS if call in _OWN_CALLS else FLEET) + call: call for call in _FLEET_CAPS}
_PATHS = {call: path for path, call in _CALLS.items()}
_OWN_CAP = 32 << 10
_NOT_ACTIVATED = 412  # Flower's answer for a node that counts as online already, and for one that it does not know
_AWAY_POLL_S = 0.25  # how often a held activation is tried again
_CLOCK_S = 300.0  # Flower's own tolerance
_AHEAD_S = 5.0  # and for a clock that is ahead
_BODY_S = 60.0  # for a whole request body to arrive
_STRANGERS_BODY_S = 10.0
_REST_S, _REST = 2.0, 256 << 10  # seconds and bytes that the rest of a refused request may take
_MORE = MORE_HEADER.encode()
_HOP = {_MORE, b"host", b"connection", b"transfer-encoding", b"content-length", b"keep-alive", b"expect"}

Answer = tuple[int, list[tuple[bytes, bytes]], bytes]  # status, headers, body
A = TypeVar("A")
T = TypeVar("T")
Q = TypeVar("Q", bound=SignedQuery)


class Registry(Protocol):
    """The register of nodes. The gate asks it at every request, so answers must be current and quick."""

    def site_of(self, fingerprint: str) -> str | None:
        """Name of the node whose transport key has this fingerprint; None if it is unknown or revoked."""

    def revoked_site(self, fingerprint: str) -> str | None:
        """Name of the node that had this transport key until it was revoked; None if there is none."""

    def left_site(self, fingerprint: str) -> str | None:
        """Name of the node that had this transport key until it left the federation; None if there is none."""

    def site_with_identity(self, identity: str) -> str | None:
        """Name of the node with this Ed25519 public key (hex); None if it is unknown or revoked."""

    def site_followed(self, keys: Sequence[str]) -> str | None:
        """Name of the node, enrolled or left, that has one of these Ed25519 public keys; None if unknown or revoked."""


class _TurnedAway(Exception):
    """A refused request, answered with `status`; its line in the log is written already."""

    def __init__(self, status: int, error: str = "", message: str = "", *, refused: str = "") -> None:
        self.status, self.error, self.message, self.refused = status, error, message, refused


def _no_follower(_: FollowRequest) -> str:
    raise EnrolmentInvalid("this coordinator takes no new identity keys")


def _no_listener(_: DecisionsWord) -> None:
    raise EnrolmentInvalid("this coordinator takes no word on decisions")


class FleetGate:
    """The gate's ASGI app.

    Args:
        registry: the register of nodes.
        enrol: admits a node or raises InviteRefused or EnrolmentInvalid; the gate has checked the proofs before.
            The same keys and code must get the same answer again, because the first may have been lost.
        rotate: takes a node's new transport key, whose proofs were checked; returns the fingerprint of the old one.
        studies: lists the `studies` for a known node, each with `canonical`, `hash` and `signature`; and the
            coordinator's own key, if that has followed another.
        ca_path: the federation's CA certificate, PEM.
        superlink: port of the SuperLink on loopback.
        secret: by which the SuperLink knows the gate (`vouching`).
        superlink_ca: the CA certificate by which the SuperLink is known; None for `ca_path`.
        announcer: tells nodes which CAs to trust; None for a gate whose CA has no successor.
        follow: takes the identity keys that follow a node's present one; returns the node's name.
        decisions: takes a node's word on its decisions, or raises EnrolmentInvalid.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        enrol: Callable[[EnrolRequest], EnrolAnswer],
        rotate: Callable[[RotateRequest], str],
        studies: Callable[[str], dict[str, Any]],
        ca_path: Path,
        superlink: int,
        secret: str = "",
        superlink_ca: Path | None = None,
        announcer: Announcer | None = None,
        follow: Callable[[FollowRequest], str] = _no_follower,
        decisions: Callable[[DecisionsWord], None] = _no_listener,
    ) -> None:
        self._registry, self._enrol, self._rotate, self._studies = registry, enrol, rotate, studies
        self._ca, self._announcer, self._follow = ca_path.read_bytes(), announcer, follow
        self._decisions = decisions
        self._upstream = Upstream("127.0.0.1", superlink, superlink_ca or ca_path)
        self._wake = WakeListener(superlink)
        self._vouching = Vouching(self._upstream, self._wake, secret, self._hold_on)
        self._silent: dict[int, int] = {}  # node -> its call up to which the SuperLink has nothing for it
        self._turns: Counter[int] = Counter()  # how often each node has connected or left
        self._log = RefusalLog()
        self._node_ids: dict[str, int] = {}  # fingerprint -> node id, as the SuperLink told at activation
        self._daemons = Daemons()
        self.seen: dict[str, SeenNode] = {}  # site -> its last request; other threads read it
        self._apart: dict[str, tuple[float, Speaks]] = {}  # site -> when it was refused for its version, and that
        self.admitted: Counter[str] = Counter()  # requests of enrolled nodes, by call
        self.sent_bytes = 0  # of all answers
        self._nonces: dict[str, float] = {}
        self._is_closing = False

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] == "lifespan":
            return await self._live(receive, send)
        if scope["type"] != "http":
            return
        try:
            status, headers, body = await self._answer(scope, receive)
        except _TurnedAway as end:
            status, headers, body = _refusal(end)
        except StoreUnavailable as err:
            status, headers, body = _refusal(self._without_register(err))
        except Exception as err:
            status, headers, body = self._failure(scope, err)
        headers = [*headers, (b"content-length", str(len(body)).encode())]
        if self._announcer is not None and scope["state"]["visit"].key is not None:
            headers.append((protocol.AUTHORITY_HEADER.encode(), self._announcer.mark.encode()))
        self.sent_bytes += len(body)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    @property
    def refused(self) -> Counter[str]:
        """Counts refused requests by reason; the reasons are those of the log."""
        return self._log.counts

    def apart(self) -> dict[str, str]:
        """Tells of every node that is refused for its version, and has just tried, why; other threads may ask."""
        newest = dict(self._apart).items()
        return {site: versions.apart(site, spoken, OWN) for site, (at, spoken) in newest if time.time() - at < ONLINE_S}

    async def _answer(self, scope: Message, receive: Receive) -> Answer:
        method, path = scope["method"], scope["path"]
        if method == "POST" and path in _CALLS:
            return await self._fleet(scope, receive, _CALLS[path])
        if method == "GET" and path == protocol.CA_PATH:
            pem = self._ca if self._announcer is None else self._announcer.present
            return 200, [(b"content-type", b"application/x-pem-file")], pem
        if method == "POST" and path == protocol.ENROLL_PATH:
            return await self._answer_enrolment(scope, await self._body(scope, receive, _OWN_CAP))
        if method == "POST" and path == protocol.STUDIES_PATH:
            return await self._list_studies(scope, await self._body(scope, receive, _OWN_CAP))
        if method == "POST" and path == FOLLOW_PATH:
            return await self._follow_identity(scope, await self._body(scope, receive, _OWN_CAP))
        if method == "POST" and path == protocol.ROTATE_PATH:
            return await self._take_new_key(scope, await self._body(scope, receive, _OWN_CAP))
        if method == "POST" and path == protocol.AUTHORITY_PATH and self._announcer is not None:
            return await self._tell_authorities(scope, await self._body(scope, receive, _OWN_CAP), self._announcer)
        if method == "POST" and path == told_decisions.DECISIONS_PATH:
            return await self._hear_decisions(scope, await self._body(scope, receive, told_decisions.MOST_BYTES))
        asked = scope["raw_path"][:80].decode("ascii", "replace")  # undecoded, so that nobody writes lines of his own
        self._log.stranger("path", _peer(scope), "%s asked for %s %s", _peer(scope), method[:16], asked)
        await _read_rest(receive)
        raise _TurnedAway(404)

    def _failure(self, scope: Message, err: Exception) -> Answer:
        visit: Visit = scope["state"]["visit"]
        if visit.key is None:
            return _refusal(self._odd(scope, err))
        self._log.failed("a request of an enrolled node failed", err)
        return 500, [], b""

    def _without_register(self, err: StoreUnavailable) -> _TurnedAway:
        """Puts a request off while the register cannot be asked: nobody is let in unseen, and nobody is shut out."""
        self._log.failed("the register cannot be asked, and requests are put off", err)
        return _TurnedAway(503)

    def _odd(self, scope: Message, err: Exception) -> _TurnedAway:
        """Refuses a request on which the gate failed before it knew the key; not for good, it may be a node's."""
        about = _peer(scope), type(err).__name__, spot(err)  # its text may hold what was sent
        self._log.stranger("odd", _peer(scope), "%s sent what the gate cannot handle: %s at %s", *about)
        return _TurnedAway(401)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        await self._wake.open()
        tasks = [asyncio.create_task(work) for work in (self._log.keep_reporting(), self._vouching.keep_beating())]
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self.release()
        for task in tasks:
            task.cancel()
        self._log.report()
        self._wake.close()
        await self._upstream.close()
        await send({"type": "lifespan.shutdown.complete"})

    def release(self) -> None:
        """Answers all polls that are held, since the gate closes."""
        self._is_closing = True
        self._wake.call_all()

    async def _fleet(self, scope: Message, receive: Receive, call: str) -> Answer:
        try:
            shown, site = self._caller(scope)
        except (_TurnedAway, StoreUnavailable):
            await _read_rest(receive)
            raise
        except Exception as err:
            await _read_rest(receive)
            raise self._odd(scope, err) from err
        key_id = shown.key_id
        scope["state"]["visit"].recognise(key_id)
        body = await self._body(scope, receive, _FLEET_CAPS[call])
        claim = self._own_node(call, body, key_id, site)
        hello = self._daemon(call, shown, site)
        self._see(site)
        self.admitted[call] += 1
        headers = shown.for_superlink()
        if claim is not None:
            if self._vouching.is_forgotten(claim):
                raise _TurnedAway(409, refused="reconnect")
            self._vouching.hear(claim)
        if call in HOLD_S and claim is not None:
            gone = asyncio.ensure_future(_disconnected(receive))
            try:
                held = Held(claim, key_id, site, shown.session)
                return await self._poll(call, shown, body, held, _peer(scope), gone)
            finally:
                gone.cancel()
        if call == "send-node-heartbeat" and claim is not None and self._vouching.has_vouched(claim):
            return 200, [], flower.heartbeat_taken()
        if hello is not None:
            return await self._activate(headers, body, key_id, site, hello, _peer(scope))
        status, answered, answer = await self._forward(call, headers, body, key_id, site, claim)
        if call == "deactivate-node" and status == 200 and claim is not None:
            self._vouching.leave(claim)
            self._turn(claim)
        return _answered(status, answered, answer)

    async def _activate(
        self, headers: list[tuple[bytes, bytes]], body: bytes, key_id: str, site: str, hello: Hello, peer: str
    ) -> Answer:
        until = time.monotonic() + CONNECT_S
        while True:
            try:
                status, answered, answer = await self._forward("activate-node", headers, body, key_id, site, None)
                # Where nobody has connected by this key yet, the SuperLink has just started and does not know it.
                if status != _NOT_ACTIVATED or key_id in self._node_ids or time.monotonic() > until:
                    break
            except _TurnedAway as refusal:
                if refusal.status != 503 or time.monotonic() > until:
                    raise
            await asyncio.sleep(_AWAY_POLL_S)  # most nodes are back as soon as the SuperLink is
        if status == _NOT_ACTIVATED:
            status, answered, answer = await self._take_over(headers, body, key_id, site, hello)
        if status == 200:
            self._note_activation(flower.activated_node(answer), key_id, site, hello, peer)
        return _answered(status, [*answered, _SPEAKS], answer)

    async def _poll(
        self, call: str, shown: Credentials, body: bytes, held: Held, peer: str, gone: "asyncio.Future[None]"
    ) -> Answer:
        """Answers a poll with a message, or with nothing when it was held for long enough.

        The SuperLink is asked only for a node that has been called since it had nothing for it.
        """
        node, key_id, site = held.node, held.key_id, held.site
        until, turn = time.monotonic() + HOLD_S[call], self._turns[node]
        with self._vouching.holding(held):
            while True:
                since = self._wake.latest(node)
                if self._silent.get(node) != since:
                    status, answered, answer = await self._forward(
                        call, shown.for_superlink(), body, key_id, site, node
                    )
                    if status == 200 and (not answer or (_MORE, b"0") in answered):
                        self._silent[node] = since
                    if status != 200 or answer:
                        return _answered(status, answered, answer)
                if not await self._held(node, since, until, gone):
                    return 200, [], b""
                if self._registry.site_of(key_id) is None:
                    self._refuse_unknown(key_id, peer)
                self._daemon(call, shown, site)
                if self._vouching.is_forgotten(node):
                    raise _TurnedAway(409, refused="reconnect")
                if self._turns[node] != turn:  # it says that it stops
                    return 200, [], b""

    def _hold_on(self, held: Held) -> None:
        """Counts a request that is held as one that comes again and again."""
        self._see(held.site)

    def _turn(self, node: int) -> None:
        """Ends the polls of a node that has connected or left."""
        self._turns[node] += 1
        self._silent.pop(node, None)
        self._wake.call([node])

    def _see(self, site: str, hello: Hello | None = None) -> None:
        """Notes a request of this node now; its version, where none is told, is the one before."""
        known = self.seen.get(site, SeenNode(at=0.0))
        version, protocol = known.version, known.protocol
        if hello is not None:
            version, protocol = hello.version, OWN.common(hello.speaks) or 0
        self.seen[site] = SeenNode(at=time.time(), version=version, protocol=protocol)

    def _note_activation(self, node: int, key_id: str, site: str, hello: Hello, peer: str) -> None:
        """Notes under which id a key is active. Raises `_TurnedAway` if that is the id of another key."""
        if any(own == node and other != key_id for other, own in self._node_ids.items()):
            self._refuse_impersonation(key_id, site, self._node_ids.get(key_id), node)
        self._node_ids[key_id] = node
        self._vouching.connect(node)
        self._turn(node)
        self._see(site, hello)
        self._apart.pop(site, None)
        if self._daemons.connected(key_id, hello):
            about = hello.version
            self._log.passed(
                "connected", key_id, "%s is connected, with %s, from %s", site, hello.speaks, peer, about=about
            )

    async def _forward(
        self, call: str, headers: list[tuple[bytes, bytes]], body: bytes, key_id: str, site: str, claim: int | None
    ) -> Answer:
        try:
            status, answered, answer = await self._upstream.post(_PATHS[call], headers, body)
        except UpstreamAway as err:
            raise _TurnedAway(503) from err  # nodes read 503 as: try again
        if status == 401:
            # The key is good here, so Flower's cache has lost it, or the id is of another registration.
            self._log.known("stale", key_id, "the SuperLink does not know node %s as site %r (%s)", claim, site, call)
            if claim is None:
                raise _TurnedAway(503)
            raise _TurnedAway(409, refused="reconnect")  # a node would go on with this id at a 503
        return status, answered, answer

    async def _take_over(
        self, headers: list[tuple[bytes, bytes]], body: bytes, key_id: str, site: str, hello: Hello
    ) -> Answer:
        """Activates a node that still counts as online, if the daemon that made it so is known to be dead.

        Deactivating the node needs its signature; that of the activation is a minute old at most, and Flower takes it.
        """
        own = self._node_ids.get(key_id)
        if own is None:
            raise _TurnedAway(503)
        if not self._daemons.may_take_over(key_id, hello):
            self._refuse_second(key_id, site)
        await self._forward("deactivate-node", headers, flower.deactivation(own), key_id, site, own)
        return await self._forward("activate-node", headers, body, key_id, site, None)

    def _daemon(self, call: str, shown: Credentials, site: str) -> Hello | None:
        """Checks that the daemon that asks speaks for the key; returns the introduction of one that connects."""
        key_id = shown.key_id
        if call == "activate-node":
            try:
                hello = None if shown.hello is None else Hello.read(shown.hello)
            except ValueError as err:
                self._log.known("form", key_id, "site %r sent an introduction that cannot be read", site)
                raise _TurnedAway(400) from err
            spoken = versions.EARLIER if hello is None else hello.speaks
            if hello is None or OWN.common(spoken) is None:
                self._refuse_version(key_id, site, spoken)
            return hello
        if not self._daemons.may_speak(key_id, shown.session):
            self._log.known(
                "replaced", key_id, "two daemons use the key of site %r: a copy of its home, or a stolen key", site
            )
            raise _TurnedAway(409, refused="replaced")
        return None

    def _refuse_revoked(self, key_id: str, site: str, peer: str) -> NoReturn:
        self._log.known("revoked", key_id, "revoked key %s of site %r, from %s", key_id[:16], site, peer)
        raise _TurnedAway(401, refused="revoked")

    def _refuse_unknown(self, key_id: str, peer: str) -> NoReturn:
        if former := self._registry.revoked_site(key_id):
            self._refuse_revoked(key_id, former, peer)
        if former := self._registry.left_site(key_id):
            self._log.known("left", key_id, "site %r has left the federation, and asks from %s", former, peer)
            raise _TurnedAway(401, refused="left")
        self._log.stranger("unknown", key_id, "unknown key %s, from %s", key_id[:16], peer)
        raise _TurnedAway(401, refused="unknown")

    def _refuse_version(self, key_id: str, site: str, spoken: Speaks) -> NoReturn:
        self._apart[site] = time.time(), spoken
        why = versions.apart(site, spoken, OWN)
        self._log.known("version", key_id, "%s", why, about=str(spoken))
        raise _TurnedAway(_UPGRADE, refused="version")

    def _refuse_second(self, key_id: str, site: str) -> NoReturn:
        self._log.known(
            "in use", key_id, "a second daemon uses the key of site %r, and waits for the first to end", site
        )
        raise _TurnedAway(409, refused="in-use")

    async def _held(self, node: int, called: int, until: float, gone: "asyncio.Future[None]") -> bool:
        """Holds a poll; returns True if a call came and the node is still connected for the next answer."""
        if self._is_closing or (left := until - time.monotonic()) <= 0:
            return False
        waker = asyncio.ensure_future(self._wake.changed(node, called))
        done, _ = await asyncio.wait({waker, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        waker.cancel()
        return waker in done and gone not in done and not self._is_closing

    def _caller(self, scope: Message) -> tuple[Credentials, str]:
        """Authenticates the caller; returns what it showed and its name. Raises `_TurnedAway`."""
        peer = _peer(scope)
        try:
            shown = Credentials.read(scope["headers"])
        except ValueError as err:
            self._log.stranger("unsigned", peer, "%s showed no readable key and signature", peer)
            raise _TurnedAway(401, refused="unsigned") from err
        key_id = shown.key_id
        site = self._registry.site_of(key_id)
        if site is None:
            self._refuse_unknown(key_id, peer)
        try:
            shown.verify()
        except InvalidSignature as err:
            self._log.known("signature", key_id, "%s showed the key of site %r but cannot sign with it", peer, site)
            raise _TurnedAway(401, refused="signature") from err
        oldest = _CLOCK_S - max(HOLD_S.values())  # the SuperLink may see it when it was held
        if not -_AHEAD_S < shown.age_s <= oldest:
            self._log.known("clock", key_id, "the clock of site %r is off by %.0f s, from %s", site, shown.age_s, peer)
            raise _TurnedAway(503, refused="clock")  # its operator can mend that without a new enrolment
        return shown, site

    def _own_node(self, call: str, body: bytes, key_id: str, site: str) -> int | None:
        """Checks the node id in a request and returns it. Raises `_TurnedAway` if it is not the caller's own."""
        try:
            claim = flower.read_claim(call, body)
        except ValueError as err:
            self._log.known("form", key_id, "site %r sent a %s that cannot be read", site, call)
            raise _TurnedAway(400) from err
        own = self._node_ids.get(key_id)
        speaker = own if own is not None else next(iter(claim.node_ids), None)
        for node in claim.node_ids:
            if node != speaker:
                self._refuse_impersonation(key_id, site, speaker, node)
        if claim.node_ids and own is None:
            # Nothing vouches for the id. Not 503, at which a node would go on with it, nor 401, at which it would end.
            self._log.known("early", key_id, "site %r has to connect anew: this gate has not seen it connect", site)
            raise _TurnedAway(409, refused="reconnect")
        if claim.parts > MAX_PARTS:
            self._log.known(
                "parts", key_id, "site %r sent a message of %d parts (at most %d)", site, claim.parts, MAX_PARTS
            )
            raise _TurnedAway(413)
        return own if claim.node_ids else None

    def _refuse_impersonation(self, key_id: str, site: str, own: int | None, forged: int) -> NoReturn:
        self._log.known(
            "impersonation", key_id, "impersonation: site %r (key %s, node %s) spoke for node %s",
            site, key_id[:16], own, forged, about=f"node {forged}",
        )  # fmt: skip
        raise _TurnedAway(400)  # not 403: Flower's clients read that as "the run is over"

    async def _body(self, scope: Message, receive: Receive, cap: int) -> bytes:
        body, key = bytearray(), scope["state"]["visit"].key
        try:
            async with asyncio.timeout(_BODY_S if key else _STRANGERS_BODY_S):
                more = True
                while more:
                    event = await receive()
                    if event["type"] == "http.disconnect":
                        raise _TurnedAway(400)
                    body += event.get("body", b"")
                    if len(body) > cap:
                        note = self._log.known if key else self._log.stranger
                        note("size", key or _peer(scope), "%s sent more than %d bytes", _peer(scope), cap)
                        raise _TurnedAway(413)
                    more = event.get("more_body", False)
        except TimeoutError as err:
            raise _TurnedAway(408) from err
        return bytes(body)

    async def _answer_enrolment(self, scope: Message, body: bytes) -> Answer:
        peer = _peer(scope)
        try:
            request = EnrolRequest.model_validate_json(body)
            _check_proofs(request)
        except (ValidationError, ValueError, InvalidSignature) as err:
            self._log.stranger("enrolment", peer, "%s sent an enrolment that cannot be read or proven", peer)
            raise _TurnedAway(
                400, "invalid", "the coordinator cannot read this enrolment; versions may differ"
            ) from err
        key_id = fingerprint(request.transport_public.encode())
        try:
            answer = await self._done("enrolment", self._enrol, request)
        except InviteRefused as err:
            self._log.stranger("code", peer, "%s invitation code, from %s (key %s)", err.reason, peer, key_id[:16])
            raise _TurnedAway(403, err.reason) from err
        except EnrolmentInvalid as err:
            self._log.stranger("enrolment", peer, "enrolment refused, from %s (key %s): %s", peer, key_id[:16], err)
            raise _TurnedAway(409, "invalid", str(err)) from err
        self._log.passed("enrolled", key_id, "enrolled %r (key %s), from %s", answer.name, key_id[:16], peer)
        return 200, _JSON, answer.model_dump_json(exclude_defaults=True).encode()

    async def _list_studies(self, scope: Message, body: bytes) -> Answer:
        _, site = self._signed_query(scope, body, StudiesQuery)
        listed = await self._done("listing studies", self._studies, site)
        return 200, _JSON, json.dumps(listed).encode()

    async def _take_new_key(self, scope: Message, body: bytes) -> Answer:
        """Knows a node by another transport key from now on; the old one is refused at once, polls of it too."""
        request, site = self._signed_query(scope, body, RotateRequest)
        try:
            transport = load_transport_public(request.transport_public.encode())
            transport.verify(bytes.fromhex(request.transport_proof), request.proven(), ec.ECDSA(hashes.SHA256()))
        except (ValueError, InvalidSignature) as err:
            self._log.known("rotation", request.identity, "site %r does not prove that it has its new key", site)
            raise _TurnedAway(400, "invalid", "the coordinator cannot read or verify the new transport key") from err
        try:
            old = await self._done("a rotation of keys", self._rotate, request)
        except EnrolmentInvalid as err:
            self._log.known("rotation", request.identity, "the new key of site %r is not taken: %s", site, err)
            raise _TurnedAway(409, "invalid", str(err)) from err
        new = fingerprint(request.transport_public.encode())
        if old != new and (node := self._node_ids.pop(old, None)) is not None:
            self._turn(node)
        self._log.passed("rotated", new, "site %r has a new transport key %s, from %s", site, new[:16], _peer(scope))
        return 200, _JSON, b"{}"

    async def _tell_authorities(self, scope: Message, body: bytes, announcer: Announcer) -> Answer:
        """Tells a node which CAs to trust, and notes which it does."""
        query, site = self._signed_query(scope, body, AuthorityQuery)
        try:
            answer = await self._done("telling of the CA", announcer.answer, query)
        except EnrolmentInvalid as err:
            self._log.known("authority", query.identity, "what site %r trusts is not noted: %s", site, err)
            raise _TurnedAway(409, "invalid", str(err)) from err
        return 200, _JSON, answer

    async def _follow_identity(self, scope: Message, body: bytes) -> Answer:
        """Knows a node by another identity key from now on; polls go on, which the transport key signs."""
        request, site = self._signed_query(scope, body, FollowRequest, find=self._follower)
        try:
            await self._done("a succession of keys", self._follow, request)
        except EnrolmentInvalid as err:
            self._log.known("succession", site, "the new identity of site %r is not taken: %s", site, err)
            raise _TurnedAway(409, "invalid", str(err)) from err
        new = request.keys()[-1]
        self._log.passed("succession", site, "site %r has the identity key %s, from %s", site, new[:16], _peer(scope))
        return 200, _JSON, b"{}"

    async def _hear_decisions(self, scope: Message, body: bytes) -> Answer:
        """Takes a node's word on which studies its people have approved or revoked."""
        word, site = self._signed_query(scope, body, DecisionsWord)
        try:
            await self._done("taking a word on decisions", self._decisions, word)
        except EnrolmentInvalid as err:
            self._log.known("decisions", word.identity, "what site %r tells of decisions is not taken: %s", site, err)
            raise _TurnedAway(409, "invalid", str(err)) from err
        return 200, _JSON, b"{}"

    async def _done(self, what: str, work: Callable[[A], T], about: A) -> T:
        """Has the register do its part, in a thread; raises what it says on purpose, and `_TurnedAway` for the rest."""
        try:
            return await asyncio.to_thread(work, about)
        except (InviteRefused, EnrolmentInvalid, StoreUnavailable):
            raise
        except Exception as err:
            self._log.failed(f"{what} failed", err)
            raise _TurnedAway(500) from err

    def _signed_query(
        self, scope: Message, body: bytes, kind: type[Q], find: Callable[[Q], str | None] | None = None
    ) -> tuple[Q, str]:
        """Reads a query that an enrolled node has signed; returns it and the node's name. Raises `_TurnedAway`.

        Args:
            find: finds the name of the node whose query it is; None to find it by its present identity key.
        """
        peer = _peer(scope)
        try:
            query = kind.model_validate_json(body)
            signature = bytes.fromhex(dict(scope["headers"])[protocol.SIGNATURE_HEADER.encode()].decode("ascii"))
            key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(query.identity))
            key.verify(signature, query.signed_part(body))
        except (ValidationError, ValueError, KeyError, InvalidSignature) as err:
            self._log.stranger("studies", peer, "%s sent a query that cannot be read or is not signed", peer)
            raise _TurnedAway(401, "unsigned", "the coordinator cannot verify this request") from err
        site = self._registry.site_with_identity(query.identity) if find is None else find(query)
        if site is None:
            self._log.stranger("identity", query.identity, "unknown identity %s, from %s", query.identity[:16], peer)
            raise _TurnedAway(401, "unknown", "the coordinator does not know this node, or has revoked it")
        # A node can sign for any number of keys to follow its own: they share what one party may do.
        party = query.identity if find is None else site
        if not self._is_fresh(query):
            self._log.known("replay", party, "stale or repeated query of site %r, from %s", site, peer)
            raise _TurnedAway(
                401, "stale", "this node's clock is off by more than five minutes, or the request is a repeat"
            )
        scope["state"]["visit"].recognise(party)
        return query, site

    def _follower(self, query: FollowRequest) -> str | None:
        """Name of the node whose present key is among those of the query, each signed for by the one before."""
        name = self._registry.site_followed(query.keys())  # first: a stranger is not worth forty signatures
        is_sound = name is not None and not any(stated.problem() for stated in query.successions)
        return name if is_sound else None

    def _is_fresh(self, query: SignedQuery) -> bool:
        now = time.time()
        self._nonces = {nonce: seen for nonce, seen in self._nonces.items() if now - seen < 2 * _CLOCK_S}
        fresh = abs(now - query.timestamp) <= _CLOCK_S and query.nonce not in self._nonces
        if fresh:
            self._nonces[query.nonce] = now
        return fresh


_JSON = [(b"content-type", b"application/json")]
_SPEAKS = versions.HEADER.encode(), OWN.text().encode()
_UPGRADE = 426  # HTTP's "upgrade required"


def _check_proofs(request: EnrolRequest) -> None:
    proven = request.proven()
    identity = Ed25519PublicKey.from_public_bytes(bytes.fromhex(request.identity))
    identity.verify(bytes.fromhex(request.identity_proof), proven)
    transport = load_transport_public(request.transport_public.encode())
    transport.verify(bytes.fromhex(request.transport_proof), proven, ec.ECDSA(hashes.SHA256()))


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _answered(status: int, headers: list[tuple[bytes, bytes]], answer: bytes) -> Answer:
    return status, [pair for pair in headers if pair[0].lower() not in _HOP], answer


def _refusal(end: _TurnedAway) -> Answer:
    headers = [(REFUSED_HEADER, end.refused.encode())] if end.refused else []
    if end.status == _UPGRADE:
        headers.append(_SPEAKS)
    if not end.error:
        return end.status, headers, b""
    return end.status, headers + _JSON, json.dumps({"error": end.error, "message": end.message}).encode()


async def _read_rest(receive: Receive) -> None:
    """Reads what is left of a request that is refused: closing on unread bytes would lose the answer on its way."""
    left = _REST
    with suppress(TimeoutError):
        async with asyncio.timeout(_REST_S):
            while (event := await receive())["type"] == "http.request" and event.get("more_body", False) and left > 0:
                left -= len(event["body"])


def _peer(scope: Message) -> str:
    client = scope.get("client")
    return str(client[0]) if client else "unknown address"
