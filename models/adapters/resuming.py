"""Resumes a backbone in the middle, from the states that enter its lowest adapted layer.

Below its lowest adapter nothing of a model is trained. What enters that layer is therefore a function of the published
backbone and of a record's tokens alone, in every round the same, and can be computed once.

A family's own forward pass runs, with stand-ins in place of the frozen layers: the last of them gives the states, those
before it pass on what they get. So masks, rotary angles and whatever a family does to embeddings stay its own affair,
and a layer keeps its place in the list, by which some families choose its mask.

Where no layer is skipped, but an eye or an ear is frozen up to its last projection, what the encoder gives can be kept
in the same way: only the first tokens have it, and it is of another width.

Legend: `R` rows (records), `T` tokens, `N` of them a picture's or a sound's, `E` width of what an encoder gives, `D`
model width.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..errors import InvalidAdapter
from ..structure.sense import Sense, bytes_read, sense_of


def frozen_layers(model: Any, adapted: Collection[str], reads: Collection[int] = ()) -> int:
    """Counts the leading decoder layers with nothing trained in them or below.

    Args:
        model: a causal language model with its adapters in place.
        adapted: full names of the modules that took one.
        reads: what a head reads, see `PooledHead`: of the layers below those, only the embedding's states are computed
            again.

    Returns:
        0 where there is nothing to keep, or where it is not known what runs before the layers: the model has no
        list of decoder layers, something outside it is adapted (an embedding), or a layer runs at several places.
    """
    layers = decoder_layers(model)
    if layers is None or len({id(layer) for layer in layers}) < len(layers):
        return 0
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    prefix = next(f"{name}." for name, module in model.named_modules() if module is layers)
    if any(not name.startswith(prefix) for name in adapted):
        return 0
    inside = [{id(parameter) for parameter in layer.parameters()} for layer in layers]
    if not trained <= set().union(*inside):
        return 0
    first = min(
        (
            *(int(name.removeprefix(prefix).partition(".")[0]) for name in adapted),
            *(read for read in reads if read),
            max(1, *reads) if reads else len(layers),
        )
    )
    return next((number for number, own in enumerate(inside[:first]) if own & trained), first)


def frozen_sense(model: Any) -> Sense | None:
    """Returns the model's sense if nothing is trained in it but what its last projection does; None if it has none."""
    sense = sense_of(model)
    if sense is None:
        return None
    last = {id(parameter) for parameter in sense.to_words.parameters()}
    trained = {id(parameter) for parameter in sense.parameters() if parameter.requires_grad}
    return sense if trained <= last else None


def features(sense: Sense, ids_RT: Tensor) -> Tensor:
    """[R, at most N, E], what an encoder gives for the first tokens of rows; zeros for rows that carry nothing."""
    count = min(ids_RT.shape[1], sense.layout.tokens)
    if ids_RT.ndim != 3:
        return sense.where.new_zeros(len(ids_RT), count, sense.width)
    return sense.features(bytes_read(sense, ids_RT))[:, :count].detach()


@contextmanager
def sensed(sense: Sense, features_RTE: Tensor) -> Iterator[None]:
    """Computes inside as if the encoder had given this for the first tokens; what else is in a row is not read."""
    if features_RTE.requires_grad:
        raise InvalidAdapter("kept features must not be trained: the encoder is frozen")
    first_RNE = features_RTE[:, : sense.layout.tokens]
    first_RNE = nn.functional.pad(first_RNE, (0, 0, 0, sense.layout.tokens - first_RNE.shape[1]))

    def given(bytes_RNB: Tensor) -> Tensor:
        if len(bytes_RNB) != len(first_RNE) or first_RNE.shape[2] != sense.width:
            raise InvalidAdapter(
                f"kept features of shape {tuple(features_RTE.shape)} for {len(bytes_RNB)} rows of "
                f"{sense.width} numbers a token"
            )
        return first_RNE

    sense.given = given
    try:
        yield
    finally:
        sense.given = None


def decoder_layers(model: Any) -> nn.ModuleList | None:
    """Finds the list of a causal language model's decoder layers; None if it has none by that name."""
    layers = getattr(getattr(model, "model", None), "layers", None)
    return layers if isinstance(layers, nn.ModuleList) else None


@contextmanager
def resumed(model: Any, states_RTD: Tensor, skipped: int) -> Iterator[None]:
    """Computes inside as if the first `skipped` layers, 1 or more, had given these states."""
    if states_RTD.requires_grad:
        raise InvalidAdapter("kept states must not be trained: what lies below them is frozen")
    layers = _layers(model)
    below = [_Passing() for _ in range(skipped - 1)]
    with _stood_in(model, [*below, _Giving(states_RTD), *layers[skipped:]]):
        yield


def entering(model: Any, run: Callable[[], object], skipped: int) -> Tensor:
    """[R, T, D], what the first `skipped` layers, 1 or more, give in `run`, a call of `model`; the others do not run.

    Raises:
        InvalidAdapter: the last of these layers did not run, or gave something else than states.
    """
    layers, given = _layers(model), []
    handle = layers[skipped - 1].register_forward_hook(lambda _layer, _inputs, output: given.append(output))
    try:
        with _stood_in(model, [*layers[:skipped], *(_Passing() for _ in layers[skipped:])]):
            run()
    finally:
        handle.remove()
    if len(given) != 1 or not isinstance(given[0], Tensor):
        raise InvalidAdapter(f"layer {skipped - 1} of the backbone does not give states, and gives them once")
    return given[0].detach()


class _Passing(nn.Module):
    """Stands in for a layer that is skipped: passes on the states."""

    is_stand_in = True

    def forward(self, states_RTD: Tensor, *_: object, **__: object) -> Tensor:
        return states_RTD


class _Giving(nn.Module):
    """Stands in for the last skipped layer: gives what it gave when it ran."""

    is_stand_in = True

    def __init__(self, states_RTD: Tensor) -> None:
        super().__init__()
        self.states_RTD = states_RTD

    def forward(self, states_RTD: Tensor, *_: object, **__: object) -> Tensor:
        if states_RTD.shape != self.states_RTD.shape:
            raise InvalidAdapter(
                f"kept states of shape {tuple(self.states_RTD.shape)} where the backbone computes "
                f"{tuple(states_RTD.shape)}"
            )
        return self.states_RTD


def _layers(model: Any) -> nn.ModuleList:
    layers = decoder_layers(model)
    if layers is None:
        raise InvalidAdapter("the backbone has no list of decoder layers to resume at")
    return layers


@contextmanager
def _stood_in(model: Any, layers: Sequence[nn.Module]) -> Iterator[None]:
    own = model.model.layers
    model.model.layers = nn.ModuleList(layers)
    try:
        yield
    finally:
        model.model.layers = own
