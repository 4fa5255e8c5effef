"""The process that serves a site's page: `python -m confide.client_node.page.process PLACE`, PLACE in JSON.

`client-node run` starts it and keeps it, as `web.process` says.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from starlette.types import ASGIApp

from ...mpc.errors import MpcError
from ...privacy.errors import PrivacyError
from ..errors import PageUnavailable
from ..web import process
from ..web.serving import Place
from .app import PageApp


@contextmanager
def opened(home: Path, place: Place) -> Iterator[ASGIApp]:
    """Opens the page of the node at `home`.

    Raises:
        NotEnrolled: the node belongs to no federation.
        PageUnavailable: others than this machine could reach it.
    """
    if place.is_https or place.host != Place().host:
        raise PageUnavailable(f"a site's page is for this machine alone, on {Place().host}")
    page = PageApp(home)
    threading.Thread(target=page.warm_up, name="warm-up", daemon=True).start()
    yield page.app


if __name__ == "__main__":
    sys.exit(process.run(opened, (PrivacyError, MpcError)))
