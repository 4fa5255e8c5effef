"""The first words on fresh links: each party tells the other two its version and the protocols that it speaks."""

import logging

from ...versions import MOST_BYTES, OWN, Speaks
from ..errors import PartyLost, VersionsApart
from ..links.tls import Links

logger = logging.getLogger(__name__)


def greet(links: Links, own: Speaks = OWN) -> int:
    """Tells the other parties what this one speaks; returns the largest protocol number that all three speak.

    Raises:
        VersionsApart: there is none; all three raise it.
        PartyLost: a party is gone or silent, or sends something else.
    """
    try:
        spoken = [Speaks.read(told) for told in links.all_gather("HELO", own.text().encode(), MOST_BYTES)]
    except ValueError as err:
        raise PartyLost("another party does not tell its version in a form that can be read") from err
    common = spoken[0].common(*spoken[1:])
    named = ", ".join(f"aggregator {party} {each}" for party, each in enumerate(spoken))
    if common is None:
        newest = max(each.oldest for each in spoken)
        behind = ", ".join(f"aggregator {party}" for party, each in enumerate(spoken) if each.newest < newest)
        raise VersionsApart(f"no protocol is common to the three parties: {named}; upgrade {behind} first")
    logger.info("the parties speak protocol %d: %s", common, named)
    return common
