import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from confide.coordinator.cli.main import app
from confide.coordinator.errors import AuditMissing, Conflict
from confide.coordinator.federation.home import Settings, create_home
from confide.coordinator.results.export import export_adapter
from confide.coordinator.results.privacy_audit import audit_run, audits, require_audit, summary
from confide.coordinator.results.reports import budget_report
from confide.coordinator.results.trained import trained_model
from confide.coordinator.store.tables import NodeRow, PrivacyTest
from confide.privacy.accounting import epsilon_pld
from confide.privacy.audit.canaries import AuditDesign
from confide.privacy.audit.engine_checks import check_engine
from confide.privacy.report import study_terms
from confide.privacy.report.schema import dump
from confide.privacy.report.verify import verify

from ...client_node.conftest import key_of
from ...privacy.sabotage import no_noise
from ..audits import audit_facts, keep_audit, membership_facts
from ..conftest import logged
from .test_export import RUN, going_on, spend, with_run

NO_PRIVACY = (('mode = "distributed"', 'mode = "none"'), ("noise_multiplier = 1.19\n", ""), ("delta = 1e-5\n", ""))


@pytest.fixture
def few_canaries(monkeypatch):
    """An audit of seconds; everything else in it is as always."""
    monkeypatch.setattr(
        AuditDesign, "within", lambda self, dim, sites: AuditDesign(canaries=60, canaries_per_step=20, guesses=20)
    )


@pytest.mark.slow
@pytest.mark.usefixtures("few_canaries")
def test_a_run_of_the_true_engine_passes_and_is_kept_with_all_figures(federation):
    study = with_run(federation, audited=False)
    before = trained_model(federation.store, federation.home, RUN).adapted.state()
    facts = audit_run(federation.store, federation.home, RUN)
    np.testing.assert_array_equal(trained_model(federation.store, federation.home, RUN).adapted.state(), before)
    assert facts.passed
    assert audits(federation.store, RUN) == [facts]
    assert (facts.study, facts.round, facts.canaries, facts.guesses, facts.steps) == (study.study_hash, 2, 60, 20, 3)
    assert 0 <= facts.lower_bound < facts.claimed_epsilon
    assert 0.75 * facts.blocks <= facts.blocks_reached <= facts.blocks  # now and then one expert gets no random word
    assert facts.noise_multiplier == pytest.approx(1.19, rel=1e-3)  # the study's, for one colluding site
    results = [fields["result"] for action, fields in logged(federation.store) if action == "audit.privacy"]
    assert results[-1].startswith(f"audit of run {RUN} at round 2 passed")
    assert require_audit(federation.store, study, RUN, None, 2).card == summary(facts)


@pytest.mark.parametrize(
    ("changes", "clipping", "steps"),
    [
        ((("clip_norm = 1.0", 'clip_norm = 1.0\nclipping = "adaptive"'),), "adaptive", 1),
        (
            (
                ('mode = "distributed"', 'mode = "local"\nlocal_steps = 3'),
                ("[optimizer]", "[optimizer]\nlocal_lr = 0.3"),
            ),
            "fixed",
            3,
        ),
    ],
)
def test_the_checks_run_on_the_study_s_own_clipping_and_local_steps(federation, monkeypatch, changes, clipping, steps):
    with_run(federation, *changes, audited=False)
    seen = []

    def only_noise(engine, adapted, words, terms):
        seen.append(terms)
        return check_engine(engine, adapted, words, terms, checks=("noise-std",))

    monkeypatch.setattr("confide.privacy.audit.engine_checks.check_engine", only_noise)
    monkeypatch.setattr(
        AuditDesign, "within", lambda self, dim, sites: AuditDesign(canaries=20, canaries_per_step=20, guesses=4)
    )
    assert audit_run(federation.store, federation.home, RUN).passed
    ((found, at),) = ((terms.clipping, terms.local.steps) for terms in seen)
    assert (found, at) == (clipping, steps)


def test_an_audit_is_of_the_round_whose_model_it_loaded_though_the_run_goes_on(federation, monkeypatch):
    study = with_run(federation, audited=False)
    monkeypatch.setattr(
        "confide.privacy.audit.engine_checks.check_engine",
        lambda *step: check_engine(*step, checks=("noise-std",)),
    )
    monkeypatch.setattr(
        AuditDesign, "within", lambda self, dim, sites: AuditDesign(canaries=20, canaries_per_step=20, guesses=4)
    )
    going_on(federation, study, monkeypatch)
    assert audit_run(federation.store, federation.home, RUN).round == 2
    assert federation.store.last_round(RUN).number == 3
    results = [fields["result"] for action, fields in logged(federation.store) if action == "audit.privacy"]
    assert f"audit of run {RUN} at round 2 passed" in results[-1]


