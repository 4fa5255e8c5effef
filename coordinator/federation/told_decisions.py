"""Takes nodes' words on their decisions: which studies their people have approved or revoked.

A word replaces all that the node has told before. Only studies count that are here and name the node, and only a word
that is newer than the last one. What is stored is for people: no run begins or ends by it.
"""

import time
from collections.abc import Collection

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from ...client_node.wire.decisions import DecisionsWord, ToldDecision
from ..errors import EnrolmentInvalid
from ..store import Store, audit_log
from ..store.tables import DecisionRow, NodeRow, StudyRow

MOST_CHANGES = 200  # of one node in an hour, each an entry of the audit log; the rest waits for a later word
APART_S = 1.0  # between two words of one node
_ACTION = "site.decision"
_AT_ONCE = 10  # studies, whose texts may have megabytes


def take(store: Store, word: DecisionsWord, coordinators: Collection[str]) -> None:
    """Stores a word whose signature was checked; the audit log gets each decision that it changes, once.

    Args:
        coordinators: all keys of this coordinator, hex.

    Raises:
        EnrolmentInvalid: the word is for another coordinator, not newer than the last one, or of a node that is not
            enrolled or not any more. It changes nothing.
    """
    if word.coordinator not in coordinators:
        raise EnrolmentInvalid("this word is for another coordinator")
    told = _counting(store, word)
    with store.alone("the register") as session:
        node = session.scalars(select(NodeRow).where(NodeRow.identity == word.identity)).first()
        if node is None or node.revoked_at is not None:
            raise EnrolmentInvalid("the coordinator does not know this node, or has revoked it")
        if node.told_at is not None and word.timestamp < node.told_at + APART_S:
            raise EnrolmentInvalid("this node has told something newer, or has told it just now")
        node.told_at = word.timestamp
        known = {row.study: row for row in session.scalars(select(DecisionRow).where(DecisionRow.site == node.name))}
        room = MOST_CHANGES - audit_log.count_of_hour(session, _ACTION, f"site:{node.name}")
        # What is no approval any more comes first: it is worse to show one that does not hold than to lack one.
        for study in sorted(known.keys() - told.keys()):
            if room > 0:
                session.delete(known[study])
                _log(store, session, node.name, study, "withdrawn", None)
                room -= 1
        for each in sorted(told.values(), key=lambda each: (each.verdict == "approved", each.study)):
            row = known.get(each.study)
            if row is not None and not _is_another(row, each):
                row.runs_left = each.runs_left
            elif room > 0:
                _store(store, session, node.name, row, each)
                room -= 1


def forget(session: Session, site: str) -> None:
    """Deletes what a node has told that leaves or is revoked; an entry of the audit log says that it does."""
    session.execute(delete(DecisionRow).where(DecisionRow.site == site))


def _counting(store: Store, word: DecisionsWord) -> dict[str, ToldDecision]:
    """Finds the decisions of a word that count, by study: on those that are here, and that name the node."""
    told = {each.study: each for each in word.decisions}
    with store.session() as session:
        name = session.scalars(select(NodeRow.name).where(NodeRow.identity == word.identity)).first()
        known = set(session.scalars(select(DecisionRow.study).where(DecisionRow.site == name)))
        fresh = select(StudyRow).where(StudyRow.hash.in_(told.keys() - known))
        for row in session.scalars(fresh.execution_options(yield_per=_AT_ONCE)):
            sites, aggregators = row.parties
            if name in (*sites, *aggregators):
                known.add(row.hash)
    return {study: told[study] for study in told.keys() & known}


def _is_another(row: DecisionRow, told: ToldDecision) -> bool:
    """True if people have decided anew since the row; that runs have begun under an approval is none of their doing."""
    return (row.verdict, row.until) != (told.verdict, _day(told)) or told.runs_left > row.runs_left


def _store(store: Store, session: Session, site: str, row: DecisionRow | None, told: ToldDecision) -> None:
    if row is None:
        row = DecisionRow(site=site, study=told.study)
        session.add(row)
    row.verdict, row.runs_left, row.until, row.since = told.verdict, told.runs_left, _day(told), time.time()
    _log(store, session, site, told.study, told.verdict, row.until)


def _log(store: Store, session: Session, site: str, study: str, decision: str, until: str | None) -> None:
    about = {"site": site, "hash": study, "decision": decision, "until": until}
    store.log_action(session, _ACTION, actor=f"site:{site}", **about)


def _day(told: ToldDecision) -> str | None:
    return None if told.until is None else told.until.isoformat()
