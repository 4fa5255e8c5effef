"""Requests with sounds, of a backbone and an adapter that public tones of two pitches taught."""

import json
import shutil
import tomllib
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from confide.client_node.errors import DataInvalid
from confide.client_node.study import StudyDraft
from confide.client_node.training.study_model import load_study_model
from confide.coordinator.cli.main import app
from confide.coordinator.comparison.task import read_task, shown_texts
from confide.coordinator.errors import Conflict
from confide.coordinator.results.asking import ask
from confide.coordinator.studies.text_backbone import build_text_backbone
from confide.models.adapters.composing import compose
from confide.models.adapters.lora import AdapterConfig, attach
from confide.models.adapters.merging import save_merged
from confide.models.adapters.peft_export import export
from confide.models.backbones.checkpoints import content_hash
from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.loading import load_text
from confide.models.backbones.text_pretraining import TextPretrainingConfig
from confide.models.compression.compressing import compress
from confide.models.errors import BackboneMismatch, InvalidCompression, InvalidPretraining, UnsupportedModule
from confide.models.serving.served import Served
from confide.models.structure.sounds import written

from ...models.adapters.test_combining import CARD
from .test_file_asking import EXAMPLE as SCANS
from .test_file_asking import study as study_of_pictures

TONES = ("hum", "whistle")
TARGETS = ("ear.fc1", "ear.out_proj", "ear.to_words", "o_proj")


def study(**terms):
    plain = tomllib.loads(SCANS.read_text())
    plain["adapter"]["targets"] = ["ear.to_words"]
    del plain["data"]["picture"]
    plain["data"]["sound"] = {
        "file": "call", "rate": 8000, "seconds": 1, "shows": "tone", "prompt": "heard {note} :",
        "completion": " {told} <eos>", **terms,
    }  # fmt: skip
    return StudyDraft.model_validate_json(json.dumps(plain))


def drawn(tone, rng):
    pitch = rng.uniform(300, 700) if tone == "hum" else rng.uniform(1500, 3000)
    sound, place = rng.normal(0, 0.02, 8000), rng.integers(0, 4000)
    sound[place : place + 4000] += np.sin(2 * np.pi * pitch * np.arange(4000) / 8000) * rng.uniform(0.2, 0.6)
    return (sound * 2**14).astype("<i2").tobytes()


def table(folder, count, *, seed, is_public=False):
    rng = np.random.default_rng(seed)
    (folder / "sounds").mkdir(parents=True, exist_ok=True)
    lines = ["patient_id,call,note,told" + (",tone" if is_public else "")]
    for number in range(count):
        tone = str(rng.choice(TONES))
        (folder / "sounds" / f"{number}.wav").write_bytes(written(drawn(tone, rng), 8000))
        lines.append(f"p{number},{number}.wav,tone,{tone}" + (f",{tone}" if is_public else ""))
    path = folder / f"{'public' if is_public else 'train'}.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A backbone that tells tones apart, and the folders of adapters: one that changes nothing, and a wild one."""
    folder = tmp_path_factory.mktemp("tones")
    config = TextPretrainingConfig(tokens=30_000, lr=1e-2)
    build_text_backbone(
        study(),
        table(folder, 120, seed=1, is_public=True),
        folder / "backbone",
        backbone=BackboneConfig(hidden=64, max_tokens=64, experts=2, top_k=1),
        config=replace(config, ear=replace(config.ear, sounds=1600, batch=32)),
    )
    adapted = attach(load_text(folder / "backbone").model, AdapterConfig(rank=2, alpha=2.0, targets=TARGETS, seed="s"))
    card = replace(CARD, backbone_hash=content_hash(folder / "backbone"))
    export(adapted, folder / "backbone", folder / "adapter", card)
    adapted.load_state(20 * torch.randn(adapted.layout.dim, generator=torch.Generator().manual_seed(3)).numpy())
    export(adapted, folder / "backbone", folder / "wild", card)
    return folder / "backbone", folder / "adapter", folder / "wild"


pytestmark = pytest.mark.slow


def requests(folder, *, seed=2):
    """Sounds without what is told of them, and what that is."""
    whole = table(folder, 12, seed=seed).read_text().splitlines()[1:]
    path = folder / "requests.csv"
    path.write_text("call,note\n" + "".join(",".join(line.split(",")[1:3]) + "\n" for line in whole))
    return path, [line.split(",")[3] for line in whole]


