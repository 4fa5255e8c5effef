"""A site's ledger: every release about its data is written here, durably, before it can happen.

A chain of signed entries (`chain`) in one file (`entry_store`) that add up to budgets and charges (`charges`). Several
processes may open the same file; each takes in what the others added before it decides. What a site alone cannot show
is that an older copy of the file was put back; whoever keeps a replica can (`check_extension`).

Which key signs the next entry follows from the entries: that of entry 0, or that of the last succession. So a process
that has the file open goes on under the next key as soon as another has written a succession.
"""

import logging
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ...models.rounding import rounded_up
from ..accounting import Release
from ..errors import BudgetExceeded, BudgetMissing, ChargeConflict, LedgerBroken, LedgerForked, UnprotectedRefused
from . import canonical, chain, charges
from .chain import START, Entry, Head, check_extension, verify_chain
from .charges import Books, Budget, Charge, Recovery, RunCharges, Settlement, Spent
from .cohorts import KIND as COHORT
from .cohorts import Cohort, digest
from .entry_store import EntryStore
from .standings import Standing, standings
from .succession import KIND as SUCCESSION
from .succession import Succession, hand_over

__all__ = [
    "START",
    "Budget",
    "Charge",
    "Entry",
    "Head",
    "Ledger",
    "Quote",
    "Recovery",
    "Spent",
    "check_extension",
    "verify_chain",
]

logger = logging.getLogger(__name__)
Keyring = Callable[[str], Ed25519PrivateKey | None]  # finds the site's private key of a public one, in hex


class Append(Protocol):
    """Adds one entry to the chain."""

    def __call__(self, kind: str, body: Mapping[str, Any], time: str = "") -> Entry:
        """Writes the entry; `time` is "" for the clock's."""


def _no_other(_: str) -> None:
    return None


_PART = 1000  # entries in memory at a time while a ledger is taken up


@dataclass(frozen=True, slots=True)
class Quote:
    """The price of a charge: guaranteed epsilon before and after it, at the budget's delta and collusion."""

    cap: float
    guaranteed: float
    would_be: float

    @property
    def fits(self) -> bool:
        """True if the budget can pay."""
        return self.would_be <= self.cap


