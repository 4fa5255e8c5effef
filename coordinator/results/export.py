"""Exports a run's adapter for PEFT or merged into its backbone, with its metrics on held-out records."""

from collections.abc import Callable, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...client_node.data import read as read_records
from ...client_node.policy import SitePolicy
from ...client_node.study import Study
from ...client_node.training.study_model import StudyModel
from ...kernels.segments import Segments
from ...models.adapters import ModelCard, export
from ...models.adapters.merging import save_merged
from ...models.records import outcomes
from ...models.records.kind import SHARE
from ...privacy.ledger import charges
from ...privacy.ledger.charges import Books, Spent
from ..errors import Conflict
from ..store import LedgerReplica, Store
from ..store.actions import plain
from ..studies.catalogue import load_study, study_start
from .metrics import measurement
from .privacy_audit import require_audit
from .prototype import released_prototype
from .trained import trained_at


def export_adapter(
    store: Store,
    home: Path,
    run_id: str,
    directory: Path,
    *,
    override_audit: str | None = None,
    destination: str | None = None,
) -> ModelCard:
    """Writes the run's adapter with its model card; epsilon is the largest over the sites, from the ledger replica.

    Args:
        override_audit: a person's reason to export without an audit that passed, stored in the audit log; None to
            require such an audit.
        destination: for the audit log, where the adapter goes in the end; None if it stays in `directory`.

    Raises:
        AuditMissing: the study claims privacy, and no reason is given where `require_audit` refuses.
        Conflict: no round is committed yet, a charge is missing, or `override_audit` has no word in it.
        FileExistsError: `directory` exists already.
    """
    prototype = released_prototype(store, run_id)

    def write(model: StudyModel, backbone: Path, card: ModelCard) -> None:
        export(model.adapted, backbone, directory, card, prototype)

    return publish(store, home, run_id, "adapter.export", directory, write, override_audit, destination)


def merge_adapter(
    store: Store,
    home: Path,
    run_id: str,
    directory: Path,
    *,
    override_audit: str | None = None,
    destination: str | None = None,
) -> ModelCard:
    """Writes the backbone with the run's adapter in its weights; arguments and errors are those of `export_adapter`.

    Raises:
        UnsupportedModule: an adapted module of the backbone has no weights that the adapter can be added to.
    """

    def write(model: StudyModel, backbone: Path, card: ModelCard) -> None:
        save_merged(model.adapted, backbone, directory, card)

    return publish(store, home, run_id, "adapter.merge", directory, write, override_audit, destination)


def publish(
    store: Store,
    home: Path,
    run_id: str,
    action: Literal["adapter.export", "adapter.merge", "adapter.deploy"],
    directory: Path,
    write: Callable[[StudyModel, Path, ModelCard], None],
    override_audit: str | None,
    destination: str | None = None,
) -> ModelCard:
    """Writes a run's model by `write`, after checking its charges and its audit, and returns its model card.

    The entry in the audit log comes first: a model that leaves without one is worse than an entry of one that could not
    be written. Arguments and errors are those of `export_adapter`.

    Args:
        action: of the audit log.
        directory: what `write` writes, for the audit log.
    """
    if override_audit is not None and not override_audit.strip():
        raise Conflict("--override-audit needs a reason in words; nothing was written")
    study = load_study(store.study(store.run(run_id).study))
    require_charges(store, run_id)
    model, number, _ = trained_at(store, home, run_id, unpacked=True)  # nothing can be added to a packed weight
    standing = require_audit(store, study, run_id, override_audit, number)  # the run may have gone on meanwhile
    card = _card(store, study, run_id, standing.card, number)
    if not directory.exists():  # else `write` refuses
        with store.session() as session:
            went_to = plain(destination or directory)
            store.log_action(session, action, run=run_id, folder=went_to, override=standing.override)
    write(model, study_start(home, study).backbone, card)
    return card


