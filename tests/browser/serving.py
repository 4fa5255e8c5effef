"""Serves pages of confide within a test, and lets browsers in."""

import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx
from starlette.types import ASGIApp

from confide.client_node.web.serving import Place as Port
from confide.client_node.web.serving import serve_page
from confide.listening import Listening

from .looking import Place


@dataclass(frozen=True, slots=True)
class Visitor(Place):
    """A place whose paths may name parts of what it shows in braces, as {run}."""

    names: Mapping[str, str] = field(default_factory=dict)

    def at(self, path: str, *, status: int = 200) -> Place:
        return Place(self.address + path.format(**self.names), self.cookies, status)


@dataclass(slots=True, kw_only=True)
class Served(ABC):
    """A page that listens, over a home that a test may change."""

    app: ASGIApp
    names: dict[str, str]  # of parts of what it shows
    address: str = ""
    _cookies: dict[str, tuple[dict[str, str], ...]] = field(default_factory=dict)
    _listening: Listening | None = None
    _thread: threading.Thread | None = None

    @abstractmethod
    def link(self, who: str = "") -> str:
        """The address that lets somebody in once."""

    def serve(self) -> None:
        """Listens: on a free port for the first time, and on that one from then on."""
        opened: queue.SimpleQueue[tuple[str, Listening]] = queue.SimpleQueue()
        port = Port(port=urlsplit(self.address).port or 0)

        def listen() -> None:
            serve_page(self.app, port, lambda *told: opened.put(told))

        self._thread = threading.Thread(target=listen)
        self._thread.start()
        self.address, self._listening = opened.get(timeout=60)

    def stop(self) -> None:
        """Closes the port; sessions live on, so that it can be opened again."""
        if self._listening is not None and self._thread is not None:
            self._listening.stop()
            self._thread.join()

    def by(self, who: str) -> Visitor:
        """The page as somebody sees it who has a link; "nobody" has none."""
        if who not in self._cookies:
            self._cookies[who] = () if who == "nobody" else (self._let_in(who),)
        return Visitor(self.address, self._cookies[who], names=self.names)

    def _let_in(self, who: str) -> dict[str, str]:
        answer = httpx.get(self.link(who), trust_env=False)
        assert answer.status_code == 303, answer.text
        ((name, value),) = answer.cookies.items()
        return {"name": name, "value": value}
