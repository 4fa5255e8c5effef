"""The coordinator's replica of every site's ledger: entries are appended and never rewritten.

An entry that a site has signed and that means nothing where it stands is not taken: with it no report could be made of
the federation any more.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...privacy.errors import LedgerBroken
from ...privacy.ledger.chain import START, Entry, Head, check_extension
from ..errors import ReplicaBroken
from .store import Store
from .tables import LedgerRow

if TYPE_CHECKING:  # accounting takes seconds to import, and most commands take no entry
    from ...privacy.ledger.charges import Books


class LedgerReplica:
    """Accepts a site's new entries only if they continue its chain under its own signature.

    One process extends replicas at a time, the driver that holds the run's lease; it caches the entries it has read.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._books: dict[str, Books] = {}  # of each site's replicated entries

    def length(self, site: str) -> int:
        """Counts the replicated entries of `site`; the site is asked for those from this number on."""
        return self._store.ledger_length(site)

    def extend(self, site: str, identity: str, entries: Sequence[Entry]) -> None:
        """Appends `entries`; skips those that are here already.

        Raises:
            ReplicaBroken: they do not continue the chain, are not signed by `identity`, or mean nothing.
        """
        last = self._store.last_ledger_row(site)
        head = START if last is None else Head(last.seq, last.hash)
        fresh = [entry for entry in entries if entry.seq > head.seq]
        try:
            check_extension(head, fresh, identity)
        except LedgerBroken as err:
            raise ReplicaBroken(f"{site}: its ledger does not continue what it sent before: {err}") from err
        self._apply(site, fresh)
        self._store.add_ledger(
            [
                LedgerRow(site=site, seq=entry.seq, kind=entry.kind, hash=entry.hash, entry=entry.model_dump_json())
                for entry in fresh
            ]
        )

    def hashes(self, site: str, since: int) -> bytes:
        """Reads the hashes of the replicated entries of `site` from number `since` on, 32 bytes each."""
        return bytes.fromhex("".join(self._store.ledger_hashes(site, since)))

    def entries(self, site: str) -> list[Entry]:
        """Reads every replicated entry of `site`, in order."""
        return [Entry.model_validate_json(row.entry) for row in self._store.ledger(site)]

    def has_charge(self, site: str, run: str, round_number: int) -> bool:
        """True if the site has signed a charge for this round."""
        return (run, round_number) in self._books_of(site).booked

    def open_rounds(self, site: str, run: str) -> set[int]:
        """Lists the rounds of `run` that the site has charged and whose outcome it has not signed yet."""
        booked = self._books_of(site).booked
        return {number for (of, number), each in booked.items() if of == run and each.summed is None}

    def _apply(self, site: str, fresh: Sequence[Entry]) -> None:
        books = self._books_of(site)
        try:
            for entry in fresh:
                books.apply(entry)
            if fresh and books.site != site:
                raise LedgerBroken(f"entry 0 opens the ledger of site {books.site!r}")
        except LedgerBroken as err:
            del self._books[site]  # some of the entries may be in
            raise ReplicaBroken(f"{site}: its ledger does not hold together: {err}") from err

    def _books_of(self, site: str) -> "Books":
        from ...privacy.ledger.charges import Books

        if site not in self._books:
            self._books[site] = Books.replay(self.entries(site))
        return self._books[site]
