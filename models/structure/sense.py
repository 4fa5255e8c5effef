"""The part before a decoder that reads what no words are: what an eye and an ear share.

A sense turns the tokens that a row begins with, by the bytes that they carry, into states of the decoder's width. From
there on such a token is one as any other: it writes its keys and values by the same matrices as words do, in latent
attention (DeepSeek-V3) by the same latents.

It lies beside a backbone's weights in a file of its own. Its linear layers take adapters, named with the sense before
them. They may see another number of tokens than the decoder, so each adapter says how many it sees of a row.

Legend: `R` rows (records), `T` tokens, `N` of them a picture's or a sound's, `B` bytes that one carries, `D` decoder
width.
"""

import inspect
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .. import tokens
from ..errors import BackboneMismatch, InvalidBackbone
from .places import EAR, EYE, FILES

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Layout(Protocol):
    """The size of what a sense reads."""

    @property
    def sense(self) -> str:
        """Name of the sense that reads it."""

    @property
    def said(self) -> str:
        """The size in words."""

    @property
    def tokens(self) -> int:
        """N, the tokens that carry it."""

    @property
    def carried(self) -> int:
        """Numbers of 64 bits that a token carries."""


READS = {EYE: "picture", EAR: "sound"}  # what it reads, by a sense's name


class Sense(nn.Module):
    """A sense of a decoder, which gives the states of its first tokens."""

    name: ClassVar[str]
    settings: Any  # a data class of sizes
    layout: Layout
    width: int  # E, of what the encoder gives for a token
    to_words: nn.Linear  # into the decoder's width
    where: nn.Parameter  # [N, D], what is added to the state of a token by its place
    given: Callable[[Tensor], Tensor] | None = None  # stands in for `features` where they were computed before

    @property
    def encoder(self) -> nn.Module:
        """The part that stays as it is while a decoder learns to use the sense."""
        raise NotImplementedError

    def features(self, bytes_RNB: Tensor) -> Tensor:
        """[R, N, E], what `to_words` reads of each token: what the encoder makes of it."""
        raise NotImplementedError

    def forward(self, bytes_RNB: Tensor) -> Tensor:
        """[R, N, D], the states of the tokens that carry something."""
        states_RND: Tensor = self.to_words((self.given or self.features)(bytes_RNB)) + self.where
        return states_RND


def join(model: Any, sense: Sense) -> None:
    """Puts a sense before the decoder of a causal language model: rows that carry bytes begin with what it reads.

    Raises:
        InvalidBackbone: the model has one already, or is of another width.
    """
    if (own := sense_of(model)) is not None:
        raise InvalidBackbone(f"the model has an {own.name} already")
    if sense.where.shape[1] != model.config.hidden_size:
        raise InvalidBackbone(
            f"an {sense.name} for states of {sense.where.shape[1]} numbers, not {model.config.hidden_size}"
        )
    setattr(model.model, sense.name, sense)
    model.model.register_forward_pre_hook(_sense_first, with_kwargs=True)


def sense_of(model: Any) -> Sense | None:
    """Returns the sense of a causal language model, or of its decoder; None if it has none."""
    decoder = getattr(model, "model", model)
    return next((sense for name in FILES if isinstance(sense := getattr(decoder, name, None), Sense)), None)


def require_layout(model: Any, layout: Layout | None) -> None:
    """Makes sure that a model reads pictures or sounds of this layout, or none.

    Raises:
        BackboneMismatch: it has no such sense, or one that records would not use, or one for other sizes.
    """
    sense = sense_of(model)
    if (None if sense is None else sense.layout) == layout:
        return
    if layout is None:
        assert sense is not None
        raise BackboneMismatch(f"has an {sense.name}, and the study's records have no {READS[sense.name]}s")
    one = READS[layout.sense]
    if sense is None or sense.name != layout.sense:
        raise BackboneMismatch(f"has no {layout.sense}, and the study's records begin with a {one}")
    raise BackboneMismatch(
        f"has an {sense.name} for {one}s of {sense.layout.said}, and the study's are of {layout.said}: see data.{one}"
    )


