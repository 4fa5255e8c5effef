"""Checks a budget report from its JSON alone: signatures, chains, and every figure, recomputed from the entries.

Every epsilon is recomputed, what was spent by RDP and PLD and what is guaranteed by the filter; what was spent is held
against a third accountant of another make, PRV (`accounting.prv`).

A report that holds together shows what the owners of the keys inside it signed. Whether those keys are the sites' and
the issuer's is for the reader to compare by another way; `verify` takes the known ones.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dp_accounting as dpa

from ...models.rounding import rounded_down, rounded_up
from ..accounting import composition, prv
from ..accounting.prv import Opinion
from ..audit import one_run
from ..errors import InvalidPrivacyParameter, LedgerBroken, ReportInvalid
from ..ledger import canonical
from ..ledger.chain import verify_chain
from ..ledger.charges import Books
from . import schema, statement, study_checks, study_terms, workload
from .schema import MAX_BYTES, SIGNATURE_DOMAIN, Account, AuditFacts, Report, SiteReport, Spending, dump
from .workload import MAX_SECONDS, Progress, Watch

TOLERANCE = 1e-6  # relative: FFTs differ in the last digits between machines; a lie worth telling is larger
CLAIM_SLACK = 2e-3  # how far an audit's claim may be above that for its multiplier as reported, not cut to five digits


@dataclass(slots=True)
class Verification:
    """Result of a verification: the checks that held and those that failed; `ok` if none did."""

    failures: list[str] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)  # in words, for people
    notes: list[str] = field(default_factory=list)  # worth knowing, no failure
    issuers_word: list[str] = field(default_factory=list)  # parts of the report that nothing in it can prove
    issuer: str | None = None  # the key that the report names, hex
    site_keys: dict[str, str] = field(default_factory=dict)
    opinions: list["Witnessed"] = field(default_factory=list)  # one for each epsilon that is stated at a level

    @property
    def ok(self) -> bool:
        """True if every check passed."""
        return not self.failures

    def lines(self) -> list[str]:
        """The findings as lines for people, failures last."""
        found = (
            ("ok", self.checked), ("note", self.notes), ("issuer", self.issuers_word), ("FAILED", self.failures)
        )  # fmt: skip
        return [f"{title:7s} {line}" for title, lines in found for line in lines]

    def to_dict(self) -> dict[str, object]:
        """The findings for programs."""
        return {
            "verified": self.ok,
            "failures": self.failures,
            "checked": self.checked,
            "notes": self.notes,
            "issuers_word": self.issuers_word,
            "accountants": [witnessed.to_dict() for witnessed in self.opinions],
        }


@dataclass(frozen=True, slots=True)
class Witnessed:
    """A report's figures of one account for one observer, and PRV's opinion on them."""

    site: str
    dataset: str
    unit: str
    delta: float
    stated: Spending
    opinion: Opinion

    @property
    def where(self) -> str:
        """Names the account and the observer."""
        return f"site {self.site}: {self.dataset}/{self.unit}, {self.stated.colluding} colluding"

    def to_dict(self) -> dict[str, object]:
        """The three accountants' answers; `prv` is null where it was not asked, and `why_not` says why."""
        bracket = self.opinion.bracket
        return {
            "site": self.site,
            "dataset": self.dataset,
            "unit": self.unit,
            "delta": self.delta,
            "colluding": self.stated.colluding,
            "pld": _finite(self.stated.pld),
            "rdp": _finite(self.stated.rdp),
            "guaranteed": _finite(self.stated.guaranteed),
            "prv": {"lower": bracket.lower, "estimate": bracket.estimate, "upper": bracket.upper} if bracket else None,
            "agrees": not self.opinion.objections if bracket else None,
            "why_not": self.opinion.why_not,
        }


def known_keys(pairs: Sequence[str]) -> dict[str, str]:
    """Sites' public keys from `NAME=KEY` texts.

    Raises:
        ReportInvalid: one is not of that form.
    """
    keys = {}
    for pair in pairs:
        name, equals, key = pair.partition("=")
        if not (name and equals and re.fullmatch(r"[0-9a-f]{64}", key)):
            raise ReportInvalid(f"{pair!r} is not NAME=KEY with a key of 64 hexadecimal digits")
        keys[name] = key
    return keys


