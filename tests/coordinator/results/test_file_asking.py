"""Requests with pictures, of a backbone and an adapter that public forms of two signs taught."""

import argparse
import base64
import json
import os
import shutil
import subprocess
import sys
import tomllib
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from confide.client_node.errors import DataInvalid
from confide.client_node.study import StudyDraft, load_draft
from confide.client_node.training.study_model import load_study_model
from confide.coordinator.cli.main import app
from confide.coordinator.comparison.task import read_task, shown_texts
from confide.coordinator.errors import Conflict, StudyRefused
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
from confide.models.deployment.asking import Answering, requests_of
from confide.models.deployment.deploying import deploy
from confide.models.errors import (
    BackboneMismatch,
    DeploymentRefused,
    InvalidCompression,
    InvalidPretraining,
    InvalidPrompt,
    UnsupportedModule,
)
from confide.models.serving.served import Served

from ...models.adapters.test_combining import CARD

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "scans" / "study.toml"
SIGNS = ("cross", "ring")
TARGETS = ("eye.fc1", "eye.to_words", "o_proj")


def study(**terms):
    plain = tomllib.loads(EXAMPLE.read_text())
    plain["data"]["picture"] = {
        "file": "form", "size": [32, 64], "cell": [32, 32], "shows": "signs", "prompt": "seen {note} :",
        "completion": " {told} <eos>", **terms,
    }  # fmt: skip
    return StudyDraft.model_validate_json(json.dumps(plain))


def drawn(sign, rng):
    rows, columns = np.mgrid[:32, :32] - 15.5
    inks = {"cross": (abs(rows) < 3) | (abs(columns) < 3), "ring": abs(np.hypot(rows, columns) - 10) < 3}
    return np.clip(220 - 180 * inks[sign] + rng.normal(0, 8, (32, 32)), 0, 255).astype(np.uint8)


def table(folder, count, *, seed, is_public=False):
    rng = np.random.default_rng(seed)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    lines = ["patient_id,form,note,told" + (",signs" if is_public else "")]
    for number in range(count):
        signs = [str(sign) for sign in rng.choice(SIGNS, 2)]
        picture = np.concatenate([drawn(sign, rng) for sign in signs], axis=1)
        Image.fromarray(picture).save(folder / "pictures" / f"{number}.png")
        lines.append(f"p{number},{number}.png,left,{signs[0]}" + (f",{' '.join(signs)}" if is_public else ""))
    path = folder / f"{'public' if is_public else 'train'}.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A backbone of forms of two signs, which tells the left one, and the folder of an adapter that changes nothing."""
    folder = tmp_path_factory.mktemp("forms")
    config = TextPretrainingConfig(tokens=40_000, lr=1e-2)
    build_text_backbone(
        study(),
        table(folder, 120, seed=1, is_public=True),
        folder / "backbone",
        backbone=BackboneConfig(hidden=64, max_tokens=64, experts=2, top_k=1),
        config=replace(config, eye=replace(config.eye, cells=4000, batch=64)),
    )
    adapted = attach(load_text(folder / "backbone").model, AdapterConfig(rank=2, alpha=2.0, targets=TARGETS, seed="s"))
    card = replace(CARD, backbone_hash=content_hash(folder / "backbone"))
    export(adapted, folder / "backbone", folder / "adapter", card)
    adapted.load_state(torch.randn(adapted.layout.dim, generator=torch.Generator().manual_seed(3)).numpy())
    export(adapted, folder / "backbone", folder / "wild", card)
    return folder / "backbone", folder / "adapter", folder / "wild"


pytestmark = pytest.mark.slow


def requests(folder, *, seed=2):
    """Forms without what is told of them, and what that is."""
    whole = table(folder, 12, seed=seed).read_text().splitlines()[1:]
    path = folder / "requests.csv"
    path.write_text("form,note\n" + "".join(",".join(line.split(",")[1:3]) + "\n" for line in whole))
    return path, [line.split(",")[3] for line in whole]


def test_what_a_picture_shows_is_told(parts, tmp_path):
    path, told = requests(tmp_path)
    found = ask(parts[0], parts[1:2], path, rule="fixed", study=study(), longest=4)
    assert [answer.text for answer in found.answers] == told
    assert set(told) == set(SIGNS)
    assert found.spent[0].epsilon == CARD.epsilon


