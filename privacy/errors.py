"""Errors of `privacy`.

PrivacyError
├── InvalidPrivacyParameter       a number out of its range
├── LedgerError
│   ├── LedgerBroken              an entry was changed, left out, moved or forged; names the entry
│   ├── LedgerUnavailable         the file cannot be opened, locked or written
│   ├── BudgetExceeded            the charge would pass the cap; nothing was written
│   ├── BudgetMissing             no budget is set for this data set and unit
│   ├── ChargeConflict            this round was charged or settled before, with other contents
│   ├── UnprotectedRefused        a release without noise, and the caller did not allow one
│   ├── LedgerFileInvalid         a ledger's file for keeping or moving it is cut short or malformed
│   └── LedgerForked              two ledgers of one site went on apart from each other
├── ReportInvalid                 a report does not follow the format or is too large
├── VerificationTooLong           to verify a report would take longer than the limit; says about how long
├── NotCheckable                  an accountant that is asked as a further witness has no answer; says why
└── StepError
    ├── UnprotectedGradient       a gradient would reach, or has reached, a parameter without being clipped
    ├── UnitsCoupled              one record's gradient depends on other records; names through what
    ├── TargetUnreached           the loss does not depend on a trained parameter
    ├── UnitRepeated              a unit was met in two microbatches of one step
    ├── ClipperMisused            microbatch, backward and clipping came in another order than they must
    ├── BatchMalformed            the records of a step do not fit together
    └── SourceRefused             randomness that can be repeated where protection is asked for
"""


class PrivacyError(Exception):
    """Base of every error that `privacy` raises."""


class InvalidPrivacyParameter(PrivacyError):
    """A number out of range that decides a guarantee."""


class LedgerError(PrivacyError):
    """Base of a ledger's refusals."""


class LedgerBroken(LedgerError):
    """An entry that was changed, left out, moved or forged; the message names the first bad one."""


class LedgerUnavailable(LedgerError):
    """A ledger file that cannot be opened, locked or written; nothing was charged."""


class BudgetExceeded(LedgerError):
    """A charge that would pass the cap. Nothing was written."""

    def __init__(self, message: str, *, cap: float, guaranteed: float, would_be: float) -> None:
        super().__init__(message)
        self.cap, self.guaranteed, self.would_be = cap, guaranteed, would_be


class BudgetMissing(LedgerError):
    """A data set and unit without a budget; nothing may be charged for them."""


class ChargeConflict(LedgerError):
    """A round that was charged or settled before with other contents, or was never charged."""


class UnprotectedRefused(LedgerError):
    """A release without noise that the caller did not allow."""


class LedgerFileInvalid(LedgerError):
    """A whole ledger's file that is missing, cut short, malformed or too large; the message names the line."""


class LedgerForked(LedgerError):
    """Two ledgers of one site and key that went on apart: neither holds all charges."""


class ReportInvalid(PrivacyError):
    """A report that breaks the format or is too large."""


class VerificationTooLong(PrivacyError):
    """A report whose verification would take longer than the limit; none of its figures was verified."""


class NotCheckable(PrivacyError):
    """An accountant that was asked as a further witness and has no answer, or none within a few seconds."""


class StepError(PrivacyError):
    """Base of the errors that stop a private training step; nothing was released."""


class UnprotectedGradient(StepError):
    """A trainable parameter out of the clipper's reach, or with a gradient that the clipper never saw."""


class UnitsCoupled(StepError):
    """A record's gradient that depends on other records of its batch, so that no bound on a unit would hold."""


class TargetUnreached(StepError):
    """A trained parameter that the loss does not depend on; it would take noise and learn nothing."""


class UnitRepeated(StepError):
    """A unit in two microbatches of one step; its clipped parts could add up to more than the bound."""


class ClipperMisused(StepError):
    """Microbatch, backward and clipping in a wrong order."""


class BatchMalformed(StepError):
    """Records, labels and units of a step that do not fit together; the message shows shapes, never entries."""


class SourceRefused(StepError):
    """Repeatable randomness where protection is asked for."""
