"""Names of an eye and of its modules, for those who load no model."""

EYE = "eye.safetensors"  # beside a backbone's weights
NAME = "eye"  # of the module, in the decoder
PREFIX = f"{NAME}."  # of the names of its modules as targets of adapters
_LEAVES = ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2", "reduction", "to_words")
TARGETS = tuple(f"{PREFIX}{leaf}" for leaf in _LEAVES)


def is_in_eye(name: str) -> bool:
    """True if a module of this full name is part of an eye."""
    return f".{PREFIX}" in f".{name}"
