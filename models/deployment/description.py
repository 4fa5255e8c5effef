"""Describes a deployed model: what its folder holds, what it is asked, and what it answers.

`deployment.json` is this description. It holds no code and no path that leads out of the folder.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import InvalidRelease
from ..records.requests import Request

DEPLOYMENT = "deployment.json"
TOKENIZER = "tokenizer.json"
_FORMAT = 1
_MAX_BYTES = 1 << 26

Runtime = Literal["onnx", "torch"]
Weights = Literal["float32", "int8"]
Cache = tuple[tuple[tuple[int, int], tuple[int, int]], ...]  # (heads, numbers) of keys and of values, by layer


@dataclass(frozen=True, slots=True)
class Deployment:
    """The description of a deployed model."""

    study: str
    request: Request
    runtime: Runtime
    weights: Weights
    words: int  # of the vocabulary; a table of embeddings may have more rows, which are never written
    longest: int  # tokens of prompt and answer together
    ends: tuple[int, ...] = ()  # words that end a text
    structure: str | None = None  # reader of the text's structure, whose tables the model has
    cache: Cache = ()  # of a graph that writes
    segments: tuple[int, int] | None = None  # (window, top) of attention in segments
    onnxruntime: str | None = None  # the least version that computes the graph as it was tested

    def save(self, folder: Path) -> None:
        """Writes the description."""
        plain = {"format": _FORMAT, **asdict(self), "request": self.request.to_dict()}
        (folder / DEPLOYMENT).write_text(json.dumps(plain, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def load(folder: Path) -> Deployment:
    """Reads what `Deployment.save` wrote.

    Raises:
        InvalidRelease: the file is missing, broken, or of another format.
    """
    path = folder / DEPLOYMENT
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InvalidRelease(f"{path} is larger than {_MAX_BYTES} bytes")
        plain = json.loads(path.read_bytes())
        if not isinstance(plain, dict) or plain.pop("format", None) != _FORMAT:
            raise InvalidRelease(f"{path} is not of format {_FORMAT}, the one that this program reads")
        return _read(plain)
    except InvalidRelease:
        raise
    except OSError as err:
        raise InvalidRelease(f"{path} cannot be read ({err.strerror})") from None
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as err:
        raise InvalidRelease(f"{path} describes no deployed model ({type(err).__name__})") from None


def _read(plain: Mapping[str, Any]) -> Deployment:
    read = {**plain, "request": Request.from_dict(plain["request"]), "ends": tuple(plain["ends"])}
    read["cache"] = tuple((tuple(first), tuple(second)) for first, second in plain["cache"])
    read["segments"] = None if plain["segments"] is None else tuple(plain["segments"])
    least = plain.get("onnxruntime")
    if least is not None and not re.fullmatch(r"\d{1,4}\.\d{1,4}", least):
        raise ValueError("no version")
    return Deployment(**read)
