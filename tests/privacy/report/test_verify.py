import copy
import json
import re
from dataclasses import replace

import pytest
from dp_accounting import get_epsilon_gaussian
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from confide.privacy.accounting.composition import epsilon_pld
from confide.privacy.audit.one_run import epsilon_lower_bound
from confide.privacy.errors import ReportInvalid
from confide.privacy.ledger import canonical
from confide.privacy.ledger.ledger import Ledger
from confide.privacy.report import schema
from confide.privacy.report.build import SiteLedger, build_report
from confide.privacy.report.schema import SIGNATURE_DOMAIN, AuditFinding, dump
from confide.privacy.report.verify import verify, verify_file

from ..ledgers import SITES, STUDY, audit_facts, budget, charge, ledger_with, release, signer

ISSUER = signer(99)
FACTS = {"name": "thyroid", "hash": STUDY, "mode": "distributed", "delta": 1e-5, "collusion": 1}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    sites = {}
    for seed, site in enumerate(SITES[:2], start=1):
        with ledger_with(tmp_path_factory.mktemp(site) / "ledger.db", site=site, seed=seed) as ledger:
            sites[site] = SiteLedger(ledger.public_key, ledger.entries())
    return build_report("Federation", sites, [FACTS], ISSUER)


@pytest.fixture
def report(sound):
    return copy.deepcopy(sound)


def signed(report):
    """The report signed anew: what an issuer that lies would hand out."""
    contents = {name: value for name, value in report.items() if name != "signature"}
    return contents | {"signature": canonical.sign(ISSUER, SIGNATURE_DOMAIN, canonical.encode(contents))}


def failures(report) -> str:
    result = verify(report)
    assert not result.ok
    return "\n".join(result.failures)


def account(report, site=0):
    return report["sites"][site]["accounts"][0]


def test_a_sound_report_passes_and_says_what_was_checked(report):
    result = verify(report)
    assert result.ok
    assert result.failures == []
    assert result.issuer == canonical.public_hex(ISSUER)
    assert sorted(result.site_keys) == ["east", "north"]
    assert sum("recomputed by PLD, RDP and the filter" in line for line in result.checked) == 2


def test_a_report_passes_through_a_file(report, tmp_path):
    (tmp_path / "report.json").write_text(json.dumps(report, indent=2))
    assert verify_file(tmp_path / "report.json").ok


@pytest.mark.parametrize("method", ["pld", "rdp", "guaranteed"])
def test_a_tampered_epsilon_is_named(report, method):
    account(report)["spent"][1][method] = "0.5"
    assert f"site east: accounts[thyroid/patient]: spent[colluding=1]: {method}: says 0.5" in failures(signed(report))


def test_a_tampered_curve_is_named(report):
    account(report)["course"][-1]["pld"] = "0.25"
    assert "course[2]: pld: says 0.25" in failures(signed(report))


@pytest.mark.parametrize(
    ("name", "value"),
    [("count", 1), ("sites", 9), ("site_noise_int", 2**40), ("sample_rate", "0.01"), ("mode", "local")],
)
def test_a_tampered_event_is_named(report, name, value):
    account(report)["events"][0][name] = value
    assert f"events[0]: {name}: says {value}" in failures(signed(report))


def test_another_order_of_the_filter_is_named(report):
    account(report)["order"] = 6
    assert "accounts[thyroid/patient]: order: says 6, the ledger gives 4" in failures(signed(report))


def test_an_account_over_its_cap_is_noted(tmp_path):
    with ledger_with(tmp_path / "ledger.db") as ledger:
        ledger.set_budget(budget(1.0))
        sites = {"east": SiteLedger(ledger.public_key, ledger.entries())}
    result = verify(build_report("Federation", sites, [], ISSUER))
    assert result.ok
    assert any("over the cap of 1: the cap was lowered" in line for line in result.notes)


def test_a_report_of_an_earlier_format_is_refused_with_what_to_do(report):
    report["format"] = "confide-budget-report-2"
    assert "of an earlier format" in failures(report)
    assert "ask its issuer for a report of today" in failures(report)


def test_a_third_accountant_agrees_and_its_answer_is_told(report):
    result = verify(report)
    assert sum("a third accountant agrees (0 colluding: PRV" in line for line in result.checked) == 2
    answers = result.to_dict()["accountants"]
    assert [answer["colluding"] for answer in answers] == [0, 1, 0, 1]
    for answer in answers:
        assert answer["agrees"]
        assert answer["prv"]["lower"] <= answer["pld"] <= answer["rdp"]
    json.dumps(result.to_dict(), allow_nan=False)


def test_a_wrong_pld_is_caught_by_the_third_accountant_as_well(report):
    spent = account(report)["spent"][1]
    spent["pld"] = repr(float(spent["pld"]) * 0.98)
    assert re.search(
        "thyroid/patient, 1 colluding: PLD says .* PRV shows that .* is at least", failures(signed(report))
    )


