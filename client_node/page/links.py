"""Links by which the browser of whoever runs a command is let in to the site's page."""

from pathlib import Path

from ..daemon import PAGE_FILE
from ..enrolment import Enrolment
from ..enrolment.sessions import only_one
from ..errors import AlreadyRunning, PageUnavailable
from ..login import login_name
from ..web.child import noted_address
from ..web.entering import make_link


def make(home: Path) -> str:
    """Makes a link that works once within five minutes, for the login that runs this process.

    Raises:
        NotEnrolled: this node belongs to no federation.
        PageUnavailable: no page is served.
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
    return f"{address}/enter?link={make_link(home, login_name())}"


def _is_served(home: Path) -> bool:
    try:
        with only_one(home, shared=True):
            return False
    except AlreadyRunning:
        return True
