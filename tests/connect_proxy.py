"""A small HTTP proxy that only tunnels, as a hospital may have one. It reaches out from an address of its own."""

import base64
import socket
import socketserver
import threading
from contextlib import suppress
from typing import cast

OUTSIDE = "127.0.0.2"  # from here it reaches out, so a server sees who came through it and who did not


class ConnectProxy(socketserver.ThreadingTCPServer):
    """Serves CONNECT on loopback until closed; `tunnels` lists where to, `refused` what else it was asked."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, login: str | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Asked)
        self.login = login
        self.tunnels: list[str] = []
        self.refused: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://{self.login + '@' if self.login else ''}127.0.0.1:{self.server_address[1]}"

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class _Asked(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        proxy = cast(ConnectProxy, self.server)
        method, target, _ = self.rfile.readline().decode().split()
        headers = {}
        while line := self.rfile.readline().decode().strip():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        wanted = proxy.login and "Basic " + base64.b64encode(proxy.login.encode()).decode()
        if method != "CONNECT" or (wanted and headers.get("proxy-authorization") != wanted):
            proxy.refused.append(f"{method} {target}")
            self.wfile.write(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n")
            return
        proxy.tunnels.append(target)
        host, _, port = target.rpartition(":")
        with socket.create_connection((host, int(port)), source_address=(OUTSIDE, 0)) as far:
            self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=_pump, args=(far, self.connection), daemon=True)
            back.start()
            _pump(self.connection, far)
            back.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
