"""Turns faults of this node's own files and disk into refusals that the coordinator may be told.

What exactly is wrong goes to this node's log, with the file and what to do. The coordinator is told a name and one
constant text: `SiteNotReady` where a person has to act, `DiskFull` where the run goes on by itself once there is room.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..mpc.errors import JournalBroken, MpcError
from ..privacy.errors import LedgerBroken, LedgerUnavailable
from .errors import ClientNodeError, DiskFull, FileDamaged, IdentityMissing, NotEnrolled, SettingsInvalid, SiteNotReady
from .files import has_room, is_full

logger = logging.getLogger(__name__)

_DAMAGED = (FileDamaged, IdentityMissing, NotEnrolled, SettingsInvalid, LedgerBroken)


@contextmanager
def told_as_refusals(home: Path) -> Iterator[None]:
    """Logs a fault of a file under `home`, or of its disk, and raises what the coordinator is told of it.

    A ledger or journal that cannot be used just now keeps its own name: it is asked again, and may be free by then.

    Raises:
        SiteNotReady: a file is damaged, or cannot be read.
        DiskFull: the disk has no room.
    """
    try:
        yield
    except DiskFull as err:
        logger.error("%s", err)
        raise
    except _DAMAGED as err:
        logger.error("%s", err)
        raise SiteNotReady("a file of this node's own cannot be used; its log says which, and what to do") from err
    except (ClientNodeError, MpcError, LedgerUnavailable, OSError) as err:
        if is_full(err) or (isinstance(err, LedgerUnavailable) and not has_room(home)):
            logger.error("the disk of %s is full; make room, and what was asked for is done then: %s", home, err)
            raise DiskFull("no room on this node's disk; it goes on once its people have made some") from err
        if isinstance(err, (LedgerUnavailable, JournalBroken)):
            logger.error("%s", err)
        if isinstance(err, OSError) and _is_under(home, err.filename):
            logger.error("%s cannot be used: %s", err.filename, err.strerror)
            raise SiteNotReady("a file of this node's own cannot be used; its log says which") from err
        raise


def _is_under(home: Path, name: object) -> bool:
    return isinstance(name, str) and Path(name).is_relative_to(home)
