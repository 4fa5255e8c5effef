"""The coordinator's part of a run, round by round, from top to bottom.

The coordinator is trusted with none of the sites' data, nor with the trained vector: it relays sealed shares that it
cannot open, learns the total of one agreed set of sites, and passes it on, so that each site takes the server step
itself. Every step may be interrupted at any time. The next driver takes a newer lease, starts from the last committed
round and asks again: nodes answer a repeated question with the stored answer, so a round is never released twice and
never charged twice.
"""

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ...client_node.replay import Checkpoint
from ...client_node.replay.following import follow, round_start
from ...client_node.wire.messages import Packet, Prepare, Ready, Settle, Settled, is_full, sign
from ..errors import MessageRefused, RunRefused, SitesMissing, TotalRefused
from ..store.run_folder import Envelopes
from ..store.states import FINISH, LEAVE
from ..store.tables import Absence, Evaluation, Prototype, Round
from . import questions
from .aggregation import aggregate, opened_total
from .auditing import answered, offered
from .collection import collect_updates
from .context import Keys, RoundContext, RunContext
from .questions import ask_until
from .recovery import newest_checkpoint

logger = logging.getLogger(__name__)

Closing = Literal["prototype", "evaluation"]  # purposes of rounds after the last update
FAREWELL_S = 60.0  # how long the end of a run waits for nodes that are away


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """The nodes' answers before the first round."""

    keys: Keys
    abstaining: frozenset[str]  # sites that hold no records out


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """The opened total of a round, and the columns of its row."""

    total: np.ndarray  # float64 [dim of the round]
    words: bytes  # its ring elements
    summed: tuple[str, ...]
    record: dict[str, Any]  # columns of the row, for every purpose


def drive_run(run: RunContext) -> None:
    """Drives a run from its last committed round to its end, or until an operator stops it."""
    checkpoint = newest_checkpoint(run)
    if not is_over(run, checkpoint):  # else only `settle` is missing, and the run's keys may be deleted
        run.study.require_start()
        prepared = prepare(run)
        while checkpoint.round < run.study.draft.rounds.rounds:
            run.stop_if_asked()
            checkpoint = one_round(run, prepared, checkpoint)
        for purpose in missing(run):
            run.stop_if_asked()
            closing_round(run, prepared, checkpoint, purpose)
    settle(run, final=True)
    closing = (run.store.prototype(run.id), run.store.evaluation(run.id))
    problems = [row.problem for row in closing if row is not None and row.problem is not None]
    run.store.move_run(run.id, FINISH, lease=run.lease, error="; ".join(problems)[:2000] or None)
    run.folder.drop_totals()


def take_leave(run: RunContext) -> None:
    """Tells the nodes of an abandoned run that it has ended, as far as they can be reached, and deletes its files."""
    settle(run, final=True)
    run.store.move_run(run.id, LEAVE, lease=run.lease)
    run.folder.drop_totals()
    run.folder.prune(run.study.last_round, updates=run.study.draft.rounds.rounds)


def is_over(run: RunContext, checkpoint: Checkpoint) -> bool:
    """True if every round of the study is committed, what follows the last update included."""
    return checkpoint.round >= run.study.draft.rounds.rounds and not missing(run)


def missing(run: RunContext) -> tuple[Closing, ...]:
    """Lists what is to follow the last update and is not committed, in order."""
    there = {"prototype": run.store.prototype(run.id), "evaluation": run.store.evaluation(run.id)}
    return tuple(purpose for purpose in run.study.draft.closing if there[purpose] is None)


