"""The coordinator's replica of every site's ledger: entries are appended and never rewritten.

An entry that a site has signed and that means nothing where it stands is not taken: with it no report could be made of
the federation any more.
"""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from sqlalchemy.orm import Session

from ...privacy.errors import LedgerBroken
from ...privacy.ledger.chain import START, Entry, Head, check_extension
from ..errors import ReplicaBroken
from .store import Store
from .tables import LedgerRow

if TYPE_CHECKING:  # accounting takes seconds to import, and most commands take no entry
    from ...privacy.ledger.charges import Books


class LedgerReplica:
    """Accepts a site's new entries only if they continue its chain under its own signature.

    The drivers of several runs extend the same replicas at once, each from its own process. So entries are checked and
    appended in one transaction that holds the site's replica, and what other drivers have appended is read before
    anything is said of a site.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._read: dict[str, tuple[Books, int]] = {}  # site -> its books, and how many entries are in them

    def length(self, site: str) -> int:
        """Counts the replicated entries of `site`; the site is asked for those from this number on."""
        return self._store.ledger_length(site)

    def extend(self, site: str, identity: str, entries: Sequence[Entry]) -> None:
        """Appends `entries`; skips those that are here already.

        Raises:
            ReplicaBroken: they do not continue the chain, are not signed by `identity`, or mean nothing. Where the
                site's key was followed by another, they are signed by each up to its succession.
        """
        self._books(site)  # so that what takes long, reading all of it for the first time, holds nobody else
        allowed = {identity, *self._store.identities(site)}
        try:
            with self._store.holding_ledger(site) as session:
                last = self._store.last_ledger_row(session, site)
                head = START if last is None else Head(last.seq, last.hash)
                fresh = [entry for entry in entries if entry.seq > head.seq]
                keys = self._up_to_date(session, site).keys or tuple(_opened_by(entry) for entry in fresh[:1])
                try:
                    check_extension(head, fresh, keys[-1] if keys and keys[-1] in allowed else identity)
                except LedgerBroken as err:
                    raise ReplicaBroken(f"{site}: its ledger does not continue what it sent before: {err}") from err
                self._append(session, site, fresh, allowed)
        except BaseException:
            self._read.pop(site, None)  # some of the entries may be in, and none is stored
            raise

    def hashes(self, site: str, since: int) -> bytes:
        """Reads the hashes of the replicated entries of `site` from number `since` on, 32 bytes each."""
        return bytes.fromhex("".join(self._store.ledger_hashes(site, since)))

    def entries(self, site: str) -> list[Entry]:
        """Reads every replicated entry of `site`, in order."""
        with self._store.session() as session:
            return [_entry(row) for row in self._store.ledger(session, site)]

    def has_charge(self, site: str, run: str, round_number: int) -> bool:
        """True if the site has signed a charge for this round."""
        return (run, round_number) in self._books(site).booked

    def open_rounds(self, site: str, run: str) -> set[int]:
        """Lists the rounds of `run` that the site has charged and whose outcome it has not signed yet."""
        booked = self._books(site).booked
        return {number for (of, number), each in booked.items() if of == run and each.summed is None}

    def books(self, site: str) -> "Books":
        """Returns what all replicated entries of `site` add up to; only entries that are new to this object are read.

        Raises:
            ReplicaBroken: they do not hold together.
        """
        return self._books(site)

    def _books(self, site: str) -> "Books":
        with self._store.session() as session:
            return self._up_to_date(session, site)

    def _up_to_date(self, session: Session, site: str) -> "Books":
        """Returns the books of all entries that `session` sees. Raises `ReplicaBroken`."""
        from ...privacy.ledger.charges import Books

        books, count = self._read.pop(site, (Books(), 0))  # back once all of it went well
        for row in self._store.ledger(session, site, since=count):
            try:
                books.apply(_entry(row))
            except LedgerBroken as err:  # an earlier version took it, or somebody wrote to the database
                raise ReplicaBroken(f"{site}: what is stored of its ledger does not hold together: {err}") from err
            count += 1
        self._read[site] = books, count
        return books

    def _append(self, session: Session, site: str, fresh: Sequence[Entry], allowed: Collection[str]) -> None:
        books = self._up_to_date(session, site)
        try:
            for entry in fresh:
                books.apply(entry)
            if fresh and books.site != site:
                raise LedgerBroken(f"entry 0 opens the ledger of site {books.site!r}")
            if fresh and books.keys[-1] not in allowed:
                raise LedgerBroken(
                    f"it goes on under the key {books.keys[-1][:16]}..., which the register does not know"
                )
        except LedgerBroken as err:
            raise ReplicaBroken(f"{site}: its ledger does not hold together: {err}") from err
        session.add_all(
            LedgerRow(site=site, seq=entry.seq, kind=entry.kind, hash=entry.hash, entry=entry.model_dump_json())
            for entry in fresh
        )
        self._read[site] = books, self._read[site][1] + len(fresh)


def _opened_by(entry: Entry) -> str:
    return str(entry.body.get("public_key", ""))


def _entry(row: LedgerRow) -> Entry:
    return Entry.model_validate_json(row.entry)
