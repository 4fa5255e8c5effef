"""Plain Opacus on our models: its clipped sums are the clipper's, and its engine trains them from start to end."""

import pytest
import torch
import torch.nn.functional as F
from opacus import GradSampleModule, PrivacyEngine
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from confide.models.adapters import AdaptedModel, opacus_layers
from confide.models.adapters.lora import BankFactors, LoRAEmbedding, LoRALinear
from confide.models.adapters.routers import RouterFactors
from confide.models.errors import RowsUnknown
from confide.models.heads import PooledHead
from confide.models.heads.objectives import OneClass
from confide.privacy.mechanism.clipping import PerUnitClipper

from ...privacy.loops import CAUSAL, DTYPES, TARGETS, adapted_tiny
from ..tiny import random_ids

pytestmark = pytest.mark.filterwarnings("ignore:Secure RNG turned off", "ignore:Full backward hook is firing")
ROWS, CLIP = 9, 0.05
STEEP = 100.0  # Opacus divides by norm + 1e-6, which shows less the longer a gradient is


def next_words(logits_RTV: Tensor, ids_RT: Tensor) -> Tensor:
    """The mean loss of each record's next words, the mean over records."""
    by_token = F.cross_entropy(logits_RTV[:, :-1].flatten(0, 1), ids_RT[:, 1:].flatten(), reduction="none")
    return by_token.view(len(ids_RT), -1).mean(1).mean()


def loss_of(adapted: nn.Module, ids: Tensor, labels: Tensor, *, causal: bool) -> Tensor:
    logits = adapted(ids)
    loss = next_words(logits, ids) if causal else F.binary_cross_entropy_with_logits(logits, labels.to(logits))
    return STEEP * loss


def under_opacus(adapted: AdaptedModel, ids: Tensor, labels: Tensor, **terms: float):
    """What an engineer writes: a loader of one batch that holds everybody, and the engine."""
    adapted.train()
    loader = DataLoader(TensorDataset(ids, labels), batch_size=len(ids))
    optimizer = torch.optim.SGD(adapted.trained.values(), lr=0.1)
    return PrivacyEngine().make_private(
        module=adapted, optimizer=optimizer, data_loader=loader,
        **{"noise_multiplier": 0.0, "max_grad_norm": CLIP} | terms,
    )  # fmt: skip


def clipped_sum(adapted: AdaptedModel, ids: Tensor, labels: Tensor, *, causal: bool) -> dict[str, Tensor]:
    clipper = PerUnitClipper(adapted)
    with clipper.microbatch(range(len(ids)), ids.shape[1]):
        (loss_of(adapted, ids, labels, causal=causal) * len(ids)).backward()
    return clipper.clipped_sum(CLIP)[0]


def batch() -> tuple[Tensor, Tensor]:
    return random_ids(ROWS), torch.arange(ROWS) % 2


@pytest.mark.slow
@pytest.mark.parametrize("freeze_a", [True, False])
@pytest.mark.parametrize("targets", TARGETS)
def test_opacus_sums_what_the_clipper_sums(targets, freeze_a):
    (ids, labels), causal, dtype = batch(), targets in CAUSAL, DTYPES["float64"]
    want = clipped_sum(adapted_tiny(targets, freeze_a=freeze_a, dtype=dtype), ids, labels, causal=causal)
    adapted = adapted_tiny(targets, freeze_a=freeze_a, dtype=dtype)
    model, optimizer, loader = under_opacus(adapted, ids, labels)
    for batch_ids, batch_labels in loader:
        loss_of(model, batch_ids, batch_labels, causal=causal).backward()
        norms = torch.stack([p.grad_sample.flatten(1).norm(dim=1) for p in adapted.trained.values()]).norm(dim=0)
        assert norms.min() > 10 * CLIP  # every row is clipped
        optimizer.clip_and_accumulate()
    assert all(parameter.summed_grad.shape == parameter.shape for parameter in adapted.trained.values())
    off = [(parameter.summed_grad - want[name]).norm() for name, parameter in adapted.trained.items()]
    assert torch.stack(off).norm() <= 1e-6 * ROWS * CLIP


@pytest.mark.parametrize("reads", [None, (0, 2)])
def test_opacus_sums_what_the_clipper_sums_of_a_head_of_several_outputs(reads):
    objective, ids, classes = OneClass(("a", "b", "c")), random_ids(ROWS), torch.arange(ROWS) % 3
    terms = {"targets": "attention", "dtype": torch.float64, "objective": objective, "reads": reads}
    clipped = adapted_tiny(**terms)
    clipper = PerUnitClipper(clipped)
    with clipper.microbatch(range(ROWS), ids.shape[1]):
        (STEEP * clipped.losses(ids, classes).mean() * ROWS).backward()
    want = clipper.clipped_sum(CLIP)[0]
    adapted = adapted_tiny(**terms)
    model, optimizer, loader = under_opacus(adapted, ids, classes)
    for batch_ids, batch_classes in loader:
        (STEEP * F.cross_entropy(model(batch_ids), batch_classes)).backward()
        optimizer.clip_and_accumulate()
    assert adapted.trained["head.weight"].shape == (3, 65)
    off = [(parameter.summed_grad - want[name]).norm() for name, parameter in adapted.trained.items()]
    assert torch.stack(off).norm() <= 1e-6 * ROWS * CLIP


def test_the_engine_trains_every_layer_and_counts_its_steps():
    """Poisson batches of any size, the empty one too; noise, and an epsilon from Opacus' accountant."""
    adapted, (ids, labels) = adapted_tiny("all"), batch()
    adapted.train()
    before, engine = adapted.state(), PrivacyEngine(accountant="rdp")
    model, optimizer, loader = engine.make_private(
        module=adapted,
        optimizer=torch.optim.SGD(adapted.trained.values(), lr=0.1),
        data_loader=DataLoader(TensorDataset(ids, labels), batch_size=1, generator=torch.Generator().manual_seed(2)),
        noise_multiplier=1.0,
        max_grad_norm=CLIP,
        noise_generator=torch.Generator().manual_seed(1),
    )
    sizes = []
    for _ in range(2):
        for batch_ids, batch_labels in loader:
            optimizer.zero_grad()
            sizes.append(len(batch_ids))
            loss_of(model, batch_ids, batch_labels, causal=False).backward()
            optimizer.step()
    assert min(sizes) == 0
    assert max(sizes) > 1
    assert engine.accountant.history == [(1.0, 1 / ROWS, len(sizes))]
    assert 0 < engine.get_epsilon(1e-5) < 10
    moved = adapted.layout.unflatten(adapted.state() - before)
    assert all(part.all() for part in moved.values())


def test_a_backbone_called_past_the_adapted_model_is_refused():
    adapted, (ids, labels) = adapted_tiny("experts"), batch()
    under_opacus(adapted, ids, labels)
    loss = next_words(adapted.model(input_ids=ids).logits, ids)
    with pytest.raises(RowsUnknown, match="train by calling the AdaptedModel"):
        loss.backward()


@pytest.mark.parametrize("kind", [LoRALinear, LoRAEmbedding, RouterFactors, BankFactors, PooledHead])
def test_every_kind_of_layer_has_a_grad_sampler(kind):
    """Of ours: where Opacus finds none it would differentiate by vmap, which none of our kernels bears."""
    assert GradSampleModule.GRAD_SAMPLERS[kind].__module__ == opacus_layers.__name__
