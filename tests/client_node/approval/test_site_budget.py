import json

import pytest

from confide.client_node.approval.site_budget import accounts, budget_report, export_ledger, import_ledger, set_budget
from confide.client_node.errors import PolicyInvalid
from confide.client_node.policy.site_policy import load_policy
from confide.privacy.report.verify import verify_file


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
