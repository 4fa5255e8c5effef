"""Evaluates a run's adapter on held-out records on the operator's machine."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..store import Store
from ..studies.catalogue import load_study
from .export import evaluate, held_out_policy
from .trained import trained_model


def evaluate_run(store: Store, home: Path, run_id: str, tables: Sequence[Path], unit_column: str) -> dict[str, Any]:
    """Computes metrics of the run's last state over all `tables` together, with 95 % intervals and the record count.

    Args:
        tables: CSV or Parquet files with the study's own column names.
        unit_column: the column of all tables that names the unit.
    """
    study = load_study(store.study(store.run(run_id).study))
    policies = [held_out_policy(table, study, unit_column) for table in tables]
    return evaluate(trained_model(store, home, run_id), study, policies)