@torch.no_grad()
def tokens_seen(sense: Sense, names: frozenset[str]) -> dict[str, int]:
    """Counts the tokens of a row that each of a sense's modules sees, by the module's name in the sense."""
    seen: dict[str, int] = {}
    device = sense.where.device

    def watch(name: str, module: nn.Module) -> Any:
        return module.register_forward_hook(
            lambda _module, inputs, _output: seen.__setitem__(name, inputs[0].numel() // inputs[0].shape[-1])
        )

    handles = [watch(name, module) for name, module in sense.named_modules() if name in names]
    layout = sense.layout
    try:
        sense(torch.zeros(1, layout.tokens, layout.carried * tokens.WIDTH, dtype=torch.uint8, device=device))
    finally:
        for handle in handles:
            handle.remove()
    return seen


def save(model: Any, directory: Path) -> None:
    """Writes the sense of a model beside its weights."""
    sense = sense_of(model)
    assert sense is not None, "nothing to save"
    weights = {name: tensor.detach().contiguous() for name, tensor in sense.state_dict().items()}
    save_file(weights, Path(directory) / FILES[sense.name], metadata={"sizes": json.dumps(asdict(sense.settings))})


def load(directory: Path, model: Any) -> None:
    """Joins a model to the sense that lies beside its weights, frozen; does nothing if there is none.

    Raises:
        InvalidBackbone: it is broken, or does not fit the model; or there are two.
    """
    from .ear import Ear, EarConfig
    from .eye import Eye, EyeConfig

    make: dict[str, Callable[[str, int], Sense]] = {
        EYE: lambda sizes, hidden: Eye(EyeConfig.from_json(sizes), hidden),
        EAR: lambda sizes, hidden: Ear(EarConfig.from_json(sizes), hidden),
    }
    found = {name: path for name, file in FILES.items() if (path := Path(directory) / file).exists()}
    if len(found) > 1:
        both = " and ".join(FILES[name] for name in found)
        raise InvalidBackbone(f"{directory} has {both}; a backbone has one of them")
    for name, path in found.items():
        _load(path, model, make[name])


def _load(path: Path, model: Any, make: Callable[[str, int], Sense]) -> None:
    named = f"an {path.stem}"
    try:
        with safe_open(path, framework="pt") as file:
            sizes = (file.metadata() or {}).get("sizes", "")
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
            with torch.device("meta"):
                sense = make(sizes, model.config.hidden_size)
            if shapes != {name: tuple(tensor.shape) for name, tensor in sense.state_dict().items()}:
                raise InvalidBackbone(f"{named} whose weights are of other shapes than its sizes say")
            weights = {name: file.get_tensor(name) for name in shapes}
    except (OSError, SafetensorError) as err:
        raise InvalidBackbone(f"{path}: cannot be read ({str(err)[:100]})") from err
    except InvalidBackbone as err:
        raise InvalidBackbone(f"{path}: {err}") from None
    table = model.get_input_embeddings().weight
    for name, tensor in weights.items():
        if tensor.dtype not in _FLOATS or not bool(torch.isfinite(tensor.to(table.dtype)).all()):
            raise InvalidBackbone(f"{path}: {named} whose {name} is not of finite numbers")
    with torch.random.fork_rng(devices=[]):
        sense = make(sizes, model.config.hidden_size)
    sense.load_state_dict(weights)
    join(model, sense.to(table.device, table.dtype).requires_grad_(False).eval())


def bytes_read(sense: Sense, ids_RTC: Tensor) -> Tensor:
    """[R, N, B], what the first tokens of rows carry; a row that is shorter, as only probes have, ends in zeros."""
    bytes_RNB = tokens.bytes_of(ids_RTC[:, : sense.layout.tokens])
    return nn.functional.pad(bytes_RNB, (0, 0, 0, sense.layout.tokens - bytes_RNB.shape[1]))


def _sense_first(decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Embeds the rows of a forward pass, what they begin with by the sense, where they carry any bytes."""
    kwargs = dict(zip(inspect.signature(decoder.forward).parameters, args, strict=False)) | kwargs
    ids = kwargs.get("input_ids")
    if ids is None or ids.ndim != 3:
        return (), kwargs
    return (), kwargs | {"input_ids": None, "inputs_embeds": _embedded(decoder, ids)}


def _embedded(decoder: Any, ids_RTC: Tensor) -> Tensor:
    """[R, T, D]; a row that is shorter than a picture or a sound, as only probes have, has the beginning of one."""
    words_RTD: Tensor = decoder.embed_tokens(tokens.words_of(ids_RTC))
    # Where states are given that were computed before, nobody reads what the sense would see.
    if getattr(decoder.layers[0], "is_stand_in", False):
        return words_RTD
    sense = sense_of(decoder)
    assert sense is not None
    length, count = words_RTD.shape[1], sense.layout.tokens
    seen_RND = sense(bytes_read(sense, ids_RTC))
    return torch.cat([seen_RND[:, :length].to(words_RTD.dtype), words_RTD[:, count:]], dim=1)
