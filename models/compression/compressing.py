"""Makes a smaller backbone of one: cuts it, teaches it on public tokens, and writes it with what was kept.

The new folder is a backbone of its own, with a hash of its own, of the same family and for the same records or texts.
`compression.safetensors` beside its weights says which parts were kept, so that adapters can be cut alike
(`adapters.carrying`).
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..backbones import checkpoints, loading
from ..backbones.moments import POOLING
from ..backbones.pretraining import MixedRecords, PretrainingConfig, pooled_moments
from ..backbones.public_tokens import of_records
from ..backbones.text_pretraining import Row, TextPretrainingConfig, drawn, once, up_to_the_last
from ..directories import new_directory
from ..errors import InvalidCompression
from ..records import RecordSchema
from ..structure import inputs
from ..structure.readers import STRUCTURE
from ..structure.sense import READS, sense_of
from .cutting import Kept, Sizes, chosen, chosen_layers, cut, measured, planned, resized
from .distilling import DistillingConfig, PooledStates, Words, learn, learnable, loss_of_words

KEPT = "compression.safetensors"
# Of a model with adapters in its weights: the head reads states that the cut model has not, and the card tells of it.
_OUTDATED = ("head.safetensors", "README.md", KEPT, POOLING, STRUCTURE)
_STUDIES = "confide.json"  # studies whose adapters are in the weights: the cut model still tells of their records
_NAMES = ", ".join(Sizes.__dataclass_fields__)
_TOKENS = 8192  # on which the parts of a model are measured
_HELD_OUT, _LEAST_ROWS = 0.05, 8  # of public texts: the share that is not learned but judged on, and the least number
_MOST_HELD_OUT = 1000
_MOST_FACTS = 1 << 16  # characters
_TENSOR = re.compile(r"layers|channels|neurons\.[A-Za-z0-9_.]{1,200}|experts\.[0-9]{1,4}")


@dataclass(frozen=True, slots=True)
class Compressed:
    """A backbone that was made smaller, and what that cost on public tokens that it did not learn."""

    hash: str
    of: str  # hash of the whole one
    sizes: Sizes
    parameters: int
    parameters_before: int
    measure: Literal["loss", "variance lost"]  # nats a word; or share of the pooled states' variance
    before: float  # of the whole backbone
    cut: float  # before anything was learned
    after: float

    @property
    def times(self) -> float:
        """Ratio of the parameters before and now."""
        return self.parameters_before / self.parameters

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return asdict(self) | {"times": self.times}


def compress(
    backbone: Path,
    directory: Path,
    *,
    times: float | None = None,
    fixed: dict[str, int | None] | None = None,
    rows: Sequence[Row] | None = None,
    config: DistillingConfig | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Compressed:
    """Writes a smaller backbone; runs in one thread, because the order of sums over threads would change the weights.

    Args:
        backbone: folder of a backbone, of whatever it reads.
        directory: must not exist; appears in one rename at the end.
        times: how many times fewer parameters it shall have; None if `fixed` says all.
        fixed: sizes by their names in `cutting.Sizes`; what is left out, `times` decides, or stays as it is.
        rows: of a backbone that reads text: public texts, as token ids, and which of them are learned. Of one that
            reads records None: synthetic ones are drawn.
        progress: called with (steps done, steps in total) after every step.

    Raises:
        InvalidCompression: the sizes fit no model, the family is none that can be cut, or the texts are too few.
        InvalidBackbone: a file of the backbone is missing, broken or refused.
        FileExistsError: `directory` exists already.
    """
    backbone, directory, config = Path(backbone), Path(directory), config or DistillingConfig()
    if directory.exists():
        raise FileExistsError(f"{directory} exists already")
    if strange := (fixed or {}).keys() - Sizes.__dataclass_fields__.keys():
        raise InvalidCompression(f"there is no size {sorted(strange)[0][:40]!r}; sizes are {_NAMES}")
    checkpoints.size(backbone)  # says at once what is no backbone
    _claims(backbone)
    reads_records = loading.reads_records(backbone)
    if reads_records == (rows is not None):
        raise InvalidCompression(
            f"{backbone} reads records, which are drawn at random: public texts have no part in it"
            if reads_records
            else f"{backbone} reads text: it is made smaller on public texts, and none are given"
        )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            if rows is None:
                return _of_records(backbone, directory, times, fixed or {}, config, progress)
            return _of_text(backbone, directory, times, fixed or {}, rows, config, progress)
    finally:
        torch.set_num_threads(threads)


def read_kept(directory: Path) -> tuple[Kept, str]:
    """Reads the parts of a backbone that a smaller one was made of, and the hash of the whole one.

    Raises:
        InvalidCompression: the folder has no such file, or it is broken.
    """
    path = Path(directory) / KEPT
    try:
        with safe_open(path, framework="pt") as file:
            facts, names = json.loads((file.metadata() or {}).get("made_of", "")[:_MOST_FACTS]), [*file.keys()]
            if not all(_TENSOR.fullmatch(name) for name in names):
                raise InvalidCompression(f"{path}: a tensor's name is none of the parts that were kept")
            found = {name: file.get_tensor(name) for name in names}
    except FileNotFoundError:
        raise InvalidCompression(f"{directory} was not made smaller from another backbone: it has no {KEPT}") from None
    except (OSError, SafetensorError, ValueError, RecursionError) as err:
        if isinstance(err, InvalidCompression):
            raise
        raise InvalidCompression(f"{path}: cannot be read ({type(err).__name__})") from err
    of = facts.get("of") if isinstance(facts, dict) else None
    if not (isinstance(of, str) and re.fullmatch(r"[0-9a-f]{64}", of) and {"layers", "channels"} <= found.keys()):
        raise InvalidCompression(f"{path}: does not say what was kept of which backbone")
    for name, places in found.items():
        is_list = places.ndim == 1 or (places.ndim == 2 and name.startswith("neurons."))
        if places.dtype != torch.int32 or not is_list or not _is_ascending(places):
            raise InvalidCompression(f"{path}: {name[:60]} is no ascending list of numbers")
    neurons = {name.removeprefix("neurons."): each.long() for name, each in found.items() if name[0] == "n"}
    experts = {int(name.removeprefix("experts.")): each.long() for name, each in found.items() if name[0] == "e"}
    layers = tuple(found["layers"].tolist())
    return Kept(layers=layers, channels=found["channels"].long(), neurons=neurons, experts=experts), of


def made_of(directory: Path) -> str | None:
    """Returns the hash of the backbone that a smaller one was made of; None if it was not.

    Raises:
        InvalidCompression: the file that says so is broken.
    """
    return read_kept(directory)[1] if (Path(directory) / KEPT).exists() else None


def _is_ascending(places: Tensor) -> bool:
    return places.numel() > 0 and int(places.min()) >= 0 and bool((places.diff(dim=-1) > 0).all())


def records_of(backbone: loading.RecordBackbone, seed: int) -> MixedRecords:
    """Draws synthetic records as in pretraining: of a backbone for several studies, each of one of them."""
    return MixedRecords(parts_of(backbone), backbone.schema, questions=1, seed=seed)


def parts_of(backbone: loading.RecordBackbone) -> tuple[RecordSchema, ...]:
    """Returns what each study reads of a backbone's schema; one alone reads the whole."""
    return tuple(backbone.schema.only(names) for names in backbone.parts) or (backbone.schema,)


