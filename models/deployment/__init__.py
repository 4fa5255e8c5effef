"""Deployment: a trained model as a folder that runs where confide is not installed.

`deploying.deploy` writes the folder: a graph of ONNX that `exporting` makes, or a checkpoint; `description`, which says
what the model is asked and answers; and the files that do so there, `asking`, `reading`, `writing`, `onnx_model`,
`torch_model`, `segments`, `triton_model` and `triton_server`, copied as they are. They import nothing of confide but
each other, readers of structure and guides. `choosing` says which target suits a use.

A head's outputs, and the answer that they are:

>>> import numpy as np
>>> from confide.models.deployment import asking
>>> from confide.models.deployment.reading import Reader
>>> from confide.models.records.requests import Answered, Request, TextShown
>>> reader = Reader(Request(TextShown(()), (Answered("days", "number", low=0.0, high=30.0),)))
>>> reader.answers(np.array([0.5], dtype=np.float32))
{'days': 22.5}
"""

__all__ = ["asking", "choosing", "deploying", "description", "exporting", "reading", "writing"]
