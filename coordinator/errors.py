"""What can go wrong at the coordinator.

CoordinatorError
├── PkiMissing               this home holds no certificates yet, or not all of them
├── InviteRefused            an invitation code that admits nobody
│   ├── InviteUnknown        never issued, or withdrawn
│   ├── InviteUsed           somebody has enrolled with it
│   └── InviteExpired        too late
├── EnrolmentInvalid         the code was good, the keys or names sent with it are not
├── SuperLinkFailed          Flower's server did not start, or refused an order
├── NotFound                 no site, study or run of that name
├── Conflict                 the name is taken, or the state does not allow it
│   └── TransitionRefused    a run is in no state that may be changed so
├── StudyRefused             a study draft that this federation cannot run
├── AuditMissing             a claim of privacy that no audit stands for
├── LeaseLost                another driver has taken the run over
├── StateDamaged             a file is missing, or is not the one that was written
├── MessageRefused           a node's answer that is forged, stale or malformed
├── ReplicaBroken            a site's ledger entries do not continue what it sent before
├── DemoFailed               a process or command of the demo failed
├── RunStopped               an operator stopped the run
└── RunFailed                a run that cannot go on by itself
    ├── RunRefused           a node refuses for a reason that only a person can change
    ├── SitesMissing         too few nodes answered for too long
    └── AggregationFailed    the aggregators did not release a total
"""


class CoordinatorError(Exception):
    """Base of all errors of this package."""


class PkiMissing(CoordinatorError):
    """The home folder holds no certificates, or only some of them."""


class InviteRefused(CoordinatorError):
    """The invitation code admits nobody. `reason` is the one word that the other side is told."""

    reason = "refused"


class InviteUnknown(InviteRefused):
    """No invitation with this secret was ever issued, or it was withdrawn."""

    reason = "unknown"


class InviteUsed(InviteRefused):
    """A node has enrolled with this code already; a code works once."""

    reason = "used"


class InviteExpired(InviteRefused):
    """The code's time is over."""

    reason = "expired"


class EnrolmentInvalid(CoordinatorError):
    """The invitation is good, but what came with it cannot be registered; the message is told to the other side."""


class SuperLinkFailed(CoordinatorError):
    """Flower's server did not start, went away, or refused an order."""


class NotFound(CoordinatorError):
    """There is no site, study or run of that name."""


class Conflict(CoordinatorError):
    """The name is taken, or the thing is in a state that does not allow what was asked."""


class TransitionRefused(Conflict):
    """The run is in no state that may be changed so; `state` is what it is now."""

    def __init__(self, run_id: str, state: str, refusal: str) -> None:
        super().__init__(f"run {run_id} is {state}, {refusal}")
        self.state = state


class StudyRefused(CoordinatorError):
    """A study draft that this federation cannot run as it stands."""


class AuditMissing(CoordinatorError):
    """The run claims privacy, and no audit of its last round stands for the claim; nothing was written."""


class LeaseLost(CoordinatorError):
    """Another driver has taken the run over; nothing of this one was written."""


class StateDamaged(CoordinatorError):
    """A file of the federation is missing, or is not the one that was written."""


class MessageRefused(CoordinatorError):
    """A node's answer is forged, stale or malformed."""


class ReplicaBroken(CoordinatorError):
    """A site's ledger entries do not continue the ones it sent before."""


class DemoFailed(CoordinatorError):
    """A process or command of the demo failed; its log says why."""


class RunStopped(CoordinatorError):
    """An operator stopped the run; what is committed stays."""


class RunFailed(CoordinatorError):
    """A run that cannot go on by itself; what is committed stays."""


class RunRefused(RunFailed):
    """A node refuses for a reason that only a person can change."""


class SitesMissing(RunFailed):
    """Too few nodes answered for too long."""


class AggregationFailed(RunFailed):
    """The aggregators did not release a total."""


class TotalRefused(AggregationFailed):
    """The total that the aggregators released has not the tags of its sites; asking again gives the same one."""


class InvalidOptimizer(CoordinatorError, ValueError):
    """Optimizer settings are out of range, or a step has the wrong shape or is not finite."""
