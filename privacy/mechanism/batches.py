"""Batches in which no unit's gradient depends on who shares its batch, down to the last bit.

A made-up model can make float32 rounding decide everything: one bit more or less sends a token to another expert, or
turns a gradient round. Rounding depends on the shape in which a row is computed, so if one unit could move the shape of
a batch, it could move all other units' gradients, and with them a sum by far more than its own clip.

So a unit is computed in a shape that is its own affair: its longest record alone decides the padded length, and rows
come in fixed numbers, filled up with blank ones. That the rows of such a batch do not touch each other's bits, whatever
their places, and that the few numbers of rows agree, is tested on the machine at hand (`probed_shapes`), because it is
a property of its libraries. Where it does not hold, each unit is computed by itself, which needs no test.

Legend: `R` rows, `T` tokens.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ...kernels.collect import Collector
from ...kernels.linear import packed_stacks
from ...kernels.pointwise import places_agree, pointwise_seen
from ...kernels.products import tiles_agree, tiles_seen
from ...models.adapters import AdaptedModel
from ...models.tokens import words_of
from .sampling import Integers

_SHORTEST, _SHORTEST_OF_FEW = 16, 8  # tokens, to which shorter records are padded
_FEW = range(17, 33)  # longest shapes for which there are so few that shorter ones are worth the time to try them
_TOKENS = 2048  # of a batch: more costs memory and blank rows, less costs calls
_ROWS = 64  # of a batch, for the same reasons
_SIZES = 4  # numbers of rows for a length: each half of the one before
_LEAST = 128  # tokens of the smallest batch
_EXTREME = 1e4  # size of trained numbers at which rounding decides gradients


@dataclass(frozen=True, slots=True)
class Batch:
    """Whole units that are computed together."""

    units: list[int]  # their numbers in the sample
    rows_of_unit: list[Integers]
    num_rows: int  # blank rows at the end included
    length: int  # tokens of a row, padding included


@dataclass(frozen=True, slots=True)
class BatchShapes:
    """The shapes in which batches are computed; public, and the same for any records."""

    rows_of_length: Mapping[int, tuple[int, ...]] = field(default_factory=dict)  # numbers of rows, largest first
    threads: int | None = None  # of the arithmetic; None: as it stands

    def length_for(self, tokens: int) -> int | None:
        """The padded length for a unit whose longest record has so many tokens; None: it is computed by itself.

        One token of padding is always left: models may take another path for a batch without any.
        """
        return min((length for length in self.rows_of_length if length > tokens), default=None)

    def __str__(self) -> str:
        shapes = [f"{'/'.join(map(str, sizes))} rows of {length}" for length, sizes in self.rows_of_length.items()]
        threads = "" if self.threads is None else f", {self.threads} threads"
        return (", ".join(shapes) or "one unit at a time") + threads


ONE_BY_ONE = BatchShapes()

RowStates = Callable[[Integers], Sequence[Tensor]]  # numbers of rows -> of each, what `entering_states` gives for it


def used_tokens(ids: npt.NDArray[np.int64], targets: npt.NDArray[np.generic]) -> Integers:
    """[rows], the tokens of each record up to the last that counts: what follows it is inert."""
    words = words_of(ids)
    is_used = targets.astype(bool) if targets.ndim == 2 else words > 0
    if targets.ndim == 2 and targets.dtype != np.bool_:  # a head reads the record, which may have no text behind it
        is_used = is_used | (words > 0)
    used: Integers = np.where(is_used, np.arange(1, words.shape[1] + 1), 1).max(axis=1, initial=1)
    return used


def microbatches(rows_of_unit: Sequence[Integers], used_of_row: Integers, shapes: BatchShapes) -> Iterator[Batch]:
    """Puts whole units into batches of these shapes; each in the shape that its own records ask for."""
    by_length: dict[int, list[int]] = {}
    for unit, rows in enumerate(rows_of_unit):
        tokens = int(used_of_row[rows].max())
        length = shapes.length_for(tokens)
        if length is None:
            yield Batch([unit], [rows], len(rows), tokens)
        else:
            by_length.setdefault(length, []).append(unit)
    for length, units in sorted(by_length.items()):
        sizes, ends = shapes.rows_of_length[length], np.cumsum([len(rows_of_unit[unit]) for unit in units])
        first, done = 0, 0  # units, rows
        while first < len(units):
            size = next((size for size in sizes if size <= ends[-1] - done), sizes[-1])
            end = int(np.searchsorted(ends, done + size, side="right"))
            yield Batch(units[first:end], [rows_of_unit[unit] for unit in units[first:end]], size, length)
            first, done = end, int(ends[end - 1])


def batch_states(states_of_row: Sequence[Tensor], batch: Batch) -> Tensor:
    """[rows, length, D], kept states [tokens, D] of the rows of a batch in its shape; zeros where none are kept."""
    first = states_of_row[0]
    filled = first.new_zeros(batch.num_rows, batch.length, first.shape[-1])
    for place, states in enumerate(states_of_row):
        filled[place, : len(states)] = states
    return filled


def entering_states(
    adapted: AdaptedModel,
    ids: npt.NDArray[np.int64],
    used_of_row: Integers,
    shapes: BatchShapes,
    *,
    threads: int | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Computes, row by row, the states [tokens, D] that enter the lowest adapted layer; see `AdaptedModel.entering`.

    A row is computed as a unit of its own, in the shape that its own length asks for: what is kept of it does not
    depend on other rows, down to the last bit. For units of one row they are the bits that a step would compute.

    Args:
        threads: of the arithmetic; those of the step that the states are for. None: those of `shapes`.

    Yields:
        Numbers of rows, each once, with their states.
    """
    device = next(iter(adapted.trained.values())).device
    for batch in microbatches([np.array([row]) for row in range(len(ids))], used_of_row, shapes):
        rows = np.concatenate(batch.rows_of_unit)
        own = ids[rows, : batch.length]
        filled = np.zeros((batch.num_rows, batch.length, *ids.shape[2:]), dtype=np.int64)
        filled[: len(rows), : own.shape[1]] = own
        owners = Collector(torch.arange(batch.num_rows, device=device), batch.num_rows, batch.length)
        # As in a step: with owners of tokens, and with autograd, of which nothing below an adapter has any.
        with thread_count(threads or shapes.threads), torch.enable_grad(), adapted.slot.filled(owners):
            states_RTD = adapted.entering(torch.as_tensor(filled, device=device)).cpu()
        for row, states_TD in zip(rows.tolist(), states_RTD, strict=False):
            yield row, states_TD[: int(used_of_row[row])].clone()


