"""The federation's register: nodes that are invited, enrolled, have left or were revoked, with their keys.

A node that has left keeps its name, and whoever shows the identity key of that name may take it up again. A key that
was revoked never comes back: whoever stole it has it still.
"""

import base64
import json
import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Any, get_args

from cryptography.x509 import InvalidVersion, load_pem_x509_certificate
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from ...client_node.enrolment import Role
from ...client_node.enrolment.identity import fingerprint
from ...client_node.enrolment.protocol import AuthorityQuery, EnrolAnswer, EnrolRequest, RotateRequest
from ...client_node.succession.rotation import FollowRequest
from ...client_node.wire.decisions import DecisionsWord
from ...privacy.ledger.succession import MOST, Succession
from ..errors import Conflict, EnrolmentInvalid
from ..store import Store, audit_log
from ..store.tables import NodeRow, SuccessionRow
from . import told_decisions
from .invites import VALID_S, check, code_text, digest_of, new_invite
from .pki import Pki

logger = logging.getLogger(__name__)

MOST_ROTATIONS = 5  # of one node in an hour
MOST_CONFIRMATIONS = 20  # likewise: a rotation of the CA takes two or three, one of the coordinator's key takes one
MOST_WORDS = 60  # of one node in an hour about the CAs that it trusts and that key, each another than the last
_ABOUT = "the register"


