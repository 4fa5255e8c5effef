"""Budget reports: what was spent on whose data, signed, with all that is needed to recompute it.

A report carries each site's ledger whole, so a reader needs to trust neither the issuer nor its arithmetic: see
`verify`. What a report cannot show is that a ledger goes on after its last entry here; its date says until when.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from ..accounting import composition, renyi
from ..errors import ReportInvalid
from ..ledger import canonical, chain
from ..ledger.chain import Entry, verify_chain
from ..ledger.charges import Books
from . import statement, study_terms
from .page import render_html
from .schema import (
    FORMAT,
    MAX_BYTES,
    MAX_ENTRIES,
    SIGNATURE_DOMAIN,
    Accountants,
    AuditFacts,
    MembershipFacts,
    Report,
    SiteReport,
    StudyText,
    dump,
)

__all__ = ["SiteLedger", "build_report", "render_html"]


@dataclass(frozen=True, slots=True)
class SiteLedger:
    """A site's ledger as it came from the site or from its replica."""

    public_key: str  # Ed25519, hex
    entries: Sequence[Entry]


def build_report(
    federation: str,
    sites: Mapping[str, SiteLedger],
    studies: Sequence[str],
    signer: Ed25519PrivateKey,
    *,
    audits: Sequence[AuditFacts] = (),
    membership: Sequence[MembershipFacts] = (),
) -> dict[str, Any]:
    """The report over `sites` as a JSON object, signed by `signer`.

    Args:
        federation: its name.
        sites: by name, which must be the one in the ledger's entry 0.
        studies: their canonical texts. A study that was charged and is not among them is reported as unknown.
        audits: of the engine, as the issuer measured.
        membership: attacks on what was trained, as the issuer measured.

    Raises:
        LedgerBroken: a ledger does not hold together; names the entry.
        ReportInvalid: a study's text is too long or no text, or a ledger is too long for a report.
    """
    reports = [_site_report(name, ledger) for name, ledger in sorted(sites.items())]
    report = Report(
        format=FORMAT,
        federation=federation,
        issued=chain.now(),
        issuer=canonical.public_hex(signer),
        accountants=_accountants(),
        studies=_studies(studies, reports),
        sites=reports,
        audits=list(audits),
        membership=list(membership),
        signature="0" * 128,
    )
    contents = {name: value for name, value in dump(report).items() if name != "signature"}
    encoded = canonical.encode(contents)
    if len(encoded) > MAX_BYTES:
        raise ReportInvalid(
            f"the report would be {len(encoded) >> 20} MiB long, and none beyond {MAX_BYTES >> 20} MiB is read; "
            "nothing was written. Report on fewer sites, one study at a time, or let each site report for itself"
        )
    return contents | {"signature": canonical.sign(signer, SIGNATURE_DOMAIN, encoded)}


def _studies(texts: Sequence[str], sites: Sequence[SiteReport]) -> list[StudyText]:
    """Every study that is given or was charged, by its hash."""
    found: dict[str, str | None] = {event.study: None for site in sites for a in site.accounts for event in a.events}
    found |= {study_terms.hash_of(text): text for text in texts}
    try:
        return [StudyText(hash=key, text=text) for key, text in sorted(found.items())]
    except ValidationError as err:
        problem = err.errors(include_input=False, include_url=False)[0]
        raise ReportInvalid(f"a study's text: {problem['msg']}") from err


def _site_report(name: str, ledger: SiteLedger) -> SiteReport:
    if len(ledger.entries) > MAX_ENTRIES:
        raise ReportInvalid(
            f"site {name}: its ledger has {len(ledger.entries):,} entries, a report holds at most {MAX_ENTRIES:,}; "
            "nothing was written. `budget show` still adds it up, `budget export` still writes all of it"
        )
    verify_chain(ledger.entries, ledger.public_key)
    books = Books.replay(ledger.entries)
    return SiteReport(
        name=name, public_key=ledger.public_key, entries=list(ledger.entries), accounts=statement.accounts(books)
    )


def _accountants() -> Accountants:
    return Accountants(
        relation="add_or_remove_one",
        sampler="poisson",
        pld=f"dp-accounting {version('dp-accounting')}, connect-the-dots, pessimistic, grid {composition.GRID:g}",
        rdp=f"sampled Gaussian at whole orders {renyi.ORDERS[0]} to {renyi.ORDERS[-1]}",
        filter="Rényi filter at one order, fixed by the cap under which an account is first charged",
    )
