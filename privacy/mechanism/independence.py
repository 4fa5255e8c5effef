"""Refusal, before a run, of models and losses in which one record's gradient depends on other records.

Clipping bounds what a unit adds to a sum only if its gradient is a function of its own rows. Batch norms, capacity
limits, balance losses, statistics that a forward pass updates, per-tensor scales and losses averaged over a batch all
break that, and training with them looks perfectly normal. Known culprits are found by name (`refuse_coupled_modules`),
unknown ones by watching whether a row's results move when the other rows change (`refuse_mixing`,
`refuse_moving_gradients`, `refuse_coupled_loss`).

A probe sees the coupling that its few random rows set off. It is no proof: a model may be written to behave while
probed. That nobody does so is an assumption about the published code and backbone, not about records.

Legend: `R` rows, `T` tokens.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.hooks import RemovableHandle

from ...kernels.collect import Collector
from ...kernels.formats import FROZEN_FORMATS, Dense, Prepacked
from ...kernels.linear import QuantisedLinear, packed_stacks
from ...models.adapters import AdaptedModel
from ...models.backbones.family import coupling
from ...models.tokens import made_up, words_of
from ..errors import TargetUnreached, UnitsCoupled

_Rows = Mapping[str, tuple[list[Tensor], list[Tensor]]]  # a module's inputs and outputs for one record
Losses = Callable[[Tensor, Tensor], Tensor]  # (logits, labels) -> one term a row

_ROWS, _TOKENS = 5, 7  # no width of a model's tensors, so that a leading axis of 5 or 35 counts rows or tokens
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_QUANTISED_PACKAGES = ("torch.ao.", "torchao.", "bitsandbytes.", "transformer_engine.")


def refuse_dependence(
    adapted: AdaptedModel, *, words: int, lengths: Sequence[int] = (_TOKENS,), are_kept: bool = False
) -> None:
    """Runs all checks of this module on a model and its own losses; the model is left as it was.

    Without a head, all of a probe but its first word is a completion; where a text is written behind what a head reads,
    its second half.

    Args:
        words: size of the vocabulary; probes are made of the words 1 to words - 1.
        lengths: of the probes in tokens, 2 or more; one for each way in which the architecture treats positions.
        are_kept: True for a model that is also trained from kept states: gradients are watched on that path too.

    Raises:
        UnitsCoupled: naming the module, setting, adapter or loss through which rows depend on each other; or there is
            no probe that could show it.
        TargetUnreached: naming the trained parameters that the loss does not depend on.
    """
    if not lengths or min(lengths) < 2:
        raise UnitsCoupled(
            f"probes of {tuple(lengths)} tokens show nothing: need one or more, each of 2 tokens or more"
        )
    refuse_coupled_modules(adapted)
    if adapted.head is not None:
        objective = adapted.head.objective
        outputs = _random(1, _ROWS) if objective.outputs is None else _random(1, _ROWS, objective.outputs)
        refuse_coupled_loss(objective.losses, outputs, objective.made_up(_ROWS))
    losses = partial(_probe_losses, adapted)
    with _away_from_start(adapted):
        for tokens in lengths:
            run = losses if adapted.head is None or adapted.text is not None else adapted.classify
            refuse_mixing(adapted, run, words=words, tokens=tokens)
            refuse_moving_gradients(adapted, losses, words=words, tokens=tokens)
            if are_kept:
                refuse_moving_gradients(adapted, partial(_kept_losses, adapted), words=words, tokens=tokens)


def kept_gap(adapted: AdaptedModel, *, words: int, tokens: int = _TOKENS) -> float:
    """Computes one record's gradient in full and from kept states, and returns how far they are apart.

    That is the L2 norm of the difference over that of the gradient, at made-up records and numbers; nan if neither is
    finite. The model is left as it was.
    """
    record = _batches(words, tokens, adapted)["left out"]
    with _away_from_start(adapted):
        whole, resumed = (
            unit_gradient(adapted, partial(run, adapted), record) for run in (_probe_losses, _kept_losses)
        )
    apart, size = (
        torch.stack([part.norm() for part in parts]).norm()
        for parts in ([resumed[name] - grad for name, grad in whole.items()], whole.values())
    )
    return float(apart / size)


def _probe_losses(adapted: AdaptedModel, ids_RT: Tensor, entering_RTD: Tensor | None = None) -> Tensor:
    """[R], with targets that are equal in the first and last of an odd number of rows."""
    return adapted.losses(ids_RT, adapted.made_up_targets(words_of(ids_RT) > 0), entering_RTD)


def _kept_losses(adapted: AdaptedModel, ids_RT: Tensor) -> Tensor:
    """[R], the same from states that were computed of each row by itself."""
    collector, adapted.slot.collector = adapted.slot.collector, None  # its owners are those of the whole batch
    try:
        states = [adapted.entering(ids_RT[row : row + 1]) for row in range(len(ids_RT))]
    finally:
        adapted.slot.collector = collector
    return _probe_losses(adapted, ids_RT, torch.cat(states))


def refuse_coupled_modules(model: nn.Module) -> None:
    """Looks for modules and settings that are known to couple rows, and for what nobody can know not to.

    Raises:
        UnitsCoupled: a batch norm, an instance norm with running statistics, a quantised layer of another library,
            weights below 16 bits, a packed format that is none of `kernels.formats` (there scales are fixed when
            weights are packed, before there is a batch), a subclass of nn.Linear, nn.Embedding or `QuantisedLinear`
            with a forward of its own, or a setting for balance losses, router statistics, expert capacity or rotary
            angles that follow the padded length.
    """
    configs: dict[int, object] = {}
    for name, module in model.named_modules():
        kind = type(module)
        if isinstance(module, _NormBase) and (module.track_running_stats or "Batch" in kind.__name__):
            raise UnitsCoupled(f"{name} is a {kind.__name__}: it keeps statistics of a batch")
        if kind.__module__.startswith(_QUANTISED_PACKAGES):
            raise UnitsCoupled(f"{name} is a {kind.__module__}.{kind.__name__}: its scales may come from a whole batch")
        for stack in packed_stacks(module):
            if type(stack) not in (Dense, Prepacked, *FROZEN_FORMATS):
                raise UnitsCoupled(
                    f"{name} is packed as {type(stack).__name__}: its scales may come from a whole batch"
                )
        for known in (nn.Linear, nn.Embedding, QuantisedLinear):
            if isinstance(module, known) and kind.forward is not known.forward:
                raise UnitsCoupled(f"{name} is a {kind.__name__}, which does more than {known.__name__}")
        if isinstance(module, nn.Embedding) and (module.max_norm is not None or module.scale_grad_by_freq):
            raise UnitsCoupled(f"{name} rescales its table by the words of a batch (max_norm, scale_grad_by_freq)")
        for leaf, weight in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            is_narrow = weight.itemsize == 1 and weight.dtype != torch.bool
            if is_narrow or (isinstance(weight, nn.Parameter) and weight.dtype not in _FLOATS):
                raise UnitsCoupled(f"{name}.{leaf} is stored as {weight.dtype}: its scales may come from a whole batch")
        config = getattr(module, "config", None)
        configs.setdefault(id(config), config)
    for config in configs.values():
        _refuse_coupled_settings(config)


def refuse_coupled_loss(losses: Losses, logits: Tensor, labels: Tensor) -> None:
    """Checks that term i of a loss is a function of row i alone, on the given example of at least two rows.

    Raises:
        UnitsCoupled: there is not one term a row, or a row's term or its gradient moves with other rows.
    """
    logits = logits.detach().double().requires_grad_()
    terms = losses(logits, labels)
    if terms.shape != (len(logits),):
        raise UnitsCoupled(
            f"the loss has shape {tuple(terms.shape)}, not one term for each of {len(logits)} rows: sum terms, divide "
            "nothing by the batch"
        )
    for row in range(len(logits)):
        (grad,) = torch.autograd.grad(terms[row], logits, retain_graph=True)
        if bool(grad[:row].any()) or bool(grad[row + 1 :].any()):
            raise UnitsCoupled(f"the loss couples rows: the term of row {row} depends on the logits of others")
        with torch.no_grad():
            alone = losses(logits[row : row + 1], labels[row : row + 1])[0]
            if not _gap(alone, terms[row].detach()) < 1e-9:  # NaN fails too
                raise UnitsCoupled(f"the loss couples rows: the term of row {row} moves when others are left out")


@torch.no_grad()
def refuse_mixing(model: nn.Module, run: Callable[[Tensor], Tensor], *, words: int, tokens: int = _TOKENS) -> None:
    """Watches every module's output for one record, first and last in a batch, while the other rows change.

    The others are replaced, made equal to the record (so that all crowd the same experts) and left out; the last also
    with longer rows beside it. In training mode, with equal random numbers, the others are replaced. Float rounding
    moves a row by about 1e-6 in float32; what mixes rows moves it by far more.

    Args:
        run: forward pass from ids [R, T] to a tensor [R, ...]; called with `model` in either mode.

    Raises:
        UnitsCoupled: naming the first module whose output for the record moved while its inputs did not, or what a
            forward pass in training mode overwrote.
    """
    batches = _batches(words, tokens, model)
    with _mode(model, training=False):
        seen = {others: _passed(model, run, ids) for others, ids in batches.items()}
        alone = seen.pop("left out")
        names = [name for name in alone.calls if all(passed.has_rows_of(name, alone) for passed in seen.values())]
        for others, passed in seen.items():
            for place in (0, -1):
                _refuse_moved(names, passed.rows(place), alone.rows(0), f"other rows of its batch are {others}")
        _refuse_padding(run, batches["left out"], batches["replaced"][1:])
    with _mode(model, training=True):
        first, second = (_seeded_passed(model, run, batches[others]) for others in ("there", "replaced"))
        for place in (0, -1):
            _refuse_moved(names, first.rows(place), second.rows(place), "other rows of its batch are replaced")


def refuse_moving_gradients(
    adapted: AdaptedModel, row_losses: Callable[[Tensor], Tensor], *, words: int, tokens: int = _TOKENS
) -> None:
    """Watches the gradient of one record, first and last in a batch, as it is clipped, while the other rows change.

    Args:
        row_losses: [R] terms of the rows of ids [R, T]; the record's has to be the same in the first and last place.

    Raises:
        UnitsCoupled: naming the parameter whose gradient moved.
        TargetUnreached: naming the trained parameters that backward did not reach.
    """
    batches = _batches(words, tokens, adapted)
    want = unit_gradient(adapted, row_losses, batches.pop("left out"))
    scale = torch.stack([grad.norm() for grad in want.values()]).norm()
    for (others, ids), place in itertools.product(batches.items(), (0, -1)):
        got = unit_gradient(adapted, row_losses, ids, place)
        for name, grad in got.items():
            moved = (grad - want[name]).norm() / scale
            if not moved < _tolerance(adapted.trained[name].dtype):
                raise UnitsCoupled(f"the gradient of {name} for one record moves when other rows are {others}")


def unit_gradient(
    adapted: AdaptedModel, row_losses: Callable[[Tensor], Tensor], ids_RT: Tensor, row: int = 0
) -> dict[str, Tensor]:
    """One row's part of the sum of gradients over all rows, before clipping; float64, by parameter name.

    PRIVATE where the rows are records.

    Raises:
        TargetUnreached: naming the trained parameters that backward did not reach.
    """
    rows, device = len(ids_RT), ids_RT.device
    collector = Collector(torch.arange(rows, device=device), rows, ids_RT.shape[1])
    with adapted.slot.filled(collector), torch.enable_grad():
        row_losses(ids_RT).sum().backward()  # type: ignore[no-untyped-call]
    reached = set(collector.parameters)
    if absent := [name for name, parameter in adapted.trained.items() if parameter not in reached]:
        raise TargetUnreached(
            f"the loss does not depend on {', '.join(absent)}: it would never be trained; take it from the targets"
        )
    only = torch.zeros(rows, dtype=torch.float64, device=device)
    only[row] = 1
    sums = collector.weighted_sum(only)
    return {name: sums[parameter] for name, parameter in adapted.trained.items()}


@dataclass(slots=True)
class _Passed:
    """Inputs and outputs of every module in one forward pass over rows of equal length."""

    num_rows: int
    num_tokens: int
    calls: dict[str, tuple[list[Tensor], list[Tensor]]] = field(default_factory=dict)  # inputs, outputs by module

    def add(self, name: str, inputs: object, outputs: object) -> None:
        """Notes one call; a module that runs again adds to its first."""
        for noted, tensors in zip(self.calls.setdefault(name, ([], [])), (inputs, outputs), strict=True):
            noted.extend(tensor.detach() for tensor in _tensors(tensors))

    def has_rows_of(self, name: str, other: "_Passed") -> bool:
        """True if two passes through a module differ in the number of rows alone; not so for an expert's tokens."""
        return name in self.calls and self._shapes(name) == other._shapes(name)

    def rows(self, place: int) -> dict[str, tuple[list[Tensor], list[Tensor]]]:
        """Picks the part of the row at `place`, in the order of the pass; all of a tensor if no axis counts rows."""
        return {
            name: ([self._row(tensor, place) for tensor in inputs], [self._row(tensor, place) for tensor in outputs])
            for name, (inputs, outputs) in self.calls.items()
        }

    def _shapes(self, name: str) -> list[tuple[object, ...]]:
        inputs, outputs = self.calls[name]
        counts: dict[int, object] = {self.num_rows: "rows", self.num_rows * self.num_tokens: "tokens"}
        return [
            (counts.get(len(tensor), len(tensor)), *tensor.shape[1:]) if tensor.ndim else ()
            for tensor in (*inputs, *outputs)
        ]

    def _row(self, tensor: Tensor, place: int) -> Tensor:
        if tensor.ndim and len(tensor) == self.num_rows * self.num_tokens:
            return tensor.reshape(self.num_rows, self.num_tokens, *tensor.shape[1:])[place]
        return tensor[place] if tensor.ndim and len(tensor) == self.num_rows else tensor