def copy_for_measuring(store: Store, home: Path, run_id: str, directory: Path) -> Path:
    """Writes the run's adapter as `export_adapter` does, to be measured on this machine and then deleted.

    Nothing is published, so no audit is asked for.

    Returns:
        The folder of the backbone that it is for.

    Raises:
        Conflict: no round is committed yet, or a charge is missing.
    """
    study = load_study(store.study(store.run(run_id).study))
    require_charges(store, run_id)
    backbone = study_start(home, study).backbone
    model, number, _ = trained_at(store, home, run_id, unpacked=True)
    card = _card(store, study, run_id, "a copy for measuring, not published", number)
    export(model.adapted, backbone, directory, card)
    return backbone


def _card(store: Store, study: Study, run_id: str, audit: str, rounds: int) -> ModelCard:
    """Collects the facts of a run's model.

    Args:
        audit: what is known of the training step, in words.
        rounds: the model is as of the last of them.
    """
    privacy = study.draft.privacy
    has_guarantee = privacy.mode != "none"
    evaluation = store.evaluation(run_id)
    is_measured = evaluation is not None and evaluation.problem is None
    metrics = measurement(store, run_id).metrics if is_measured else None
    spent = largest_epsilon(store, study, colluding=privacy.collusion) if has_guarantee else None
    judged = study.draft.data.judged
    right = metrics.prevalence if metrics and judged != "labels" else None  # the share of records with label 1
    segments = study.draft.model.segments
    return ModelCard(
        study=study.name,
        study_hash=study.study_hash,
        backbone_hash=study.backbone_hash,
        sites=tuple(site.name for site in study.sites),
        rounds=rounds,
        unit=study.draft.data.unit,
        mode=privacy.mode,
        epsilon=spent.pld if spent else None,
        guaranteed=spent.guaranteed if spent else None,
        delta=privacy.delta if has_guarantee else None,
        collusion=privacy.collusion,
        auc=metrics.auc if metrics and judged == "labels" else None,
        **{SHARE[judged]: right},
        audit=audit,
        experts=study.draft.model.experts,
        frozen=study.draft.model.frozen,
        segments=None if segments is None else Segments(**segments.model_dump()),
    )


def require_charges(store: Store, run_id: str) -> None:
    """Raises `Conflict` unless every summed site's charge is here: without it epsilon would come out too small."""
    replica = LedgerReplica(store)
    for row in store.opened(run_id, with_evidence=False):
        for site in row.summed:
            if not replica.has_charge(site, run_id, row.number):
                raise Conflict(
                    f"run {run_id}: no charge of {site} for round {row.number} is here; restore the database"
                )


def largest_epsilon(store: Store, study: Study, *, colluding: int) -> Spent:
    """Computes the largest of each figure that a site has on a data set of the study's unit, at the study's delta."""
    replica, worst = LedgerReplica(store), Spent(0.0, 0.0, 0.0, 0, 0)
    for site in study.sites:
        books = Books.replay(replica.entries(site.name))
        for dataset, unit in books.accounts():
            if unit == study.draft.data.unit:
                found = charges.spent(
                    books.releases(dataset, unit),
                    colluding=colluding,
                    delta=study.draft.privacy.delta,
                    order=books.order_in_force(dataset, unit),
                    recovery=books.recoveries.get((dataset, unit)),
                )
                worst = Spent(*map(max, zip(astuple(worst), astuple(found), strict=True)))
    return worst


def evaluate(model: StudyModel, study: Study, policies: Sequence[SitePolicy]) -> dict[str, Any]:
    """Computes metrics with 95 % intervals over all held-out tables together, by the study's kind of record."""
    return model.evaluate([model.examples(read_records(policy, study, site=None)) for policy in policies])


def score(model: StudyModel, study: Study, policy: SitePolicy) -> tuple[np.ndarray, np.ndarray]:
    """Computes logits and labels of the records that `policy` points to, for a study that classifies."""
    examples = model.examples(read_records(policy, study, site=None))
    return outcomes.scores(model.adapted, examples), examples.targets
