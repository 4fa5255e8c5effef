"""The door of a site's page: it opens by links alone, which `client-node page` prints."""

from starlette.requests import Request
from starlette.responses import Response

from ..web.doors import Door
from .visits import Node


class SiteDoor(Door):
    """Sessions of whoever may write in the node's home, and so make a link."""

    def __init__(self, node: Node) -> None:
        super().__init__(node.home, is_https=False)
        self._node = node

    def objection(self, who: str | None, proof: str) -> str:
        """Says why a link lets nobody in: it has no login, so that nothing could be logged under it."""
        return "" if who else "this link names no login; make another one"

    def note(self, who: str | None, by: str) -> str:
        """Notes nothing: whoever runs commands here stands in no log of a site either, but by what is decided."""
        return ""

    def page(self, request: Request, problem: str = "", status: int = 200) -> Response:
        """Says how to come in, and what went wrong."""
        return self._node.renderer.page(
            request, "door.html", status=status, federation=self._node.name, problem=problem
        )