def verify_file(
    path: Path,
    *,
    issuer: str | None = None,
    site_keys: Mapping[str, str] | None = None,
    max_seconds: float = MAX_SECONDS,
    watch: Watch | None = None,
) -> Verification:
    """`verify` for a file.

    Raises:
        ReportInvalid: the file cannot be read.
        VerificationTooLong: as `verify`.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
    except OSError as err:
        raise ReportInvalid(f"cannot read {path}: {err.strerror}") from err
    if len(text) > MAX_BYTES:
        return Verification(failures=[f"report: larger than {MAX_BYTES >> 20} MiB"])
    try:
        value = canonical.decode(text)
    except ValueError as err:
        return Verification(failures=[f"report: not JSON: {err}"])
    return verify(value, issuer=issuer, site_keys=site_keys, max_seconds=max_seconds, watch=watch)


def verify(
    report: object,
    *,
    issuer: str | None = None,
    site_keys: Mapping[str, str] | None = None,
    max_seconds: float = MAX_SECONDS,
    watch: Watch | None = None,
) -> Verification:
    """Recomputes everything that `report` says and names each thing that does not hold.

    Args:
        report: as `json.load` gives it.
        issuer: the issuer's public key in hex, if known from elsewhere.
        site_keys: sites' public keys by name, as far as known from elsewhere: of a site whose key was followed by
            another, any of them.
        max_seconds: of estimated work, above which no figure is recomputed; infinite for no limit.
        watch: told the estimated work before it begins, and after each account how much is done.

    Raises:
        VerificationTooLong: the work is above `max_seconds`.
    """
    try:
        parsed = schema.parse(report)
    except ReportInvalid as err:
        return Verification(failures=[f"schema: {err}"])
    result = Verification(issuer=parsed.issuer, site_keys={site.name: site.public_key for site in parsed.sites})
    assert isinstance(report, Mapping)
    _check_signature(result, parsed, report, issuer)
    replayed = [(site, _check_chain(result, site, (site_keys or {}).get(site.name))) for site in parsed.sites]
    chained = [(site, books) for site, books in replayed if books is not None]
    sound = {site.name: books for site, books in chained}
    if len({site.name for site in parsed.sites}) != len(parsed.sites):
        result.failures.append("sites: a name occurs twice")
    work = workload.of(chained, parsed.audits)
    workload.refuse_above(max_seconds, work)
    progress = Progress(work, watch)
    progress.add(0.0)
    for site, books in chained:
        _check_accounts(result, site, books, progress)
    result.failures += _contradictions(sound)
    studies = study_checks.check_studies(parsed, sound)
    result.failures += studies.failures
    result.checked += studies.checked
    result.notes += studies.notes
    result.notes += _passed_caps(parsed)
    result.notes += _gaps(sound)
    result.notes += _absent(parsed, sound)
    _check_tests(result, parsed)
    progress.add(workload.audits_s(parsed.audits))
    result.failures += _foreign_tests(parsed, sound)
    result.issuers_word += _issuers_word(parsed)
    return result


def _check_signature(result: Verification, parsed: Report, report: Mapping[str, Any], known_issuer: str | None) -> None:
    if known_issuer is not None and parsed.issuer != known_issuer:
        result.failures.append(f"issuer: the report is by {parsed.issuer}, not by {known_issuer}")
    try:
        contents = canonical.encode({name: value for name, value in report.items() if name != "signature"})
    except ValueError as err:
        result.failures.append(f"signature: {err}")
        return
    if canonical.is_signed(parsed.issuer, SIGNATURE_DOMAIN, contents, parsed.signature):
        result.checked.append("the issuer's signature over the whole report")
    else:
        result.failures.append("signature: the report was changed after its issuer signed it")


def _check_chain(result: Verification, site: SiteReport, known_key: str | None) -> Books | None:
    where = f"site {site.name}"
    try:
        verify_chain(site.entries, site.public_key)
        books = Books.replay(site.entries)
        if books.site != site.name:
            raise LedgerBroken(f"entry 0 opens the ledger of site {books.site!r}")
    except LedgerBroken as err:
        if known_key not in (None, site.public_key):
            result.failures.append(f"{where}: public key is {site.public_key}, not {known_key}")
        result.failures.append(f"{where}: ledger: {err}")
        return None
    if known_key is not None and known_key not in books.keys:
        told = " and then ".join(books.keys)
        result.failures.append(f"{where}: public key is {told}, not {known_key}")
    if books.keys[1:]:
        told = ", then ".join(f"{key[:16]}..." for key in books.keys)
        result.checked.append(f"{where}: its keys follow one another, each signed by the one before: {told}")
    result.checked.append(f"{where}: {len(site.entries)} ledger entries, chained and signed by the site")
    return books


def _check_accounts(result: Verification, site: SiteReport, books: Books, progress: Progress) -> None:
    where, recomputed = f"site {site.name}", []
    for dataset, unit in books.accounts():
        recomputed.append(dump(statement.account(dataset, unit, books)))
        progress.add(workload.statement_s(books, dataset, unit))
    stated = {"accounts": [dump(account) for account in site.accounts]}
    differences = list(_differences(stated, {"accounts": recomputed}, where))
    result.failures += differences
    if not differences:
        releases = sum(account.releases for account in site.accounts)
        result.checked.append(f"{where}: epsilon of {releases} releases recomputed by PLD, RDP and the filter")
    for account in site.accounts:
        _ask_a_third(result, site.name, account, books)
        progress.add(workload.third_s(account, books))


def _ask_a_third(result: Verification, site: str, account: Account, books: Books) -> None:
    """Holds what is stated against PRV, over the releases that the entries give."""
    if recovery := books.recoveries.get((account.dataset, account.unit)):
        result.notes.append(
            f"site {site}: {account.dataset}/{account.unit}: entries were lost; counted as spent up to its cap, "
            f"{recovery.epsilon:g}, and closed"
        )
        return  # what is stated is not what the releases here cost
    tally = books.tallies.get((account.dataset, account.unit))
    if account.budget is None or tally is None or not len(tally):
        return
    agreed = []
    for stated in account.spent:
        opinion = prv.compare(tally.releases(), account.budget.delta, stated.colluding, pld=stated.pld, rdp=stated.rdp)
        witnessed = Witnessed(site, account.dataset, account.unit, account.budget.delta, stated, opinion)
        result.opinions.append(witnessed)
        result.failures += [f"{witnessed.where}: {objection}" for objection in opinion.objections]
        result.notes += [f"{witnessed.where}: {remark}" for remark in opinion.remarks]
        if opinion.bracket is None:
            result.notes.append(f"{witnessed.where}: not checked by PRV: {opinion.why_not}")
        elif not opinion.objections:
            bracket = opinion.bracket
            agreed.append(
                f"{stated.colluding} colluding: PRV {rounded_down(bracket.lower, 3)} to "
                f"{rounded_up(bracket.upper, 3)}, PLD {rounded_up(stated.pld, 3)}, RDP {rounded_up(stated.rdp, 3)}"
            )
    if agreed:
        name = f"site {site}: {account.dataset}/{account.unit}"
        result.checked.append(f"{name}: a third accountant agrees ({'; '.join(agreed)})")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _differences(stated: Any, recomputed: Any, where: str) -> Iterator[str]:
    if isinstance(stated, dict) and isinstance(recomputed, dict):
        for name in recomputed:
            yield from _differences(stated[name], recomputed[name], f"{where}: {name}")
    elif isinstance(stated, list) and isinstance(recomputed, list):
        if len(stated) != len(recomputed):
            yield f"{where}: has {len(stated)} items, the ledger gives {len(recomputed)}"
        for index, (left, right) in enumerate(zip(stated, recomputed, strict=False)):
            yield from _differences(left, right, f"{where}[{_label(right, index)}]")
    elif stated != recomputed and not _is_close(stated, recomputed):
        yield f"{where}: says {stated}, the ledger gives {recomputed}"


def _label(item: Any, index: int) -> str:
    """Names an item of a list by what identifies it, where something does."""
    match item:
        case {"dataset": dataset, "unit": unit}:
            return f"{dataset}/{unit}"
        case {"colluding": colluding}:
            return f"colluding={colluding}"
        case _:
            return str(index)


def _is_close(stated: Any, recomputed: Any) -> bool:
    if not (isinstance(stated, str) and isinstance(recomputed, str)):
        return False
    try:
        left, right = float(stated), float(recomputed)
    except ValueError:
        return False
    return abs(left - right) <= TOLERANCE * max(1.0, abs(right))  # false if one is infinite: inf - x, or nan


def _contradictions(books: Mapping[str, Books]) -> Iterator[str]:
    """Two sites that booked one round differently: somebody told them different things."""
    first: dict[tuple[str, int], str] = {}
    for name, book in books.items():
        for key, booked in book.booked.items():
            other = first.setdefault(key, name)
            theirs = books[other].booked[key]
            where = f"round {key[1]} of run {key[0]}"
            if (booked.charge.study, booked.charge.release, booked.charge.cohort) != (
                theirs.charge.study,
                theirs.charge.release,
                theirs.charge.cohort,
            ):
                yield f"{where}: sites {other} and {name} reserved different releases"
            if booked.summed and theirs.summed and booked.summed != theirs.summed:
                yield f"{where}: sites {other} and {name} settled different sets"


def _passed_caps(report: Report) -> Iterator[str]:
    """Accounts whose guaranteed epsilon is above the cap: one that was lowered, or charged before caps went by it."""
    for site in report.sites:
        for account in site.accounts:
            cap = account.budget
            if cap is None or account.unprotected:
                continue
            found = max((item.guaranteed for item in account.spent if item.colluding == cap.collusion), default=0.0)
            if found > cap.epsilon:
                yield (
                    f"site {site.name}: {account.dataset}/{account.unit}: guaranteed is {rounded_up(found, 3)}, over "
                    f"the cap of {cap.epsilon:g}: the cap was lowered, or charges were made by a version that measured "
                    "it otherwise"
                )


def _gaps(books: Mapping[str, Books]) -> Iterator[str]:
    """Sites that a settled sum is said to hold, but whose own ledger in this report has no charge for it."""
    missing: dict[str, int] = {}
    summed = {key: booked.summed for book in books.values() for key, booked in book.booked.items() if booked.summed}
    for key, names in summed.items():
        for name in names:
            if name in books and key not in books[name].booked:
                missing[name] = missing.get(name, 0) + 1
    for name, rounds in sorted(missing.items()):
        yield f"site {name}: {rounds} settled rounds name it, but its ledger here does not charge them (yet)"


def _absent(report: Report, books: Mapping[str, Books]) -> Iterator[str]:
    """Sites that took part in a charged round and of which the report shows nothing."""
    cohorts = {booked.charge.cohort for book in books.values() for booked in book.booked.values()}
    if missing := {name for cohort in cohorts for name in cohort} - {site.name for site in report.sites}:
        names = ", ".join(sorted(missing))
        yield f"sites whose ledgers are not in this report: {names}; what they have spent is not shown"


def _foreign_tests(report: Report, books: Mapping[str, Books]) -> Iterator[str]:
    """Audits and attacks that state another study than the one under which sites charged their run."""
    charged: dict[str, set[str]] = {}
    for book in books.values():
        for booked in book.booked.values():
            charged.setdefault(booked.charge.run, set()).add(booked.charge.study)
    tests = [("audit", each.run, each.study) for each in report.audits]
    tests += [("attack", each.run, each.study) for each in report.membership]
    for kind, run, study in tests:
        if study not in charged.get(run, {study}):
            yield f"{kind} of run {run}: says that it is of study {study[:12]}, under which no site charged that run"


def _issuers_word(report: Report) -> Iterator[str]:
    """Everything in a report that its verification has to take from the issuer."""
    yield f"the federation's name, {report.federation!r}, and when the report was issued"
    yield "that the accountants named are those that computed; every figure was computed anew here"
    if report.audits:
        runs = ", ".join(dict.fromkeys(facts.run for facts in report.audits))
        yield f"what {len(report.audits)} audits of {runs} measured: canaries, guesses, right ones, checks, tensors"
    if report.membership:
        yield f"{len(report.membership)} membership attacks: every figure of them"


def _check_tests(result: Verification, report: Report) -> None:
    """Recomputes what can be of audits and attacks. Their raw counts are the issuer's word."""
    terms = study_terms.known(report.studies)
    for facts in report.audits:
        where = f"audit of run {facts.run}, round {facts.round}"
        problems = list(_audit_problems(facts))
        if facts.study in terms:
            problems += terms[facts.study].audit_contradictions(facts)
        else:
            result.notes.append(
                f"{where}: its study is unknown here, so its noise and delta are the issuer's word as well"
            )
        result.failures += [f"{where}: {problem}" for problem in problems]
        if not problems:
            result.checked.append(
                f"{where}: its bound of {rounded_down(facts.lower_bound, 3)} follows from {facts.right} of "
                f"{facts.guesses} right guesses, by the issuer's count, and does not reach the claimed "
                f"{rounded_up(facts.claimed_epsilon, 3)}"
            )


