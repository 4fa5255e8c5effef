"""The last ledger entry that this site has acted upon, kept beside its keys and told with everything that it seals.

A ledger that was put back from an older copy lacks charges for what has left the site. Two things show it. The site
keeps the number and hash of its last entry in `keys/ledger.head`, and goes on only with a ledger that holds that entry.
And what it seals names its place in the ledger, which aggregators remember: for a copy of the whole home, file and all,
they refuse (`mpc.links.positions`).
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, TypeAdapter

from ..models.strict import Digest, StrictModel
from ..mpc.sharing.position import START, Position, digests
from ..privacy.errors import PrivacyError
from ..privacy.ledger.chain import Entry, Head
from ..privacy.ledger.entry_store import EntryStore
from .errors import ClientNodeError, SiteNotReady
from .files import locked, read_json, write_private

if TYPE_CHECKING:  # with all accountants, for which `status` does not wait
    from ..privacy.ledger.ledger import Ledger

LEDGER_FILE = "ledger.db"
FILE = Path("keys") / "ledger.head"
PEOPLE_FILE = "units.db"  # begun after the ledger: people are noted before they are charged
_PART = 1000  # entries read at a time
_MAX_BYTES = 2**16
_REMEDY = (
    "It says how far the ledger had got when something was last sent by it, and nothing is charged until it can be "
    "read: restore the newest copy from a backup. Without one, delete it if ledger.db was never put back from a copy; "
    "otherwise: client-node budget recover, which counts the budget as spent"
)

WAY_ON = (
    "An older copy was put back. Stop the daemon and import the newest one: client-node budget import. If nobody has "
    "the missing entries: client-node budget recover, which counts the budget as spent"
)


class Kept(StrictModel):
    """The kept head of a ledger."""

    public_key: Digest  # that opened the ledger to which it belongs
    seq: Annotated[int, Field(ge=0, lt=2**48)]
    hash: Digest


_FORM = TypeAdapter(Kept)


def kept_head(home: Path, *keys: str) -> Kept | None:
    """Reads the kept head of the ledger that one of these keys (hex) has opened; None if none was kept.

    Raises:
        FileDamaged: the file is damaged.
    """
    kept = read_json(home / FILE, _FORM, remedy=_REMEDY, max_bytes=_MAX_BYTES)
    return kept if kept is not None and kept.public_key in keys else None


def why_begun(home: Path, *keys: str) -> str | None:
    """Says by what it is known that there must be a ledger of one of these keys (hex); None if none is needed yet.

    Raises:
        FileDamaged: the file of the kept head is damaged.
    """
    if kept_head(home, *keys) is not None:
        return "by which something was sent"
    return f"and {PEOPLE_FILE} knows people" if (home / PEOPLE_FILE).exists() else None


def standing(home: Path, *keys: str) -> str:
    """Says whether the ledger holds the entry by which something was sent last; if not, why, and what to do.

    It looks at that entry alone, and writes nothing: commands that charge or report check the whole ledger.
    """
    path = home / LEDGER_FILE
    try:
        kept, begun = kept_head(home, *keys), why_begun(home, *keys)
        if not path.exists():
            return "none yet" if begun is None else f"the ledger {path} is gone, {begun}. {WAY_ON}"
        found = EntryStore.peek(path, 0 if kept is None else kept.seq)
    except (ClientNodeError, PrivacyError) as err:
        return str(err)
    if kept is not None and (found is None or found.hash != kept.hash):
        return f"{path} does not hold its entry {kept.seq}, by which something was sent. {WAY_ON}"
    if found is None:
        return "none yet" if begun is None else f"the ledger {path} has no entries, {begun}. {WAY_ON}"
    return "whole"


class LedgerHead:
    """The kept head of one site's ledger, and the site's positions for what it seals."""

    def __init__(self, home: Path, ledger: "Ledger") -> None:
        self._home, self._path, self._ledger = home, home / FILE, ledger
        self._digests = [START]  # of the position after as many entries

    def require(self) -> None:
        """Refuses a ledger that ends before the kept head, or differs from it.

        Raises:
            SiteNotReady: it does.
            FileDamaged: the file of the kept head is damaged.
        """
        kept = self._read()
        if kept is not None and not self._holds(kept):
            raise SiteNotReady(
                f"the ledger of {self._ledger.site}, ledger.db, does not hold its entry {kept.seq}, by which something "
                "was sent. " + WAY_ON
            )

    def keep(self) -> None:
        """Keeps the ledger's last entry as its head, durably; call it before anything leaves under that entry."""
        with locked(self._path):
            head, kept = self._ledger.head, self._read()
            if kept is None or self._holds(kept):
                if kept is None or kept.seq < head.seq:
                    self._write(head)
                return
        self.require()

    def replace(self) -> None:
        """Makes the ledger's last entry the head whatever was kept before, for a person who says so."""
        with locked(self._path):
            self._write(self._ledger.head)

    def position(self, entry: Entry) -> Position:
        """Computes the site's position at a ledger entry: what an aggregator remembers of the ledger up to there."""
        while len(self._digests) <= entry.seq + 1:
            part = self._ledger.entries(len(self._digests) - 1, _PART)
            self._digests += digests(self._digests[-1], (bytes.fromhex(each.hash) for each in part))
        return Position(self._ledger.generation, entry.seq + 1, self._digests[entry.seq + 1])

    def _holds(self, kept: Kept) -> bool:
        found = self._ledger.entries(kept.seq, 1)
        return bool(found) and found[0].hash == kept.hash

    def _read(self) -> Kept | None:
        """Reads the file; None if there is none, or it belongs to a ledger of another key."""
        return kept_head(self._home, self._ledger.public_key)

    def _write(self, head: Head) -> None:
        kept = Kept(public_key=self._ledger.public_key, seq=head.seq, hash=head.hash)
        write_private(self._path, kept.model_dump_json().encode())


def recover(home: Path, ledger: "Ledger") -> None:
    """Closes every account of a ledger that lost entries for good, and goes on from there as its newest state.

    Raises:
        ChargeConflict: the clock is behind that of an earlier recovery.
    """
    ledger.recover(int(time.time()))
    LedgerHead(home, ledger).replace()
