"""Carries an adapter over to a smaller backbone that was made of its own.

Its factors are cut as the backbone's weights were, and then learn on public tokens what the adapter did on the whole
backbone. Post-processing of what was released: it costs no privacy, as long as these tokens are public.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.segments import Segments
from ..backbones import loading
from ..backbones.text_pretraining import Row
from ..compression.compressing import read_kept, records_of
from ..compression.cutting import Kept, axes, columns_of_bank, layer_of, renamed, rows_of_bank
from ..compression.distilling import DistillingConfig, Lesson, Outputs, Words, learn, learnable
from ..directories import new_directory
from ..errors import InvalidCompression
from ..heads import PooledHead
from ..structure.inputs import is_joined
from .attaching import attached, places
from .card import CARD
from .combining import card_text
from .factors import Pair
from .lora import AdaptedModel
from .peft_import import Released, read, released, save
from .provenance import FILE, Carried, Provenance, Source, read_provenance

_STEPS = 600
_RECORDS, _TEXTS = "synthetic records of the backbone's schema", "public texts"
_MEASURED = "How good it is there was not measured."


@dataclass(frozen=True, slots=True)
class Carry:
    """An adapter that was carried over."""

    provenance: Provenance
    numbers: int  # of its factors and head
    numbers_before: int
    has_lost_prototype: bool  # it said how the whole backbone reads records, which is nothing to the smaller one


def carry(
    adapter: Path,
    whole: Path,
    smaller: Path,
    directory: Path,
    *,
    rows: Sequence[Row] | None = None,
    config: DistillingConfig | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Carry:
    """Writes an adapter for the smaller backbone, with a card; `directory` appears in one rename.

    Runs in one thread, because the order of sums over threads would change the weights.

    Args:
        adapter: what an export, `combining.combine` or this function wrote for the whole backbone.
        whole: folder of the backbone that it is for.
        smaller: what `compression.compressing.compress` made of that.
        rows: of an adapter that writes text: public texts as the study has them, as token ids, and which of them are
            learned. Of one with a head None: synthetic records are drawn.
        config: of the distillation; by default 600 steps.

    Raises:
        InvalidRelease, InvalidBackbone, BackboneMismatch: a folder is broken, or the adapter is for another backbone.
        InvalidCompression: the smaller backbone was made of another; the adapter reads documents by a head, or nothing
            of it is left; or the training has diverged.
        CombinationRefused: what was kept is of a backbone of another shape.
        FileExistsError: `directory` exists already.
    """
    directory, config = Path(directory), config or DistillingConfig(steps=_STEPS)
    if directory.exists():
        raise FileExistsError(f"{directory} exists already")
    given = read(adapter)
    if (given.head is None) == (rows is None):
        raise InvalidCompression(
            f"{adapter} writes text: it is carried over on public texts, and none are given"
            if given.head is None
            else f"{adapter} has a head, which learns on synthetic records: public texts have no part in it"
        )
    kept, of = read_kept(smaller)
    if given.provenance.backbone_hash != of:
        raise InvalidCompression(
            f"{smaller} was made of backbone {of[:12]}, and {adapter} is for {given.provenance.backbone_hash[:12]}"
        )
    sizes = given.provenance.sources[0].segments
    load = loading.load_text if given.head is None else loading.load
    segments = None if sizes is None else Segments(*sizes)
    try:
        large: Any = load(whole, expected_hash=of, segments=segments)
        small: Any = load(smaller, segments=segments)
    except FileNotFoundError as err:
        raise InvalidCompression(f"{err.filename} is missing") from None
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            adapted = _taught(given, kept, large, small, rows, config, progress)
    finally:
        torch.set_num_threads(threads)
    facts = given.provenance
    move = Carried(of=of, learned=_RECORDS if rows is None else f"{len(rows):,} {_TEXTS}")
    provenance = Provenance(
        backbone_hash=small.hash,
        sources=facts.sources,
        backbone_sources=tuple(dict.fromkeys((*facts.backbone_sources, *_in_weights(smaller)))),
        compressions=facts.compressions,
        carried=(*facts.carried, move),
    )
    result = replace(released(adapted, provenance, by_full_name=True), meaning=given.meaning)
    with new_directory(directory) as partial:
        save(result, partial)
        text = card_text(result, _made(result, move), _MEASURED, is_joined=is_joined(small.model))
        (partial / CARD).write_text(text, encoding="utf-8")
    return Carry(provenance, _numbers(result), _numbers(given), given.prototype is not None)


def _in_weights(backbone: Path) -> tuple[Source, ...]:
    """Reads the studies whose adapters are in a backbone's weights."""
    if not (backbone / FILE).exists():
        return ()
    found = read_provenance(backbone)
    return (*found.backbone_sources, *found.sources)


