"""The interface of a backbone family: all that the rest of confide needs to know of an architecture.

A family is one file beside this one and one line in `families.FAMILIES`. Reading, hashing and writing checkpoints,
attaching adapters, clipping and the test that units are independent are the same for all families.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from re import Pattern
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ..errors import InvalidBackbone

if TYPE_CHECKING:
    from torch import nn


WeightFormat = Literal["float32", "bfloat16", "fp8", "int8", "nf4"]  # of frozen matrices while they are in use


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneConfig:
    """Sizes of a backbone built from nothing: a dense layer first, then layers of experts if its family has any."""

    family: str = "deepseek_v3"  # in `families.FAMILIES`
    hidden: int = 128  # multiple of 32 and of twice the heads
    layers: int = 2
    heads: int = 4
    experts: int = 8
    top_k: int = 2
    max_tokens: int = 256
    seed: int = 0  # of the initial weights

    def __post_init__(self) -> None:
        if self.hidden < 32 or self.hidden % 32 or self.heads < 1 or self.hidden % (2 * self.heads):
            raise InvalidBackbone(
                f"need heads >= 1, and hidden a multiple of 32 and of twice the heads; got {self.heads}, {self.hidden}"
            )
        if not (self.layers >= 2 and 1 <= self.top_k <= self.experts and self.experts >= 2):
            raise InvalidBackbone(f"need layers >= 2, experts >= 2 and top_k in [1, experts], got {self}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertNames:
    """Names and settings by which a checkpoint describes the routed experts of a layer."""

    weight: Pattern[str]  # matches the names of their weights in the files and no others
    bank: tuple[str, str] = ("", "")  # end of a bank's name in the model, and what the files have in its place
    # Ends of the stored names behind that, of gate and up projection, and of the down projection. Where {expert} is
    # left out, one tensor holds all experts, and where there is one name for gate and up, they are one above the other.
    gate_up: tuple[str, ...] = ("{expert}.gate_proj.weight", "{expert}.up_proj.weight")
    down: str = "{expert}.down_proj.weight"
    count: tuple[str, ...]  # setting of config.json: experts of a layer; the first of these that is there
    top_k: tuple[str, ...]  # setting of config.json: experts that a token is sent to

    def stored(self, bank: str) -> str:
        """The name that a bank of the model has in the files."""
        return bank.removesuffix(self.bank[0]) + self.bank[1]


LM_HEAD = {"lm_head": "a pooled head never runs lm_head, and a completion is written by it as it is"}
_RANDOM = "is {}, which draws random numbers for a whole batch; adapters are trained without: set it to 0"
_FETCHED = "is {}, which makes transformers fetch code from a hub; take it out"
# Settings of config.json that no family takes, unless they are 0 or left out.
_MISFIT_SETTINGS = {
    "attention_dropout": _RANDOM,
    "router_jitter_noise": _RANDOM,
    "use_kernels": _FETCHED,
    "kernel_config": _FETCHED,
}


# Settings of Mixture-of-Experts that tie the tokens of a batch together, unless they are 0 or left out. A coefficient
# of a balance loss, which nearly all of them have (`router_aux_loss_coef`, `aux_loss_alpha`), does not: transformers
# adds that loss only to one that it computes itself, and only with `output_router_logits`; ours is computed from hidden
# states, and the probes of `privacy.mechanism.independence` watch it.
_COUPLING_SETTINGS = (
    *("output_router_logits", "bias_update_speed", "router_bias_update_rate"),
    *("capacity_factor", "expert_capacity", "moe_capacity_factor", "moe_expert_capacity_factor"),
)


def coupling(config: object) -> str | None:
    """Says by what setting a configuration makes one row's result depend on other rows; None if by none known."""
    for setting in _COUPLING_SETTINGS:
        if value := getattr(config, setting, None):
            return f"{setting} is {value!r}, which ties the tokens of a batch together; set it to 0 or leave it out"
    rope = getattr(config, "rope_parameters", None)
    if not isinstance(rope, Mapping) or rope.get("rope_type") not in ("dynamic", "longrope"):
        return None
    if rope["rope_type"] == "longrope" and rope.get("short_factor") == rope.get("long_factor") is not None:
        return None
    return (
        f"rope_parameters has rope_type {rope['rope_type']!r}: its angles depend on a batch's longest row; take a "
        "checkpoint with another, such as yarn or llama3"
    )