class Register:
    """Invites and enrols nodes, lets them leave, revokes them; finds the node of a request's key for the gate."""

    def __init__(self, store: Store, pki: Pki) -> None:
        self._store, self._pki = store, pki
        self._words: defaultdict[str, deque[float]] = defaultdict(deque)  # site -> when it changed what it trusts

    def invite(self, name: str, roles: tuple[Role, ...], address: str) -> str:
        """Makes a one-time code for `name`; a second invitation before the enrolment withdraws the first code.

        The code of a node that has left admits nobody but that node.

        Raises:
            Conflict: the name is enrolled already, or was revoked.
        """
        secret, digest = new_invite()
        with self._pki.changing(), self._store.alone(_ABOUT) as session:  # the code names a CA that stays meanwhile
            node = session.get(NodeRow, name)
            if node is not None and (why := why_not_invited(node)):
                raise Conflict(why)
            if node is None:
                node = NodeRow(name=name, roles="")
                session.add(node)
            node.roles = ",".join(roles)
            node.invite_digest, node.invite_expires = digest, time.time() + VALID_S
            if node.left_at is None:
                node.revoked_at = None  # set here only if the last invitation was withdrawn
            self._store.log_action(session, "site.invite", site=name, roles=node.roles)
            code = code_text(address, secret, self._pki.ca_digest)
        return code

    def enrol(self, request: EnrolRequest) -> EnrolAnswer:
        """Registers the keys of whoever holds a valid code; its proofs of possession were checked by the gate.

        The same keys with the same code get the same answer again, because the first answer may have been lost.

        Raises:
            InviteRefused: the code is unknown, expired, or used by other keys.
            EnrolmentInvalid: keys are taken, are not those of the node that comes back, or an aggregator names no
                address or certificate.
        """
        secret = bytes.fromhex(request.secret)
        key = fingerprint(request.transport_public.encode())
        with self._store.alone(_ABOUT) as session:  # of two keys with one code, or two codes with one key, one gets in
            node = session.scalars(select(NodeRow).where(NodeRow.invite_digest == digest_of(secret))).first()
            comes_back = node is not None and node.left_at is not None
            is_repeat = (
                node is not None and not comes_back and (node.identity, node.fingerprint) == (request.identity, key)
            )
            check(
                secret,
                digest=node.invite_digest if node else None,
                expires_at=(node.invite_expires or 0.0) if node else 0.0,
                is_used=node is not None and node.enrolled_at is not None and not is_repeat and not comes_back,
            )
            assert node is not None  # `check` refuses an unknown code
            signing = self._pki.signing.now
            answer = EnrolAnswer(
                name=node.name, roles=_roles(node), coordinator=signing.public, successions=signing.successions
            )
            if is_repeat:
                return answer
            aggregates = "aggregate" in answer.roles
            if aggregates and not (request.party_address and _is_certificate(request.party_certificate)):
                raise EnrolmentInvalid("an aggregator names where the other two reach it: --party-address HOST:PORT")
            if comes_back and node.identity != request.identity:
                raise EnrolmentInvalid(
                    f"{node.name} has left and comes back with the identity key that it had, and no other; enrol from "
                    "its home, or from a backup of it, with --again. If that key was rotated, and this coordinator was "
                    "restored from an older backup since: first `client-node keys rotate --identity` there"
                )
            holders = session.scalars(select(NodeRow).where(NodeRow.fingerprint == key))
            is_taken = any(other.name != node.name for other in holders)
            if is_taken or (not comes_back and _is_taken(session, request.identity)):
                raise EnrolmentInvalid("these keys are registered under another name; enrol from a fresh home")
            node.identity, node.fingerprint = request.identity, key
            node.transport_key = request.transport_public.encode()
            if aggregates:
                node.party_address, node.party_certificate = request.party_address, request.party_certificate
            node.enrolled_at = time.time()
            node.revoked_at = node.left_at = None
            node.trusted_cas = node.known_key = None  # whatever it said before: it takes both from the code's answer
            who, named = f"site:{node.name}", {"site": node.name, "identity": request.identity}
            if comes_back:
                self._store.log_action(session, "site.return", actor=who, **named, key=key)
            else:
                self._store.log_action(session, "site.enrol", actor=who, **named)
        doing = "came back" if comes_back else "enrolled"
        logger.info("%s %s to %s", answer.name, doing, " and ".join(answer.roles))
        return answer

    def rotate(self, request: RotateRequest) -> str:
        """Takes another transport key for an enrolled node; the gate has checked the proofs of both its keys.

        The same key again changes nothing: the first answer may have been lost.

        Returns:
            The fingerprint of the key before.

        Raises:
            EnrolmentInvalid: the key is another node's, the node is not enrolled or not any more, or it has had five
                new keys within the hour: each is an entry of the audit log.
        """
        key = fingerprint(request.transport_public.encode())
        with self._store.alone(_ABOUT) as session:
            node = session.scalars(select(NodeRow).where(NodeRow.identity == request.identity)).first()
            if node is None or node.fingerprint is None or node.revoked_at is not None:
                raise EnrolmentInvalid("the coordinator does not know this node, or has revoked it")
            old: str = node.fingerprint
            if old == key:
                return old
            if session.scalars(select(NodeRow).where(NodeRow.fingerprint == key)).first() is not None:
                raise EnrolmentInvalid("this transport key is registered under another name")
            who = f"site:{node.name}"
            if audit_log.count_of_hour(session, "site.rotate", who) >= MOST_ROTATIONS:
                raise EnrolmentInvalid(f"this node has had {MOST_ROTATIONS} new transport keys within the hour; wait")
            node.fingerprint, node.transport_key = key, request.transport_public.encode()
            self._store.log_action(session, "site.rotate", actor=who, site=node.name, key=key)
        return old

    def note_trust(self, query: AuthorityQuery, wanted: tuple[str, ...]) -> None:
        """Notes which CAs a node says that it trusts, and by which key it knows the coordinator.

        The audit log has the CAs when they are those that are `wanted`, and each key that the node has not named just
        before. One that names none, as before it has heard of a successor, has said nothing of it.

        Raises:
            EnrolmentInvalid: the node is not enrolled or not any more, or has changed its mind too often in an hour.
        """
        said = json.dumps(query.trusts)
        with self._store.alone(_ABOUT) as session:
            node = session.scalars(select(NodeRow).where(NodeRow.identity == query.identity)).first()
            if node is None or node.revoked_at is not None:
                raise EnrolmentInvalid("the coordinator does not know this node, or has revoked it")
            trusts_others, has_other_key = node.trusted_cas != said, node.known_key != query.coordinator
            if not (trusts_others or has_other_key):
                return
            who, words, now = f"site:{node.name}", self._words[node.name], time.monotonic()
            while words and now - words[0] > 3600.0:
                words.popleft()
            if len(words) >= MOST_WORDS:
                raise EnrolmentInvalid("this node has changed what it trusts too often within the hour; wait")
            if trusts_others and query.trusts == wanted:
                if audit_log.count_of_hour(session, "site.trust", who) >= MOST_CONFIRMATIONS:
                    raise EnrolmentInvalid("this node has confirmed other CAs too often within the hour; wait")
                self._store.log_action(session, "site.trust", actor=who, site=node.name, cas=list(query.trusts))
            if has_other_key and query.coordinator is not None:
                if audit_log.count_of_hour(session, "site.key", who) >= MOST_CONFIRMATIONS:
                    raise EnrolmentInvalid("this node has named other keys too often within the hour; wait")
                self._store.log_action(session, "site.key", actor=who, site=node.name, key=query.coordinator)
            node.trusted_cas, node.known_key = said, query.coordinator
            words.append(now)

    def note_decisions(self, word: DecisionsWord) -> None:
        """Takes a node's word on its decisions, as `told_decisions.take` does; the gate has checked its signature.

        Raises:
            EnrolmentInvalid: it does not count.
        """
        told_decisions.take(self._store, word, self._pki.signing.now.all)

    @staticmethod
    def has_open_code(node: NodeRow) -> bool:
        """True if a code would admit a node now: one that has not enrolled yet, or one that has left."""
        is_outside = node.enrolled_at is None or node.left_at is not None
        return is_outside and node.invite_digest is not None and (node.invite_expires or 0.0) > time.time()

    def void_codes(self, action: str, decide: Callable[[Sequence[NodeRow]], dict[str, Any]]) -> None:
        """Voids all open codes, for a reason that the audit log has as an action.

        Args:
            decide: is given all nodes, in the order of their names, while no other process changes one; returns what
                the log says of the action. It may raise: then nothing was changed.
        """
        with self._store.alone(_ABOUT) as session:
            rows = session.scalars(select(NodeRow).order_by(NodeRow.name)).all()
            names = [row.name for row in rows if self.has_open_code(row)]
            fields = decide(rows)
            values = {"invite_digest": None, "invite_expires": None}
            session.execute(update(NodeRow).where(NodeRow.name.in_(names)).values(**values))
            self._store.log_action(session, action, **fields, void=names)

    def follow(self, request: FollowRequest) -> str:
        """Takes the identity keys that follow the one by which a node is known; the gate has checked its signature.

        Successions that were taken already change nothing: the first answer may have been lost, or this register
        comes from an older backup and lacks the newest ones. A node that has left may make its keys known too: it comes
        back with the last of them.

        Returns:
            The node's name.

        Raises:
            EnrolmentInvalid: a succession does not hold, does not follow from the node's present key, is of another
                name or coordinator, or its key is known already; the node is not enrolled, or was revoked; or it has
                had five new keys within the hour, or 200 in all. Those of one request count as one: a register from
                an older backup may lack more.
        """
        keys = request.keys()
        with self._store.alone(_ABOUT) as session:
            node = session.scalars(select(NodeRow).where(NodeRow.identity.in_(keys))).first()
            if node is None or node.identity is None or _is_revoked(node):
                raise EnrolmentInvalid("the coordinator does not know this node, or has revoked it")
            fresh, who = request.successions[keys.index(node.identity) :], f"site:{node.name}"
            if fresh and audit_log.count_of_hour(session, "site.identity", who) >= MOST_ROTATIONS:
                raise EnrolmentInvalid(f"a node has at most {MOST_ROTATIONS} new identity keys within the hour; wait")
            had = select(func.count()).where(SuccessionRow.site == node.name)
            if session.scalars(had).one() + len(fresh) > MOST:
                raise EnrolmentInvalid(f"a node has at most {MOST} identity keys that follow one another")
            for stated in fresh:
                self._require_sound(session, node, stated)
                session.add(
                    SuccessionRow(
                        old=stated.old, new=stated.new, site=node.name, taken_at=time.time(),
                        statement=stated.model_dump_json(),
                    )
                )  # fmt: skip
                node.identity = stated.new
                session.flush()
                self._store.log_action(
                    session, "site.identity", actor=who, site=node.name, old=stated.old, new=stated.new
                )
            return node.name

    def _require_sound(self, session: Session, node: NodeRow, stated: Succession) -> None:
        own = self._pki.signing.now.all  # a node may not have heard yet of the present one
        if stated.site != node.name or stated.coordinator not in own:
            raise EnrolmentInvalid("the succession is of another node, or for another coordinator")
        if problem := stated.problem():
            raise EnrolmentInvalid(f"the succession does not hold: {problem}")
        if stated.old != node.identity or stated.new in own or _is_taken(session, stated.new):
            raise EnrolmentInvalid("the succession does not follow from this node's present key, or to a fresh one")

    def revoke(self, name: str) -> None:
        """Revokes a node and its invitation code: the gate refuses its next request, and its keys never come back.

        Raises:
            NotFound: there is no such node.
            Conflict: it was revoked before, and stays so since then.
        """
        turned_out = {"revoked_at": time.time(), "left_at": None, "invite_digest": None}
        with self._store.alone(_ABOUT) as session:
            node = self._store.node(name)
            if _is_revoked(node):
                raise Conflict(f"{node.name} was revoked before; nothing was changed")
            session.execute(update(NodeRow).where(NodeRow.name == node.name).values(**turned_out))
            told_decisions.forget(session, node.name)
            self._store.log_action(session, "site.revoke", site=node.name)

    def leave(self, name: str) -> None:
        """Lets a node leave: the gate refuses its next request, and the node may come back (`enrol`).

        A second time withdraws the code by which it was to come back.

        Raises:
            NotFound: there is no such node.
            Conflict: it has not enrolled, was revoked, or has left and has no code.
        """
        self._store.node(name)
        with self._store.alone(_ABOUT) as session:
            node = session.get_one(NodeRow, name)
            if node.enrolled_at is None:
                raise Conflict(f"{name} has not enrolled; `coordinator site revoke {name}` withdraws its invitation")
            if node.revoked_at is not None and (node.left_at is None or node.invite_digest is None):
                raise Conflict(f"{name} {'was revoked' if node.left_at is None else 'has left already'}")
            node.left_at = node.revoked_at = time.time()
            node.invite_digest = None
            told_decisions.forget(session, name)
            self._store.log_action(session, "site.leave", site=name)

    def site_of(self, key: str) -> str | None:
        """Name of the enrolled, unrevoked node with this transport key fingerprint; None if there is none."""
        with self._store.session() as session:
            node = session.scalars(select(NodeRow).where(NodeRow.fingerprint == key)).first()
            return node.name if node is not None and node.revoked_at is None else None

    def names_by_key(self) -> dict[str, str]:
        """Names of the enrolled, unrevoked nodes by the fingerprints of their transport keys."""
        with self._store.session() as session:
            found = session.execute(select(NodeRow.fingerprint, NodeRow.name).where(NodeRow.revoked_at.is_(None)))
            return {key: name for key, name in found if key is not None}

    def revoked_site(self, key: str) -> str | None:
        """Name of the node that had this transport key until it was revoked; None if there is none."""
        with self._store.session() as session:
            node = session.scalars(select(NodeRow).where(NodeRow.fingerprint == key)).first()
            return node.name if node is not None and _is_revoked(node) else None

    def left_site(self, key: str) -> str | None:
        """Name of the node that had this transport key until it left; None if there is none."""
        with self._store.session() as session:
            node = session.scalars(select(NodeRow).where(NodeRow.fingerprint == key)).first()
            return node.name if node is not None and node.left_at is not None else None

    def site_with_identity(self, identity: str) -> str | None:
        """Name of the enrolled, unrevoked node with this Ed25519 key; None if there is none."""
        with self._store.session() as session:
            node = session.scalars(select(NodeRow).where(NodeRow.identity == identity)).first()
            return node.name if node is not None and node.revoked_at is None else None

    def site_followed(self, keys: Sequence[str]) -> str | None:
        """Name of the unrevoked node, enrolled or left, that has one of these Ed25519 keys; None if there is none."""
        with self._store.session() as session:
            node = session.scalars(select(NodeRow).where(NodeRow.identity.in_(keys))).first()
            return node.name if node is not None and not _is_revoked(node) else None

    def studies(self, name: str) -> dict[str, Any]:
        """Lists every study for any node that asks: members of a federation may read all its studies.

        With each come the successions that lead to its parties' keys, and with all of them those of the coordinator's
        own key, if there were any.
        """
        stated, signing = self._store.successions(), self._pki.signing.now
        studies = [
            {"canonical": base64.b64encode(row.canonical).decode(), "hash": row.hash, "signature": row.signature}
            | _of_parties(row.canonical, stated)
            for row in self._store.studies()
        ]
        if not (own := signing.successions):
            return {"studies": studies}
        said = [each.model_dump(mode="json") for each in own]
        return {"studies": studies, "coordinator": signing.public, "successions": said}


