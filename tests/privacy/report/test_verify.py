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

from ..ledgers import (
    SITES,
    STUDY,
    STUDY_TEXT,
    THYROID,
    THYROID_TEXT,
    audit_facts,
    budget,
    charge,
    hash_of,
    ledger_with,
    membership_facts,
    release,
    signer,
    study_text,
)

ISSUER = signer(99)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    sites = {}
    for seed, site in enumerate(SITES[:2], start=1):
        with ledger_with(tmp_path_factory.mktemp(site) / "ledger.db", site=site, seed=seed) as ledger:
            sites[site] = SiteLedger(ledger.public_key, ledger.entries())
    return build_report("Federation", sites, [STUDY_TEXT], ISSUER)


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
    return signed(report | {"audits": [dump(audit_facts(**{"run": "run-9", **changes}))]})  # which no site charged


def test_an_audits_arithmetic_is_recomputed(report):
    result = verify(with_audit(report))
    assert result.ok
    assert "follows from 136 of 200 right guesses, by the issuer's count" in result.checked[-1]


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


LIE = {"noise_multiplier": 99.0, "clip_norm": 0.001, "rounds": 1, "collusion": 9, "delta": 1e-12, "max_dropouts": 2}


def test_a_study_s_text_that_is_another_one_is_named(report):
    """All that an issuer could once say of a study's noise, rounds and delta, signed by the issuer itself."""
    report["studies"][0]["text"] = study_text(**LIE)
    assert failures(signed(report)) == f"study {STUDY[:12]}: its text has another hash"


def test_a_study_cannot_be_exchanged_for_another_one_with_its_own_hash(report):
    report["studies"] = [{"hash": hash_of(study_text(**LIE)), "text": study_text(**LIE)}]
    assert failures(signed(report)) == f"study {STUDY[:12]}: is charged and not listed"


def test_figures_of_a_study_have_no_place_beside_its_text(report):
    report["studies"][0]["noise_multiplier"] = "99.0"
    assert failures(signed(report)).startswith("schema: studies.0.noise_multiplier")


def test_a_study_without_a_text_is_noted_as_unknown(report):
    report["studies"][0]["text"] = None
    result = verify(signed(report))
    assert result.ok
    unknown = f"study {STUDY[:12]}: unknown: its text is not in the report, so none of its terms was checked"
    assert result.notes[0] == unknown


def test_a_text_of_another_format_is_noted_and_one_that_says_nothing_fails(tmp_path):
    for text, holds in (('{"format":3}', True), ('{"format":4}', False), ("no JSON", False)):
        result = verify(charged_under(text, tmp_path / hash_of(text)))
        assert result.ok == holds
        assert any("not read here" in line for line in result.notes) == holds


def charged_under(text, path, item=None):
    """A report by an issuer that has the text of the study under which one round was charged."""
    item = replace(item or charge(1), study=hash_of(text))
    with ledger_with(path, rounds=0, epsilon=50.0) as ledger:
        ledger.reserve(item)
        sites = {"east": SiteLedger(ledger.public_key, ledger.entries())}
    return build_report("Federation", sites, [text], ISSUER)


def test_what_was_charged_as_the_text_says_is_told(tmp_path):
    result = verify(charged_under(STUDY_TEXT, tmp_path / "ledger.db"))
    assert result.ok
    assert (
        f"study {STUDY[:12]} (thyroid): its text has that hash; all 1 charges under it are its rounds" in result.checked
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"noise_multiplier": 99.0}, "is charged with site_noise_int"),
        ({"clip_norm": 0.5}, "is charged with clip_norm 1.0; its text gives 0.5"),
        ({"clipping": "adaptive"}, "is charged with clip_norm 1.0; its text gives 1.004987"),
        ({"sample_rate": 0.1}, "is charged with sample_rate 0.2; its text gives 0.1"),
        ({"max_dropouts": 1, "min_sites": 2}, "is charged with sites 4; its text gives 3"),
        ({"collusion": 2}, "is charged with site_noise_int"),
        (
            {"max_dropouts": 1, "dropouts": "top-up", "min_sites": 2},
            "is charged with planned_sites 0; its text gives 4",
        ),
        ({"mode": "local", "local_steps": 3}, "is charged with steps 1; its text gives 3"),
        ({"mode": "none", "noise_multiplier": 0.0}, "is charged with mode distributed; its text gives none"),
        ({"dim": 999}, "is charged with dim 1000; its text gives 999"),
        ({"scale_bits": 20}, "is charged with scale_bits 24; its text gives 20"),
        ({"collusion": 9}, "cannot be charged as its text is"),
    ],
)
def test_a_charge_that_is_no_round_of_its_study_is_named(tmp_path, changes, words):
    """Whatever the site was made to charge: figures that the text gives cannot be shown for it."""
    assert f"site east: {words}" in failures(charged_under(study_text(**changes), tmp_path / "ledger.db"))


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (charge(41), "has no update in round 41: it has 40 rounds"),
        (charge(0), "has no update in round 0"),
        (replace(charge(41), purpose="evaluation"), "has no evaluation in round 41"),
        (replace(charge(1), purpose="evaluation"), "has no evaluation in round 1"),
        (charge(1, cohort=(*SITES, "spare")), "is charged for the sites east, north, south, spare, west"),
        (replace(charge(1), unit="visit"), "protects each 'patient', and is charged for each 'visit'"),
    ],
)
def test_a_charge_outside_its_study_is_named(tmp_path, item, words):
    with Ledger.open(tmp_path / "ledger.db", signer(1), "east") as ledger:
        ledger.set_budget(replace(budget(50.0), unit=item.unit))
        ledger.reserve(item)
        report = build_report(
            "Federation", {"east": SiteLedger(ledger.public_key, ledger.entries())}, [STUDY_TEXT], ISSUER
        )
    assert f"study {STUDY[:12]}: site east: {words}" in failures(report)