def prepare(run: RunContext) -> Prepared:
    """Asks every aggregator for its key for this run, and the sites to load the study until a quorum has.

    A site whose ledger is longer than one message is asked for the rest too, so that no round waits for it; so is a
    node that has more of the audit log to countersign than one message covers.
    """
    behind: set[str] = set()  # nodes of which the replica may still lack entries, or which lag behind the audit log
    abstaining: set[str] = set()
    trains = frozenset(run.study.site_names())  # not `run.sites`, which reads the register anew for each name

    def request(name: str) -> Packet:
        since = run.replica.length(name) if name in trains else 0
        return sign(Prepare(**run.addressed(name), ledger_from=since, audit=offered(run, name)), run.signer)

    def accept(name: str, answer: Ready, _: Packet) -> None:
        run.accept_ledger(name, answer.ledger)
        if answered(run, name, answer.audit) or is_full(answer.ledger):
            behind.add(name)
        if not answer.evaluates:
            abstaining.add(name)

    answers = ask_until(run, "prepare", run.parties, request, (Ready,), needed=len(run.parties), accept=accept)
    present = run.sites
    sites = [site for site in present if site not in answers]
    needed = run.study.quorum - (len(present) - len(sites))
    ask_until(run, "prepare", sites, request, (Ready,), needed=needed, accept=accept)
    deadline = time.monotonic() + questions.PATIENCE_S  # a ledger without end must not keep the others waiting for ever
    while behind and time.monotonic() < deadline:
        asked = tuple(behind)
        behind.clear()
        ask_until(run, "prepare", asked, request, (Ready,), needed=0, accept=accept)
    keys = []
    for aggregator_id, party in enumerate(run.study.aggregators):
        key = answers[party.name].key
        if key is None or (key.run, key.study, key.aggregator_id) != (run.id, run.study.study_hash, aggregator_id):
            raise MessageRefused(f"aggregator {party.name} sent no key for run {run.id}")
        key.verify(party.identity)
        keys.append(key)
    first, second, third = keys
    return Prepared(keys=(first, second, third), abstaining=frozenset(abstaining))


def one_round(run: RunContext, prepared: Prepared, checkpoint: Checkpoint) -> Checkpoint:
    """Opens a round of training, and steps the server optimizer by its total."""
    start = round_start(run.study, checkpoint)
    planned = start.planned
    round_ = RoundContext(run=run, keys=prepared.keys, planned=planned, state_hash=start.digest, cohort=run.sites)
    opened = open_round(round_)
    # 7 commit: the round exists once its row does.
    after = follow(run.study, checkpoint, opened.words, kept=len(opened.summed))
    run.store.beat(run.id, run.lease)  # an older driver, of a machine that slept, must not write over this file
    run.folder.save_total(planned.number, opened.words)
    digest = run.folder.save(after)
    round_.laps.end("apply")
    record = opened.record | round_.laps.columns
    run.store.commit_round(Round(**record, state_hash=digest, committed_at=time.time()), round_.missing(opened.summed))
    run.folder.prune(planned.number, updates=run.study.draft.rounds.rounds)
    logger.info("run %s: round %d committed with %s", run.id, planned.number, ", ".join(opened.summed))
    return after


def open_round(round_: RoundContext) -> Opened:
    """Takes steps 1 to 6 of a round, the same for every purpose: opens the total of the cohort's updates."""
    # 1 plan: fixed by the immutable study, the last committed state and the aggregators' keys. A site first gets the
    # totals that it lacks, and must come to the same state by itself.
    # 2 admit, 3 step, 4 split: at the sites, which charge their ledgers before they read a record.
    # 5 relay: what they have sealed is checked as far as a relay can, and kept on disk until the round is committed.
    updates = collect_updates(round_)
    round_.laps.end("collect")
    # 6 aggregate: at the aggregators, which agree on one set of sites for this round, for ever. If sites are missing,
    # and the study wants it so, those of the set first make up for the noise of the missing ones.
    agreed = aggregate(round_, updates)
    topups = round_.run.folder.topups(round_.number, agreed.summed).read()
    total = opened_total(round_, agreed)
    round_.laps.end("open")
    run, laps = round_.run, round_.laps.columns
    logger.info(
        "run %s: %s: %.2f s to the last sealed share, %.2f s to the total",
        run.id, round_.title, laps["collect_s"], round_.laps.total - laps["collect_s"],
    )  # fmt: skip
    record = {
        "run": run.id,
        "number": round_.number,
        "sites": json.dumps(agreed.summed),
        "evidence": json.dumps(agreed.evidence),
        "seconds": round_.laps.total,
        "bytes_per_site": largest(updates) + largest(topups),
        "lease": run.lease,
        **laps,
    }
    return Opened(total=total, words=agreed.total, summed=agreed.summed, record=record)


