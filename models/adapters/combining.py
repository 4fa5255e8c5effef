"""Finished adapters of different ranks, scales and seeds as one: products add up, factors alone do not.

Post-processing of what was released: it costs no privacy. But it may bring together what several studies released of
one and the same person; the card says what that adds up to.

Legend: `E` experts, `R` rank, `I` inputs, `O` outputs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ...kernels.segments import Segments
from ..directories import new_directory
from ..errors import CombinationRefused
from ..structure.places import sense_in
from ..structure.readers import TARGET
from .card import CARD, HEAD_ALONE, attention_text, head_text, one_line
from .factors import Pair
from .peft_export import JOINED
from .peft_import import MAX_RANK, Released, read, save
from .provenance import MAX_SOURCES, Compression, Provenance, composition

_MOST_NUMBERS = 1 << 30  # 4 GiB


@dataclass(frozen=True, slots=True)
class Combined:
    """An adapter, and how far its products are from those that it stands for; 0 where nothing was cut."""

    adapter: Released
    relative_error: float  # Frobenius, of all products together, experts included
    error_of: Mapping[str, float]  # the same of one weight, by PEFT's name of its factors; of a bank, all its experts


def combine(
    directories: Sequence[Path], directory: Path, *, weights: Sequence[float] | None = None, rank: int | None = None
) -> Combined:
    """Writes the weighted mean of exported adapters as one, with a card; `directory` appears in one rename.

    Args:
        directories: what `peft_export.export` or this function wrote, two or more.
        weights: positive, one each; only their ratios count. Left out, all count alike.
        rank: the result is cut to it (`compress`); left out, it is exact and has the sum of their ranks.

    Raises:
        InvalidRelease: a directory is not what an export wrote.
        CombinationRefused: the adapters or the arguments do not fit together.
        FileExistsError: `directory` exists already.
    """
    weights = [1.0] * len(directories) if weights is None else weights
    if len(directories) < 2 or len(weights) != len(directories) or not all(0 < w < math.inf for w in weights):
        raise CombinationRefused(
            f"two adapters or more are needed, with one positive weight each; got {len(directories)} and "
            f"{len(weights)} weights"
        )
    whole = sum(weights)
    adapter = stack([read(path) for path in directories], [weight / whole for weight in weights])
    result = Combined(adapter, 0.0, dict.fromkeys(adapter.pairs, 0.0)) if rank is None else compress(adapter, rank)
    with new_directory(directory) as partial:
        save(result.adapter, partial)
        is_joined = any(f".{TARGET}." in name or sense_in(name) is not None for name in result.adapter.pairs)
        text = card_text(
            result.adapter, _sum_text(result.adapter), "How good the sum is was not measured.", is_joined=is_joined
        )
        (partial / CARD).write_text(text, encoding="utf-8")
    return result


def stack(adapters: Sequence[Released], weights: Sequence[float]) -> Released:
    """One adapter whose every product is the weighted sum of theirs (FLoRA, Wang et al. 2024, arXiv:2409.05976).

    sum_k w_k s_k B_k A_k = [w_1 s_1 B_1, w_2 s_2 B_2, ...] [A_1; A_2; ...], so ranks add up. Exact but for one rounding
    of each number of B. A weight that some of them leave alone gets zeros in their place. The head is the mean by these
    weights, if all have one.

    Raises:
        CombinationRefused: backbones, attention, shapes of factors or moments of heads differ.
    """
    first = adapters[0]
    if any(adapter.provenance.backbone_hash != first.provenance.backbone_hash for adapter in adapters):
        raise CombinationRefused("the adapters are for different backbones, and each is meaningless on another's")
    if len({source.segments for adapter in adapters for source in adapter.provenance.sources}) > 1:
        raise CombinationRefused(
            "the adapters were trained with different attention, and each computes something else with another's"
        )
    rank = sum(adapter.rank for adapter in adapters)
    _refuse_too_many(adapters, rank)
    names = dict.fromkeys(name for adapter in adapters for name in adapter.pairs)
    head = _mean_head(adapters, weights)
    return Released(
        pairs={name: _widened(_stacked(name, adapters, weights), rank) for name in names},
        rank=rank,
        alpha=float(rank),
        target_modules=frozenset().union(*(adapter.target_modules for adapter in adapters)),
        target_parameters=frozenset().union(*(adapter.target_parameters for adapter in adapters)),
        head=head,
        meaning="" if head is None else first.meaning,
        provenance=Provenance(
            backbone_hash=first.provenance.backbone_hash,
            sources=tuple(
                source.model_copy(update={"weight": source.weight * weight})
                for adapter, weight in zip(adapters, weights, strict=True)
                for source in adapter.provenance.sources
            ),
            backbone_sources=first.provenance.backbone_sources,  # one hash, one backbone
            compressions=tuple(cut for adapter in adapters for cut in adapter.provenance.compressions),
            carried=tuple(dict.fromkeys(move for adapter in adapters for move in adapter.provenance.carried)),
        ),
    )


def _refuse_too_many(adapters: Sequence[Released], rank: int) -> None:
    sources, cuts = (
        sum(len(getattr(adapter.provenance, part)) for adapter in adapters) for part in ("sources", "compressions")
    )
    if rank > MAX_RANK or max(sources, cuts) > MAX_SOURCES:
        raise CombinationRefused(
            f"ranks add up to {rank}, studies to {sources}, cuts to {cuts}; at most {MAX_RANK}, {MAX_SOURCES} and "
            f"{MAX_SOURCES} fit in one adapter"
        )
    pairs = {name: pair for adapter in adapters for name, pair in adapter.pairs.items()}
    numbers = sum(
        rank * (pair.lora_A.shape[-1] + pair.lora_B.shape[-2]) * math.prod(pair.lora_A.shape[:-2])
        for pair in pairs.values()
    )
    if numbers > _MOST_NUMBERS:
        raise CombinationRefused(
            f"the combined adapter would have {numbers:,} numbers, as every weight gets the sum of all ranks; at most "
            f"{_MOST_NUMBERS:,}. Cut the larger ones to a smaller rank first"
        )


def compress(adapter: Released, rank: int) -> Combined:
    """The adapter of that rank whose products are nearest to the adapter's, in Frobenius norm, weight by weight.

    Truncated singular value decomposition, which no factors of that rank beat (Eckart & Young 1936). The products are
    never built: with B = Q_B R_B and A^T = Q_A R_A, the singular values of B A are those of the small R_B R_A^T. In
    float64, rounded to float32 in the end. A bank is cut expert by expert.

    Raises:
        CombinationRefused: rank is not from 1 to the adapter's.
    """
    if not 1 <= rank <= adapter.rank:
        raise CombinationRefused(f"rank is {rank}; it must be from 1 to {adapter.rank}, the rank that there is")
    pairs: dict[str, Pair] = {}
    lost: dict[str, float] = {}  # squares
    kept: dict[str, float] = {}
    for name, pair in adapter.pairs.items():
        left, values, right = _svd(pair, adapter.lora_scaling)
        root = values[..., :rank].sqrt()
        pairs[name] = _widened(
            Pair(
                (root.unsqueeze(-1) * right[..., :rank, :]).float(), (left[..., :rank] * root.unsqueeze(-2)).float()
            ), rank,
        )  # fmt: skip
        lost[name], kept[name] = (float(part.square().sum()) for part in (values[..., rank:], values[..., :rank]))
    error = _relative(sum(lost.values()), sum(kept.values()))
    cut = Compression(rank=rank, relative_error=error)
    provenance = adapter.provenance.model_copy(update={"compressions": (*adapter.provenance.compressions, cut)})
    return Combined(
        adapter=replace(adapter, pairs=pairs, rank=rank, alpha=float(rank), provenance=provenance),
        relative_error=error,
        error_of={name: _relative(lost[name], kept[name]) for name in pairs},
    )


def _stacked(name: str, adapters: Sequence[Released], weights: Sequence[float]) -> Pair:
    parts = [
        Pair(pair.lora_A, (pair.lora_B.double() * (weight * adapter.lora_scaling)).float())
        for adapter, weight in zip(adapters, weights, strict=True)
        if (pair := adapter.pairs.get(name)) is not None
    ]
    if len({(part.lora_A.shape[:-2], part.lora_A.shape[-1], part.lora_B.shape[:-1]) for part in parts}) > 1:
        raise CombinationRefused(f"{name.format('*')} has another shape in one adapter than in another")
    if not all(bool(part.lora_B.isfinite().all()) for part in parts):
        raise CombinationRefused(f"{name.format('*')} is too large in one adapter: with its scale it is not finite")
    return Pair(torch.cat([part.lora_A for part in parts], dim=-2), torch.cat([part.lora_B for part in parts], dim=-1))


def _widened(pair: Pair, rank: int) -> Pair:
    """The same product, with zeros for the components that are missing to `rank`: PEFT has one rank for all."""
    missing = rank - pair.lora_A.shape[-2]
    pad = torch.nn.functional.pad
    return Pair(pad(pair.lora_A, (0, 0, 0, missing)), pad(pair.lora_B, (0, missing)))


def _svd(pair: Pair, scaling: float) -> tuple[Tensor, Tensor, Tensor]:
    """U [.., O, K], singular values [.., K] and V^T [.., K, I] of the scaled product, K the least of R, I and O."""
    q_B, r_B = torch.linalg.qr(pair.lora_B.double())
    q_A, r_A = torch.linalg.qr(pair.lora_A.double().mT)
    left, values, right = torch.linalg.svd(r_B @ r_A.mT, full_matrices=False)
    return q_B @ left, values * scaling, right @ q_A.mT


def _relative(lost: float, kept: float) -> float:
    return math.sqrt(lost / (lost + kept)) if lost else 0.0


def _mean_head(adapters: Sequence[Released], weights: Sequence[float]) -> dict[str, Tensor] | None:
    heads = [adapter.head for adapter in adapters if adapter.head is not None]
    if len(heads) < len(adapters):
        return None
    first = heads[0]
    public = first.keys() - {"weight"}
    if any(
        head.keys() != first.keys() or not all(torch.equal(head[name], first[name]) for name in public)
        for head in heads
    ):
        raise CombinationRefused("the adapters' heads do not read the same pooled states")
    shapes = {head["weight"].shape for head in heads}
    if len(shapes) > 1 or len({adapter.meaning for adapter in adapters}) > 1:
        raise CombinationRefused("the adapters' heads do not learn the same: classes, labels or scales differ")
    total = sum(weights)
    mean = sum(weight / total * head["weight"].double() for head, weight in zip(heads, weights, strict=True))
    assert isinstance(mean, Tensor)
    return {**first, "weight": mean.float()}


def card_text(adapter: Released, made: str, measured: str, *, is_joined: bool) -> str:
    """Writes the card of an adapter that was made of released ones.

    Args:
        made: what it is and how it was made.
        measured: what is known of its quality.
        is_joined: True if the backbone has structure tables, an eye or an ear.
    """
    facts = adapter.provenance
    rows = "\n".join(
        f"| {source.study} `{source.study_hash[:12]}` | {source.weight:.4g} | {', '.join(source.sites)} "
        f"| {source.rounds} | {source.privacy} | {one_line(source.audit)} |"
        for source in facts.sources
    )
    attention = attention_text(_segments(adapter), "model.get_base_model()" if adapter.pairs else "model")
    return f"""---
