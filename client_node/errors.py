"""Errors of a site.

ClientNodeError
├── SettingsInvalid          a TOML file or message breaks its schema
│   ├── StudyInvalid         study.toml, or a study from the network
│   ├── DictionaryInvalid    a data dictionary that a study.toml is made from
│   └── PolicyInvalid        site.toml or decisions.json
├── StudyNotApproved         the site's policy does not name the study
├── StudyUnknown             no study of that name or hash has reached this site
├── StudyOutdated            a study of an earlier version, which states no start
├── SiteNotConfirmed         an aggregator's people have not confirmed a site's key
├── PartnerRefused           a backbone, site or aggregator that the policy does not allow, or a key that was replaced
├── SiteAway                 outside the hours of the node's policy, or after its rounds or bytes of the day
├── SecondPersonMissing      a decision that waits for a second person
├── ApprovalRefused          the study fails the site's own checks, or is not named by its whole hash
├── NotAgreed                a person said no
├── DataInvalid              the site's table does not fit the study
├── ArchiveRefused           a folder, an index or a question that cannot be searched
├── IdentityMissing          no (or no complete) set of keys in the home folder
├── KeysSealed               a home whose keys are sealed, and no passphrase for them, or another one
├── TokenUnusable            a PKCS#11 token, its module or a key in it cannot be used, or not in this way
├── EnrolmentFailed          this node could not join the federation
│   ├── CodeInvalid          the invitation code is damaged or unknown
│   ├── CodeUsed             a node has enrolled with the code already
│   ├── CodeExpired          the code has expired
│   ├── WrongCoordinator     the answer is not from the coordinator that issued the code
│   └── AlreadyEnrolled      this home belongs to a federation already
├── NotEnrolled              no enrolment in the home folder
├── CoordinatorUnreachable   nobody answers at the coordinator's address
├── CoordinatorRefused       the coordinator refuses this node
├── StatementRefused         a statement about the coordinator's CA that this node does not take
├── KeyNotFollowed           a new signing key of the coordinator that does not follow from the known one
├── ProxyInvalid             a setting that names no HTTP proxy
├── VersionRefused           this node and the coordinator have no protocol in common
├── FlowerUnsupported        Flower is installed in a version that this package does not know
├── PacketInvalid            a message that breaks the transport's limits
├── MessageInvalid           a message that is malformed, unsigned or makes no sense
├── StaleLease               a message from a driver that was replaced
├── RunEnded                 the run is over at this node
├── ShareMissing             an order names a sealed share that is not here (any more)
├── LedgerOutdated           an aggregator knows a newer ledger of a site than the one it sealed by
├── DiskFull                 no room on a node's disk
├── NoRoom                   states of records that do not fit where they would be kept
├── ChargeRefused            the ledger refuses the charge
├── StepFailed               a step failed after its charge; the reason stays at the site
├── SetFixed                 the site has added noise for a sum over other sites
├── RoundOver                the round is settled and never computed again
├── SiteNotReady             the site's policy, data or files cannot be used
├── FileDamaged              a file of this node's own is empty, cut short, changed or unreadable
├── UnitsKnown               people in the site's table are known under another account of its ledger
├── NothingHeldOut           the site has no held-out records for an evaluation
├── NothingToAudit           there is no private step of this site in the study
├── WorkersFailed            a worker process ended, or could not start
├── InvalidOptimizer         an optimizer setting is out of range, or a step is unusable (also a ValueError)
├── SiteBehind               a site that lacks totals of earlier rounds; they are sent again
├── StateRefused             a start, total or state that does not follow from the study and its signed totals
├── CheckpointDamaged        a file is no checkpoint
├── BackupInvalid            no whole backup, or no place to write or restore one
├── AlreadyRunning           another daemon holds the home folder
├── MonitorUnavailable       the port of the monitor cannot be opened, or nobody answers there
├── PageUnavailable          the page cannot be served at that place
└── ModelUnusable            the backbone here is not the study's
"""


class ClientNodeError(Exception):
    """Base of all errors of this package.

    `public` is true if the message may leave the site: only text that depends on no record may.
    """

    public: bool = False


