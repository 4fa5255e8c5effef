"""The rotation of the federation's CA: its successor is made and announced, nodes confirm it, then it takes over.

Until the end the gate shows a certificate of the CA that nodes have trusted all along. The register knows which CAs
each node says that it trusts, so the operator sees who would be shut out. No step touches a run.
"""

import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from cryptography import x509

from ..client_node.authority import Statement, digest
from ..client_node.files import write_private
from ..privacy.ledger.chain import moment
from .errors import Conflict
from .federation import Pki, Register, load_settings
from .given import Given, read_given
from .store import Store, audit_log
from .store.tables import NodeRow

Trusts = Literal["all", "too few", "others too", "unknown"]


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA that vouches for the gate, or will."""

    sha256: str  # of the certificate's DER form
    begins: dt.datetime  # of it, and of the gate's certificate if that lies ready
    ends: dt.datetime


@dataclass(frozen=True, slots=True)
class NodeTrust:
    """An enrolled node, and what it trusts of what it is to trust, by its own last word."""

    name: str
    trusts: Trusts


@dataclass(frozen=True, slots=True)
class Standing:
    """A federation's CA, the one that comes next, and who trusts them."""

    present: Authority
    next: Authority | None  # None while no rotation is under way
    nodes: tuple[NodeTrust, ...]
    invited: tuple[str, ...]  # names whose codes are open, and are void once the next CA has taken over

    @property
    def is_early(self) -> bool:
        """True if the next CA is not valid yet, by this machine's clock."""
        return self.next is not None and self.next.begins > dt.datetime.now(dt.UTC)

    @property
    def lacking(self) -> tuple[str, ...]:
        """Names of the nodes that would be shut out if the next CA took over now."""
        return (
            ()
            if self.next is None
            else tuple(each.name for each in self.nodes if each.trusts in ("too few", "unknown"))
        )

    @property
    def next_step(self) -> str:
        """The words for an operator: what is to be done, or waited for."""
        if self.next is None:
            return "No rotation is under way."
        if self.is_early:
            return (
                f"The next CA is not valid before {self.next.begins:%Y-%m-%d %H:%M} UTC: the clock was ahead when it "
                "was made, or is behind now. To make it anew: coordinator ca cancel, then coordinator ca rotate"
            )
        if self.lacking:
            names = ", ".join(self.lacking)
            return f"Not known to trust the next CA yet: {names}. Their daemons learn of it within a minute."
        return "All nodes trust the next CA: coordinator ca finish"


def standing(store: Store, home: Path) -> Standing:
    """Describes the federation's CA and who trusts it.

    Raises:
        PkiMissing, StateDamaged: a file is missing or damaged.
    """
    return _standing(store, Pki.load(home))


def begin(store: Store, home: Path, given: Given | None = None) -> Standing:
    """Makes the CA that comes next; a running server tells nodes within a second, and each confirms that it trusts it.

    Args:
        given: the gate's certificate from a CA that others keep, which comes next then; None for one of our own.

    Raises:
        Conflict: a rotation is under way already.
        PkiMissing, StateDamaged: as `standing`.
    """
    pki = Pki.load(home)
    with pki.changing():
        note_takeover(store, pki)
        if pki.has_next:
            raise Conflict(
                "a rotation of the CA is under way already: `coordinator ca status` says who lacks the next one. "
                "Finish or cancel it first; nothing was changed"
            )

        def note() -> None:
            following = digest(pki.certificate_of(is_next=True))
            with store.session() as session:
                store.log_action(session, "ca.rotate", ca=pki.ca_digest.hex(), next=following)

        try:
            pki.make_next(given, before_it_counts=note)  # no node hears of a CA that the audit log does not have
        except BaseException:
            pki.drop_next()
            raise
    return _standing(store, pki)


def use(store: Store, home: Path, certificate: Path, key: Path, ca: Path | None = None) -> Standing:
    """Takes a certificate for the gate from a CA that others keep, such as the hospital's.

    One of the CA that nodes trust already is shown from the next second on. One of another CA begins a rotation to it.

    Args:
        certificate, key, ca: files, as `read_given` takes them; None for the CA that is in use.

    Raises:
        Conflict: a file cannot be used, or a rotation is under way; nothing was changed.
        PkiMissing, StateDamaged: as `standing`.
    """
    pki, settings = Pki.load(home), load_settings(home)
    if ca is None and not pki.is_given:
        raise Conflict(
            "nodes trust the federation's own CA; name the CA of this certificate with --ca. Nothing was changed"
        )
    given = read_given(certificate, key, ca or pki.ca_path, settings.address.rpartition(":")[0])
    if given.ca != pki.authorities()[0]:
        return begin(store, home, given)
    with pki.changing():
        if not pki.is_given:
            raise Conflict(
                "this certificate is from the federation's own CA, which renews it itself; nothing was changed"
            )
        if pki.has_next:
            raise Conflict("a rotation of the CA is under way; finish or cancel it first. Nothing was changed")
        with store.session() as session:
            store.log_action(session, "certificate.use", until=moment(given.ends.timestamp()), ca=pki.ca_digest.hex())
        pki.use(given)
    return _standing(store, pki)


