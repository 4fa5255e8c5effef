"""A backbone of several studies: each of them reads its own columns, in the words of all."""

from pathlib import Path

import numpy as np
import pytest
import torch

from confide.client_node.data import Records, read
from confide.client_node.policy import load_policy
from confide.client_node.training.study_model import StudyModel, load_study_model, unused_experts
from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.loading import load, read_schema, save
from confide.models.backbones.pretraining import PretrainingConfig, pretrain
from confide.models.errors import BackboneMismatch

from ..conftest import STUDY_TOML, Site, build_study, changed

OTHER = (
    ("age = [20, 40, 60, 80]\nTSH = [0.4, 4.0, 10.0]", "age = [20, 40, 60, 80]\nBMI = [18.5, 25.0]"),
    ('flags = ["sick"]', 'flags = ["asthma", "smoker"]'),
    ('[data.categorical]\nsex = ["F", "M"]\n', ""),
)
# Words and tokens: BMI 2 to 5, TSH 6 to 10, age 11 to 16, sex 17 to 19, asthma 20, sick 21, smoker 22.
TSH, AGE, SEX, SICK = 6, 11, 17, 21


@pytest.fixture
def shared(site: Site) -> Path:
    """The backbone of the site's study and of another one, in the site's home."""
    (site.home / "other.toml").write_text(changed(STUDY_TOML, OTHER))
    drafts = (site.study().draft, build_study(site.home / "other.toml", {}).draft)
    pretrain(
        [draft.record_schema() for draft in drafts],
        site.home / "shared",
        backbone=BackboneConfig(hidden=32, experts=4),
        config=PretrainingConfig(steps=2, batch=8, questions=4, moment_records=64),
    )
    return site.home / "shared"


def losses_of(model: StudyModel, records: Records) -> torch.Tensor:
    examples = model.examples(records)
    return model.adapted.losses(torch.from_numpy(examples.ids), torch.from_numpy(examples.targets))


def test_each_study_reads_its_columns_in_the_words_of_all(site: Site, shared: Path):
    study = site.study()
    model = load_study_model(study.draft, shared)
    records = read(load_policy(site.home), study, site="svi")
    assert model.words == len(read_schema(shared).words()) == 23
    assert model.examples(records).ids.tolist() == [
        [TSH + 2, AGE + 2, SEX + 1, 0],
        [TSH, AGE + 4, SEX + 2, SICK],
        [TSH + 4, AGE + 2, SEX + 1, 0],
        [TSH + 1, AGE, SEX, SICK],
    ]
    assert losses_of(model, records).isfinite().all()

    other = load_study_model(build_study(site.home / "other.toml", {}).draft, shared)
    columns = {"age": [34.0], "BMI": [None], "asthma": [False], "smoker": [True]}
    assert other.reader.examples(columns, np.array([1]))[0].tolist() == [[2, AGE + 2, 22]]
    assert other.adapted.layout.dim == model.adapted.layout.dim  # so their adapters can be added up


def test_a_study_with_a_column_of_its_own_is_told_which(site: Site, shared: Path):
    draft = site.study(('["sick"]', '["sick", "pregnant"]'), ("TSH = [0.4, 4.0, 10.0]", "TSH = [0.4, 4.0]")).draft
    with pytest.raises(
        BackboneMismatch, match=r"shared reads records of another schema .* no pregnant; it has another .* of TSH"
    ) as refused:
        load_study_model(draft, shared)
    assert str(shared) in str(refused.value)


def test_experts_are_unused_if_no_word_of_the_study_itself_is_sent_to_them(site: Site, shared: Path):
    """Other studies' words do not count: here all of theirs go to experts that none of this one's goes to."""
    loaded = load(shared)
    model, own = loaded.model, [*range(TSH, 20), SICK]
    mark = torch.zeros(32)
    mark[0] = 50.0
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()  # what the router reads is the embedding alone
        model.get_input_embeddings().weight[:] = -mark
        model.get_input_embeddings().weight[own] = mark
        gate = model.model.layers[1].mlp.gate
        gate.weight.zero_()
        gate.weight[:2, 0], gate.weight[2:, 0] = 1.0, -1.0
        gate.e_score_correction_bias.zero_()
    save(model, loaded.schema, loaded.center, loaded.whiten, site.home / "parted")
    found = [
        unused_experts(load_study_model(draft, site.home / "parted"), draft, site.home / "parted")
        for draft in (site.study().draft, build_study(site.home / "other.toml", {}).draft)
    ]
    assert found == [{1: (2, 3)}, {}]  # both have an age, which is among the first one's words
