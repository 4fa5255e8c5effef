from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from confide.client_node import trainer as trainer_module
from confide.client_node.data import read
from confide.client_node.policy import load_policy
from confide.client_node.trainer import Trainer
from confide.models.backbone import Backbone
from confide.models.binned_evaluation import bin_edges, bin_of
from confide.models.errors import BackboneMismatch
from confide.privacy.errors import InvalidPrivacyParameter, UnitsCoupled

from .conftest import PATIENTS_CSV, Site
from .test_node import Desk, make_desk

BINS = 20


def new_trainer(desk: Desk, *, max_rows: int = 64) -> Trainer:
    policy = load_policy(desk.site.home)
    return Trainer(
        desk.study,
        policy.backbone.directory,
        lambda: read(policy, desk.study),
        site="svi",
        site_noise=desk.study.site_noise(desk.study.planned_round(1)),
        max_rows=max_rows,
        threads=1,
    )


def test_a_site_counts_as_much_as_the_study_says(site: Site):
    none = (('mode = "distributed"\nnoise_multiplier = 1.19', 'mode = "none"'), ("delta = 1e-5\n", ""))
    every = ("sample_rate = 0.2", "sample_rate = 1.0")
    desk = make_desk(site, *none, every)
    state = np.zeros(desk.study.dim, "<f4")
    whole = new_trainer(desk).release(state, 1)
    aggregation = desk.study.draft.aggregation.model_copy(update={"weights": {"svi": 0.5}})
    draft = desk.study.draft.model_copy(update={"aggregation": aggregation})
    desk = replace(desk, study=desk.study.model_copy(update={"draft": draft}))
    half = new_trainer(desk).release(state, 1)
    assert np.abs(whole).max() > 1000
    assert np.abs(half - whole / 2).max() <= 1


def test_a_site_trains_the_rank_that_the_study_gives_it(site: Site):
    none = (('mode = "distributed"\nnoise_multiplier = 1.19', 'mode = "none"'), ("delta = 1e-5\n", ""))
    desk = make_desk(
        site, *none, ("sample_rate = 0.2", "sample_rate = 1.0"), ("rank = 4", "rank = 4\nranks = { svi = 1 }")
    )
    trainer = new_trainer(desk)
    state = np.random.default_rng(0).normal(0, 0.5, desk.study.dim).astype(np.float32)
    layout, vector = trainer.adapted.layout, trainer.release(state, 1)
    for name in layout.names[1:]:
        factor = vector[layout.slices[name]].reshape(layout.shapes[name])
        assert factor[..., 0].any()
        assert not factor[..., 1:].any()


def test_a_histogram_counts_the_scores_that_the_model_gives(site: Site):
    table = PATIENTS_CSV.replace("p1,35", "p4,35")  # a unit for every record
    (site.home / "patients.csv").write_text(table)
    none = (('mode = "distributed"\nnoise_multiplier = 1.19', 'mode = "none"'), ("delta = 1e-5\n", ""))
    desk = make_desk(site, *none, ("[participants]", f"[evaluation]\nbins = {BINS}\n[participants]"))
    trainer, policy = new_trainer(desk, max_rows=3), load_policy(site.home)
    state = np.random.default_rng(1).normal(0, 0.5, desk.study.dim).astype(np.float32)
    counts = trainer.histogram(state, lambda: read(policy, desk.study), 41, site_noise=0) / 2**20
    records = read(policy, desk.study)
    trainer.adapted.load_state(state)
    with torch.no_grad():
        scores = trainer.adapted.classify(torch.from_numpy(records.tokens(desk.study.record_schema()))).numpy()
    assert (
        np.abs(scores[:, None] - bin_edges(BINS)).min() > 1e-4
    )  # so far from an edge, a batch's rounding is no matter
    loop = np.zeros((2, BINS))
    for score, label in zip(scores, records.labels, strict=True):
        loop[label, sum(score >= edge for edge in bin_edges(BINS))] += 1
    assert len(set(bin_of(scores, BINS))) > 1
    np.testing.assert_array_equal(counts.reshape(2, BINS), loop)


def test_a_record_is_counted_by_itself_whoever_its_neighbours_are(site: Site, monkeypatch: pytest.MonkeyPatch):
    none = (('mode = "distributed"\nnoise_multiplier = 1.19', 'mode = "none"'), ("delta = 1e-5\n", ""))
    desk = make_desk(site, *none, ("[participants]", f"[evaluation]\nbins = {BINS}\n[participants]"))
    trainer, policy = new_trainer(desk), load_policy(site.home)
    seen = []
    monkeypatch.setattr(trainer.adapted, "classify", lambda ids: seen.append(ids) or torch.zeros(len(ids)))
    trainer.histogram(np.zeros(desk.study.dim), lambda: read(policy, desk.study), 41, site_noise=0)
    records = read(policy, desk.study).tokens(desk.study.record_schema())
    assert [ids.tolist() for ids in seen] == [[[word for word in row if word]] for row in records.tolist()]


def test_a_table_without_records_has_an_empty_histogram(site: Site):
    none = (('mode = "distributed"\nnoise_multiplier = 1.19', 'mode = "none"'), ("delta = 1e-5\n", ""))
    desk = make_desk(site, *none, ("[participants]", f"[evaluation]\nbins = {BINS}\n[participants]"))
    (site.home / "patients.csv").write_text(PATIENTS_CSV.splitlines()[0] + "\n")
    records = read(load_policy(site.home), desk.study)
    counts = new_trainer(desk).histogram(np.zeros(desk.study.dim), lambda: records, 41, site_noise=0)
    assert counts.tolist() == [0] * 2 * BINS


class CentredOverRows(torch.nn.Module):
    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return states - states.mean(0)


def test_a_model_that_mixes_records_is_refused_by_the_name_of_the_module(site: Site, monkeypatch: pytest.MonkeyPatch):
    desk, real = make_desk(site), trainer_module.load_backbone

    def load_sabotaged(directory: Path, *, expected_hash: str) -> Backbone:
        loaded = real(directory, expected_hash=expected_hash)
        loaded.model.model.norm = torch.nn.Sequential(loaded.model.model.norm, CentredOverRows())
        return loaded

    new_trainer(desk)
    monkeypatch.setattr(trainer_module, "load_backbone", load_sabotaged)
    with pytest.raises(UnitsCoupled, match=r"model\.norm\.1 mixes rows"):
        new_trainer(desk)


def test_limits_below_a_units_records_are_refused_before_anything_is_charged(site: Site):
    with pytest.raises(InvalidPrivacyParameter, match="max_records_per_unit"):
        new_trainer(make_desk(site), max_rows=1)


def test_another_number_of_trained_parameters_is_refused(site: Site):
    desk = make_desk(site)
    desk.study = desk.study.model_copy(update={"dim": desk.study.dim + 1})
    with pytest.raises(BackboneMismatch, match="trained parameters, the study says"):
        new_trainer(desk)
