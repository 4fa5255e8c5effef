from pathlib import Path

import pytest
import torch

from confide.client_node import trainer as trainer_module
from confide.client_node.approval import noise
from confide.client_node.data import read
from confide.client_node.policy import load_policy
from confide.client_node.trainer import Trainer
from confide.models.backbone import Backbone
from confide.models.errors import BackboneMismatch
from confide.privacy.errors import InvalidPrivacyParameter, UnitsCoupled

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
