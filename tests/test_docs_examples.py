"""Examples on the pages run: their Python in order, page by page, and their `python -c` lines as commands.

Each page runs in a folder that holds what its text says is there by then. No line is left out or put in: a page whose
example needs more than that does not tell enough.
"""

import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import openai
import pytest
import torch

from confide.coordinator.federation import Pki
from confide.models.adapters import AdapterConfig, ModelCard, attach, export
from confide.models.adapters.prototype import Prototype
from confide.models.backbones import loading
from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.loading import backbone_hash
from confide.models.heads import PooledHead
from confide.models.records.fields import CategoricalField, FlagField, NumericField, RecordSchema
from confide.models.serving.served import Served

from .models.serving.conftest import listening, make_parts
from .models.tiny import byte_tokenizer, tiny_deepseek

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.md")])
}
BLOCKS = {
    page: found for page, text in PAGES.items() if (found := re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S))
}
COMMANDS = {page: found for page, text in PAGES.items() if (found := re.findall(r"^python -c '[^']*'$", text, re.M))}

# peft 0.21 reads an attribute of transformers' models that transformers 5.24 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(page):
    """The names that a page's blocks leave behind."""
    names = {"__name__": "__main__"}
    for block in BLOCKS[page]:
        exec(compile(block, page, "exec"), names)
    return names


def test_every_page_with_an_example_has_a_test():
    assert {*BLOCKS} == {
        "docs/api-http.md",
        "docs/backbones.md",
        "docs/kernels.md",
        "docs/ml-engineer.md",
        "docs/serving.md",
    }
    assert {*COMMANDS} == {"docs/operator.md"}


def test_kernels(folder):
    tiny_deepseek().save_pretrained("checkpoint")
    names = run("docs/kernels.md")
    norms = names["collector"].square_norms().sqrt()
    assert norms.shape == (3,)
    assert bool((names["factors"] * norms <= 1 + 1e-9).all())
    assert names["gradients"].keys() == {*names["adapted"].parameters.values()}


def test_a_backbone_is_loaded_by_its_hash_and_answers(folder, capsys):
    """One of random weights: tests/models/backbones/test_smollm2.py asks the one that the page is about."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    tiny_deepseek(words=len(tokenizer)).save_pretrained("backbone")
    tokenizer.save_pretrained("backbone", save_jinja_files=False)
    names = run("docs/backbones.md")
    assert names["tokenizer"].decode(names["ids"][0]) == names["chat"][0]["content"]
    assert capsys.readouterr().out.strip()


@pytest.mark.filterwarnings("ignore:Secure RNG turned off", "ignore:Full backward hook is firing")
def test_noise_is_solved_and_an_exported_adapter_is_loaded_by_peft(folder, capsys):
    schema = RecordSchema(
        (NumericField("age", (40.0, 60.0)), NumericField("TSH", (0.4, 4.0))),
        (FlagField("sick"),),
        (CategoricalField("sex", ("F", "M")),),
    )
    model = loading.build(schema, BackboneConfig(hidden=32, experts=4))
    loading.save(model, schema, torch.zeros(64), torch.eye(64), Path("backbone"))
    backbone = loading.load(Path("backbone"))
    config = AdapterConfig(rank=2, alpha=4.0, targets=("q_a_proj", "experts"), seed="x")
    adapted = attach(backbone.model, config, PooledHead(backbone.center, backbone.whiten))
    adapted.load_state(0.3 * np.random.default_rng(7).normal(size=adapted.layout.dim))
    card = ModelCard(
        study="s", study_hash="ab" * 32, backbone_hash="cd" * 32, sites=("a", "b", "c"), rounds=1, unit="patient",
        mode="none", epsilon=None, delta=None, collusion=1, audit="nothing found",
    )  # fmt: skip
    export(adapted, Path("backbone"), Path("adapter"), card)
    here = replace(card, backbone_hash=backbone_hash(Path("backbone")))
    for place, study in enumerate(("joints", "lungs")):
        prototype = Prototype(torch.randn(16, generator=torch.Generator().manual_seed(place)), 0.0)
        export(adapted, Path("backbone"), Path(study), here, prototype)
    names = run("docs/ml-engineer.md")
    assert f"gives {float(capsys.readouterr().out)}:" in PAGES["docs/ml-engineer.md"]
    with torch.no_grad():
        torch.testing.assert_close(names["logits"], adapted.classify(names["ids"]), rtol=1e-4, atol=1e-5)
    assert names["answers"].shape == (1, 1)
    one = torch.tensor([[0.0, 1.0]])
    found = names["composition"].classify(names["requests"], one)[:, 0]
    torch.testing.assert_close(found, names["logits"], rtol=1e-4, atol=1e-5)


@pytest.mark.process
def test_a_served_adapter_answers_its_client(folder, monkeypatch, capsys):
    backbone, (one, two) = make_parts(folder)
    with listening(Served(backbone, [one, two])) as port:  # any port that is free, and the name that the adapter has
        made = openai.OpenAI
        monkeypatch.setattr(
            openai, "OpenAI", lambda *, base_url, **rest: made(base_url=base_url.replace("8000", str(port)), **rest)
        )
        monkeypatch.setitem(BLOCKS, "docs/serving.md", [
            block.replace('"diagnoses"', '"thyroid"') for block in BLOCKS["docs/serving.md"]
        ])  # fmt: skip
        names = run("docs/serving.md")
    said = capsys.readouterr().out
    assert said.endswith(f"{names['answer'].choices[0].text}\n")
    assert re.fullmatch(
        r"TSH was 0\.02 mU/l, which is (low|normal|high)\. [^\d.]{1,40}\.", names["answer"].choices[0].text
    )


@pytest.mark.process
def test_a_certificate_is_renewed(folder):
    Pki.create(folder / "HOME", ["fed.example.org"])
    before = {path: path.read_bytes() for path in (folder / "HOME").rglob("*") if path.is_file()}
    (command,) = COMMANDS["docs/operator.md"]
    _, *arguments = shlex.split(command)
    subprocess.run([sys.executable, *arguments], check=True)
    assert {path.name for path, text in before.items() if path.read_bytes() != text} == {"server.crt", "server.key"}
