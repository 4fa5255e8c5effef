"""Links between the three parties: mutual TLS 1.3 with pinned certificates, one link a pair.

Gloo, which CrypTen uses, has no TLS in the published torch wheel, picks random ports and waits half an hour for a
silent party. Here each party has one port, listens on it while links are made, the higher of a pair dials the lower,
and a party that is silent, gone or out of step is `PartyLost`. Frames are a step's four-letter tag, a length and bytes:
no pickles between organisations.

In a step each party sends to both others and receives from both at once, without threads: it takes as long as a
message does one way. In turns, pair after pair, it would take four times as long; a sum with a norm check has 40 steps.
"""

import selectors
import socket
import ssl
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, Self

from ..errors import InvalidField, PartyLost
from ..fields import NUM_AGGREGATORS
from .certificates import load_chain
from .orders import PartyConfig, host_and_port

_HEAD = struct.Struct(">4sI")
_REDIAL_S = 0.05
_RECORD = 1 << 14  # bytes, of one TLS record
_MAX_HANDSHAKES = 32  # open at a time; strangers beyond push out the oldest


class Links(Protocol):
    """The links between the three parties, as their protocols use them."""

    @property
    def aggregator_id(self) -> int:
        """This party."""

    def exchange(self, step: str, outgoing: Mapping[int, bytes], limit: int) -> Mapping[int, bytes]:
        """Gives each other party its bytes and returns what each sent at the same step, in aggregator order."""

    def all_gather(self, step: str, data: bytes, limit: int) -> list[bytes]:
        """All three parties' bytes of this step, in aggregator order."""


class TlsCommunicator:
    """This party's links to the other two. Any error closes all of them."""

    def __init__(self, aggregator_id: int, links: Mapping[int, ssl.SSLSocket], timeout_s: float) -> None:
        self.aggregator_id = aggregator_id
        self._links = dict(sorted(links.items()))
        for link in self._links.values():
            link.setblocking(False)
        self.timeout_s = timeout_s  # silence after which another party is lost

    @classmethod
    def connect(cls, config: PartyConfig, *, timeout_s: float | None = None) -> Self:
        """Links up with both other parties within `timeout_s`, which is the configuration's if it is None.

        Raises:
            PartyLost: one did not come, or shows another certificate than its pinned one.
            InvalidField: this party's own certificate, key, pins or address cannot be used.
        """
        patience = config.timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + patience
        pins = _pinned(config)
        server, client = _context(config, ssl.PROTOCOL_TLS_SERVER), _context(config, ssl.PROTOCOL_TLS_CLIENT)
        links: dict[int, ssl.SSLSocket] = {}
        try:
            with _listener(config) as listener:
                for peer in range(config.aggregator_id):
                    links[peer] = _dial(peer, config.addresses[peer], client, pins, deadline)
                awaited = set(range(config.aggregator_id + 1, NUM_AGGREGATORS))
                _accept(listener, server, pins, awaited, links, deadline)
        except BaseException:
            for link in links.values():
                link.close()
            raise
        return cls(config.aggregator_id, links, patience)

    def exchange(self, step: str, outgoing: Mapping[int, bytes], limit: int) -> dict[int, bytes]:
        """Gives each other party its bytes and returns what each sent at the same step.

        Args:
            step: four ASCII letters; both ends must be at the same one.
            outgoing: by aggregator id, one for each other party.
            limit: most bytes that are taken from one party.

        Raises:
            PartyLost: a party is gone, silent for the timeout, at another step, or sends too much.
        """
        deadline = time.monotonic() + self.timeout_s
        turns = {peer: _Turn(link, step, outgoing[peer], limit) for peer, link in self._links.items()}
        while waiting := [peer for peer, turn in turns.items() if not turn.is_over]:
            for peer in waiting:
                with self._told(peer, step):
                    turns[peer].go_on(deadline)
            with selectors.PollSelector() as selector:  # unlike epoll it needs no descriptor, so none can be lacking
                for peer in waiting:
                    if not turns[peer].is_over:
                        selector.register(self._links[peer], turns[peer].awaited)
                left = deadline - time.monotonic()
                if selector.get_map() and (left <= 0 or not selector.select(left)):
                    silent = next(peer for peer in waiting if not turns[peer].is_over)
                    with self._told(silent, step):
                        raise TimeoutError("timed out")
        return {peer: bytes(turns.pop(peer).received) for peer in self._links}  # of one at a time there are two copies

    @contextmanager
    def _told(self, peer: int, step: str) -> Iterator[None]:
        """Closes all links, and raises `PartyLost`, if one breaks."""
        try:
            yield
        except OSError as err:  # TLS errors, time-outs and our own PartyLost among them
            self.close()
            raise PartyLost(f"aggregator {peer} is lost at step {step}: {err}") from err

    def all_gather(self, step: str, data: bytes, limit: int) -> list[bytes]:
        """All three parties' bytes of this step, in aggregator order; raises as `exchange` does."""
        received = self.exchange(step, dict.fromkeys(self._links, data), limit)
        return [received.get(party, data) for party in range(NUM_AGGREGATORS)]

    def close(self) -> None:
        """Closes the links; the other parties notice at once."""
        for link in self._links.values():
            link.close()


