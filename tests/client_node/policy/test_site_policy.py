import json
import stat
import threading
from pathlib import Path

import pytest
from pydantic import ValidationError

from confide.client_node.approval.catalogue import approved_study, cached_study, find_study, known_studies
from confide.client_node.errors import PolicyInvalid, StudyInvalid, StudyNotApproved, StudyUnknown
from confide.client_node.policy import decisions
from confide.client_node.policy.decisions import BudgetPolicy, set_budget
from confide.client_node.policy.site_policy import approve, load_policy, revoke

NO_PRIVACY = (
    ('mode = "distributed"\nnoise_multiplier = 1.19', 'mode = "none"'),
    ("delta = 1e-5\n", ""),
)

BAD_POLICIES = {
    "no data": (("[data]\npath", "[dat]\npath"), "dat is not a setting; did you mean data?"),
    "no unit column": (('unit_column = "patient_id"\n', ""), "data.unit_column is missing; add it: unit_column ="),
    "no unit": (('unit = "patient"\n', ""), 'data.unit is missing; add it: unit = "patient"'),
    "unknown format": (("[data.columns]", 'format = "xls"\n[data.columns]'), 'data.format is "xls"; it must be'),
    "long separator": (
        ("[data.columns]", 'separator = "::"\n[data.columns]'),
        'data.separator is "::"; it must be one of',
    ),
    "column not text": (('TSH = "tsh_miu_l"', "TSH = 3"), "data.columns.TSH is 3; it must be text in quotes"),
    "no budget": (("[budget]\nepsilon = 10.0\ndelta = 1e-5\n", ""), "budget is missing; add it: a table [budget]"),
    "epsilon infinite": (("epsilon = 10.0", "epsilon = inf"), "budget.epsilon is Infinity; it must be a finite number"),
    "epsilon negative": (("epsilon = 10.0", "epsilon = -1"), "budget.epsilon is -1; it must be greater than 0"),
    "delta too large": (
        ("delta = 1e-5", "delta = 0.1"),
        "budget.delta is 0.1; it must be greater than 0 and at most 0.001",
    ),
    "not a hash": (
        ("[backbone]", '[studies]\napproved = ["all"]\n[backbone]'),
        'studies.approved.0 is "all"; it must be 64',
    ),
    "everything approved": (
        ("[backbone]", "[studies]\napproved = true\n[backbone]"),
        "studies.approved is true; it must be a list",
    ),
    "no threads": (("threads = 1", "threads = 0"), "limits.threads is 0; it must be at least 1"),
}


@pytest.mark.parametrize("case", BAD_POLICIES)
def test_a_bad_policy_is_told_by_file_key_value_and_remedy(case, site):
    change, expected = BAD_POLICIES[case]
    path = site.write(change)
    with pytest.raises(PolicyInvalid) as caught:
        load_policy(site.home)
    assert str(path) in str(caught.value)
    assert expected in str(caught.value)


def test_a_fresh_site_approves_nothing(site):
    study = site.keep(site.study())
    policy = load_policy(site.home)
    assert policy.studies.approved == policy.studies.unprotected == ()
    assert not policy.permits(study)
    with pytest.raises(StudyNotApproved, match="client-node study approve"):
        approved_study(site.home, study.study_hash)


def test_a_site_without_policy_approves_nothing(site):
    study = site.keep(site.study())
    (site.home / "site.toml").unlink()
    with pytest.raises(PolicyInvalid, match="missing"):
        load_policy(site.home)
    with pytest.raises(StudyNotApproved):
        approved_study(site.home, study.study_hash)
    approve(site.home, study.study_hash)  # a decision alone does not say on which data
    with pytest.raises(PolicyInvalid):
        approved_study(site.home, study.study_hash)


