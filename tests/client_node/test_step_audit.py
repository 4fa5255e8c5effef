"""The audit of a site's own step: the true one passes; one mistake in the code that trains, and it is named."""

import json
from dataclasses import replace
from itertools import cycle

import pytest
from typer.testing import CliRunner

from confide.client_node import step_audit
from confide.client_node.approval import charges
from confide.client_node.cli.main import app
from confide.client_node.data import kept_files
from confide.client_node.errors import NothingToAudit
from confide.client_node.policy import load_policy
from confide.client_node.training import trainer
from confide.privacy.mechanism import opacus_optimizer, site_round

from .conftest import Site
from .test_node import RUN, Desk, make_desk

pytestmark = pytest.mark.slow


def audited(desk: Desk) -> step_audit.StepAudit:
    return step_audit.audit_step(desk.site.home, desk.study.study_hash)


LAST_LAYER = ('seed = "thyroid-1"', 'seed = "thyroid-1"\nlayers = [1]')


@pytest.fixture(params=["fixed", "adaptive", "local", "from kept states"])
def desk(site: Site, request) -> Desk:
    changes = {
        "fixed": (),
        "adaptive": (("clip_norm = 1.0", 'clip_norm = 1.0\nclipping = "adaptive"'),),
        "local": (
            ('mode = "distributed"', 'mode = "local"\nlocal_steps = 3'),
            ("lr = 0.3", "lr = 0.3\nlocal_lr = 0.1"),
        ),
        "from kept states": (LAST_LAYER,),
    }
    return make_desk(site, *changes[request.param])


def test_the_true_step_is_what_was_charged(desk: Desk):
    found = audited(desk)
    assert found.check.findings == ()
    assert not found.is_charged
    assert [entry.kind for entry in desk.ledger.entries()] == ["open"]  # nothing was charged


def test_the_audit_takes_the_path_that_a_round_takes_and_leaves_nothing_of_the_record(site: Site, monkeypatch):
    taken = []
    true_release = trainer.Trainer.release

    def noted(self, *args):
        taken.append(self.starts_from)
        return true_release(self, *args)

    monkeypatch.setattr(trainer.Trainer, "release", noted)
    found = step_audit.audit_step(site.home, make_desk(site, LAST_LAYER).study.study_hash, rounds=2)
    assert found.check.rounds == 2
    assert taken == ["kept states"] * 2
    assert not (site.home / kept_files.FOLDER).exists()


def test_noise_is_expected_from_the_ledger_and_not_from_the_code(site: Site, monkeypatch):
    desk = make_desk(site)
    charges.reserve(desk.ledger, desk.study, load_policy(site.home), run=RUN, round_number=1)
    assert audited(desk).is_charged
    true_noise = type(desk.study).site_noise
    monkeypatch.setattr(type(desk.study), "site_noise", lambda study, planned: round(0.9 * true_noise(study, planned)))
    found = audited(desk)
    assert [finding.check for finding in found.check.findings] == ["noise"]
    assert found.check.noise == pytest.approx(0.9, abs=0.02)


def unclipped(clipper, clip_norm):
    return TRUE_SUM(clipper, None)


TRUE_SUM = opacus_optimizer.PerUnitClipper.clipped_sum


def test_a_step_without_clipping_is_found(site: Site, monkeypatch):
    monkeypatch.setattr(opacus_optimizer.PerUnitClipper, "clipped_sum", unclipped)
    assert "length" in {finding.check for finding in audited(make_desk(site)).check.findings}


def test_a_step_that_takes_everybody_is_found(site: Site, monkeypatch):
    terms = trainer.release_terms
    monkeypatch.setattr(
        trainer, "release_terms", lambda *args, **kwargs: replace(terms(*args, **kwargs), sample_rate=1.0)
    )
    assert "length" in {finding.check for finding in audited(make_desk(site)).check.findings}


def test_a_step_that_draws_everybody_or_nobody_is_found(site: Site, monkeypatch):
    turns = cycle([True, False, False, False, False])  # by turns: coins may draw nobody in all rounds, another finding

    def together(count, rate, source):
        return range(count if next(turns) else 0)

    monkeypatch.setattr(site_round, "poisson_sample", together)
    assert "draws" in {finding.check for finding in audited(make_desk(site)).check.findings}


def test_a_study_without_privacy_is_not_audited(site: Site):
    none = (('mode = "distributed"\nnoise_multiplier = 1.19', 'mode = "none"'), ("delta = 1e-5\n", ""))
    with pytest.raises(NothingToAudit, match="there is nothing to audit"):
        audited(make_desk(site, *none))


def test_the_command_says_what_it_saw(site: Site, monkeypatch):
    desk = make_desk(site)
    command = ["study", "audit", desk.study.name, "--home", str(site.home)]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0
    assert "the noise, the clip and the draws that the ledger pays for" in " ".join(shown.output.split())
    monkeypatch.setattr(opacus_optimizer.PerUnitClipper, "clipped_sum", unclipped)
    shown = CliRunner().invoke(app, [*command, "--json"])
    assert shown.exit_code == 3
    assert any("too long, or too often" in finding for finding in json.loads(shown.stdout)["findings"])
