"""Errors of `mpc`.

MpcError
├── InvalidField       a parameter, name, key or context outside its range (also a ValueError)
├── NoRing             no ring holds the sum at the asked resolution (also a ValueError)
├── ShareMalformed     an opened payload or released share without the right layout
├── EnvelopeRejected   bytes of a site that are not its sealed share for this round
├── EnvelopeUnreadable a sealed share that lies at this aggregator cannot be read from its disk
├── FrameRejected      bytes between the aggregator and its party process break their schema
├── JournalBroken      the record of released sets cannot be read or written
├── RuntimeUnsound     CrypTen is not the version whose random numbers and links were replaced
├── PartyLost          another party is silent, gone or out of step (also a ConnectionError)
├── PartyDied          this aggregator's own party process ended
├── OrderMismatch      the three parties were given different orders
├── Equivocation       the parties were shown different messages of one site
├── CommitmentBroken   a party opened something else than it had committed to, or than at an earlier attempt
├── ChecksExhausted    a vector's norm check was broken off too often to be tried again
├── CohortTooSmall     fewer than `min_sites` sites reached all three parties
├── NormExceeded       sites shared too long vectors, and the others may not be summed as they are
├── TopUpMissing       the noise of a smaller set was not made up by every site of it
├── TotalForged        the opened total is not the sum that the sites' tags say
└── SetConflict        the round is bound to another set of sites

No message holds a share, seed or key.
"""


class MpcError(Exception):
    """Base of all errors of this folder.

    `names` are the sites the error is about: empty where the class says nothing else.
    """

    def __init__(self, message: str, names: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.names = names


class InvalidField(MpcError, ValueError):
    """A parameter, name, key or context is outside its range."""


class NoRing(MpcError, ValueError):
    """Neither 32 nor 64 bits hold the sum at the asked resolution."""


class ShareMalformed(MpcError):
    """An opened payload or released share has the wrong version, kind or length."""


class EnvelopeRejected(MpcError):
    """Bytes are not the sealed share of this site, party and round."""


class EnvelopeUnreadable(MpcError):
    """A file of this aggregator's own cannot be read; `names` is the site whose sealed share it holds."""


class FrameRejected(MpcError):
    """A message between an aggregator and its party process breaks its schema or size."""


class JournalBroken(MpcError):
    """The journal cannot be read, written or locked; nothing is released without it."""


class RuntimeUnsound(MpcError):
    """CrypTen is missing, changed, or asked for something that its replacement here refuses."""


class PartyLost(MpcError, ConnectionError):
    """Another party did not answer in time, closed its link or is out of step; the order may be repeated."""


class PartyDied(MpcError):
    """The party process of this aggregator ended; the next order starts a new one."""


class OrderMismatch(MpcError):
    """The three parties hold different orders or attempts of it."""


class Equivocation(MpcError):
    """The parties were shown different messages of the sites in `names`."""


class CommitmentBroken(MpcError):
    """A party opened something else than it had committed to, now or at an earlier attempt; nothing was released."""


class ChecksExhausted(MpcError):
    """A vector's norm check was broken off so often that a party must mean it; it is not tried again."""


class CohortTooSmall(MpcError):
    """Too few sites reached all three parties; `names` are those that did."""


class TopUpMissing(MpcError):
    """A sum over fewer sites than planned lacks a top-up; `names` are the sites of which nothing was missing."""


class NormExceeded(MpcError):
    """The vectors of the sites in `names` are too long, and those in `kept` may not be summed without more."""

    def __init__(self, message: str, names: tuple[str, ...] = (), kept: tuple[str, ...] = ()) -> None:
        super().__init__(message, names)
        self.kept = kept


class TotalForged(MpcError):
    """The opened total lacks the tags of its sites: a party added something else, or a site made wrong tags."""


class SetConflict(MpcError):
    """The round is bound to another set; `names` is the bound one, the only set that it may be repeated with."""

    @property
    def bound(self) -> tuple[str, ...]:
        """Names of the sites in the bound set."""
        return self.names
