import threading
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from confide.models.adapters.lora import AdapterConfig, attach
from confide.models.adapters.peft_export import export
from confide.models.backbones.checkpoints import content_hash
from confide.models.backbones.loading import load_text
from confide.models.backbones.moments import take_moments
from confide.models.heads.objectives import OneClass
from confide.models.serving.served import Served
from confide.models.serving.server import Address, Bounds, run

from ..adapters.test_combining import CARD, OTHER
from ..tiny import save_text_backbone


def make_parts(folder: Path) -> tuple[Path, list[Path]]:
    """A backbone that reads text, an adapter that writes, and one with a head, of another rank on other modules."""
    save_text_backbone(folder / "plain")
    take_moments(folder / "plain", ["a fever", "a cough", "two legs", "nothing"], folder / "backbone", reads=(0, 2))
    digest = content_hash(folder / "backbone")
    for number, (name, card, rank, targets) in enumerate(
        (("one", CARD, 2, ("o_proj", "experts", "embed_tokens")), ("two", OTHER, 3, ("down_proj", "o_proj")))
    ):
        loaded = load_text(folder / "backbone")
        head = loaded.head(OneClass(("a", "b", "c")), (0, 2)) if name == "two" else None
        adapted = attach(loaded.model, AdapterConfig(rank=rank, alpha=8.0, targets=targets, seed="s"), head)
        generator = torch.Generator().manual_seed(number)
        adapted.load_state(torch.randn(adapted.layout.dim, generator=generator).numpy())
        export(adapted, folder / "backbone", folder / name, replace(card, backbone_hash=digest))
    return folder / "backbone", [folder / "one", folder / "two"]


@pytest.fixture(scope="session")
def parts(tmp_path_factory) -> tuple[Path, list[Path]]:
    return make_parts(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="session")
def served(parts):
    found = Served(*parts)
    yield found
    found.forms.close()


@pytest.fixture(scope="session")
def other(parts) -> Served:
    """The same once more: a model is used by one thread at a time, and engines have the first."""
    return Served(*parts)


@pytest.fixture(scope="session")
def packed(parts) -> Served:
    """The same in int8."""
    return Served(*parts, frozen="int8")


@contextmanager
def listening(served, address=None, bounds=None, prefixes=()):
    """A service in a thread; yields its port."""
    found, opened = [], threading.Event()

    def announce(each):
        found.append(each)
        opened.set()

    terms = address or Address(port=0), bounds or Bounds(rows=4, waiting=6)
    thread = threading.Thread(target=run, args=(served, *terms, announce, prefixes), daemon=True)
    thread.start()
    assert opened.wait(30)
    try:
        yield found[0].port
    finally:
        found[0].stop()
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def port(served):
    with listening(served) as found:
        yield found