def test_a_site_with_another_key_than_the_study_names_is_named(tmp_path):
    with ledger_with(tmp_path / "ledger.db", seed=7) as ledger:
        sites = {"east": SiteLedger(ledger.public_key, ledger.entries())}
    report = build_report("Federation", sites, [STUDY_TEXT], ISSUER)
    assert "is charged by a site or key that its text does not name" in failures(report)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"delta": 1e-6}, "is at delta 1e-06 with 1 colluding"),
        ({"colluding": 0}, "with 0 colluding"),
        ({"noise_multiplier": 2.6}, "is of noise multiplier 2.6; the study's text gives 2.35"),
    ],
)
def test_an_audit_of_another_step_than_the_study_s_is_named(report, changes, words):
    facts = {"study": THYROID, **changes}
    audited = signed(report | {"studies": [{"hash": THYROID, "text": THYROID_TEXT}, *report["studies"]]})
    assert verify(with_audit(audited, study=THYROID)).ok
    assert words in failures(with_audit(audited, **facts))


@pytest.mark.parametrize("kind", ["audit", "attack"])
def test_a_test_of_a_run_is_of_the_study_that_the_run_was_charged_under(report, kind):
    """An issuer could else show a run's audit beside the terms of a study with more noise."""
    listed = report | {"studies": [{"hash": THYROID, "text": THYROID_TEXT}, *report["studies"]]}
    tests = {"audits": [dump(audit_facts())]} if kind == "audit" else {"membership": [dump(membership_facts())]}
    assert f"{kind} of run run-1: says that it is of study {THYROID[:12]}" in failures(signed(listed | tests))


@pytest.mark.parametrize("spent", [[], [{"colluding": 7, "pld": "0.0", "rdp": "0.0", "guaranteed": "0.0"}]])
def test_missing_levels_of_collusion_are_named(report, spent):
    account(report)["spent"] = spent
    assert "spent: has" in failures(signed(report))


def test_sites_that_took_part_and_are_not_shown_are_noted(report):
    assert "sites whose ledgers are not in this report: south, west; what they have spent is not shown" in (
        verify(report).notes
    )


def test_an_audit_of_a_study_with_impossible_terms_is_a_failure_and_no_crash(report):
    text = study_text(noise_multiplier=0.0)
    audited = signed(report | {"studies": [{"hash": hash_of(text), "text": text}, *report["studies"]]})
    assert "cannot be of its study as the text is" in failures(with_audit(audited, study=hash_of(text)))


def test_what_rests_on_the_issuer_s_word_is_told(report):
    result = verify(with_audit(report) | {})
    told = result.to_dict()["issuers_word"]
    assert [line.split(":")[0] for line in told] == [
        "the federation's name, 'Federation', and when the report was issued",
        "that the accountants named are those that computed; every figure was computed anew here",
        "what 1 audits of run-9 measured",
    ]
    assert all(f"issuer  {line}" in result.lines() for line in told)


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


TOPPED_TEXT = study_text(max_dropouts=2, dropouts="top-up", min_sites=2)
TOPPED = hash_of(TOPPED_TEXT)


@pytest.fixture
def topped(tmp_path):
    """A report on two rounds with top-up: one settled over three of four sites, one that was never opened."""
    sites = {}
    for seed, site in enumerate(SITES[:2], start=1):
        with Ledger.open(tmp_path / site, signer(seed), site) as ledger:
            ledger.set_budget(budget())
            for round in (1, 2):
                charged = charge(round, study=TOPPED, sites=2)
                release = replace(charged.release, planned_sites=4, noise_collusion=1)
                ledger.reserve(replace(charged, release=release))
            ledger.settle("run-1", 1, SITES[:3])
            sites[site] = SiteLedger(ledger.public_key, ledger.entries())
    return build_report("Federation", sites, [TOPPED_TEXT], ISSUER)


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
    result = verify(build_report("Federation", sites, [STUDY_TEXT], ISSUER))
    assert result.ok
    assert result.notes[0] == "site north: 1 settled rounds name it, but its ledger here does not charge them (yet)"


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