def _context(config: PartyConfig, protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the whole certificate is compared instead
    context.verify_mode = ssl.CERT_REQUIRED
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # nothing is resumed
    try:
        load_chain(context, config.certificate, config.key)
        for pin in config.pins:
            context.load_verify_locations(cadata=pin)
    except (OSError, ValueError) as err:
        raise InvalidField(f"the certificates of aggregator {config.aggregator_id} cannot be used: {err}") from err
    return context


def _pinned(config: PartyConfig) -> list[bytes]:
    try:
        pins = [ssl.PEM_cert_to_DER_cert(pin) for pin in config.pins]
    except ValueError as err:
        raise InvalidField("a pinned certificate is no PEM") from err
    if len(set(pins)) != NUM_AGGREGATORS:
        raise InvalidField("the three pinned certificates must differ")
    return pins


def hold_port(config: PartyConfig) -> socket.socket:
    """Binds the port of this party's address without listening, for as long as the socket is open.

    The system gives ports that nobody has bound to outgoing connections, and one of those may stay for days. Whoever
    dials is refused meanwhile; `TlsCommunicator.connect` listens beside it, which Linux allows. So it does another
    server: this keeps off what takes any port, not who takes this one.

    Raises:
        InvalidField: the address cannot be used, or another program has the port.
    """
    with _usable(config) as (host, port):
        held = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if held.family == socket.AF_INET6:
                held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            held.bind((host, port))
        except BaseException:
            held.close()
            raise
    return held


def _listener(config: PartyConfig) -> socket.socket:
    held = hold_port(config)
    try:
        with _usable(config):
            held.listen()
    except BaseException:
        held.close()
        raise
    return held


@contextmanager
def _usable(config: PartyConfig) -> Iterator[tuple[str, int]]:
    """Gives the address on which this party listens; raises `InvalidField` if the system does not allow its use."""
    host, port = host_and_port(config.listen or config.addresses[config.aggregator_id])
    try:
        yield host, port
    except OSError as err:
        raise InvalidField(f"cannot listen on {host}:{port}: {err.strerror}") from err


def _dial(peer: int, address: str, context: ssl.SSLContext, pins: list[bytes], deadline: float) -> ssl.SSLSocket:
    problem: OSError | None = None
    while (left := deadline - time.monotonic()) > 0:
        try:
            raw = socket.create_connection(host_and_port(address), timeout=left)
            with raw:
                link = context.wrap_socket(raw)  # takes over the descriptor, or leaves it to be closed here
        except ssl.SSLCertVerificationError as err:
            raise PartyLost(f"aggregator {peer} at {address} shows another certificate: {err.verify_message}") from err
        except OSError as err:  # not listening yet, or it closed its port between two attempts
            problem = err
            time.sleep(_REDIAL_S)
            continue
        if link.getpeercert(binary_form=True) != pins[peer]:
            link.close()
            raise PartyLost(f"aggregator {peer} at {address} shows the certificate of another party")
        _keep_alive(link)
        return link
    raise PartyLost(f"aggregator {peer} at {address} cannot be reached: {problem}") from problem


def _accept(
    listener: socket.socket,
    context: ssl.SSLContext,
    pins: list[bytes],
    awaited: set[int],
    links: dict[int, ssl.SSLSocket],
    deadline: float,
) -> None:
    """Fills `links` with the awaited parties; handshakes run side by side, so a silent stranger delays nobody."""
    listener.setblocking(False)
    handshakes: dict[ssl.SSLSocket, None] = {}  # oldest first
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        try:
            while awaited - links.keys():
                if (left := deadline - time.monotonic()) <= 0:
                    raise PartyLost(f"aggregators {sorted(awaited - links.keys())} did not link up in time")
                for event, _ in selector.select(left):
                    if event.fileobj is listener:
                        if (link := _greet(listener, context)) is not None:
                            handshakes[link] = None
                            selector.register(link, selectors.EVENT_READ, link)
                    elif event.data in handshakes and (done := _shake(event.data)) is not None:
                        del handshakes[event.data]
                        selector.unregister(event.data)
                        if done:
                            _admit(event.data, pins, awaited, links)
                        else:
                            event.data.close()
                while len(handshakes) > _MAX_HANDSHAKES:
                    oldest = next(iter(handshakes))
                    del handshakes[oldest]
                    selector.unregister(oldest)
                    oldest.close()
        finally:
            for link in handshakes:
                link.close()


def _shake(link: ssl.SSLSocket) -> bool | None:
    """True if the handshake succeeded, False if it failed; None while it goes on."""
    try:
        link.do_handshake()
    except ssl.SSLWantReadError:
        return None
    except OSError:  # a stranger, an old TLS version, a certificate that is not pinned
        return False
    return True


def _greet(listener: socket.socket, context: ssl.SSLContext) -> ssl.SSLSocket | None:
    try:
        raw, _ = listener.accept()
    except OSError:  # it hung up before we looked
        return None
    raw.setblocking(False)
    with raw:
        try:
            return context.wrap_socket(raw, server_side=True, do_handshake_on_connect=False)
        except OSError:
            return None


def _admit(link: ssl.SSLSocket, pins: list[bytes], awaited: set[int], links: dict[int, ssl.SSLSocket]) -> None:
    """Takes a link whose certificate is that of an awaited party; the newest one counts, since a party redials."""
    certificate = link.getpeercert(binary_form=True)
    peer = next((party for party in awaited if pins[party] == certificate), None)
    if peer is None:
        link.close()
        return
    if peer in links:
        links[peer].close()
    _keep_alive(link)
    links[peer] = link


def _keep_alive(link: ssl.SSLSocket) -> None:
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # rounds may be far apart


class _Turn:
    """One step with one other party: what goes out, and what has come in."""

    def __init__(self, link: ssl.SSLSocket, step: str, data: bytes, limit: int) -> None:
        self._link, self._tag, self._limit = link, step.encode("ascii"), limit
        first = _RECORD - _HEAD.size
        self._left = memoryview(_HEAD.pack(self._tag, len(data)) + data[:first])
        self._rest = memoryview(data)[first:]  # goes out after it, and is not copied: words may have many megabytes
        self._head, self.received = bytearray(_HEAD.size), bytearray()
        self._room = memoryview(self._head)  # for what comes next
        self._knows_size = False
        self.awaited = 0  # selectors.EVENT_READ, EVENT_WRITE: what lets it go on

    @property
    def is_over(self) -> bool:
        """True once all is sent and received."""
        return not (self._left or self._rest) and self._knows_size and not self._room

    def go_on(self, deadline: float) -> None:
        """Sends and receives what can be without waiting.

        Raises:
            PartyLost: the other party closed its link, is at another step, or sends too much.
            OSError: the link broke, or it is past the deadline: bytes that come one by one need not make it wait.
        """
        self.awaited = 0
        for is_done, usual in ((self._send, selectors.EVENT_WRITE), (self._receive, selectors.EVENT_READ)):
            try:
                while not is_done():
                    if time.monotonic() > deadline:
                        raise TimeoutError("timed out")
            except BlockingIOError:  # of a socket without TLS
                self.awaited |= usual
            except ssl.SSLWantReadError:  # TLS may have to receive before it can send
                self.awaited |= selectors.EVENT_READ
            except ssl.SSLWantWriteError:
                self.awaited |= selectors.EVENT_WRITE

    def _send(self) -> bool:
        if not self._left:
            self._left, self._rest = self._rest, self._left
        if self._left:
            self._left = self._left[self._link.send(self._left[:_RECORD]) :]
        return not (self._left or self._rest)

    def _receive(self) -> bool:
        if self._room:
            count = self._link.recv_into(self._room)
            if count == 0:
                raise PartyLost("it closed its link")
            self._room = self._room[count:]
        if not self._room and not self._knows_size:
            tag, size = _HEAD.unpack(self._head)
            if tag != self._tag:
                raise PartyLost("it is at another step")
            if size > self._limit:
                raise PartyLost(f"it sends {size} bytes where {self._limit} are allowed")
            self.received, self._knows_size = bytearray(size), True
            self._room = memoryview(self.received)
        return not self._room