def _passed(model: nn.Module, run: Callable[[Tensor], Tensor], ids: Tensor) -> _Passed:
    passed = _Passed(*ids.shape[:2])

    def watch(name: str, module: nn.Module) -> RemovableHandle:
        def hook(_: nn.Module, args: object, kwargs: object, output: object) -> None:
            passed.add(name, (args, kwargs), output)

        return module.register_forward_hook(hook, with_kwargs=True)

    handles = [watch(name, module) for name, module in model.named_modules() if name]
    try:
        result = run(ids)
    finally:
        for handle in handles:
            handle.remove()
    if not result.ndim or len(result) != len(ids):
        raise UnitsCoupled(f"the model gives {tuple(result.shape)} for {len(ids)} rows: no result can be told a row's")
    passed.add("the model", (), result)
    return passed


def _seeded_passed(model: nn.Module, run: Callable[[Tensor], Tensor], ids: Tensor) -> _Passed:
    """With equal random numbers at every call, so that dropout falls on the same entries; state must stay as it is."""
    before = {name: tensor.clone() for name, tensor in _state(model).items()}
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        passed = _passed(model, run, ids)
    after, overwritten = _state(model), ""
    for name, tensor in before.items():
        if name in after and not torch.equal(after[name], tensor):
            after[name].copy_(tensor)
            overwritten = overwritten or name
    if overwritten:
        raise UnitsCoupled(f"{overwritten} is overwritten by a forward pass in training mode: a statistic of a batch")
    return passed