def adapted_as(parts, state):
    """The backbone with an adapter that changes nothing, or the wild one."""
    config = AdapterConfig(rank=2, alpha=2.0, targets=TARGETS, seed="s")
    adapted = attach(load_text(parts[0]).model, config)
    if state == "wild":
        adapted.load_state(torch.randn(adapted.layout.dim, generator=torch.Generator().manual_seed(3)).numpy())
    return adapted


def deployed(parts, folder, state, **how):
    draft = study()
    reader = draft.data.kind.reader(
        draft.data.terms, load_text(parts[0]).vocabulary, max_tokens=draft.data.max_tokens
    )  # fmt: skip
    request = draft.data.kind.request(draft.data.terms, reader)
    card = replace(CARD, backbone_hash=content_hash(parts[0]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's exporter
        deploy(adapted_as(parts, state), parts[0], folder, card, request, **how)
    return folder


@pytest.fixture(scope="module")
def folders(parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("deployed")
    return {
        "plain": deployed(parts, folder / "plain", "plain", target="onnx", weights="int8"),
        "wild": deployed(parts, folder / "wild", "wild", target="onnx", weights="float32"),
    }


def asked(folder, *words, blocked=("confide", "torch", "transformers")):
    """What a folder's own ask.py answers where none of these can be imported."""
    code = f"import sys, runpy; sys.modules.update(dict.fromkeys({blocked!r})); sys.path.insert(0, {str(folder)!r})"
    code += f"; sys.argv = {[str(folder / 'ask.py'), *map(str, words)]!r}; runpy.run_path(sys.argv[0])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


@pytest.mark.process
@pytest.mark.parametrize("state", ["plain", "wild"])
def test_a_folder_without_confide_reads_pictures_as_the_adapter_does(parts, folders, tmp_path, state):
    path, _ = requests(tmp_path)
    adapter = parts[1 if state == "plain" else 2]
    want = [each.text for each in ask(parts[0], [adapter], path, rule="fixed", study=study(), longest=4).answers]
    code, answers, said = asked(folders[state], path, "--longest", "4")
    assert [answer["text"].split() for answer in answers] == [text.split() for text in want]
    assert len(set(want)) > 1
    assert (code, said) == (0, "")
    alone = asked(folders[state], f"form={tmp_path / 'pictures' / '3.png'}", "note=left", "--longest", "4")
    assert alone == (0, answers[3:4], "")


def test_a_long_cell_is_cut_as_in_the_study(parts, folders, tmp_path):
    path, _ = requests(tmp_path)
    path.write_text(path.read_text().replace(",left", "," + "left seen cross " * 40, 6))
    want = [each.text for each in ask(parts[0], parts[2:], path, rule="fixed", study=study(), longest=4).answers]
    answering = Answering(folders["wild"], threads=1)
    given = list(requests_of(argparse.Namespace(requests=[str(path)], by=None), answering.deployment.request))
    assert [each["text"].split() for each in answering.answer(given, longest=4)] == [text.split() for text in want]


def test_what_is_drawn_depends_on_the_picture(folders, tmp_path):
    path, _ = requests(tmp_path)
    answering = Answering(folders["plain"], threads=1)
    given = list(requests_of(argparse.Namespace(requests=[str(path)], by=None), answering.deployment.request))
    texts = [each["text"] for each in answering.answer(given, longest=8, temperature=50.0)]
    assert len(set(texts)) == len(texts)
    assert [each["text"] for each in answering.answer(given, longest=8, temperature=50.0)] == texts


def test_a_picture_in_json_is_the_file_in_base64(folders, tmp_path):
    path, told = requests(tmp_path)
    del path
    answering = Answering(folders["plain"], threads=1)
    given = [
        {"note": "left", "form": base64.b64encode((tmp_path / "pictures" / f"{number}.png").read_bytes()).decode()}
        for number in range(12)
    ]
    found = answering.answer([*given, {"note": "left"}, {**given[0], "form": 3}])
    assert [answer["text"].strip() for answer in found[:12]] == told
    assert found[12:] == [
        {"error": "the request does not say form"},
        {"error": "form: a picture is a PNG file of up to 16 MiB in base64"},
    ]
    assert answering.answer(given[4:5])[0] == found[4]  # whoever is asked beside it


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("0.png", "form: a picture is a PNG file of up to 16 MiB in base64"),
        ("/etc/hostname", "form: a picture is a PNG file of up to 16 MiB in base64"),
        ("é", "form: a picture is a PNG file of up to 16 MiB in base64"),
        ("", "form: the picture is no PNG file"),
        ("iVBORw0KGgo=", "form: the picture is no PNG file"),
        ("A" * (23 << 20), "form: a picture is a PNG file of up to 16 MiB in base64"),
    ],
)
def test_an_entry_that_is_no_picture_is_refused_and_opens_no_file(folders, entry, words):
    (answer,) = Answering(folders["plain"]).answer([{"form": entry, "note": "left"}])
    assert [*answer] == ["error"]
    assert answer["error"].startswith(words)
    assert len(answer["error"]) < 80


def test_a_table_names_files_of_its_own_folder_alone(folders, tmp_path):
    path, _ = requests(tmp_path)
    os.mkfifo(tmp_path / "pictures" / "pipe.png")
    shutil.copy(tmp_path / "pictures" / "0.png", tmp_path / "beside.png")
    (tmp_path / "pictures" / "out.png").symlink_to(tmp_path / "beside.png")
    (tmp_path / "pictures" / "loop.png").symlink_to(tmp_path / "pictures" / "loop.png")
    (tmp_path / "pictures" / "large.png").write_bytes(bytes((16 << 20) + 1))
    names = [
        " 0.png ",
        "loop.png",
        "large.png",
        "../beside.png",
        str(tmp_path / "beside.png"),
        "out.png",
        "pipe.png",
        "none.png",
        "",
        "a\0b",
    ]
    path.write_text("form,note\n" + "".join(f"{name},left\n" for name in names))
    request = Answering(folders["plain"]).deployment.request
    arguments = argparse.Namespace(requests=[str(path)], by=None)
    first, loop, large, *others = requests_of(arguments, request)
    assert isinstance(loop, InvalidPrompt)
    assert str(large) == "form: a file of more than 16 MiB"
    assert base64.b64decode(first["form"]) == (tmp_path / "pictures" / "0.png").read_bytes()
    outside, absent = "form: a file that is not below the folder pictures", "form: no such file"
    assert [str(each) for each in others[:6]] == [outside, outside, outside, absent, absent, absent]
    assert all(isinstance(each, InvalidPrompt) for each in others)


def test_a_folder_says_what_a_picture_is_and_what_it_takes(folders):
    assert "32 pixels high and 64 wide" in (folders["plain"] / "README.md").read_text()
    assert "pillow" in (folders["plain"] / "requirements.txt").read_text().split()
    assert not (folders["plain"] / "model").exists()


def test_a_checkpoint_for_transformers_has_no_eye_and_is_refused(parts, tmp_path):
    with pytest.raises(DeploymentRefused, match="pictures are read by a graph"):
        deployed(parts, tmp_path / "it", "plain", target="torch", weights="float32")
    assert not (tmp_path / "it").exists()


def test_an_adapter_in_the_eye_is_loaded_where_it_was(parts, tmp_path):
    path, _ = requests(tmp_path)
    texts = [
        [each.text for each in ask(parts[0], [adapter], path, rule="fixed", study=study(), longest=4).answers]
        for adapter in parts[1:]
    ]
    assert texts[0] != texts[1]
    wild = compose(parts[0], parts[2:]).adapted
    assert {name.split(".")[-1] for name in wild.adapters if ".eye." in name} == {"fc1", "to_words"}
    assert sum(name.endswith(".o_proj") for name in wild.adapters) == 2  # the decoder's, and none of the eye's


def test_the_command_answers_a_table(parts, tmp_path):
    path, told = requests(tmp_path)
    terms = study().data.picture.model_dump(mode="json")
    lines = [f"{name} = {json.dumps(value)}" for name, value in terms.items()]
    before, _, after = EXAMPLE.read_text().partition("[data.picture]")
    rest = after[after.index("\n[") :]
    (tmp_path / "study.toml").write_text(before + "[data.picture]\n" + "\n".join(lines) + "\n" + rest)
    words = ["adapter", "ask", parts[0], parts[1], "--requests", path, "--study", tmp_path / "study.toml"]
    done = CliRunner().invoke(app, [*map(str, words), "--by", "fixed", "--longest", "4", "--json"])
    assert done.exit_code == 0, done.output
    assert [each["answer"] for each in json.loads(done.stdout)["answers"]] == told


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("form,note\n", Conflict, "has no requests"),
        ("form\n0.png\n", Conflict, "has no column note"),
        (
            "form,note\n77.png,left\n",
            DataInvalid,
            "line 2, column form: expected the name of a PNG file below pictures, .*, found no file",
        ),
        ("form,note\n../0.png,left\n", DataInvalid, "line 2, column form"),
    ],
)
def test_a_table_without_pictures_is_refused(parts, tmp_path, text, error, words):
    path, _ = requests(tmp_path)
    path.write_text(text)
    with pytest.raises(error, match=words) as refused:
        ask(parts[0], parts[1:2], path, rule="fixed", study=study())
    assert "77" not in str(refused.value)


