"""Answers the requests of a Triton server, by its backend for Python: a batch of requests in, their answers out.

A request is a JSON object as text, and so is an answer, so that a client needs to know neither tokens nor outputs.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .asking import Answering

REQUEST, ANSWER = "REQUEST", "ANSWER"


class TritonPythonModel:
    """The model that Triton loads."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the model that lies in the folder of its version."""
        self._answering = Answering(Path(args["model_repository"]) / args["model_version"])

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answers all requests that wait together in one pass."""
        import triton_python_backend_utils as triton  # given by the server to what it runs

        texts = [triton.get_input_tensor_by_name(request, REQUEST).as_numpy() for request in requests]
        answers = iter(self._answered([cell for rows in texts for cell in rows.reshape(-1)]))
        responses = []
        for rows in texts:
            own = np.array([next(answers) for _ in range(rows.size)], dtype=np.object_).reshape(rows.shape)
            responses.append(triton.InferenceResponse([triton.Tensor(ANSWER, own)]))
        return responses

    def _answered(self, cells: Sequence[bytes]) -> list[bytes]:
        found: list[Any] = [{"error": "a request is a JSON object, in UTF-8"}] * len(cells)
        asked = {}
        for place, cell in enumerate(cells):
            try:
                asked[place] = json.loads(cell)
            except (ValueError, RecursionError):  # said in its answer
                continue
        for place, answer in zip(asked, self._answering.answer(list(asked.values())), strict=True):
            found[place] = answer
        return [json.dumps(answer, ensure_ascii=False).encode() for answer in found]
