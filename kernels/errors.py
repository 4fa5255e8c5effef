"""Errors of the kernels.

KernelError
├── RoutingOutOfRange   an expert or unit index that does not exist
├── UnfitWeights        tensors that are no stack of experts, or do not fit each other
├── UnfitTiles          a table of tiles that no kernel could use
├── UnknownBackend      a backend that does not exist, cannot run here, or takes no gates
├── GatesUntrained      gates on rank components where gradients are wanted
├── UnsupportedExperts  a module whose experts compute something else than these kernels do
├── SavedWithoutWeights a checkpoint would be written that lacks its packed weights
├── TokensMiscounted    an op saw another number of tokens than the microbatch has
├── CapturedTwice       one factor contributed twice to the same microbatch
├── CaptureClosed       backward reached a factor after its microbatch had ended
├── CaptureMissed       a microbatch ended without the gradients that it was for
└── CaptureNested       a microbatch began inside another one of the same model
"""

if not __name__.startswith("confide."):  # every other file of the folder imports this one
    raise ImportError("this folder is the package confide.kernels: write `from confide.kernels import install`")


class KernelError(Exception):
    """Base of every error raised in this folder."""


class RoutingOutOfRange(KernelError):
    """A routing table with an expert outside [0, num_experts] or a unit outside [0, num_units)."""


class UnfitWeights(KernelError):
    """Tensors that do not follow their format, or two projections of a bank that do not fit each other."""


class UnfitTiles(KernelError):
    """A table of tiles with a size that no kernel could use, or that is no table."""


class UnknownBackend(KernelError):
    """A backend name that does not exist, or a backend that cannot run on this machine or takes no gates."""


class GatesUntrained(KernelError):
    """Gates on rank components with a collector or inside autograd: they are for inference and have no backward."""


class UnsupportedExperts(KernelError):
    """Experts that are no plain SwiGLU bank; the kernels refuse to compute them."""


class SavedWithoutWeights(KernelError):
    """A checkpoint that would lack its packed weights, as they are no part of a model's state; none is written."""


class TokensMiscounted(KernelError):
    """Tokens of an op that cannot be laid out as rows x tokens_per_row; their owners are unknown."""


class CapturedTwice(KernelError):
    """A factor used twice in one microbatch: norms of the two parts would not add up to the norm of their sum."""


class CaptureClosed(KernelError):
    """A backward pass outside the microbatch of its forward pass; its gradient would escape clipping."""


class CaptureMissed(KernelError):
    """Gradients that the collector missed, or would miss: in a factor's `.grad`, or with another collector."""


class CaptureNested(KernelError):
    """A microbatch inside another open one of the same model; its gradients would reach no collector."""