def test_an_answer_needs_no_word_that_ends_it(parts, tmp_path):
    path, told = requests(tmp_path)
    found = ask(parts[0], parts[1:2], path, rule="fixed", study=study(completion=" {told}"), longest=1)
    assert [answer.text for answer in found.answers] == told


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ({"size": [32, 32]}, "32 x 64 pixels in cells of 32 x 32, and the study's are of 32 x 32 pixels"),
        ({"cell": None}, "in cells of 32 x 64"),
    ],
)
def test_a_study_of_other_pictures_than_the_eye_s_is_refused(parts, tmp_path, terms, words):
    other = study(**terms)
    with pytest.raises(BackboneMismatch, match=words):
        load_study_model(other, parts[0])
    path, _ = requests(tmp_path)
    with pytest.raises(Conflict, match=words):
        ask(parts[0], parts[1:2], path, rule="fixed", study=other)
    assert load_study_model(study(), parts[0]).adapted.carrying_tokens == 8


def test_pictures_and_an_eye_go_together(parts, tmp_path):
    shutil.copytree(parts[0], tmp_path / "blind")
    (tmp_path / "blind" / "eye.safetensors").unlink()
    with pytest.raises(BackboneMismatch, match="has no eye"):
        load_study_model(study(), tmp_path / "blind")
    plain = study().model_dump(mode="json")
    plain["data"].pop("picture")
    plain["data"]["text"] = {"prompt": "seen {note} :", "completion": " {told} <eos>"}
    with pytest.raises(BackboneMismatch, match="has an eye"):
        load_study_model(StudyDraft.model_validate_json(json.dumps(plain)), parts[0])


