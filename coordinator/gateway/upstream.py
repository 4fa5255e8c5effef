"""The gate's HTTP client for the SuperLink: HTTP/1.1 over TLS on loopback, with connections kept open.

A general HTTP client costs more processor time per request than all the rest of the gate, and a node asks up to ten
times a second. This client has only the parts that are needed: POST, Content-Length, keep-alive.
"""

import asyncio
import ssl
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

_IDLE_S = 60.0  # the SuperLink closes after 75 s; a request must never meet a closing connection
_CONNECTIONS = 48
_ANSWER_S = 60.0
_MAX_HEAD = 64 << 10

Headers = Sequence[tuple[bytes, bytes]]
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class UpstreamAway(ConnectionError):
    """A SuperLink that cannot be reached or broke the connection."""


class Upstream:
    """A pool of connections to one server."""

    def __init__(self, host: str, port: int, ca_path: Path) -> None:
        self._host, self._port = host, port
        self._tls = ssl.create_default_context(cafile=str(ca_path))
        self._idle: list[tuple[float, Connection]] = []
        self._slots = asyncio.Semaphore(_CONNECTIONS)

    async def post(
        self, path: str, headers: Headers, body: bytes, *, first: bool = False
    ) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        """Sends a POST request; returns status, headers and body of the answer. Raises `UpstreamAway`.

        Args:
            first: it goes at once, past those that wait for one of the connections.
        """
        head = [b"POST %b HTTP/1.1" % path.encode("ascii"), b"host: %b" % self._host.encode("ascii")]
        head += [b"%b: %b" % pair for pair in headers]
        head += [b"content-length: %d" % len(body), b"", b""]
        async with nullcontext() if first else self._slots:
            try:
                async with asyncio.timeout(_ANSWER_S):
                    return await self._exchange(b"\r\n".join(head), body)
            except (OSError, EOFError, ValueError, IndexError, asyncio.LimitOverrunError) as err:
                # OSError: TLS and timeouts too; IndexError: a status line without a status
                raise UpstreamAway(f"{self._host}:{self._port}: {err}") from err

    async def close(self) -> None:
        """Closes every idle connection."""
        while self._idle:
            _, (_, writer) = self._idle.pop()
            writer.transport.abort()
            with suppress(OSError):
                await writer.wait_closed()

    async def _exchange(self, head: bytes, body: bytes) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        reader, writer = await self._connection()
        keep = False
        try:
            writer.write(head + body if len(body) < 1 << 16 else head)
            if len(body) >= 1 << 16:
                writer.write(body)
            await writer.drain()
            lines = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
            status = int(lines[0].split(b" ", 2)[1])
            headers = [
                (name.lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines[1:-2])
            ]
            known = dict(headers)
            answer = await reader.readexactly(int(known[b"content-length"])) if b"content-length" in known else b""
            keep = b"content-length" in known and known.get(b"connection", b"").lower() != b"close"
            return status, headers, answer
        finally:
            if keep:
                self._idle.append((time.monotonic(), (reader, writer)))
            else:
                writer.transport.abort()

    async def _connection(self) -> Connection:
        while self._idle:
            since, (reader, writer) = self._idle.pop()
            if time.monotonic() - since < _IDLE_S and not reader.at_eof() and not writer.is_closing():
                return reader, writer
            writer.transport.abort()
        return await asyncio.open_connection(self._host, self._port, ssl=self._tls, limit=_MAX_HEAD)