def states_when_asked(
    adapted: AdaptedModel,
    ids: npt.NDArray[np.int64],
    targets: npt.NDArray[np.generic],
    shapes: BatchShapes,
    *,
    threads: int | None = None,
) -> RowStates:
    """Gives what computes the states of rows whenever a step asks for them, and keeps none; see `entering_states`."""
    used = used_tokens(ids, targets)

    def states_of(rows: Integers) -> Sequence[Tensor]:
        found = dict(entering_states(adapted, ids[rows], used[rows], shapes, threads=threads))
        return [found[place] for place in range(len(rows))]

    return states_of


def probed_shapes(adapted: AdaptedModel, *, max_tokens: int, max_rows: int, max_records: int) -> BatchShapes:
    """The shapes in which this machine computes the rows of a batch independently of each other, bit for bit.

    For each shape one record is computed in every place, beside equals, beside others and beside blank rows, at an
    ordinary state and at one where rounding decides. Which operations run, and in which order they add, follows from
    shapes and not from values, so that equal bits of sums here mean equal bits for all records; functions of single
    numbers are tried on numbers that tell (`places_agree`). If that fails with several threads, fewer are tried; a
    shape in which it fails is left out, and if all are, units are computed one by one. Layers of equal parts run the
    same operations, so one of each kind is tried.

    Reads no record. The model is left as it was.

    Args:
        max_tokens: of the study's longest record.
        max_rows: that may be computed at once.
        max_records: of a unit.
    """
    lengths = (length for length in _lengths(max_tokens) if length > adapted.carrying_tokens)  # as records are
    wanted = {length: _sizes(length, max_rows, max_records) for length in lengths}
    if _has_foreign_experts(adapted):
        return ONE_BY_ONE
    threads, needed = torch.get_num_threads(), {length for length in wanted if length >= _SHORTEST}
    # Vector registers fit into the parts of threads of which there are a power of two, not of three or six.
    for count in sorted({1, 1 << (threads.bit_length() - 1), threads}, reverse=True):
        with thread_count(count), tiles_seen() as seen, _one_layer_of_each_kind(adapted):
            # All of them, whatever the first ones show: workers of a site pass through the model together.
            agreeing = {length: _agreeing(adapted, length, sizes) for length, sizes in wanted.items()}
        with thread_count(count):
            is_tiled = all(tiles_agree(factor) for factor in seen)
        found = {length: sizes for length, sizes in agreeing.items() if sizes and is_tiled}
        if needed <= found.keys():  # what is shorter fits into these, too
            return BatchShapes(found, count)
    return BatchShapes(found, 1) if found else ONE_BY_ONE