@pytest.mark.slow
@pytest.mark.usefixtures("few_canaries")
def test_a_run_of_an_engine_without_noise_fails_and_stays_so(federation, tmp_path):
    study = with_run(federation, audited=False)
    facts = audit_run(federation.store, federation.home, RUN, engine=no_noise)
    assert not facts.passed
    assert [finding.check for finding in facts.findings] == ["noise-std"]
    keep_audit(federation.store, audit_facts(run=RUN, study=study.study_hash))  # a later one that passed
    with pytest.raises(AuditMissing, match="its audit failed"):
        export_adapter(federation.store, federation.home, RUN, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_no_adapter_that_claims_privacy_is_exported_unaudited(federation, tmp_path):
    with_run(federation, audited=False)
    with pytest.raises(AuditMissing, match=f"coordinator audit privacy {RUN}"):
        export_adapter(federation.store, federation.home, RUN, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_an_audit_of_an_earlier_round_does_not_stand_for_the_last(federation, tmp_path):
    study = with_run(federation, audited=False)
    keep_audit(federation.store, audit_facts(run=RUN, study=study.study_hash, round=1))
    with pytest.raises(AuditMissing, match="the last one is of round 1, and round 2 would be exported"):
        export_adapter(federation.store, federation.home, RUN, tmp_path / "adapter")


@pytest.mark.parametrize("bad", [{"lower_bound": 1.76}, {"findings": [{"check": "clipping", "detail": "no bound"}]}])
def test_a_bound_above_the_claim_or_a_finding_stops_the_export(federation, tmp_path, bad):
    study = with_run(federation, audited=False)
    keep_audit(federation.store, audit_facts(run=RUN, study=study.study_hash, **bad))
    with pytest.raises(AuditMissing, match="its audit failed"):
        export_adapter(federation.store, federation.home, RUN, tmp_path / "adapter")


def test_an_override_is_in_the_model_card_and_in_the_log(federation, tmp_path):
    with_run(federation, audited=False)
    reason = "only to look | at the format\nno release"
    export_adapter(federation.store, federation.home, RUN, tmp_path / "adapter", override_audit=reason)
    card = (tmp_path / "adapter" / "README.md").read_text()
    (row,) = [line for line in card.splitlines() if line.startswith("| audit |")]
    assert "**overridden**" in row
    assert row.endswith(r"reason given: only to look \| at the format no release |")
    action, fields = logged(federation.store)[-1]
    assert action == "adapter.export"
    assert reason in fields["override"]


def test_an_override_of_an_export_that_failed_is_not_in_the_log(federation, tmp_path):
    with_run(federation, audited=False)
    (tmp_path / "adapter").mkdir()
    with pytest.raises(FileExistsError):
        export_adapter(federation.store, federation.home, RUN, tmp_path / "adapter", override_audit="to look at it")
    assert not any(action == "adapter.export" for action, _ in logged(federation.store))


def test_an_audit_that_passed_is_in_the_model_card(federation, tmp_path):
    with_run(federation)
    export_adapter(federation.store, federation.home, RUN, tmp_path / "adapter")
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert (
        "| audit | 75 of 100 guesses about 800 canaries were right, so epsilon of one audited step at a fixed clip "
        "is at least" in card
    )
    assert "2 checks of the step found nothing |" in card


def test_a_study_without_privacy_needs_no_audit_and_gets_none(federation, tmp_path):
    with_run(federation, *NO_PRIVACY, audited=False)
    with pytest.raises(Conflict, match="claims no privacy"):
        audit_run(federation.store, federation.home, RUN)
    export_adapter(federation.store, federation.home, RUN, tmp_path / "adapter")
    assert "| audit | none, since the adapter claims no privacy |" in (tmp_path / "adapter" / "README.md").read_text()


def test_audits_and_attacks_enter_the_signed_report(federation, monkeypatch):
    study = with_run(federation, audited=False)
    spend(federation, study, "svi", rounds=2)
    with federation.store.session() as session:
        session.get(NodeRow, "svi").identity = key_of("svi").public_key().public_bytes_raw().hex()
    step = replace(study_terms.read(study.canonical().decode()).release("update"), sample_rate=1.0)
    audit = audit_facts(
        run=RUN,
        study=study.study_hash,
        noise_multiplier=step.noise_multiplier(1),
        claimed_epsilon=epsilon_pld([step], 1e-5, 1),
    )
    attack = membership_facts(run=RUN, study=study.study_hash)
    keep_audit(federation.store, audit)
    federation.store.add_privacy_test(
        PrivacyTest(run=RUN, kind="membership", facts=json.dumps(dump(attack))), "attacked"
    )
    monkeypatch.setattr("confide.coordinator.results.reports.Pki.load", lambda home: federation.pki)
    monkeypatch.setattr(
        "confide.coordinator.results.reports.load_settings", lambda home: type("Named", (), {"federation": "thyroid"})
    )
    report = budget_report(federation.store, federation.home)
    assert report["audits"] == [dump(audit)]
    assert report["membership"] == [dump(attack)]
    assert verify(report).ok
    report["audits"][0]["lower_bound"] = "0.1"
    assert not verify(report).ok


def test_an_override_without_words_is_refused(tmp_path):
    create_home(
        tmp_path / "home", Settings(federation="f", address="a:1", listen="127.0.0.1", port=1, superlink_port=2)
    )
    words = ["adapter", "export", "r", "out", "--override-audit", " ", "--home", str(tmp_path / "home")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1
    assert "needs a reason in words" in " ".join(result.stderr.split())