library_name: peft
tags: [lora, federated-learning, differential-privacy]
---
# {" + ".join(source.study for source in facts.sources)}

{made}

| study | weight | sites | rounds | privacy | audit |
|---|---|---|---|---|---|
{rows}

Backbone: `{facts.backbone_hash}`. {measured}
{_loading(is_joined) if adapter.pairs else HEAD_ALONE}{attention}{head_text(adapter.head, adapter.meaning)}
{facts.earlier_studies()}## Privacy
{composition((*facts.backbone_sources, *facts.sources))}

## Limits
Epsilon bounds what is told about any single one of the named units of one site; who is known to several sites is
protected at each of them separately. Nothing here says how fair the adapter is, or how it does on any records.
"""


_WITH_CARE = """Use the backbone with the hash above and no other. If it has one matrix as embedding and as output
matrix and this adapter changes either, do not let PEFT merge it.
"""
_PLAIN = """```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(backbone_directory), adapter_directory)
```
"""


def _loading(is_joined: bool) -> str:
    return f"""
## Load
{JOINED if is_joined else _PLAIN}{_WITH_CARE}"""


def _segments(adapter: Released) -> Segments | None:
    """Sizes of the attention that all of it was trained with."""
    sizes = adapter.provenance.sources[0].segments
    return None if sizes is None else Segments(*sizes)


def _sum_text(adapter: Released) -> str:
    count = len(adapter.provenance.sources)
    if not adapter.pairs:
        return f"The weighted mean of {count} heads for one backbone."
    return (
        f"A LoRA adapter of rank {adapter.rank} for one backbone: the weighted sum of what\n"
        f"{count} adapters add to each weight. {_exactness(adapter.provenance)}"
    )


def _exactness(facts: Provenance) -> str:
    if not facts.compressions:
        return "Exact but for rounding."
    cuts = ", then ".join(f"rank {cut.rank} (relative error {cut.relative_error:.3g})" for cut in facts.compressions)
    return f"Cut by singular values to {cuts}; errors in Frobenius norm, of what stood before that cut."
