"""A whole private study on a backbone with state-space layers: real processes, three sites, three aggregators."""

from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from confide.client_node.study.terms import load_draft
from confide.coordinator.demo.processes import DemoFederation
from confide.coordinator.results.trained import trained_model
from confide.coordinator.store.store import Store
from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.pretraining import PretrainingConfig, pretrain
from confide.privacy.report.verify import verify_file

from .conftest import PARTIES, finish, private_study, site_toml

pytestmark = [
    pytest.mark.process,
    # peft 0.21 reads an attribute of transformers' models that transformers 5.24 deprecates.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
]

SITES = ("north", "south", "east")
TARGETS = {
    "granitemoehybrid": '["in_proj", "q_proj", "o_proj", "input_linear", "experts", "router"]',
    "kimi_linear": '["q_proj", "f_a_proj", "b_proj", "kv_b_proj", "o_proj", "experts", "gate"]',
}


@pytest.mark.parametrize("family", TARGETS)
def test_a_backbone_with_state_space_layers_goes_through_a_whole_private_study(family: str, tmp_path: Path):
    targets = {'["q_a_proj", "o_proj", "gate_proj", "experts", "gate"]': TARGETS[family]}
    (tmp_path / "study.toml").write_text(private_study(SITES, targets))
    schema = load_draft(tmp_path / "study.toml").record_schema()
    config = PretrainingConfig(steps=3, batch=16, questions=4, moment_records=64)
    size = BackboneConfig(family=family, hidden=32, experts=4)
    pretrain(schema, tmp_path / "backbone", backbone=size, config=config)
    federation = DemoFederation(tmp_path / "run", SITES, PARTIES)
    try:
        federation.found("tiny", {site: site_toml(tmp_path, site) for site in SITES}, tmp_path / "study.toml")
        federation.bring_up()
        run = federation.operator("run", "start", "tiny").strip()
        finish(federation, run)
        federation.operator("adapter", "export", run, str(tmp_path / "adapter"), "--override-audit", "a test")
        report = federation.operator("budget", "report", "--json")
        store = Store.open(federation.home)
        model = trained_model(store, federation.home, run)
        store.close()
    finally:
        federation.shut_down()
    (tmp_path / "report.json").write_text(report)
    assert verify_file(tmp_path / "report.json").ok
    ids = torch.randint(1, 10, (3, 8), generator=torch.Generator().manual_seed(0))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "backbone")
    with torch.no_grad():
        before = plain(ids).logits
        theirs = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()(ids).logits
        ours = model.adapted.model(ids).logits
    assert (before - ours).abs().max() > 1e-4
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