class SettingsInvalid(ClientNodeError):
    """A file or message that breaks its schema; `problems` has one line for each problem, `more` counts others."""

    def __init__(self, source: str, problems: "tuple[str, ...]", more: int = 0) -> None:
        self.source, self.problems, self.more = source, problems, more
        count = "1 problem" if len(problems) + more == 1 else f"{len(problems) + more:,} problems"
        told = [*problems, *([f"and {more:,} more"] if more else [])]
        super().__init__("\n".join([f"{source}: {count}", *(f"  {problem}" for problem in told)]))


class StudyInvalid(SettingsInvalid):
    """A study.toml, or a study from the network, that is invalid and cannot be run."""


class DictionaryInvalid(SettingsInvalid):
    """A data dictionary that describes no table."""


class PolicyInvalid(SettingsInvalid):
    """A site.toml or decisions.json that is no valid policy; nothing is permitted until it is."""


class StudyNotApproved(ClientNodeError):
    """A study that the site's policy does not approve, or not for this use."""

    public = True


class StudyUnknown(ClientNodeError):
    """An unknown study: none of that name or hash has reached this site."""


class StudyOutdated(ClientNodeError):
    """A study of an earlier version that does not state the start of its runs; it can be read and no longer run."""

    public = True


class SiteNotConfirmed(ClientNodeError):
    """A site whose key this aggregator's people have not confirmed; its updates are not added."""

    public = True


class PartnerRefused(ClientNodeError):
    """A study whose backbone, site or aggregator the policy does not allow, or that gives a known name another key."""

    public = True


class SiteAway(ClientNodeError):
    """A node that is away by its own schedule; it answers again by itself, at the time that the message names."""

    public = True


class SecondPersonMissing(ClientNodeError):
    """A decision that waits for a second person, with another login of the operating system; nothing holds yet."""


class ApprovalRefused(ClientNodeError):
    """A study that fails the site's own checks, or is not named by its whole hash.

    The reason may depend on records and stays at the site.
    """


class NotAgreed(ClientNodeError):
    """A decision that a person was asked for and did not agree to."""


class ArchiveRefused(ClientNodeError):
    """A folder, an index or a question that cannot be searched."""


class DataInvalid(ClientNodeError):
    """A table that does not fit the study. The message gives the place and kind of each problem, never a value."""

    def __init__(self, source: str, problems: "tuple[object, ...]", count: int | None = None) -> None:
        self.problems = problems
        self.count = len(problems) if count is None else count
        shown = [f"{source}: {self.count} problem{'' if self.count == 1 else 's'}", *(f"  {each}" for each in problems)]
        if self.count > len(problems):
            shown.append(f"  ... and {self.count - len(problems)} more")
        super().__init__("\n".join(shown))


class IdentityMissing(ClientNodeError):
    """Keys that are missing from the home folder, incomplete, or readable by others."""


class KeysSealed(ClientNodeError):
    """A home whose keys are sealed with a passphrase that this process is not given, or with another one."""


class TokenUnusable(ClientNodeError):
    """A PKCS#11 token, its module or a key in it that cannot be used, or not in this way."""


class EnrolmentFailed(ClientNodeError):
    """A failed enrolment: this node could not join the federation."""


class CodeInvalid(EnrolmentFailed):
    """An invitation code that is damaged, or unknown to the coordinator."""


class CodeUsed(EnrolmentFailed):
    """An invitation code with which a node has enrolled already; a code works once."""


class CodeExpired(EnrolmentFailed):
    """An invitation code that has expired."""


class WrongCoordinator(EnrolmentFailed):
    """An answer at the code's address that is not from the coordinator that issued the code."""


class AlreadyEnrolled(EnrolmentFailed):
    """A home folder that belongs to a federation already."""


class NotEnrolled(ClientNodeError):
    """A home folder without an enrolment."""


class CoordinatorUnreachable(ClientNodeError):
    """No answer at the coordinator's address."""


class CoordinatorRefused(ClientNodeError):
    """A refusal by the coordinator: this node's key is unknown there, or was revoked."""


class CallUnknown(CoordinatorRefused):
    """A request that the coordinator's version does not know."""


class StatementRefused(ClientNodeError):
    """A statement about the coordinator's CA that this node does not take; what it trusts is as before."""


class KeyNotFollowed(ClientNodeError):
    """A signing key of the coordinator that does not follow from the one that this node knows; it goes on with that."""


class ProxyInvalid(ClientNodeError, ValueError):
    """A setting that names no HTTP proxy; the message never repeats it, as it may hold a password."""


