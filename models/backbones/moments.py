"""Moments of a text backbone's pooled states, taken from public texts: what a head needs to read documents.

Whitened states make few noisy steps go far. The moments say something about the texts that they come from, so these
must be public: the names of a classification, guidelines, the text of a law. A folder with moments is a backbone of its
own, with a hash of its own: the checkpoint's files, linked instead of copied where the disk can, and
`pooling.safetensors`.

Legend: `R` rows (texts), `P` states that are read, `D` model width.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from ..directories import new_directory
from ..errors import BackboneMismatch, InvalidBackbone
from ..heads import PooledHead, pooled
from ..heads.objectives import Objective
from ..records import documents
from ..structure import inputs
from . import checkpoints

POOLING = "pooling.safetensors"
RIDGE = 10.0  # added to a correlation matrix, whose mean eigenvalue is 1; 3 to 30 are as good, 0.1 is worse by far
MOST_TEXTS, MOST_BYTES = 1_000_000, 2**28  # of a file
_TOKENS = 2048  # at a time, padding included
_NAME = re.compile(r"(center|whiten)\.(0|[1-9][0-9]{0,3})")


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and whitening of pooled states, by the state that is read; see `PooledHead`."""

    center: Mapping[int, Tensor]  # [D] each
    whiten: Mapping[int, Tensor]  # [D, D] each, from the right: by each number's std, then (correlation + ridge)^-1/2

    @property
    def reads(self) -> tuple[int, ...]:
        """The states that there are moments of, ascending."""
        return tuple(sorted(self.center))

    def head(self, objective: Objective | None, reads: tuple[int, ...] | None) -> PooledHead:
        """Makes a new head on some of these states; None: on all.

        Raises:
            BackboneMismatch: there are no moments of a state.
        """
        reads = self.reads if reads is None else reads
        if strange := [read for read in reads if read not in self.center]:
            there = ", ".join(map(str, self.reads))
            raise BackboneMismatch(
                f"has no moments of state {', '.join(map(str, strange))}; there are those of {there}"
            )
        center, whiten = (torch.stack([of[read] for read in reads]) for of in (self.center, self.whiten))
        return PooledHead(center, whiten, objective=objective, reads=reads)


@dataclass(frozen=True, slots=True)
class Taken:
    """The folder that moments were written into."""

    hash: str
    reads: tuple[int, ...]
    texts: int
    is_linked: bool  # False: the disk takes no links, so the checkpoint was copied


