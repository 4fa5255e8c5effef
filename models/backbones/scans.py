"""Gives transformers' state-space layers the scans of `kernels.scans` on processors.

There transformers has code that is meant as a reference: its scratch grows with the text, and Mamba-2's work faster
than that. It has no register of scans as it has of attention and of experts, so its functions are replaced, for all
models of the process. On other devices they are called as before, and there take the kernels of packages if those are
installed.
"""

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels.scans import gated_delta_rule, state_space_scan


def scan_mamba2_in_chunks() -> None:
    """Replaces the scan of Granite's Mamba-2 layers; twice is no harm."""
    from transformers.models.granitemoehybrid import modeling_granitemoehybrid

    _replace(modeling_granitemoehybrid, "mamba2_chunk_scan", _mamba2)


def scan_delta_rule_in_chunks() -> None:
    """Replaces the delta rule of Kimi Linear; twice is no harm."""
    from transformers.models.kimi_linear import modeling_kimi_linear

    _replace(modeling_kimi_linear, "chunk_kimi_delta_attention", _delta_rule)


def _replace(module: ModuleType, name: str, ours: Callable[..., Any]) -> None:
    stock: Any = getattr(module, name)
    if getattr(stock, "on_processors", None) is ours:
        return

    @functools.wraps(stock)
    def scan(first: Tensor, *others: Any, **settings: Any) -> Any:
        is_packed = any(settings.get(each) is not None for each in ("cu_seqlens", "seq_idx"))  # which stock refuses
        return (ours if first.device.type == "cpu" and not is_packed else stock)(first, *others, **settings)

    scan.on_processors = ours  # type: ignore[attr-defined]
    setattr(module, name, scan)


def _mamba2(
    hidden: Tensor, step: Tensor, rate: Tensor, into: Tensor, out_of: Tensor, chunk_size: int, *,
    dt_bias: Tensor | None = None, dt_softplus: bool = False, dt_limit: tuple[float, float] = (0.0, float("inf")),
    D: Tensor | None = None, initial_states: Tensor | None = None, return_final_states: bool = False, **_: Any,
) -> Any:  # fmt: skip
    """Computes what `mamba2_chunk_scan` does; the length of its chunks, which changes no value, is this one's own."""
    step = step if dt_bias is None else step + dt_bias.to(step.dtype)
    step = (F.softplus(step) if dt_softplus else step).clamp(*dt_limit).float()
    hidden = hidden.float()
    decay = rate.float() * step
    out, state = state_space_scan(hidden * step[..., None], decay, into, out_of, initial_states)
    out = out if D is None else out + D[..., None] * hidden
    return (out, state) if return_final_states else out


def _delta_rule(
    query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor, *, initial_state: Tensor | None = None,
    output_final_state: bool = False, use_qk_l2norm_in_kernel: bool = False, **_: Any,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Computes what `chunk_kimi_delta_attention` does."""
    asked, key = query.float(), key.float()
    if use_qk_l2norm_in_kernel:
        asked, key = (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6) for x in (asked, key))
    out, state = gated_delta_rule(asked * query.shape[-1] ** -0.5, key, value, g, beta, initial_state)
    return out.to(query.dtype), state if output_final_state else None