def _state(model: nn.Module) -> dict[str, Tensor]:
    """Buffers, vectors among the parameters and tensors that modules hold beside them."""
    state = dict(model.named_buffers())
    state |= {name: parameter.data for name, parameter in model.named_parameters() if parameter.ndim < 2}
    for prefix, module in model.named_modules():
        state |= {f"{prefix}.{name}": value for name, value in vars(module).items() if isinstance(value, Tensor)}
    return state


def _refuse_moved(names: Iterable[str], got: _Rows, want: _Rows, why: str) -> None:
    for name in names:
        inputs, outputs = zip(got[name], want[name], strict=True)
        # If its inputs moved too, the cause is the code of a module around this one, whose turn comes.
        if not _has_moved(*inputs) and _has_moved(*outputs):
            raise UnitsCoupled(f"{name} mixes rows: what it gives for one record moves when {why}")


def _has_moved(got: Iterable[Tensor], want: Iterable[Tensor]) -> bool:
    pairs = zip(got, want, strict=True)
    return any(not _gap(mine, theirs) < _tolerance(theirs.dtype) for mine, theirs in pairs)  # NaN has moved


def _refuse_padding(run: Callable[[Tensor], Tensor], record: Tensor, others: Tensor) -> None:
    """Results may not depend on how far the longest row of a batch makes the others be padded."""
    longer = torch.cat([torch.cat([record, torch.zeros_like(record)], dim=1), torch.cat([others, others], dim=1)[:-1]])
    alone, beside = run(record)[0], run(longer)[0]
    if alone.ndim:  # one result a token
        beside = beside[: len(alone)]
    if alone.shape != beside.shape or not _gap(beside, alone) < _tolerance(alone.dtype):
        raise UnitsCoupled("the model mixes rows: what it gives for one record moves when a longer row is beside it")


