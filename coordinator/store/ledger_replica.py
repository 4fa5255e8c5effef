"""The coordinator's replica of every site's ledger: entries are appended and never rewritten."""

from collections.abc import Sequence

from ...privacy.errors import LedgerBroken
from ...privacy.ledger.chain import START, Entry, Head, check_extension
from ..errors import ReplicaBroken
from .store import Store
from .tables import LedgerRow


class LedgerReplica:
    """Accepts a site's new entries only if they continue its chain under its own signature.

    One process extends replicas at a time, the driver that holds the run's lease; it caches the entries it has read.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rounds: dict[str, dict[tuple[str, str], set[int]]] = {}  # site -> (kind, run) -> rounds

    def length(self, site: str) -> int:
        """Counts the replicated entries of `site`; the site is asked for those from this number on."""
        return self._store.ledger_length(site)

    def extend(self, site: str, identity: str, entries: Sequence[Entry]) -> None:
        """Appends `entries`; skips those that are here already.

        Raises:
            ReplicaBroken: they do not continue the chain, or are not signed by `identity`.
        """
        last = self._store.last_ledger_row(site)
        head = START if last is None else Head(last.seq, last.hash)
        fresh = [entry for entry in entries if entry.seq > head.seq]
        try:
            check_extension(head, fresh, identity)
        except LedgerBroken as err:
            raise ReplicaBroken(f"{site}: its ledger does not continue what it sent before: {err}") from err
        rounds = self._rounds_of(site)
        self._store.add_ledger(
            [
                LedgerRow(site=site, seq=entry.seq, kind=entry.kind, hash=entry.hash, entry=entry.model_dump_json())
                for entry in fresh
            ]
        )
        _note(rounds, fresh)

    def hashes(self, site: str, since: int) -> bytes:
        """Reads the hashes of the replicated entries of `site` from number `since` on, 32 bytes each."""
        return bytes.fromhex("".join(self._store.ledger_hashes(site, since)))

    def entries(self, site: str) -> list[Entry]:
        """Reads every replicated entry of `site`, in order."""
        return [Entry.model_validate_json(row.entry) for row in self._store.ledger(site)]

    def has_charge(self, site: str, run: str, round_number: int) -> bool:
        """True if the site has signed a charge for this round."""
        return round_number in self._rounds_of(site).get(("reserve", run), ())

    def open_rounds(self, site: str, run: str) -> set[int]:
        """Lists the rounds of `run` that the site has charged and whose outcome it has not signed yet."""
        rounds = self._rounds_of(site)
        return rounds.get(("reserve", run), set()) - rounds.get(("settle", run), set())

    def _rounds_of(self, site: str) -> dict[tuple[str, str], set[int]]:
        if site not in self._rounds:
            self._rounds[site] = {}
            _note(self._rounds[site], self.entries(site))
        return self._rounds[site]


def _note(rounds: dict[tuple[str, str], set[int]], entries: Sequence[Entry]) -> None:
    for entry in entries:
        if entry.kind in ("reserve", "settle"):
            rounds.setdefault((entry.kind, str(entry.body["run"])), set()).add(int(str(entry.body["round"])))