class Ledger:
    """The ledger of one site, open for reading and writing; safe for threads and for several processes.

    Every method raises LedgerBroken if the file no longer holds the chain it held, and LedgerUnavailable if the file
    cannot be used.
    """

    def __init__(self, store: EntryStore, signer: Ed25519PrivateKey, site: str, keyring: Keyring = _no_other) -> None:
        self.site = site
        self.public_key = canonical.public_hex(signer)  # the one of entry 0, once there is one
        self._key = self.public_key  # signs the next entry
        self._store = store
        self._signers, self._keyring = {self.public_key: signer}, keyring
        self._mutex = threading.RLock()
        self._books = Books()
        self._head = START

    @classmethod
    def open(
        cls,
        path: Path,
        signer: Ed25519PrivateKey,
        site: str,
        *,
        is_new: bool = True,
        keyring: Keyring = _no_other,
    ) -> "Ledger":
        """Opens the ledger at `path`, or starts it if there is none; checks every entry.

        Args:
            signer: the site's present key, by which a new ledger is opened.
            is_new: False where there must be a ledger: then none is started.
            keyring: finds the site's other keys, for a ledger whose next entry another one signs.

        Raises:
            LedgerBroken: an entry fails its check, the ledger is another site's or another key's, or it has no entry
                where it must have some.
            LedgerUnavailable: the file cannot be opened or written.
        """
        ledger = cls(EntryStore(path, is_new=is_new), signer, site, keyring)
        try:
            ledger._start(is_new)
        except BaseException:
            ledger.close()
            raise
        return ledger

    @classmethod
    def restore(
        cls,
        path: Path,
        entries: Iterable[Entry],
        signer: Ed25519PrivateKey,
        site: str,
        *,
        noting: Callable[[list[tuple[str, int]]], None] = lambda rounds: None,
        keyring: Keyring = _no_other,
    ) -> tuple[int, int]:
        """Puts a whole ledger, kept elsewhere, at `path`, where there is none or the beginning of the very same one.

        What is there stays; what `entries` hold beyond it is added, all of it or, if an error is raised, nothing.

        Args:
            noting: is called with `open_rounds` of the whole ledger once every entry is verified, before any of them is
                there for others; what it raises undoes the restoration.
            keyring: as of `open`.

        Returns:
            How many entries were added, and how many there are now.

        Raises:
            LedgerForked: the ledger at `path` goes on otherwise than `entries` do.
            LedgerBroken: an entry fails its check, or the entries are another site's or another key's.
            LedgerUnavailable: the file cannot be opened or written.
        """
        store, books, head, key, added = EntryStore(path), Books(), START, "", 0
        try:
            with store.write() as connection:
                own = store.load(connection, 0)
                for entry in entries:
                    if head == START:
                        key = chain.opened_by(entry)
                    head, key = chain.follow(head, [entry], key)
                    books.apply(entry)
                    if books.site != site:
                        raise LedgerBroken(f"entry 0 opens the ledger of site {books.site!r}, not of {site!r}")
                    known = next(own, None)
                    if known is None:
                        store.add(connection, entry)
                        added += 1
                    elif known.hash != entry.hash:
                        raise _forked(known, own)
                if head == START:
                    raise LedgerBroken("entry 0 is missing: there is nothing to restore")
                total = head.seq + 1
                for known in own:
                    books.apply(known)
                    total += 1
                if books.keys[-1] != canonical.public_hex(signer) and keyring(books.keys[-1]) is None:
                    raise _foreign(books)
                noting(books.open_rounds())
                return added, total
        finally:
            store.close()

    def close(self) -> None:
        """Closes the file; every entry was durable when the call that wrote it returned."""
        self._store.close()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def require_writable(self) -> None:
        """Raises LedgerUnavailable if no charge could be written just now; writes nothing."""
        self._store.require_writable()

    @property
    def head(self) -> Head:
        """The last entry's number and hash."""
        with self._reading():
            return self._head

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that have signed entries, hex, oldest first; the last one signs the next entry."""
        with self._reading():
            return self._books.keys

    @property
    def generation(self) -> int:
        """The generation of the last recovery; 0 if nothing was ever lost."""
        with self._reading():
            return self._books.generation

    def entries(self, since: int = 0, limit: int | None = None) -> list[Entry]:
        """The entries from number `since` on, at most `limit`."""
        with self._reading() as connection:
            return list(self._store.load(connection, since, limit))

    def walk(self) -> Iterator[Entry]:
        """All entries, read part by part."""
        seq = 0
        while part := self.entries(seq, _PART):
            yield from part
            seq += len(part)

    def budget(self, dataset: str, unit: str) -> Budget | None:
        """The cap in force, if one is set."""
        with self._reading():
            return self._books.budgets.get((dataset, unit))

    def accounts(self) -> list[tuple[str, str]]:
        """Every (dataset, unit) that has a budget or a charge."""
        with self._reading():
            return self._books.accounts()

    def releases(self, dataset: str, unit: str) -> Counter[Release]:
        """Counts the releases charged on one data set and unit, across studies."""
        with self._reading():
            return self._books.releases(dataset, unit)

    def recovery(self, dataset: str, unit: str) -> Recovery | None:
        """Finds what counts as spent on one data set and unit because entries were lost for good; None if none were."""
        with self._reading():
            return self._books.recoveries.get((dataset, unit))

    def yet_to_charge(self, planned: Sequence[tuple[Charge, int]]) -> Counter[Release]:
        """Counts the releases of whole runs that are not charged yet; runs are given as for `affordable`."""
        with self._reading():
            return self._yet(planned)

    def order(self, budget: Budget) -> int:
        """The order of the filter that keeps `budget`, which need not be in force yet: see `charges.Books.order`."""
        with self._reading():
            return self._books.order(budget)

    def spent(self, dataset: str, unit: str, colluding: int, delta: float) -> Spent:
        """The joint cost to one unit of all charges on one data set so far, across studies."""
        with self._reading():
            releases, order = self._books.releases(dataset, unit), self._books.order_in_force(dataset, unit)
            recovery = self._books.recoveries.get((dataset, unit))
        return charges.spent(releases, colluding=colluding, delta=delta, order=order, recovery=recovery)

    def standings(self) -> list[Standing]:
        """Computes the standing of every account against its cap."""
        with self._reading():
            return standings(self._books)

    def runs(self, dataset: str, unit: str) -> list[RunCharges]:
        """Counts the charges on one data set and unit by run, in the order of their first charges."""
        with self._reading():
            return self._books.runs(dataset, unit)

    def is_settled(self, run: str, round: int) -> bool:
        """True if the round's outcome is recorded, after which it must never be computed again."""
        with self._reading():
            booked = self._books.booked.get((run, round))
            return booked is not None and booked.summed is not None

    def is_open(self, run: str, round: int) -> bool:
        """True if the round is charged and its outcome not recorded yet."""
        with self._reading():
            booked = self._books.booked.get((run, round))
            return booked is not None and booked.summed is None

    def open_rounds(self) -> list[tuple[str, int]]:
        """Lists run and round of every charge whose outcome is not recorded yet."""
        with self._reading():
            return self._books.open_rounds()

    def set_budget(self, budget: Budget) -> None:
        """Puts `budget` in force for its data set and unit, from now on; what was spent stays spent."""
        with self._writing() as (_, append):
            if self._books.budgets.get((budget.dataset, budget.unit)) != budget:
                append("budget", canonical.to_record(budget))

    def succeed(self, succession: Succession, new: Ed25519PrivateKey) -> None:
        """Hands the ledger over to the key `new`, which signs from now on; a second time changes nothing.

        The entry has the succession's time, not the clock's: a home that was restored from before the handover makes
        the very entry that others hold already.

        Raises:
            LedgerBroken: the succession is of another key than the one that signs now, or does not hold.
        """
        with self._writing() as (_, append):
            if succession.new in self._books.keys:
                return
            body = hand_over(succession, new, self._head.hash)
            chain.key_after(append(SUCCESSION, body, succession.time), self._key)  # what it raises undoes the entry

    def recover(self, generation: int) -> list[Recovery]:
        """Closes every account that has a budget, because entries were lost for good: each counts as spent to its cap.

        Args:
            generation: seconds of Unix time; greater than the ledger's.

        Raises:
            ChargeConflict: it is not greater.
        """
        with self._writing() as (_, append):
            if generation <= self._books.generation:
                raise ChargeConflict(f"generation {generation} does not follow {self._books.generation}; set the clock")
            found = [Recovery(**asdict(kept), generation=generation) for _, kept in sorted(self._books.weakest.items())]
            for recovery in found:
                append("recover", canonical.to_record(recovery))
        return found

    def affordable(
        self,
        planned: Sequence[tuple[Charge, int]],
        *,
        held: Sequence[tuple[Charge, int]] = (),
        unprotected_allowed: bool = False,
    ) -> Quote:
        """Prices a whole run together with everything charged before.

        Rounds of a run that are charged already are not counted twice. Nothing is written.

        Args:
            planned: for each purpose a charge like those of the run, and how many of them a whole run has; all on one
                data set and unit.
            held: the same for other runs on that data set and unit that have begun and shall be able to end.
            unprotected_allowed: whether the site lets the run go without noise.

        Raises:
            BudgetExceeded: entries on them were lost for good.
            BudgetMissing: no budget is set for the data set and unit.
            UnprotectedRefused: a charge is unprotected and that was not allowed.
        """
        with self._reading():
            budget = self._payer(planned[0][0], unprotected_allowed)
            if budget is None:
                return Quote(cap=math.inf, guaranteed=math.inf, would_be=math.inf)
            self._refuse_closed(budget)
            yet = self._yet([*planned, *held])
            now, then = self._guaranteed(budget), self._guaranteed(budget, yet)
            return Quote(cap=budget.epsilon, guaranteed=now, would_be=then)

    def reserve(self, charge: Charge, *, unprotected_allowed: bool = False) -> Entry:
        """Charges a release before it happens; durable when this returns. A second call for the round changes nothing.

        A large cohort that no entry names yet gets one before the charge's, in the same transaction.

        Raises:
            BudgetExceeded: by the filter, at the budget's delta and collusion, over all charges on the account; or
                entries on it were lost for good.
            BudgetMissing: no budget is set for the data set and unit.
            ChargeConflict: the round was charged before with other contents.
            UnprotectedRefused: the charge is unprotected and that was not allowed.
        """
        with self._writing() as (connection, append):
            before = self._books.booked.get((charge.run, charge.round))
            if before is not None:
                if before.charge != charge:
                    raise ChargeConflict(
                        f"round {charge.round} of run {charge.run} was charged with other contents: entry {before.seq}"
                    )
                return next(self._store.load(connection, before.seq, limit=1))
            budget = self._payer(charge, unprotected_allowed)
            if budget is not None:
                self._refuse_closed(budget)
                would_be = self._guaranteed(budget, {charge.release: 1})
                if not would_be <= budget.epsilon:
                    raise _exceeded(budget, self._guaranteed(budget), would_be)
            if not charge.is_listed and digest(charge.cohort) not in self._books.named:
                append(COHORT, canonical.to_record(Cohort.of(charge.cohort)))
            return append("reserve", charge.body())

    def settle(self, run: str, round: int, summed: Sequence[str]) -> Entry:
        """Records which sites a round's opened sum held. A second call with the same set changes nothing.

        Raises:
            ChargeConflict: the round was never charged, was settled with another set, or the set is not of its cohort.
        """
        settlement = Settlement(run=run, round=round, summed=tuple(sorted(summed)))
        with self._writing() as (connection, append):
            booked = self._books.booked.get((run, round))
            if booked is not None and booked.settled_seq is not None and booked.summed == settlement.summed:
                return next(self._store.load(connection, booked.settled_seq, limit=1))
            try:
                charges.check_settlement(booked, settlement)
            except ValueError as err:
                raise ChargeConflict(str(err)) from err
            assert booked is not None
            return append("settle", settlement.body(booked.charge))

    def _payer(self, charge: Charge, unprotected_allowed: bool) -> Budget | None:
        """The budget that `charge` is to fit; None if it needs none because the site allows it unprotected."""
        if charge.is_unprotected:
            if not unprotected_allowed:
                raise UnprotectedRefused(
                    f"study {charge.study[:12]} asks for a release about {charge.dataset!r} without noise; "
                    "that needs the site's explicit consent"
                )
            return None
        budget = self._books.budgets.get((charge.dataset, charge.unit))
        if budget is None:
            raise BudgetMissing(f"no budget is set for data set {charge.dataset!r}, unit {charge.unit!r}")
        return budget

    def _yet(self, planned: Sequence[tuple[Charge, int]]) -> Counter[Release]:
        yet: Counter[Release] = Counter()
        for charge, count in planned:
            yet[charge.release] += max(0, count - self._books.charged(charge.run, charge.purpose))
        return yet

    def _guaranteed(self, budget: Budget, more: Mapping[Release, int] = MappingProxyType({})) -> float:
        """The epsilon that the filter shows for the budget's data set, and would show with `more`."""
        releases = self._books.releases(budget.dataset, budget.unit)
        releases.update(more)
        order = self._books.order(budget)
        recovery = self._books.recoveries.get((budget.dataset, budget.unit))
        return charges.guaranteed(
            releases, colluding=budget.collusion, delta=budget.delta, order=order, recovery=recovery
        )

    def _refuse_closed(self, budget: Budget) -> None:
        if (budget.dataset, budget.unit) in self._books.recoveries:
            raise BudgetExceeded(
                f"data set {budget.dataset!r}, unit {budget.unit!r}: entries of this ledger were lost for good, so it "
                "counts as spent up to its cap, and nothing more is charged on it",
                cap=budget.epsilon,
                guaranteed=self._guaranteed(budget),
                would_be=math.inf,
            )

    def _start(self, is_new: bool) -> None:
        with self._writing() as (_, append):
            if self._head == START:
                if not is_new:
                    raise LedgerBroken("entry 0 is missing: the file holds no entry")
                opening = charges.Opening(format=charges.FORMAT, site=self.site, public_key=self.public_key)
                append("open", canonical.to_record(opening))
        if self._books.site != self.site:
            raise LedgerBroken(f"entry 0 opens the ledger of site {self._books.site!r}, not of {self.site!r}")

    def _refresh(self, connection: sa.Connection) -> None:
        """Takes in what other processes added since the last look."""
        entries = self._store.load(connection, max(self._head.seq, 0))
        check = chain.check_links  # taking up its own ledger, a site need not check each of its own signatures
        if self._head != START:
            known = next(entries, None)
            if known is None or Head(known.seq, known.hash) != self._head:
                raise LedgerBroken(f"entry {self._head.seq} vanished or changed while the ledger was open")
            check = check_extension
        while part := list(islice(entries, _PART)):
            if self._head == START:
                self.public_key = self._key = chain.opened_by(part[0])
            check(self._head, part, self._key)
            for entry in part:
                self._book(entry)
        self._signer()

    def _book(self, entry: Entry) -> None:
        self._books.apply(entry)
        self._key = chain.key_after(entry, self._key)
        self._head = Head(entry.seq, entry.hash)

    def _signer(self) -> Ed25519PrivateKey:
        """Finds the key that signs the next entry. Raises LedgerBroken if the site has it not."""
        found = self._signers.get(self._key) or self._keyring(self._key)
        if found is None:
            raise _foreign(self._books)
        self._signers[self._key] = found
        return found

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with self._mutex, self._store.read() as connection:
            self._refresh(connection)
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[tuple[sa.Connection, Append]]:
        added: list[Entry] = []
        with self._mutex:
            with self._store.write() as connection:
                self._refresh(connection)

                def append(kind: str, body: Mapping[str, Any], time: str = "") -> Entry:
                    head = Head(added[-1].seq, added[-1].hash) if added else self._head
                    entry = chain.extend(head, self._signer(), time or chain.now(), kind, body)
                    self._store.add(connection, entry)
                    added.append(entry)
                    return entry

                yield connection, append
            for entry in added:  # committed, so it counts now
                self._book(entry)
                logger.debug("ledger entry %s: %s", entry.seq, entry.kind)