def _audit_problems(facts: AuditFacts) -> Iterator[str]:
    try:
        bound = one_run.epsilon_lower_bound(
            facts.right, facts.guesses, facts.canaries, delta=facts.delta, confidence=facts.confidence
        )
    except InvalidPrivacyParameter as err:
        yield str(err)
        return
    if not _is_near(facts.lower_bound, bound):
        yield f"says that epsilon is at least {facts.lower_bound:.4f}; its guesses give {bound:.4f}"
    if not (0 < facts.noise_multiplier < math.inf and 0 < facts.delta < 1):
        yield "audits a step without noise, which claims nothing"
        return
    exact = dpa.get_epsilon_gaussian(facts.noise_multiplier, facts.delta)
    # The most that our accountants may say of it: PLD's bound, or RDP's where that stands for it.
    most = composition.pld_bound(((facts.noise_multiplier, 1.0, 1),), facts.delta)
    if not exact * (1 - TOLERANCE) <= facts.claimed_epsilon <= most + CLAIM_SLACK * (1 + most):
        yield f"says that {facts.claimed_epsilon:.4f} is claimed; its noise multiplier gives {exact:.4f}"
    if bound > facts.claimed_epsilon:
        yield f"refutes the claim: epsilon is at least {bound:.4f}, claimed is {facts.claimed_epsilon:.4f}"
    for finding in facts.findings:
        yield f"{finding.check}: {finding.detail}"


def _is_near(stated: float, recomputed: float) -> bool:
    return abs(stated - recomputed) <= 1e-5 + TOLERANCE * recomputed  # the bound is searched for down to 1e-6
