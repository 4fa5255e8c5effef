"""Bytes that an auditor, a site or the coordinator reads of ledgers and reports."""

import json
import math
from functools import cache
from pathlib import Path

from confide.client_node import witness
from confide.client_node.enrolment import NodeIdentity
from confide.coordinator.errors import TrailInvalid
from confide.coordinator.federation import Pki, Settings, create_home
from confide.coordinator.oversight import trail
from confide.coordinator.store import Store
from confide.coordinator.store.tables import NodeRow
from confide.privacy.errors import LedgerBroken, LedgerError, LedgerFileInvalid, ReportInvalid, VerificationTooLong
from confide.privacy.ledger import backup, canonical, cohorts
from confide.privacy.ledger.chain import START, Entry, Head, check_extension, extend
from confide.privacy.ledger.charges import Books
from confide.privacy.ledger.succession import KIND, Succession, hand_over
from confide.privacy.report import schema, study_terms
from confide.privacy.report.schema import SIGNATURE_DOMAIN
from confide.privacy.report.verify import verify_file

from ..coordinator.oversight.test_trail import Federation
from ..privacy.ledgers import THYROID_TEXT, charge, eventful_ledger, eventful_report, signer
from .inputs import from_file, from_text, scratch
from .target import Target

_KEY = canonical.public_hex(signer())
_MANY = tuple(f"site-{number:02}" for number in range(cohorts.MOST_LISTED + 2))


@cache
def _entries() -> list[Entry]:
    return list(eventful_ledger(rounds=4).entries)


def _ledger_file() -> list[bytes]:
    path = scratch("ledger") / "made"
    path.unlink(missing_ok=True)
    backup.write(path, _entries(), _KEY)
    return [path.read_bytes()]


def _lines() -> list[bytes]:
    return [entry.model_dump_json().encode() for entry in _entries()]


@cache
def _begun() -> list[Entry]:
    """Entries before a lie: an opened ledger with a budget, a named cohort, and a charge that refers to it."""
    begun = _entries()[:2]
    for kind, body in ((cohorts.KIND, canonical.to_record(cohorts.Cohort.of(_MANY))), ("reserve", _referring(1))):
        begun.append(extend(Head(begun[-1].seq, begun[-1].hash), signer(), begun[-1].time, kind, body))
    return begun


def _referring(number: int) -> dict[str, object]:
    return charge(number, run="run-9", cohort=_MANY).body()


def _lies() -> list[bytes]:
    """Bodies of every kind that can follow `_begun`, each in an entry."""
    before = _begun()[-1]
    made = Succession.make("east", "c0" * 32, signer(), signer(12), "2026-03-01T09:00:00Z")
    settled = {"run": "run-9", "round": 1}
    bodies = [
        (KIND, hand_over(made, signer(12), before.hash)),
        (cohorts.KIND, canonical.to_record(cohorts.Cohort.of(_MANY[1:]))),
        ("reserve", _referring(2)),
        *(("settle", settled | {"missing": missing}) for missing in ([], [_MANY[0]])),
        ("settle", settled | {"summed": list(_MANY)}),
    ]
    told = [extend(Head(before.seq, before.hash), signer(), before.time, kind, body) for kind, body in bodies]
    listed = [line for line in _lines()[2:] if b'"settle"' not in line]
    return [*listed, *(entry.model_dump_json().encode() for entry in told)]


def _read_entry(data: bytes) -> object:
    entry = Entry.parse(canonical.decode(data))
    return check_extension(START, [entry], _KEY)


def _read_signed(data: bytes) -> object:
    """Signs whatever body it is with the site's key, as a site that lies would, and applies it."""
    said = canonical.decode(data)
    if not isinstance(said, dict) or not isinstance(said.get("body"), dict):
        raise LedgerBroken("not even the liar can sign this")
    last, books = _begun()[-1], Books.replay(_begun())
    try:
        lied = extend(Head(last.seq, last.hash), signer(), last.time, str(said.get("kind")), said["body"])
        parsed = Entry.parse(json.loads(lied.model_dump_json()))
    except ValueError as err:
        raise LedgerBroken("not even the liar can sign this") from err
    books.apply(parsed)
    return books


@cache
def _report() -> bytes:
    return canonical.encode(eventful_report())


def _read_report(data: bytes) -> object:
    return schema.parse(canonical.decode(data))


def _read_signed_report(path: Path) -> object:
    """Signs whatever report it is anew, as an issuer that lies would, and verifies it whole."""
    said = canonical.decode(path.read_bytes())
    if isinstance(said, dict):
        contents = {name: value for name, value in said.items() if name != "signature"}
        path.write_bytes(
            canonical.encode(
                contents | {"signature": canonical.sign(signer(99), SIGNATURE_DOMAIN, canonical.encode(contents))}
            )
        )
    return verify_file(path, max_seconds=math.inf)


@cache
def _exported() -> tuple[Path, Path]:
    """An exported audit log, and what a node prints of what it holds."""
    folder = scratch("audit")
    home = folder / "home"
    create_home(home, Settings(federation="Fever", address="h:1", listen="h", port=1, superlink_port=2))
    store, node = Store.open(home), NodeIdentity.create(folder / "svi", "svi")
    with store.session() as session:
        session.add(NodeRow(name="svi", roles="train", identity=node.identity_hex, enrolled_at=1.0))
    federation = Federation(home, store, Pki.load(home), node)
    for _ in range(2):
        federation.note(2)
        federation.countersign()
    trail.export(store, home, folder / "log.jsonl")
    store.close()
    (folder / "held.json").write_text((node.home / witness.FILE).read_text())
    return folder / "log.jsonl", folder / "held.json"


def _read_held(path: Path) -> object:
    return trail.verify_file(_exported()[0], held=path)


TARGETS = (
    Target(
        name="canonical JSON",
        sender="whoever sends a ledger",
        made=_lines,
        read=canonical.decode,
        refusals=(ValueError,),
    ),
    Target(
        name="ledger entry",
        sender="a site",
        made=lambda: [_lines()[0]],
        read=_read_entry,
        refusals=(LedgerBroken, ValueError),
    ),
    Target(
        name="ledger entry, signed by a liar",
        sender="a site",
        made=_lies,
        read=_read_signed,
        refusals=(LedgerError, ValueError),
    ),
    Target(
        name="ledger file",
        sender="people",
        made=_ledger_file,
        read=from_file("ledger", backup.read),
        refusals=(LedgerFileInvalid,),
    ),
    Target(
        name="exported audit log",
        sender="people",
        made=lambda: [_exported()[0].read_bytes()],
        read=from_file("log.jsonl", trail.verify_file),
        refusals=(TrailInvalid,),
        most=20_000,
    ),
    Target(
        name="what a node holds of the audit log",
        sender="people",
        made=lambda: [_exported()[1].read_bytes()],
        read=from_file("held.json", _read_held),
        refusals=(TrailInvalid,),
        most=20_000,
    ),
    Target(
        name="report", sender="whoever issues it", made=lambda: [_report()], read=_read_report,
        refusals=(ReportInvalid, ValueError), most=20_000,
    ),
    Target(
        name="report, signed by a liar, verified whole",
        sender="whoever issues it",
        made=lambda: [_report()],
        read=from_file("report.json", _read_signed_report),
        refusals=(ReportInvalid, VerificationTooLong, ValueError),
        most=100,
    ),
    Target(
        name="terms of a study in a report",
        sender="whoever issues it",
        made=lambda: [THYROID_TEXT.encode()],
        read=from_text(study_terms.read),
        refusals=(ReportInvalid,),
    ),
)  # fmt: skip
