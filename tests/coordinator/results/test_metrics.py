import json

import numpy as np
import pytest

from confide.client_node.errors import StudyInvalid
from confide.coordinator.errors import Conflict
from confide.coordinator.results.metrics import measurement
from confide.coordinator.store.store import Store
from confide.coordinator.store.tables import Evaluation, Run, StudyRow
from confide.models.evaluation.binned import binned_metrics
from confide.privacy.accounting.composition import Release, epsilon_pld

from ...client_node.conftest import EVALUATION, make_study, write_draft

__all__ = ["make_study", "write_draft"]  # fixtures
RUN = "thyroid-0001"
COUNTS = np.array([[300, 250, 120, 60, 30, 12, 9, 3, 2, 1], [2, 3, 5, 8, 20, 30, 45, 60, 70, 90]], dtype=float)


def with_evaluation(store: Store, study, **changes) -> None:
    """A run of `study` whose evaluation is committed."""
    with store.session() as session:
        session.add(
            StudyRow(hash=study.study_hash, name="thyroid", canonical=study.canonical(), signature="", created_at=0.0)
        )
    with store.session() as session:
        session.add(Run(id=RUN, study=study.study_hash, state="running", created_at=0.0))
    lease = store.acquire_lease(RUN)
    if changes.get("number") is not None:
        store.commit_round(evaluation(lease, **changes))


def evaluation(lease: int, **changes) -> Evaluation:
    usual = {
        "run": RUN, "sites": json.dumps(["other", "rest", "svhc", "svi"]), "evidence": "[]",
        "counts": json.dumps(COUNTS.ravel().tolist()), "problem": None, "seconds": 1.0, "bytes_per_site": 1,
        "lease": lease, "committed_at": 0.0,
    }  # fmt: skip
    return Evaluation(**usual | changes)


def test_a_measurement_knows_the_noise_of_all_summed_sites_and_the_cost(empty_store, make_study):
    study = make_study(EVALUATION)
    with_evaluation(empty_store, study, number=41)
    found = measurement(empty_store, RUN)
    assert found.noise_std == pytest.approx(
        4.0 * (4 / 3) ** 0.5, rel=1e-6
    )  # three of four sites make up 4 by themselves
    assert found.metrics == binned_metrics(COUNTS, noise_std=found.noise_std)
    noise = int(np.ceil(4.0 / 3**0.5 * 2**20))
    release = Release(
        mode="distributed", site_noise_int=noise, scale_bits=20, clip_norm=1.0, dim=20, sample_rate=1.0, sites=4
    )
    assert found.epsilon == epsilon_pld([release], 1e-5, 1)
    assert 0 < found.epsilon_added < found.epsilon
    assert (found.delta, found.collusion, found.unit) == (1e-5, 1, "patient")


def test_a_measurement_counts_the_noise_that_sites_added_for_a_missing_one(empty_store, make_study):
    study = make_study(EVALUATION, ("max_dropouts = 0", 'max_dropouts = 1\ndropouts = "top-up"'))
    with_evaluation(empty_store, study, number=41, sites=json.dumps(["other", "rest", "svi"]))
    found = measurement(empty_store, RUN)
    assert found.noise_std == pytest.approx(4.0 * (3 / 2) ** 0.5, rel=1e-6)  # two of three make up 4 by themselves


@pytest.mark.parametrize(
    ("terms", "row", "told"),
    [
        ((), {}, r"has no \[evaluation\]"),
        ((EVALUATION,), {}, "is not evaluated yet"),
        ((EVALUATION,), {"number": 41, "problem": "not evaluated: svi refuses", "counts": "[]"}, "svi refuses"),
    ],
    ids=["no terms", "too early", "too few sites"],
)
def test_what_was_not_measured_says_why(empty_store, make_study, terms, row, told):
    with_evaluation(empty_store, make_study(*terms), **row)
    with pytest.raises(Conflict, match=told):
        measurement(empty_store, RUN)


def test_a_measurement_without_privacy_has_no_noise_and_no_epsilon(empty_store, make_study):
    study = make_study(
        ("[participants]", "[evaluation]\nbins = 10\n[participants]"), ('mode = "distributed"', 'mode = "none"'),
        ("noise_multiplier = 1.19\n", ""), ("delta = 1e-5\n", ""),
    )  # fmt: skip
    with_evaluation(empty_store, study, number=41)
    found = measurement(empty_store, RUN)
    assert (found.noise_std, found.epsilon, found.epsilon_added, found.delta) == (0.0, None, None, None)
    assert found.metrics.records.value == COUNTS.sum()


THREE = (
    'label = "diagnosis"\n',
    'tasks = { ill = { label = "diagnosis" }, age = { label = "old" }, '
    'stay = { number = { column = "days", low = 0.0, high = 9.0, within = 1.0 } } }\n',
)


def test_a_measurement_of_several_tasks_tells_each_of_them(empty_store, make_study):
    counts = np.zeros((2, 10))
    counts[:, 0], counts[:, 1], counts[:, 2] = (300, 700), (100, 900), (5, 1)  # age, ill, stay: by their names
    study = make_study(EVALUATION, THREE)
    with_evaluation(empty_store, study, number=41, counts=json.dumps((counts + 1e-9).ravel().tolist()))
    found = measurement(empty_store, RUN)
    assert [*found.tasks] == ["age", "ill", "stay"]
    assert found.tasks["age"].value == pytest.approx(0.7)
    assert found.tasks["ill"].value == pytest.approx(0.9)
    assert found.tasks["ill"].low < 0.9 < found.tasks["ill"].high
    assert found.tasks["stay"] is None  # six records in noise of a std of 4.6
    assert found.metrics.prevalence.value == pytest.approx(1601 / 2006)
    assert found.metrics.records.value == pytest.approx(2006)
    assert (found.metrics.auc, found.metrics.calibration_error, found.metrics.reliability) == (None, None, ())


def test_bins_of_no_task_add_their_noise_to_no_figure(empty_store, make_study):
    counts = np.full((2, 10), 1e6)
    counts[:, :4] = [[10, 10, 10, 0], [90, 90, 90, 0]]
    with_evaluation(empty_store, make_study(EVALUATION, THREE), number=41, counts=json.dumps(counts.ravel().tolist()))
    assert measurement(empty_store, RUN).metrics.prevalence.value == pytest.approx(0.9)


def test_every_task_needs_a_bin(make_study):
    many = ", ".join(f't{place} = {{ label = "c{place}" }}' for place in range(12))
    with pytest.raises(StudyInvalid, match=r"evaluation\.bins is 10; of 12 tasks each needs one"):
        make_study(EVALUATION, (THREE[0], f"tasks = {{ {many} }}\n"))


def test_a_measurement_of_one_thing_has_no_tasks(empty_store, make_study):
    with_evaluation(empty_store, make_study(EVALUATION), number=41)
    assert measurement(empty_store, RUN).tasks == {}
