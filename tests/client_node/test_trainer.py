import pytest
import torch

from confide.client_node import trainer as trainer_module
from confide.client_node.approval import noise
from confide.client_node.data import read
from confide.client_node.policy import load_policy
from confide.client_node.trainer import Trainer
from confide.models.errors import BackboneMismatch, UnsupportedModule
from confide.privacy.errors import InvalidPrivacyParameter

from .conftest import Site
from .test_node import Desk, make_desk


def new_trainer(desk: Desk, *, max_rows: int = 64) -> Trainer:
    policy = load_policy(desk.site.home)
    return Trainer(
        desk.study,
        policy.backbone.directory,
        lambda: read(policy, desk.study),
        site="svi",
        site_noise=noise(desk.study),
        max_rows=max_rows,
        threads=1,
    )


def test_a_model_that_mixes_records_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch):
    desk = make_desk(site)
    real = trainer_module.pooled

    def batch_norm(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
        states = real(model, ids)
        return (states - states.mean(0)) / states.std(0)

    new_trainer(desk)
    monkeypatch.setattr(trainer_module, "pooled", batch_norm)
    with pytest.raises(UnsupportedModule, match="mixes records of one batch"):
        new_trainer(desk)


def test_limits_below_a_units_records_are_refused_before_anything_is_charged(site: Site):
    with pytest.raises(InvalidPrivacyParameter, match="max_records_per_unit"):
        new_trainer(make_desk(site), max_rows=1)


def test_another_number_of_trained_parameters_is_refused(site: Site):
    desk = make_desk(site)
    desk.study = desk.study.model_copy(update={"dim": desk.study.dim + 1})
    with pytest.raises(BackboneMismatch, match="trained parameters, the study says"):
        new_trainer(desk)
