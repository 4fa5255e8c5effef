"""What a study of a new kind of record on a new family of backbones must do. `test_seams.py` runs it in a new process.

The two lines below are the lines that a newcomer adds to the tables; all else here only uses what is there.
"""

from confide.models.backbones import families
from confide.models.records import kinds

from .olmo2 import Olmo2
from .series import Series

families.FAMILIES["olmo2"] = Olmo2()
kinds.KINDS["series"] = Series()

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import Olmo2ForCausalLM

from confide.client_node.data import check, read
from confide.client_node.errors import DataInvalid, StudyInvalid
from confide.client_node.policy import load_policy
from confide.client_node.study import Study
from confide.client_node.telling import study_facts
from confide.client_node.training.record_arrays import from_arrays, to_arrays
from confide.client_node.training.study_model import load_study_model
from confide.client_node.training.trainer import Trainer
from confide.models.adapters import ModelCard, export
from confide.models.adapters.merging import save_merged
from confide.models.backbones.checkpoints import load_model, size
from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.loading import build, describe, load, save
from confide.models.errors import TargetMissing

from ..client_node.conftest import SITE_TOML, STUDY_TOML, build_study, changed, identity_of, of_model

STUDY = changed(
    STUDY_TOML,
    (
        ('["q_a_proj", "kv_b_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "experts"]', '["q_proj", "v_proj"]'),
        ('label = "diagnosis"\n', ""),
        ('flags = ["sick"]\n', ""),
        (
            '[data.numeric]\nage = [20, 40, 60, 80]\nTSH = [0.4, 4.0, 10.0]\n[data.categorical]\nsex = ["F", "M"]',
            '[data.series]\ncolumn = "temperature"\ncuts = [36.0, 37.0, 38.0]\noutcome = "died"',
        ),
        ('mode = "distributed"\nnoise_multiplier = 1.19', 'mode = "none"'),
        ("delta = 1e-5\n", ""),
        ("sample_rate = 0.2", "sample_rate = 1.0"),
        ("[participants]", "[evaluation]\nbins = 4\n[participants]"),
    ),
)
TABLE = "patient_id,temperature,died\np1,36.6;37.5;38.9,0\np2,39.5;39.1,1\np1,36.2,0\np3,35.0;34.1;36.1;37.0,1\n"
CARD = ModelCard(
    study="fever", study_hash="ab" * 32, backbone_hash="cd" * 32, sites=("svi",), rounds=1, unit="patient",
    mode="none", epsilon=None, delta=None, collusion=1, audit="none",
)  # fmt: skip


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A site with a table, a policy and a backbone of the new family."""
    (tmp_path / "patients.csv").write_text(TABLE)
    site = changed(
        SITE_TOML, (('[data.columns]\nTSH = "tsh_miu_l"\n[data.values.sex]\nfemale = "F"\nmale = "M"\n', ""),)
    )
    (tmp_path / "site.toml").write_text(site)
    (tmp_path / "study.toml").write_text(STUDY)
    schema = draft_of(tmp_path).record_schema()  # as `coordinator backbone build` asks for it
    model = build(schema, BackboneConfig(family="olmo2", hidden=32))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "embed" not in name:
                weight.mul_(8)  # fresh models hardly attend
    save(model, schema, torch.zeros(64), torch.eye(64), tmp_path / "backbone")
    return tmp_path


def draft_of(home: Path):
    return build_study(home / "study.toml", {}).draft


def study_of(home: Path) -> Study:
    study = build_study(home / "study.toml", {"svi": identity_of("svi")})
    model = load_study_model(study.draft, home / "backbone")
    return of_model(study, model.backbone_hash, model.adapted)


def trainer_of(home: Path) -> Trainer:
    study, policy = study_of(home), load_policy(home)
    return Trainer(
        study,
        home / "backbone",
        lambda: read(policy, study, site=None),
        site="svi",
        site_noise=0,
        max_rows=64,
        threads=1,
    )


def test_a_study_declares_the_new_kind_and_keeps_its_form(home):
    study = study_of(home)
    assert study.draft.data.kind.name == "series"
    assert Study.parse(study.canonical()) == study
    assert json.loads(study.canonical())["draft"]["data"]["series"]["outcome"] == "died"
    assert study_facts(study)["Data"]["columns"] == ["temperature (series)"]


def test_a_study_of_an_older_kind_keeps_its_hash(home):
    (home / "study.toml").write_text(STUDY_TOML)
    study = build_study(home / "study.toml", {})
    assert b"series" not in study.canonical()
    assert study.study_hash == "f1ebd8785f6f86be64fb2458f331f75742ed6a0c161b5786471dd626f89ed486"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("cuts = [36.0, 37.0, 38.0]", "cuts = [38.0, 37.0]"), "data.series.cuts is [38.0, 37.0]; it must be strictly"),
        (('outcome = "died"', 'outcome = "temperature"'), "data.series.outcome is its column, too"),
        (("max_tokens = 64", 'max_tokens = 64\nlabel = "x"'), "data.label with a table [data.series]; remove it"),
        (('head = "pooled"', 'head = "lm"'), "adapter.head is 'lm' with a table [data.series]; it must be 'pooled'"),
        (('"v_proj"]', '"vproj"]'), "did you mean"),
    ],
)
def test_what_is_wrong_with_the_new_table_is_said_as_ever(home, change, said):
    (home / "study.toml").write_text(changed(STUDY, (change,)))
    with pytest.raises(StudyInvalid, match=re.escape(said)):
        draft_of(home)


def test_bad_cells_of_the_new_kind_are_counted_and_not_shown(home):
    study, policy = study_of(home), load_policy(home)
    assert check(home / "patients.csv", policy, study).is_fit
    (home / "patients.csv").write_text(TABLE + "p4,MARKER;1,0\n")
    report = check(home / "patients.csv", policy, study)
    assert [str(problem) for problem in report.problems] == [
        "line 6, column temperature: expected numbers, semicolons between them, found text"
    ]
    with pytest.raises(DataInvalid) as refused:
        read(policy, study, site=None)
    assert "MARKER" not in str(refused.value)


def test_records_of_the_new_kind_travel_to_workers(home):
    study = study_of(home)
    records = read(load_policy(home), study, site=None)
    again = from_arrays(to_arrays(records))
    assert again.columns["temperature"].tolist() == records.columns["temperature"].tolist()
    assert again.labels.tolist() == [0, 1, 0, 1]


def test_the_backbone_is_described_read_and_hashed_like_any_other(home):
    found, loaded = describe(home / "backbone"), load(home / "backbone")
    assert found.hash == loaded.hash
    assert loaded.family.model_type == "olmo2"
    parameters = sum(parameter.numel() for parameter in set(loaded.model.parameters()))
    assert size(home / "backbone") == found.size
    assert (found.size.parameters, found.size.active_parameters) == (parameters, parameters)


def test_a_target_of_another_family_is_refused_when_the_backbone_is_known(home):
    (home / "study.toml").write_text(changed(STUDY, (('["q_proj", "v_proj"]', '["q_proj", "kv_b_proj"]'),)))
    with pytest.raises(
        TargetMissing, match="a backbone of olmo2 takes no adapter on kv_b_proj; there are embed_tokens, q_proj"
    ):
        load_study_model(draft_of(home), home / "backbone")


def test_a_round_is_the_sum_of_clipped_gradients_of_units(home):
    """One autograd pass a unit: an independent way to the released sum."""
    trainer = trainer_of(home)
    adapted, trained = trainer.adapted, trainer.adapted.trained
    state = np.random.default_rng(0).normal(0, 0.3, trainer.adapted.layout.dim).astype(np.float32)
    released = trainer.release(state, 1) * 2.0**-24
    adapted.load_state(state)
    examples = load_study_model(study_of(home).draft, home / "backbone").examples(
        read(load_policy(home), study_of(home), site=None)
    )
    total = np.zeros(len(state))
    for unit in range(3):
        rows = np.flatnonzero(examples.units == unit)
        ids, targets = torch.from_numpy(examples.ids[rows]), torch.from_numpy(examples.targets[rows])
        adapted.zero_grad()
        adapted.losses(ids, targets).mean().backward()
        gradient = adapted.layout.flatten({name: parameter.grad for name, parameter in trained.items()}).astype(float)
        total += gradient * min(1.0, 1.0 / np.linalg.norm(gradient))
    assert 0.1 < np.linalg.norm(total) <= 3
    np.testing.assert_allclose(released, total, atol=1e-5)


def test_an_evaluation_counts_every_unit_once(home):
    trainer, study = trainer_of(home), study_of(home)
    counts = trainer.histogram(
        np.zeros(study.dim, np.float32), lambda: read(load_policy(home), study, site=None), 41, site_noise=0
    )
    assert counts.sum() == 3 << study.planned_round(41).scale_bits


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks transformers
def test_the_adapter_is_released_for_plain_peft_and_as_a_whole_checkpoint(home):
    adapted = load_study_model(study_of(home).draft, home / "backbone").adapted
    adapted.load_state(np.random.default_rng(1).normal(0, 0.3, adapted.layout.dim))
    ids = torch.tensor([[2, 3, 4, 5, 6]])
    with torch.no_grad():
        want = adapted.model(ids).logits
        export(adapted, home / "backbone", home / "adapter", CARD)
        save_merged(adapted, home / "backbone", home / "merged", CARD)
        plain = PeftModel.from_pretrained(Olmo2ForCausalLM.from_pretrained(home / "backbone"), home / "adapter")
        torch.testing.assert_close(plain(ids).logits, want, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(load_model(home / "merged")(ids).logits, want, rtol=1e-4, atol=1e-4)
    assert "Olmo2ForCausalLM.from_pretrained" in (home / "adapter" / "README.md").read_text()
    assert "OLMo 2 with a LoRA adapter" in (home / "merged" / "README.md").read_text()
