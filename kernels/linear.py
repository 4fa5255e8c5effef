"""Frozen linear layers whose weights stay in one of the packed formats, with or without an adapter on them.

Rows are multiplied together, as by `nn.Linear`: whoever keeps the rows of units apart tests the shapes of batches as
with any other dense product (`privacy/mechanism/batches.py`). Nothing is widened but one matrix at a time, into the
scratch that all formats share.

Legend: `O` outputs, `I` inputs, `S` rows.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import Function

from .errors import UnfitWeights
from .experts import Experts
from .formats import ExpertWeights, Int8Both, Int8Row, Pack

WHOLE = "confide_whole"  # of a module whose matrices are gathered from several processes: a context in which they stay


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """One frozen matrix [O, I] in a packed format: a stack of one."""

    stack: ExpertWeights

    def __post_init__(self) -> None:
        if len(self.stack.shape) != 3 or self.stack.shape[0] != 1:
            raise UnfitWeights(f"a linear layer has one matrix, not a stack {tuple(self.stack.shape)}")

    @property
    def shape(self) -> torch.Size:
        """(O, I)."""
        return self.stack.shape[1:]

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the products and of what they multiply."""
        return self.stack.dtype

    @property
    def device(self) -> torch.device:
        """Device on which the matrix lies."""
        return self.stack.device

    @property
    def nbytes(self) -> int:
        """Bytes that the matrix takes in memory."""
        return self.stack.nbytes

    def linear(self, x_SI: Tensor, bias_O: Tensor | None = None) -> Tensor:
        """Computes x W^T + bias; not differentiable."""
        out = x_SI.new_empty(len(x_SI), self.shape[0])
        self.stack.mm(0, x_SI, out)
        return out if bias_O is None else out.add_(bias_O)

    def linear_back(self, grad_SO: Tensor) -> Tensor:
        """Computes grad W, the gradient of `linear` by x; not differentiable."""
        out = grad_SO.new_empty(len(grad_SO), self.shape[1])
        self.stack.mm_t(0, grad_SO, out)
        return out

    def dense(self) -> Tensor:
        """Returns [O, I] in `dtype`: the copy that everything else avoids."""
        return self.stack.dense()[0]


class QuantisedLinear(nn.Module):
    """A frozen linear layer on packed weights; they are no part of the model's state and stay on their device.

    No subclass of nn.Linear: code that multiplies by `weight` itself, past the layer, fails instead of reading codes.

    Attributes:
        weight: the packed matrix; absent until `fill` is called, where a model is built before its files are read.
        bias: frozen, or None.
    """

    weight: PackedMatrix

    def __init__(self, in_features: int, out_features: int, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.bias = bias

    @classmethod
    def unfilled(cls, layer: nn.Linear) -> "QuantisedLinear":
        """Makes a layer of the sizes and with the bias of another one, and no weights yet."""
        return cls(layer.in_features, layer.out_features, cast(nn.Parameter | None, layer.bias))

    def fill(self, stack: ExpertWeights) -> None:
        """Gives the layer its weights, for good.

        Raises:
            UnfitWeights: they have other sizes than the layer.
        """
        if tuple(stack.shape) != (1, self.out_features, self.in_features):
            raise UnfitWeights(f"{tuple(stack.shape)} is no matrix [{self.out_features}, {self.in_features}]")
        self.weight = PackedMatrix(stack)

    def extra_repr(self) -> str:
        """Describes the layer in a model's printed form."""
        form = type(self.weight.stack).__name__ if hasattr(self, "weight") else "no weights yet"
        return f"in_features={self.in_features}, out_features={self.out_features}, {form}"

    def forward(self, x: Tensor) -> Tensor:
        """Computes x W^T + bias in the dtype of the products, also under autocast; differentiable once, by x."""
        if not torch.is_grad_enabled() and not torch.is_autocast_enabled(x.device.type):
            # For one token, entering autograd and leaving autocast takes as long as the product.
            rows = x.to(self.weight.dtype).reshape(-1, self.in_features)
            return self.weight.linear(rows, self.bias).view(*x.shape[:-1], self.out_features)
        with torch.autocast(x.device.type, enabled=False):
            out = _Linear.apply(x.to(self.weight.dtype), self.weight, self.bias)  # type: ignore[no-untyped-call]
        return cast(Tensor, out)


def quantise_linear(model: nn.Module, names: Iterable[str], pack: Pack, dtype: torch.dtype | None = None) -> None:
    """Packs the linear layers of these names, one after another, for good; do it before adapters are attached.

    Args:
        dtype: of the products; None for that of each layer's weights.

    Raises:
        UnfitWeights: a module is no plain nn.Linear; nothing was changed.
    """
    layers = {name: model.get_submodule(name) for name in names}
    for name, layer in layers.items():
        if type(layer) is not nn.Linear:  # a subclass may compute something else
            raise UnfitWeights(f"{name} is a {type(layer).__name__}, no linear layer to pack")
    for name, layer in layers.items():
        assert isinstance(layer, nn.Linear)
        packed = QuantisedLinear.unfilled(layer)
        packed.fill(pack([layer.weight.detach()], dtype))
        packed.train(layer.training).requires_grad_(False)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, packed)


def multiply_in_integers(model: nn.Module) -> None:
    """Rounds both factors of every product by weights in `Int8Row`, for good: see `Int8Both`. For inference.

    Linear layers and banks whose weights are in another format stay as they are.
    """
    module: Any
    for module in model.modules():
        experts: Experts | None = getattr(module, "confide_experts", None)
        if isinstance(module, QuantisedLinear):
            module.weight = PackedMatrix(_in_integers(module.weight.stack))
        elif experts is not None:
            module.confide_experts = Experts(_in_integers(experts.gate_up), _in_integers(experts.down))


def _in_integers(stack: ExpertWeights) -> ExpertWeights:
    return Int8Both(stack.codes_EOI, stack.scale_EO) if isinstance(stack, Int8Row) else stack


def packed_stacks(module: Any) -> tuple[ExpertWeights, ...]:
    """Returns the stacks that are no part of a module's state: of a packed bank, or of a `QuantisedLinear`."""
    if isinstance(module, QuantisedLinear):
        return (module.weight.stack,)
    experts: Experts | None = getattr(module, "confide_experts", None)
    return () if experts is None else (experts.gate_up, experts.down)


class _Linear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: PackedMatrix, bias: Tensor | None) -> Tensor:
        ctx.weight = weight  # not a tensor for autograd to keep: it may be parted and gathered again in between
        width_out, width_in = weight.shape
        return weight.linear(x.reshape(-1, width_in), bias).view(*x.shape[:-1], width_out)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.needs_input_grad[0]:
            return None, None, None
        width_out, width_in = ctx.weight.shape
        return ctx.weight.linear_back(grad.reshape(-1, width_out)).view(*grad.shape[:-1], width_in), None, None
