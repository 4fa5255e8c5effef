"""Cuts a backbone to fewer layers, channels, neurons and experts: structured pruning.

What is left is a plain checkpoint of the same family, with no masks and no zeros. Rows and columns are taken out of
matrices, so the products of an adapter can be cut by the same choice: (W + B A) cut is W cut + (B cut) (A cut).

What counts least is left out, as measured on public tokens (`measured`): layers that change their input least, channels
by the energy that they bring into matrices, neurons by the norms of their rows and columns, experts by routing weight.
Muralidharan et al. 2024, arXiv:2407.14679, has these four axes, and found distillation to mend what is lost.

Channels that are left out are missing in every RMS norm, whose weight therefore is multiplied by what the rest of the
channels has of the root mean square. If those left out are always zero, the cut model computes the same.

Legend: `T` tokens, `D` channels (model width), `F` neurons of an MLP or expert, `E` experts of a layer.
"""

import copy
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones.family import Backbone
from ..errors import InvalidCompression
from ..evaluation.router_statistics import router_of, router_statistics
from ..structure.readers import TARGET

FAMILIES = ("deepseek_v3", "deepseek_v2", "llama", "qwen2", "qwen3", "qwen3_moe", "mixtral")
_DENSE = "intermediate_size"  # setting of the width of dense MLPs
_MULTIPLE = 8  # of channels and neurons: other widths are slow
_READ_CHANNELS = ("q_proj", "q_a_proj", "kv_a_proj_with_mqa", "k_proj", "v_proj", "gate_proj", "up_proj", "gate")
_ATTENTION_NORM, _MLP_NORM, _LAST_NORM = "input_layernorm", "post_attention_layernorm", "model.norm"
_LAYER = re.compile(r"model\.layers\.([0-9]+)\.(.+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Sizes of a backbone along the axes that can be cut."""

    layers: int
    hidden: int  # channels
    neurons: int | None  # of each dense MLP; None in a family without
    expert_neurons: int | None  # of each routed expert; None in a family without
    experts: int | None  # routed, of each layer that has any
    top_k: int | None  # of them, those that a token is sent to

    @classmethod
    def of(cls, family: Backbone, config: Any) -> "Sizes":
        """Reads the sizes of a model of this configuration."""
        names = _Names.of(family)
        experts, top_k = (
            (None, None) if names.experts is None else (int(getattr(config, n)) for n in (names.experts, names.top_k))
        )
        return cls(
            layers=int(config.num_hidden_layers),
            hidden=int(config.hidden_size),
            neurons=None if names.expert_neurons == _DENSE else int(getattr(config, _DENSE)),
            expert_neurons=None if experts is None else int(getattr(config, names.expert_neurons)),
            experts=experts,
            top_k=top_k,
        )


@dataclass(frozen=True, slots=True)
class _Names:
    """Names of a family's settings of experts."""

    experts: str | None
    top_k: str
    expert_neurons: str

    @classmethod
    def of(cls, family: Backbone) -> "_Names":
        if family.model_type not in FAMILIES:
            raise InvalidCompression(
                f"a {family.name} has layers that nothing here can cut; there are {', '.join(FAMILIES)}"
            )
        if family.experts is None:
            return cls(None, "", "")
        # Of several names the first is transformers' own.
        width = _DENSE if family.model_type == "mixtral" else "moe_intermediate_size"  # Mixtral has no dense MLP
        return cls(family.experts.count[0], family.experts.top_k[0], width)


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """The parts of a backbone that stay, each by its number in it, ascending."""

    layers: tuple[int, ...]
    channels: Tensor  # [D']
    neurons: Mapping[str, Tensor]  # [F'] by the name of a dense or shared MLP; [E', F'] by that of a bank of experts
    experts: Mapping[int, Tensor]  # [E'] by layer of the whole model


@dataclass(frozen=True, kw_only=True, slots=True)
class Importance:
    """Measures of what each part of a backbone does on public tokens."""

    layers: Tensor  # [layers], 1 - cosine of what enters and what leaves
    channels: Tensor  # [D], share of the energy that enters matrices
    neurons: Mapping[str, Tensor]  # as in `Kept`, of all experts of a bank
    experts: Mapping[int, Tensor]  # [E], share of the routing weight
    rms: Mapping[str, Tensor]  # [D] by name of a norm: mean of each channel's square over the mean square of all


def planned(
    family: Backbone,
    config: Any,
    times: float,
    given: Mapping[str, int] | None = None,
    layers: tuple[int, ...] | None = None,
    beside: int = 0,
) -> Sizes:
    """Finds the largest sizes that have `times` fewer parameters than a model of this configuration.

    No layer is left out for it. Channels, neurons and experts shrink together: the channels' and experts' factors are
    the root of the neurons', because width costs matrices on both sides.

    Args:
        given: sizes that are not to be found, by their names in `Sizes`.
        layers: that are kept; None: all.
        beside: numbers of each channel that the configuration says nothing of, as structure tables have them.

    Raises:
        InvalidCompression: no sizes are that small, or the given ones fit no model.
    """
    if not 1 < times < math.inf:
        raise InvalidCompression(f"times is {times:g}; it must be a finite number above 1")
    whole, given = Sizes.of(family, config), dict(given or {})
    layers = tuple(range(whole.layers)) if layers is None else layers
    given["layers"] = len(layers)
    most = (parameters(family, config) + beside * whole.hidden) / times

    def fits(sizes: Sizes) -> bool:
        return parameters(family, resized(family, config, sizes, layers)) + beside * sizes.hidden <= most

    least, largest = 0.0, 1.0
    best = _scaled(whole, least, given, config)
    if not fits(best):
        raise InvalidCompression(
            f"{times:g} times fewer parameters than {most * times:,.0f} are too few for its words, channels, neurons "
            "and experts: leave out layers, or ask for less"
        )
    for _ in range(24):
        middle = (least + largest) / 2
        if fits(sizes := _scaled(whole, middle, given, config)):
            least, best = middle, sizes
        else:
            largest = middle
    return best


def _scaled(whole: Sizes, share: float, given: Mapping[str, int], config: Any) -> Sizes:
    def cut(size: int, by: float, multiple: int = _MULTIPLE) -> int:
        return max(multiple, round(size * by / multiple) * multiple)

    found: dict[str, Any] = {
        "layers": whole.layers,
        "hidden": min(whole.hidden, cut(whole.hidden, share**0.5, math.lcm(_MULTIPLE, _of_heads(config)))),
        "neurons": None if whole.neurons is None else min(whole.neurons, cut(whole.neurons, share)),
        "expert_neurons": None,
        "experts": None,
        "top_k": None,
    }
    if whole.experts is not None and whole.top_k is not None and whole.expert_neurons is not None:
        groups, within = _groups(config)
        top_k = given.get("top_k", whole.top_k)
        of_group = max(2, math.ceil(top_k / within), math.ceil(2 * top_k / groups))  # so that there is a choice
        found["expert_neurons"] = min(whole.expert_neurons, cut(whole.expert_neurons, share**0.5))
        found["experts"] = min(whole.experts, groups * max(of_group, round(whole.experts * share**0.5 / groups)))
        found["top_k"] = whole.top_k
    return Sizes(**(found | dict(given)))


def resized(family: Backbone, config: Any, sizes: Sizes, layers: tuple[int, ...]) -> Any:
    """Returns the configuration of a model that is cut to these sizes.

    Args:
        layers: that are kept.

    Raises:
        InvalidCompression: there is no such model.
    """
    whole, names = Sizes.of(family, config), _Names.of(family)
    _check(whole, sizes, config)
    cut = copy.deepcopy(config)
    cut.num_hidden_layers, cut.hidden_size = sizes.layers, sizes.hidden
    if sizes.neurons is not None:
        setattr(cut, _DENSE, sizes.neurons)
    if not hasattr(config, "kv_lora_rank"):
        # Else it would follow the width.
        cut.head_dim = getattr(config, "head_dim", None) or whole.hidden // config.num_attention_heads
    if names.experts is not None:
        setattr(cut, names.experts, sizes.experts)
        setattr(cut, names.top_k, sizes.top_k)
        setattr(cut, names.expert_neurons, sizes.expert_neurons)
    dense = _dense_layers(config)
    if getattr(config, "first_k_dense_replace", None) is not None:
        cut.first_k_dense_replace = sum(layer in dense for layer in layers)
    elif getattr(config, "mlp_only_layers", None) is not None:
        cut.mlp_only_layers, cut.decoder_sparse_step = [i for i, layer in enumerate(layers) if layer in dense], 1
    if getattr(config, "layer_types", None):
        cut.layer_types = [config.layer_types[layer] for layer in layers]
    if getattr(config, "max_window_layers", None) is not None:
        cut.max_window_layers = sum(layer < config.max_window_layers for layer in layers)
    if names.experts is not None and len(dense) < whole.layers and dense >= set(layers):
        raise InvalidCompression("no layer with routed experts would be left")
    return cut


def _dense_layers(config: Any) -> set[int]:
    """Lists the layers without routed experts, in a family that has such beside others."""
    every = range(config.num_hidden_layers)
    if (first := getattr(config, "first_k_dense_replace", None)) is not None:
        return set(range(first))
    if (only := getattr(config, "mlp_only_layers", None)) is not None:
        return {layer for layer in every if layer in only or (layer + 1) % config.decoder_sparse_step}
    return set()


def _check(whole: Sizes, sizes: Sizes, config: Any) -> None:
    for name in Sizes.__dataclass_fields__:
        most, size = getattr(whole, name), getattr(sizes, name)
        if (most is None) != (size is None) or (size is not None and not 1 <= size <= most):
            there = "none in this family" if most is None else f"1 to {most}"
            raise InvalidCompression(f"{name} is {size}; it can be {there}")
    if sizes.hidden % _of_heads(config):
        raise InvalidCompression(f"hidden is {sizes.hidden}; it must be a multiple of the {_of_heads(config)} heads")
    if sizes.experts is None or sizes.top_k is None:
        return
    if sizes.top_k >= sizes.experts:
        raise InvalidCompression(
            f"with {sizes.top_k} of {sizes.experts} experts for a token there is nothing to route: keep more experts, "
            "or send a token to fewer"
        )
    groups, within = _groups(config)
    if groups > 1 and sizes.experts < 2 * groups:  # DeepSeek-V3 judges a group by its two best
        raise InvalidCompression(f"{sizes.experts} experts in {groups} groups: keep two of each group, or more")
    if sizes.experts % groups or sizes.experts // groups * within < sizes.top_k:
        raise InvalidCompression(
            f"{sizes.experts} experts are no {groups} groups, {within} of which hold {sizes.top_k} experts for a token"
        )


def _of_heads(config: Any) -> int:
    """Reads what the width must be a multiple of: transformers' own rule for some families."""
    return int(config.num_attention_heads) if config.model_type in ("llama", "deepseek_v2") else 1


def _groups(config: Any) -> tuple[int, int]:
    """Reads in how many groups a layer's experts are, and how many of them a token is sent to."""
    return int(getattr(config, "n_group", None) or 1), int(getattr(config, "topk_group", None) or 1)


def parameters(family: Backbone, config: Any) -> int:
    """Counts the weights of a model of this configuration; what is tied counts once, and buffers do not."""
    with torch.device("meta"):
        model = family.model_class()._from_config(config)
    model.tie_weights()
    return sum(weight.numel() for weight in model.parameters())


@torch.no_grad()
def measured(model: Any, batches: Iterable[tuple[Tensor, Tensor]]) -> Importance:
    """Measures what each part of a model does on public tokens.

    Args:
        batches: token ids int64 [rows, length], padded on the right, and bool of the same shape, true where there is a
            token.

    Raises:
        InvalidCompression: there is no token.
    """
    kept = [batch for batch in batches if bool(batch[1].any())]
    if not kept:
        raise InvalidCompression("no public token is there to measure what counts")
    width, layers = int(model.config.hidden_size), model.model.layers
    squares = {name: torch.zeros(width, dtype=torch.float64) for name in _norms(model)}
    shares = {name: torch.zeros(width, dtype=torch.float64) for name in squares}
    moves = torch.zeros(len(layers), dtype=torch.float64)
    tokens, told = 0, torch.zeros(1, 1, dtype=torch.bool)

    def of_norm(name: str, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        given_TD, normed_TD = args[0][told].double(), output[told].double()
        squares[name] += normed_TD.square().sum(0)
        energy_TD = given_TD.square()
        shares[name] += (energy_TD / energy_TD.mean(1, keepdim=True).clamp_min(1e-30)).sum(0)

    def of_layer(place: int, _: nn.Module, args: tuple[Tensor, ...], output: Any) -> None:
        left = output[0] if isinstance(output, tuple) else output
        alike = nn.functional.cosine_similarity(args[0][told].double(), left[told].double(), dim=1)
        moves[place] += (1 - alike).sum()

    hooks = [model.get_submodule(name).register_forward_hook(partial(of_norm, name)) for name in squares]
    hooks += [layer.register_forward_hook(partial(of_layer, place)) for place, layer in enumerate(layers)]
    try:
        for ids_RT, told in kept:
            tokens += int(told.sum())
            model.model(input_ids=ids_RT, attention_mask=told.long(), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    routed = any(router_of(layer) is not None for layer in layers)
    return Importance(
        layers=moves / tokens,
        channels=_of_channels(model, squares),
        neurons=_of_neurons(model),
        experts={each.layer: torch.tensor(each.weights) for each in router_statistics(model, kept)} if routed else {},
        rms={name: share / tokens for name, share in shares.items()},
    )


def _norms(model: Any) -> list[str]:
    """Lists the norms that all of a model's channels enter."""
    ends = (_ATTENTION_NORM, _MLP_NORM)
    return [name for name, _ in model.named_modules() if name == _LAST_NORM or name.rpartition(".")[2] in ends]


def _of_channels(model: Any, squares: Mapping[str, Tensor]) -> Tensor:
    """Adds up, over all matrices that read channels, each channel's share of the energy that enters the matrix."""
    total = torch.zeros_like(squares[_LAST_NORM])
    for name, module in model.named_modules():
        found = _LAYER.fullmatch(name)
        weight = getattr(module, "gate_up_proj", None) if found else None
        if weight is None and (name == "lm_head" or (found and name.rpartition(".")[2] in _READ_CHANNELS)):
            weight = module.weight
        if weight is None:
            continue
        if found is None:
            norm = _LAST_NORM
        else:
            norm = f"model.layers.{found[1]}.{_ATTENTION_NORM if 'self_attn' in found[2] else _MLP_NORM}"
        energy_D = squares[norm] * weight.double().flatten(0, -2).square().sum(0)
        total += energy_D / energy_D.sum().clamp_min(1e-30)
    return total


def _of_neurons(model: Any) -> dict[str, Tensor]:
    """Multiplies the norms of each neuron's rows and column, by MLP and by bank of experts."""
    found: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(getattr(module, "gate_up_proj", None), nn.Parameter):
            gate, up = module.gate_up_proj.double().chunk(2, dim=1)
            found[name] = gate.norm(dim=2) * up.norm(dim=2) * module.down_proj.double().norm(dim=1)
        elif all(hasattr(module, part) for part in ("gate_proj", "up_proj", "down_proj")):
            gate, up, down = (getattr(module, part).weight.double() for part in ("gate_proj", "up_proj", "down_proj"))
            found[name] = gate.norm(dim=1) * up.norm(dim=1) * down.norm(dim=0)
    return found


def chosen_layers(importance: Importance, count: int) -> tuple[int, ...]:
    """Chooses the layers that count most, one with routed experts among them if there is any.

    Raises:
        InvalidCompression: there are not as many.
    """
    if not 1 <= count <= len(importance.layers):
        raise InvalidCompression(f"layers is {count}; it can be 1 to {len(importance.layers)}")
    layers, routed = _most(importance.layers, count).tolist(), importance.experts.keys()
    if routed and not routed & set(layers):
        best = max(routed, key=lambda layer: float(importance.layers[layer]))
        worst = min(layers, key=lambda layer: float(importance.layers[layer]))
        layers = sorted({*layers, best} - {worst})
    return tuple(layers)


def chosen(importance: Importance, config: Any, sizes: Sizes) -> Kept:
    """Chooses the parts that count most, as many as the sizes have.

    Args:
        config: of the whole model.
    """
    experts: dict[int, Tensor] = {}
    if sizes.experts is not None:
        groups, _ = _groups(config)
        experts = {layer: _most_of_groups(share, sizes.experts, groups) for layer, share in importance.experts.items()}
    neurons: dict[str, Tensor] = {}
    for name, score in importance.neurons.items():
        if score.ndim == 2:
            layer = layer_of(name)
            assert sizes.expert_neurons is not None
            own = score[experts[layer]]
            neurons[name] = torch.stack([_most(each, sizes.expert_neurons) for each in own])
        elif name.endswith(".shared_experts"):
            assert sizes.expert_neurons is not None
            neurons[name] = _most(score, (config.n_shared_experts or 0) * sizes.expert_neurons)
        else:
            assert sizes.neurons is not None
            neurons[name] = _most(score, sizes.neurons)
    return Kept(
        layers=chosen_layers(importance, sizes.layers),
        channels=_most(importance.channels, sizes.hidden),
        neurons=neurons,
        experts=experts,
    )


def _most(score: Tensor, count: int) -> Tensor:
    """The places of the `count` largest, ascending; of equals the first."""
    return score.sort(descending=True, stable=True).indices[:count].sort().values


def _most_of_groups(score_E: Tensor, count: int, groups: int) -> Tensor:
    """The places of the most used experts, as many of each group: a router first chooses among groups."""
    parts = score_E.view(groups, -1)
    size = parts.shape[1]
    return torch.cat([_most(part, count // groups) + group * size for group, part in enumerate(parts)])


@torch.no_grad()
def cut(family: Backbone, model: Any, kept: Kept, sizes: Sizes, rms: Mapping[str, Tensor]) -> Any:
    """Makes a new model of the kept parts of a model's weights; it can be trained.

    Args:
        rms: see `Importance`.

    Raises:
        InvalidCompression: the model has parts that nothing here can cut.
    """
    config = resized(family, model.config, sizes, kept.layers)
    smaller = family.model_class()._from_config(config)
    smaller.tie_weights()
    weights: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        place = renamed(name, kept)
        if place is None or f".{TARGET}." in name:
            continue
        part = taken(tensor, name, kept)
        norm = name.removesuffix(".weight")
        if norm in rms:
            part = part * rms[norm][kept.channels].mean().sqrt().to(part.dtype)
        weights[place] = part.float().contiguous()
    try:
        smaller.load_state_dict(weights)
    except RuntimeError as err:
        first = str(err).splitlines()[-1].strip()
        raise InvalidCompression(f"a {family.name} of this shape cannot be cut: {first[:200]}") from None
    return smaller.float()


def renamed(name: str, kept: Kept) -> str | None:
    """Returns the name that a weight or module has in the cut model; None if its layer is left out."""
    found = _LAYER.fullmatch(name)
    if found is None:
        return name
    layer = int(found[1])
    return f"model.layers.{kept.layers.index(layer)}.{found[2]}" if layer in kept.layers else None


def taken(weight: Tensor, name: str, kept: Kept) -> Tensor:
    """Takes the kept parts out of a weight by the name that it has in the model."""
    bank, _, leaf = name.rpartition(".")
    if leaf == "gate_up_proj":
        return rows_of_bank(weight, bank, kept)[..., kept.channels]
    if leaf == "down_proj":  # of a linear layer the name ends in `weight`
        return columns_of_bank(weight, bank, kept)[:, kept.channels]
    for axis, places in enumerate(axes(bank, kept)[: weight.ndim]):
        if places is not None:
            weight = weight.index_select(axis, places)
    return weight


def axes(module: str, kept: Kept) -> tuple[Tensor | None, Tensor | None]:
    """Finds which rows and which columns of a module's weight stay, [out, in]; None for all."""
    parent, _, leaf = module.rpartition(".")
    if leaf in ("gate_proj", "up_proj"):
        return kept.neurons[parent], kept.channels
    if leaf == "down_proj":
        return kept.channels, kept.neurons[parent]
    if leaf == "gate":
        return kept.experts[layer_of(module)], kept.channels
    if leaf in ("embed_tokens", "lm_head") or leaf in _READ_CHANNELS:
        return None, kept.channels
    if leaf in (_ATTENTION_NORM, _MLP_NORM, "norm", "o_proj", TARGET):
        return kept.channels, None
    return None, None


def rows_of_bank(weight: Tensor, bank: str, kept: Kept) -> Tensor:
    """Takes the kept experts' neurons out of [E, 2F, ..], the gates above the ups."""
    parts = weight[kept.experts[layer_of(bank)]].chunk(2, dim=1)
    rows = kept.neurons[bank][..., None].expand(-1, -1, weight.shape[2])
    return torch.cat([part.gather(1, rows) for part in parts], dim=1)


def columns_of_bank(weight: Tensor, bank: str, kept: Kept) -> Tensor:
    """Takes the kept experts' neurons out of [E, .., F]."""
    columns = kept.neurons[bank][:, None].expand(-1, weight.shape[1], -1)
    return weight[kept.experts[layer_of(bank)]].gather(2, columns)


def layer_of(name: str) -> int:
    """Returns the layer, from 0, that a weight or module belongs to."""
    found = _LAYER.fullmatch(name)
    assert found is not None
    return int(found[1])