@contextmanager
def thread_count(count: int | None) -> Iterator[None]:
    """Computes with so many threads inside; None changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _lengths(max_tokens: int) -> list[int]:
    """Powers of two and numbers halfway between, below the study's longest record, and a multiple of 8 for that."""
    longest = max(_SHORTEST, -(-(max_tokens + 1) // 8) * 8)
    shortest = _SHORTEST_OF_FEW if longest in _FEW else _SHORTEST
    steps = (shortest << doublings >> 1 for doublings in range(1, longest.bit_length()))
    shorter = (length for step in steps for length in (step, step + step // 2))
    return [*(length for length in shorter if 4 * length <= 3 * longest), longest]


def _sizes(length: int, max_rows: int, max_records: int) -> tuple[int, ...]:
    most = max(1, min(max_rows, _ROWS, _TOKENS // length))
    sizes = [max(max_records, most // 8 * 8 or most)]
    while len(sizes) < _SIZES and sizes[-1] % 2 == 0:
        if sizes[-1] // 2 < max_records or sizes[-1] // 2 * length < _LEAST:
            break
        sizes.append(sizes[-1] // 2)
    return tuple(sizes)


def _has_foreign_experts(adapted: AdaptedModel) -> bool:
    """True if some bank of experts runs by code that takes all rows of an expert at once, however many there are."""
    own = {id(adapter.base) for adapter in adapted.adapters.values()}
    banks = (module for module in adapted.model.modules() if hasattr(module, "has_gate") and id(module) not in own)
    return any(not hasattr(bank, "confide_slot") for bank in banks)


def _agreeing(adapted: AdaptedModel, length: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Those of the numbers of rows that agree with the largest; none if that one does not hold what is asked."""
    kept = [_agreeing_at(adapted, length, sizes, seed, scale) for seed, scale in enumerate((0.1, _EXTREME))]
    return tuple(size for size in sizes if all(size in found and sizes[0] in found for found in kept))


def _agreeing_at(adapted: AdaptedModel, length: int, sizes: tuple[int, ...], seed: int, scale: float) -> set[int]:
    generator = torch.Generator().manual_seed(seed)
    rows = sizes[0]
    mixed = adapted.made_up_rows(generator, rows, length)
    used_R = torch.randint(2, length, (rows,), generator=generator)  # tokens of each record, at most length - 1
    used_R[0], used_R[rows // 2] = length - 1, 0
    mixed[torch.arange(length) >= used_R[:, None]] = 0
    record = mixed[:1].clone() if rows > 1 else torch.ones_like(mixed)
    places = {0, rows // 3, rows - 1}
    mixed[list(places)] = record
    found = set()
    with _random_state(adapted, seed, scale):
        with pointwise_seen() as calls:
            want, _ = _seen(adapted, mixed, places)
        for size in sizes:
            with pointwise_seen() as own:
                seen, are_equal = _seen(adapted, record.expand(size, *record.shape[1:]), {0, size - 1})
            if are_equal and len(want | seen) == 1 and places_agree(calls | own):
                found.add(size)
    return found


def _seen(adapted: AdaptedModel, ids_RT: Tensor, places: set[int]) -> tuple[set[bytes], bool]:
    """Norms and gradients of the rows at these places, down to the last bit; and whether all rows have the same.

    If they have, a sum with whole factors that add up to 0 is exactly 0: in float64, of numbers of 32 bits.
    """
    collector = _collected(adapted, ids_RT)
    norms = collector.square_norms().nan_to_num(nan=math.inf, posinf=math.inf)
    is_finite = norms.isfinite()
    collector.forget(~is_finite)
    bits = set()
    for place in places:
        only = torch.zeros_like(norms)
        only[place] = 1
        parts = [norms[place].view(1), *(part.flatten() for part in collector.weighted_sum(only).values())]
        bits.add(torch.cat(parts).cpu().numpy().tobytes())
    factors = torch.randint(1, 1000, (len(ids_RT),), generator=torch.Generator().manual_seed(0)).double()
    factors[0] -= factors.sum()
    sums = collector.weighted_sum(factors.to(norms.device)).values()
    are_equal = bool((norms == norms[0]).all()) if bool(is_finite.all()) else not bool(is_finite.any())
    return bits, are_equal and not any(bool(part.any()) for part in sums)


def _collected(adapted: AdaptedModel, ids_RT: Tensor) -> Collector:
    device = next(iter(adapted.trained.values())).device
    ids_RT = ids_RT.to(device)
    words_RT = words_of(ids_RT)
    rows, length = words_RT.shape
    collector = Collector(torch.arange(rows, device=device), rows, length)
    # Some words of each row, as an output matrix over all of them would be most of the work; the last one among them,
    # as it alone depends on all others.
    places = torch.arange(length, device=device)
    some_RT = (words_RT > 0) & ((places % 8 == 3) | (places == length - 2))
    targets = adapted.made_up_targets(some_RT, are_alike=True)
    with adapted.slot.filled(collector), torch.enable_grad():
        adapted.losses(ids_RT, targets).sum().backward()  # type: ignore[no-untyped-call]
    return collector


@contextmanager
def _one_layer_of_each_kind(adapted: AdaptedModel) -> Iterator[None]:
    """Leaves out decoder layers that are made like an earlier one, while the model is tried.

    Not of a model whose weights are divided among processes: these gather them layer by layer, in one order.
    """
    decoder = getattr(adapted.model, "model", None)
    layers = getattr(decoder, "layers", None)
    is_divided = any(hasattr(parameter, "ds_id") for parameter in adapted.model.parameters())
    if decoder is None or not isinstance(layers, nn.ModuleList) or is_divided:
        yield
        return
    # Models look up by a layer's place what it attends to: all tokens before, a window of them, or a state.
    config = decoder.config
    types = getattr(config, "layer_types", None)
    made = [(_make_of(layer), types and types[place]) for place, layer in enumerate(layers)]
    first = [place for place, make in enumerate(made) if made.index(make) == place]
    decoder.layers = nn.ModuleList(layers[place] for place in first)
    if types:
        config.layer_types = [types[place] for place in first]
    try:
        yield
    finally:
        decoder.layers = layers
        if types:
            config.layer_types = types


def _make_of(layer: nn.Module) -> tuple[object, ...]:
    """The parts of a layer: modules by name, type and packed weights, tensors by name, shape, type, whether trained."""
    modules = tuple(
        (name, type(module), *((type(stack), stack.shape, stack.dtype) for stack in packed_stacks(module)))
        for name, module in layer.named_modules()
    )
    tensors = (*layer.named_parameters(), *layer.named_buffers())
    return modules, tuple((name, t.shape, t.dtype, t.requires_grad) for name, t in tensors)


@contextmanager
@torch.no_grad()
def _random_state(adapted: AdaptedModel, seed: int, scale: float) -> Iterator[None]:
    kept = {name: parameter.clone() for name, parameter in adapted.trained.items()}
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapted.trained.values():
        size = scale / math.sqrt(parameter.shape[-1]) if scale < 1 else scale
        parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    try:
        yield
    finally:
        for name, parameter in adapted.trained.items():
            parameter.copy_(kept[name])
