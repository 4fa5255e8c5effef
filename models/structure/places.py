"""Names of senses (an eye, an ear) and of their modules, for those who load no model."""

EYE, EAR = "eye", "ear"  # of the module, in the decoder
_LEAVES = {
    EYE: ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2", "reduction", "to_words"),
    EAR: ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2", "to_words"),
}
# By the name of a sense: its modules as targets of adapters, and its file beside a backbone's weights.
TARGETS = {sense: tuple(f"{sense}.{leaf}" for leaf in leaves) for sense, leaves in _LEAVES.items()}
FILES = {sense: f"{sense}.safetensors" for sense in _LEAVES}


def sense_in(name: str) -> str | None:
    """Returns the sense that a module of this full name is part of; None if it is part of none."""
    return next((sense for sense in _LEAVES if f".{sense}." in f".{name}"), None)