def _of_parties(canonical: bytes, stated: dict[str, list[Succession]]) -> dict[str, list[dict[str, Any]]]:
    """Lists the successions that lead to the keys in a study, as JSON, under one name; nothing if there were none.

    Later ones are left out: a node takes none that leads to no key of the study.
    """
    if not stated:
        return {}
    study = json.loads(canonical)
    parties = {party["name"]: party["identity"] for kind in ("sites", "aggregators") for party in study[kind]}
    found = [each.model_dump() for name, key in parties.items() for each in _leading_to(key, stated.get(name, []))]
    return {"successions": found} if found else {}


def _leading_to(key: str, stated: Sequence[Succession]) -> Sequence[Succession]:
    """Returns those of a node's successions, in their order, by which it came to have `key`."""
    return next((stated[:count] for count, each in enumerate(stated, 1) if each.new == key), ())


def _is_revoked(node: NodeRow) -> bool:
    """True if a node was revoked for good, and has not only left."""
    return node.revoked_at is not None and node.left_at is None


def _is_taken(session: Session, identity: str) -> bool:
    """True if a node has, or had, this Ed25519 key."""
    node = session.scalars(select(NodeRow).where(NodeRow.identity == identity)).first()
    had = select(SuccessionRow).where((SuccessionRow.old == identity) | (SuccessionRow.new == identity))
    return node is not None or session.scalars(had).first() is not None


def why_not_invited(node: NodeRow) -> str | None:
    """Says why no code is made for a node's name; None if one may be."""
    if node.enrolled_at is None or node.left_at is not None:
        return None
    if node.revoked_at is not None:
        return f"{node.name} was revoked, and neither its keys nor its name come back; choose another name"
    return f"{node.name} is enrolled already; revoke it and choose another name for its new keys"


def _is_certificate(pem: str | None) -> bool:
    try:
        return pem is not None and bool(load_pem_x509_certificate(pem.encode()))
    except (ValueError, InvalidVersion):
        return False


def _roles(node: NodeRow) -> tuple[Role, ...]:
    return tuple(role for role in get_args(Role) if role in node.roles.split(","))
