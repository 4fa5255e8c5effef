"""Remembers in which shapes this machine computes the rows of a batch independently, so that a restart is quick.

`probed_shapes` takes seconds, in which a site that comes back answers nobody. What it finds follows from the study, the
machine, its libraries and our code alone. So it is kept under a digest of all of these, and found anew if any of them
is another one; no record has a part in it.
"""

import hashlib
import json
import logging
import os
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, TypeAdapter

from ...models.adapters import AdaptedModel
from ...models.strict import NO_ENTRIES, Frozen, StrictModel
from ...privacy.mechanism.batches import BatchShapes
from ..errors import FileDamaged
from ..files import read_json, write_private
from ..study import Study

logger = logging.getLogger(__name__)

FILE = "batch-shapes.json"
MAX_KNOWN = 16  # the oldest are forgotten
_MAX_BYTES = 2**18
_REMEDY = "It is only there to save seconds: delete it, and the shapes are found anew"
_CODE = ("client_node", "kernels", "models", "privacy")  # our packages that make a model, compute, or try shapes
_SETTINGS = ("ATEN_", "BLIS_", "CONFIDE_MOE_BACKEND", "CONFIDE_SEGMENTS_BACKEND", "CUBLAS_", "CUDA_", "DNNL_", "GLIBC_",
             "GOMP_", "KMP_", "LD_", "MKL_", "NVIDIA_", "OMP_", "ONEDNN_", "OPENBLAS_", "TORCH", "PYTORCH_",
             "TRITON_")  # fmt: skip
_UNSTEADY = ("cpu MHz", "BogoMIPS", "bogomips")  # lines of /proc/cpuinfo
_CPUINFO, _CACHES = Path("/proc/cpuinfo"), Path("/sys/devices/system/cpu/cpu0/cache")

_Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Count = Annotated[int, Field(ge=1, le=2**24)]
_Rows = Annotated[tuple[_Count, ...], Field(min_length=1, max_length=16)]


class _Shapes(StrictModel):
    lengths: Annotated[tuple[tuple[_Count, _Rows], ...], Field(max_length=64)]
    threads: _Count | None


class _File(StrictModel):
    shapes: Annotated[Mapping[_Digest, _Shapes], Field(max_length=MAX_KNOWN), *Frozen] = NO_ENTRIES


_FORM = TypeAdapter(_File)


class KnownShapes:
    """The shapes that were found on this machine, stored in `batch-shapes.json` under the node's home."""

    def __init__(self, home: Path) -> None:
        self._path = home / FILE

    def find(self, study: Study, adapted: AdaptedModel, max_rows: int, probe: Callable[[], BatchShapes]) -> BatchShapes:
        """Returns the shapes that were found for this study and all that computes here, or those that `probe` finds.

        Args:
            adapted: the study's model, where it is computed.
            max_rows: that may be computed at once.
        """
        processor = _processor()
        if not processor:  # the next machine could be another one and look the same
            return probe()
        digest = computing_digest(study, adapted, max_rows, processor)
        found = self._known().get(digest)
        if found is not None:
            return BatchShapes(dict(found.lengths), found.threads)
        shapes = probe()
        self._note(digest, shapes)
        return shapes

    def _note(self, digest: str, shapes: BatchShapes) -> None:
        """Stores the shapes. What keeps them from the disk keeps nobody from computing."""
        found = _Shapes(lengths=tuple(shapes.rows_of_length.items()), threads=shapes.threads)
        latest = list((dict(self._known()) | {digest: found}).items())[-MAX_KNOWN:]
        try:
            write_private(self._path, _File(shapes=dict(latest)).model_dump_json().encode())
        except OSError as err:
            logger.warning("the shapes of batches are found anew at the next start: %s", err)

    def _known(self) -> Mapping[str, _Shapes]:
        try:
            found = read_json(self._path, _FORM, remedy=_REMEDY, max_bytes=_MAX_BYTES)
        except FileDamaged as err:
            logger.warning("the shapes of batches are found anew: %s", err)
            found = None
        return {} if found is None else found.shapes


def computing_digest(study: Study, adapted: AdaptedModel, max_rows: int, processor: str | None = None) -> str:
    """Computes a digest of everything that the rounding of a record depends on, as does a probe of it.

    Args:
        processor: in words; None for this machine's.
    """
    processor = _processor() if processor is None else processor
    device = next(iter(adapted.trained.values())).device
    facts = {
        "study": study.study_hash,
        "max_rows": max_rows,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "libraries": [torch.__config__.show(), torch.__config__.parallel_info(), version("transformers")],
        "machine": [os.uname().release, os.uname().machine, *platform.libc_ver(), processor],
        "settings": {name: value for name, value in sorted(os.environ.items()) if name.startswith(_SETTINGS)},
        "code": _code(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _processor() -> str:
    """Describes the first processor and its caches; empty where the system tells neither."""
    try:
        first = _CPUINFO.read_text().partition("\n\n")[0]
        caches = [file.read_text() for file in sorted(_CACHES.glob("index*/size"))]
    except OSError:
        return ""
    return "\n".join(line for line in [*first.splitlines(), *caches] if not line.startswith(_UNSTEADY))


def _code() -> str:
    """Computes a digest of our own code, and tiles of kernels, that have a part in what is found."""
    root = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    files = (file for folder in _CODE for kind in ("*.py", "*.json") for file in (root / folder).rglob(kind))
    for file in sorted(files):
        data = file.read_bytes()
        digest.update(f"{file.relative_to(root)} {len(data)}\n".encode() + data)
    return digest.hexdigest()
