"""Evaluates a run's adapter on held-out records on the operator's machine; `suite` does so by tasks of a harness."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import Conflict
from ..store import Store
from ..studies.catalogue import load_study
from ..studies.held_out import held_out_policy
from .export import evaluate
from .suite import evaluate_suite
from .trained import trained_model

__all__ = ["evaluate_run", "evaluate_suite"]


def evaluate_run(
    store: Store, home: Path, run_id: str, tables: Sequence[Path], unit_column: str, *, by_mathematics: bool = False
) -> dict[str, Any]:
    """Computes metrics of the run's last state over all `tables` together, with 95 % intervals and the record count.

    Args:
        tables: CSV or Parquet files with the study's own column names.
        unit_column: the column of all tables that names the unit.
        by_mathematics: True to compare completions as formulas too, whatever the study counts as right.

    Raises:
        Conflict: the study's records are not compared so.
    """
    study = load_study(store.study(store.run(run_id).study))
    policies = [held_out_policy(table, study, unit_column) for table in tables]
    model = trained_model(store, home, run_id)
    if by_mathematics and study.draft.data.kind.name != "formulas":  # which are always compared so
        if "equality" not in type(model.terms).model_fields:
            raise Conflict(
                f"records of kind {study.draft.data.kind.name} are not compared as mathematics; those of "
                "[data.formulas], [data.text] and [data.chat] are"
            )
        model = replace(model, terms=model.terms.model_copy(update={"equality": "mathematics"}))
    return evaluate(model, study, policies)
