"""Links by which the browser of whoever runs a command is let in to the operator's page."""

import os
from pathlib import Path

from ...client_node.web import accounts
from ...client_node.web.entering import make_link
from ..errors import NotFound
from ..federation.serving import read_serving
from ..store import Store
from ..store.actions import acting
from .operators import named


def make(store: Store, home: Path) -> str:
    """Makes a link that works once, for the operator who runs this; without operators for the home's account.

    Raises:
        NotFound: no page is served, or another account of this machine listens where it was.
    """
    serving = read_serving(home)
    if serving is None:
        raise NotFound("no server runs, so there is no page; start `coordinator serve`")
    if not serving.page:
        raise NotFound(f"the running server has no page yet, or was started without; {home / 'page.log'} may say why")
    if not accounts.holds(os.geteuid(), serving.page):  # whoever listens there could use the link
        raise NotFound(
            f"the page at {serving.page} has just ended, and what listens there now, if anything, is no program of "
            "the home's account; no link was made. The server starts the page again; try it in a moment"
        )
    kind, _, name = acting().partition(":")
    operator = named(store, name) if kind == "operator" else None
    secret = make_link(home, None, "") if operator is None else make_link(home, operator.name, operator.token_hash)
    return f"{serving.page}/enter?link={secret}"
