"""Trained models of every kind that is deployed, too small to be good at anything, each with what it is asked."""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from confide.models.adapters.card import ModelCard
from confide.models.adapters.lora import AdaptedModel, AdapterConfig, attach
from confide.models.backbones import checkpoints, loading
from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.moments import take_moments
from confide.models.backbones.text_pretraining import build_text
from confide.models.records.documents import Documents, DocumentTerms
from confide.models.records.fields import Fields, FieldTerms
from confide.models.records.formulas import Formulas, FormulaTerms
from confide.models.records.requests import Request
from confide.models.records.tasks import TaskTerms
from confide.models.records.text import FreeText, TextTerms
from confide.models.records.vocabularies import COMMANDS, character_tokenizer
from confide.models.structure import inputs

from ..adapters.test_combining import CARD
from ..tiny import byte_tokenizer, save_text_backbone


@dataclass(frozen=True)
class Trained:
    """A model as a study leaves it."""

    adapted: AdaptedModel
    backbone: Path
    card: ModelCard
    request: Request
    reader: Any
    tokenizer: Any = None


@pytest.fixture(autouse=True)
def _quiet():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's exporter
        yield
    torch.set_num_threads(before)


def trained(backbone: Path, kind, terms, targets, max_tokens=64) -> Trained:
    """A model with random adapters, and a random head if its kind has one."""
    is_text = kind.reads == "text"
    loaded = (loading.load_text if is_text else loading.load)(backbone)
    reader = kind.reader(terms, loaded.vocabulary, max_tokens=max_tokens)
    objective = kind.objective(terms)
    head = None if objective is None else loaded.head(objective, (0, 2) if is_text else None)
    adapted = attach(loaded.model, AdapterConfig(rank=2, alpha=4.0, targets=targets, seed="s"), head)
    generator = torch.Generator().manual_seed(1)
    adapted.load_state((0.3 * torch.randn(adapted.layout.dim, generator=generator)).numpy())
    card = replace(CARD, backbone_hash=loaded.hash)
    return Trained(adapted, backbone, card, kind.request(terms, reader), reader, getattr(loaded, "tokenizer", None))


@pytest.fixture(scope="session")
def table(tmp_path_factory) -> Trained:
    tasks = {"ill": TaskTerms(label="ill"), "stage": TaskTerms(label="stage", classes=("a", "b", "c"))}
    terms = FieldTerms(
        tasks=tasks, flags=("sick",), numeric={"age": (20.0, 40.0)}, categorical={"sex": ("F", "M")}
    )  # fmt: skip
    schema, folder = terms.record_schema(), tmp_path_factory.mktemp("table") / "backbone"
    model = loading.build(schema, BackboneConfig(hidden=32, experts=4))
    generator = torch.Generator().manual_seed(0)
    center, root = torch.randn(64, generator=generator), torch.randn(64, 64, generator=generator)
    loading.save(model, schema, center, root @ root.T / 64, folder)
    return trained(folder, Fields(), terms, ("o_proj", "experts", "gate", "embed_tokens"))


@pytest.fixture(scope="session")
def document(tmp_path_factory) -> Trained:
    folder = tmp_path_factory.mktemp("document")
    save_text_backbone(folder / "plain")
    take_moments(folder / "plain", ["a fever", "a cough", "two legs", "nothing"], folder / "backbone", reads=(0, 2))
    terms = DocumentTerms(label="ill", classes=("no", "yes", "who knows"), text="<|start|>Note: {note}")
    return trained(folder / "backbone", Documents(), terms, ("down_proj", "experts"), 24)


@pytest.fixture(scope="session")
def dense(tmp_path_factory) -> Trained:
    """Documents that a head reads on a model without routed experts."""
    folder, tokenizer = tmp_path_factory.mktemp("dense"), byte_tokenizer()
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=len(tokenizer),
        max_position_embeddings=64, initializer_range=0.3, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "plain")
    tokenizer.save_pretrained(folder / "plain", save_jinja_files=False)
    take_moments(folder / "plain", ["a fever", "a cough", "two legs", "nothing"], folder / "backbone", reads=(0, 2))
    terms = DocumentTerms(label="ill", classes=("no", "yes", "who knows"), text="Note: {note}")
    return trained(folder / "backbone", Documents(), terms, ("o_proj", "down_proj"), 24)


@pytest.fixture(scope="session")
def writer(tmp_path_factory) -> Trained:
    folder = tmp_path_factory.mktemp("writer") / "backbone"
    save_text_backbone(folder)
    (folder / "LICENSE.md").write_text("Do as you like.\n")
    terms = TextTerms(prompt="<|start|>Of: {note}\nIt is", completion=" {topic}<|end|>")
    return trained(folder, FreeText(), terms, ("o_proj", "experts", "embed_tokens"))


@pytest.fixture(scope="session")
def calculator(tmp_path_factory) -> Trained:
    """Formulas, with tables of structure that are adapted too, and a guide that computes."""
    folder, tokenizer = tmp_path_factory.mktemp("calculator") / "backbone", character_tokenizer(COMMANDS)
    model = build_text(tokenizer, "formulas", BackboneConfig(hidden=64, max_tokens=64))
    folder.mkdir()
    checkpoints.save_model(model, folder)
    inputs.save(model, folder)
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    terms = FormulaTerms(question="question", answer="answer", max_written=12)
    return trained(folder, Formulas(), terms, ("o_proj", "down_proj", "structure"))
