"""Structure as an input: where each token stands in its formula or program, told to the model beside the token's word.

`readers` is the table of readers, each a file that implements `readers.StructureReader`: `formulas` reads LaTeX and
infix mathematics, `code` programs in Python and Java, whose open constructs `constructs` follows. `inputs` joins a
reader to a model: at every token rows of numbers from small tables are added to the word's embedding, one for each
thing that the reader says. What it says of a token follows from the tokens up to it and from no later one, so a text is
read alike whether it is trained on or being written.

The second 2 of `2x^{2` is an exponent, and the first digit of its number:

>>> from confide.models.structure import readers
>>> prefix = readers.READERS["formulas"].begin()
>>> said = [prefix.feed(word) for word in ("2", "x", "^", "{", "2")]
>>> [dict(zip(readers.READERS["formulas"].sizes, ids))["opener"] for ids in (said[0], said[-1])]
[0, 1]
"""

__all__ = ["code", "constructs", "inputs", "readers"]
