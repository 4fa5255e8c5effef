"""Links by which the browser of whoever runs a command is let in to the site's page."""

from pathlib import Path

from ..daemon import PAGE_FILE
from ..enrolment import Enrolment
from ..enrolment.sessions import only_one
from ..errors import AlreadyRunning, PageUnavailable
from ..login import login_name
from ..web import accounts
from ..web.child import noted_address
from ..web.entering import make_link


def make(home: Path) -> str:
    """Makes a link that works once within five minutes, for the login that runs this process.

    Raises:
        NotEnrolled: this node belongs to no federation.
        PageUnavailable: no page is served, or another account of this machine listens where it was.
    """
    Enrolment.load(home)
    if not _is_served(home):
        raise PageUnavailable("no daemon runs here, so there is no page; start `client-node run`")
    address = noted_address(home / PAGE_FILE)
    if not address:
        raise PageUnavailable(
            f"the running daemon has no page yet, or was started without, or its port is taken; {home / 'page.log'} "
            "may say why, and `client-node run --page PORT` takes another port"
        )
    if not _is_ours(home, address):  # whoever listens there could use the link
        raise PageUnavailable(
            f"the page at {address} has just ended, and what listens there now, if anything, is no program of this "
            "node's account; no link was made. The daemon starts the page again; try it in a moment"
        )
    return f"{address}/enter?link={make_link(home, login_name())}"


def _is_served(home: Path) -> bool:
    try:
        with only_one(home, shared=True):
            return False
    except AlreadyRunning:
        return True


def _is_ours(home: Path, address: str) -> bool:
    """True if the daemon's account listens at the address that it noted."""
    try:
        return accounts.holds((home / PAGE_FILE).stat().st_uid, address)
    except FileNotFoundError:
        return False
