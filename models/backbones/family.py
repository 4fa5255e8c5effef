"""The interface of a backbone family: all that the rest of confide needs to know of an architecture.

A family is one file beside this one and one line in `families.FAMILIES`. Reading, hashing and writing checkpoints,
attaching adapters, clipping and the test that units are independent are the same for all families.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from re import Pattern
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import InvalidBackbone

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneConfig:
    """Sizes of a backbone built from nothing: a dense layer first, then layers of experts if its family has any."""

    family: str = "deepseek_v3"  # in `families.FAMILIES`
    hidden: int = 128  # multiple of 32
    layers: int = 2
    heads: int = 4
    experts: int = 8
    top_k: int = 2
    max_tokens: int = 256
    seed: int = 0  # of the initial weights

    def __post_init__(self) -> None:
        if self.hidden < 32 or self.hidden % 32 or self.heads < 1:
            raise InvalidBackbone(f"need hidden a multiple of 32 and heads >= 1, got {self.hidden} and {self.heads}")
        if not (self.layers >= 2 and 1 <= self.top_k <= self.experts and self.experts >= 2):
            raise InvalidBackbone(f"need layers >= 2, experts >= 2 and top_k in [1, experts], got {self}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertNames:
    """Names and settings by which a checkpoint describes the routed experts of a layer."""

    weight: Pattern[str]  # matches the names of their weights and no others
    leaves: tuple[str, str, str]  # gate, up and down projection of expert E of a bank: `BANK.E.LEAF.weight`
    count: str  # setting of config.json: experts of a layer
    top_k: str  # setting of config.json: experts that a token is sent to


class Backbone(Protocol):
    """A family of frozen models, identified by the `model_type` in the `config.json` of its checkpoints.

    A family's file imports torch and transformers inside its methods only: commands that load no model read its
    attributes.
    """

    model_type: str
    name: str  # for people, as in "DeepSeek-V3"
    title: str  # for people, as in "DeepSeek-V3 Mixture-of-Experts"
    targets: tuple[str, ...]  # last names of the modules that may take an adapter; a bank of routed experts is one
    frozen: Mapping[str, str]  # last names of modules that nobody may adapt, each with the reason, after "left out:"
    experts: ExpertNames | None  # None if the family has no routed experts
    buffers: Pattern[str] | None  # matches the names of stored tensors that are no parameters
    # Lengths, in tokens, of the synthetic records on which independence is tested: one for each way in which the
    # architecture treats positions, such as inside and beyond a window of local attention; each of 2 or more, and
    # five times it no leading axis of a tensor of the model, which the tests would take for the tokens of five rows.
    probe_lengths: tuple[int, ...]

    def model_class(self) -> Any:
        """Returns transformers' causal language model of this family."""

    def config_class(self) -> Any:
        """Returns transformers' configuration class of this family."""

    def banks(self, model: "nn.Module") -> "dict[str, nn.Module]":
        """Returns the banks of routed experts by name; empty if there are none."""

    def build(self, vocabulary: int, config: BackboneConfig) -> Any:
        """Builds an untrained model of so many words from torch's global generator; its embeddings are tied."""