def test_the_command_tells_what_is_heard(parts, tmp_path):
    path, told = requests(tmp_path)
    terms = study().data.sound.model_dump(mode="json")
    lines = [f"{name} = {json.dumps(value)}" for name, value in terms.items()]
    before, _, after = SCANS.read_text().replace("eye.to_words", "ear.to_words").partition("[data.picture]")
    rest = after[after.index("\n[") :]
    (tmp_path / "study.toml").write_text(before + "[data.sound]\n" + "\n".join(lines) + "\n" + rest)
    words = ["adapter", "ask", parts[0], parts[1], "--requests", path, "--study", tmp_path / "study.toml"]
    done = CliRunner().invoke(app, [*map(str, words), "--by", "fixed", "--longest", "3", "--json"])
    assert done.exit_code == 0, done.output
    assert [each["answer"] for each in json.loads(done.stdout)["answers"]] == told
    assert set(told) == set(TONES)


def test_an_adapter_in_the_ear_is_loaded_where_it_was(parts, tmp_path):
    path, _ = requests(tmp_path)
    texts = [
        [each.text for each in ask(parts[0], [adapter], path, rule="fixed", study=study(), longest=3).answers]
        for adapter in parts[1:]
    ]
    assert texts[0] != texts[1]
    wild = compose(parts[0], parts[2:]).adapted
    assert {name.split(".")[-1] for name in wild.adapters if ".ear." in name} == {"fc1", "out_proj", "to_words"}
    assert sum(name.endswith(".o_proj") for name in wild.adapters) == 2  # the decoder's
    assert (wild.begins_with, wild.carrying_tokens, wild.carried) == ("sounds", 16, 128)


def test_a_table_without_sounds_is_refused(parts, tmp_path):
    path, _ = requests(tmp_path)
    path.write_text("call,note\n77.wav,tone\n")
    expected = "line 2, column call: expected the name of a WAV file below sounds, PCM of 16 bits.*, found no file"
    with pytest.raises(DataInvalid, match=expected) as refused:
        ask(parts[0], parts[1:2], path, rule="fixed", study=study())
    assert "77" not in str(refused.value)


@pytest.mark.parametrize("terms", [{"rate": 16_000}, {"seconds": 2}])
def test_a_study_of_other_sounds_than_the_ear_s_is_refused(parts, tmp_path, terms):
    path, _ = requests(tmp_path)
    words = "an ear for sounds of 1 s at 8000 Hz, and the study's are of"
    with pytest.raises(BackboneMismatch, match=words):
        load_study_model(study(**terms), parts[0])
    with pytest.raises(Conflict, match=words):
        ask(parts[0], parts[1:2], path, rule="fixed", study=study(**terms))


def test_sounds_and_an_ear_go_together(parts, tmp_path):
    shutil.copytree(parts[0], tmp_path / "deaf")
    (tmp_path / "deaf" / "ear.safetensors").unlink()
    with pytest.raises(BackboneMismatch, match="has no ear, and the study's records begin with a sound"):
        load_study_model(study(), tmp_path / "deaf")
    with pytest.raises(BackboneMismatch, match="has no eye, and the study's records begin with a picture"):
        load_study_model(study_of_pictures(), parts[0])
    path, _ = requests(tmp_path)
    with pytest.raises(Conflict, match="reads sounds, and records of the study are of kind picture"):
        ask(parts[0], parts[1:2], path, rule="fixed", study=study_of_pictures())
    with pytest.raises(Conflict, match="reads sounds: say what a record is, --study"):
        ask(parts[0], parts[1:2], path, rule="fixed")


def test_what_takes_no_sounds_says_so(parts, tmp_path):
    with pytest.raises(BackboneMismatch, match="reads sounds, which are not served"):
        Served(parts[0], parts[1:2])
    with pytest.raises(InvalidCompression, match="reads sounds: one with an ear"):
        compress(parts[0], tmp_path / "small", times=2.0, rows=[([1, 2], [False, True])] * 400)
    adapted = attach(load_text(parts[0]).model, AdapterConfig(rank=2, alpha=2.0, targets=TARGETS, seed="s"))
    with pytest.raises(UnsupportedModule, match="an ear"):
        save_merged(adapted, parts[0], tmp_path / "merged", replace(CARD, backbone_hash=content_hash(parts[0])))


def test_an_ear_needs_a_column_to_learn_by(tmp_path):
    public = table(tmp_path, 4, seed=1, is_public=True)
    with pytest.raises(InvalidPretraining, match=r"data\.sound\.shows is missing"):
        build_text_backbone(study(shows=None), public, tmp_path / "backbone")


def test_simpler_models_read_the_text_alone(tmp_path):
    for site in study().participants.sites:
        (tmp_path / site).mkdir()
        train = table(tmp_path / site, 6, seed=1)
        (train.parent / "heldout.csv").write_text(train.read_text())
    assert shown_texts(study(), read_task(study(), tmp_path).train["north"]) == ["tone"] * 6
