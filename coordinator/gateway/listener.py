"""Listens for the gate: TLS 1.3, the serving thread, and uvicorn for the connections that `admission` lets in."""

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from ...client_node.files import damaged
from ...client_node.secret_files import read_secret
from ...mpc.links import certificates
from ..errors import CoordinatorError, StateDamaged
from .admission import KEEP_ALIVE_S, Admission, Visit
from .crowd import Limits

_REMEDY = "The gate shows its certificate to every node: restore server.crt and server.key from one backup"
_BACKLOG = 1024  # connections that the kernel keeps until they are accepted

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class _Server(uvicorn.Server):
    """uvicorn without a listening socket: connections come from `Admission`."""

    def __init__(
        self, config: uvicorn.Config, listener: socket.socket, tls: ssl.SSLContext, limits: Limits,
        release: Callable[[], None],
    ) -> None:  # fmt: skip
        super().__init__(config)
        self._release = release
        self._admission_of = partial(Admission, listener, tls, self._protocol_of, limits)
        self._admission: Admission | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts the app, then lets connections in."""
        await super().startup(sockets=[])
        if not self.should_exit:
            self._admission = self._admission_of()
            self._admission.open()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Lets nobody in any more, and finishes requests in progress."""
        if self._admission is not None:
            self._admission.close()
        self._release()
        await super().shutdown(sockets=[])

    def show(self, tls: ssl.SSLContext) -> None:
        """Uses another context for connections that are opened from now on; in the serving thread."""
        if self._admission is not None:
            self._admission.show(tls)

    def _protocol_of(self, visit: Visit) -> asyncio.Protocol:
        state = {**self.lifespan.state, "visit": visit}
        make: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
        return make(config=self.config, server_state=self.server_state, app_state=state)


class GateServer:
    """A running gate; `stop` ends it."""

    def __init__(self, server: _Server, listener: socket.socket) -> None:
        self.port: int = listener.getsockname()[1]
        self._server, self._listener = server, listener
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._serve, name="confide-gate", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.run(self._accept())

    async def _accept(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self._server.serve()

    def show(self, certificate: Path, key: Path) -> None:
        """Shows another certificate to connections that are opened from now on.

        Raises:
            OSError: the files do not belong together; the gate goes on as it was.
            StateDamaged, KeysSealed: the key cannot be read.
        """
        tls = _tls(certificate, key)  # a new one: beside one of RSA, a context keeps and shows an older one of ECDSA
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._server.show, tls)

    def echo(self, heard: Callable[[], None]) -> None:
        """Has the serving thread call `heard` as soon as it can; one that hangs, or has ended, never does."""
        if self._loop is not None and self.is_alive:
            with suppress(RuntimeError):  # it ends just now
                self._loop.call_soon_threadsafe(heard)

    @property
    def is_alive(self) -> bool:
        """True if the gate still serves."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Stops accepting requests, finishes those in progress and closes the port."""
        self._server.should_exit = True
        self._thread.join(timeout=10)
        self._listener.close()


def serve_gate(
    app: Any, host: str, port: int, certificate: Path, key: Path, *, limits: Limits | None = None
) -> GateServer:
    """Serves `app` over TLS 1.3 in a thread of its own; returns once the port is open. Port 0 takes a free one.

    `limits` hold for connections on which `app` has not recognised an enrolled key. When the server stops, it calls
    `app.release` if there is one, which answers the requests that `app` holds.

    Raises:
        CoordinatorError: the address is taken, or is not one of this machine; or the key is damaged.
        KeysSealed: the key is sealed, and the passphrase is not given.
    """
    limits = limits or Limits()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Accepted sockets inherit it. Else the body of an answer would wait until its head has arrived far away.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        listener.bind((host, port))
    except OSError as err:
        listener.close()
        raise CoordinatorError(
            f"the gate cannot listen on {host}:{port} ({err.strerror}); choose another port"
        ) from err
    listener.setblocking(False)
    listener.listen(_BACKLOG)
    config = uvicorn.Config(
        _end_strangers(app), http="h11", log_config=None, log_level="error", access_log=False, ws="none", lifespan="on",
        timeout_keep_alive=KEEP_ALIVE_S, timeout_graceful_shutdown=3, server_header=False,
        h11_max_incomplete_event_size=limits.head_bytes,
    )  # fmt: skip
    tls = _tls(certificate, key)
    server = GateServer(_Server(config, listener, tls, limits, getattr(app, "release", lambda: None)), listener)
    deadline = time.monotonic() + 10
    while not server._server.started:
        if not server.is_alive or time.monotonic() > deadline:
            raise CoordinatorError(f"the gate did not start on {host}:{port}; its log says why")
        time.sleep(0.005)
    return server


def _tls(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificates.load_chain(context, certificate, _secret(key))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # nodes keep connections and resume none
    return context


def _secret(path: Path) -> bytes:
    key = read_secret(path, remedy=_REMEDY, error=StateDamaged)
    if key is None:
        raise damaged(path, "is missing", remedy=_REMEDY, error=StateDamaged)
    return key


def _end_strangers(app: Any) -> Callable[[Message, Receive, Send], Awaitable[None]]:
    """Wraps an ASGI app so that an answer to a stranger ends the connection, as does a 401 to anybody."""

    async def ended(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        visit: Visit = scope["state"]["visit"]

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start" and (visit.key is None or message["status"] == 401):
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        visit.begins()
        try:
            await app(scope, receive, answer)
        finally:
            visit.ends()

    return ended
