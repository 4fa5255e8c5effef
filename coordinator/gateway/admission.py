"""Accepts connections and keeps them in bounds before anyone has shown a key.

Every connection begins as a stranger's. It waits in line for `Limits.head_s` seconds at the most, and has as many for
its TLS handshake and the head of one request, which is held back until it is whole and small; the one answer ends it.
Once the gate has verified an enrolled key on it, it is that key's: it leaves the strangers' places, stays open, and
competes with this key's others only. Addresses that have shown an enrolled key within the hour have strangers' places
of their own, and one more for each such key, so that a node's new connection gets in whatever comes from elsewhere, and
beside those of many others.

HTTP itself, keep-alive and flow control are uvicorn's. No server in Python knows who is enrolled, counts connections by
address or limits them before TLS, so this much is our own.

Out of scope: an enrolled node that floods (revoke it), and more bandwidth than the machine has.
"""

import asyncio
import errno
import ipaddress
import re
import socket
import ssl
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from .crowd import Crowd, Homes, Limits, longest_idle
from .refusals import RefusalLog

KEEP_ALIVE_S = 30  # for an idle connection of an enrolled key
_CLOSING_S = 2.0  # for the other side to end TLS; then the connection is cut
_BATCH = 64  # connections accepted at a time, so that a flood of them leaves time for others
_LATE = 20  # times as late as the gate is, the next stranger waits if many press in: nodes go first
_LONGEST_GAP_S = 1.0  # which this makes at the most
_PAUSE_S = 0.5  # when file descriptors have run out
_SITE = 48  # bits; the largest IPv6 network that one customer commonly has
# A node holds its request for most of a minute; if its machine is gone meanwhile, the kernel finds out in 15 s.
_KERNEL_ASKS = {socket.TCP_KEEPIDLE: 5, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 2}
_NO_MEANS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_CHUNKED = re.compile(rb"\ntransfer-encoding[ \t]*:", re.IGNORECASE)
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_NO_LENGTH = b"HTTP/1.1 411 Length Required\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class Visit(asyncio.Protocol):
    """One connection; a stranger's until `recognise` is called.

    It stands between TLS and the HTTP server's protocol for this connection. Every request finds it in its scope, as
    `scope["state"]["visit"]`.
    """

    def __init__(self, admission: "Admission", connection: socket.socket, host: str) -> None:
        self.host, self.address, self.network = host, network_of(host), network_of(host, _SITE)
        self.key: str | None = None  # fingerprint of the enrolled key that was shown on it
        self.is_busy = False
        self.connection = connection
        self._admission = admission
        self._transport: asyncio.Transport | None = None
        self._server: asyncio.Protocol | None = None
        self._head: bytearray | None = bytearray()  # of the first request, until it is whole
        self.is_in_line, self.is_over, self._is_answered = True, False, False
        self._timer = asyncio.get_running_loop().call_later(admission.limits.head_s, self._too_late)

    def enters(self) -> None:
        """Notes that the wait in line is over: handshake and head have all their time."""
        self.is_in_line = False
        self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(self._admission.limits.head_s, self._too_late)

    def begins(self) -> None:
        """Notes that a whole head has come."""
        self._timer.cancel()
        self.is_busy = True

    def ends(self) -> None:
        """Notes that the answer is on its way; the next head must be whole in `KEEP_ALIVE_S` and `Limits.head_s`."""
        self.is_busy, self._is_answered = False, self.key is None
        if not self.is_over:
            patience = (KEEP_ALIVE_S if self.key else 0.0) + self._admission.limits.head_s
            self._timer = asyncio.get_running_loop().call_later(patience, self.turn_out)

    def recognise(self, key: str) -> None:
        """Makes the connection one of an enrolled key, which was just verified on it."""
        if self.key is None and not self.is_over:
            self._admission.recognise(self, key)
            self.key = key
        elif self.key is not None:
            self._admission.homes.note(self.address, key)

    def turn_out(self) -> None:
        """Closes the connection at once."""
        self.is_over = True
        self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()
        elif self.is_in_line:
            self.connection.close()
            self._admission.gone(self)
        else:  # the handshake fails by it
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins HTTP; the handshake is done."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self.is_over:
            return transport.abort()
        self._server = self._admission.serve(self)
        self._server.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Passes on what came; the head of a stranger's request only as a whole."""
        if self.is_over or self._is_answered or self._server is None:
            return
        if self._head is None:
            return self._server.data_received(data)
        self._head += data
        limits, end = self._admission.limits, self._head.find(b"\r\n\r\n")
        if end < 0 and len(self._head) <= limits.head_bytes:
            return
        head = bytes(self._head[: max(end, 0)])
        if end < 0 or end > limits.head_bytes or head.count(b"\n") > limits.head_lines:
            self._refuse(_TOO_LARGE, "head", "%s sent a head of more than %d bytes or %d fields",
                         limits.head_bytes, limits.head_lines)  # fmt: skip
        elif _CHUNKED.search(head):  # no node does; in pieces of one byte it would cost more than a handshake
            self._refuse(_NO_LENGTH, "chunked", "%s sent a body without stating its length")
        else:
            whole, self._head = bytes(self._head), None
            self._server.data_received(whole)

    def eof_received(self) -> bool | None:
        """Passes on that the other side sends no more."""
        return self._server.eof_received() if self._server is not None else None

    def pause_writing(self) -> None:
        """Passes on that the other side reads slowly."""
        if self._server is not None:
            self._server.pause_writing()

    def resume_writing(self) -> None:
        """Passes on that the other side reads again."""
        if self._server is not None:
            self._server.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Frees the place."""
        self.is_over = True
        self._timer.cancel()
        self._admission.gone(self)
        if self._server is not None:
            self._server.connection_lost(exc)

    def _refuse(self, answer: bytes, reason: str, text: str, *args: object) -> None:
        self._admission.log.stranger(reason, self.address, text, self.host, *args)
        if self._transport is not None:
            self._transport.write(answer)
        self._head = None
        self.turn_out()  # at once: who sends without end would fill buffers while TLS ends

    def _too_late(self) -> None:
        log, patience = self._admission.log, self._admission.limits.head_s
        if self.is_in_line:
            log.stranger("crowd", self.address, "%s has waited for its turn for %g s", self.host, patience)
        else:
            log.stranger("slow", self.address, "%s sent no whole request in %g s", self.host, patience)
        self.turn_out()


class Admission:
    """Admits connections of one listening socket.

    Args:
        listener: bound and listening, not blocking.
        tls: for the server's side.
        serve: makes the HTTP server's protocol of a connection.
        limits: for strangers.
    """

    def __init__(
        self, listener: socket.socket, tls: ssl.SSLContext, serve: Callable[[Visit], asyncio.Protocol], limits: Limits
    ) -> None:
        self.serve, self.limits, self.log = serve, limits, RefusalLog()
        self._listener, self._tls = listener, tls
        self._elsewhere: Crowd[Visit] = Crowd(limits)
        self.homes = Homes()
        self._at_home: Crowd[Visit] = Crowd(limits, homes=self.homes)
        self._crowds: dict[Visit, Crowd[Visit]] = {}
        self._known: dict[str, dict[Visit, None]] = {}  # connections of each key, in order of age
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._due: dict[Crowd[Visit], float] = {}  # when the next of each crowd may enter
        self._is_due: set[Crowd[Visit]] = set()  # for which a timer runs
        self._is_open = False

    def open(self) -> None:
        """Begins to accept, in the running loop."""
        self._is_open = True
        self._resume()
        self._start(self.log.keep_reporting())

    def close(self) -> None:
        """Stops accepting, and closes the connections of strangers."""
        self._is_open = False
        self._loop.remove_reader(self._listener)
        for visit in [*self._elsewhere.everyone(), *self._at_home.everyone()]:
            visit.turn_out()
        for task in self._tasks:
            task.cancel()
        self.log.report()

    def show(self, tls: ssl.SSLContext) -> None:
        """Uses another context for handshakes that begin from now on."""
        self._tls = tls

    def recognise(self, visit: Visit, key: str) -> None:
        """Counts a connection as one of `key` from now on; the key's longest idle one goes if it has too many."""
        if crowd := self._crowds.pop(visit, None):
            crowd.leave(visit, is_known=True)
        self.homes.note(visit.address, key)
        siblings = self._known.setdefault(key, {})
        if len(siblings) >= self.limits.per_key:
            goes = longest_idle(siblings)
            del siblings[goes]
            goes.turn_out()
        siblings[visit] = None

    def gone(self, visit: Visit) -> None:
        """Frees the place of a connection that has ended."""
        if crowd := self._crowds.pop(visit, None):
            crowd.leave(visit)
        if visit.key and visit in (siblings := self._known.get(visit.key, {})):
            del siblings[visit]
            if not siblings:
                del self._known[visit.key]

    def _accept(self) -> None:
        for _ in range(_BATCH):
            try:
                connection, address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                break
            except OSError as err:
                if err.errno in _NO_MEANS:
                    self._pause(err)
                break
            for option, value in _KERNEL_ASKS.items():
                connection.setsockopt(socket.IPPROTO_TCP, option, value)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            self._queue(Visit(self, connection, str(address[0])))

    def _pause(self, err: OSError) -> None:
        self.log.stranger("resources", "", "new connections, for now: %s", err.strerror)
        self._loop.remove_reader(self._listener)
        self._loop.call_later(_PAUSE_S, self._resume)

    def _resume(self) -> None:
        if self._is_open:
            self._loop.add_reader(self._listener, self._accept)

    def _queue(self, visit: Visit) -> None:
        crowd = self._crowds[visit] = self._at_home if self.homes.keys_at(visit.address) else self._elsewhere
        self._give_way(crowd.arrive(visit))
        if crowd not in self._is_due:
            self._call(crowd, max(self._due.get(crowd, 0.0), self._loop.time()))

    def _call(self, crowd: Crowd[Visit], due: float) -> None:
        self._is_due.add(crowd)
        self._due[crowd] = due
        self._loop.call_at(due, self._let_in, crowd)

    def _let_in(self, crowd: Crowd[Visit]) -> None:
        """Begins TLS with the next in line. If strangers press in and this comes late, those after him wait longer."""
        now = self._loop.time()
        late = now - self._due[crowd] if crowd.is_pressed else 0.0
        if (entry := crowd.enter()) is not None:
            visit, leaves = entry
            self._give_way(leaves)
            visit.enters()
            self._start(self._greet(visit))
        self._is_due.discard(crowd)
        self._due[crowd] = now + max(crowd.wait_s() or 0.0, min(_LATE * late, _LONGEST_GAP_S), crowd.gap_s)
        if crowd.wait_s() is not None:
            self._call(crowd, self._due[crowd])

    def _give_way(self, visit: Visit | None) -> None:
        if visit is not None:
            self.log.stranger(
                "crowd", visit.address, "%s has too many connections that show no enrolled key", visit.host
            )
            visit.turn_out()

    async def _greet(self, visit: Visit) -> None:
        try:
            await self._loop.connect_accepted_socket(
                lambda: visit, visit.connection, ssl=self._tls,
                ssl_handshake_timeout=self.limits.head_s, ssl_shutdown_timeout=_CLOSING_S,
            )  # fmt: skip
        except OSError as err:  # TLS errors and timeouts, too
            if not visit.is_over:
                reason = str(getattr(err, "reason", None) or type(err).__name__)
                self.log.stranger(
                    "tls", f"{reason} {visit.address}", "TLS handshake failed: %s%s, from %s",
                    reason, _explain(reason), visit.host,
                )  # fmt: skip
            visit.turn_out()
            self.gone(visit)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def network_of(host: str, prefix: int = 64) -> str:
    """Names whom an address belongs to: the address itself, or the /64 of IPv6, which one customer has whole.

    Many a customer has a /48, that is 65,536 of those.
    """
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, prefix), strict=False))


def _explain(reason: str) -> str:
    if "UNKNOWN_CA" in reason or "BAD_CERTIFICATE" in reason or "CERTIFICATE_UNKNOWN" in reason:
        return " (the other side trusts another CA; it may be enrolled elsewhere)"
    if "HTTP_REQUEST" in reason or "WRONG_VERSION" in reason or "UNSUPPORTED_PROTOCOL" in reason:
        return " (the other side does not speak TLS 1.3)"
    return ""