@pytest.mark.parametrize("option", [{"rule": "arrow"}, {"then": "and"}, {"template": "of {text}"}, {"longest": 4000}])
def test_what_is_not_for_pictures_is_not_ignored(parts, tmp_path, option):
    path, _ = requests(tmp_path)
    with pytest.raises(Conflict):
        ask(parts[0], parts[1:2], path, study=study(), **option)


def test_pictures_are_read_by_their_study_and_by_one_adapter(parts, tmp_path):
    path, _ = requests(tmp_path)
    with pytest.raises(Conflict, match="--study"):
        ask(parts[0], parts[1:2], path, rule="fixed")
    with pytest.raises(Conflict, match="one adapter"):
        ask(parts[0], parts[1:], path, rule="fixed", study=study())


def test_what_takes_no_pictures_says_so(parts, tmp_path):
    with pytest.raises(BackboneMismatch, match="reads pictures"):
        Served(parts[0], parts[1:2])
    with pytest.raises(InvalidCompression, match="reads pictures"):
        compress(parts[0], tmp_path / "small", times=2.0, rows=[([1, 2], [False, True])] * 400)
    adapted = attach(load_text(parts[0]).model, AdapterConfig(rank=2, alpha=2.0, targets=TARGETS, seed="s"))
    with pytest.raises(UnsupportedModule, match="an eye"):
        save_merged(adapted, parts[0], tmp_path / "merged", replace(CARD, backbone_hash=content_hash(parts[0])))


def test_an_eye_needs_a_column_to_learn_by(tmp_path):
    public = table(tmp_path, 4, seed=1, is_public=True)
    with pytest.raises(InvalidPretraining, match=r"data\.picture\.shows is missing"):
        build_text_backbone(study(shows=None), public, tmp_path / "backbone")
    thyroid = load_draft(EXAMPLE.parents[1] / "thyroid" / "study.toml")
    with pytest.raises(StudyRefused, match=r"\[data.picture\]"):
        build_text_backbone(thyroid, public, tmp_path / "backbone")


def test_simpler_models_see_the_text_alone(tmp_path):
    for site in study().participants.sites:
        (tmp_path / site).mkdir()
        train = table(tmp_path / site, 6, seed=1)
        (train.parent / "heldout.csv").write_text(train.read_text())
    task = read_task(study(), tmp_path)
    assert shown_texts(study(), task.train["north"]) == ["left"] * 6
    assert {len(site.units) for site in task.train.values()} == {6}
