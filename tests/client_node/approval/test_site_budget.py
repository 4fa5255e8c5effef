import json

import pytest

from confide.client_node.approval import site_budget
from confide.client_node.approval.charges import open_ledger, reserve
from confide.client_node.approval.site_budget import accounts, budget_report, cap_change, export_ledger
from confide.client_node.backup import import_ledger
from confide.client_node.enrolment import Enrolment
from confide.client_node.errors import PolicyInvalid
from confide.client_node.policy import decision_log, decisions
from confide.client_node.policy.site_policy import load_policy
from confide.privacy.report.verify import verify_file


def set_budget(home, by=None, **figures):
    return site_budget.set_budget(home, cap_change(home, **figures), by=by)


def test_a_ledger_without_charges_has_no_account(site):
    assert accounts(site.home) == []


def test_a_budget_holds_at_once_and_nothing_is_spent_under_it(site):
    (account,) = set_budget(site.home, epsilon=2.5, delta=1e-6, collusion=2)
    assert account.budget is not None
    assert account.spent is not None
    assert (account.dataset, account.unit, account.budget.epsilon) == ("patients", "patient", 2.5)
    assert (account.spent.pld, account.spent.rdp, account.spent.releases) == (0, 0, 0)
    assert accounts(site.home) == [account]
    assert load_policy(site.home).budget.collusion == 2


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("nan"), float("inf")])
def test_a_budget_out_of_range_changes_nothing(site, epsilon):
    with pytest.raises(PolicyInvalid, match="budget: 1 problem"):
        set_budget(site.home, epsilon=epsilon, delta=1e-5, collusion=1)
    assert accounts(site.home) == []
    assert load_policy(site.home).budget.epsilon == 10.0


def test_no_budget_is_set_for_data_that_nobody_described(site):
    (site.home / "site.toml").unlink()
    with pytest.raises(PolicyInvalid, match="the file is missing"):
        set_budget(site.home, epsilon=1.0, delta=1e-5, collusion=1)
    assert not (site.home / "decisions.json").exists()


def test_a_report_of_the_site_verifies_and_names_the_known_studies(site, tmp_path):
    study = site.keep(site.study())
    set_budget(site.home, epsilon=2.5, delta=1e-6, collusion=1)
    report = budget_report(site.home)
    assert [facts["hash"] for facts in report["studies"]] == [study.study_hash]
    (tmp_path / "report.json").write_text(json.dumps(report))
    assert verify_file(tmp_path / "report.json").ok


def test_an_exported_ledger_is_taken_back_once(site, tmp_path):
    before = set_budget(site.home, epsilon=2.5, delta=1e-6, collusion=1)
    head = export_ledger(site.home, tmp_path / "ledger.jsonl")
    for path in site.home.glob("ledger.db*"):
        path.unlink()
    assert import_ledger(site.home, tmp_path / "ledger.jsonl") == (head.seq + 1, head.seq + 1)
    assert accounts(site.home) == before
    assert import_ledger(site.home, tmp_path / "ledger.jsonl") == (0, head.seq + 1)


@pytest.mark.parametrize(
    ("figures", "is_weaker"),
    [
        ({"epsilon": 20.0}, True),
        ({"delta": 1e-4}, True),
        ({"collusion": 0}, True),
        ({"epsilon": 2.0, "delta": 1e-4}, True),
        ({}, False),
        ({"epsilon": 9.9}, False),
        ({"epsilon": 9.9, "delta": 1e-6, "collusion": 2}, False),
    ],
)
def test_a_cap_is_weaker_if_any_of_its_figures_promises_less(site, figures, is_weaker):
    change = cap_change(site.home, **{"epsilon": 10.0, "delta": 1e-5, "collusion": 1} | figures)
    assert (change.before.epsilon, change.is_weaker, change.is_spent) == (10.0, is_weaker, False)


def test_a_cap_below_what_is_guaranteed_says_so(site):
    study = site.keep(site.study())
    decisions.approve(site.home, study.study_hash)
    with open_ledger(site.home, site.identity, Enrolment.load(site.home)) as ledger:
        for number in (1, 2):
            reserve(ledger, study, load_policy(site.home), run="r", round_number=number)
        guaranteed = ledger.spent("patients", "patient", 1, 1e-5).guaranteed
    for cap, is_spent in ((guaranteed * 1.001, False), (guaranteed * 0.999, True)):
        change = cap_change(site.home, epsilon=cap, delta=1e-5, collusion=1)
        assert (change.guaranteed, change.is_spent) == (guaranteed, is_spent)


def test_who_changed_a_cap_is_noted_with_what_it_was(site):
    set_budget(site.home, by="Dr. Ada", epsilon=3.0, delta=1e-5, collusion=1)
    set_budget(site.home, epsilon=20.0, delta=1e-5, collusion=1)
    (first, second), unread = decision_log.read(site.home)
    assert (first.by, first.decision, unread) == ("Dr. Ada", "cap", [])
    assert first.detail.startswith("epsilon 10, delta 1e-05, colluding 1 -> epsilon 3,")
    assert second.detail.startswith("epsilon 3, delta 1e-05, colluding 1 -> epsilon 20,")
    assert second.by == second.login == first.login
