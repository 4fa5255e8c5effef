"""Errors of the coordinator.

CoordinatorError
├── PkiMissing               certificates are missing from the home folder
├── InviteRefused            an invitation code admits no node
│   ├── InviteUnknown        never issued, or withdrawn
│   ├── InviteUsed           a node has enrolled with it already
│   └── InviteExpired        the code has expired
├── EnrolmentInvalid         the code is valid, but keys or names sent with it cannot be registered
├── SuperLinkFailed          Flower's server did not start, or refused an order
├── NotFound                 a site, study or run does not exist
├── Conflict                 the name is taken, or the state does not allow it
│   ├── AlreadyLed           another server leads the federation
│   └── TransitionRefused    the run's state does not allow the change
├── StudyRefused             this federation cannot run a study draft
├── AuditMissing             a claim of privacy has no audit
├── LeadLost                 another server has taken the federation over
├── LeaseLost                another driver has taken the run over
├── LeaseForgotten           the nodes know a newer lease of a run than the database
├── StateDamaged             a file is missing or was changed
├── StoreUnavailable         the database cannot be used just now: the disk is full, or another process holds it
├── MessageRefused           a node's answer is forged, stale or malformed
├── ReplicaBroken            a site's ledger entries do not continue those it sent before
├── TrailInvalid             a file is no exported audit log
├── AccessRefused            the command needs an operator's token, or another one
│   └── AttemptsExceeded     too many wrong tokens of late, so that none is looked at
├── DemoFailed               a process or command of the demo failed
├── RunStopped               an operator stopped the run
└── RunFailed                a run cannot continue by itself
    ├── RunRefused           a node refuses for a reason that only a person can change
    ├── SitesMissing         too few nodes answered for too long
    └── AggregationFailed    the aggregators did not release a total
        └── TotalRefused     the released total does not match the tags of its sites
"""


class CoordinatorError(Exception):
    """Base of all errors of this package."""


class PkiMissing(CoordinatorError):
    """Certificates that are missing from the home folder, all or some of them."""


class InviteRefused(CoordinatorError):
    """An invitation code that admits no node. `reason` is the one word that the node is told."""

    reason = "refused"


class InviteUnknown(InviteRefused):
    """An invitation code whose secret was never issued, or was withdrawn."""

    reason = "unknown"


class InviteUsed(InviteRefused):
    """An invitation code with which a node has enrolled already; a code works once."""

    reason = "used"


class InviteExpired(InviteRefused):
    """An invitation code that has expired."""

    reason = "expired"


class EnrolmentInvalid(CoordinatorError):
    """Keys or names that cannot be registered, sent with a valid code; the node is told the message."""


class SuperLinkFailed(CoordinatorError):
    """A failure of Flower's server: it did not start, ended, or refused an order."""


class NotFound(CoordinatorError):
    """A site, study or run that does not exist."""


class Conflict(CoordinatorError):
    """A name that is taken, or a request that the present state does not allow."""


class AlreadyLed(Conflict):
    """A federation that another server leads."""


class TransitionRefused(Conflict):
    """A change that the run's present `state` does not allow."""

    def __init__(self, run_id: str, state: str, refusal: str) -> None:
        super().__init__(f"run {run_id} is {state}, {refusal}")
        self.state = state


class StudyRefused(CoordinatorError):
    """A study draft that this federation cannot run as it stands."""


class AuditMissing(CoordinatorError):
    """A claim of privacy for a run without an audit of its last round; nothing was written."""


class LeadLost(CoordinatorError):
    """A federation that another server has taken over, as this one was silent."""


class LeaseLost(CoordinatorError):
    """A run that another driver has taken over; nothing of this driver was written."""


class LeaseForgotten(CoordinatorError):
    """A lease that nodes take for a replaced driver's, although the database has no newer one."""


class StateDamaged(CoordinatorError):
    """A file of the federation that is missing or was changed."""


class StoreUnavailable(CoordinatorError):
    """A database that cannot be used just now; what is committed stays, and trying again may help."""


class MessageRefused(CoordinatorError):
    """A node's answer that is forged, stale or malformed."""


class ReplicaBroken(CoordinatorError):
    """Ledger entries of a site that do not continue those that it sent before."""


class TrailInvalid(CoordinatorError):
    """A file that is no exported audit log."""


class AccessRefused(CoordinatorError):
    """A command without a token of an operator whose role it takes; nothing was done."""


class AttemptsExceeded(AccessRefused):
    """A token that was not looked at, because too many were wrong of late. `wait_s` is when to try again."""

    def __init__(self, wait_s: float) -> None:
        self.wait_s = max(1.0, wait_s)
        super().__init__(f"too many wrong tokens; try again in {self.wait_s:.0f} s")


class DemoFailed(CoordinatorError):
    """A process or command of the demo that failed; its log says why."""


class RunStopped(CoordinatorError):
    """A run that an operator stopped; what is committed stays."""


class RunFailed(CoordinatorError):
    """A run that cannot continue by itself; what is committed stays."""


class RunRefused(RunFailed):
    """A refusal by a node, for a reason that only a person can change."""


class SitesMissing(RunFailed):
    """Too few answering nodes, for too long."""


class AggregationFailed(RunFailed):
    """A total that the aggregators did not release."""


class TotalRefused(AggregationFailed):
    """A released total that does not match the tags of its sites; asking again gives the same total."""