class VersionRefused(ClientNodeError):
    """A coordinator whose version has no protocol in common with this node's; the message says which to upgrade."""


class FlowerUnsupported(ClientNodeError):
    """Flower of another minor version than the one whose private modules this package was written for."""


class PacketInvalid(ClientNodeError):
    """A packet that breaks the transport's limits or form."""

    public = True


class MessageInvalid(ClientNodeError):
    """A message that is malformed, unsigned or too large, or that does not fit the study."""

    public = True


class StaleLease(ClientNodeError):
    """A message from a driver that another one has replaced."""

    public = True


class RunEnded(ClientNodeError):
    """A run that is over at this node; its keys are deleted."""

    public = True


class ShareMissing(ClientNodeError):
    """A sealed share that an order names, but that was never deposited or was lost; deposit it and ask again."""

    public = True


class LedgerOutdated(ClientNodeError):
    """Updates that no ledger explains which goes on from what this aggregator has seen of the site's.

    `seen` are these sites, each with the number of entries that its ledger was seen to have.
    """

    public = True

    def __init__(self, message: str, seen: "dict[str, int]") -> None:
        super().__init__(message)
        self.seen = seen


class DiskFull(ClientNodeError):
    """A node without room on its disk; its operator must free some, and then it goes on."""

    public = True


class NoRoom(ClientNodeError):
    """States of records that do not fit where they would be kept; steps compute them instead."""


class ChargeRefused(ClientNodeError):
    """A charge that the ledger refuses; nothing was computed and no record was read."""

    public = True


class ModelUnusable(ClientNodeError):
    """A backbone in the site's folder that is missing, or is not the one that the study names."""

    public = True


class SetFixed(ClientNodeError):
    """A top-up for a second set of sites: the site has added its noise for one set, and adds none for another."""

    public = True


class RoundOver(ClientNodeError):
    """A round that is settled at this node; it is never computed again."""

    public = True


class StepFailed(ClientNodeError):
    """A step that failed after its charge. The message is always the same: the reason may depend on records."""

    public = True


class SiteNotReady(ClientNodeError):
    """A site whose own files do not allow the study to run; the reason stays in the site's log."""

    public = True


class FileDamaged(ClientNodeError):
    """A file of this node's own that cannot be used. The message names it, and says what is lost and what to do.

    It stays at the node: a coordinator is told `SiteNotReady`.
    """


class UnitsKnown(ClientNodeError):
    """A table whose people are known under another account; the message counts records and stays at the site."""


class NothingToAudit(ClientNodeError):
    """A study whose step cannot be audited here: it is not private, not this site's, or there is no record."""


class NothingHeldOut(ClientNodeError):
    """A policy without held-out records, so the site takes no part in the evaluation."""

    public = True


class WorkersFailed(ClientNodeError):
    """A worker process that ended, or could not start; all workers are then ended."""


class InvalidOptimizer(ClientNodeError, ValueError):
    """An optimizer setting out of range, or a step of the wrong shape or with values that are not finite."""


class SiteBehind(ClientNodeError):
    """A site that was away and has not taken the totals of all earlier rounds yet."""

    public = True


class StateRefused(ClientNodeError):
    """A start, a total or a state that does not follow from the study and the totals that its aggregators signed."""

    public = True


class CheckpointDamaged(ClientNodeError):
    """A file that is no checkpoint, or not all of one."""


class BackupInvalid(ClientNodeError):
    """A backup that is not whole or not of this kind, or a place that cannot take one; nothing half-done is left."""


class AlreadyRunning(ClientNodeError):
    """A second daemon for one home folder."""


class MonitorUnavailable(ClientNodeError):
    """A port of this machine at which no monitor can be opened, or none answers."""


class PageUnavailable(ClientNodeError):
    """A page that cannot be served: at its address, or in time."""


FINAL_REFUSALS = frozenset(
    error.__name__
    for error in (
        StudyNotApproved,
        StudyUnknown,
        StudyOutdated,
        SiteNotConfirmed,
        PartnerRefused,
        ChargeRefused,
        ModelUnusable,
        RunEnded,
        SetFixed,
        StateRefused,
        RoundOver,
        SiteNotReady,
        NothingHeldOut,
    )
)
"""Names of refusals that asking again does not change: a person has to act."""