def finish(store: Store, home: Path, *, without: Sequence[str] = ()) -> Standing:
    """Lets the next CA take over: the gate shows a certificate of it, codes that name the present one are void.

    The present CA's key is deleted. Nodes drop its certificate once the next one has vouched for a connection.

    Args:
        without: names of nodes that are shut out by it until their people bring them the statement as a file.

    Raises:
        Conflict: no rotation is under way, an enrolled node has not confirmed the next CA and is not in `without`, a
            name in it is no such node's, or the next CA does not hold now; nothing was changed.
        PkiMissing, StateDamaged: as `standing`.
    """
    pki = Pki.load(home)
    pki.authorities()  # damaged files are told before anything else
    with pki.changing():
        note_takeover(store, pki)
        if not pki.has_next:
            raise Conflict(
                "no rotation of the CA is under way; `coordinator ca rotate` begins one. Nothing was changed"
            )
        now = dt.datetime.now(dt.UTC)
        if (begins := pki.next_begins()) > now:
            raise Conflict(
                f"the next CA is not valid before {begins:%Y-%m-%d %H:%M} UTC, and nodes would be shut out until "
                "then: this machine's clock was ahead when it was made, or is behind now. Set it if it is wrong; "
                "else `coordinator ca cancel`, then begin anew. Nothing was changed"
            )
        if (ends := pki.next_ends()) <= now:
            raise Conflict(
                f"the gate's next certificate has ended on {ends:%Y-%m-%d}; `coordinator ca cancel`, then begin with "
                "another one. Nothing was changed"
            )

        def decide(rows: Sequence[NodeRow]) -> dict[str, Any]:
            """Reads the nodes once no other can enrol or be invited; takes over last, as the log is about to say."""
            found = _standing_of(rows, pki)
            _require_all_meant(found, without)
            pki.begin_taking()
            assert found.next is not None
            return {"ca": found.next.sha256, "before": found.present.sha256, "without": sorted(without)}

        try:
            Register(store, pki).void_codes("ca.finish", decide)
        except BaseException:
            pki.stop_taking()
            raise
        pki.take_next()
    return _standing(store, pki)


def note_takeover(store: Store, pki: Pki) -> None:
    """Notes a takeover that the audit log lacks, and voids the codes that name the CA before; hold `Pki.changing`.

    That is so where `finish` was cut off when the files said it already, and the log did not yet.
    """
    present = pki.ca_digest.hex()
    with store.session() as session:
        noted = list(audit_log.entries(session, action="ca"))
    if not noted or noted[-1].action != "ca.rotate" or noted[-1].fields.get("next") != present:
        return
    said = {"ca": present, "before": noted[-1].fields["ca"], "without": []}
    Register(store, pki).void_codes("ca.finish", lambda _: said)


def _require_all_meant(found: Standing, without: Sequence[str]) -> None:
    """Raises `Conflict` if a node that `finish` would shut out is not in `without`, or a name there is no such node."""
    if left := [name for name in found.lacking if name not in without]:
        raise Conflict(
            f"{', '.join(left)} would be shut out: not known to trust the next CA yet. A node learns of it within "
            "a minute while its daemon runs. To go on without, name each with --without; nothing was changed"
        )
    if wrong := sorted({*without} - {*found.lacking}):
        raise Conflict(f"{', '.join(wrong)}: no enrolled node of that name lacks the next CA; nothing was changed")


def cancel(store: Store, home: Path) -> Standing:
    """Deletes the CA that was to come next, with its key; nodes drop it again.

    Raises:
        Conflict: no rotation is under way.
        PkiMissing, StateDamaged: as `standing`.
    """
    pki = Pki.load(home)
    with pki.changing():
        note_takeover(store, pki)
        if not pki.has_next:
            raise Conflict("no rotation of the CA is under way; nothing was changed")
        with store.session() as session:
            store.log_action(session, "ca.cancel", ca=pki.ca_digest.hex())
        pki.drop_next()
    return _standing(store, pki)


def statement(pki: Pki) -> Statement:
    """Signs the list of CAs that nodes are to trust, as of now. Raises as `Pki.authorities`."""
    signing = pki.signing.now
    return Statement.issue(pki.authorities(), signing.key, signing.successions)


def write_statement(pki: Pki, file: Path) -> tuple[str, ...]:
    """Writes a new `statement` for a node that was away to a file; returns the digests that it lists.

    Raises:
        Conflict: the file exists, or cannot be written.
        PkiMissing, StateDamaged: as `standing`.
    """
    if file.exists():
        raise Conflict(f"{file} exists already; name another one")
    signed = statement(pki)
    try:
        write_private(file, signed.model_dump_json(indent=2).encode() + b"\n")
    except OSError as err:
        raise Conflict(f"{file} cannot be written: {err.strerror}") from err
    return tuple(digest(each) for each in signed.listed())


def _standing(store: Store, pki: Pki) -> Standing:
    return _standing_of(store.nodes(), pki)


def _standing_of(rows: Sequence[NodeRow], pki: Pki) -> Standing:
    present = _authority(pki.certificate_of(is_next=False))
    following = None
    if pki.has_next:
        following = replace(_authority(pki.certificate_of(is_next=True)), begins=pki.next_begins())
    wanted = {present.sha256} | ({following.sha256} if following else set())
    return Standing(
        present=present,
        next=following,
        nodes=tuple(
            NodeTrust(row.name, _trusts(row, wanted))
            for row in rows
            if row.enrolled_at is not None and not row.revoked_at
        ),
        invited=tuple(row.name for row in rows if Register.has_open_code(row)),
    )


def _trusts(row: NodeRow, wanted: set[str]) -> Trusts:
    if row.trusted_cas is None:
        return "unknown"
    known = set(json.loads(row.trusted_cas))
    if not wanted <= known:
        return "too few"
    return "all" if wanted == known else "others too"


def _authority(certificate: x509.Certificate) -> Authority:
    return Authority(digest(certificate), certificate.not_valid_before_utc, certificate.not_valid_after_utc)
