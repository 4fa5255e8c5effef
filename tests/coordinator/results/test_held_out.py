import pytest

from confide.coordinator.errors import Conflict
from confide.coordinator.results.export import evaluate
from confide.coordinator.results.held_out import evaluate_run
from confide.coordinator.results.trained import trained_model
from confide.coordinator.studies.held_out import held_out_policy

from .test_export import HELD_OUT, RUN, with_run


def test_a_run_is_evaluated_by_its_last_state_on_all_tables_together(federation):
    study = with_run(federation)
    header, *rows = HELD_OUT.splitlines(keepends=True)
    tables = [federation.home / name for name in ("whole.csv", "first.csv", "second.csv")]
    for table, part in zip(tables, (rows, rows[:2], rows[2:]), strict=True):
        table.write_text(header + "".join(part))
    found = evaluate_run(federation.store, federation.home, RUN, tables[1:], "patient_id")
    model = trained_model(federation.store, federation.home, RUN)
    whole = evaluate(model, study, [held_out_policy(tables[0], study, "patient_id")])
    assert found["records"] == whole["records"] == 6
    assert found["auc"] == pytest.approx(whole["auc"])


def test_records_of_fields_are_not_compared_as_mathematics(federation):
    with_run(federation)
    (federation.home / "whole.csv").write_text(HELD_OUT)
    tables = [federation.home / "whole.csv"]
    with pytest.raises(Conflict, match="records of kind fields are not compared as mathematics"):
        evaluate_run(federation.store, federation.home, RUN, tables, "patient_id", by_mathematics=True)
