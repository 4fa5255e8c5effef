"""The interface of a structure reader, and the table of them."""

from collections.abc import Mapping
from typing import Protocol

from .code import Code
from .formulas import Formulas

TARGET = "structure"  # last name of the layer that holds the tables, for adapters
STRUCTURE = "structure.safetensors"  # their file, beside a backbone's weights


class Prefix(Protocol):
    """The beginning of a text, which grows word by word."""

    def feed(self, word: str) -> tuple[int, ...]:
        """Adds a word and says where its end stands: one id of each table, below its size.

        A word of no text, such as padding, changes nothing.
        """


class StructureReader(Protocol):
    """Says of every token where it stands, from the tokens up to it alone."""

    name: str  # in `structure.safetensors` and on the command line
    sizes: Mapping[str, int]  # ids of each table, by the thing that they say

    def begin(self) -> Prefix:
        """Begins a text."""


READERS: dict[str, StructureReader] = {reader.name: reader for reader in (Formulas(), Code())}