def _foreign(books: Books) -> LedgerBroken:
    """Makes the error for a ledger whose next entry this site cannot sign."""
    if len(books.keys) == 1:
        return chain.not_opened()
    return LedgerBroken(
        f"the ledger is signed by the key {books.keys[-1][:16]}... from its last succession on, which is not here"
    )


def _forked(known: Entry, rest: Iterator[Entry]) -> LedgerForked:
    where = f"entry {known.seq} of the ledger here is another than entry {known.seq} to be restored"
    if known.kind == "reserve" or any(entry.kind == "reserve" for entry in rest):
        return LedgerForked(
            f"{where}: both went on after entry {known.seq - 1}, so neither holds all that was charged. Nothing was "
            "changed; this site must not go on under this key"
        )
    return LedgerForked(
        f"{where}; from there on the one here holds no charge. Nothing was changed. Stop the daemon, move the ledger's "
        "files away, and restore again"
    )


def _exceeded(budget: Budget, guaranteed: float, would_be: float) -> BudgetExceeded:
    return BudgetExceeded(
        f"data set {budget.dataset!r}, unit {budget.unit!r}: the cap is epsilon {budget.epsilon:g} at delta "
        f"{budget.delta:g} with {budget.collusion} colluding; guaranteed so far is {rounded_up(guaranteed)}, with this "
        f"charge it would be {rounded_up(would_be)}",
        cap=budget.epsilon,
        guaranteed=guaranteed,
        would_be=would_be,
    )
