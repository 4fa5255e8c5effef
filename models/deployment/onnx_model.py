"""Runs a deployed model's graph with ONNX Runtime, on the processor."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .description import Deployment

MODEL, EYE = "model.onnx", "eye.onnx"


class OnnxModel:
    """A graph that reads whole requests, or writes on from what it remembers; before it an eye, if it has one."""

    def __init__(self, folder: Path, deployment: Deployment, threads: int | None) -> None:
        self._cache = deployment.cache
        self._session, self._eye = _session(folder / MODEL, threads), None
        if deployment.request.picture is not None:
            self._eye = _session(folder / EYE, threads)
            self._width = self._eye.get_outputs()[0].shape[2]

    def outputs(self, ids_RT: npt.NDArray[np.int64], places_RTF: npt.NDArray[np.int64] | None) -> Any:
        """Returns what the head gives, [R] or [R, K], of token ids that are padded on the right with 0."""
        return self._session.run(None, _given(ids_RT, places_RTF))[0]

    def next(
        self,
        ids_RT: npt.NDArray[np.int64],
        places_RTF: npt.NDArray[np.int64] | None,
        cache: Any,
        carried_RNB: npt.NDArray[np.uint8] | None = None,
    ) -> tuple[npt.NDArray[np.float32], Any]:
        """Reads some more tokens; see `writing.Steps`."""
        rows = len(ids_RT)
        if cache is None:
            cache = [
                np.zeros((rows, heads, 0, numbers), dtype=np.float32)
                for layer in self._cache
                for heads, numbers in layer
            ]
        names = [name for layer in range(len(self._cache)) for name in past_names(layer)]
        given = _given(ids_RT, places_RTF) | dict(zip(names, cache, strict=True))
        if self._eye is not None:
            nothing = np.zeros((rows, 0, self._width), dtype=np.float32)
            given["seen"] = nothing if carried_RNB is None else self._eye.run(None, {"carried": carried_RNB})[0]
        logits, *present = self._session.run(None, given)
        return logits, present


def _session(path: Path, threads: int | None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def past_names(layer: int) -> tuple[str, str]:
    """Names the inputs that hold what a layer remembers."""
    return f"past.{layer}.keys", f"past.{layer}.values"


def _given(ids_RT: npt.NDArray[np.int64], places_RTF: npt.NDArray[np.int64] | None) -> dict[str, Any]:
    return {"ids": ids_RT} | ({} if places_RTF is None else {"places": places_RTF})