def largest(envelopes: Envelopes) -> int:
    """Counts the sealed bytes of the site that sent the most."""
    return max((sum(incoming.size for incoming in sealed) for sealed in envelopes.values()), default=0)


def closing_round(run: RunContext, prepared: Prepared, checkpoint: Checkpoint, purpose: Closing) -> None:
    """Opens a round after the last update: a mean of how the backbone reads the records, or a histogram of scores.

    If too few sites take part, too many refuse for good, or the total has not their tags, the reason is stored
    instead: the trained state is kept.
    """
    planned = run.study.closing_round(purpose)
    is_evaluation = purpose == "evaluation"
    done = "evaluated" if is_evaluation else "a prototype"
    cohort = tuple(site for site in run.sites if not (is_evaluation and site in prepared.abstaining))
    row: Prototype | Evaluation
    absent: Mapping[str, Absence] = {}
    try:
        if len(cohort) < run.study.quorum:  # asked nevertheless, the others would pay for a sum that is never opened
            raise RunRefused(
                f"{run.study.quorum} sites are needed, only {', '.join(cohort) or 'none'} hold records out"
            )
        state_hash = round_start(run.study, checkpoint, planned.number).digest
        round_ = RoundContext(run=run, keys=prepared.keys, planned=planned, state_hash=state_hash, cohort=cohort)
        opened = open_round(round_)
    except (RunRefused, TotalRefused) as err:
        problem = f"not {done}: {err}"
        logger.warning("run %s: %s", run.id, problem)
        record = {
            "run": run.id, "number": planned.number, "sites": "[]", "evidence": "[]", "problem": problem[:2000],
            "seconds": 0.0, "bytes_per_site": 0, "lease": run.lease,
        }  # fmt: skip
        entries = "[]"
    else:
        record, entries = opened.record, json.dumps(opened.total.tolist())
        absent = round_.missing(opened.summed)
        logger.info("run %s: %s with %s", run.id, done, ", ".join(opened.summed))
    record |= {"committed_at": time.time()}
    row = Evaluation(**record, counts=entries) if is_evaluation else Prototype(**record, entries=entries)
    run.store.commit_round(row, absent)
    run.folder.prune(planned.number, updates=run.study.draft.rounds.rounds)


def settle(run: RunContext, *, final: bool) -> None:
    """Tells every node the outcomes it has not been told; `final` ends the run at the nodes and deletes its keys.

    A node that cannot be reached for a while is skipped: its charges stay at their worst, and its key is useless
    without the others.
    """
    run.beat("sites sign what was really summed")
    sites = run.sites

    def request(name: str) -> Packet:
        is_site = name in sites
        message = Settle(
            **run.addressed(name),
            outcomes=run.untold_outcomes(name) if is_site else (),
            final=final,
            ledger_from=run.replica.length(name) if is_site else 0,
            audit=offered(run, name),
        )
        return sign(message, run.signer)

    def accept(name: str, answer: Settled, _: Packet) -> None:
        run.accept_ledger(name, answer.ledger)
        answered(run, name, answer.audit)

    nodes = tuple(dict.fromkeys((*sites, *run.parties)))
    needed, patience = (len(nodes), FAREWELL_S) if final else (0, 0.0)
    try:
        ask_until(run, "settle", nodes, request, (Settled,), needed=needed, accept=accept, patience=patience)
    except (SitesMissing, RunRefused) as err:
        logger.warning("run %s: %s", run.id, err)