def context_length(config: Any) -> int:
    """Returns the tokens that a model of this configuration reads; one that states none is bounded all the same."""
    return int(getattr(config, "max_position_embeddings", None) or 2**17)


class Backbone(Protocol):
    """A family of frozen models, identified by the `model_type` in the `config.json` of its checkpoints.

    A family's file imports torch and transformers inside its methods only: commands that load no model read its
    attributes.
    """

    model_type: str
    name: str  # for people, as in "DeepSeek-V3"
    title: str  # for people, as in "DeepSeek-V3 Mixture-of-Experts"
    published: str  # models of it that people have, for the table in docs/backbones.md
    architecture: str  # transformers' causal language model of it
    targets: tuple[str, ...]  # last names of the modules that may take an adapter; a bank of routed experts is one
    frozen: Mapping[str, str] = LM_HEAD  # last names of modules that nobody may adapt, each with the reason
    mistaken: tuple[str, ...] = ()  # targets that PEFT takes for routed experts' if a list of modules names them
    experts: ExpertNames | None = None  # None if the family has no routed experts
    router: str | None = None  # last name of the routers
    buffers: Pattern[str] | None = None  # matches the names of stored tensors that are no parameters

    def model_class(self) -> Any:
        """Returns transformers' causal language model of this family."""
        import transformers

        return getattr(transformers, self.architecture)

    def config_class(self) -> Any:
        """Returns transformers' configuration class of this family."""
        return self.model_class().config_class

    def banks(self, model: "nn.Module") -> "dict[str, nn.Module]":
        """Returns the banks of routed experts by name; empty if there are none."""
        return {name: module for name, module in model.named_modules() if hasattr(module, "has_gate")}

    def misfit(self, config: Any) -> str | None:
        """Says why a model of this configuration cannot be adapted; None if it can.

        Args:
            config: of `config_class`.
        """
        for name, why in _MISFIT_SETTINGS.items():
            if value := getattr(config, name, None):
                return f"{name} {why.format(str(value)[:40])}"
        return coupling(config)

    def borders(self, config: Any) -> tuple[int, ...]:
        """Returns the numbers of tokens from which on positions are treated in another way.

        Such as the width of a window of local attention, or the length of the chunks of a scan.
        """
        window = getattr(config, "sliding_window", None)
        return () if window is None else (int(window),)

    def probe_lengths(self, config: Any, max_tokens: int) -> tuple[int, ...]:
        """Returns the lengths, in tokens, of the synthetic records on which independence is tested.

        One for each way in which the architecture treats the positions of a record of `max_tokens`. Five times a
        length must be no leading axis of a tensor of the model, which the tests would take for the tokens of five rows.
        """
        return (7, *sorted({border + 2 for border in self.borders(config) if border < max_tokens}))

    def build(self, vocabulary: int, config: BackboneConfig) -> Any:
        """Builds an untrained model of so many words from torch's global generator."""
        model = self.model_class()
        return model(model.config_class(**self.settings(config), vocab_size=vocabulary))

    def settings(self, config: BackboneConfig) -> dict[str, Any]:
        """Returns transformers' settings of a model that is built from nothing."""
        raise NotImplementedError


def common_settings(config: BackboneConfig) -> dict[str, Any]:
    """Returns the settings that all architectures have under the same name, of a model that is built from nothing.

    Embedding and output matrix are tied: records are read, not written, so a separate output matrix would stay
    untrained.
    """
    return {
        "hidden_size": config.hidden,
        "intermediate_size": 2 * config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.heads,
        "max_position_embeddings": config.max_tokens,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "use_cache": False,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 1,
    }
