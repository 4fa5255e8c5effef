"""Looks at a whole federation at once: its server, who is online, its runs, and what an operator should know."""

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...client_node.errors import ClientNodeError
from ...client_node.secret_files import standing
from ...client_node.wire.checkpoints import DIGESTS_A_MESSAGE
from ...durations import duration
from .. import ca_rotation
from ..errors import CoordinatorError
from ..federation import Pki, load_settings, members
from ..federation.members import Member
from ..federation.serving import SeenNode, Serving, read_serving
from ..oversight import access, checkpoints
from ..store import Store, audit_log
from ..store.states import RunState
from ..store.tables import Run
from .approvals import approvals
from .overview import RunStanding, is_silent, run_standings

OLD_S = 30.0  # the server notes something every few seconds
LEAST_FREE = 1 << 30  # bytes of disk


@dataclass(frozen=True, kw_only=True, slots=True)
class MemberStanding:
    """A member, with what the running server sees of it."""

    name: str
    roles: str
    state: str
    online: bool | None  # None if no server runs, or it has not enrolled
    last_seen: float | None  # seconds since 1970; None if not since the server started
    version: str  # of confide there; empty if it has not said
    identity: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Glance:
    """A federation at one moment."""

    federation: str
    serving: Serving | None  # None if no server runs
    members: list[MemberStanding]
    runs: list[RunStanding]
    worries: list[str]  # for people; nothing if all is well
    keys: str  # whether they are sealed
    standbys: list[str]  # machines on which a server stands by


def look(store: Store, home: Path) -> Glance:
    """Looks at the federation under `home`."""
    serving = read_serving(home)
    standings = member_standings(store, serving)
    worries = [*_of_server(store, serving, home), *_of_runs(store, serving, standings), *of_versions(serving)]
    worries += [*access.warnings(store), *_of_witnesses(store)]
    return Glance(
        federation=load_settings(home).federation,
        serving=serving,
        members=standings,
        runs=run_standings(store),
        worries=worries,
        keys=standing(home),
        standbys=store.standbys(),
    )


def member_standings(store: Store, serving: Serving | None) -> list[MemberStanding]:
    """Lists all members by name, with what the running server sees of them."""
    seen: Mapping[str, SeenNode] = {} if serving is None else serving.nodes
    return [_standing(member, serving, seen.get(member.name)) for member in members.members(store)]


def _standing(member: Member, serving: Serving | None, seen: SeenNode | None) -> MemberStanding:
    is_known = serving is not None and member.state == "enrolled" and not _is_old(serving)
    return MemberStanding(
        name=member.name,
        roles=member.roles,
        state=member.state,
        online=(seen is not None and serving is not None and seen.was_online(serving.noted)) if is_known else None,
        last_seen=None if seen is None else seen.at,
        version="" if seen is None else seen.version,
        identity=member.identity,
    )


def _of_server(store: Store, serving: Serving | None, home: Path) -> Iterator[str]:
    unfinished = [run.id for run in store.runs() if not run.state.is_over]
    if serving is None:
        waits = f", and {', '.join(unfinished)} waits" if unfinished else ""
        yield f"nobody serves this federation{waits}: start `coordinator serve`"
    elif _is_old(serving):
        silent = abs(time.time() - serving.noted)
        yield f"the server has noted nothing for {duration(silent)}: its disk is full, or it hangs"
    elif serving.trouble:
        yield f"the server is in trouble: {serving.trouble}"
    elif not serving.superlink:
        yield "the SuperLink does not answer yet; no node can connect"
    if (free := shutil.disk_usage(home).free) < LEAST_FREE:
        yield f"the disk of {home} has {free >> 20} MiB left"
    try:
        pki = Pki.load(home)
        yield from pki.warnings()
        if pki.has_next:
            lacking = ca_rotation.standing(store, home).lacking
            told = (
                f"not known to trust the next one yet: {', '.join(lacking)}" if lacking else "all nodes trust the next"
            )
            yield f"the CA's rotation is under way; {told} (coordinator ca status)"
    except (CoordinatorError, ClientNodeError) as err:
        yield f"certificates and keys: {err}"


def _is_old(serving: Serving) -> bool:
    return abs(time.time() - serving.noted) > OLD_S


def _of_runs(store: Store, serving: Serving | None, standings: Sequence[MemberStanding]) -> Iterator[str]:
    away = {each.name: each for each in standings if each.online is False}
    for run in store.runs():
        if run.state.is_over:
            continue
        if serving is not None and run.state == RunState.RUNNING and is_silent(run):
            yield f"run {run.id}: its driver has been silent for {duration(abs(time.time() - run.heartbeat))}"
        if missing := [name for name in _participants(store, run) if name in away]:
            told = ", ".join(f"{name} ({_last(away[name])})" for name in missing)
            yield f"run {run.id}: away {told}"
        if against := approvals(store, store.study(run.study)).against:
            yield f"run {run.id}: {against} (by what nodes have told)"


def _participants(store: Store, run: Run) -> list[str]:
    """Names the sites and aggregators of a run's study, once each."""
    sites, aggregators = store.study(run.study).parties
    return list(dict.fromkeys((*sites, *aggregators)))


def _last(member: MemberStanding) -> str:
    if member.last_seen is None:
        return "not seen since the server started"
    return f"last seen {duration(max(0.0, time.time() - member.last_seen))} ago"


def of_versions(serving: Serving | None) -> Iterator[str]:
    """Tells which nodes run another version than the server, beside it or refused by it; nothing without a server."""
    if serving is None:
        return
    yield from serving.apart.values()
    beside: dict[tuple[str, int], list[str]] = {}
    for name, seen in sorted(serving.nodes.items()):
        if seen.protocol and seen.version != serving.version and seen.was_online(serving.noted):
            beside.setdefault((seen.version, seen.protocol), []).append(name)
    for (version, protocol), names in beside.items():
        told = f"confide {version} beside {serving.version} here; both speak protocol {protocol}, so runs go on"
        yield f"{', '.join(names)}: {told} (docs/versions.md)"


def _of_witnesses(store: Store) -> Iterator[str]:
    """Names the nodes that have refused to countersign the audit log since they last did so, or lag behind it."""
    with store.session() as session:
        head = audit_log.head(session).seq
    found = checkpoints.witnesses(store)
    for each in found:
        if each.refusal is not None:
            yield f"{each.site} does not countersign the audit log {each.why} (docs/operators.md)"
    behind = {each.site: head - each.reached for each in found if each.refusal is None}
    if told := [f"{name} {count}" for name, count in behind.items() if count > DIGESTS_A_MESSAGE]:
        yield (
            f"entries of the audit log that nodes have not countersigned: {', '.join(told)}; "
            "the next run asks its own for all (docs/operators.md)"
        )