def test_what_the_third_accountant_cannot_check_is_noted(tmp_path):
    with ledger_with(tmp_path / "ledger.db", epsilon=1e6, rounds=0) as ledger:
        ledger.reserve(charge(0, run="loud", multiplier=0.05))
        sites = {"east": SiteLedger(ledger.public_key, ledger.entries())}
    result = verify(build_report("Federation", sites, [], ISSUER))
    assert result.ok
    assert any("1 colluding: not checked by PRV: epsilon is above 64" in line for line in result.notes)
    assert result.to_dict()["accountants"][1]["prv"] is None


def with_audit(report, **changes):
    return signed(report | {"audits": [dump(audit_facts(**changes))]})


def test_an_audits_arithmetic_is_recomputed(report):
    result = verify(with_audit(report))
    assert result.ok
    assert "follows from 136 of 200 right guesses" in result.checked[-1]


@pytest.mark.parametrize(("noise_multiplier", "delta"), [(2.35, 1e-10), (0.09, 1e-5)])
def test_an_audit_passes_where_rdp_stands_for_pld(report, noise_multiplier, delta):
    step = release(mode="local", multiplier=noise_multiplier, sample_rate=1.0)
    facts = {
        "delta": delta,
        "noise_multiplier": step.noise_multiplier(0),
        "claimed_epsilon": epsilon_pld([step], delta, 0),
        "lower_bound": epsilon_lower_bound(136, 200, 800, delta=delta, confidence=0.95),
    }
    assert verify(with_audit(report, **facts)).failures == []
    assert "is claimed" in failures(with_audit(report, **facts | {"claimed_epsilon": 1.02 * facts["claimed_epsilon"]}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"right": 150}, "its guesses give"),
        ({"right": 300}, "need 0 <= right <= guesses"),
        ({"claimed_epsilon": 3.0}, "is claimed; its noise multiplier gives 1.6655"),
        ({"noise_multiplier": 0.0}, "without noise"),
        ({"findings": [AuditFinding(check="noise", detail="std is half of it")]}, "noise: std is half of it"),
        ({"noise_multiplier": 20.0, "claimed_epsilon": get_epsilon_gaussian(20.0, 1e-5)}, "refutes the claim"),
    ],
)
def test_an_audit_that_does_not_stand_fails_the_report(report, changes, words):
    assert words in failures(with_audit(report, **changes))


def test_a_dropped_event_is_named(report):
    del account(report)["events"][0]
    assert "events: has 1 items, the ledger gives 2" in failures(signed(report))


def test_a_tampered_budget_is_named(report):
    account(report)["budget"]["epsilon"] = "100.0"
    assert "budget: epsilon: says 100.0, the ledger gives 8.0" in failures(signed(report))


def test_a_tampered_entry_is_named(report):
    report["sites"][1]["entries"][2]["body"]["release"]["site_noise_int"] += 1
    assert "site north: ledger: entry 2 was changed" in failures(signed(report))


def test_a_missing_entry_is_named(report):
    del report["sites"][0]["entries"][3]
    assert "site east: ledger: entry 3 is missing" in failures(signed(report))


def test_a_cut_off_ledger_shows_in_the_figures(report):
    del report["sites"][0]["entries"][-1]
    assert "site east: accounts[thyroid/patient]: releases: says 3, the ledger gives 2" in failures(signed(report))


def test_a_swapped_site_key_is_named(report):
    report["sites"][0]["public_key"] = canonical.public_hex(signer(50))
    assert "site east: ledger: entry 0" in failures(signed(report))


def test_a_ledger_under_another_name_is_named(report):
    report["sites"][0]["name"] = "elsewhere"
    assert "entry 0 opens the ledger of site 'east'" in failures(signed(report))


def test_a_change_by_somebody_else_breaks_the_signature(report):
    report["federation"] = "Another"
    assert failures(report) == "signature: the report was changed after its issuer signed it"


def test_keys_known_from_elsewhere_are_compared(report):
    known = canonical.public_hex(signer(50))
    result = verify(report, issuer=known, site_keys={"north": known})
    assert [line.split(":")[0] for line in result.failures] == ["issuer", "site north"]


def test_a_study_said_to_be_private_that_was_not_is_named(report):
    report["studies"][0]["mode"] = "local"
    assert "the report says mode local, site east charged mode distributed" in failures(signed(report))


def test_sites_that_were_told_different_sets_are_named(tmp_path):
    sites = {}
    for seed, (site, summed) in enumerate({"east": SITES, "north": SITES[:3]}.items(), start=1):
        with Ledger.open(tmp_path / site, signer(seed), site) as ledger:
            ledger.set_budget(budget())
            ledger.reserve(charge(sites=3))
            ledger.settle("run-1", 0, summed)
            sites[site] = SiteLedger(ledger.public_key, ledger.entries())
    report = build_report("Federation", sites, [], ISSUER)
    assert failures(report) == "round 0 of run run-1: sites east and north settled different sets"