def test_approval_holds_for_that_hash_alone_and_until_revoked(site):
    study, other = site.keep(site.study()), site.keep(site.study(("rank = 4", "rank = 5")))
    approve(site.home, study.study_hash)
    assert approved_study(site.home, study.study_hash) == study
    with pytest.raises(StudyNotApproved):
        approved_study(site.home, other.study_hash)
    revoke(site.home, study.study_hash)
    with pytest.raises(StudyNotApproved):
        approved_study(site.home, study.study_hash)


def test_site_toml_approves_too_and_revoke_overrules_it(site):
    study = site.keep(site.study())
    site.write(("[backbone]", f'[studies]\napproved = ["{study.study_hash}"]\n[backbone]'))
    assert load_policy(site.home).permits(study)
    revoke(site.home, study.study_hash)
    assert not load_policy(site.home).permits(study)
    approve(site.home, study.study_hash)
    assert load_policy(site.home).permits(study)


def test_a_study_without_privacy_needs_a_consent_of_its_own(site):
    study = site.keep(site.study(*NO_PRIVACY))
    approve(site.home, study.study_hash)
    with pytest.raises(StudyNotApproved, match="--unprotected"):
        approved_study(site.home, study.study_hash)
    approve(site.home, study.study_hash, unprotected=True)
    assert approved_study(site.home, study.study_hash) == study
    revoke(site.home, study.study_hash)
    with pytest.raises(StudyNotApproved):
        approved_study(site.home, study.study_hash)


def test_another_word_for_the_unit_opens_no_second_budget(site):
    study = site.keep(site.study(('unit = "patient"', 'unit = "person"')))
    approve(site.home, study.study_hash)
    with pytest.raises(StudyNotApproved, match=r"'person'.*'patient'"):
        approved_study(site.home, study.study_hash)


def test_a_node_that_only_aggregates_needs_no_policy(site):
    study = site.aggregate()
    approve(site.home, study.study_hash)
    assert approved_study(site.home, study.study_hash) == study


def test_decisions_are_for_their_owner_alone(site):
    approve(site.home, "ab" * 32)
    assert stat.S_IMODE((site.home / decisions.FILE).stat().st_mode) == 0o600


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format":3}', '{"studies":{"ab":{"verdict":"approved"}}}'])
def test_damaged_decisions_permit_nothing(site, text):
    (site.home / decisions.FILE).write_text(text)
    with pytest.raises(PolicyInvalid):
        load_policy(site.home)
    with pytest.raises(PolicyInvalid):
        approve(site.home, "ab" * 32)  # which would overwrite what a person may still mend