def _refuse_coupled_settings(config: object) -> None:
    if reason := coupling(config):
        raise UnitsCoupled(f"{type(config).__name__}.{reason}")


def _batches(words: int, tokens: int, model: nn.Module) -> dict[str, Tensor]:
    """One record, first and last in every batch but the one it has for itself."""
    generator, device = torch.Generator().manual_seed(0), next(model.parameters()).device
    record, there, other = (
        made_up(generator, rows, tokens, words=words, carried=getattr(model, "carried", 0)).to(device)
        for rows in (1, _ROWS - 2, _ROWS - 2)
    )
    beside = {"there": there, "replaced": other, "equal to it": torch.cat([record] * (_ROWS - 2))}
    return {"left out": record} | {name: torch.cat([record, rows, record]) for name, rows in beside.items()}


def _tensors(output: object) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for part in output.values():
            yield from _tensors(part)
    elif isinstance(output, list | tuple):
        for part in output:
            yield from _tensors(part)


def _gap(got: Tensor, want: Tensor) -> float:
    """Largest difference relative to the largest finite entry of `want`; infinite where whole numbers differ."""
    if torch.equal(got, want):
        return 0.0
    if not want.is_floating_point():
        return float("inf")
    got, want = got.double(), want.double()
    is_same = (got == want) | (got.isnan() & want.isnan())
    scale = want[want.isfinite()].abs().max() if bool(want.isfinite().any()) else want.new_ones(())
    return float(((got - want).abs() / scale).masked_fill(is_same, 0).max())


def _tolerance(dtype: torch.dtype) -> float:
    exact = torch.float32 if not dtype.is_floating_point or dtype == torch.float64 else dtype
    return float(torch.finfo(exact).eps ** 0.5)  # the stock norms and routers compute in float32 inside any model


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@contextmanager
def _mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    was = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, mode in was.items():
            module.training = mode


@contextmanager
@torch.no_grad()
def _away_from_start(adapted: AdaptedModel) -> Iterator[None]:
    """B and the head start at zero, where nothing of a model would show in its logits."""
    was = {name: parameter.clone() for name, parameter in adapted.trained.items()}
    for seed, parameter in enumerate(adapted.trained.values()):
        parameter.copy_(0.1 * _random(seed, *parameter.shape))
    try:
        with torch.enable_grad():
            yield
    finally:
        for name, parameter in adapted.trained.items():
            parameter.copy_(was[name])