@pytest.fixture
def topped(tmp_path):
    """A report on two rounds with top-up: one settled over three of four sites, one that was never opened."""
    sites = {}
    for seed, site in enumerate(SITES[:2], start=1):
        with Ledger.open(tmp_path / site, signer(seed), site) as ledger:
            ledger.set_budget(budget())
            for round in (0, 1):
                charged = charge(round, sites=2)
                release = replace(charged.release, planned_sites=4, noise_collusion=1)
                ledger.reserve(replace(charged, release=release))
            ledger.settle("run-1", 0, SITES[:3])
            sites[site] = SiteLedger(ledger.public_key, ledger.entries())
    return build_report("Federation", sites, [FACTS], ISSUER)


def test_noise_after_a_top_up_is_recomputed_from_the_settled_set(topped):
    assert verify(topped).ok
    settled, open_round = account(topped)["events"]
    assert (settled["sites"], settled["planned_sites"]) == (3, 0)
    before = open_round["site_noise_int"]
    assert settled["site_noise_int"] == pytest.approx(before * (3 / 2) ** 0.5, rel=1e-6)  # (planned - 1) / (summed - 1)
    account(topped)["events"][0]["site_noise_int"] = before
    assert f"events[0]: site_noise_int: says {before}" in failures(signed(topped))


def test_a_round_that_was_topped_up_for_another_set_than_was_settled_is_named(topped):
    account(topped)["events"][0]["sites"] = 4
    assert "events[0]: sites: says 4, the ledger gives 3" in failures(signed(topped))


def test_a_summed_site_that_charged_nothing_is_noted(tmp_path):
    sites = {}
    for seed, (site, rounds) in enumerate({"east": 2, "north": 1}.items(), start=1):
        with ledger_with(tmp_path / site, site=site, seed=seed, rounds=rounds) as ledger:
            sites[site] = SiteLedger(ledger.public_key, ledger.entries())
    result = verify(build_report("Federation", sites, [], ISSUER))
    assert result.ok
    assert result.notes == ["site north: 1 settled rounds name it, but its ledger here does not charge them (yet)"]


def places(value, at=()):
    """Every place of a JSON value."""
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        yield from places(item, (*at, name))


@pytest.mark.slow
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_other_value_anywhere_is_a_failure_and_never_a_crash(sound, data):
    report = copy.deepcopy(sound)
    *way, last = data.draw(st.sampled_from([place for place in places(report) if place]))
    holder = report
    for name in way:
        holder = holder[name]
    other = data.draw(st.sampled_from([None, True, -1, 0, 2**80, 1.5, "", "inf", "0x1p0", "a" * 64, [], {}, [[]]]))
    if holder[last] != other or type(holder[last]) is not type(other):
        holder[last] = other
        assert not verify(report).ok


@pytest.mark.parametrize("delta", ["inf", 1.5, 2**80, 0, -1])
def test_a_delta_that_is_no_probability_is_a_failure(sound, delta):
    report = copy.deepcopy(sound)
    account(report)["budget"]["delta"] = delta
    assert not verify(report).ok


@pytest.mark.parametrize("value", [None, [], "x", 3, {}, {"format": "confide-budget-report-1"}])
def test_what_is_no_report_fails_by_schema(value):
    assert failures(value).startswith("schema: ")


@pytest.mark.parametrize("text", [b"", b"\xff", b"{", b'{"a":1,"a":2}', b"[" * 200_000])
def test_a_file_that_is_not_json_fails(tmp_path, text):
    (tmp_path / "report.json").write_bytes(text)
    result = verify_file(tmp_path / "report.json")
    assert not result.ok
    assert "JSON" in result.failures[0] or "schema" in result.failures[0]


def test_a_file_that_is_too_large_or_missing_is_refused(tmp_path, monkeypatch):
    (tmp_path / "report.json").write_bytes(b" " * 2000)
    monkeypatch.setattr("confide.privacy.report.verify.MAX_BYTES", 1000)
    assert "larger than" in verify_file(tmp_path / "report.json").failures[0]
    with pytest.raises(ReportInvalid, match="cannot read"):
        verify_file(tmp_path / "absent.json")


def test_schema_errors_name_the_place_and_not_the_value(report):
    report["sites"][0]["accounts"][0]["spent"][0]["pld"] = "secret"
    with pytest.raises(ReportInvalid, match=r"sites\.0\.accounts\.0\.spent\.0\.pld") as caught:
        schema.parse(report)
    assert "secret" not in str(caught.value)