def test_decisions_taken_at_once_are_all_kept(site):
    hashes = [f"{i:064x}" for i in range(8)]
    threads = [threading.Thread(target=approve, args=(site.home, each)) for each in hashes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(load_policy(site.home).studies.approved) == hashes


def test_a_budget_set_by_command_holds_instead_of_the_stated_one(site):
    assert load_policy(site.home).budget.epsilon == 10.0
    set_budget(site.home, BudgetPolicy(epsilon=2.0, delta=1e-6, collusion=2))
    approve(site.home, "ab" * 32)
    assert load_policy(site.home).budget == BudgetPolicy(epsilon=2.0, delta=1e-6, collusion=2)


def test_paths_are_beside_the_file_that_names_them(site, tmp_path):
    policy = load_policy(site.home)
    assert policy.data.path == site.home.resolve() / "patients.csv"
    assert policy.held_out() is None
    site.write(('path = "patients.csv"', 'path = "patients.csv"\nheldout_path = "kept/out.csv"'))
    held_out = load_policy(site.home).held_out()
    assert held_out is not None
    assert held_out.data.path == site.home.resolve() / "kept" / "out.csv"
    assert held_out.held_out() is None
    site.write(('path = "patients.csv"', f'path = "{tmp_path}/elsewhere.csv"'))
    assert load_policy(site.home).data.path == tmp_path / "elsewhere.csv"


def test_the_documented_policy_is_valid(site):
    page = (Path(__file__).parents[3] / "docs" / "site-toml.md").read_text()
    (site.home / "site.toml").write_text(page.split("```toml\n")[1].split("```")[0])
    assert load_policy(site.home).data.values["sex"]["female"] == "F"


def test_a_policy_cannot_be_changed(site):
    policy = load_policy(site.home)
    with pytest.raises(ValidationError):
        policy.budget.epsilon = 100.0
    with pytest.raises(TypeError):
        policy.data.columns["TSH"] = "other"


def test_a_study_whose_file_was_changed_is_refused(site):
    study = site.keep(site.study())
    path = site.home / "studies" / f"{study.study_hash}.json"
    good = json.loads(path.read_text())
    other = site.offer(site.study(("rank = 4", "rank = 5")))
    for bad in (
        other,
        good | {"canonical": other["canonical"]},
        good | {"signature": other["signature"]},
        good | {"canonical": "?"},
        {"hash": good["hash"]},
    ):
        path.write_text(json.dumps(bad))
        with pytest.raises(StudyInvalid):
            cached_study(site.home, study.study_hash)


def test_a_study_is_found_by_name_or_enough_of_its_hash(site):
    study = site.keep(site.study())
    for text in ("thyroid", study.study_hash, study.study_hash[:8]):
        assert find_study(site.home, text) == study
    for text in ("", study.study_hash[:7], "0" * 8, "loans"):
        with pytest.raises(StudyUnknown):
            find_study(site.home, text)
    site.keep(site.study(("rank = 4", "rank = 5")))
    with pytest.raises(StudyUnknown, match="2 studies"):
        find_study(site.home, "thyroid")
    assert len(known_studies(site.home)) == 2


@pytest.mark.parametrize("left", ["", "# [data]\n", "[policy]\nfour_eyes = false\n"])
def test_a_policy_that_was_emptied_or_cut_never_counts_as_one_of_limits_alone(site, left):
    study = site.keep(site.study())
    approve(site.home, study.study_hash)
    (site.home / "site.toml").write_text(left)
    with pytest.raises(PolicyInvalid):
        approved_study(site.home, study.study_hash)


def test_an_emptied_policy_of_an_aggregator_lets_nothing_run_either(site):
    study = site.aggregate()
    approve(site.home, study.study_hash)
    (site.home / "site.toml").write_text("[schedule]\nrounds_a_day = 5\n")
    assert approved_study(site.home, study.study_hash) == study
    (site.home / "site.toml").write_text("")
    with pytest.raises(PolicyInvalid, match="was it emptied"):
        approved_study(site.home, study.study_hash)


@pytest.mark.parametrize("listen", ["0.0.0.0:7001", "[::1]:65535", "agg.example.org:1"])
def test_a_place_to_listen_at_is_taken(site, listen):
    site.write(("[limits]", f'[party]\nlisten = "{listen}"\n[limits]'))
    assert load_policy(site.home).party.listen == listen


def test_an_aggregator_takes_its_number_of_shards_from_the_policy(site):
    assert load_policy(site.home).party.shards is None
    site.write(("[limits]", "[party]\nshards = 4\n[limits]"))
    assert load_policy(site.home).party.shards == 4


@pytest.mark.parametrize("shards", ["0", "65", "2.0", "true", '"4"'])
def test_what_is_no_number_of_shards_is_refused(site, shards):
    site.write(("[limits]", f"[party]\nshards = {shards}\n[limits]"))
    with pytest.raises(PolicyInvalid, match=r"party\.shards"):
        load_policy(site.home)


@pytest.mark.parametrize("listen", ["7001", "0.0.0.0", "0.0.0.0:0", "0.0.0.0:65536", "::1:7001", "a b:7001", "a:70-1"])
def test_what_is_no_place_to_listen_at_is_refused(site, listen):
    site.write(("[limits]", f'[party]\nlisten = "{listen}"\n[limits]'))
    with pytest.raises(PolicyInvalid, match=r"party\.listen"):
        load_policy(site.home)
