"""Runs a deployed model's graph with ONNX Runtime, on the processor."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UnsupportedGraph
from .description import Deployment

MODEL, EYE = "model.onnx", "eye.onnx"


class OnnxModel:
    """A graph that reads whole requests, or writes on from what it remembers; before it an eye, if it has one."""

    def __init__(self, folder: Path, deployment: Deployment, threads: int | None) -> None:
        """Loads the graph.

        Raises:
            UnsupportedGraph: the installed ONNX Runtime cannot.
        """
        self._cache = deployment.cache
        self._session, self._eye = _session(folder / MODEL, deployment, threads), None
        if deployment.request.picture is not None:
            self._eye = _session(folder / EYE, deployment, threads)
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


def _session(path: Path, deployment: Deployment, threads: int | None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as err:  # its errors have no base of their own
        installed, least = onnxruntime.__version__, deployment.onnxruntime
        said = f"{path.name} cannot be loaded by ONNX Runtime {installed}, which is installed here"
        if least is not None and _parts(installed) < _parts(least):
            raise UnsupportedGraph(
                f"{said}: it takes {least} or newer, pip install -r requirements.txt; where there is none, deploy the "
                "run with --format float32 or --target torch"
            ) from None
        raise UnsupportedGraph(
            f"{said} ({type(err).__name__}): it takes {least} or newer and the file as it was written; copy the folder "
            "anew, or deploy the run with --format float32 or --target torch"
        ) from None


def _parts(version: str) -> tuple[int, ...]:
    """Returns the first two numbers of a version, of which one that is not out yet may have letters behind them."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def past_names(layer: int) -> tuple[str, str]:
    """Names the inputs that hold what a layer remembers."""
    return f"past.{layer}.keys", f"past.{layer}.values"


def _given(ids_RT: npt.NDArray[np.int64], places_RTF: npt.NDArray[np.int64] | None) -> dict[str, Any]:
    return {"ids": ids_RT} | ({} if places_RTF is None else {"places": places_RTF})
