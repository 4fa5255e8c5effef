"""Measures a model's routing on a public text, or on synthetic records of its schema; no site's record is read."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...models.backbones import checkpoints, loading, public_tokens
from ...models.backbones.public_tokens import Batch
from ...models.errors import MetricUndefined
from ...models.evaluation.layer_routing import LayerRouting
from ...models.evaluation.router_statistics import router_statistics
from ..errors import Conflict, NotFound
from ..results.trained import trained_at, trained_model
from ..store import Store
from ..studies.catalogue import load_study, study_start
from . import kept

MAX_TEXT_BYTES = 2**20
TOKENS = 1024  # to read, unless somebody says otherwise


@dataclass(frozen=True, slots=True)
class Routing:
    """The routing of the tokens of one text, or of synthetic records, by layer."""

    directory: str
    hash: str
    read: str  # the text or the records, in words
    layers: tuple[LayerRouting, ...]

    def to_dict(self) -> dict[str, Any]:
        """Converts the routing to plain values, for JSON."""
        return {
            "directory": self.directory,
            "hash": self.hash,
            "read": self.read,
            "layers": [layer.to_dict() for layer in self.layers],
        }


def measure(
    directory: Path,
    text: Path | None,
    *,
    tokens: int,
    model: Any | None = None,
    progress: Callable[[int], None] | None = None,
) -> Routing:
    """Runs a backbone over a text or synthetic records, and counts the experts that its routers choose.

    Args:
        directory: a backbone that reads records, which are then made up, or a checkpoint that reads text.
        text: a UTF-8 file of at most 1 MiB; None for the licence that comes with the checkpoint.
        tokens: the number of tokens to read: of a text at most, from its start; of records at least.
        model: runs in the backbone's place: the backbone with adapters.
        progress: called with the number of tokens read so far.

    Raises:
        Conflict: a text for a backbone that reads records, or one that is too large, empty or not UTF-8.
        NotFound: no text was given and none comes with the checkpoint.
        ModelError: the directory holds no model that can be measured.
    """
    found = loading.describe(directory)
    if found.reads == "records":
        if text is not None:
            raise Conflict(f"{directory} reads records, no text; leave --text away, and synthetic ones are made up")
        loaded = loading.load(directory, expected_hash=found.hash)
        model, batches = model or loaded.model, public_tokens.of_records(loaded.schema, tokens)
        read = "synthetic records of its schema"
    else:
        path = text or public_tokens.licence_of(directory)
        if path is None:
            raise NotFound(f"{directory} comes with no licence; name a text for it to read by --text FILE")
        batches = public_tokens.of_text(directory, _text(path), tokens, expected_hash=found.hash)
        first = next(batches, None)
        if first is None:
            raise Conflict(f"{path} is empty; name a file with words in it by --text")
        batches = itertools.chain([first], batches)
        model = model or checkpoints.load_model(directory, expected_hash=found.hash)
        read = path.name if text is not None else f"{path.name} of the backbone"
    layers = router_statistics(model, _told(batches, progress))
    return Routing(str(directory), found.hash, read, layers)


def measure_records(directory: Path, *, tokens: int) -> Routing | None:
    """Measures a backbone that reads records on synthetic ones; None if it has no routed experts.

    Raises:
        ModelError: the directory holds no such backbone.
    """
    try:
        return measure(directory, None, tokens=tokens)
    except MetricUndefined:  # of so many records, none is the other reason
        return None


def reader_of_run(store: Store, home: Path, run_id: str) -> tuple[Path, Any]:
    """Loads a run's model; returns its backbone's folder and the model: `directory` and `model` of `measure`."""
    folder = study_start(home, load_study(store.study(store.run(run_id).study))).backbone
    return folder, trained_model(store, home, run_id).adapted.model


def keep(
    store: Store,
    home: Path,
    run_id: str,
    *,
    tokens: int = TOKENS,
    progress: Callable[[int, int], None] | None = None,
) -> kept.KeptRouting:
    """Measures the routing of a run's model before training and with its adapter, and keeps both for its page.

    Both read the same public tokens: synthetic records, or the licence that comes with the backbone; nothing else can
    be named. The audit log says so before the file is there.

    Args:
        progress: called with the number of tokens read so far, and of those to read.

    Raises:
        Conflict: no round is committed yet.
        NotFound: the backbone reads text, and comes with no licence.
        ModelError: the backbone's folder holds no such model, or the model has no routed experts.
        StateDamaged: a file that it needs is damaged.
    """
    start = study_start(home, load_study(store.study(store.run(run_id).study)))
    model, number, state_hash = trained_at(store, home, run_id)
    adapted, told = model.adapted, progress or (lambda _read, _all: None)

    def measured(part: int) -> Routing:
        return measure(
            start.backbone, None, tokens=tokens, model=adapted.model,
            progress=lambda read: told(part * tokens + min(read, tokens), 2 * tokens),
        )  # fmt: skip

    try:
        after = measured(0)
    except NotFound as err:
        raise NotFound(
            f"the backbone of run {run_id} reads text and comes with no licence, so nothing public is here to read; "
            f"what another text gives is not kept: coordinator adapter routing {run_id} --text FILE"
        ) from err
    adapted.load_state(start.start.exported[: adapted.layout.dim])
    before = measured(1)
    found = kept.KeptRouting.of(
        before.layers, after.layers, adapter=state_hash, round=number, backbone=after.hash,
        read=after.read,
    )  # fmt: skip
    with store.session() as session:
        store.log_action(session, "adapter.map", run=run_id, round=number)
    kept.write(home, run_id, found)
    return found


def _text(path: Path) -> str:
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise Conflict(f"{path} is larger than {MAX_TEXT_BYTES} bytes; cut a part out of it")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise Conflict(f"{path} is not UTF-8 text; save it as UTF-8") from None  # the error quotes it


def _told(batches: Iterator[Batch], progress: Callable[[int], None] | None) -> Iterator[Batch]:
    read = 0
    for ids, is_token in batches:
        yield ids, is_token
        read += int(is_token.sum())
        if progress is not None:
            progress(read)
