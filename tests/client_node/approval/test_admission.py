"""What a node admits at its door, whatever its role."""

import pytest

from confide.client_node.approval.admission import Admission
from confide.client_node.errors import StudyNotApproved
from confide.client_node.policy.decisions import approve, load_decisions
from confide.client_node.wire.messages import Fetch, Prepare, Settle


@pytest.fixture
def aggregator(site):
    """A node that only aggregates, without site.toml, which has approved one run of a study."""
    study = site.aggregate()
    approve(site.home, study.study_hash)
    return Admission(site.home, "agg-a"), study.study_hash


def prepare(study, run):
    return Prepare(to="agg-a", study=study, run=run, lease=1, ledger_from=0)


def test_at_an_aggregator_an_approval_covers_one_run_too(aggregator, site):
    admission, study = aggregator
    admission.admit(prepare(study, "first"))
    admission.count(prepare(study, "first"))
    admission.admit(prepare(study, "first"))
    with pytest.raises(StudyNotApproved, match="covers 1 run, second would be another"):
        admission.admit(prepare(study, "second"))
    assert load_decisions(site.home).runs_used(study) == ("first",)


def test_a_message_that_does_not_prepare_counts_a_run_and_one_that_settles_does_not(aggregator, site):
    admission, study = aggregator
    admission.admit(Settle(to="agg-a", study=study, run="earlier", lease=1, outcomes=(), final=True, ledger_from=0))
    assert load_decisions(site.home).runs_used(study) == ()
    admission.admit(
        Fetch(to="agg-a", study=study, run="first", lease=1, round=1, topup_for=None, aggregator_id=0, offset=0)
    )
    assert load_decisions(site.home).runs_used(study) == ("first",)


def test_of_two_runs_that_are_looked_at_together_one_is_counted(aggregator):
    admission, study = aggregator
    for run in ("first", "second"):
        admission.admit(prepare(study, run))
    admission.count(prepare(study, "first"))
    with pytest.raises(StudyNotApproved):
        admission.count(prepare(study, "second"))