def default_reads(layers: int) -> tuple[int, ...]:
    """The states of the embedding, of the middle, after four fifths of the layers, and the last one."""
    return tuple(sorted({0, layers // 2, round(0.8 * layers), layers}))


def take_moments(
    backbone: Path,
    texts: Sequence[str],
    directory: Path,
    *,
    template: str = "{text}",
    reads: Sequence[int] | None = None,
    max_tokens: int = 256,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Taken:
    """Computes the moments of public texts and writes a folder with the checkpoint and them.

    Args:
        backbone: an imported checkpoint.
        texts: public; two or more, and better some for each of the model's width.
        directory: must not exist; appears in one rename.
        template: with one name in braces, where a text stands; as a study's documents will be written.
        reads: states to take moments of; None: `default_reads`.
        max_tokens: longer texts are cut.
        progress: called with texts done and in all.

    Raises:
        InvalidBackbone: the folder is broken or refused, or has moments already; or there are too few texts.
        InvalidPrompt: the template is none.
    """
    backbone = Path(backbone)
    if (backbone / POOLING).exists():
        raise InvalidBackbone(f"{backbone} has moments already; take them from the folder that was imported")
    if len(texts) < 2:
        raise InvalidBackbone(f"{len(texts)} public texts have no moments; need two or more, better some thousands")
    tokenizer, model = checkpoints.load_tokenizer(backbone), checkpoints.load_model(backbone)
    inputs.load(backbone, model, tokenizer)
    last = int(model.config.num_hidden_layers)
    wanted = tuple(sorted(set(default_reads(last) if reads is None else reads)))
    if not wanted or wanted[0] < 0 or wanted[-1] > last:
        raise InvalidBackbone(f"states are numbered from 0 to {last}; got {', '.join(map(str, wanted)) or 'none'}")
    moments = _measured(model, _batches(texts, template, tokenizer, max_tokens), wanted, progress)
    facts = {
        "texts": len(texts),
        "texts_sha256": hashlib.sha256("\n".join(texts).encode()).hexdigest(),
        "template": template,
    }
    with new_directory(directory) as partial:
        links = [_link(path, partial / path.name) for path in sorted(backbone.iterdir())]
        _write(moments, partial / POOLING, facts)
        return Taken(checkpoints.content_hash(partial), moments.reads, len(texts), all(links))


def read_texts(path: Path) -> list[str]:
    """Reads public texts from a UTF-8 file, one a line; empty lines are none.

    Raises:
        InvalidBackbone: the file is too long, no UTF-8, or cannot be read.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InvalidBackbone(f"{path}: longer than {MOST_BYTES >> 20} MiB")
        texts = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as err:
        raise InvalidBackbone(f"{path}: cannot be read as UTF-8 text ({err})") from None
    if len(texts) > MOST_TEXTS:
        raise InvalidBackbone(f"{path}: {len(texts):,} lines; at most {MOST_TEXTS:,}")
    return texts


def states_with_moments(directory: Path) -> tuple[int, ...]:
    """Lists the states that a folder has moments of, without reading them; () if it has none.

    Raises:
        InvalidBackbone: the file is broken.
    """
    path = Path(directory) / POOLING
    if not path.exists():
        return ()
    try:
        with safe_open(path, framework="pt") as file:
            matches = [_NAME.fullmatch(name) for name in file.keys()]  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as err:
        raise checkpoints.as_invalid(Path(directory), err) from err
    return tuple(sorted({int(match[2]) for match in matches if match is not None}))


def read_moments(directory: Path, model: PreTrainedModel) -> Moments | None:
    """Reads the moments in a backbone's folder; None if it has none.

    Raises:
        InvalidBackbone: they are broken, or do not fit the model.
    """
    path = Path(directory) / POOLING
    if not path.exists():
        return None
    found: dict[str, dict[int, Tensor]] = {"center": {}, "whiten": {}}
    width, last = int(model.config.hidden_size), int(model.config.num_hidden_layers)
    shapes = {"center": (width,), "whiten": (width, width)}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                match = _NAME.fullmatch(name)
                if match is None or int(match[2]) > last or tuple(file.get_slice(name).get_shape()) != shapes[match[1]]:
                    raise InvalidBackbone(f"{path}: {name!r} is no moment of this model's states")
                found[match[1]][int(match[2])] = tensor = file.get_tensor(name)
                if tensor.dtype != torch.float32 or not bool(torch.isfinite(tensor).all()):
                    raise InvalidBackbone(f"{path}: {name} is not finite, or no float32")
    except (OSError, SafetensorError) as err:
        raise checkpoints.as_invalid(Path(directory), err) from err
    if not found["center"] or found["center"].keys() != found["whiten"].keys():
        raise InvalidBackbone(f"{path}: holds no pairs of center and whiten")
    return Moments(found["center"], found["whiten"])


def _batches(texts: Sequence[str], template: str, tokenizer: Any, max_tokens: int) -> list[Tensor]:
    """Encodes texts, shortest first, as ids [rows, longest]."""
    ids = documents.encoded(template, texts, tokenizer, max_tokens)
    lengths = np.where(ids > 0, np.arange(1, ids.shape[1] + 1), 0).max(axis=1, initial=0)
    order = np.argsort(lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        ahead = lengths[order[start : start + _TOKENS]]
        rows = order[start : start + max(1, int((ahead * np.arange(1, len(ahead) + 1) <= _TOKENS).sum()))]
        batches.append(torch.from_numpy(ids[rows, : max(1, int(lengths[rows].max()))]))
        start += len(rows)
    return batches


@torch.no_grad()
def _measured(
    model: Any, batches: Sequence[Tensor], reads: tuple[int, ...], progress: Callable[[int, int], None]
) -> Moments:
    """Adds up states and their products in float64; texts of no token count as none.

    Language models have a few numbers that are hundreds of times as large as all others in every state. So each number
    is divided by its std first, or the ridge would be theirs alone.
    """
    width = int(model.config.hidden_size)
    count, total = 0, sum(map(len, batches))
    sums = torch.zeros(len(reads), width, dtype=torch.float64)
    squares = torch.zeros(len(reads), width, width, dtype=torch.float64)
    done = 0
    for ids_RT in batches:
        done += len(ids_RT)
        used_RT = ids_RT[ids_RT.any(1)]
        if len(used_RT):
            states_RPD = pooled(model, used_RT, reads).view(-1, len(reads), width).double()
            count += len(states_RPD)
            sums += states_RPD.sum(0)
            squares += torch.einsum("rpd,rpe->pde", states_RPD, states_RPD)
        progress(done, total)
    if count < 2:
        raise InvalidBackbone("fewer than two of the texts have a word")
    means = sums / count
    covariances = (squares - count * torch.einsum("pd,pe->pde", means, means)) / (count - 1)
    center, whiten = {}, {}
    for read, mean, covariance in zip(reads, means, covariances, strict=True):
        scale = covariance.diagonal().clamp_min(0).sqrt()
        scale = torch.where(scale > 0, scale, 1.0)  # what never moves says nothing
        values, vectors = torch.linalg.eigh(covariance / torch.outer(scale, scale))
        root = (vectors / (values.clamp_min(0) + RIDGE).sqrt()) @ vectors.T
        center[read], whiten[read] = mean.float(), (root / scale[:, None]).float()
    return Moments(center, whiten)


def _write(moments: Moments, path: Path, facts: Mapping[str, Any]) -> None:
    tensors = {f"center.{read}": center.contiguous() for read, center in moments.center.items()}
    tensors |= {f"whiten.{read}": whiten.contiguous() for read, whiten in moments.whiten.items()}
    # One entry alone: several come in any order, and the folder would have another hash each time.
    save_file(tensors, path, metadata={"made_of": json.dumps(facts, sort_keys=True)})


def _link(source: Path, target: Path) -> bool:
    """Gives a file a second name in another folder; copies it where the disk takes none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        return False
    return True