def _of_records(
    backbone: Path,
    directory: Path,
    times: float | None,
    fixed: dict[str, int | None],
    config: DistillingConfig,
    progress: Callable[[int, int], None],
) -> Compressed:
    whole = loading.load(backbone)
    parts = parts_of(whole)
    batches = of_records(whole.schema, _TOKENS, parts=parts)
    model, kept, sizes = _cut(whole, times, fixed, batches)
    source = records_of(whole, config.seed)
    lesson = PooledStates(model, whole.model, whole.head(), source, config.batch)
    at_first = lesson.lost()
    learn(lesson, [*model.parameters(), *lesson.map.parameters()], config, progress, routed=model)
    center, whiten = pooled_moments(model, source, PretrainingConfig())
    after = lesson.lost()
    facts = {"of": whole.hash, "steps": config.steps, "seed": config.seed, "learned": "synthetic records"}
    with new_directory(directory) as partial:
        loading.write(model, whole.schema, center, whiten, partial, parts)
        _write_beside(backbone, partial, kept, facts, model)
        digest = loading.backbone_hash(partial)
    return _result(whole, model, digest, sizes, "variance lost", 0.0, at_first, after)


def _of_text(
    backbone: Path,
    directory: Path,
    times: float | None,
    fixed: dict[str, int | None],
    rows: Sequence[Row],
    config: DistillingConfig,
    progress: Callable[[int, int], None],
) -> Compressed:
    whole = loading.load_text(backbone)
    if (sense := sense_of(whole.model)) is not None:
        raise InvalidCompression(
            f"the backbone reads {READS[sense.name]}s: one with an {sense.name} is not made smaller"
        )
    learned, held_out = _parted(learnable(rows, whole.model, _LEAST_ROWS))
    judged = list(once(held_out, config.batch_tokens))
    order = TextPretrainingConfig(batch_tokens=config.batch_tokens)
    seen = islice(drawn(learned, order), math.ceil(_TOKENS / config.batch_tokens))
    model, kept, sizes = _cut(whole, times, fixed, ((ids_RT, up_to_the_last(ids_RT)) for ids_RT, _ in seen))
    if inputs.is_joined(whole.model):
        decoder = whole.model.model
        tables = decoder.structure.weight[kept.channels]
        inputs.join(model, decoder.structure_ids.reader, inputs.words_of(whole.tokenizer), tables)
    at_first = loss_of_words(model, judged)
    learn(Words(model, whole.model, learned, config), model.parameters(), config, progress, routed=model)
    digest_of_texts = hashlib.sha256()
    for ids, is_learned in rows:
        digest_of_texts.update(json.dumps([list(map(int, ids)), list(map(int, is_learned))]).encode())
    facts = {
        "of": whole.hash, "steps": config.steps, "seed": config.seed, "learned": "public texts",
        "texts": len(rows), "texts_sha256": digest_of_texts.hexdigest(),
    }  # fmt: skip
    with new_directory(directory) as partial:
        checkpoints.save_model(model, partial)
        for path in checkpoints.beside_weights(backbone):
            if path.name not in (*_OUTDATED, _STUDIES) and not (partial / path.name).exists():
                (partial / path.name).write_bytes(path.read_bytes())
        if inputs.is_joined(model):
            inputs.save(model, partial)
        _write_beside(backbone, partial, kept, facts, model)
        digest = checkpoints.content_hash(partial)
    before, after = (loss_of_words(each, judged) for each in (whole.model, model))
    return _result(whole, model, digest, sizes, "loss", before, at_first, after)


