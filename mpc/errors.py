"""Errors of `mpc`.

MpcError
├── InvalidField       a parameter, name, key or context outside its range (also a ValueError)
├── NoRing             no ring holds the sum at the asked resolution (also a ValueError)
├── ShareMalformed     an opened payload, a total or a share of tags without the right layout
├── EnvelopeRejected   bytes of a site that are not its sealed share for this round
├── EnvelopeUnreadable a sealed share that lies at this aggregator cannot be read from its disk
├── FrameRejected      bytes between the aggregator and its party process break their schema
├── JournalBroken      the record of released sets cannot be read or written
├── RuntimeUnsound     CrypTen is not the version whose random numbers and links were replaced
├── PartyLost          another party is silent, gone or out of step (also a ConnectionError)
│   └── CheckBroken    the same after a norm check had begun, which counts as a try of it
├── VersionsApart      the three parties run versions that have no protocol in common
├── PartyDied          this aggregator's own party process, or one of its shards, ended
├── OrderMismatch      the three parties were given different orders
├── Equivocation       the parties were shown different messages of one site
├── CommitmentBroken   a party opened something else than it had committed to, or than at an earlier attempt
├── TransferRejected   oblivious transfers between two parties failed their check
├── ChecksExhausted    a vector's norm check was broken off too often to be tried again
├── CohortTooSmall     fewer than `min_sites` sites reached all three parties
├── NormExceeded       sites shared too long vectors, and the others may not be summed as they are
├── TopUpMissing       the noise of a smaller set was not made up by every site of it
├── TotalForged        the opened total is not the sum that the sites' tags say
├── TotalConflict      the three have different totals of one set, or the round is bound to another total
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
    """A parameter, name, key or context out of range."""


class NoRing(MpcError, ValueError):
    """A sum that neither 32 nor 64 bits hold at the asked resolution."""


class ShareMalformed(MpcError):
    """An opened payload, a total or a share of tags with the wrong version, kind or length."""


class EnvelopeRejected(MpcError):
    """Bytes that are not the sealed share of this site, party and round."""


class EnvelopeUnreadable(MpcError):
    """An unreadable file of this aggregator's own; `names` is the site whose sealed share it holds."""


class FrameRejected(MpcError):
    """A message between an aggregator and its party process that breaks its schema or size."""


class JournalBroken(MpcError):
    """A journal that cannot be read, written or locked; nothing is released without it."""


class RuntimeUnsound(MpcError):
    """A CrypTen that is missing or changed, or a call that its replacement here refuses."""


class PartyLost(MpcError, ConnectionError):
    """A party that did not answer in time, closed its link or is out of step; the order may be repeated."""


class CheckBroken(PartyLost):
    """A party that was lost after the norm check of an order had begun; it may be tried a few times more."""


class VersionsApart(MpcError):
    """Versions of confide at the three parties that have no protocol in common; nothing was ordered."""


class PartyDied(MpcError):
    """This aggregator's own party process, or a shard's, which ended; the next order starts a new one."""


class OrderMismatch(MpcError):
    """Three parties with different orders, or different attempts of one order."""


class Equivocation(MpcError):
    """Different messages of the sites in `names`, shown to different parties."""


class CommitmentBroken(MpcError):
    """An opening that differs from its commitment, now or at an earlier attempt; nothing was released."""


class TransferRejected(MpcError):
    """Oblivious transfers that failed their check: one of two parties does not keep to the protocol, or is made to."""


class ChecksExhausted(MpcError):
    """A norm check that was broken off so often that a party must mean it; it is not tried again."""


class CohortTooSmall(MpcError):
    """Too few sites whose shares reached all three parties; `names` are those sites."""


class TopUpMissing(MpcError):
    """A sum over fewer sites than planned that lacks a top-up; `names` are the sites that lack nothing."""


class NormExceeded(MpcError):
    """Vectors that are too long, of the sites in `names`; those in `kept` may not be summed without top-ups."""

    def __init__(self, message: str, names: tuple[str, ...] = (), kept: tuple[str, ...] = ()) -> None:
        super().__init__(message, names)
        self.kept = kept


class TotalForged(MpcError):
    """An opened total that does not match the tags of its sites: a party added something else, or a tag is wrong."""


class TotalConflict(MpcError):
    """Different totals of one set, now or at an earlier attempt: a party gave false shares; none is given out."""


class SetConflict(MpcError):
    """A round that is bound to another set; `names` is the bound one, the only set that may be repeated."""

    @property
    def bound(self) -> tuple[str, ...]:
        """Names of the sites in the bound set."""
        return self.names
