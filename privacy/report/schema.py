"""The budget report as JSON: its schema, with size limits, for whoever writes or reads one.

Real numbers are decimal text that reads back to the same double ("6.7701724141811885"), and "inf" where there is no
guarantee; so a reader never has to print a number to check the signature. The entries inside are a ledger's own lines.
"""

import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    ValidationError,
)

from ..accounting.composition import LEAST_MULTIPLIER, MOST_MULTIPLIER
from ..errors import ReportInvalid
from ..ledger.chain import Entry, Hex64, Hex128, Time
from ..ledger.tally import Purpose

FORMAT: Literal["confide-budget-report-3"] = "confide-budget-report-3"
EARLIER = ("confide-budget-report-1", "confide-budget-report-2")
SIGNATURE_DOMAIN = "confide budget report 3"
MAX_BYTES = 64 << 20  # of a report file
MAX_SITES = 1_000
MAX_ENTRIES = 100_000  # of one ledger
MAX_STUDIES = 1_000
MAX_STUDY = 1 << 20  # characters of a study's text
MAX_CANARIES = 100_000  # of one audit: whoever verifies it sums over its guesses
MAX_TESTS = 1_000  # audits, and attacks


_DECIMAL = re.compile(r"\d{1,20}(\.\d{1,20})?(e[+-]\d{2,3})?|inf")


def _read_real(value: object) -> object:
    if isinstance(value, str):
        if not _DECIMAL.fullmatch(value) or repr(float(value)) != value:
            raise ValueError("not a decimal number in its shortest form")
        value = float(value)
    if isinstance(value, float) and not value >= 0:
        raise ValueError("must be a number of at least 0")
    return value


Real = Annotated[float, BeforeValidator(_read_real), PlainSerializer(repr, return_type=str)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=2000)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Guesses = Annotated[int, Field(ge=0, le=MAX_CANARIES)]


def _is_accountable(noise_multiplier: float) -> float:
    if noise_multiplier and not LEAST_MULTIPLIER <= noise_multiplier <= MOST_MULTIPLIER:
        raise ValueError(f"must be 0 or in [{LEAST_MULTIPLIER:g}, {MOST_MULTIPLIER:g}]")
    return noise_multiplier