def _taught(
    given: Released,
    kept: Kept,
    large: Any,
    small: Any,
    rows: Sequence[Row] | None,
    config: DistillingConfig,
    progress: Callable[[int, int], None],
) -> AdaptedModel:
    teacher = attached(large.model, given, _head(given.head))
    cut = cut_adapter(given, kept)
    head = _head(given.head)
    if head is not None:
        fresh = small.head()
        head.center, head.whiten = fresh.center, fresh.whiten
        head.weight = nn.Parameter(torch.zeros(*head.weight.shape[:-1], head.center.numel() + 1))
    if not cut.pairs and head is None:
        raise InvalidCompression("all layers that the adapter changes were left out of the smaller backbone")
    adapted = attached(small.model, cut, head)
    factors = [factor for module in adapted.adapters.values() for factor in module.named_factors().values()]
    trained = [*factors, *([] if head is None else [head.weight])]
    for parameter in trained:
        parameter.requires_grad_(True)
    lesson: Lesson
    if rows is None:
        lesson = Outputs(adapted, teacher, records_of(large, config.seed), config.batch)
    else:
        lesson = Words(adapted.model, teacher.model, learnable(rows, teacher.model, 1), config)
    learn(lesson, trained, config, progress)
    return adapted


def cut_adapter(given: Released, kept: Kept) -> Released:
    """Cuts the factors of an adapter as the weights were that they change; those of layers that are gone go, too.

    Raises:
        InvalidCompression: what was kept is of another backbone.
    """
    pairs: dict[str, Pair] = {}
    try:
        for name, keys in places(given).items():
            place = renamed(name, kept)
            if place is None:
                continue
            for key in keys:
                pairs[key.replace(f".{name}.", f".{place}.", 1)] = _cut_pair(
                    given.pairs[key], name, keys.index(key), kept
                )
    except (IndexError, KeyError, RuntimeError, ValueError) as err:
        raise InvalidCompression(f"what was kept is of a backbone of another shape ({type(err).__name__})") from err
    return replace(given, pairs=pairs, head=None, prototype=None)


def _cut_pair(pair: Pair, module: str, place: int, kept: Kept) -> Pair:
    """Cuts A [.., R, in] and B [.., out, R] of a module's weight; of a bank `place` 0 is gate_up_proj, 1 down_proj."""
    lora_A, lora_B = pair
    if module in kept.neurons:
        experts = kept.experts[layer_of(module)]
        if place == 0:
            return Pair(lora_A[experts][..., kept.channels], rows_of_bank(lora_B, module, kept))
        return Pair(columns_of_bank(lora_A, module, kept), lora_B[experts][:, kept.channels])
    rows, columns = axes(module, kept)
    if module.endswith("embed_tokens"):  # whose factors are those of the transposed table
        rows, columns = columns, rows
    return Pair(
        lora_A if columns is None else lora_A.index_select(1, columns),
        lora_B if rows is None else lora_B.index_select(0, rows),
    )


def _head(tensors: Mapping[str, Tensor] | None) -> PooledHead | None:
    """Makes the head of an export, whatever it learns; of records alone, which have no choice of states."""
    if tensors is None:
        return None
    if "reads" in tensors:
        raise InvalidCompression(
            "the adapter reads documents by a head, whose states a smaller backbone has not; only heads that read "
            "records, and adapters that write text, are carried over"
        )
    head = PooledHead(tensors["center"], tensors["whiten"])
    head.weight = nn.Parameter(tensors["weight"].clone())
    return head


def _numbers(adapter: Released) -> int:
    factors = sum(factor.numel() for pair in adapter.pairs.values() for factor in pair)
    return factors + (0 if adapter.head is None else adapter.head["weight"].numel())


def _made(adapter: Released, move: Carried) -> str:
    kind = f"A LoRA adapter of rank {adapter.rank}" if adapter.pairs else "A head"
    return (
        f"{kind} for a backbone that was made smaller, carried over from the whole one `{move.of[:12]}`:\n"
        f"cut as its weights were, and taught what it did there, on {move.learned}."
    )
