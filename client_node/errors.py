"""What can go wrong at a site.

ClientNodeError
├── SettingsInvalid          a TOML file says something that cannot be
│   ├── StudyInvalid         study.toml, or a study from the network
│   └── PolicyInvalid        site.toml or decisions.json
├── StudyNotApproved         the site's policy does not name the study
├── StudyUnknown             no study of that name or hash has reached this site
├── SiteNotConfirmed         an aggregator's people have not confirmed a site's key
├── ApprovalRefused          the site's own checks speak against the study
├── DataInvalid              the site's table does not fit the study
├── IdentityMissing          no (or no complete) set of keys in the home folder
├── EnrolmentFailed          this node could not join the federation
│   ├── CodeInvalid          the invitation code is not one, or was refused as unknown
│   ├── CodeUsed             somebody has enrolled with it
│   ├── CodeExpired          too late
│   ├── WrongCoordinator     whoever answers is not the coordinator that issued the code
│   └── AlreadyEnrolled      this home belongs to a federation already
├── NotEnrolled              no enrolment in the home folder
├── CoordinatorUnreachable   nobody answers at the coordinator's address
├── CoordinatorRefused       the coordinator answers, and says no to this node
├── PacketInvalid            a message that breaks the transport's limits
├── MessageInvalid           a message that is malformed, unsigned or makes no sense
├── StaleLease               a message from a driver that was replaced
├── RunEnded                 the run is over at this node
├── ShareMissing             an order names a sealed share that is not here (any more)
├── DiskFull                 no room for the sealed shares of a round
├── ChargeRefused            the ledger refuses the charge
├── StepFailed               a step failed after its charge; why stays at the site
├── SetFixed                 the site has added noise for a sum over other sites
├── RoundOver                the round is settled and never computed again
├── SiteNotReady             the site's policy or data cannot be used
├── NothingHeldOut           the site holds no records out for an evaluation
├── WorkersFailed            a process that computes for the site ended, or could not begin
├── AlreadyRunning           another daemon holds the home folder
└── ModelUnusable            the backbone here is not the study's
"""


class ClientNodeError(Exception):
    """Base of all errors of this package.

    `public` says whether the message may leave the site: only for text that no record had a part in.
    """

    public: bool = False


class SettingsInvalid(ClientNodeError):
    """A file or message that breaks its schema; `problems` holds one line each, all of them."""

    def __init__(self, source: str, problems: "tuple[str, ...]") -> None:
        self.source = source
        self.problems = problems
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n".join([f"{source}: {count}", *(f"  {problem}" for problem in problems)]))


class StudyInvalid(SettingsInvalid):
    """study.toml, or a study that came over the network, is not one that can be run."""


class PolicyInvalid(SettingsInvalid):
    """site.toml or decisions.json does not state a policy; nothing is permitted until it does."""


class StudyNotApproved(ClientNodeError):
    """The site's policy does not name the study, or not for this use."""

    public = True


class StudyUnknown(ClientNodeError):
    """No study of that name or hash has reached this site."""


class SiteNotConfirmed(ClientNodeError):
    """This aggregator adds no update of a site whose key its people have not confirmed."""

    public = True


class ApprovalRefused(ClientNodeError):
    """The site's own checks speak against approving a study; the reason may depend on records and stays here."""


class DataInvalid(ClientNodeError):
    """The site's table does not fit the study. The message says where and what kind, never a value."""

    def __init__(self, source: str, problems: "tuple[object, ...]", count: int | None = None) -> None:
        self.problems = problems
        self.count = len(problems) if count is None else count
        shown = [f"{source}: {self.count} problem{'' if self.count == 1 else 's'}", *(f"  {each}" for each in problems)]
        if self.count > len(problems):
            shown.append(f"  ... and {self.count - len(problems)} more")
        super().__init__("\n".join(shown))


class IdentityMissing(ClientNodeError):
    """The home folder holds no keys, or not all of them, or keys that others can read."""


class EnrolmentFailed(ClientNodeError):
    """This node could not join the federation."""


class CodeInvalid(EnrolmentFailed):
    """The invitation code is damaged, or the coordinator does not know it."""


class CodeUsed(EnrolmentFailed):
    """A node has enrolled with this code already; a code works once."""


class CodeExpired(EnrolmentFailed):
    """The code's time is over."""


class WrongCoordinator(EnrolmentFailed):
    """Whoever answers at the code's address is not the coordinator that issued the code."""


class AlreadyEnrolled(EnrolmentFailed):
    """This home folder belongs to a federation already."""


class NotEnrolled(ClientNodeError):
    """The home folder holds no enrolment."""


class CoordinatorUnreachable(ClientNodeError):
    """Nobody answers at the coordinator's address."""


class CoordinatorRefused(ClientNodeError):
    """The coordinator answers, and says no to this node: its key is unknown there, or was revoked."""


class PacketInvalid(ClientNodeError):
    """A message that breaks the transport's limits or form."""

    public = True


class MessageInvalid(ClientNodeError):
    """A message that is malformed, unsigned, too large, or makes no sense for the study."""

    public = True


class StaleLease(ClientNodeError):
    """A message from a driver that another one has replaced."""

    public = True


class RunEnded(ClientNodeError):
    """The run is over at this node; its keys are gone."""

    public = True


class ShareMissing(ClientNodeError):
    """An order names a sealed share that was not brought here, or was lost since; bring it and ask again."""

    public = True


class DiskFull(ClientNodeError):
    """An aggregator has no room for the sealed shares of a round; its operator has to make some."""

    public = True


class ChargeRefused(ClientNodeError):
    """The ledger refuses the charge, so nothing was computed and no record was read."""

    public = True


class ModelUnusable(ClientNodeError):
    """The backbone in the site's folder is not the one that the study names, or is missing."""

    public = True


class SetFixed(ClientNodeError):
    """The site has added its noise for a sum over one set of sites, and adds none for a sum over others."""

    public = True


class RoundOver(ClientNodeError):
    """The round is settled here: it is never computed again."""

    public = True


class StepFailed(ClientNodeError):
    """A step failed after its charge. The message is the same whatever happened: the reason may depend on records."""

    public = True


class SiteNotReady(ClientNodeError):
    """The site's own files do not allow the study to run; what is wrong with them stays in the site's log."""

    public = True


class NothingHeldOut(ClientNodeError):
    """The site's policy names no held-out records, so it takes no part in the evaluation."""

    public = True


class WorkersFailed(ClientNodeError):
    """A process that computes for the site ended, or could not begin; then all of them are ended."""


class AlreadyRunning(ClientNodeError):
    """Another daemon holds the home folder."""


FINAL_REFUSALS = frozenset(
    error.__name__
    for error in (
        StudyNotApproved,
        StudyUnknown,
        SiteNotConfirmed,
        ChargeRefused,
        ModelUnusable,
        RunEnded,
        SetFixed,
        RoundOver,
        SiteNotReady,
        NothingHeldOut,
    )
)
"""Names of refusals that asking again does not change: a person has to act."""
