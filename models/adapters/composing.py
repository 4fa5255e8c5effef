"""Finished adapters of several studies composed anew for each request, without training and in one pass for all.

The factors of all adapters stand side by side along the rank (`combining.stack`), and for each row of a batch a gate of
each adapter multiplies what its factors add: W x + sum_k g_k s_k B_k A_k x. So a batch of unlike requests is one pass,
and gates of zero give the backbone back. Post-processing of what was released: it costs no privacy. But it may bring
together what several studies released of one and the same person; `Composition.spent` says what that adds up to.

Who answers is chosen by one of these rules, none of which was trained:

    prototypes  cosine of the request's signature with each study's prototype, a charged release (after LoraRetriever,
                Zhao et al. 2024, arXiv:2402.09997); the backbone alone where none is near
    arrow       in every adapted module, how far each adapter's strongest direction reacts to the state that enters it
                (Ostapenko et al. 2024, arXiv:2405.11157)
    fixed       the same weights for all requests: a uniform mean, or any other

Legend: `R` rows (requests), `T` tokens, `K` adapters, `S` length of a signature, `I` inputs of a module.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...kernels.formats import Int8Row
from ...kernels.linear import multiply_in_integers, quantise_linear
from ...kernels.segments import Segments
from ..backbones import loading
from ..errors import CombinationRefused
from ..heads import PooledHead, pooled
from ..heads.signature import signatures
from .attaching import attached, places
from .combining import stack
from .factors import Pair
from .lora import AdaptedModel, LoRAEmbedding
from .peft_import import Released, read
from .provenance import Source as Source
from .provenance import Spent as Spent
from .provenance import added_up as added_up

TEMPERATURE = 0.05  # of cosines: an adapter that is nearer by this counts e times as much
FLOOR = 0.25  # cosine at which the backbone alone counts as much as an adapter
Frozen = Literal["float32", "int8"]  # how the weights of a backbone that answers are held


@dataclass(frozen=True, slots=True)
class Composition:
    """A backbone with the adapters of several studies in place; as it stands, all gates are closed.

    Attributes:
        adapters: in the order of all weights and gates.
        adapted: the backbone with all factors side by side; run it inside `answering`.
        lens: a head on all states of which the backbone has public moments, for signatures; None if it has none.
        head: reads a record for `classify`; None if the adapters have no heads.
    """

    adapters: tuple[Released, ...]
    backbone: loading.RecordBackbone | loading.TextBackbone
    adapted: AdaptedModel
    lens: PooledHead | None
    head: PooledHead | None
    weights_K: Tensor | None  # [K, outputs, numbers that the head reads + 1]
    directions: dict[nn.Module, Tensor]  # [K, I] of each module, of length 1 or 0, for the rule arrow
    owners: dict[nn.Module, Tensor]  # [rank], whose component each is; one tensor where it is the same

    @property
    def spent(self) -> list[Spent]:
        """The guarantee for one person in all of these studies, those in the backbone included, by unit."""
        facts = [adapter.provenance for adapter in self.adapters]
        return added_up([*facts[0].backbone_sources, *(source for each in facts for source in each.sources)])

    @torch.no_grad()
    def by_prototypes(self, ids_RT: Tensor, *, temperature: float = TEMPERATURE, floor: float = FLOOR) -> Tensor:
        """[R, K] weights of requests by what their signatures are near to; what is missing to 1 is the backbone's.

        A study whose prototype is lost in its noise is never chosen.

        Args:
            ids_RT: tokens of the requests, padded on the right with 0.
            temperature: by which cosines are divided before the softmax.
            floor: cosine of the backbone alone.

        Raises:
            CombinationRefused: the backbone has no public moments, an adapter has no prototype, their lengths differ,
                or the floor is not finite.
        """
        if not math.isfinite(floor):
            raise CombinationRefused(f"the floor is a finite likeness, about between 0 and 1, not {floor}")
        prototypes = [adapter.prototype for adapter in self.adapters]
        present = [prototype for prototype in prototypes if prototype is not None]
        if self.lens is None or len(present) < len(prototypes) or len({each.length for each in present}) > 1:
            raise CombinationRefused(
                "adapters are chosen by prototypes of one length on a backbone with public moments; some have none, or "
                "lengths differ: choose another rule, or run studies with a table [prototype]"
            )
        with self.answering(torch.zeros(len(ids_RT), len(self.adapters))):  # by the backbone alone
            found_RS = signatures(self.adapted.model, self.lens, ids_RT, present[0].length)
        cosines = [found_RS.new_full((len(ids_RT),), floor)]
        for prototype in present:
            direction = prototype.direction
            lost = found_RS.new_full((len(ids_RT),), -torch.inf)
            cosines.append(lost if direction is None else found_RS @ direction)
        return torch.stack(cosines, dim=1).div(temperature).softmax(1)[:, 1:]

    def fixed(self, rows: int, weights: Sequence[float] | None = None) -> Tensor:
        """[R, K], the same weights for all requests, which are the adapters' as they stand; None: their mean.

        Raises:
            CombinationRefused: there is not one finite weight for each adapter.
        """
        count = len(self.adapters)
        given = torch.tensor([1 / count] * count if weights is None else list(weights), dtype=torch.float32)
        if len(given) != count or not bool(given.isfinite().all()):
            raise CombinationRefused(f"{count} adapters need as many finite weights, got {len(given)}")
        return given.expand(rows, count)

    @contextmanager
    def answering(self, weights_RK: Tensor | None) -> Iterator[AdaptedModel]:
        """The model with the gates of a batch set; every pass inside must be of those rows, in that order.

        Args:
            weights_RK: of each request and adapter; None: by the rule arrow, which asks for no signature.

        Raises:
            CombinationRefused: from a pass of more or fewer rows.
        """
        rule = self._by_arrow if weights_RK is None else self._by_row(weights_RK)
        gates = self.adapted.gates
        before = gates.rule, gates.rows, gates.are_closed
        gates.rule, gates.rows = rule, None if weights_RK is None else len(weights_RK)
        gates.are_closed = weights_RK is not None and not weights_RK.any()
        handle = self.adapted.model.model.register_forward_pre_hook(self._refuse_other_rows, with_kwargs=True)
        try:
            with torch.no_grad():
                yield self.adapted
        finally:
            handle.remove()
            gates.rule, gates.rows, gates.are_closed = before

    def classify(self, ids_RT: Tensor, weights_RK: Tensor | None) -> Tensor:
        """[R, outputs], what the adapters' heads give, each weighted as its adapter; by arrow, their mean.

        Raises:
            CombinationRefused: the adapters have no heads.
        """
        if self.head is None or self.weights_K is None:
            raise CombinationRefused(
                "the adapters have no heads that all learn the same, so there is nothing to answer"
            )
        counts_RK = self.fixed(len(ids_RT)) if weights_RK is None else weights_RK
        with self.answering(weights_RK) as adapted:
            inputs_RN = self.head.inputs(pooled(adapted.model, ids_RT, self.head.reads))
            return torch.einsum("rk,kon,rn->ro", counts_RK.to(inputs_RN), self.weights_K.to(inputs_RN), inputs_RN)

    def _refuse_other_rows(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given, due = next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), self.adapted.gates.rows
        if due is not None and len(given) != due:
            raise CombinationRefused(f"a pass of {len(given)} rows, where weights of {due} are set")

    def _by_row(self, weights_RK: Tensor) -> Callable[[nn.Module, Tensor], Tensor]:
        found: dict[tuple[int, int], Tensor] = {}  # few owners and lengths, beside hundreds of modules

        def gates(module: nn.Module, x: Tensor) -> Tensor:
            owner = self.owners[module]
            tokens = x.numel() if isinstance(module, LoRAEmbedding) else x.numel() // x.shape[-1]
            key = id(owner), tokens
            if key not in found:
                found[key] = weights_RK[:, owner].repeat_interleave(tokens // len(weights_RK), dim=0)
            return found[key]

        return gates

    def _by_arrow(self, module: nn.Module, x: Tensor) -> Tensor:
        owner, count = self.owners[module], len(self.adapters)
        if isinstance(module, LoRAEmbedding):  # an id is no state that a direction could react to
            return torch.full((x.numel(), len(owner)), 1 / count)
        present = self.directions[module].any(dim=1)
        if not present.any():
            return torch.zeros(x.numel() // x.shape[-1], len(owner))
        reacts = (x.reshape(-1, x.shape[-1]) @ self.directions[module].to(x).T).abs()
        return reacts.masked_fill(~present, -torch.inf).softmax(1)[:, owner]


def compose(
    backbone: Path, directories: Sequence[Path], *, with_heads: bool = True, frozen: Frozen = "float32"
) -> Composition:
    """Loads a backbone and puts the adapters of several exports on it, to be chosen from for each request.

    Args:
        with_heads: False to leave out the adapters' heads, which then need not learn the same.
        frozen: "int8" to hold the backbone's linear layers and experts in a byte a number and to multiply bytes, see
            `kernels.formats.Int8Both`; the adapters, embeddings, norms and routers stay in float32.

    Raises:
        InvalidRelease: a directory is not what an export wrote.
        InvalidBackbone, BackboneMismatch: the backbone is broken, or not the one that the adapters are for.
        CombinationRefused: the adapters do not fit together, or adapt modules that the backbone does not have.
    """
    if not directories:
        raise CombinationRefused("one adapter or more is needed")
    adapters = tuple(read(path) for path in directories)
    whole = stack([replace(adapter, head=None) for adapter in adapters], [1.0] * len(adapters))
    facts = adapters[0].provenance
    sizes = facts.sources[0].segments
    load = loading.load if loading.reads_records(backbone) else loading.load_text
    loaded: loading.RecordBackbone | loading.TextBackbone = load(
        backbone, expected_hash=facts.backbone_hash, segments=None if sizes is None else Segments(*sizes),
        experts=frozen, frozen=frozen,
    )  # fmt: skip
    if frozen == "int8":
        if isinstance(loaded, loading.TextBackbone):
            quantise_linear(loaded.model, ["lm_head"], Int8Row.quantised)
        multiply_in_integers(loaded.model)
    head, weights_K = _heads(adapters, loaded) if with_heads else (None, None)
    by_module = places(whole)
    # Heads alone adapt nothing, and a model with neither would not be one to attach to.
    adapted = attached(loaded.model, whole, None if by_module else head or loaded.head())
    alike: dict[tuple[int, ...], Tensor] = {}
    owners: dict[nn.Module, Tensor] = {}
    for name, keys in by_module.items():
        owner = _owner(keys, adapters, whole.rank)
        owners[adapted.adapters[name]] = alike.setdefault(owner, torch.tensor(owner))
    directions: dict[nn.Module, Tensor] = {
        adapted.adapters[name]: _directions(keys[0], adapters)
        for name, keys in by_module.items()
        if not isinstance(adapted.adapters[name], LoRAEmbedding)
    }
    has_moments = isinstance(loaded, loading.RecordBackbone) or loaded.moments is not None
    composition = Composition(
        adapters, loaded, adapted, loaded.head() if has_moments else None, head, weights_K, directions, owners
    )
    adapted.gates.are_closed = True
    return composition


def _heads(
    adapters: Sequence[Released], backbone: loading.RecordBackbone | loading.TextBackbone
) -> tuple[PooledHead | None, Tensor | None]:
    heads = [adapter.head for adapter in adapters]
    first = heads[0]
    if first is None or any(head is None for head in heads):
        return None, None
    moments = first.keys() - {"weight"}
    is_one = all(
        head is not None
        and head.keys() == first.keys()
        and head["weight"].shape == first["weight"].shape
        and all(torch.equal(head[name], first[name]) for name in moments)
        for head in heads
    )
    if not is_one or len({adapter.meaning for adapter in adapters}) > 1:
        raise CombinationRefused("the adapters' heads do not learn the same, or do not read the same pooled states")
    reads = tuple(int(number) for number in first["reads"]) if "reads" in first else None
    head = backbone.head(None, reads)
    if not torch.equal(head.center, first["center"]) or not torch.equal(head.whiten, first["whiten"]):
        raise CombinationRefused("the adapters' heads do not read the pooled states of this backbone")
    rows = [each["weight"].reshape(-1, each["weight"].shape[-1]) for each in heads if each is not None]
    return head, torch.stack(rows)


def _owner(keys: Sequence[str], adapters: Sequence[Released], rank: int) -> tuple[int, ...]:
    """[rank], whose component each is; those that `stack` has filled up with zeros are anybody's."""
    of_key = [[k for k, each in enumerate(adapters) if key in each.pairs for _ in range(each.rank)] for key in keys]
    if any(owner != of_key[0] for owner in of_key):
        raise CombinationRefused(f"{keys[0].format('*')}: an adapter adapts one projection of a bank alone")
    return (*of_key[0], *[0] * (rank - len(of_key[0])))


def _directions(key: str, adapters: Sequence[Released]) -> Tensor:
    """[K, I], the first right singular vector of each adapter's product; of a bank, of all experts' one upon another.

    Zeros where an adapter leaves the module alone, or its product is zero.
    """
    found = []
    for adapter in adapters:
        pair = adapter.pairs.get(key)
        found.append(None if pair is None else _strongest(pair))
    width = next(pair.lora_A.shape[-1] for adapter in adapters if (pair := adapter.pairs.get(key)) is not None)
    return torch.stack([torch.zeros(width) if each is None else each for each in found])


def _strongest(pair: Pair) -> Tensor | None:
    """[I]; of the Gram matrix of all rows of B A, which is as small as the rank."""
    lora_A, lora_B = pair.lora_A.double(), pair.lora_B.double()
    ranked = torch.linalg.qr(lora_B).R @ lora_A  # the same singular values and right vectors as B A
    _, values, right = torch.linalg.svd(ranked.reshape(-1, ranked.shape[-1]), full_matrices=False)
    return right[0].float() if values[0] > 0 else None
