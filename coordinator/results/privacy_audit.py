"""Audits the privacy of a run's training step; an adapter that claims privacy is exported only after an audit.

An audit runs the sites' own training step on public canaries with the run's model, on this machine: no site and no
record takes part, and it costs no budget. Two parts: `privacy.audit.engine_checks` tests the step claim by claim;
`privacy.audit.canaries` lets an auditor guess which canaries took part, and turns its right guesses into a lower bound
on epsilon.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ... import __version__
from ...client_node.study import Study
from ...models.rounding import rounded_down, rounded_up
from ...privacy.ledger import chain
from ...privacy.report.schema import AuditFacts, AuditFinding, audit_facts, dump
from ..errors import AuditMissing, Conflict
from ..store import Store
from ..store.tables import PrivacyTest
from ..studies.catalogue import load_study

if TYPE_CHECKING:
    from ...privacy.audit.canaries import AuditResult
    from ...privacy.audit.engine_checks import Checked, Engine

Verdict = Literal["passed", "failed", "missing", "not needed"]

_ROWS = 256  # of one microbatch


@dataclass(frozen=True, slots=True)
class Standing:
    """The audit's lines in the model card and in the audit log of an export."""

    card: str  # the model card's line on audits
    override: str | None = None  # the audit log's line once the adapter is written, if a person overrides


def audit_run(store: Store, home: Path, run_id: str, *, engine: "Engine | None" = None) -> AuditFacts:
    """Audits the training step of a run on its last committed state, and stores the result.

    Args:
        engine: the step to audit; None for the sites' own.

    Raises:
        Conflict: no round is committed yet, or the study claims no privacy.
    """
    from ...client_node.training.trainer import release_terms
    from ...privacy.audit.canaries import AuditedStep, run_audit
    from ...privacy.audit.engine_checks import check_engine, site_round
    from ...privacy.mechanism.site_round import LocalSteps
    from .trained import trained_at

    study = load_study(store.study(store.run(run_id).study))
    privacy = study.draft.privacy
    if privacy.mode == "none":
        raise Conflict(f"run {run_id} claims no privacy: there is nothing to audit, and export asks for none")
    started, engine = time.monotonic(), engine or site_round
    model, number, _ = trained_at(store, home, run_id)
    terms = release_terms(
        study.draft,
        privacy.mode,
        site_noise=study.site_noise(study.planned_round(1)),
        scale_bits=study.scale_bits,
        max_rows=max(_ROWS, study.draft.data.max_records_per_unit),
    )
    # Canaries are in one step at a fixed clip norm: an adaptive one's start value, with its noise.
    one_step = replace(
        terms,
        site_noise_int=study.site_noise(replace(study.planned_round(1), clip_norm=privacy.clip_norm)),
        clipping="fixed",
        local=LocalSteps(),
    )
    # With top-up any allowed sum has the noise of all sites in the end.
    sites = len(study.sites) if privacy.dropouts == "top-up" else study.quorum
    step = AuditedStep(terms=one_step, sites=sites, colluding=privacy.collusion, delta=privacy.delta)
    checked = check_engine(engine, model.adapted, model.words, terms)
    guessed = run_audit(engine, model.adapted, model.words, step)
    facts = _facts(study, run_id, number, checked, guessed, time.monotonic() - started)
    verdict = "passed" if facts.passed else "FAILED"
    store.add_privacy_test(
        PrivacyTest(run=run_id, kind="audit", facts=json.dumps(dump(facts))),
        f"audit of run {run_id} at round {number} {verdict}: at least {rounded_down(facts.lower_bound)}, "
        f"claimed {rounded_up(facts.claimed_epsilon)}, {len(facts.findings)} findings",
    )
    return facts


def _facts(
    study: Study, run_id: str, round_number: int, checked: "Checked", guessed: "AuditResult", seconds: float
) -> AuditFacts:
    return AuditFacts(
        run=run_id,
        study=study.study_hash,
        round=round_number,
        time=chain.now(),
        delta=guessed.delta,
        claimed_epsilon=guessed.claim,
        lower_bound=guessed.lower_bound,
        largest_bound=guessed.reach,
        confidence=guessed.design.confidence,
        noise_multiplier=guessed.noise_multiplier,
        colluding=study.draft.privacy.collusion,
        steps=guessed.design.steps,
        canaries=guessed.design.canaries,
        guesses=guessed.design.guesses,
        right=guessed.right,
        right_unprotected=guessed.right_unprotected,
        checks=list(checked.checks),
        findings=[AuditFinding(check=found.check, detail=found.detail) for found in checked.findings],
        blocks=checked.blocks,
        blocks_reached=checked.reached,
        seconds=round(seconds, 1),
        versions=f"confide {__version__}, torch {version('torch')}",
    )


def audits(store: Store, run_id: str) -> list[AuditFacts]:
    """Lists every audit of a run, oldest first."""
    return [audit_facts(text) for text in store.privacy_tests(run_id, "audit")]


def audit_verdict(study: Study, last_round: int, found: Sequence[AuditFacts]) -> Verdict:
    """Judges a run's audits, given its last committed round: a failed one counts for good, one that passed until then.

    A failed audit blocks every later export: its finding was in the code that trained the run.
    """
    if study.draft.privacy.mode == "none":
        return "not needed"
    if any(not facts.passed for facts in found):
        return "failed"
    return "passed" if any(facts.round == last_round for facts in found) else "missing"


def require_audit(store: Store, study: Study, run_id: str, override: str | None, last: int) -> Standing:
    """Checks that the run's audits allow an export, and returns its lines for model card and audit log.

    Args:
        override: a person's reason to export nevertheless; None for no override.
        last: the round that the model is of.

    Raises:
        AuditMissing: the study claims privacy, nobody overrides, and that round was not audited or an audit failed.
    """
    found = audits(store, run_id)
    verdict = audit_verdict(study, last, found)
    if verdict == "not needed":
        return Standing("none, since the adapter claims no privacy")
    if verdict == "passed":
        return Standing(summary([facts for facts in found if facts.round == last][-1]))
    failed = [facts for facts in found if not facts.passed]
    if verdict == "failed":
        problem = f"failed: {summary(failed[-1])}"
    else:
        problem = f"is missing: {_what_there_is(found)}, and round {last} would be exported"
    if override is None:
        raise AuditMissing(
            f"run {run_id} claims privacy, but its audit {problem}. Nothing was written. "
            + ("" if failed else f"Run `coordinator audit privacy {run_id}` first. ")
            + 'To export all the same, give a reason, which the model card will show: --override-audit "..."'
        )
    return Standing(
        f"**overridden**: the audit {problem}; reason given: {override}",
        f"export of run {run_id} overrides its audit, which {problem}; reason: {override}"[:2000],
    )


def summary(facts: AuditFacts) -> str:
    """Summarises one audit in a line."""
    bound = (
        f"{facts.right} of {facts.guesses} guesses about {facts.canaries} canaries were right, so epsilon of one "
        f"audited step at a fixed clip is at least {rounded_down(facts.lower_bound)} "
        f"({100 * facts.confidence:g} % confidence), claimed {rounded_up(facts.claimed_epsilon)}"
    )
    if facts.right_unprotected is not None:
        bound += f"; without clip and noise {facts.right_unprotected} of {facts.guesses} guesses would be right"
    if not facts.findings:
        return f"{bound}; {len(facts.checks)} checks of the step found nothing"
    return f"{bound}; {'; '.join(f'{found.check}: {found.detail}' for found in facts.findings)}"


def _what_there_is(found: list[AuditFacts]) -> str:
    return f"the last one is of round {found[-1].round}" if found else "there is none"
