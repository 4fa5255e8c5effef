"""The policy in force: every setting, and the place that it comes from. A secret stands in none of them."""

from starlette.responses import Response

from ..explanation import effective
from .visits import Visit


def show(visit: Visit) -> Response:
    """Shows every setting in force, as `client-node policy show` does."""
    return visit.render("policy.html", rows=effective(visit.home))