def _parted(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Parts rows into those that are learned, and some on which the model is judged."""
    count = min(_MOST_HELD_OUT, math.ceil(_HELD_OUT * len(rows)))
    places = set(range(0, len(rows), len(rows) // count)[:count])  # from all over a table, which may be sorted
    held_out = [rows[place] for place in sorted(places)]
    return [row for place, row in enumerate(rows) if place not in places], held_out


def _cut(
    whole: loading.RecordBackbone | loading.TextBackbone,
    times: float | None,
    fixed: dict[str, int | None],
    batches: Iterable[tuple[Tensor, Tensor]],
) -> tuple[Any, Kept, Sizes]:
    family, config = whole.family, whole.model.config
    given = {name: size for name, size in fixed.items() if size is not None}
    all_of_it = Sizes.of(family, config)
    importance = measured(whole.model, batches)
    layers = chosen_layers(importance, given.get("layers", all_of_it.layers))
    tables = int(whole.model.model.structure.in_features) if inputs.is_joined(whole.model) else 0
    sizes = replace(all_of_it, **given) if times is None else planned(family, config, times, given, layers, tables)
    resized(family, config, sizes, layers)
    kept = chosen(importance, config, sizes)
    return cut(family, whole.model, kept, sizes, importance.rms).train(), kept, sizes


def _write_beside(backbone: Path, directory: Path, kept: Kept, facts: dict[str, Any], model: Any) -> None:
    """Writes what was kept, and what else is told of the whole backbone: its origin, and studies in its weights."""
    tensors = {"layers": torch.tensor(kept.layers), "channels": kept.channels}
    tensors |= {f"neurons.{name}": places for name, places in kept.neurons.items()}
    tensors |= {f"experts.{layer}": places for layer, places in kept.experts.items()}
    # One entry alone: several come in any order, and the folder would have another hash each time.
    metadata = {"made_of": json.dumps(facts, sort_keys=True)}
    save_file({name: each.to(torch.int32).contiguous() for name, each in tensors.items()}, directory / KEPT, metadata)
    origin, told = _claims(backbone)
    if origin is not None:
        count = sum(weight.numel() for weight in model.parameters())
        changes = f"{origin.changes}; cut to {count:,} parameters and trained again on {facts['learned']}"
        checkpoints.write_json(directory / checkpoints.ORIGIN, replace(origin, changes=changes).to_dict())
    if told is not None:
        (directory / _STUDIES).write_bytes(told)


def _claims(backbone: Path) -> tuple[checkpoints.Origin | None, bytes | None]:
    """Reads the origin of a backbone, and which studies' adapters are in its weights.

    Raises:
        InvalidBackbone: one of the files is broken.
    """
    path = backbone / _STUDIES
    if path.exists():
        checkpoints.read_json(path)
    return checkpoints.load_origin(backbone), path.read_bytes() if path.exists() else None


def _result(
    whole: loading.RecordBackbone | loading.TextBackbone,
    model: Any,
    digest: str,
    sizes: Sizes,
    measure: Literal["loss", "variance lost"],
    before: float,
    at_first: float,
    after: float,
) -> Compressed:
    counts = [sum(weight.numel() for weight in each.parameters()) for each in (model, whole.model)]
    return Compressed(digest, whole.hash, sizes, counts[0], counts[1], measure, before, at_first, after)
