"""Errors of the kernels.

KernelError
├── RoutingOutOfRange   an expert or unit index that does not exist
├── UnfitWeights        tensors that are no stack of experts, or do not fit each other
├── UnknownBackend      a backend that does not exist, or cannot run here
├── UnsupportedExperts  a module whose experts compute something else than these kernels do
├── SavedWithoutExperts a checkpoint would be written that lacks its packed experts
├── TokensMiscounted    an op saw another number of tokens than the microbatch has
├── CapturedTwice       one factor contributed twice to the same microbatch
├── CaptureClosed       backward reached a factor after its microbatch had ended
├── CaptureMissed       a microbatch ended without the gradients that it was for
└── CaptureNested       a microbatch began inside another one of the same model
"""


class KernelError(Exception):
    """Base of every error raised in this folder."""


class RoutingOutOfRange(KernelError):
    """A routing table names an expert outside [0, num_experts] or a unit outside [0, num_units)."""


class UnfitWeights(KernelError):
    """Tensors are not what a format says, or the two projections of a bank do not fit each other."""


class UnknownBackend(KernelError):
    """No backend has that name, or the one that has it cannot run on this machine."""


class UnsupportedExperts(KernelError):
    """The experts of a module are no plain SwiGLU bank: nothing is computed rather than something else."""


class SavedWithoutExperts(KernelError):
    """Packed experts are no part of a model's state, so a checkpoint of it would lack them; none is written."""


class TokensMiscounted(KernelError):
    """The tokens of an op cannot be laid out as rows x tokens_per_row, so their owners are unknown."""


class CapturedTwice(KernelError):
    """A factor was used twice in one microbatch: norms of the two parts would not add up to the norm of their sum."""


class CaptureClosed(KernelError):
    """Backward ran outside the microbatch in which forward ran; its gradient would escape clipping."""


class CaptureMissed(KernelError):
    """Gradients went past the collector, or would: to a factor's `.grad`, or to the collector of other owners."""


class CaptureNested(KernelError):
    """Another microbatch of the same model is open: what follows it would go to nobody."""