Multiplier = Annotated[Real, AfterValidator(_is_accountable)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


_P = TypeVar("_P", bound=_Part)


class StudyText(_Part):
    """A study as its text, from which all figures about it follow; `study_terms` reads it."""

    hash: Hex64  # the SHA-256 of the text, under which sites charge
    text: Annotated[str, StringConstraints(min_length=1, max_length=MAX_STUDY, pattern=r"^[ -~]*$")] | None
    # None: the issuer does not have it any more, and nothing is known of the study but what was charged


class BudgetFacts(_Part):
    """The cap in force."""

    epsilon: Real
    delta: Real
    collusion: Count


class Spending(_Part):
    """The cost of one unit's participation, seen by an observer who pools with `colluding` other sites."""

    colluding: Count
    pld: Real  # spent: if all releases had been decided beforehand
    rdp: Real
    guaranteed: Real  # by the filter: whatever was chosen or stopped by results


class Event(_Part):
    """`count` equal releases of one study."""

    study: Hex64
    purpose: Purpose
    mode: Literal["distributed", "local", "none"]
    sample_rate: Real
    clip_norm: Real
    dim: Count
    scale_bits: Count
    site_noise_int: Count
    sites: Count  # really summed, or the fewest allowed while not settled
    planned_sites: Count  # with top-up, while not settled: the most that may be summed; else 0
    noise_collusion: Count
    steps: Count  # noised sums that each release adds up
    is_settled: bool
    count: Count


class Point(_Part):
    """Epsilon after the first `releases` releases, at the budget's delta and collusion."""

    releases: Count
    time: Time  # when the last of them was reserved, by the site's clock
    pld: Real
    rdp: Real
    guaranteed: Real


class Account(_Part):
    """One data set and unit of one site. Without a budget there is no delta, and every epsilon reads "inf"."""

    dataset: Name
    unit: Name
    budget: BudgetFacts | None
    order: Count | None  # of the filter; None without a budget
    releases: Count
    unprotected: Count  # of them without noise
    spent: Annotated[list[Spending], Field(max_length=8)]
    events: Annotated[list[Event], Field(max_length=MAX_ENTRIES)]
    course: Annotated[list[Point], Field(max_length=64)]  # empty without budget, or after lost or unprotected ones


class SiteReport(_Part):
    """A site's whole ledger, and what it adds up to."""

    name: Name
    public_key: Hex64
    entries: Annotated[list[Entry], Field(max_length=MAX_ENTRIES)]
    accounts: Annotated[list[Account], Field(max_length=MAX_ENTRIES)]


class AuditFinding(_Part):
    """A claim about a training step that did not hold."""

    check: Name
    detail: Text


class AuditFacts(_Part):
    """The result of an empirical audit of a run's training step, beside the claim for the very steps it looked at.

    The issuer's word: an audit needs the engine, not the ledgers, so a reader repeats it rather than recomputing it.
    """

    run: Name
    study: Hex64
    round: Count  # the committed round whose trained numbers were audited
    time: Time
    delta: Real
    claimed_epsilon: Real  # by PLD, for a unit in one audited step at rate 1
    lower_bound: Real  # the epsilon that the guesses refute; above claimed_epsilon, the claim is wrong
    largest_bound: Real  # what the bound would have been with every guess right
    confidence: Real
    noise_multiplier: Multiplier  # of the audited step, for an observer who knows the noise of `colluding` sites
    colluding: Count
    steps: Annotated[int, Field(ge=1, le=MAX_CANARIES)]
    canaries: Guesses
    guesses: Guesses
    right: Guesses
    right_unprotected: Guesses | None = None  # of as many guesses about steps without clip and noise; None: not tried
    checks: Annotated[list[Name], Field(max_length=64)]  # claims that were tested one by one
    findings: Annotated[list[AuditFinding], Field(max_length=64)]  # of them, those that did not hold
    blocks: Count  # trained tensors, every expert counted by itself
    blocks_reached: Count  # of them, in which clipping was seen to act
    seconds: Real
    versions: Name

    @property
    def passed(self) -> bool:
        """True if the guesses leave the claim standing and every single check held."""
        return self.lower_bound <= self.claimed_epsilon and not self.findings


class RocPoint(_Part):
    """One threshold of an attack."""

    false_positive_rate: Real
    true_positive_rate: Real


class MembershipFacts(_Part):
    """The success of a membership attack at finding an adapter's training records.

    With shadow models it is by likelihood ratios (LiRA, arXiv:2112.03570); without, by calibrated losses
    (arXiv:2111.08440). The issuer's word, measured with records at hand: only where they are public, as in a demo.
    """

    run: Name
    study: Hex64
    time: Time
    attacked: Name  # what was attacked, in words
    is_private: bool
    shadows: Count  # models trained to compare with; 0 in an attack by losses
    shadow_model: Name  # what stood in for the attacked model, in words
    members: Count
    nonmembers: Count
    auc: Real  # 0.5 is guessing
    auc_low: Real
    auc_high: Real
    tpr_at_1_percent_fpr: Real  # 0.01 is guessing
    tpr_at_1_percent_fpr_low: Real
    tpr_at_1_percent_fpr_high: Real
    tpr_at_01_percent_fpr: Real
    tpr_at_01_percent_fpr_low: Real
    tpr_at_01_percent_fpr_high: Real
    confidence: Real  # of the intervals
    roc: Annotated[list[RocPoint], Field(max_length=256)]


class Accountants(_Part):
    """The accountants that computed the epsilons."""

    relation: Literal["add_or_remove_one"]
    sampler: Literal["poisson"]
    pld: Name
    rdp: Name
    filter: Name


class Report(_Part):
    """A signed budget report."""

    format: Literal["confide-budget-report-3"]
    federation: Name
    issued: Time
    issuer: Hex64
    accountants: Accountants
    studies: Annotated[list[StudyText], Field(max_length=MAX_STUDIES)]
    sites: Annotated[list[SiteReport], Field(max_length=MAX_SITES)]
    audits: Annotated[list[AuditFacts], Field(max_length=MAX_TESTS)] = []
    membership: Annotated[list[MembershipFacts], Field(max_length=MAX_TESTS)] = []
    signature: Hex128

    @property
    def is_unprotected(self) -> bool:
        """True if a release without noise is part of it."""
        return any(account.unprotected for site in self.sites for account in site.accounts)


def parse(value: object) -> Report:
    """Reads a report, checking types, sizes and alphabets and nothing else.

    Raises:
        ReportInvalid: names the place and the problem, never the value.
    """
    if isinstance(value, dict) and value.get("format") in EARLIER:
        raise ReportInvalid(
            f"format: it is of an earlier format than {FORMAT}, whose figures this version does not compute; ask its "
            "issuer for a report of today, or verify it with the version that wrote it"
        )
    try:
        return Report.model_validate(value)
    except ValidationError as err:
        problem = err.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"]) or "report"
        raise ReportInvalid(f"{where}: {problem['msg']} ({err.error_count()} such problems)") from err


def audit_facts(text: str) -> AuditFacts:
    """Reads what `dump` made of an audit's facts. Raises `ReportInvalid`."""
    return _facts(AuditFacts, text)


def membership_facts(text: str) -> MembershipFacts:
    """Reads what `dump` made of an attack's facts. Raises `ReportInvalid`."""
    return _facts(MembershipFacts, text)


def _facts(kind: type[_P], text: str) -> _P:
    try:
        return kind.model_validate_json(text)
    except ValidationError as err:
        problem = err.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, problem["loc"]))
        raise ReportInvalid(f"{kind.__name__}: {where}: {problem['msg']}") from err


def dump(part: BaseModel) -> dict[str, Any]:
    """A report or part of one as JSON values."""
    return part.model_dump(mode="json")
